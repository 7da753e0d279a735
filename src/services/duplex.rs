//! Bidirectional streams: what comes in, what happens meanwhile and what goes out, in one place for every method.

use std::{collections::VecDeque, future::Future};

use futures::{FutureExt as _, stream};
use tonic::{Code, Request, Status, Streaming};

use super::{Responses, incoming::Incoming};
use crate::{call::into_status, core::Error, log::Sequence};

/// The metadata key by which a bidirectional stream resumes.
const AFTER_SEQUENCE: &str = "after-sequence";

/// The server's side of one bidirectional stream. [`duplex`] drives it: nothing new is taken in while something waits to be
/// sent, so a client that does not read is not read from, and no queue grows.
pub(super) trait Duplex: Send + 'static {
    /// What the client sends.
    type In: prost::Message + Default + 'static;
    /// What the client gets.
    type Out: Send + 'static;
    /// What happens on the server's side.
    type Event: Send;

    /// Takes messages that arrived together. On an error everything before the bad message counts, and the status ends the
    /// stream once the side is settled.
    fn take(
        &mut self,
        batch: Vec<Self::In>,
        out: &mut VecDeque<Self::Out>,
    ) -> impl Future<Output = Result<(), Status>> + Send;

    /// Waits for what happens next; for ever when nothing can. Cancel-safe: nothing is lost when it is dropped.
    fn event(&mut self) -> impl Future<Output = Result<Self::Event, Error>> + Send;

    /// Handles what happened.
    fn handle(
        &mut self,
        event: Self::Event,
        out: &mut VecDeque<Self::Out>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether more can be taken now.
    fn has_room(&self) -> bool;

    /// Whether everything taken in is stored and answered. When the client is done too, the stream ends.
    fn is_settled(&self) -> bool;

    /// The client sends nothing more: it closed its side, or cancelled the call. Not called when the connection broke or the
    /// server ended the call.
    fn closed(&mut self) {}

    /// The stream will end with an error once it is settled: give up what is followed.
    fn fail(&mut self) {}
}

/// The answer to a bidirectional call.
pub(super) fn duplex<D: Duplex>(messages: Streaming<D::In>, side: D) -> Responses<D::Out> {
    let driver = Driver {
        incoming: Incoming::new(messages),
        side,
        is_open: true,
        failed: None,
        outgoing: VecDeque::new(),
    };
    Box::pin(stream::unfold(driver, |mut driver| async move {
        let next = driver.next().await?;
        Some((next, driver))
    }))
}

struct Driver<D: Duplex> {
    incoming: Incoming<D::In>,
    side: D,
    is_open: bool,
    /// What ends the stream once everything taken in before is answered.
    failed: Option<Status>,
    outgoing: VecDeque<D::Out>,
}

/// What came first.
enum Step<I, E> {
    Incoming(Result<Option<Vec<I>>, Status>),
    Event(E),
}

impl<D: Duplex> Driver<D> {
    /// The next message to send; `None` at the end. What goes wrong with a message comes after the answers to those before.
    async fn next(&mut self) -> Option<Result<D::Out, Status>> {
        loop {
            if let Some(message) = self.outgoing.pop_front() {
                return Some(Ok(message));
            }
            if !self.is_open && self.side.is_settled() {
                return self.failed.take().map(Err);
            }
            if let Err(status) = self.step().await {
                self.is_open = false;
                self.side.fail();
                self.failed.get_or_insert(status);
            }
        }
    }

    /// Waits for whatever comes first. Both are cancel-safe and neither goes before the other, so that a busy topic does not
    /// keep the client from speaking.
    async fn step(&mut self) -> Result<(), Status> {
        let listens = self.is_open && self.side.has_room();
        let step = tokio::select! {
            event = self.side.event() => Step::Event(event.map_err(into_status)?),
            batch = self.incoming.next_batch(), if listens => Step::Incoming(batch),
        };
        match step {
            Step::Incoming(Ok(Some(batch))) => {
                self.side.take(batch, &mut self.outgoing).await?;
            }
            Step::Incoming(ended) => return self.ended(ended.map(drop)),
            Step::Event(event) => self
                .side
                .handle(event, &mut self.outgoing)
                .await
                .map_err(into_status)?,
        }
        Ok(())
    }
}

impl<D: Duplex> Driver<D> {
    /// The client's messages end, well or not.
    fn ended(&mut self, outcome: Result<(), Status>) -> Result<(), Status> {
        self.is_open = false;
        let is_broken = |status: &Status| status.code() != Code::Cancelled;
        if !outcome.as_ref().is_err_and(is_broken) {
            self.side.closed();
        }
        outcome
    }
}

impl<D: Duplex> Drop for Driver<D> {
    /// A call that its client cancels is dropped without being asked again: what the client did last tells. What is left of
    /// its messages is within the upload window.
    fn drop(&mut self) {
        while self.is_open {
            match self.incoming.next_batch().now_or_never() {
                Some(Ok(Some(_))) => {}
                // The call's end is nobody's news any more.
                Some(ended) => drop(self.ended(ended.map(drop))),
                None => return,
            }
        }
    }
}

/// The position in the request's metadata, for a stream whose messages name what it follows.
pub(super) fn resume_position<T>(request: &Request<T>) -> Result<Option<Sequence>, Status> {
    let Some(value) = request.metadata().get(AFTER_SEQUENCE) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(|number| Some(Sequence(number))).ok_or_else(|| {
        into_status(Error::invalid(
            AFTER_SEQUENCE,
            "after-sequence must be a decimal number",
        ))
    })
}
