//! Writing a log from the pieces of an [`Export`](crate::log::export::Export), into a directory that holds none.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode, UserKey, UserValue};

use super::{
    disk::{self, DirLock},
    layout::{self, TopicEntry},
    store::Store,
};
use crate::log::{
    Error, OpenError, Sequence, Timestamp, Topic, decode, dedupe::Known, export::Item,
};

/// Bytes written at once, beyond the last piece.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Memory for what is read back meanwhile, which is little.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Where everything is until it is whole. No log opens beside it.
pub(super) const RESTORING: &str = "restoring";
/// What may be in a directory that counts as empty: its own lock, and what a file system keeps at its root.
const IGNORED: [&str; 2] = ["lock", "lost+found"];
/// What a restore makes.
const RESTORED: [&str; 3] = ["db", "files", RESTORING];

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
            .and_then(|()| fs::create_dir(restoring.path()))
            .and_then(|()| disk::sync_dir(dir))
            .map_err(|cause| unusable(dir, cause))?;
        Ok(restoring)
    }

    /// Where to put what is restored: `db`, made by [`Import`], and `files`.
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
            for name in ["files", "db"] {
                if staged.join(name).exists() {
                    fs::rename(staged.join(name), self.dir.join(name))?;
                }
            }
            disk::sync_dir(&self.dir)?;
            // This is the step that counts: before it the directory opens for nobody.
            fs::remove_dir(&staged)?;
            disk::sync_dir(&self.dir)
        };
        moved().map_err(|cause| unusable(&self.dir, cause))?;
        if let Some(parent) = self.dir.parent().filter(|_| !self.was_there) {
            // A name that is lost to a power cut takes the directory along; some parents cannot be opened.
            let _ = disk::sync_dir(match parent.as_os_str().is_empty() {
                true => Path::new("."),
                false => parent,
            });
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
    store: Store,
    tail: Sequence,
    topic: Option<Filling>,
    next_id: u64,
    batch: OwnedWriteBatch,
    batch_bytes: usize,
    value: Vec<u8>,
}

/// The topic that pieces go to.
struct Filling {
    id: u64,
    /// The lowest position of the next record.
    next: Sequence,
    /// Where it starts; see [`layout`].
    start: u64,
}

impl Import {
    /// Begins a log in `dir` that will end at `tail`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn create(dir: &Path, tail: Sequence) -> Result<Self, OpenError> {
        let store = Store::open(dir, CACHE_BYTES)?;
        Ok(Self {
            batch: buffered(&store),
            store,
            tail,
            topic: None,
            next_id: 1,
            batch_bytes: 0,
            value: Vec::new(),
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
                self.topic(&topic, first)?;
            }
            Item::Record { sequence, stored } => self.record(sequence, stored)?,
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
                self.key(hash, &known)?;
            }
        }
        match self.batch_bytes >= BATCH_BYTES {
            true => self.write(),
            false => Ok(()),
        }
    }

    fn topic(&mut self, topic: &Topic, first: Sequence) -> Result<(), Error> {
        // What is still to be written has to be seen.
        self.write()?;
        if first > self.tail || self.store.topic(topic)?.is_some() {
            return Err(wrong("a topic"));
        }
        let id = self.next_id;
        self.next_id += 1;
        let (key, entry) = (layout::topic_key(topic), TopicEntry { id, first }.encode());
        self.batch_bytes += key.len() + entry.len();
        self.batch.insert(&self.store.topics, key, entry);
        self.topic = Some(Filling {
            id,
            next: first,
            start: 0,
        });
        Ok(())
    }

    fn record(&mut self, sequence: Sequence, stored: &[u8]) -> Result<(), Error> {
        let filling = self.topic.as_mut().ok_or_else(|| wrong("a record"))?;
        if sequence < filling.next || sequence >= self.tail {
            return Err(wrong("a record's position"));
        }
        decode(sequence, Bytes::copy_from_slice(stored))
            .map_err(|error| Error::Corrupt(format!("record {sequence}: {error}")))?;
        layout::put_stored(filling.start, stored, &mut self.value);
        let key = layout::record_key(filling.id, sequence);
        self.batch.insert(
            &self.store.records,
            UserKey::from(key),
            UserValue::from(self.value.as_slice()),
        );
        filling.start += self.value.len() as u64;
        filling.next = sequence.next();
        self.batch_bytes += key.len() + self.value.len();
        Ok(())
    }

    fn key(&mut self, hash: [u8; 16], known: &Known) -> Result<(), Error> {
        let filling = self.topic.as_ref().ok_or_else(|| wrong("a key"))?;
        if known.sequence >= self.tail {
            return Err(wrong("a key's position"));
        }
        let key = layout::dedupe_key(filling.id, hash);
        let (value, expires) = (
            layout::encode_known(known),
            layout::expiry_key(Timestamp(known.time.0), key),
        );
        self.batch.insert(&self.store.keys, key, value);
        self.batch
            .insert(&self.store.expiry, expires, UserValue::from([]));
        self.batch_bytes += key.len() + value.len() + expires.len();
        Ok(())
    }

    /// Hands what was gathered to the database, once that keeps up.
    fn write(&mut self) -> Result<(), Error> {
        let failed = |error: fjall::Error| Error::Unavailable(error.to_string());
        while self.store.is_behind().map_err(failed)? {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let batch = std::mem::replace(&mut self.batch, buffered(&self.store));
        self.batch_bytes = 0;
        batch.commit().map_err(failed)
    }

    /// Makes the log durable and closes it.
    ///
    /// # Errors
    /// What the storage reports.
    pub fn finish(mut self) -> Result<(), Error> {
        let numbers = [
            (layout::META_TOPICS, self.next_id),
            (layout::META_SEQUENCES, self.tail.0),
        ];
        for (key, number) in numbers {
            self.batch
                .insert(&self.store.meta, key, number.to_be_bytes());
        }
        self.write()?;
        let persisted = self.store.persist();
        persisted.map_err(|error| Error::Unavailable(error.to_string()))
    }
}

/// A batch that is durable only with everything else.
fn buffered(store: &Store) -> OwnedWriteBatch {
    store.batch().durability(Some(PersistMode::Buffer))
}

fn wrong(what: &str) -> Error {
    Error::Corrupt(format!("{what} is not in its place"))
}
