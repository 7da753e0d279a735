//! Reading the whole log as it was at one position, for a backup.
//!
//! A snapshot of the database held all along would do the same, but the database keeps everything that is written meanwhile in
//! memory for it. So nothing is dropped while an export runs ([`Hold`]), and each page is read from a short view of its own:
//! what lies before the tail cannot change then.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, mpsc},
};

use tokio::sync::oneshot;

use super::{
    committer::Command,
    disk::DirLock,
    layout::{self, TopicEntry},
    plan::Next,
    shared::Shared,
    store::Store,
};
use crate::log::{
    Error, Health, OpenError, Sequence, Space, Topic,
    export::{Export, Exporter, Item, Size},
};

/// Topics looked up at a time.
const TOPICS_PAGE: usize = 256;
/// Bytes of records after which a page ends; it holds at least one record.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Idempotency keys of a page.
const KEYS_PAGE: usize = 16 * 1024;
/// Memory for reading a log that no process has open.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Begins exports of a running log.
pub(super) struct Exports {
    commands: mpsc::Sender<Command>,
}

impl Exports {
    pub(super) const fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }
}

impl Exporter for Exports {
    fn begin(&self) -> Result<Box<dyn Export>, Error> {
        let (done, answer) = oneshot::channel();
        self.commands
            .send(Command::Hold { done })
            .map_err(|_| Error::Closed)?;
        let (hold, next) = answer.blocking_recv().unwrap_or(Err(Error::Closed))?;
        Ok(Box::new(Snapshot {
            source: Source::Running(hold),
            next,
        }))
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

/// The log at one position.
struct Snapshot {
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

/// The log in `dir`, which no process has open; it stays closed to others until the export is dropped.
///
/// # Errors
/// See [`OpenError`]; [`OpenError::InUse`] when a process has it open.
pub fn open_export(dir: &Path) -> Result<Box<dyn Export>, OpenError> {
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
    Ok(Box::new(Snapshot {
        source: Source::Stopped { store, _lock: lock },
        next,
    }))
}

/// Why showing the pieces ended early.
enum Ended {
    /// The caller has seen enough.
    Broken,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Show<'a> = dyn FnMut(Item<'_>) -> ControlFlow<()> + 'a;

/// Shows a piece.
fn shown(show: &mut Show<'_>, item: Item<'_>) -> Result<(), Ended> {
    if show(item).is_break() {
        return Err(Ended::Broken);
    }
    Ok(())
}

impl Export for Snapshot {
    fn tail(&self) -> Sequence {
        self.next.sequence
    }

    fn size(&self) -> Result<Size, Error> {
        let mut size = Size::default();
        self.topics(|topic, _| {
            size.topics += 1;
            size.bytes += self.read(|store| store.bytes(topic, self.tail()))?;
            Ok::<_, Error>(())
        })?;
        Ok(size)
    }

    fn visit(&self, show: &mut Show<'_>) -> Result<(), Error> {
        let ended = self.topics(|topic, entry| {
            let topic = Item::Topic {
                space: topic.space(),
                name: topic.name(),
                first: entry.first,
            };
            shown(show, topic)?;
            self.records(entry, show)?;
            self.keys(entry, show)
        });
        match ended {
            Ok(()) | Err(Ended::Broken) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
        }
    }
}

impl Snapshot {
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

    fn records(&self, entry: TopicEntry, show: &mut Show<'_>) -> Result<(), Ended> {
        let mut from = entry.first;
        loop {
            let page = self.read(|store| store.stored(entry.id, from..self.tail(), PAGE_BYTES))?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = last.next();
            for (sequence, value) in &page {
                let record = Item::Record {
                    sequence: *sequence,
                    stored: layout::stored_of(value)?,
                };
                shown(show, record)?;
            }
        }
    }

    fn keys(&self, entry: TopicEntry, show: &mut Show<'_>) -> Result<(), Ended> {
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
                let key = Item::Key {
                    hash,
                    sequence: known.sequence,
                    time: known.time,
                    content: known.content,
                };
                shown(show, key)?;
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
