//! The other instances: what all of them are told, and what one of them is asked.
//!
//! Best effort and never stored. An instance that runs alone has no peers; those on one NATS know each other by its core
//! messages (`nats`). Owns the way between instances and its encoding (`message`); what a signal means is the core's, and
//! what the answers are is said by whoever implements [`Local`].

mod message;
mod nats;

pub use message::{Counters, Description, Requests, Run, Signal, Ticks};
pub use nats::Task;

use std::sync::Arc;

use self::{message::What, nats::Link};
use crate::{log::OpenError, nats::Nats, telemetry::Metrics};

/// What this instance does for the others.
pub trait Local: Send + Sync + 'static {
    /// Takes a signal of the instance that runs as `from`.
    fn hear(&self, from: Run, signal: Signal);
    /// What this instance is.
    fn describe(&self) -> Description;
    /// What it counted.
    fn counters(&self) -> Counters;
}

/// Why another instance gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is none of this name.
    #[error("there is no such instance")]
    Unknown,
    /// It did not answer in time, or nobody can be asked.
    #[error("{0}")]
    Unavailable(String),
}

/// The other instances. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Option<Arc<Link>>);

impl Peers {
    /// There are none and never will be.
    #[must_use]
    pub const fn alone() -> Self {
        Self(None)
    }

    /// The instances on the same NATS under the same prefix, and what has to be run so that they know this one, named `id`.
    /// One that goes by the same name already is warned of.
    ///
    /// # Errors
    /// NATS does not take the subscriptions.
    pub async fn connect(
        nats: &Nats,
        id: &str,
        metrics: Metrics,
    ) -> Result<(Self, Task), OpenError> {
        let (link, task) = nats::connect(nats, id, metrics).await?;
        Ok((Self(Some(link)), task))
    }

    /// Tells all of them, or one of them. What cannot be sent at once is dropped and counted.
    pub fn tell(&self, to: Option<Run>, signal: impl FnOnce() -> Signal) {
        if let Some(link) = &self.0 {
            link.tell(to, signal());
        }
    }

    /// What the others are; asked of all of them, for a short while. Whoever does not answer by then is not in it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody can be asked.
    pub async fn others(&self) -> Result<Vec<Description>, Error> {
        match &self.0 {
            Some(link) => link.others().await,
            None => Ok(Vec::new()),
        }
    }

    /// What the instance called `id` counted.
    ///
    /// # Errors
    /// There is none, or it does not answer within `jetstream.timeout`.
    pub async fn counters(&self, id: &str) -> Result<Counters, Error> {
        let Some(link) = &self.0 else {
            return Err(Error::Unknown);
        };
        let answer = link.ask(id, What::Counters).await?;
        let empty = || Error::Unavailable(format!("instance {id} does not tell what it measures"));
        answer.counters.ok_or_else(empty)
    }

    /// Sends what was told, and is not there for the others any more.
    pub async fn close(&self) {
        if let Some(link) = &self.0 {
            link.close().await;
        }
    }
}
