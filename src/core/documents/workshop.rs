//! Threads for work on documents: it may take long and go deep.

use std::{sync::Arc, thread};

use tokio::sync::{Semaphore, oneshot};

use crate::core::Error;

/// Bytes of stack for each byte a document may have: types may be nested, one in a few bytes, and yrs goes down by
/// recursion.
const STACK_PER_BYTE: usize = 128;
/// The smallest and the largest stack. Only what is touched takes memory.
const STACK_BYTES: std::ops::RangeInclusive<usize> = 8 << 20..=4 << 30;

/// Runs work on threads of their own, as many at once as the machine has cores. Cheap to clone.
#[derive(Clone)]
pub(super) struct Workshop {
    places: Arc<Semaphore>,
    size: usize,
    stack: usize,
}

impl Workshop {
    /// A workshop for documents of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let size = thread::available_parallelism().map_or(1, usize::from);
        Self {
            places: Arc::new(Semaphore::new(size)),
            size,
            stack: limit
                .saturating_mul(STACK_PER_BYTE)
                .clamp(*STACK_BYTES.start(), *STACK_BYTES.end()),
        }
    }

    /// Runs `work`; waits for a place first. Work that was begun is ended, and its result dropped when nobody waits for it.
    ///
    /// # Errors
    /// No thread can be had, or `work` panicked.
    pub(super) async fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let exhausted = || Error::Limit {
            what: "threads at work on documents",
            limit: self.size,
        };
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| exhausted())?;
        let (answer, answered) = oneshot::channel();
        let spawned = thread::Builder::new()
            .name("weir-document".into())
            .stack_size(self.stack)
            .spawn(move || {
                // Nobody waits: the result is dropped here, where there is stack for it.
                drop(answer.send(work()));
                drop(place);
            });
        spawned.map_err(|_| exhausted())?;
        answered.await.map_err(|_| exhausted())
    }
}
