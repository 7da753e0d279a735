//! The engine on this machine's disk: segments of its own.
//!
//! ```text
//!  enqueue ─▶ queue (bounded in bytes) ─▶ committer: one batch, one write, one flush ─▶ journal
//!                                            │ then the index, then followers, then acks      │ sealed
//!  read, seek, newest ─▶ blocking pool ─▶ index ─▶ journals and segments ◀────────────────────┘
//!  upkeep: seals journals, drops what is too old, gives the disk back what is dropped
//! ```
//!
//! The files are the truth, and the index in memory is made of them at the start. The committer is the only writer of journals;
//! what it wrote becomes readable after its flush, so a reader sees durable records only, and no reader or follower ever waits for
//! a flush. One process at a time holds the data directory.
//!
//! Read `files` and `journal` for what is on the disk, then `index` and `committer`.

mod committer;
pub mod disk;
mod entry;
mod export;
mod faults;
mod files;
mod identity;
mod import;
mod index;
mod journal;
mod keys;
mod plan;
mod read;
mod recover;
mod repair;
mod seal;
mod segment;
mod shared;
mod trim;
mod upkeep;
mod window;

pub use export::open as open_export;
pub use faults::Faults;
pub use import::{Import, Restoring};
pub use repair::{FileReport, Inspection, Loss, Repair, TopicReport, inspect, repair};

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use self::{
    committer::{Append, Command, Committer},
    disk::{DirLock, Disk, System},
    files::{DIR, OpenFiles},
    recover::Recovered,
    shared::{Shared, Start},
    trim::Until,
    upkeep::{Task, Upkeep},
};
use super::{
    Ack, Bounds, Engine, Error, Follow, Follower, Health, Limit, LogId, NewRecord, OpenError, Page,
    Record, Sequence, Space, Timestamp, Topic,
    clock::{Clock, SystemTime, TimeSource},
    dedupe::Fingerprint,
    export::Exporter,
    meters::Meters,
    numbering::Numbering,
};
use crate::{config, telemetry::Metrics};

/// The engine on this machine's disk. Dropping it without [`Engine::close`] finishes what is queued and blocks meanwhile.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// Permits of the queue: one a byte.
    queue_bytes: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What an engine stands on, for tests that put something else there.
#[derive(Clone)]
pub struct Ground {
    /// Where its files are.
    pub disk: Arc<dyn Disk>,
    /// What tells it the time.
    pub time: Arc<dyn TimeSource>,
}

impl Default for Ground {
    fn default() -> Self {
        Self {
            disk: Arc::new(System),
            time: Arc::new(SystemTime),
        }
    }
}

impl Embedded {
    /// Opens the log in `config.dir`, creating it if there is none. Blocks while journals are read.
    ///
    /// # Errors
    /// See [`OpenError`]; what is on disk stays as it was.
    pub fn open(config: &config::Log, metrics: Metrics) -> Result<Self, OpenError> {
        Self::open_on(config, metrics, Ground::default())
    }

    /// The same with scripted [`Faults`] of the disk, for tests.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with(
        config: &config::Log,
        metrics: Metrics,
        faults: Faults,
    ) -> Result<Self, OpenError> {
        let disk = Arc::new(faults);
        let ground = Ground {
            disk,
            ..Ground::default()
        };
        Self::open_on(config, metrics, ground)
    }

    /// The same on another disk and by another clock.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_on(
        config: &config::Log,
        metrics: Metrics,
        ground: Ground,
    ) -> Result<Self, OpenError> {
        let lock = DirLock::acquire(&config.dir)?;
        let opened = Opened::open(config, metrics, ground, lock)?;
        let failed = |error: std::io::Error| OpenError::Storage {
            path: config.dir.clone(),
            cause: error.to_string(),
        };
        let Opened {
            shared,
            tasks,
            journal,
            slot,
            next_tag,
            unsealed,
        } = opened;
        let (sender, commands) = mpsc::channel();
        let start = committer::Start {
            shared: shared.clone(),
            commands,
            journal,
            slot,
            next_tag,
        };
        let committer = Committer::new(start, config);
        let upkeep = Upkeep::new(shared.clone(), sender.clone(), tasks, config);
        for slot in unsealed {
            shared.seal_later(slot);
        }
        let commits = shared.work();
        let keeps = shared.work();
        let threads = vec![
            spawn("weir-log-commit", || committer.run(commits)).map_err(failed)?,
            spawn("weir-log-upkeep", || upkeep.run(keeps)).map_err(failed)?,
        ];
        Ok(Self {
            shared,
            commands: sender,
            queue_bytes: crate::log::queue_bytes(config),
            threads: Mutex::new(threads),
        })
    }

    /// Runs what may wait for the disk where it may.
    async fn on_disk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.check_reads()?;
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || read(&shared))
            .await
            .unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }

    fn begin_close(&self) {
        self.shared.begin_close();
        // Gone when it closed before.
        let _ = self.commands.send(Command::Close);
    }
}

/// A log that was opened and that no thread works on yet.
struct Opened {
    shared: Arc<Shared>,
    tasks: mpsc::Receiver<Task>,
    journal: journal::Journal,
    slot: index::Slot,
    next_tag: u32,
    unsealed: Vec<index::Slot>,
}

impl Opened {
    fn open(
        config: &config::Log,
        metrics: Metrics,
        ground: Ground,
        lock: DirLock,
    ) -> Result<Self, OpenError> {
        check_restored(&config.dir)?;
        let Ground { disk, time } = ground;
        let open_files = OpenFiles::new(disk.clone());
        let recovered = recover::open(&disk, &open_files, config, time.wall())?;
        let Recovered {
            index,
            journal,
            slot,
            next_tag,
            unsealed,
            next_number,
            next_slot,
            newest,
        } = recovered;
        let (sender, tasks) = mpsc::channel();
        let clock = Clock::open(time, newest, metrics.log_clock_suspect.clone());
        let shared = Shared::new(Start {
            disk,
            dir: config.dir.join(DIR),
            lock,
            numbering: Numbering::new(index.tail, clock),
            index,
            open_files,
            meters: Meters::new(metrics),
            queue_bytes: crate::log::queue_bytes(config),
            dedupe_window: config.dedupe_window,
            max_topics: config.max_topics,
            next_number,
            next_slot,
            tasks: sender,
        });
        Ok(Self {
            shared: Arc::new(shared),
            tasks,
            journal,
            slot,
            next_tag,
            unsealed,
        })
    }
}

/// Refuses a directory in which a restore did not come to its end.
fn check_restored(dir: &Path) -> Result<(), OpenError> {
    if dir.join(import::RESTORING).exists() {
        return Err(OpenError::Unfinished { path: dir.into() });
    }
    Ok(())
}

#[async_trait]
impl Engine for Embedded {
    fn id(&self) -> LogId {
        self.shared.id
    }

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
        self.on_disk(move |shared| read::page(shared, &topic, from, limit))
            .await
    }

    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        let topic = topic.clone();
        self.on_disk(move |shared| read::newest(shared, &topic, before, limit))
            .await
    }

    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        let topic = topic.clone();
        self.on_disk(move |shared| read::seek(shared, &topic, time))
            .await
    }

    async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        self.shared.check_reads()?;
        Ok(lock(&self.shared.index).bounds(topic))
    }

    fn tail(&self) -> Sequence {
        self.shared.tail()
    }

    async fn follow(&self, topic: &Topic, follower: Weak<dyn Follower>) -> Result<Follow, Error> {
        let shared = &self.shared;
        shared.followers.follow(topic, follower, || {
            shared.check_reads()?;
            Ok(shared.tail())
        })
    }

    fn shown(&self) -> Sequence {
        self.shared.shown()
    }

    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        let topic = topic.clone();
        self.on_disk(move |shared| {
            if let Health::Failed(cause) = &*shared.health.borrow() {
                return Err(Error::Failed(cause.clone()));
            }
            trim::trim(shared, &topic, Until::Before(before))
        })
        .await?;
        // Also when nothing was dropped: what another call drops at this moment is durable then too.
        let (done, answer) = oneshot::channel();
        let is_due = false;
        self.commands
            .send(Command::Note { is_due, done })
            .map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        self.shared.check_reads()?;
        Ok(lock(&self.shared.index).topics(space, after, limit))
    }

    fn exporter(&self) -> Option<Arc<dyn Exporter>> {
        Some(Arc::new(export::Running(self.shared.clone())))
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
