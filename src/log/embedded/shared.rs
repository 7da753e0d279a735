//! What the engine's handle and its threads share.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::{Semaphore, watch};

use super::{disk::DirLock, lock, store::Store};
use crate::{
    log::{Error, Health, Sequence, meters::Meters},
    telemetry::Metrics,
};

pub(super) struct Shared {
    slot: Mutex<Slot>,
    dir: Mutex<Option<DirLock>>,
    /// Bytes that may wait for the committer.
    pub(super) queue: Semaphore,
    pub(super) health: watch::Sender<Health>,
    pub(super) meters: Meters,
    /// See [`crate::log::Engine::tail`].
    tail: AtomicU64,
    /// See [`crate::log::Engine::shown`].
    shown: AtomicU64,
    /// Exports under way.
    holds: AtomicUsize,
    is_closing: AtomicBool,
    has_panicked: AtomicBool,
}

/// Where the database is.
enum Slot {
    Open(Arc<Store>),
    /// Given to nobody any more, but some reader may still use it.
    Retiring(Arc<Store>),
    Gone,
}

impl Shared {
    pub(super) fn new(
        metrics: Metrics,
        queue_bytes: usize,
        store: Arc<Store>,
        dir: DirLock,
        tail: Sequence,
    ) -> Self {
        let meters = Meters::new(metrics);
        meters.health(&Health::Ready);
        Self {
            slot: Mutex::new(Slot::Open(store)),
            dir: Mutex::new(Some(dir)),
            queue: Semaphore::new(queue_bytes),
            health: watch::Sender::new(Health::Ready),
            meters,
            tail: AtomicU64::new(tail.0),
            shown: AtomicU64::new(0),
            holds: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
        }
    }

    /// Notes that everything before `tail` is durable and readable.
    pub(super) fn reached(&self, tail: Sequence) {
        self.tail.store(tail.0, Ordering::Release);
    }

    pub(super) fn tail(&self) -> Sequence {
        Sequence(self.tail.load(Ordering::Acquire))
    }

    /// Notes that followers were shown everything before `next`.
    pub(super) fn showed(&self, next: Sequence) {
        self.shown.store(next.0, Ordering::Release);
    }

    pub(super) fn shown(&self) -> Sequence {
        Sequence(self.shown.load(Ordering::Acquire))
    }

    /// Notes that an export began; the committer does.
    pub(super) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::Release);
    }

    /// Notes that an export ended.
    pub(super) fn let_go(&self) {
        self.holds.fetch_sub(1, Ordering::Release);
    }

    /// Whether an export runs, so that nothing may be dropped.
    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    pub(super) fn begin_close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.queue.close();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Notes that the committer panicked: nothing is appended any more, and it will not close.
    pub(super) fn panicked(&self) {
        self.has_panicked.store(true, Ordering::Release);
        self.set_health(Health::Failed("the committer stopped unexpectedly".into()));
    }

    pub(super) fn has_panicked(&self) -> bool {
        self.has_panicked.load(Ordering::Acquire)
    }

    pub(super) fn set_health(&self, health: Health) {
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

    /// The database, for one read.
    pub(super) fn store(&self) -> Result<Arc<Store>, Error> {
        match &*lock(&self.slot) {
            Slot::Open(store) if !self.is_closing() => Ok(store.clone()),
            _ if self.is_closing() => Err(Error::Closed),
            _ => Err(reopening()),
        }
    }

    pub(super) fn set_store(&self, store: Arc<Store>) {
        *lock(&self.slot) = Slot::Open(store);
    }

    /// Gives the database to nobody any more; true once the last user is gone and it is closed.
    pub(super) fn release_store(&self) -> bool {
        let mut slot = lock(&self.slot);
        let store = match std::mem::replace(&mut *slot, Slot::Gone) {
            Slot::Open(store) | Slot::Retiring(store) => store,
            Slot::Gone => return true,
        };
        match Arc::try_unwrap(store) {
            Ok(store) => {
                // Closing takes a while.
                drop(slot);
                drop(store);
                true
            }
            Err(store) => {
                *slot = Slot::Retiring(store);
                false
            }
        }
    }

    /// Lets another process open the directory.
    pub(super) fn release_dir(&self) {
        drop(lock(&self.dir).take());
    }
}

/// The answer while the database is opened anew.
pub(super) fn reopening() -> Error {
    Error::Unavailable("the log is opened again after its disk was full".into())
}
