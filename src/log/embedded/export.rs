//! Reading the whole log as it was at one position, for a backup.
//!
//! A snapshot of the database held all along would do the same, but the database keeps everything that is written meanwhile in
//! memory for it. So nothing is dropped while an export runs ([`Hold`]), and each page is read from a short view of its own:
//! what lies before the tail cannot change then.

use std::{path::Path, sync::Arc, sync::mpsc};

use tokio::sync::oneshot;

use super::{
    committer::Command,
    disk::DirLock,
    layout::{self, TopicEntry},
    plan::Next,
    shared::Shared,
    store::Store,
};
use crate::log::{Error, Health, OpenError, Sequence, Space, Timestamp, Topic};

/// Topics looked up at a time.
const TOPICS_PAGE: usize = 256;
/// Bytes of records after which a page ends; it holds at least one record.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Idempotency keys of a page.
const KEYS_PAGE: usize = 16 * 1024;
/// Memory for reading a log that no process has open.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// One piece of a log. After its topic come the topic's records in order, then its idempotency keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A topic that was written to.
    Topic {
        /// Its space.
        space: Space,
        /// Its name in the space.
        name: &'a str,
        /// See [`crate::log::Bounds::first`].
        first: Sequence,
    },
    /// A record of the topic.
    Record {
        /// Its position.
        sequence: Sequence,
        /// As [`crate::log::encode`] writes it.
        stored: &'a [u8],
    },
    /// What an idempotency key was used for in the topic.
    Key {
        /// The hash of publisher and key.
        hash: [u8; 16],
        /// The record it stands for.
        sequence: Sequence,
        /// When that was appended.
        time: Timestamp,
        /// The hash of that record's content.
        content: [u8; 16],
    },
}

/// Starts exports of a running log. Cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    commands: mpsc::Sender<Command>,
}

impl Exporter {
    pub(super) const fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    /// Begins an export of everything that is durable now. Blocks until the commit under way is done.
    ///
    /// # Errors
    /// [`Error::Full`]: dropping what is old must go on. [`Error::Closed`] and [`Error::Unavailable`] as for a read.
    pub fn begin(&self) -> Result<Export, Error> {
        let (done, answer) = oneshot::channel();
        self.commands
            .send(Command::Hold { done })
            .map_err(|_| Error::Closed)?;
        let (hold, next) = answer.blocking_recv().unwrap_or(Err(Error::Closed))?;
        Ok(Export {
            source: Source::Running(hold),
            next,
        })
    }
}

/// While it lives, nothing is trimmed.
pub(super) struct Hold(Arc<Shared>);

impl Hold {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.hold();
        Self(shared)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// The log at one position. While it lives, the running log drops no record; the disk has to hold them.
pub struct Export {
    source: Source,
    /// What was given out next when it began.
    next: Next,
}

enum Source {
    Running(Hold),
    /// Closed before the directory is let go.
    Stopped {
        store: Store,
        _lock: DirLock,
    },
}

/// What an export holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Topics ever written to.
    pub topics: u64,
    /// Bytes of stored records.
    pub bytes: u64,
}

impl Export {
    /// The log in `dir`, which no process has open; it stays closed to others until the export is dropped.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::InUse`] when a process has it open.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |cause| OpenError::Directory {
            path: dir.into(),
            cause,
        };
        // Opening would make one.
        std::fs::metadata(dir.join("db")).map_err(unusable)?;
        let lock = DirLock::acquire(dir)?;
        let store = Store::open(dir, CACHE_BYTES)?;
        let next = store.next().map_err(|error| OpenError::Storage {
            path: dir.into(),
            cause: error.to_string(),
        })?;
        Ok(Self {
            source: Source::Stopped { store, _lock: lock },
            next,
        })
    }

    /// The first position that is not part of it.
    #[must_use]
    pub const fn tail(&self) -> Sequence {
        self.next.sequence
    }

    /// How much it holds; looks at the ends of every topic.
    ///
    /// # Errors
    /// As [`Self::visit`].
    pub fn size(&self) -> Result<Size, Error> {
        let mut size = Size::default();
        self.topics(|topic, _| {
            size.topics += 1;
            size.bytes += self.read(|store| store.bytes(topic, self.tail()))?;
            Ok::<_, Error>(())
        })?;
        Ok(size)
    }

    /// Shows every piece to `show`, reading at most a page ahead. Blocks.
    ///
    /// # Errors
    /// The first error of `show`; [`Error::Full`] when the disk runs full, as what is held back has to go then;
    /// [`Error::Closed`] when the log closes; what reading reports.
    pub fn visit<E: From<Error>>(
        &self,
        mut show: impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.topics(|topic, entry| {
            show(Item::Topic {
                space: topic.space(),
                name: topic.name(),
                first: entry.first,
            })?;
            self.records(entry, &mut show)?;
            self.keys(entry, &mut show)
        })
    }

    fn topics<E: From<Error>>(
        &self,
        mut show: impl FnMut(&Topic, TopicEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        for space in Space::ALL {
            let mut after: Option<Topic> = None;
            loop {
                let page = self.read(|store| store.topics(space, after.as_ref(), TOPICS_PAGE))?;
                let Some(last) = page.last().cloned() else {
                    break;
                };
                for topic in page {
                    // Topics that came later are not part of it.
                    let entry = self.read(|store| store.topic(&topic))?;
                    if let Some(entry) = entry.filter(|entry| entry.id < self.next.topic_id) {
                        show(&topic, entry)?;
                    }
                }
                after = Some(last);
            }
        }
        Ok(())
    }

    fn records<E: From<Error>>(
        &self,
        entry: TopicEntry,
        show: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = entry.first;
        loop {
            let page = self.read(|store| store.stored(entry.id, from..self.tail(), PAGE_BYTES))?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = last.next();
            for (sequence, value) in &page {
                show(Item::Record {
                    sequence: *sequence,
                    stored: layout::stored_of(value)?,
                })?;
            }
        }
    }

    fn keys<E: From<Error>>(
        &self,
        entry: TopicEntry,
        show: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = None;
        loop {
            let page = self.read(|store| store.keys_of(entry.id, after, KEYS_PAGE))?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            for (hash, known) in page {
                // Used since; whatever it was used for before had expired.
                if known.sequence >= self.tail() {
                    continue;
                }
                show(Item::Key {
                    hash,
                    sequence: known.sequence,
                    time: known.time,
                    content: known.content,
                })?;
            }
        }
    }

    /// One read. The database of a running log is held no longer than that, as it may have to be opened anew or closed.
    fn read<T>(&self, read: impl FnOnce(&Store) -> Result<T, Error>) -> Result<T, Error> {
        match &self.source {
            Source::Running(Hold(shared)) => {
                if *shared.health.borrow() == Health::Full {
                    return Err(Error::Full);
                }
                read(&*shared.store()?)
            }
            Source::Stopped { store, .. } => read(store),
        }
    }
}
