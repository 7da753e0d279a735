//! A client's stream of messages, taken in batches: what has arrived is stored together.

use futures::{FutureExt as _, StreamExt as _};
use tonic::{Status, Streaming};

/// Messages of one batch at most.
const BATCH_MESSAGES: usize = 1024;
/// Bytes after which a batch takes no further message.
const BATCH_BYTES: usize = 256 * 1024;

/// A client's messages.
pub(super) struct Incoming<T> {
    stream: Streaming<T>,
    /// What ended the stream behind the last batch.
    failed: Option<Status>,
}

impl<T: prost::Message> Incoming<T> {
    pub(super) const fn new(stream: Streaming<T>) -> Self {
        Self {
            stream,
            failed: None,
        }
    }

    /// Everything that has arrived, up to a batch; waits for the first message. `None` at the stream's end. Cancel-safe: a
    /// message is taken only together with its batch.
    pub(super) async fn next_batch(&mut self) -> Result<Option<Vec<T>>, Status> {
        if let Some(status) = self.failed.take() {
            return Err(status);
        }
        let Some(first) = self.stream.message().await? else {
            return Ok(None);
        };
        let mut bytes = first.encoded_len();
        let mut batch = vec![first];
        while batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            match self.stream.next().now_or_never() {
                Some(Some(Ok(message))) => {
                    bytes += message.encoded_len();
                    batch.push(message);
                }
                Some(Some(Err(status))) => {
                    self.failed = Some(status);
                    break;
                }
                // The end shows again on the next call.
                Some(None) | None => break,
            }
        }
        Ok(Some(batch))
    }
}
