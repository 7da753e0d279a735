//! What the engine's handle, its threads and its readers share.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::sync::{Semaphore, watch};

use super::{
    disk::{DirLock, Disk},
    files::OpenFiles,
    index::{Index, Slot},
    journal::Journal,
    lock,
    upkeep::Task,
};
use crate::log::{Error, Health, LogId, Numbering, Sequence, followers::Followers, meters::Meters};

pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    /// Where the log's files are.
    pub(super) dir: PathBuf,
    pub(super) id: LogId,
    pub(super) index: Mutex<Index>,
    pub(super) followers: Followers,
    pub(super) open_files: Arc<OpenFiles>,
    pub(super) meters: Meters,
    pub(super) numbering: Mutex<Numbering>,
    pub(super) health: watch::Sender<Health>,
    /// Bytes that may wait for the committer.
    pub(super) queue: Semaphore,
    pub(super) dedupe_window: Duration,
    pub(super) max_topics: usize,
    /// Held while records are dropped, so that one at a time decides what goes.
    pub(super) trimming: Mutex<()>,
    /// The next journal, made before it is needed.
    pub(super) spare: Mutex<Option<Journal>>,
    /// Journals that wait to be sealed.
    pub(super) unsealed: AtomicUsize,
    lock: Mutex<Option<DirLock>>,
    tasks: Mutex<Option<mpsc::Sender<Task>>>,
    is_reclaiming: AtomicBool,
    next_number: AtomicU64,
    next_slot: AtomicU64,
    /// See [`crate::log::Engine::tail`].
    tail: AtomicU64,
    /// See [`crate::log::Engine::shown`].
    shown: AtomicU64,
    /// Exports under way.
    holds: AtomicUsize,
    is_closing: AtomicBool,
    has_panicked: AtomicBool,
    /// Threads that touch the directory.
    threads: AtomicUsize,
}

/// What a [`Shared`] starts with.
pub(super) struct Start {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) lock: DirLock,
    pub(super) index: Index,
    pub(super) open_files: Arc<OpenFiles>,
    pub(super) meters: Meters,
    pub(super) numbering: Numbering,
    pub(super) queue_bytes: usize,
    pub(super) dedupe_window: Duration,
    pub(super) max_topics: usize,
    pub(super) next_number: u64,
    pub(super) next_slot: Slot,
    pub(super) tasks: mpsc::Sender<Task>,
}

impl Shared {
    pub(super) fn new(start: Start) -> Self {
        start.meters.health(&Health::Ready);
        let tail = start.index.tail;
        Self {
            disk: start.disk,
            dir: start.dir,
            id: start.index.id,
            index: Mutex::new(start.index),
            followers: Followers::default(),
            open_files: start.open_files,
            meters: start.meters,
            numbering: Mutex::new(start.numbering),
            health: watch::Sender::new(Health::Ready),
            queue: Semaphore::new(start.queue_bytes),
            dedupe_window: start.dedupe_window,
            max_topics: start.max_topics,
            trimming: Mutex::default(),
            spare: Mutex::default(),
            unsealed: AtomicUsize::new(0),
            lock: Mutex::new(Some(start.lock)),
            tasks: Mutex::new(Some(start.tasks)),
            is_reclaiming: AtomicBool::new(false),
            next_number: AtomicU64::new(start.next_number),
            next_slot: AtomicU64::new(start.next_slot),
            tail: AtomicU64::new(tail.0),
            shown: AtomicU64::new(0),
            holds: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            threads: AtomicUsize::new(0),
        }
    }

    /// Notes that a thread touches the directory until what is returned is dropped.
    pub(super) fn work(self: &Arc<Self>) -> Work {
        self.threads.fetch_add(1, Ordering::AcqRel);
        Work(self.clone())
    }

    /// The number of a new file.
    pub(super) fn take_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes an empty journal, durably.
    pub(super) fn make_journal(&self) -> io::Result<Journal> {
        Journal::create(&*self.disk, &self.dir, self.id, self.take_number())
    }

    /// The slot of a new file in the index.
    pub(super) fn take_slot(&self) -> Slot {
        self.next_slot.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn tail(&self) -> Sequence {
        Sequence(self.tail.load(Ordering::Acquire))
    }

    /// Notes that everything before `tail` is durable and readable.
    pub(super) fn set_tail(&self, tail: Sequence) {
        self.tail.store(tail.0, Ordering::Release);
    }

    /// Notes that followers were shown everything before `next`.
    pub(super) fn showed(&self, next: Sequence) {
        self.shown.store(next.0, Ordering::Release);
    }

    pub(super) fn shown(&self) -> Sequence {
        Sequence(self.shown.load(Ordering::Acquire))
    }

    /// Has a journal sealed that is written no more.
    pub(super) fn seal_later(&self, slot: Slot) {
        self.unsealed.fetch_add(1, Ordering::AcqRel);
        self.ask_upkeep(Task::Seal(slot));
    }

    /// Gives the upkeep something to do.
    pub(super) fn ask_upkeep(&self, task: Task) {
        if let Some(tasks) = &*lock(&self.tasks) {
            // It is gone when the engine closes.
            let _ = tasks.send(task);
        }
    }

    /// Lets the upkeep look for room that can be given back, once for any number of calls until it looks.
    pub(super) fn ask_reclaim(&self) {
        if !self.is_reclaiming.swap(true, Ordering::AcqRel) {
            self.ask_upkeep(Task::Reclaim);
        }
    }

    /// The upkeep looks for room now.
    pub(super) fn reclaims(&self) {
        self.is_reclaiming.store(false, Ordering::Release);
    }

    /// Notes that an export began.
    pub(super) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that an export ended.
    pub(super) fn let_go(&self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether an export runs, so that nothing may be dropped.
    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    pub(super) fn begin_close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.queue.close();
        // The upkeep ends once it has nothing more to wait for.
        drop(lock(&self.tasks).take());
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Notes that a thread panicked: nothing is appended any more, and the engine will not close by itself.
    pub(super) fn panicked(&self, thread: &str) {
        self.has_panicked.store(true, Ordering::Release);
        self.set_health(Health::Failed(format!(
            "the log's {thread} stopped unexpectedly"
        )));
    }

    pub(super) fn has_panicked(&self) -> bool {
        self.has_panicked.load(Ordering::Acquire)
    }

    pub(super) fn set_health(&self, health: Health) {
        if *self.health.borrow() == health {
            return;
        }
        match &health {
            Health::Ready => tracing::info!("the log takes appends again"),
            Health::Full => tracing::warn!("the log's disk is full: appends are refused"),
            Health::Unavailable(cause) => tracing::warn!(cause, "the log is unavailable"),
            Health::Failed(cause) => {
                tracing::error!(cause, "the log failed: appends are refused until a restart");
            }
            Health::Closed => tracing::debug!("the log is closed"),
        }
        self.meters.health(&health);
        self.health.send_replace(health);
    }

    /// Why an append cannot be taken, if so.
    pub(super) fn check_appends(&self) -> Result<(), Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        match &*self.health.borrow() {
            Health::Ready => Ok(()),
            Health::Full => Err(Error::Full),
            Health::Unavailable(cause) => Err(Error::Unavailable(cause.clone())),
            Health::Failed(cause) => Err(Error::Failed(cause.clone())),
            Health::Closed => Err(Error::Closed),
        }
    }

    /// Whether reads are answered.
    pub(super) fn check_reads(&self) -> Result<(), Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Lets another process open the directory: no thread touches it any more.
    fn release_dir(&self) {
        if let Some(spare) = lock(&self.spare).take() {
            // It holds nothing; a start removes it as well.
            let _ = self.disk.remove(&spare.path);
        }
        drop(lock(&self.lock).take());
        self.set_health(Health::Closed);
    }
}

/// The last one that is dropped lets go of the directory.
pub(super) struct Work(Arc<Shared>);

impl Drop for Work {
    fn drop(&mut self) {
        if self.0.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.release_dir();
        }
    }
}
