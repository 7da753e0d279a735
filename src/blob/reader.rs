//! Reading a blob in order.

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};

use super::{Error, Slot, blocking};

/// A position in a blob. Reads ahead nothing by itself.
pub struct Reader {
    source: Source,
    /// Given back when what the source has open is closed.
    slot: Slot,
}

/// Where the bytes come from.
pub(super) enum Source {
    Local {
        file: File,
        at: u64,
    },
    Stream {
        stream: BoxStream<'static, Result<Bytes, Error>>,
        rest: Bytes,
    },
}

impl Source {
    pub(super) fn stream(stream: BoxStream<'static, Result<Bytes, Error>>) -> Self {
        Self::Stream {
            stream,
            rest: Bytes::new(),
        }
    }
}

impl Reader {
    pub(super) const fn new(source: Source, slot: Slot) -> Self {
        Self { source, slot }
    }

    /// Fills the `spans` of `buffer`, in order, with the next bytes. On a directory the read begins at once, elsewhere when
    /// the future is polled. The spans must lie inside the buffer.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the blob ends before, or what the storage reports.
    #[must_use]
    pub fn read(
        self,
        buffer: BytesMut,
        spans: Vec<Range<usize>>,
    ) -> BoxFuture<'static, Result<(Self, BytesMut), Error>> {
        let Self { source, slot } = self;
        match source {
            Source::Local { file, at } => {
                let job = move || {
                    let (source, buffer) = from_file(file, at, buffer, spans)?;
                    Ok((Self::new(source, slot), buffer))
                };
                let job = tokio::task::spawn_blocking(job);
                async move {
                    job.await
                        .unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
                }
                .boxed()
            }
            Source::Stream { stream, rest } => async move {
                let (source, buffer) = from_stream(stream, rest, buffer, spans).await?;
                Ok((Self::new(source, slot), buffer))
            }
            .boxed(),
        }
    }
}

fn from_file(
    file: File,
    mut at: u64,
    mut buffer: BytesMut,
    spans: Vec<Range<usize>>,
) -> Result<(Source, BytesMut), Error> {
    for span in spans {
        let length = span.len() as u64;
        file.read_exact_at(&mut buffer[span], at)?;
        at += length;
    }
    Ok((Source::Local { file, at }, buffer))
}

async fn from_stream(
    mut stream: BoxStream<'static, Result<Bytes, Error>>,
    mut rest: Bytes,
    mut buffer: BytesMut,
    spans: Vec<Range<usize>>,
) -> Result<(Source, BytesMut), Error> {
    for mut span in spans {
        while !span.is_empty() {
            if rest.is_empty() {
                rest = match stream.next().await {
                    Some(piece) => piece?,
                    None => return Err(Error::Corrupt("a file ends too early".into())),
                };
            }
            let length = rest.len().min(span.len());
            rest.copy_to_slice(&mut buffer[span.start..span.start + length]);
            span.start += length;
        }
    }
    Ok((Source::Stream { stream, rest }, buffer))
}

/// Opens the file for reading; `None` when there is none.
pub(super) async fn open(path: std::path::PathBuf, at: u64) -> Result<Option<Source>, Error> {
    blocking(move || match File::open(path) {
        Ok(file) => Ok(Some(Source::Local { file, at })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    })
    .await
}
