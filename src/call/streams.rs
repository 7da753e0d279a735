//! The streams that run now, and their ends by age and by drain.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use rand::seq::SliceRandom as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Why the server ends a stream that could go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// The instance goes away.
    Drain = 1,
    /// The stream reached its maximum age.
    MaxAge = 2,
}

/// All running streams. Cheap to clone. It holds one entry for each stream, which the connection limits bound.
#[derive(Debug, Clone)]
pub struct Streams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_age: Duration,
    state: Mutex<State>,
    /// Told when a stream may come due earlier than the clock waits for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_draining: bool,
    last: u64,
    running: BTreeMap<(Instant, u64), Arc<Slot>>,
}

/// A stream's end, once it is decided.
#[derive(Debug, Default)]
struct Slot {
    ending: AtomicU8,
    waker: AtomicWaker,
}

impl Slot {
    fn end(&self, ending: Ending) {
        self.ending.store(ending as u8, Ordering::Release);
        self.waker.wake();
    }

    fn ending(&self) -> Option<Ending> {
        match self.ending.load(Ordering::Acquire) {
            1 => Some(Ending::Drain),
            2 => Some(Ending::MaxAge),
            _ => None,
        }
    }
}

impl Streams {
    /// No streams yet; each will be ended at `max_age`, jittered by a tenth.
    #[must_use]
    pub fn new(max_age: Duration) -> Self {
        Self(Arc::new(Inner {
            max_age,
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Registers a stream until the returned guard is dropped. During a drain it is ended at once.
    #[must_use]
    pub fn register(&self) -> Registered {
        let slot = Arc::new(Slot::default());
        let age = self.0.max_age.mul_f64(rand::random_range(0.9..1.1));
        let mut state = self.0.lock();
        state.last += 1;
        let key = (Instant::now() + age, state.last);
        if state.is_draining {
            slot.end(Ending::Drain);
        }
        let is_first = state
            .running
            .first_key_value()
            .is_none_or(|first| key < *first.0);
        state.running.insert(key, Arc::clone(&slot));
        drop(state);
        if is_first {
            self.0.changed.notify_one();
        }
        Registered {
            streams: Arc::clone(&self.0),
            slot,
            key,
            waker: None,
        }
    }

    /// How many streams run.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().running.len()
    }

    /// Ends streams that reached their age; never returns. One task for all streams.
    pub async fn age(&self) {
        loop {
            let changed = self.0.changed.notified();
            match self.0.end_due(Instant::now()) {
                Some(next) => tokio::select! {
                    () = sleep_until(next) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// Ends every stream, one by one in random order, evenly over `spread`; returns when the last was told. Streams that
    /// start meanwhile are ended at once.
    pub async fn drain(&self, spread: Duration) {
        let slots = self.0.start_drain();
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX).max(1);
        let start = Instant::now();
        for (index, slot) in (0_u32..).zip(slots) {
            let due = start + spread.mul_f64(f64::from(index) / f64::from(count));
            if due > Instant::now() {
                sleep_until(due).await;
            }
            slot.end(Ending::Drain);
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is due at `now`; returns when the next one is.
    fn end_due(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        while let Some(entry) = state.running.first_entry() {
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            entry.remove().end(Ending::MaxAge);
        }
        None
    }

    fn start_drain(&self) -> Vec<Arc<Slot>> {
        let mut state = self.lock();
        state.is_draining = true;
        let mut slots: Vec<_> = state.running.values().cloned().collect();
        drop(state);
        slots.shuffle(&mut rand::rng());
        slots
    }
}

/// A running stream's registration.
#[derive(Debug)]
pub struct Registered {
    streams: Arc<Inner>,
    slot: Arc<Slot>,
    key: (Instant, u64),
    /// The waker that waits in the slot; a stream is polled far more often than it moves.
    waker: Option<Waker>,
}

impl Registered {
    /// How the server ends the stream, if it does.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.slot.ending()
    }

    /// [`Self::ending`] for somebody who does not keep the stream registered.
    pub(super) fn watch(&self) -> impl Fn() -> Option<Ending> + Send + Sync + 'static + use<> {
        let slot = Arc::clone(&self.slot);
        move || slot.ending()
    }

    /// Ready when the server ends the stream.
    pub fn poll_ending(&mut self, cx: &Context<'_>) -> Poll<Ending> {
        if let Some(ending) = self.slot.ending() {
            return Poll::Ready(ending);
        }
        let waits = |waker: &Waker| waker.will_wake(cx.waker());
        if self.waker.as_ref().is_some_and(waits) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.slot.waker.register(cx.waker());
        match self.slot.ending() {
            Some(ending) => Poll::Ready(ending),
            None => Poll::Pending,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.streams.lock().running.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ending(registered: &mut Registered) -> Ending {
        std::future::poll_fn(|cx| registered.poll_ending(cx)).await
    }

    #[tokio::test(start_paused = true)]
    async fn streams_end_within_a_tenth_of_their_age() {
        let streams = Streams::new(Duration::from_secs(100));
        let aging = streams.clone();
        let clock = tokio::spawn(async move { aging.age().await });
        let start = Instant::now();
        for mut registered in [streams.register(), streams.register()] {
            assert_eq!(ending(&mut registered).await, Ending::MaxAge);
            let age = start.elapsed().as_secs();
            assert!((90..=110).contains(&age), "ended after {age} s");
        }
        assert_eq!(streams.count(), 0);
        clock.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_streams_evenly_and_new_ones_at_once() {
        let streams = Streams::new(Duration::from_secs(3600));
        let registered: Vec<_> = (0..100).map(|_| streams.register()).collect();
        let start = Instant::now();
        let drain = tokio::spawn({
            let streams = streams.clone();
            async move { streams.drain(Duration::from_secs(10)).await }
        });
        let ends = registered.into_iter().map(|mut registered| async move {
            assert_eq!(ending(&mut registered).await, Ending::Drain);
            start.elapsed().as_secs()
        });
        let mut buckets = [0; 11];
        for second in futures::future::join_all(ends).await {
            buckets[usize::try_from(second).unwrap()] += 1;
        }
        assert!(buckets.iter().all(|count| *count <= 20), "{buckets:?}");
        drain.await.unwrap();
        assert_eq!(ending(&mut streams.register()).await, Ending::Drain);
        assert_eq!(streams.count(), 0);
    }
}
