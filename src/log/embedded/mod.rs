//! The engine on this machine's disk.
//!
//! ```text
//!  enqueue ─▶ queue (bounded in bytes) ─▶ committer thread ─▶ one fjall batch, one flush
//!                                           │ then followers, then acks
//!  read, seek, bounds, topics ─▶ blocking pool ─▶ snapshots of the database
//!  upkeep thread (retention, expired keys) ─▶ committer, in small steps
//! ```
//!
//! The committer is the only writer. Fjall makes a batch visible to readers only after its flush succeeded, so a reader sees
//! durable records only. One process at a time holds the data directory.

mod committer;
mod disk;
mod export;
mod faults;
mod import;
mod layout;
mod plan;
mod shared;
mod state;
mod store;
mod upkeep;

pub use export::open_export;
pub use faults::Faults;
pub use import::{Import, Restoring};

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use self::{
    committer::{Append, Command, Committer, Start},
    disk::DirLock,
    export::Exports,
    shared::Shared,
    store::Store,
    upkeep::Upkeep,
};
use super::{
    Ack, Bounds, Engine, Error, Follow, Follower, Health, Limit, NewRecord, OpenError, Page,
    Record, Sequence, Space, Timestamp, Topic, dedupe::Fingerprint, export::Exporter,
};
use crate::{config, telemetry::Metrics};

/// The engine on this machine's disk. Dropping it without [`Engine::close`] finishes what is queued and blocks meanwhile.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// Permits of the queue: one a byte.
    queue_bytes: usize,
    tokens: AtomicU64,
    /// Dropping it stops the upkeep.
    stop: Mutex<Option<mpsc::Sender<()>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the log in `config.dir`, creating it if there is none. Blocks while the journal is replayed.
    ///
    /// # Errors
    /// See [`OpenError`]; what is on disk stays as it was.
    pub fn open(config: &config::Log, metrics: Metrics) -> Result<Self, OpenError> {
        Self::start(config, metrics, None)
    }

    /// The same with scripted [`Faults`], for tests.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with(
        config: &config::Log,
        metrics: Metrics,
        faults: Faults,
    ) -> Result<Self, OpenError> {
        Self::start(config, metrics, Some(faults))
    }

    fn start(
        config: &config::Log,
        metrics: Metrics,
        faults: Option<Faults>,
    ) -> Result<Self, OpenError> {
        let lock = DirLock::acquire(&config.dir)?;
        let store = Arc::new(Store::open(&config.dir, config.cache.as_u64())?);
        let failed = |cause: String| OpenError::Storage {
            path: config.dir.clone(),
            cause,
        };
        let next = store.next().map_err(|error| failed(error.to_string()))?;
        let queue_bytes = crate::log::queue_bytes(config);
        let shared = Arc::new(Shared::new(
            metrics,
            queue_bytes,
            store.clone(),
            lock,
            next.sequence,
        ));
        let (sender, commands) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let start = Start {
            shared: shared.clone(),
            commands,
            store,
            next,
            faults,
        };
        let committer = Committer::new(start, config);
        let upkeep = Upkeep::new(shared.clone(), sender.clone(), stopped, config);
        let threads = vec![
            spawn("weir-log-commit", || committer.run())
                .map_err(|error| failed(error.to_string()))?,
            spawn("weir-log-upkeep", || upkeep.run()).map_err(|error| failed(error.to_string()))?,
        ];
        Ok(Self {
            shared,
            commands: sender,
            queue_bytes,
            tokens: AtomicU64::new(0),
            stop: Mutex::new(Some(stop)),
            threads: Mutex::new(threads),
        })
    }

    /// Runs a read where it may wait for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.shared.store()?;
        tokio::task::spawn_blocking(move || read(&store))
            .await
            .unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        self.commands
            .send(command(done))
            .map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    fn begin_close(&self) {
        self.shared.begin_close();
        drop(lock(&self.stop).take());
        // Gone when it closed before.
        let _ = self.commands.send(Command::Close);
    }
}

#[async_trait]
impl Engine for Embedded {
    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, Error> {
        self.shared.check_appends()?;
        let queued = Instant::now();
        let size = batch.iter().map(NewRecord::size).sum::<usize>();
        let permits = size.min(self.queue_bytes);
        let fingerprints = fingerprints(&batch);
        let held = self
            .shared
            .queue
            .acquire_many(u32::try_from(permits).unwrap_or(u32::MAX))
            .await
            .map_err(|_| Error::Closed)?;
        self.shared.check_appends()?;
        // The committer gives them back.
        held.forget();
        let (resolve, ack) = Ack::pending();
        let append = Append {
            batch,
            fingerprints,
            size,
            permits,
            queued,
            ack: resolve,
        };
        self.commands
            .send(Command::Append(append))
            .map_err(|_| Error::Closed)?;
        Ok(ack)
    }

    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        let topic = topic.clone();
        self.on_disk(move |store| store.read(&topic, from, limit))
            .await
    }

    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        let topic = topic.clone();
        self.on_disk(move |store| store.seek(&topic, time)).await
    }

    fn tail(&self) -> Sequence {
        self.shared.tail()
    }

    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        let topic = topic.clone();
        self.on_disk(move |store| store.newest(&topic, before, limit))
            .await
    }

    async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        let topic = topic.clone();
        self.on_disk(move |store| store.bounds(&topic)).await
    }

    async fn follow(&self, topic: &Topic, follower: Weak<dyn Follower>) -> Result<Follow, Error> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let (commands, ended) = (self.commands.clone(), topic.clone());
        // Made first, so that a caller who stops waiting leaves no follower behind.
        let follow = Follow::new(move || {
            let topic = ended;
            // Gone when the engine is closed.
            let _ = commands.send(Command::Unfollow { topic, token });
        });
        self.ask(|done| Command::Follow {
            topic: topic.clone(),
            token,
            follower,
            done,
        })
        .await?;
        Ok(follow)
    }

    fn shown(&self) -> Sequence {
        self.shared.shown()
    }

    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        loop {
            let of = topic.clone();
            let oldest = self.on_disk(move |store| store.oldest(&of, before)).await?;
            if oldest.is_empty() {
                break;
            }
            let topic = topic.clone();
            let trim = |done| Command::Trim {
                topic,
                oldest,
                done,
            };
            if !self.ask(trim).await? {
                return Ok(());
            }
        }
        let topic = topic.clone();
        self.on_disk(move |store| store.reclaim(&topic)).await
    }

    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        let after = after.cloned();
        self.on_disk(move |store| store.topics(space, after.as_ref(), limit))
            .await
    }

    fn exporter(&self) -> Option<Arc<dyn Exporter>> {
        Some(Arc::new(Exports::new(self.commands.clone())))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    async fn close(&self) {
        self.begin_close();
        let mut health = self.health();
        // A committer that panicked never closes.
        let _ = health
            .wait_for(|health| *health == Health::Closed || self.shared.has_panicked())
            .await;
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.begin_close();
        for thread in lock(&self.threads).drain(..) {
            // It told of its panic when that happened.
            let _ = thread.join();
        }
    }
}

/// One for each record; empty when none has a key.
fn fingerprints(batch: &[NewRecord]) -> Vec<Option<Fingerprint>> {
    if batch.iter().all(|record| record.key.is_none()) {
        return Vec::new();
    }
    batch.iter().map(Fingerprint::of).collect()
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
