//! Bounds on what the store has open at one moment: each file and each connection to S3 is a descriptor.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;

/// Descriptors of a short operation: a file and its directory, or a connection.
const OF_OPERATION: usize = 2;
/// Short operations at the same time, at least and at most. A listing may wait for a deletion, so one alone would not do.
const OPERATIONS: (usize, usize) = (2, 128);

/// What may be open.
pub(super) struct Slots {
    contents: Arc<Semaphore>,
    operations: Arc<Semaphore>,
}

/// The right to have something open, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Slot {
    /// Of a store that opens nothing.
    pub(super) const fn free() -> Self {
        Self { _permit: None }
    }
}

impl Slots {
    /// Slots that take `descriptors` in all: a quarter for short operations, the rest for contents.
    pub(super) fn new(descriptors: usize) -> Self {
        let (least, most) = OPERATIONS;
        let operations = (descriptors / 4 / OF_OPERATION).clamp(least, most);
        let contents = descriptors.saturating_sub(operations * OF_OPERATION);
        let semaphore = |slots: usize| Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS)));
        Self {
            contents: semaphore(contents.max(1)),
            operations: semaphore(operations),
        }
    }

    /// For a content that is open as long as its client takes. There is no waiting: who holds the others may hold them long.
    pub(super) fn content(&self) -> Result<Slot, Error> {
        slot(Arc::clone(&self.contents).try_acquire_owned().ok()).ok_or(Error::Busy)
    }

    /// For an operation that ends by itself; waits for its turn.
    pub(super) async fn operation(&self) -> Result<Slot, Error> {
        // The semaphore is never closed.
        slot(Arc::clone(&self.operations).acquire_owned().await.ok()).ok_or(Error::Busy)
    }
}

fn slot(permit: Option<OwnedSemaphorePermit>) -> Option<Slot> {
    permit.map(|permit| Slot {
        _permit: Some(permit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_take_no_more_than_their_descriptors() {
        for (descriptors, expected) in [
            (5, (1, 2)),
            (18, (14, 2)),
            (224, (168, 28)),
            (1024, (768, 128)),
        ] {
            let slots = Slots::new(descriptors);
            let found = (
                slots.contents.available_permits(),
                slots.operations.available_permits(),
            );
            assert_eq!(found, expected, "{descriptors}");
            assert!(found.0 + OF_OPERATION * found.1 <= descriptors);
        }
        Slots::new(usize::MAX);
    }

    #[tokio::test]
    async fn contents_are_refused_and_operations_wait_when_all_slots_are_taken() {
        let slots = Slots::new(1);
        let held = slots.content().unwrap();
        assert_eq!(slots.content().unwrap_err(), Error::Busy);
        drop(held);
        slots.content().unwrap();

        let first = slots.operation().await.unwrap();
        let _second = slots.operation().await.unwrap();
        let third = slots.operation();
        tokio::pin!(third);
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(first);
        third.await.unwrap();
    }
}
