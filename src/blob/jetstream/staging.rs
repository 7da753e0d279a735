//! A blob being written to JetStream.

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, future::BoxFuture};
use sha2::{Digest as _, Sha256};

use super::{CHUNK_BYTES, Jetstream, Run, persist};
use crate::blob::{
    Checkpoint, Error,
    staging::{Sending, saved, sending},
};

/// Chunks that are sent together, and made durable together.
const PART_CHUNKS: usize = 8;
const PART_BYTES: usize = PART_CHUNKS * CHUNK_BYTES;

/// A blob being written to JetStream. Holds two parts at most: one that fills and one under way.
pub(in crate::blob) struct JetstreamStaging {
    store: Jetstream,
    key: String,
    run: Run,
    durable: Checkpoint,
    /// The checkpoint that holds once the part under way is stored.
    sending: Option<Sending>,
    /// That one was not handed out yet.
    is_news: bool,
    pending: BytesMut,
    written: u64,
    hasher: Sha256,
}

impl JetstreamStaging {
    pub(super) fn new(store: Jetstream, key: &str, from: Checkpoint) -> Result<Self, Error> {
        Ok(Self {
            store,
            key: key.to_owned(),
            run: Run::new(),
            is_news: false,
            pending: BytesMut::new(),
            written: from.committed,
            hasher: from.hasher()?,
            durable: from,
            sending: None,
        })
    }

    pub(in crate::blob) const fn hasher(&self) -> &Sha256 {
        &self.hasher
    }

    pub(in crate::blob) const fn written(&self) -> u64 {
        self.written
    }

    pub(in crate::blob) async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        for mut piece in pieces {
            self.written += piece.len() as u64;
            while !piece.is_empty() {
                let room = PART_BYTES.saturating_sub(self.pending.len());
                let taken = piece.split_to(room.min(piece.len()));
                // A piece is half a megabyte: hashed in less than a millisecond.
                self.hasher.update(&taken);
                self.pending.extend_from_slice(&taken);
                if self.pending.len() >= PART_BYTES {
                    self.send().await?;
                }
            }
        }
        Ok(())
    }

    /// Sends all that is pending, once the part before is there.
    async fn send(&mut self) -> Result<(), Error> {
        self.sent().await?;
        let mut pending = self.pending.split().freeze();
        let committed = self.durable.committed + pending.len() as u64;
        let prefix = self.store.chunks(&self.key);
        let mut chunks = Vec::with_capacity(PART_CHUNKS);
        while !pending.is_empty() {
            let chunk = pending.split_to(CHUNK_BYTES.min(pending.len()));
            chunks.push((
                format!("{prefix}{}", self.run.chunk(self.run.chunks)),
                chunk,
            ));
            self.run.chunks += 1;
        }
        let mut runs = self.durable.runs.clone();
        match runs.last_mut() {
            Some(run) if run.id == self.run.id => *run = self.run.clone(),
            _ => runs.push(self.run.clone()),
        }
        let then = Checkpoint {
            committed,
            hash: saved(&self.hasher),
            runs,
            multipart: None,
        };
        let blobs = self.store.blobs.clone();
        self.sending = Some(sending(async move {
            persist(&blobs, || blobs.store(chunks.clone())).await?;
            Ok(then)
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

    pub(in crate::blob) fn checkpoint_due(
        &mut self,
    ) -> Option<BoxFuture<'static, Result<Checkpoint, Error>>> {
        let sending = self.sending.clone().filter(|_| self.is_news)?;
        self.is_news = false;
        Some(sending.boxed())
    }

    pub(in crate::blob) async fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        self.sent().await?;
        self.is_news = false;
        Ok(self.durable.clone())
    }

    pub(in crate::blob) async fn seal(mut self) -> Result<Checkpoint, Error> {
        if !self.pending.is_empty() {
            self.send().await?;
        }
        self.checkpoint().await
    }

    pub(in crate::blob) async fn discard(mut self) -> Result<(), Error> {
        // What is under way would be stored behind it.
        let _ = self.sent().await;
        self.store.delete_chunks(&self.key).await
    }
}
