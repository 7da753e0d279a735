//! One topic's recent records, and who waits for more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
};

use slab::Slab;
use tokio::sync::{Notify, OnceCell};

use super::{
    Inner,
    encoded::{EncodedTail, Encoding, Slice},
};
use crate::log::{Engine, Error, Follow, Follower, Record, Sequence, Topic};

/// The tail of a topic; lives as long as somebody subscribes.
pub(crate) struct Tail {
    topic: Topic,
    hub: Arc<Inner>,
    state: Mutex<State>,
    started: Notify,
    feed: OnceCell<Follow>,
}

/// What the tail holds: every record of the topic in `start..next`.
#[derive(Default)]
struct State {
    is_started: bool,
    start: Sequence,
    next: Sequence,
    records: VecDeque<Arc<Record>>,
    encoded: Vec<EncodedTail>,
    bytes: usize,
    /// One place for each subscriber; filled while it waits.
    waiters: Slab<Waiter>,
    /// Sampled records nobody took yet, for the trace of their first delivery.
    traced: VecDeque<Arc<Record>>,
}

/// A subscriber's waker, kept while it does not wait too: it is most often the same again.
#[derive(Default)]
struct Waiter {
    waker: Option<Waker>,
    is_waiting: bool,
}

/// A subscriber's place among the waiters.
#[derive(Debug)]
pub(super) struct Place(usize);

/// Whom to wake, and in which place it waits.
#[derive(Clone, Copy)]
pub(super) struct Wait<'a> {
    pub(super) place: &'a Place,
    pub(super) waker: &'a Waker,
}

/// What a tail has for a cursor.
pub(super) enum Taken<T> {
    /// Records, and where they end.
    New(T, Sequence),
    /// Nothing new: the waker is registered.
    Nothing,
    /// The cursor lies before the tail: read the log.
    Behind,
}

impl Tail {
    pub(super) fn new(topic: Topic, hub: Arc<Inner>) -> Self {
        Self {
            topic,
            hub,
            state: Mutex::default(),
            started: Notify::new(),
            feed: OnceCell::new(),
        }
    }

    pub(super) const fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(super) fn hub(&self) -> &Inner {
        &self.hub
    }

    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.hub.engine)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the feed unless it is open, and waits until it tells where it begins.
    pub(super) async fn open(self: &Arc<Self>) -> Result<(), Error> {
        let follower: Weak<dyn Follower> = Arc::downgrade(self) as Weak<dyn Follower>;
        self.feed
            .get_or_try_init(|| self.hub.engine.follow(&self.topic, follower))
            .await?;
        loop {
            let started = self.started.notified();
            if self.lock().is_started {
                return Ok(());
            }
            started.await;
        }
    }

    /// The first position not appended yet, as far as this node knows.
    pub(super) fn next(&self) -> Sequence {
        self.lock().next
    }

    /// A place to wait, for one subscriber.
    pub(super) fn join(&self) -> Place {
        Place(self.lock().waiters.insert(Waiter::default()))
    }

    pub(super) fn leave(&self, place: &Place) {
        self.lock().waiters.try_remove(place.0);
    }

    /// The records from `from` on, at most `limit`.
    pub(super) fn take_records(
        &self,
        from: Sequence,
        limit: usize,
        wait: Wait<'_>,
    ) -> Taken<Vec<Arc<Record>>> {
        self.take(from, wait, |state| {
            let skip = state.position(from);
            let records: Vec<_> = state
                .records
                .iter()
                .skip(skip)
                .take(limit)
                .cloned()
                .collect();
            let next = match records.last() {
                Some(last) if skip + records.len() < state.records.len() => last.sequence.next(),
                _ => state.next,
            };
            (records, next)
        })
    }

    /// The records from `from` on in the wire form `E`, as one slice.
    pub(super) fn take_encoded<E: Encoding>(&self, from: Sequence, wait: Wait<'_>) -> Taken<Slice> {
        self.take(from, wait, |state| {
            let before = state.bytes;
            let slice = state.encode::<E>(&self.topic, from);
            if state.bytes > before {
                self.hub.hold(state.bytes - before, 0);
            }
            let next = slice.next;
            (slice, next)
        })
    }

    fn take<T>(
        &self,
        from: Sequence,
        wait: Wait<'_>,
        take: impl FnOnce(&mut State) -> (T, Sequence),
    ) -> Taken<T> {
        let mut state = self.lock();
        if from < state.start {
            return Taken::Behind;
        }
        if from >= state.next {
            state.wait(wait);
            return Taken::Nothing;
        }
        let (taken, next) = take(&mut state);
        let traced = state.take_traced(next);
        drop(state);
        for record in traced {
            drop(self.hub.traces.deliver(&self.topic, &record));
        }
        Taken::New(taken, next)
    }
}

impl Follower for Tail {
    fn records(&self, from: Sequence, next: Sequence, records: &[Arc<Record>]) {
        let mut state = self.lock();
        let before = state.bytes;
        let was_started = state.is_started;
        let mut removed = state.append(from, next, records);
        let added = state.bytes + removed - before;
        removed += state.evict(|bytes| bytes > self.hub.tail_bytes || self.hub.is_over_total());
        state.wake();
        drop(state);
        self.hub.hold(added, removed);
        if !was_started {
            self.started.notify_waiters();
        }
    }
}

impl State {
    /// Adds records; what lies before a gap is dropped. `from` is the last call's `next`, or lies beyond it after a gap.
    /// Returns the bytes dropped.
    fn append(&mut self, from: Sequence, next: Sequence, records: &[Arc<Record>]) -> usize {
        let mut removed = 0;
        if !self.is_started || from > self.next {
            removed = std::mem::take(&mut self.bytes);
            self.records.clear();
            self.encoded.clear();
            self.traced.clear();
            self.start = from;
            self.is_started = true;
        }
        for record in records {
            self.bytes += record.size();
            if record.trace.is_some() {
                self.traced.push_back(Arc::clone(record));
            }
            self.records.push_back(Arc::clone(record));
        }
        self.next = next;
        removed
    }

    /// Drops the oldest records while `is_over` says so, but never the newest. Returns the bytes dropped.
    fn evict(&mut self, is_over: impl Fn(usize) -> bool) -> usize {
        let before = self.bytes;
        while self.records.len() > 1 && is_over(self.bytes) {
            if let Some(record) = self.records.pop_front() {
                self.bytes -= record.size();
                self.start = record.sequence.next();
            }
            for encoded in &mut self.encoded {
                self.bytes -= encoded.evict(self.start);
            }
        }
        while self
            .traced
            .front()
            .is_some_and(|traced| traced.sequence < self.start)
        {
            self.traced.pop_front();
        }
        before - self.bytes
    }

    /// How many held records lie before `from`.
    fn position(&self, from: Sequence) -> usize {
        self.records
            .partition_point(|record| record.sequence < from)
    }

    /// Encodes what is not yet encoded and slices it from `from` on.
    fn encode<E: Encoding>(&mut self, topic: &Topic, from: Sequence) -> Slice {
        let index = match self.encoded.iter().position(EncodedTail::is::<E>) {
            Some(index) => index,
            None => {
                self.encoded.push(EncodedTail::new::<E>(self.start));
                self.encoded.len() - 1
            }
        };
        let done = self.encoded[index].next();
        if done < self.next {
            let skip = self.position(done);
            let records = self.records.iter().skip(skip);
            self.bytes += self.encoded[index].extend::<E>(topic, records, self.next);
        }
        self.encoded[index].slice(from).unwrap_or_else(|| Slice {
            bytes: bytes::Bytes::new(),
            records: 0,
            next: self.next,
            newest: crate::log::Timestamp::default(),
        })
    }

    fn wait(&mut self, wait: Wait<'_>) {
        if let Some(waiter) = self.waiters.get_mut(wait.place.0) {
            waiter.is_waiting = true;
            match &mut waiter.waker {
                Some(waker) => waker.clone_from(wait.waker),
                None => waiter.waker = Some(wait.waker.clone()),
            }
        }
    }

    /// Wakes whoever waits, once. Wakers only note that somebody is ready; none of them comes back here.
    fn wake(&mut self) {
        for (_, waiter) in &mut self.waiters {
            if std::mem::take(&mut waiter.is_waiting)
                && let Some(waker) = &waiter.waker
            {
                waker.wake_by_ref();
            }
        }
    }

    fn take_traced(&mut self, next: Sequence) -> Vec<Arc<Record>> {
        let count = self.traced.partition_point(|record| record.sequence < next);
        self.traced.drain(..count).collect()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.hub.hold(0, bytes);
        self.hub.forget(&self.topic);
    }
}
