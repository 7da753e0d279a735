//! The numbers and times that a log gives its records.

use super::{Clock, Sequence, Timestamp};

/// Gives records their sequences and times, both in one order for the whole log.
#[derive(Debug)]
pub struct Numbering {
    next: Sequence,
    clock: Clock,
}

impl Numbering {
    /// A numbering that goes on at `next`, with the times of `clock`.
    #[must_use]
    pub const fn new(next: Sequence, clock: Clock) -> Self {
        Self { next, clock }
    }

    /// The sequence that is given out next: the log's tail once everything before it is stored.
    #[must_use]
    pub const fn next(&self) -> Sequence {
        self.next
    }

    /// The next record's sequence, and the present as its time.
    pub fn assign(&mut self) -> (Sequence, Timestamp) {
        let time = self.clock.now();
        (self.number(), time)
    }

    /// The next record's sequence alone, for a commit whose records share one time: [`Self::now`] read once.
    pub const fn number(&mut self) -> Sequence {
        let sequence = self.next;
        self.next = sequence.next();
        sequence
    }

    /// The present, to stamp records with and to tell the age of keys by. It never goes back.
    pub fn now(&mut self) -> Timestamp {
        self.clock.now()
    }

    /// See [`Clock::for_expiry`].
    pub fn for_expiry(&mut self) -> Option<Timestamp> {
        self.clock.for_expiry()
    }

    /// Goes on at `next`: back to where a commit began when it is certain that nothing of it was stored, so that its numbers
    /// were not used, or on behind what was stored after all.
    pub const fn resume_at(&mut self, next: Sequence) {
        self.next = next;
    }
}
