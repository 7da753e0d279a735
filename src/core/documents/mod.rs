//! Shared documents: Yjs documents, each a topic of updates.
//!
//! The topic is the document. What a node holds in memory is a projection of it: the last snapshot and the updates beside
//! it, applied in log order. An update is tried on that copy, made durable in the log, and so passed on to everyone who follows
//! the topic; then it is acknowledged. Whenever the copy may differ from the log (an update failed half-way, an append was
//! abandoned), it is thrown away and read anew.
//!
//! ```text
//!   update ─▶ scan ─▶ try on the copy ─▶ append ─▶ followers ─▶ ack
//!                          ▲                │
//!                          └── the topic ◀──┘   snapshot every `documents.compact_after` updates, then trim
//! ```
//!
//! A snapshot is a record like any other: it holds everything before a position that it does not need to name, because
//! applying an update twice is applying it once. Replaying is applying all that is retained, so neither a crash between
//! snapshot and trim nor a record in between is ever a question.
//!
//! Every replica compacts, and any number may at once: each drops only what its own snapshot covers, so what is retained is
//! always the whole. Whoever reads meanwhile may find that what it wants to read was just dropped; it begins again
//! (`TRIES` times), and finds it in the snapshot. A snapshot of another replica begins the count of updates anew, so that
//! they do not all compact what one of them has.
//!
//! Bounds: `documents.max_open` documents in memory, `documents.max_size` bytes each; as many threads at work as cores; one
//! update of a document under way at a time, with what arrived together in one batch.

pub mod lib0;
mod live;
mod replica;
mod scan;
mod workshop;

pub use scan::is_awareness;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use self::{live::Live, workshop::Workshop};
use super::{
    Error, Name, Topics,
    hub::{Records, Subscription},
};
use crate::{
    config,
    log::{EventTime, NewRecord, Record, Sequence, Topic},
    telemetry::trace,
};

/// How often a reader begins again while others compact a document.
const TRIES: usize = 10;

/// What kind of record a document has. The numbers are stored: never change one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// An update of an editor.
    Update = 0,
    /// The whole state, as one update.
    Snapshot = 1,
}

impl Kind {
    /// The kind of a stored record.
    #[must_use]
    pub const fn of(record: &Record) -> Self {
        match record.kind {
            1 => Self::Snapshot,
            _ => Self::Update,
        }
    }
}

/// An editor's update.
#[derive(Debug, Clone)]
pub struct Change {
    /// Who edits.
    pub user: Name,
    /// The editor's own id for it.
    pub id: Box<str>,
    /// When the editor says it was made.
    pub event_time: Option<EventTime>,
    /// Its idempotency key.
    pub key: Option<Name>,
    /// The Yjs update (v1).
    pub update: Bytes,
}

impl Change {
    /// The record it becomes, under the current trace.
    fn into_record(self, topic: &Topic) -> NewRecord {
        NewRecord {
            topic: topic.clone(),
            publisher: self.user.into(),
            id: self.id,
            kind: Kind::Update as u16,
            event_time: self.event_time,
            key: self.key.map(Into::into),
            trace: trace::current(),
            payload: self.update,
        }
    }
}

/// An update that is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// A position whose prefix of the document has the update: its own, or, when it brought nothing, the last one of the
    /// document; zero when there is none.
    pub sequence: Sequence,
    /// Whether it is stored as a record of its own.
    pub is_stored: bool,
}

/// A document as it is.
#[derive(Debug, Clone)]
pub struct State {
    /// Everything, as one Yjs update (v1).
    pub update: Bytes,
    /// The position of the document's last record; zero when nobody wrote to it.
    pub sequence: Sequence,
}

/// A document from here on.
pub struct Joined {
    /// What the one who joins lacks, as one update.
    pub missing: Bytes,
    /// What the server has.
    pub state_vector: Bytes,
    /// The records that come after that.
    pub records: Subscription<Records>,
}

/// All documents. Cheap to clone.
#[derive(Clone)]
pub struct Documents(Arc<Inner>);

struct Inner {
    topics: Topics,
    workshop: Workshop,
    max_open: usize,
    max_size: usize,
    compact_after: usize,
    open: Mutex<Registry>,
}

/// Documents in memory, and when each was last asked for.
#[derive(Default)]
struct Registry {
    documents: HashMap<Topic, (Arc<Open>, u64)>,
    clock: u64,
}

/// A document in memory; the copy is absent while it has to be read from the log.
struct Open {
    topic: Topic,
    live: tokio::sync::Mutex<Option<Live>>,
}

impl Documents {
    /// The documents among `topics`. None becomes larger than `max_message` bytes, or it could not be delivered.
    #[must_use]
    pub fn new(topics: Topics, config: &config::Documents, max_message: usize) -> Self {
        let max_size = usize::try_from(config.max_size.as_u64()).unwrap_or(usize::MAX);
        let max_size = max_size.min(max_message);
        Self(Arc::new(Inner {
            topics,
            workshop: Workshop::new(max_size),
            max_open: config.max_open,
            max_size,
            compact_after: config.compact_after,
            open: Mutex::default(),
        }))
    }

    /// Opens a document; nothing is read before it is used. It stays open while the returned handle lives.
    ///
    /// # Errors
    /// [`Error::Limit`]: `documents.max_open` documents are in use.
    pub fn open(&self, topic: &Topic) -> Result<Document, Error> {
        let mut registry = self.0.registry();
        let open = registry.get(topic, self.0.max_open)?;
        Ok(Document {
            documents: Arc::clone(&self.0),
            open,
        })
    }
}

impl Inner {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn get(&mut self, topic: &Topic, limit: usize) -> Result<Arc<Open>, Error> {
        self.clock += 1;
        if let Some((open, used)) = self.documents.get_mut(topic) {
            *used = self.clock;
            return Ok(Arc::clone(open));
        }
        if self.documents.len() >= limit {
            self.close_one(limit)?;
        }
        let open = Arc::new(Open {
            topic: topic.clone(),
            live: tokio::sync::Mutex::default(),
        });
        let entry = (Arc::clone(&open), self.clock);
        self.documents.insert(topic.clone(), entry);
        Ok(open)
    }

    /// Closes the document that was not asked for the longest, of those that nobody uses.
    fn close_one(&mut self, limit: usize) -> Result<(), Error> {
        // Handles are made only here, under the registry's lock, so a document that nobody has now is nobody's.
        let idle = self.documents.iter();
        let idle = idle.filter(|(_, (open, _))| Arc::strong_count(open) == 1);
        let oldest = idle.min_by_key(|(_, (_, used))| *used);
        let topic = oldest.map(|(topic, _)| topic.clone());
        let topic = topic.ok_or(Error::Limit {
            what: "documents in use",
            limit,
        })?;
        self.documents.remove(&topic);
        Ok(())
    }
}

/// An open document. Cheap to clone; it stays open while a handle lives.
#[derive(Clone)]
pub struct Document {
    documents: Arc<Inner>,
    open: Arc<Open>,
}

impl Document {
    /// The document's topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.open.topic
    }

    /// Stores updates that arrived together, in order; returns when they are durable and every follower can have them. Of
    /// an update that brings nothing new nothing is stored, unless it has an idempotency key. Updates up to the first that
    /// is refused are stored; the error is what that one met. Dropping the future takes nothing back that was begun.
    ///
    /// # Errors
    /// [`Error::Invalid`] of field `update`: it is malformed or makes no sense in this document. [`Error::Limit`]: the
    /// document would be too large. [`Error::KeyConflict`], or what the log reports.
    pub async fn apply(&self, changes: Vec<Change>) -> (Vec<Saved>, Option<Error>) {
        let applied = self.with(|live, documents, topic| {
            Box::pin(async move { live.apply(documents, topic, changes).await })
        });
        applied
            .await
            .unwrap_or_else(|error| (Vec::new(), Some(error)))
    }

    /// What someone with this state vector lacks (empty: everything), what the server has, and all that comes after.
    ///
    /// # Errors
    /// [`Error::Invalid`] of field `state_vector`, or what the log reports.
    pub async fn join(&self, state_vector: Bytes) -> Result<Joined, Error> {
        for _ in 0..TRIES {
            let state_vector = state_vector.clone();
            let joined = self.with(|live, documents, topic| {
                Box::pin(async move { live.join(documents, topic, state_vector).await })
            });
            let joined = joined.await?;
            if !is_overtaken(&joined) {
                return joined;
            }
        }
        Err(overtaken(self.topic()))
    }

    /// What someone with this state vector lacks (empty: everything), as one update.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub async fn missing(&self, state_vector: Bytes) -> Result<Bytes, Error> {
        let told = self.with(|live, documents, _| {
            Box::pin(async move { live.missing(documents, state_vector).await })
        });
        Ok(told.await??.0)
    }

    /// The whole document.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn state(&self) -> Result<State, Error> {
        let told = self.with(|live, documents, _| {
            Box::pin(async move {
                let (update, _) = live.missing(documents, Bytes::new()).await?;
                let sequence = live.last();
                Ok(State { update, sequence })
            })
        });
        told.await?
    }

    /// Uses the copy, alone and caught up with the log; it is read from the log when there is none.
    ///
    /// It happens in a task of its own: a caller that is not polled, because its client does not read, must not hold up the
    /// document, and one that is cancelled leaves the copy whole. A caller that goes while it still waits for its turn takes
    /// its task with it, so there are no more tasks than callers, and one for each document.
    async fn with<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut Live, &'a Inner, &'a Topic) -> BoxFuture<'a, T> + Send + 'static,
    {
        let Self { documents, open } = self.clone();
        let (mut answer, answered) = oneshot::channel();
        let task = async move {
            let mut slot = tokio::select! {
                slot = open.live.lock() => slot,
                () = answer.closed() => return,
            };
            // While it is in use, the document has no copy: should the task end early, nothing doubtful stays behind.
            let worked = match caught_up(slot.take(), &documents, &open.topic).await {
                Ok(mut live) => {
                    let worked = work(&mut live, &documents, &open.topic).await;
                    *slot = live.sound();
                    Ok(worked)
                }
                Err(error) => Err(error),
            };
            drop(slot);
            // The handle goes first: who has the answer may expect that nobody uses the document any more.
            drop(open);
            // Nobody may wait any more.
            drop(answer.send(worked));
        };
        tokio::spawn(task.in_current_span());
        let ended = |_| Error::Log(crate::log::Error::Closed);
        answered.await.map_err(ended)?
    }
}

async fn caught_up(live: Option<Live>, documents: &Inner, topic: &Topic) -> Result<Live, Error> {
    if let Some(mut live) = live
        && live.catch_up(documents, Sequence::default()).await.is_ok()
    {
        return Ok(live);
    }
    for _ in 0..TRIES {
        let loaded = Live::load(documents, topic).await;
        if !is_overtaken(&loaded) {
            return loaded;
        }
    }
    Err(overtaken(topic))
}

/// Whether a compaction dropped what was to be read.
const fn is_overtaken<T>(read: &Result<T, Error>) -> bool {
    matches!(read, Err(Error::Log(crate::log::Error::Trimmed { .. })))
}

/// It may work in a moment.
fn overtaken(topic: &Topic) -> Error {
    let why = format!("others compact {topic} all the time");
    Error::Log(crate::log::Error::Unavailable(why))
}

#[cfg(test)]
mod racing;
#[cfg(test)]
mod tests;
