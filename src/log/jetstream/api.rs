//! Requests to JetStream: what it is asked, and its answers in the log's words.
//!
//! Any replica of the stream answers a **direct** request, also one that lags; only the stream's leader answers the others.
//! So a direct request finds nothing but committed messages and may miss the newest: who has to know that there is nothing
//! more asks the leader ([`Api::next_after`]).

use std::time::Duration;

use async_nats::{HeaderMap, client::Request, jetstream::stream::Config as StreamConfig};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    subject::Subjects,
    wire::{BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, Entry, Outgoing, format_time, parse_time},
};
use crate::{
    log::{Error, LogId, Sequence, Timestamp},
    nats::stream::{Failure, PubAck, Refusal, Stream},
};

/// Messages asked for at once.
pub(super) const PAGE: usize = 1000;
/// Bytes after which an answer takes no further message.
pub(super) const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Between two attempts.
pub(super) const RETRY: Duration = Duration::from_millis(50);

/// Error codes of atomic batches.
mod code {
    /// An identifier was used before: by a batch being stored, or by a stored message.
    pub(super) const DUPLICATE_PENDING: u64 = 10158;
    pub(super) const DUPLICATE_IN_BATCH: u64 = 10201;
    /// Nothing of the batch was stored.
    pub(super) const INCOMPLETE: u64 = 10176;
    pub(super) const TOO_LARGE_BATCH: u64 = 10199;
}

/// One connection's way to the stream.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) stream: Stream,
    pub(super) subjects: Subjects,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) if refusal.is_full() => Self::Full,
            Failure::Refused(refusal) => Self::Unavailable(refusal.description),
            Failure::NoResponders => Self::Unavailable("JetStream has no leader now".into()),
            Failure::Unknown(what) => Self::Unavailable(what),
        }
    }
}

/// What became of an attempt to publish.
pub(super) enum Published {
    /// Stored at consecutive positions that end with this one.
    Stored(Sequence),
    /// The only message repeats the one there.
    Duplicate(Sequence),
    /// Nothing was stored: publish fewer at once, some repeat others or they are too many.
    Split,
    /// Nothing was stored: the same may work in a moment.
    Retry(Failure),
}

/// Key of the stream's metadata whose value makes the log another one: a stream that NATS restored has all else as it was.
const LOG_MARK: &str = "weir-log";

/// What is known of the stream.
#[derive(Debug, Clone)]
pub(super) struct Info {
    created: String,
    pub(super) config: StreamConfig,
    pub(super) last: Sequence,
    /// The time of the last message; zero when there never was one.
    pub(super) last_time: Timestamp,
    /// The server's clock; the time of the last message where the server does not tell.
    pub(super) now: Timestamp,
    pub(super) bytes: u64,
    pub(super) subjects: Vec<String>,
}

#[derive(Deserialize)]
struct Found {
    message: FoundMessage,
}

#[derive(Deserialize)]
struct FoundMessage {
    seq: u64,
}

impl Info {
    /// The log's identity: all servers know the same, and a stream that was created again has another.
    pub(super) fn identity(&self) -> LogId {
        let mark = self.config.metadata.get(LOG_MARK);
        let mark = mark.map_or("", String::as_str);
        LogId::derived(&[&self.config.name, &self.created, mark])
    }
}

impl Api {
    /// The stream as its leader knows it, and those of its subjects that match, 100,000 at most from `offset` on.
    pub(super) async fn info(&self, subjects: Option<(&str, usize)>) -> Result<Info, Failure> {
        let info = self.stream.info(subjects).await?;
        let last_time = parse_time(&info.state.last_ts).unwrap_or_default();
        Ok(Info {
            last_time,
            now: parse_time(&info.ts).unwrap_or(last_time),
            created: info.created,
            config: info.config,
            last: Sequence(info.state.last_seq),
            bytes: info.state.bytes,
            subjects: info.state.subjects.into_keys().collect(),
        })
    }

    /// The first message of `subject` (wildcards allowed) at or after `from`, as the leader knows it.
    pub(super) async fn next_after(
        &self,
        subject: &str,
        from: Sequence,
    ) -> Result<Option<Sequence>, Failure> {
        self.find(&json!({ "seq": from.0.max(1), "next_by_subj": subject }))
            .await
    }

    /// The last message of `subject`, as the leader knows it.
    pub(super) async fn last_of(&self, subject: &str) -> Result<Option<Sequence>, Failure> {
        self.find(&json!({ "last_by_subj": subject })).await
    }

    /// The first message of `subject` stored at `time` or later, as the leader knows it.
    pub(super) async fn since(
        &self,
        subject: &str,
        time: Timestamp,
    ) -> Result<Option<Sequence>, Failure> {
        self.find(&json!({ "start_time": format_time(time), "next_by_subj": subject }))
            .await
    }

    async fn find(&self, request: &Value) -> Result<Option<Sequence>, Failure> {
        match self.stream.ask_stream::<Found>("MSG.GET", request).await {
            Ok(found) => Ok(Some(Sequence(found.message.seq))),
            Err(Failure::Refused(refusal)) if refusal.is_no_message() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The message at `sequence`; none when it is gone. Asks again while the replica that answers lags.
    pub(super) async fn at(&self, sequence: Sequence) -> Result<Option<Entry>, Error> {
        let deadline = Instant::now() + self.stream.timeout;
        loop {
            let found = self.page(&json!({ "seq": sequence.0, "batch": 1 })).await?;
            if let Some(entry) = found.into_iter().next() {
                return Ok((entry.sequence == sequence).then_some(entry));
            }
            if self.stream.is_single || self.next_after(">", sequence).await? != Some(sequence) {
                return Ok(None);
            }
            self.pause(deadline).await?;
        }
    }

    /// Waits a little before another attempt.
    ///
    /// # Errors
    /// The time is up.
    pub(super) async fn pause(&self, deadline: Instant) -> Result<(), Error> {
        if Instant::now() + RETRY > deadline {
            return Err(Error::Unavailable(
                "the replicas of the stream do not catch up".into(),
            ));
        }
        sleep(RETRY).await;
        Ok(())
    }

    /// The last message of `subject`; none when it has none.
    pub(super) async fn latest(&self, subject: &str) -> Result<Option<Entry>, Error> {
        if self.stream.is_single {
            let found = self.last_of_each(&[subject], UpTo::Now).await?;
            return Ok(found.into_iter().next());
        }
        let deadline = Instant::now() + self.stream.timeout;
        loop {
            let Some(sequence) = self.last_of(subject).await? else {
                return Ok(None);
            };
            if let Some(entry) = self.at(sequence).await? {
                return Ok(Some(entry));
            }
            // A later one took its place meanwhile.
            self.pause(deadline).await?;
        }
    }

    /// Messages from `from` on in order, of `subject` or of all: at most `count`, at most a page, none beyond so many bytes.
    /// The replica that answers may not have the newest.
    pub(super) async fn read(
        &self,
        subject: Option<&str>,
        from: Sequence,
        count: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut request = json!({
            "seq": from.0.max(1),
            "batch": count.clamp(1, PAGE),
            "max_bytes": bytes.clamp(1, PAGE_BYTES),
        });
        if let Some(subject) = subject {
            request["next_by_subj"] = subject.into();
        }
        self.page(&request).await
    }

    /// The last message of each subject that matches, of those up to a position or time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also when more than 1,024 subjects match.
    pub(super) async fn last_of_each(
        &self,
        subjects: &[&str],
        up_to: UpTo,
    ) -> Result<Vec<Entry>, Error> {
        let mut request = json!({ "multi_last": subjects });
        match up_to {
            UpTo::Sequence(sequence) => request["up_to_seq"] = sequence.0.into(),
            UpTo::Time(time) => request["up_to_time"] = format_time(time).into(),
            UpTo::Now => {}
        }
        self.page(&request).await
    }

    async fn page(&self, request: &Value) -> Result<Vec<Entry>, Error> {
        let messages = self.stream.page(request).await?;
        let entries = messages.into_iter();
        entries
            .map(|message| Entry::read(&self.subjects, message))
            .collect()
    }

    /// Publishes messages: all of them are stored, next to each other, or none. `batch` is an id never used before.
    ///
    /// # Errors
    /// Refused for good, or unknown.
    pub(super) async fn publish(
        &self,
        batch: &str,
        messages: &[Outgoing],
    ) -> Result<Published, Failure> {
        let Some((last, others)) = messages.split_last() else {
            return Err(Failure::Unknown("nothing to publish".into()));
        };
        let mut commit = last.headers();
        if !others.is_empty() {
            let sent = timeout(self.stream.timeout, self.send_uncommitted(batch, others)).await;
            sent.unwrap_or_else(|_| Err(self.stream.silence()))?;
            commit = in_batch(commit, batch, messages.len());
            commit.insert(BATCH_COMMIT, "1");
        }
        let request = Request::new().payload(last.payload.clone()).headers(commit);
        match self
            .stream
            .ask::<PubAck>(last.subject.clone(), request)
            .await
        {
            Ok(ack) if ack.duplicate => Ok(Published::Duplicate(Sequence(ack.seq))),
            Ok(ack) => Ok(Published::Stored(Sequence(ack.seq))),
            Err(Failure::Refused(refusal)) => refused_publish(refusal),
            Err(failure @ Failure::NoResponders) => Ok(Published::Retry(failure)),
            Err(failure @ Failure::Unknown(_)) => Err(failure),
        }
    }
}

// The client waits while its connection takes nothing, so this needs a time limit too.
impl Api {
    async fn send_uncommitted(&self, batch: &str, messages: &[Outgoing]) -> Result<(), Failure> {
        for (index, message) in messages.iter().enumerate() {
            let headers = in_batch(message.headers(), batch, index + 1);
            let (subject, payload) = (message.subject.clone(), message.payload.clone());
            self.stream
                .client
                .publish_with_headers(subject, headers, payload)
                .await
                .map_err(|error| Failure::Unknown(format!("NATS: {error}")))?;
        }
        Ok(())
    }
}

/// Where a search for last messages ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum UpTo {
    Sequence(Sequence),
    Time(Timestamp),
    Now,
}

fn in_batch(mut headers: HeaderMap, batch: &str, sequence: usize) -> HeaderMap {
    headers.insert(BATCH_ID, batch);
    headers.insert(BATCH_SEQUENCE, sequence.to_string().as_str());
    headers
}

fn refused_publish(refusal: Refusal) -> Result<Published, Failure> {
    match refusal.err_code {
        code::DUPLICATE_IN_BATCH | code::TOO_LARGE_BATCH => Ok(Published::Split),
        code::DUPLICATE_PENDING | code::INCOMPLETE => {
            Ok(Published::Retry(Failure::Refused(refusal)))
        }
        _ if refusal.may_pass() => Ok(Published::Retry(Failure::Refused(refusal))),
        _ => Err(Failure::Refused(refusal)),
    }
}
