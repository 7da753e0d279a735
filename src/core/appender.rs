//! Appending: one record and its answer, or a stream of them in batches.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, task::Poll};

use tracing::{Instrument as _, Span};

use super::Error;
use crate::{
    log::{Ack, Engine, NewRecord, Outcome, Sequence, Timestamp},
    telemetry::Traces,
};

/// Batches one [`Pipeline`] may have under way; beyond it the publisher waits.
const BATCHES_IN_FLIGHT: usize = 8;

/// What an acknowledged append became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The record's position: its own, or that of the record its key repeats.
    pub sequence: Sequence,
    /// When that record was appended.
    pub time: Timestamp,
    /// Whether the key repeats an earlier record, so that nothing new was stored.
    pub is_duplicate: bool,
}

/// Appends to the log. Cheap to clone.
#[derive(Clone)]
pub struct Appender {
    engine: Arc<dyn Engine>,
    traces: Traces,
}

impl Appender {
    /// An appender to `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, traces: Traces) -> Self {
        Self { engine, traces }
    }

    /// Appends one record; returns when it is durable. Dropping the future does not take the record back.
    ///
    /// # Errors
    /// [`Error::KeyConflict`], or what the log reports.
    pub async fn append(&self, record: NewRecord) -> Result<Appended, Error> {
        let span = self.traces.append(&record.topic);
        let outcome = self.engine.append(record).instrument(span).await?;
        appended(&outcome)
    }

    /// A pipeline of batches, for one stream of records.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        Pipeline {
            engine: Arc::clone(&self.engine),
            traces: self.traces.clone(),
            acks: VecDeque::new(),
            stored: 0,
        }
    }
}

fn appended(outcome: &Outcome) -> Result<Appended, Error> {
    match *outcome {
        Outcome::Stored { sequence, time } => Ok(Appended {
            sequence,
            time,
            is_duplicate: false,
        }),
        Outcome::Duplicate { sequence, time } => Ok(Appended {
            sequence,
            time,
            is_duplicate: true,
        }),
        Outcome::Conflict { sequence } => Err(Error::KeyConflict { sequence }),
    }
}

/// Appends a stream of records, several batches at a time, in order. It holds at most `BATCHES_IN_FLIGHT` batches beside
/// the engine's own bounded queue.
pub struct Pipeline {
    engine: Arc<dyn Engine>,
    traces: Traces,
    /// Batches under way, each with the span that ends with it.
    acks: VecDeque<(Ack, Span)>,
    stored: usize,
}

impl Pipeline {
    /// Enqueues a batch; waits for earlier ones when too many are under way.
    ///
    /// # Errors
    /// What an earlier batch met, or what the log reports now.
    pub async fn push(&mut self, batch: Vec<NewRecord>) -> Result<(), Error> {
        let Some(first) = batch.first() else {
            return Ok(());
        };
        let span = self.traces.append_under(&first.topic, first.trace);
        while self.acks.len() >= BATCHES_IN_FLIGHT {
            self.settle_one().await?;
        }
        let ack = self.engine.enqueue(batch).await?;
        self.acks.push_back((ack, span));
        Ok(())
    }

    /// Waits until everything pushed is durable; returns how many records were acknowledged since the pipeline began.
    ///
    /// # Errors
    /// The first error that any batch met.
    pub async fn finish(&mut self) -> Result<usize, Error> {
        while !self.acks.is_empty() {
            self.settle_one().await?;
        }
        Ok(self.stored)
    }

    /// The outcomes of the oldest batch under way; pends for ever when there is none, so it can stand in a `select!`.
    /// Cancel-safe.
    ///
    /// # Errors
    /// What the batch met.
    pub async fn next(&mut self) -> Result<Vec<Result<Appended, Error>>, Error> {
        let outcomes = std::future::poll_fn(|cx| match self.acks.front_mut() {
            Some((ack, _)) => Pin::new(ack).poll(cx),
            None => Poll::Pending,
        })
        .await;
        self.acks.pop_front();
        let outcomes = outcomes?;
        self.stored += outcomes.len();
        Ok(outcomes.iter().map(appended).collect())
    }

    /// Whether another batch can be pushed without waiting for an earlier one.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.acks.len() < BATCHES_IN_FLIGHT
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.acks.is_empty()
    }

    async fn settle_one(&mut self) -> Result<(), Error> {
        for outcome in self.next().await? {
            outcome?;
        }
        Ok(())
    }
}
