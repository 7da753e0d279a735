//! A queue between those who must not wait and one who comes by now and then.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A bounded queue that never makes a sender wait: what does not fit is dropped and counted. A cheap handle; all clones are
/// one.
#[derive(Debug)]
pub struct Queue<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    waiting: Mutex<VecDeque<T>>,
    bound: usize,
    dropped: AtomicU64,
}

impl<T> Queue<T> {
    /// An empty queue of at most `bound` items.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self(Arc::new(Inner {
            waiting: Mutex::default(),
            bound,
            dropped: AtomicU64::new(0),
        }))
    }

    /// Adds what `make` makes, which is not asked when there is no room.
    pub fn push(&self, make: impl FnOnce() -> T) {
        if self.lock().len() >= self.0.bound {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Made outside of the lock: others may add meanwhile, so the queue may exceed its bound by its senders.
        let item = make();
        self.lock().push_back(item);
    }

    /// Takes everything that waits.
    #[must_use]
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.lock()).into()
    }

    /// How many were dropped since the last time this was asked.
    #[must_use]
    pub fn take_dropped(&self) -> u64 {
        self.0.dropped.swap(0, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        let held = self.0.waiting.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_once() {
        let queue = Queue::new(2);
        for number in 0..5 {
            queue.push(|| number);
        }
        assert_eq!(queue.take(), [0, 1]);
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (3, 0));
        queue.push(|| 9);
        assert_eq!(queue.take(), [9]);
    }
}
