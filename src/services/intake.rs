//! Client streams of which each item is taken or refused by itself: what is bad never sinks the rest.

use std::collections::VecDeque;

use tonic::{Status, Streaming};

use super::{Core, incoming::Incoming};
use crate::{
    call::into_status,
    core::{Error, Pipeline, appender::Appended},
    log::NewRecord,
};

/// What decides about the items of one stream and notes what became of them.
pub(super) trait Admission {
    /// What the client sends.
    type In: prost::Message + Default + 'static;
    /// What has to be known of an item until it is stored.
    type Taken;

    /// The record of the item at `index`, counted from zero; `None`: it is refused, and noted.
    fn admit(&mut self, index: u64, item: Self::In) -> Option<(Self::Taken, NewRecord)>;

    /// An admitted item is durable; or its key stands for another one, and it is refused, to be noted. In the order they
    /// came.
    fn settled(&mut self, taken: Self::Taken, outcome: Result<Appended, Error>);

    /// The call ended before it was known whether an admitted item is stored.
    fn abandoned(&mut self, _: Self::Taken) {}
}

/// How many items came and were taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) received: u64,
    pub(super) accepted: u64,
}

/// Takes in a whole stream; returns once everything admitted is durable. What is durable is settled at once, also while the
/// client sends nothing. Holds at most the batches of one pipeline.
///
/// # Errors
/// The stream broke, or the log refused or failed; what was admitted before may be stored.
///
/// # Cancellation
/// What was handed to the log is stored; nothing else is.
pub(super) async fn intake<A: Admission>(
    core: &Core,
    items: Streaming<A::In>,
    side: &mut A,
) -> Result<Counts, Status> {
    let mut incoming = Incoming::new(items);
    let mut intake = Intake {
        pipeline: core.topics.pipeline(),
        pending: VecDeque::new(),
        counts: Counts::default(),
        side,
    };
    let mut is_open = true;
    while is_open || !intake.pipeline.is_idle() {
        tokio::select! {
            outcomes = intake.pipeline.next() => intake.settle(outcomes.map_err(into_status)?),
            batch = incoming.next_batch(), if is_open && intake.pipeline.has_room() => match batch? {
                Some(batch) => intake.take(batch).await.map_err(into_status)?,
                None => is_open = false,
            },
        }
    }
    Ok(intake.counts)
}

struct Intake<'a, A: Admission> {
    pipeline: Pipeline,
    /// What was appended and is not durable yet, batch by batch like the pipeline.
    pending: VecDeque<Vec<A::Taken>>,
    counts: Counts,
    side: &'a mut A,
}

impl<A: Admission> Intake<'_, A> {
    async fn take(&mut self, batch: Vec<A::In>) -> Result<(), Error> {
        let mut admitted = Vec::with_capacity(batch.len());
        for item in batch {
            admitted.extend(self.side.admit(self.counts.received, item));
            self.counts.received += 1;
        }
        let (taken, records): (Vec<_>, Vec<_>) = admitted.into_iter().unzip();
        if records.is_empty() {
            return Ok(());
        }
        // First, so that it is known of them when the call ends while they wait for the log.
        self.pending.push_back(taken);
        self.pipeline.push(records).await
    }

    /// Settles the oldest batch.
    fn settle(&mut self, outcomes: Vec<Result<Appended, Error>>) {
        let taken = self.pending.pop_front().unwrap_or_default();
        for (taken, outcome) in taken.into_iter().zip(outcomes) {
            self.counts.accepted += u64::from(outcome.is_ok());
            self.side.settled(taken, outcome);
        }
    }
}

impl<A: Admission> Drop for Intake<'_, A> {
    fn drop(&mut self) {
        for taken in self.pending.drain(..).flatten() {
            self.side.abandoned(taken);
        }
    }
}
