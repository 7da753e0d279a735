//! JetStream, where the log lies there: an object store bucket holds the blobs, a key-value bucket the objects.
//!
//! A blob is written as chunks of one size, each a message of its own subject, so that any of them can be read alone. Writers
//! number their chunks in **runs**, one for each writer, so that two that write the same blob do not touch each other's; the
//! checkpoint says which chunks of which run count. Publishing describes the blob as the object store does: any client of
//! NATS can list and get it.
//!
//! ```text
//! OBJ_{bucket}   $O.{bucket}.C.{blob}.{run}.{number}   a chunk
//!                $O.{bucket}.M.{name, base64}          a published blob: size, digest, runs
//! KV_{bucket}    $KV.{bucket}.{directory}.{name}       an object; its sequence is its version
//! ```
//!
//! There are no JetStream consumers: a chunk is a direct get, asked for when the reader wants it.

mod buckets;
mod reading;
mod run;
mod staging;

use std::time::{Duration, SystemTime};

use async_nats::{
    Message,
    header::HeaderValue,
    jetstream::object_store::{ObjectInfo, ObjectOptions},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use serde_json::json;
use sha2::Digest as _;
use tokio::time::{Instant, sleep, timeout};

pub(super) use self::{run::Run, staging::JetstreamStaging};
use super::{Checkpoint, Error, Listed, Staging, reader::Source};
use crate::nats::stream::{Failure, Stream};

/// A chunk: a message that any server takes, and what a download holds in memory. All of a blob but the last have this size.
const CHUNK_BYTES: usize = 256 * 1024;
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(50);
/// Objects of a listing that are asked for at once, and the bytes after which an answer takes no further one.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 1024 * 1024;
/// Under which the description of a blob names its runs.
const RUNS: &str = "weir-runs";

/// Two buckets of one name. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Jetstream {
    bucket: String,
    blobs: Stream,
    objects: Stream,
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

/// Repeats what changed nothing because nobody leads, no longer than a request may take.
async fn persist<T, F: Future<Output = Result<T, Failure>>>(
    stream: &Stream,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Error> {
    let deadline = Instant::now() + stream.timeout;
    let done = timeout(stream.timeout, async {
        loop {
            match attempt().await {
                Err(failure) if failure.may_pass() && Instant::now() + RETRY < deadline => {
                    sleep(RETRY).await;
                }
                done => return done,
            }
        }
    });
    Ok(done.await.unwrap_or_else(|_| Err(stream.silence()))?)
}

impl Jetstream {
    /// `expected` is the version the object must have, 0 for none; without it any will do.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has another, or what JetStream reports.
    pub(super) async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        expected: Option<u64>,
    ) -> Result<u64, Error> {
        let subject = self.object(key);
        let stored = persist(&self.objects, || {
            let (subject, bytes) = (subject.clone(), bytes.clone());
            self.objects.replace(subject, bytes, expected)
        });
        stored.await?.ok_or(Error::Conflict)
    }

    /// The object and its version.
    pub(super) async fn get(&self, key: &str) -> Result<Option<(Bytes, u64)>, Error> {
        let subject = self.object(key);
        let found = persist(&self.objects, || self.objects.last(&subject)).await?;
        Ok(found.map(|found| (found.payload, found.sequence)))
    }

    /// Deletes the object, or only the `version` of it; whether it was there.
    pub(super) async fn delete(&self, key: &str, version: Option<u64>) -> Result<bool, Error> {
        let subject = self.object(key);
        let before = version.map(|version| version + 1);
        let purged = persist(&self.objects, || self.objects.purge(&subject, before)).await?;
        Ok(purged > 0)
    }

    /// Names of the objects in `dir`, in no order.
    pub(super) async fn names(&self, dir: String) -> Result<Vec<String>, Error> {
        let prefix = self.object(&format!("{dir}/"));
        let filter = format!("{prefix}>");
        persist(&self.objects, || async {
            let mut names = Vec::new();
            let note = |subject: &str| names.extend(subject.strip_prefix(&prefix).map(Into::into));
            self.objects.subjects(&filter, note).await?;
            Ok(names)
        })
        .await
    }

    /// The objects in `dir`, oldest first. A replica that lags may not know the newest.
    pub(super) fn list(&self, dir: &str) -> BoxStream<'static, Result<Listed, Error>> {
        let prefix = self.object(&format!("{dir}/"));
        let filter = format!("{prefix}>");
        let listed = move |stored: Page| {
            let name = stored.subject.strip_prefix(&prefix)?.to_owned();
            Some(Listed {
                name,
                size: stored.payload.len() as u64,
                modified: stored.modified,
            })
        };
        pages(self.objects.clone(), filter)
            .try_filter_map(move |stored| futures::future::ready(Ok(listed(stored))))
            .boxed()
    }

    /// The published blobs, as [`Self::list`] has the objects.
    pub(super) fn blobs(&self) -> BoxStream<'static, Result<Listed, Error>> {
        let listed = |stored: Page| {
            let info: ObjectInfo = serde_json::from_slice(&stored.payload).ok()?;
            Some(Listed {
                name: info.name,
                size: info.size as u64,
                modified: stored.modified,
            })
        };
        pages(self.blobs.clone(), format!("$O.{}.M.>", self.bucket))
            .try_filter_map(move |stored| futures::future::ready(Ok(listed(stored))))
            .boxed()
    }

    /// The names of all blobs of which there is a chunk.
    pub(super) async fn staged(&self) -> Result<Vec<String>, Error> {
        let prefix = format!("$O.{}.C.", self.bucket);
        let filter = format!("{prefix}>");
        persist(&self.blobs, || async {
            let mut names = std::collections::HashSet::new();
            let note = |subject: &str| {
                let rest = subject.strip_prefix(&prefix).unwrap_or_default();
                if let Some((name, _)) = rest.split_once('.')
                    && !names.contains(name)
                {
                    names.insert(name.to_owned());
                }
            };
            self.blobs.subjects(&filter, note).await?;
            Ok(names.into_iter().collect())
        })
        .await
    }

    /// Deletes every chunk of the blob.
    pub(super) async fn delete_chunks(&self, key: &str) -> Result<(), Error> {
        let chunks = format!("{}>", self.chunks(key));
        persist(&self.blobs, || self.blobs.purge(&chunks, None)).await?;
        Ok(())
    }

    pub(super) async fn delete_blob(&self, key: &str) -> Result<(), Error> {
        let description = self.description(key);
        persist(&self.blobs, || self.blobs.purge(&description, None)).await?;
        self.delete_chunks(key).await
    }

    /// Reads the blob's description, and its chunks as they are asked for.
    pub(super) async fn read(
        &self,
        key: &str,
        from: u64,
        until: u64,
    ) -> Result<Option<Source>, Error> {
        let subject = self.description(key);
        let found = persist(&self.blobs, || self.blobs.only(&subject)).await?;
        let Some(found) = found else {
            return Ok(None);
        };
        let corrupt = |error: &dyn std::fmt::Display| Error::Corrupt(format!("{key}: {error}"));
        let info: ObjectInfo = serde_json::from_slice(&found).map_err(|error| corrupt(&error))?;
        let runs = info.metadata.get(RUNS).map_or("[]", String::as_str);
        let runs: Vec<Run> = serde_json::from_str(runs).map_err(|error| corrupt(&error))?;
        let (size, chunks) = (info.size as u64, self.chunks(key));
        let stream = reading::bytes(self.blobs.clone(), chunks, runs, size, from..until);
        Ok(Some(Source::stream(stream)))
    }

    /// A new run behind the runs of the checkpoint. Nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a chunk that the checkpoint names is not there, or what JetStream reports.
    pub(super) async fn stage(&self, key: &str, from: Checkpoint) -> Result<Staging, Error> {
        if from.committed > 0 {
            self.others(key, &from.runs).await?;
        }
        let staging = JetstreamStaging::new(self.clone(), key, from)?;
        Ok(Staging::from(staging))
    }

    /// Describes the blob whose chunks the checkpoint names, and drops what other writers left beside them. May be repeated.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub(super) async fn publish(&self, key: &str, whole: &Checkpoint) -> Result<(), Error> {
        for other in self.others(key, &whole.runs).await? {
            persist(&self.blobs, || self.blobs.purge(&other, None)).await?;
        }
        let corrupt = |error: serde_json::Error| Error::Corrupt(error.to_string());
        let runs = serde_json::to_string(&whole.runs).map_err(corrupt)?;
        let chunks: u64 = whole.runs.iter().map(|run| run.chunks).sum();
        let fits = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let info = ObjectInfo {
            name: name(key).to_owned(),
            description: None,
            metadata: [(RUNS.to_owned(), runs)].into(),
            headers: None,
            options: Some(ObjectOptions {
                link: None,
                max_chunk_size: Some(CHUNK_BYTES),
            }),
            bucket: self.bucket.clone(),
            // The chunks lie below it, in the order in which they were stored.
            nuid: format!("{}.>", name(key)),
            size: fits(whole.committed),
            chunks: fits(chunks),
            modified: None,
            digest: Some(format!(
                "SHA-256={}",
                URL_SAFE.encode(whole.hasher()?.finalize())
            )),
            deleted: false,
        };
        let info: Bytes = serde_json::to_vec(&info).map_err(corrupt)?.into();
        let subject = self.description(key);
        persist(&self.blobs, || {
            let (subject, info) = (subject.clone(), info.clone());
            self.blobs.replace(subject, info, None)
        })
        .await?;
        Ok(())
    }

    /// The chunks of the blob that are not of these runs.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when one that is of them is not there, or what JetStream reports.
    async fn others(&self, key: &str, runs: &[Run]) -> Result<Vec<String>, Error> {
        let prefix = self.chunks(key);
        let filter = format!("{prefix}>");
        let (found, others) = persist(&self.blobs, || async {
            let (mut found, mut others) = (0, Vec::new());
            let note = |subject: &str| match subject.strip_prefix(&prefix) {
                Some(chunk) if run::holds(runs, chunk) => found += 1,
                _ => others.push(subject.to_owned()),
            };
            self.blobs.subjects(&filter, note).await?;
            Ok((found, others))
        })
        .await?;
        let wanted: u64 = runs.iter().map(|run| run.chunks).sum();
        match found == wanted {
            true => Ok(others),
            false => Err(Error::Corrupt(format!(
                "{found} of {wanted} chunks are there"
            ))),
        }
    }

    fn object(&self, key: &str) -> String {
        format!("$KV.{}.{}", self.bucket, key.replace('/', "."))
    }

    fn description(&self, key: &str) -> String {
        format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name(key)))
    }

    /// What the subjects of the blob's chunks begin with.
    fn chunks(&self, key: &str) -> String {
        format!("$O.{}.C.{}.", self.bucket, name(key))
    }
}

/// The last part of a key: blobs of one directory only.
fn name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// A stored message as a listing has it.
struct Page {
    subject: String,
    payload: Bytes,
    modified: SystemTime,
}

/// All messages of the subjects that match, oldest first, a page in memory at a time.
fn pages(stream: Stream, filter: String) -> impl futures::Stream<Item = Result<Page, Error>> {
    let page = move |from: u64| {
        let (stream, filter) = (stream.clone(), filter.clone());
        async move {
            let request = json!({
                "seq": from, "batch": PAGE, "max_bytes": PAGE_BYTES, "next_by_subj": filter,
            });
            let messages = persist(&stream, || stream.page(&request)).await?;
            let mut page = Vec::with_capacity(messages.len());
            let mut next = from;
            for message in messages {
                let (sequence, stored) = read(message)?;
                next = sequence + 1;
                page.push(Ok(stored));
            }
            let is_over = page.is_empty();
            Ok::<_, Error>((!is_over).then(|| (futures::stream::iter(page), next)))
        }
    };
    futures::stream::try_unfold(1, page).try_flatten()
}

fn read(message: Message) -> Result<(u64, Page), Error> {
    let headers = message.headers.as_ref();
    let text = |name: &str| headers?.get(name).map(HeaderValue::as_str);
    let sequence = text("Nats-Sequence").and_then(|text| text.parse().ok());
    let modified = text("Nats-Time-Stamp").and_then(|text| humantime::parse_rfc3339(text).ok());
    let (Some(sequence), Some(modified), Some(subject)) =
        (sequence, modified, text("Nats-Subject"))
    else {
        return Err(Error::Corrupt(
            "a stored message without sequence, time or subject".into(),
        ));
    };
    let subject = subject.to_owned();
    let payload = message.payload;
    Ok((
        sequence,
        Page {
            subject,
            payload,
            modified,
        },
    ))
}
