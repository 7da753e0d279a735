//! The hub: fan-out of live records, from one feed per topic to any number of subscribers.
//!
//! Every followed topic has one bounded **tail** of recent records in memory, shared by all. A subscriber is a **cursor and
//! a waker**: it takes everything from its cursor to the end in one go; when its cursor has left the tail it reads pages
//! from the log until it is back. No subscriber has a queue, so a slow one costs nothing and loses nothing.
//!
//! For the hot subscriptions the tail also keeps its records in wire form, **encoded once per wire type** and laid end to
//! end: a subscriber's poll yields one slice of shared bytes with all that is new.
//!
//! Bounds: `hub.tail` bytes for each topic, `hub.total` for all; one tail for each topic that has a subscriber, none
//! otherwise; [`SLICE_BYTES`] for each slice a stalled reader may hold.

mod encoded;
mod merged;
mod subscription;
mod tail;

pub use encoded::Encoding;
pub use merged::{Found, Merged};
pub use subscription::{Batch, Encoded, Records, Subscription, View};

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    config,
    log::{Engine, Error, Sequence, Topic},
    telemetry::{Metrics, Traces},
};
use tail::Tail;

/// Encoded bytes after which a slice takes no further record: what one stalled reader can hold in memory.
pub const SLICE_BYTES: usize = 64 * 1024;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next record appended.
    Live,
    /// With the first retained record after this sequence; zero is the first retained one.
    After(Sequence),
}

/// The fan-out of one node. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

pub(crate) struct Inner {
    engine: Arc<dyn Engine>,
    metrics: Metrics,
    traces: Traces,
    tail_bytes: usize,
    total_bytes: usize,
    held_bytes: AtomicUsize,
    tails: Mutex<HashMap<Topic, Weak<Tail>>>,
}

impl Hub {
    /// A hub over `engine`.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        config: &config::Hub,
        metrics: Metrics,
        traces: Traces,
    ) -> Self {
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        Self(Arc::new(Inner {
            engine,
            metrics,
            traces,
            tail_bytes: bytes(config.tail),
            total_bytes: bytes(config.total),
            held_bytes: AtomicUsize::new(0),
            tails: Mutex::new(HashMap::new()),
        }))
    }

    /// Subscribes to `topic`. When this returns, every record acknowledged on this node before the call lies before a live
    /// subscription's start and every later one will be delivered. Dropping the subscription ends it.
    ///
    /// # Errors
    /// [`Error::Trimmed`] or [`Error::BeyondTail`] when the start cannot be served; else what the engine reports.
    pub async fn subscribe<V: View>(
        &self,
        topic: &Topic,
        start: Start,
        view: V,
    ) -> Result<Subscription<V>, Error> {
        let tail = self.tail(topic);
        tail.open().await?;
        let cursor = match start {
            Start::Live => tail.next(),
            Start::After(sequence) => self.position(topic, sequence).await?,
        };
        Ok(Subscription::new(tail, cursor, view))
    }

    async fn position(&self, topic: &Topic, after: Sequence) -> Result<Sequence, Error> {
        let bounds = self.0.engine.bounds(topic).await?;
        let from = after.next();
        if after == Sequence::default() {
            Ok(bounds.first)
        } else if from < bounds.first {
            Err(Error::Trimmed {
                first: bounds.first,
            })
        } else if from > bounds.tail {
            Err(Error::BeyondTail { tail: bounds.tail })
        } else {
            Ok(from)
        }
    }

    /// The topic's tail, made if there is none.
    fn tail(&self, topic: &Topic) -> Arc<Tail> {
        let mut tails = self.0.lock();
        if let Some(tail) = tails.get(topic).and_then(Weak::upgrade) {
            return tail;
        }
        let tail = Arc::new(Tail::new(topic.clone(), Arc::clone(&self.0)));
        tails.insert(topic.clone(), Arc::downgrade(&tail));
        self.0.metrics.tails.set(count(tails.len()));
        tail
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, Weak<Tail>>> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a dropped tail, unless a new one has taken its place.
    fn forget(&self, topic: &Topic) {
        let mut tails = self.lock();
        if tails
            .get(topic)
            .is_some_and(|tail| tail.strong_count() == 0)
        {
            tails.remove(topic);
        }
        self.metrics.tails.set(count(tails.len()));
    }

    /// Accounts for a change of held bytes.
    fn hold(&self, added: usize, removed: usize) {
        self.held_bytes.fetch_add(added, Ordering::Relaxed);
        let held = self.held_bytes.fetch_sub(removed, Ordering::Relaxed) - removed;
        self.metrics.tail_bytes.set(count(held));
    }

    fn is_over_total(&self) -> bool {
        self.held_bytes.load(Ordering::Relaxed) > self.total_bytes
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
