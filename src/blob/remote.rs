//! S3. A blob is staged as the parts of a multipart upload; a checkpoint names the parts that are there.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    multipart::{MultipartStore as _, PartId},
    path::Path as Key,
};
use sha2::{Digest as _, Sha256};

use super::{
    Checkpoint, Error, Staging, present,
    reader::Source,
    staging::{Multipart, Sending, saved, sending},
};

/// A part: S3 takes 10,000 of them, at least 5 MiB each but for the last.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// From this many parts on they are larger, so that the largest object S3 takes fits.
const SMALL_PARTS: usize = 4000;
/// The size of those.
const LARGE_PART_BYTES: usize = 64 * 1024 * 1024;

/// How often and how long a request is repeated before its call fails: a client can wait and try again itself.
const RETRIES: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// A bucket, and a prefix in it.
pub(super) struct Remote {
    store: Arc<AmazonS3>,
    prefix: String,
}

impl Remote {
    /// `location` is `s3://bucket/prefix`.
    pub(super) fn new(location: &str) -> Result<Self, String> {
        let rest = location.trim_start_matches("s3://");
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]
            .iter()
            .any(|name| std::env::var(name).is_ok_and(|url| url.starts_with("http://")));
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_allow_http(is_plain)
            .with_retry(RetryConfig {
                max_retries: RETRIES,
                retry_timeout: RETRY_TIMEOUT,
                ..RetryConfig::default()
            })
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            store: Arc::new(store),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        &*self.store
    }

    pub(super) fn key(&self, key: &str) -> Key {
        match self.prefix.as_str() {
            "" => Key::from(key),
            prefix => Key::from(format!("{prefix}/{key}")),
        }
    }

    pub(super) async fn read(
        &self,
        key: &str,
        from: u64,
        until: u64,
    ) -> Result<Option<Source>, Error> {
        if from >= until {
            // S3 has no empty range.
            return Ok(Some(Source::stream(Box::pin(futures::stream::empty()))));
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(from..until)),
            ..GetOptions::default()
        };
        let got = present(self.store.get_opts(&self.key(key), options).await)?;
        Ok(got.map(|got| Source::stream(got.into_stream().map_err(Error::from).boxed())))
    }

    pub(super) async fn publish(&self, key: &str, whole: &Checkpoint) -> Result<(), Error> {
        let target = self.key(key);
        let lost = || Error::Corrupt("the parts of an upload are gone".into());
        let multipart = whole.multipart.as_ref().ok_or_else(lost)?;
        let ids = multipart.parts.iter().cloned();
        let parts = ids.map(|content_id| PartId { content_id }).collect();
        let completed = self
            .store
            .complete_multipart(&target, &multipart.id, parts)
            .await;
        if present(completed)?.is_none() {
            // Somebody completed it before.
            let found = present(self.store.head(&target).await)?;
            found
                .filter(|found| found.size == whole.committed)
                .ok_or_else(lost)?;
        }
        Ok(())
    }

    pub(super) async fn stage(&self, key: &str, from: Checkpoint) -> Result<Staging, Error> {
        let target = self.key(key);
        let hasher = from.hasher()?;
        let multipart = match from.multipart {
            Some(multipart) => multipart,
            None => Multipart {
                id: self.store.create_multipart(&target).await?,
                parts: Vec::new(),
            },
        };
        Ok(Staging::from(RemoteStaging {
            store: Arc::clone(&self.store),
            target,
            durable: Checkpoint {
                committed: from.committed,
                hash: from.hash,
                multipart: Some(multipart),
                ..Checkpoint::default()
            },
            is_news: false,
            pending: BytesMut::new(),
            written: from.committed,
            hasher,
            sending: None,
        }))
    }
}

/// A blob being written to S3. Holds two parts at most: one that fills and one under way.
pub(super) struct RemoteStaging {
    store: Arc<AmazonS3>,
    target: Key,
    durable: Checkpoint,
    /// The checkpoint that holds once the part under way is there.
    sending: Option<Sending>,
    /// That one was not handed out yet.
    is_news: bool,
    pending: BytesMut,
    written: u64,
    hasher: Sha256,
}

impl RemoteStaging {
    pub(super) const fn hasher(&self) -> &Sha256 {
        &self.hasher
    }

    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    fn sent_parts(&self) -> usize {
        let durable = self.durable.multipart.as_ref().map_or(0, |m| m.parts.len());
        durable + usize::from(self.sending.is_some())
    }

    fn part_bytes(&self) -> usize {
        match self.sent_parts() < SMALL_PARTS {
            true => PART_BYTES,
            false => LARGE_PART_BYTES,
        }
    }

    pub(super) async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        for mut piece in pieces {
            self.written += piece.len() as u64;
            while !piece.is_empty() {
                let room = self.part_bytes().saturating_sub(self.pending.len());
                let taken = piece.split_to(room.min(piece.len()));
                // A piece is half a megabyte: hashed in less than a millisecond.
                self.hasher.update(&taken);
                self.pending.extend_from_slice(&taken);
                if self.pending.len() >= self.part_bytes() {
                    self.send().await?;
                }
            }
        }
        Ok(())
    }

    /// Sends what is pending as a part, once the part before is there.
    async fn send(&mut self) -> Result<(), Error> {
        self.sent().await?;
        let index = self.sent_parts();
        let data = self.pending.split().freeze();
        let (store, target) = (Arc::clone(&self.store), self.target.clone());
        let mut multipart = self.multipart()?.clone();
        let committed = self.durable.committed + data.len() as u64;
        let hash = saved(&self.hasher);
        self.sending = Some(sending(async move {
            let (id, data) = (&multipart.id, PutPayload::from(data));
            let part = match store.put_part(&target, id, index, data).await {
                // The multipart upload is gone: completed, aborted or expired.
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(Error::Corrupt("the parts of an upload are gone".into()));
                }
                part => part?,
            };
            multipart.parts.push(part.content_id);
            Ok(Checkpoint {
                committed,
                hash,
                multipart: Some(multipart),
                ..Checkpoint::default()
            })
        }));
        self.is_news = true;
        Ok(())
    }

    /// Waits for the part under way.
    async fn sent(&mut self) -> Result<(), Error> {
        if let Some(sending) = self.sending.take() {
            self.durable = sending.await?;
        }
        Ok(())
    }

    fn multipart(&mut self) -> Result<&mut Multipart, Error> {
        let missing = || Error::Corrupt("an upload lost its parts".into());
        self.durable.multipart.as_mut().ok_or_else(missing)
    }

    pub(super) fn checkpoint_due(
        &mut self,
    ) -> Option<BoxFuture<'static, Result<Checkpoint, Error>>> {
        let sending = self.sending.clone().filter(|_| self.is_news)?;
        self.is_news = false;
        Some(sending.boxed())
    }

    pub(super) async fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        self.sent().await?;
        self.is_news = false;
        Ok(self.durable.clone())
    }

    pub(super) async fn seal(mut self) -> Result<Checkpoint, Error> {
        self.sent().await?;
        let is_empty = self.multipart()?.parts.is_empty();
        if !self.pending.is_empty() || is_empty {
            self.send().await?;
            self.sent().await?;
        }
        Ok(self.durable)
    }

    pub(super) async fn discard(mut self) -> Result<(), Error> {
        // A part behind the end would stay.
        let _ = self.sent().await;
        let id = self.multipart()?.id.clone();
        present(self.store.abort_multipart(&self.target, &id).await)?;
        Ok(())
    }
}
