//! Reading the whole log as it is at one moment, for a backup.

use std::ops::ControlFlow;

use super::{Error, Sequence, Space, Timestamp};

/// Begins exports of a running log.
pub trait Exporter: Send + Sync {
    /// Begins an export of everything that is durable now. Blocks until the write under way is done.
    ///
    /// # Errors
    /// [`Error::Full`]: dropping what is old must go on. [`Error::Closed`] and [`Error::Unavailable`] as for a read.
    fn begin(&self) -> Result<Box<dyn Export>, Error>;
}

/// The log at one moment. While it lives, the running log drops no record, so the disk has to hold them.
pub trait Export: Send {
    /// The first position that is not part of the export.
    fn tail(&self) -> Sequence;

    /// How much the export holds. Blocks.
    ///
    /// # Errors
    /// As [`Self::visit`].
    fn size(&self) -> Result<Size, Error>;

    /// Shows every piece to `show` in order, with bounded memory, until `show` breaks off; that is no error. Blocks.
    ///
    /// # Errors
    /// [`Error::Full`] when the disk runs full, because what is held back has to go then; [`Error::Closed`] when the log
    /// closes; otherwise the storage error that ended the reading.
    fn visit(&self, show: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>) -> Result<(), Error>;
}

/// One piece of a log. After its topic come the topic's records in order, then its idempotency keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A topic that was written to.
    Topic {
        /// Its space.
        space: Space,
        /// Its name in the space.
        name: &'a str,
        /// See [`super::Bounds::first`].
        first: Sequence,
    },
    /// A record of the topic.
    Record {
        /// Its position.
        sequence: Sequence,
        /// As [`super::encode`] writes it.
        stored: &'a [u8],
    },
    /// The use of an idempotency key in the topic.
    Key {
        /// The hash of publisher and key.
        hash: [u8; 16],
        /// The record it stands for.
        sequence: Sequence,
        /// When that record was appended.
        time: Timestamp,
        /// The hash of that record's content.
        content: [u8; 16],
    },
}

/// The amount of data in an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Topics in the export.
    pub topics: u64,
    /// Bytes of stored records.
    pub bytes: u64,
}
