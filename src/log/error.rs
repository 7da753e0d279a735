//! Why a log operation failed.

use super::Sequence;

/// An engine's error. Cheap to clone: one failure answers every append of its batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The storage is full; nothing was stored. It recovers when there is room again.
    #[error("the log's storage is full")]
    Full,
    /// The backend did not answer in time or cannot be reached; whether an append was stored is unknown.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// The record would begin a topic beyond those that the log may hold; nothing was stored.
    #[error("the log holds as many topics as log.max_topics allows: {limit}")]
    Topics {
        /// The most topics that it may hold.
        limit: usize,
    },
    /// A flush failed; appends are refused until the process restarts, and whether this one was stored is unknown.
    #[error("the log failed: {0}")]
    Failed(String),
    /// Stored data does not read back as it was written.
    #[error("the log is corrupt: {0}")]
    Corrupt(String),
    /// Records at or after the wanted position were dropped by retention.
    #[error("records before {first} are no longer retained")]
    Trimmed {
        /// The first position at or after which nothing was dropped.
        first: Sequence,
    },
    /// The wanted position lies after the log's tail.
    #[error("the log ends before {tail}")]
    BeyondTail {
        /// The first position not written yet.
        tail: Sequence,
    },
    /// The wanted position was given out by a log that a backup replaced: what came after the backup is not here, and the
    /// numbering goes on far behind it.
    #[error(
        "the position is of a log that a backup replaced: what is here of that log ends before {tail}"
    )]
    Replaced {
        /// The first position that the backup did not hold. Reading from here brings what came after the restore.
        tail: Sequence,
    },
    /// The log is closed: the instance is shutting down.
    #[error("the log is closed")]
    Closed,
}
