//! The log: topics, records and the contract every storage engine keeps.
//!
//! A [`Topic`] is a named, ordered run of [`Record`]s. All topics share one counter, so a sequence names one record of the
//! log. Positions are half-open everywhere:
//!
//! ```text
//!                  first of a         tail of both
//!  topic a   trimmed │ 4       7    9   │
//!  topic b   1   2   │   5  6    8      │  not written yet
//!           ─────────┼──────────────────┼──────────────────▶ sequence
//! ```
//!
//! Sequences grow strictly within the log and are never reused, so one position resumes a reader in every topic of which
//! it has seen everything before that position. A topic's records have gaps where other topics have records: a reader
//! never computes the next position itself, a [`Page`] tells it. An engine knows no service; a service knows no engine.
//!
//! [`open`] picks the engine: [`embedded`] (this machine's disk), [`jetstream`] (many replicas) or [`memory`] (tests).

pub mod clock;
mod codec;
mod dedupe;
pub mod embedded;
mod error;
pub mod export;
mod followers;
mod id;
pub mod jetstream;
pub mod memory;
mod meters;
mod numbering;
mod open;
mod record;
mod topic;

pub use clock::Clock;
pub use codec::{CodecError, decode, encode};
pub use error::Error;
pub use id::{LogId, LogIdError};
pub use numbering::Numbering;
pub use open::{OpenError, open};
pub use record::{EventTime, NewRecord, Record, Sequence, Timestamp, TraceContext};
pub use topic::{Space, Topic, TopicError};

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

/// A storage engine: durable, ordered topics.
///
/// # Contract
///
/// * **Durability.** An [`Ack`] resolves to outcomes only when every record of its batch survives `kill -9` and, as far as
///   the storage honours a flush, a power cut. A record that readers or followers see is durable.
/// * **Order.** Records get strictly growing sequences from one counter for the whole log, in the order in which their
///   batches were enqueued, and in batch order within a batch. No sequence is used twice, in any topic, also after a trim
///   or a restart. A topic's sequences have gaps.
/// * **Atomicity.** A batch is durable as a whole before its ack resolves; after an error or a crash any prefix of it may
///   be stored.
/// * **Idempotence.** A record with a key repeats an earlier one when topic, publisher and key are equal and the earlier is
///   within the dedupe window: it is not stored again ([`Outcome::Duplicate`], or [`Outcome::Conflict`] when its kind or
///   payload differs). The window survives a restart.
/// * **Visibility.** A record reaches the topic's followers before its ack resolves, so whoever holds an ack can read and
///   follow from it on this node. When a read finds a record, reads from then on find every retained record with a lower
///   sequence, in any topic.
/// * **Failure.** A failed flush poisons the engine: every later append fails with [`Error::Failed`] until the process
///   restarts. A full disk is not a failure: appends are refused with [`Error::Full`] until there is room again.
///
/// Dropping any future returned here is safe; a batch whose ack is dropped is still appended.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The log's identity: made with the log, the same after every restart and on every replica, and another one once the log
    /// was made again, from a backup too. A position is one of this log only.
    fn id(&self) -> LogId;

    /// Queues a batch for appending. Waits while the engine's queue is full (bounded in bytes), so awaiting it is the
    /// publisher's back-pressure. Await the returned [`Ack`] for durability; enqueue again before that to pipeline.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Failed`], [`Error::Unavailable`] or [`Error::Closed`]: nothing was queued.
    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, Error>;

    /// Appends one record and waits until it is durable. Who appends like this has nothing else under way, so an engine need not
    /// keep the record in order with what is enqueued at the same time.
    ///
    /// # Errors
    /// As [`Self::enqueue`] and its ack.
    async fn append(&self, record: NewRecord) -> Result<Outcome, Error> {
        let outcomes = self.enqueue(vec![record]).await?.await?;
        outcomes.first().copied().ok_or(Error::Closed)
    }

    /// Reads retained records in order, starting at `from`, up to `limit`.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when records at or after `from` were dropped by retention. [`Error::BeyondTail`] when `from` lies
    /// after the log's tail; a position between the topic's last record and the log's tail is fine. [`Error::Replaced`] when
    /// `from` was given out by the log of which this one is a restored copy, after its backup was taken.
    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error>;

    /// The position of the first retained record appended at or after `time`; the log's tail when there is none.
    ///
    /// # Errors
    /// Storage errors only.
    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error>;

    /// The log's tail as this node knows it now: everything acknowledged here lies before it and is readable, and a read that
    /// begins afterwards ends there or later. Where several nodes share the log, others may have written behind it. It never
    /// waits for a flush, for a lock held over I/O, or for the network; also a closed engine knows it.
    fn tail(&self) -> Sequence;

    /// The newest retained records of the topic that lie before `before`, up to `limit`, oldest first: there is no other
    /// retained record between the first of them and `before`. At least one comes back if there is one. To look at the whole
    /// topic, pass `Sequence(u64::MAX)`.
    ///
    /// # Errors
    /// Storage errors only.
    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error>;

    /// The topic's last retained record; none when all were dropped, or none was ever written.
    ///
    /// # Errors
    /// Storage errors only.
    async fn last(&self, topic: &Topic) -> Result<Option<Arc<Record>>, Error> {
        let newest = self.newest(topic, Sequence(u64::MAX), Limit::ONE).await?;
        Ok(newest.into_iter().next_back())
    }

    /// The topic's retained range. Of a topic nobody wrote to, nothing was dropped: it starts at [`Sequence::FIRST`]. Whatever
    /// was appended before the topic was last trimmed, on whichever node, lies before the tail: a record may stand for those
    /// that were dropped.
    ///
    /// # Errors
    /// Storage errors only.
    async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error>;

    /// Feeds the topic's new records to `follower` until the returned [`Follow`] is dropped. The hub calls it once per topic
    /// and node, whatever the number of subscribers. See [`Follower`] for what is called when.
    ///
    /// # Errors
    /// Storage errors only.
    async fn follow(&self, topic: &Topic, follower: Weak<dyn Follower>) -> Result<Follow, Error>;

    /// The position before which every record was shown to its topic's followers on this node: a follower that saw nothing
    /// has nothing to see there. Zero where an engine cannot tell. Read it before looking at what a follower got.
    fn shown(&self) -> Sequence {
        Sequence::default()
    }

    /// Drops the topic's records before `before`. Sequences stay used. Retention calls the same code. While an export runs
    /// nothing is dropped; a later call drops it.
    ///
    /// # Errors
    /// Storage errors only.
    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error>;

    /// Names of topics in `space` that were ever written to, in name order, at most `limit`, starting after `after`.
    ///
    /// # Errors
    /// Storage errors only.
    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error>;

    /// Begins exports of the whole log as it is at one moment, for a backup; none where the storage has means of its own.
    fn exporter(&self) -> Option<Arc<dyn export::Exporter>> {
        None
    }

    /// What the engine can do now; readiness follows it.
    fn health(&self) -> watch::Receiver<Health>;

    /// Refuses new appends, makes the queued ones durable and releases the storage. Idempotent.
    ///
    /// It waits for the disk as long as that takes, for a server no longer than one answer may take. A caller with less time drops
    /// the future; the engine goes on closing.
    async fn close(&self);
}

/// What `log.queue` allows, as permits of a semaphore.
fn queue_bytes(config: &crate::config::Log) -> usize {
    let most = tokio::sync::Semaphore::MAX_PERMITS.min(u32::MAX as usize);
    usize::try_from(config.queue.as_u64())
        .unwrap_or(most)
        .clamp(1, most)
}

/// Receives a topic's new records from an engine.
pub trait Follower: Send + Sync + 'static {
    /// The feed is complete from `from` on: `records` are all that exist from there up to `next`.
    ///
    /// The first call may come without records: it tells where the feed begins, which is the log's tail at that moment, so
    /// everything acknowledged before lies before it. From then on `from` is the previous call's `next`, and `next` is the
    /// position behind the last of `records`. When a feed lost records (its connection broke), `from` lies beyond the
    /// previous call's `next` instead; the records between are in the log. Calls for one topic come in order and never at
    /// the same time. It must not block: it runs on the engine's commit path.
    fn records(&self, from: Sequence, next: Sequence, records: &[Arc<Record>]);
}

/// A live feed; dropping it ends the feed.
pub struct Follow(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Follow {
    /// A feed that calls `end` when it is dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

/// The retained range of a topic: its records lie in `first..tail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// No retained record of the topic lies before this position, and none at or after it was dropped: the position behind
    /// the last record dropped, also when the next one lies further on.
    pub first: Sequence,
    /// The log's tail: the first position not written yet, in any topic.
    pub tail: Sequence,
}

/// Where a read from `from` starts in a topic that retains what lies at `first` or later, in a log that ends at `tail`.
fn start_of_read(from: Sequence, first: Sequence, tail: Sequence) -> Result<Sequence, Error> {
    if from.max(Sequence::FIRST) < first {
        return Err(Error::Trimmed { first });
    }
    if from > tail {
        return Err(Error::BeyondTail { tail });
    }
    Ok(from.max(first))
}

/// The last of `records`, which are in order, up to `limit`.
fn newest_of<'a>(
    records: impl DoubleEndedIterator<Item = &'a Arc<Record>>,
    limit: Limit,
) -> Vec<Arc<Record>> {
    let mut newest = Vec::new();
    let mut bytes = 0;
    for record in records.rev() {
        bytes += record.payload.len();
        newest.push(Arc::clone(record));
        if newest.len() >= limit.records || bytes >= limit.bytes {
            break;
        }
    }
    newest.reverse();
    newest
}

/// How much one read may return; at least one record comes back if there is one.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Records at most.
    pub records: usize,
    /// Payload bytes after which no further record is added.
    pub bytes: usize,
}

impl Limit {
    /// One record, whatever its size.
    pub const ONE: Self = Self {
        records: 1,
        bytes: 1,
    };
}

/// A run of records in sequence order.
#[derive(Debug, Clone)]
pub struct Page {
    /// The records.
    pub records: Vec<Arc<Record>>,
    /// Where to read next: all retained records from the start of the read up to this position have been returned. The
    /// tail when the topic has no more; never before the start of the read.
    pub next: Sequence,
    /// The log's tail at the time of the read. `next == tail` means the reader has caught up.
    pub tail: Sequence,
}

/// What became of one record of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored under this sequence.
    Stored {
        /// Its position.
        sequence: Sequence,
        /// When it was appended.
        time: Timestamp,
    },
    /// Its key was used before for the same content; the first record stands.
    Duplicate {
        /// The first record's position.
        sequence: Sequence,
        /// When the first record was appended.
        time: Timestamp,
    },
    /// Its key was used before for other content; nothing was stored.
    Conflict {
        /// The first record's position.
        sequence: Sequence,
    },
}

/// The pending outcome of one enqueued batch, in the batch's order.
#[derive(Debug)]
pub struct Ack(oneshot::Receiver<Result<Vec<Outcome>, Error>>);

impl Ack {
    /// An ack and the sender that resolves it. Dropping the sender resolves it to [`Error::Closed`].
    #[must_use]
    pub fn pending() -> (oneshot::Sender<Result<Vec<Outcome>, Error>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl Future for Ack {
    type Output = Result<Vec<Outcome>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}

/// What an engine can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Appends and reads work.
    Ready,
    /// No room: appends are refused, reads work, and it recovers by itself when there is room again.
    Full,
    /// The backend cannot be reached; it recovers by itself. The text says what is wrong.
    Unavailable(String),
    /// A flush failed: appends are refused until the process restarts. The text says what failed.
    Failed(String),
    /// Closed on request.
    Closed,
}
