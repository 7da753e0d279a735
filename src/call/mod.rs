//! The one tower layer around every RPC: method, deadline, log identity, metrics, trace, log line, drain and age.
//!
//! Handlers see none of it: they get a [`Call`] in the request's extensions and may tell it their position. A streaming
//! call is registered ([`Streams`]) while it runs, so that a drain or its age can end it with a status that says where to
//! resume. Nothing of a call outlives its future and its body.

mod body;
mod deadline;
mod frames;
mod identity;
mod layer;
mod methods;
mod status;
mod streams;

pub(crate) use identity::RECOVERING;
pub use layer::{CallLayer, CallService};
pub use methods::{Kind, Method, Methods};
pub use status::{into_status, retry_after, unavailable};
pub use streams::{Ending, Registered, Streams};

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{log::Sequence, net::Link};

/// One call, as its handler sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Call(Arc<State>);

#[derive(Debug)]
struct State {
    method: Arc<Method>,
    started: Instant,
    /// The sequence to resume after, plus one; zero while there is none.
    position: AtomicU64,
    /// The handler counts what it sends.
    counts_itself: AtomicBool,
    /// The server ended it: drain, age or deadline.
    is_ended: AtomicBool,
    link: Option<Link>,
}

impl Call {
    fn new(method: Arc<Method>, link: Option<Link>) -> Self {
        Self(Arc::new(State {
            method,
            started: Instant::now(),
            position: AtomicU64::new(0),
            counts_itself: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            link,
        }))
    }

    /// The method called.
    #[must_use]
    pub fn method(&self) -> &Arc<Method> {
        &self.0.method
    }

    /// Says that a client which resumes now has to resume after `sequence`.
    pub fn resume_after(&self, sequence: Sequence) {
        let position = sequence.0.saturating_add(1);
        self.0.position.store(position, Ordering::Relaxed);
    }

    fn position(&self) -> Option<Sequence> {
        let position = self.0.position.load(Ordering::Relaxed);
        position.checked_sub(1).map(Sequence)
    }

    /// For a call whose response is dropped before its end: whether its client wanted that. Neither the server ended the
    /// call, nor did the connection break.
    #[must_use]
    pub fn is_cancelled_by_client(&self) -> bool {
        let is_broken = self.0.link.as_ref().is_some_and(Link::is_broken);
        !is_broken && !self.0.is_ended.load(Ordering::Relaxed)
    }

    fn ended_by_server(&self) {
        self.0.is_ended.store(true, Ordering::Relaxed);
    }

    /// Asks the call's connection to go, so that what its client opens next may come to another instance.
    fn leave_connection(&self) {
        if let Some(link) = &self.0.link {
            link.leave();
        }
    }

    /// Says that the response body counts its messages with [`Self::sent`], so that the layer need not look into them.
    pub fn counts_itself(&self) {
        self.0.counts_itself.store(true, Ordering::Relaxed);
    }

    /// Counts messages sent; see [`Self::counts_itself`].
    pub fn sent(&self, messages: usize) {
        self.0.method.sent.inc_by(messages as u64);
    }
}
