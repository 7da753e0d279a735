//! Writing a log from the pieces of an [`Export`](crate::log::export::Export), into a directory that holds none.
//!
//! Pieces come topic by topic, which is how segments hold them: a restore writes segments and nothing else. The log goes on in a new
//! journal, far behind the archive's tail: the log that was replaced may have given out the numbers between.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    disk::{self, DirLock, Disk, System},
    entry::{self, First},
    files::{self, segment_path},
    identity::Identity,
    journal::{Batch, Journal},
    segment::{Builder, Origin},
};
use crate::log::{Error, LogId, OpenError, Sequence, Topic, dedupe::Known, export::Item};

/// Where everything is until it is whole. No log opens beside it.
pub(super) const RESTORING: &str = "restoring";
/// What may be in a directory that counts as empty: its own lock, and what a file system keeps at its root.
const IGNORED: [&str; 2] = ["lock", "lost+found"];
/// What a restore makes.
const RESTORED: [&str; 3] = [files::DIR, "files", RESTORING];
/// Bytes of a segment, beyond the last record.
const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
/// Idempotency keys of a topic that are gathered before they are written.
const KEYS: usize = 256 * 1024;
/// Numbers that are left out behind the archive's tail.
const GAP: u64 = 1 << 32;

/// A directory that is being filled. Everything is staged inside it, so that it may be the root of a volume, and a log opens
/// there only after [`Self::commit`]. Dropping it before takes everything back.
#[derive(Debug)]
pub struct Restoring {
    dir: PathBuf,
    lock: Option<DirLock>,
    was_there: bool,
    is_done: bool,
}

impl Restoring {
    /// Takes `dir`, creating it if needed. What a restore that was killed left there is removed.
    ///
    /// # Errors
    /// [`OpenError::NotEmpty`], [`OpenError::InUse`] or [`OpenError::Directory`]; nothing was changed.
    pub fn begin(dir: &Path) -> Result<Self, OpenError> {
        let was_there = dir.exists();
        if was_there {
            // Before the lock's file is made in a directory of somebody else.
            check_empty(dir)?;
        }
        let mut restoring = Self {
            lock: Some(DirLock::acquire(dir)?),
            dir: dir.into(),
            was_there,
            is_done: false,
        };
        // Once more, now that nobody else can open it. If somebody did before, nothing of it is ours to remove.
        if let Err(error) = check_empty(dir) {
            restoring.is_done = true;
            return Err(error);
        }
        remove_restored(dir)
            .and_then(|()| disk::make_dir(&restoring.path()))
            .and_then(|()| System.sync_dir(dir))
            .map_err(|cause| unusable(dir, cause))?;
        Ok(restoring)
    }

    /// Where to put what is restored: the log, made by [`Import`], and `files`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(RESTORING)
    }

    /// Moves everything to its place and makes that durable. From here on a log opens there.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn commit(mut self) -> Result<(), OpenError> {
        let staged = self.path();
        let moved = || {
            for name in ["files", files::DIR] {
                if staged.join(name).exists() {
                    fs::rename(staged.join(name), self.dir.join(name))?;
                }
            }
            System.sync_dir(&self.dir)?;
            // This is the step that counts: before it the directory opens for nobody.
            fs::remove_dir(&staged)?;
            System.sync_dir(&self.dir)
        };
        moved().map_err(|cause| unusable(&self.dir, cause))?;
        if let Some(parent) = self.dir.parent().filter(|_| !self.was_there) {
            // A name that is lost to a power cut takes the directory along; some parents cannot be opened.
            let is_here = parent.as_os_str().is_empty();
            let parent = if is_here { Path::new(".") } else { parent };
            let _ = System.sync_dir(parent);
        }
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        // What cannot be removed stays marked as unfinished.
        if remove_restored(&self.dir).is_err() {
            return;
        }
        let _ = fs::remove_file(self.dir.join("lock"));
        if !self.was_there {
            let _ = fs::remove_dir(&self.dir);
        }
        drop(self.lock.take());
    }
}

/// Whether `dir` holds nothing but what an unfinished restore left.
fn check_empty(dir: &Path) -> Result<(), OpenError> {
    let is_unfinished = dir.join(RESTORING).exists();
    for entry in fs::read_dir(dir).map_err(|cause| unusable(dir, cause))? {
        let name = entry.map_err(|cause| unusable(dir, cause))?.file_name();
        let is_one_of = |known: &[&str]| known.iter().any(|known| name == **known);
        if !(is_one_of(&IGNORED) || is_unfinished && is_one_of(&RESTORED)) {
            return Err(OpenError::NotEmpty { path: dir.into() });
        }
    }
    Ok(())
}

/// Removes what a restore made; the mark of an unfinished one goes last.
fn remove_restored(dir: &Path) -> std::io::Result<()> {
    for name in RESTORED {
        match fs::remove_dir_all(dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn unusable(dir: &Path, cause: std::io::Error) -> OpenError {
    OpenError::Directory {
        path: dir.into(),
        cause,
    }
}

/// A log in the making.
pub struct Import {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: LogId,
    tail: Sequence,
    builder: Option<Builder>,
    next_number: u64,
    topic: Option<Filling>,
    topics: HashSet<Topic>,
    entry: Vec<u8>,
}

/// The topic that pieces go to.
struct Filling {
    topic: Topic,
    first: Sequence,
    /// The lowest position of the next record.
    next: Sequence,
    keys: Vec<([u8; 16], Known)>,
    /// Whether the segment has its group.
    is_begun: bool,
}

impl Import {
    /// Begins a log in `dir` of which the archive ends at `tail`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn create(dir: &Path, tail: Sequence) -> Result<Self, OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(System);
        let dir = dir.join(files::DIR);
        let gap = tail..Sequence(tail.0.saturating_add(GAP));
        let identity = Identity::new(vec![gap]);
        disk::make_dir(&dir)
            .and_then(|()| identity.write(&*disk, &dir))
            .map_err(|cause| unusable(&dir, cause))?;
        Ok(Self {
            disk,
            dir,
            id: identity.id,
            tail,
            builder: None,
            next_number: 1,
            topic: None,
            topics: HashSet::new(),
            entry: Vec::new(),
        })
    }

    /// Adds the next piece.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not what an export gives at this place; what the storage reports.
    pub fn add(&mut self, item: Item<'_>) -> Result<(), Error> {
        match item {
            Item::Topic { space, name, first } => {
                let topic = Topic::new(space, name).map_err(|_| wrong("a topic's name"))?;
                self.topic(topic, first)
            }
            Item::Record { sequence, stored } => self.record(sequence, stored),
            Item::Key {
                hash,
                sequence,
                time,
                content,
            } => {
                let known = Known {
                    sequence,
                    time,
                    content,
                };
                self.key(hash, known)
            }
        }
    }

    fn topic(&mut self, topic: Topic, first: Sequence) -> Result<(), Error> {
        self.end_topic()?;
        if first > self.tail || !self.topics.insert(topic.clone()) {
            return Err(wrong("a topic"));
        }
        self.topic = Some(Filling {
            topic,
            first,
            next: first,
            keys: Vec::new(),
            is_begun: false,
        });
        Ok(())
    }

    fn record(&mut self, sequence: Sequence, stored: &[u8]) -> Result<(), Error> {
        let filling = self.topic.as_mut().ok_or_else(|| wrong("a record"))?;
        if sequence < filling.next || sequence >= self.tail || !filling.keys.is_empty() {
            return Err(wrong("a record's position"));
        }
        crate::log::decode(sequence, bytes::Bytes::copy_from_slice(stored))
            .map_err(|error| Error::Corrupt(format!("record {sequence}: {error}")))?;
        filling.next = sequence.next();
        let time = entry::time_of(stored).unwrap_or_default();
        self.entry.clear();
        entry::put_stored(&mut self.entry, 0, sequence, stored);
        let entry = std::mem::take(&mut self.entry);
        let written = self
            .group()
            .and_then(|builder| builder.record(sequence, time, &entry).map_err(failed));
        self.entry = entry;
        written
    }

    fn key(&mut self, hash: [u8; 16], known: Known) -> Result<(), Error> {
        let filling = self.topic.as_mut().ok_or_else(|| wrong("a key"))?;
        if known.sequence >= self.tail {
            return Err(wrong("a key's position"));
        }
        filling.keys.push((hash, known));
        if filling.keys.len() >= KEYS {
            self.end_keys()?;
        }
        Ok(())
    }

    /// The segment, in the group of the topic.
    fn group(&mut self) -> Result<&mut Builder, Error> {
        let is_full = self
            .builder
            .as_ref()
            .is_some_and(|builder| builder.size() >= SEGMENT_BYTES);
        if is_full {
            self.end_segment()?;
        }
        if self.builder.is_none() {
            let path = segment_path(&self.dir, self.next_number, 0);
            let origin = Origin {
                id: self.id,
                number: self.next_number,
                span: (Sequence::FIRST, Sequence(self.tail.0.saturating_sub(1))),
                floor: Sequence::FIRST,
            };
            let builder = Builder::create(&self.disk, &path, origin);
            self.builder = Some(builder.map_err(failed)?);
            self.next_number += 1;
            if let Some(filling) = &mut self.topic {
                filling.is_begun = false;
            }
        }
        let builder = self.builder.as_mut().ok_or(Error::Closed)?;
        if let Some(filling) = &mut self.topic
            && !filling.is_begun
        {
            let first = First {
                sequence: filling.first,
                is_inherited: false,
            };
            builder.begin(0, &filling.topic, first).map_err(failed)?;
            filling.is_begun = true;
        }
        Ok(builder)
    }

    /// Writes the keys that were gathered; a group has one list of them.
    fn end_keys(&mut self) -> Result<(), Error> {
        let Some(filling) = &mut self.topic else {
            return Ok(());
        };
        let mut keys = std::mem::take(&mut filling.keys);
        keys.sort_unstable_by_key(|(hash, _)| *hash);
        self.group()?.keys(&keys).map_err(failed)?;
        // More keys of the topic go to another segment.
        self.end_segment()
    }

    fn end_topic(&mut self) -> Result<(), Error> {
        let Some(filling) = &mut self.topic else {
            return Ok(());
        };
        let mut keys = std::mem::take(&mut filling.keys);
        keys.sort_unstable_by_key(|(hash, _)| *hash);
        if !keys.is_empty() || !filling.is_begun {
            self.group()?.keys(&keys).map_err(failed)?;
        }
        self.topic = None;
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        if let Some(builder) = self.builder.take() {
            builder.finish().map_err(failed)?;
        }
        if let Some(filling) = &mut self.topic {
            filling.is_begun = false;
        }
        Ok(())
    }

    /// Makes the log durable and closes it.
    ///
    /// # Errors
    /// What the storage reports.
    pub fn finish(mut self) -> Result<(), Error> {
        self.end_topic()?;
        self.end_segment()?;
        let journal = Journal::create(&*self.disk, &self.dir, self.id, self.next_number);
        let mut journal = journal.map_err(failed)?;
        let mut batch = Batch::new();
        batch.entry(|out| entry::put_floor(out, Sequence::FIRST));
        journal.reserve(batch.size(), true).map_err(failed)?;
        let next = Sequence(self.tail.0.saturating_add(GAP));
        journal.write(&mut batch, next).map_err(failed)?;
        Ok(())
    }
}

fn failed(error: io::Error) -> Error {
    if disk::is_full(&error) {
        return Error::Full;
    }
    Error::Unavailable(error.to_string())
}

fn wrong(what: &str) -> Error {
    Error::Corrupt(format!("{what} is not in its place"))
}
