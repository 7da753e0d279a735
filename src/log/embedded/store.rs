//! The database: opening it, and reading from it.

use std::{
    fs,
    ops::{Bound, Range},
    path::Path,
    sync::Arc,
};

use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot,
    UserValue,
    compaction::Leveled,
    config::{BlockSizePolicy, FilterPolicy},
};

use super::{
    disk,
    import::RESTORING,
    layout::{self, TopicEntry},
    plan::Next,
};
use crate::log::{
    Bounds, Error, Limit, OpenError, Page, Record, Sequence, Space, Timestamp, Topic, dedupe::Known,
};

/// Memory for unwritten records; at most [`MAX_SEALED`] more of them wait for the disk.
const RECORDS_MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Size of a file of records. Trimmed records leave the disk file by file.
const RECORDS_TABLE_BYTES: u64 = 16 * 1024 * 1024;
/// Memory for unwritten entries of each other keyspace.
const OTHER_MEMTABLE_BYTES: u64 = 2 * 1024 * 1024;
/// Write buffers waiting for the disk at which appends wait. Fjall itself waits at four, but without looking whether its
/// worker still lives.
const MAX_SEALED: usize = 3;
/// Runs in the youngest level at which appends wait; fjall itself waits at thirty.
const MAX_RUNS: usize = 24;
/// Records of a topic that are dropped at once.
const TRIM_STEP: usize = 1024;
/// Journals on disk at most; also what a start may have to replay.
const JOURNAL_BYTES: u64 = 128 * 1024 * 1024;

/// The open database.
pub(super) struct Store {
    db: Database,
    pub(super) topics: Keyspace,
    pub(super) records: Keyspace,
    pub(super) keys: Keyspace,
    pub(super) expiry: Keyspace,
    pub(super) meta: Keyspace,
}

/// The last record of a topic, as far as appending after it needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Last {
    pub(super) sequence: Sequence,
    pub(super) time: Timestamp,
    /// Where the next record starts.
    pub(super) end: u64,
}

/// What retention drops of a topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Everything before this position goes.
    pub(super) before: Sequence,
    /// Bytes of what goes.
    pub(super) bytes: u64,
}

impl Store {
    /// Opens the database in `dir`, creating it if there is none. The caller holds the directory's lock. A creation that is
    /// interrupted leaves nothing behind that counts: the database gets its name when it is complete.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        if dir.join(RESTORING).exists() {
            return Err(OpenError::Unfinished { path: dir.into() });
        }
        let path = dir.join("db");
        let exists = path.try_exists().map_err(|cause| unusable(dir, cause))?;
        if !exists {
            Self::create(dir, &path, cache_bytes)?;
        }
        let store = Self::open_at(&path, cache_bytes).map_err(|error| describe(dir, error))?;
        store.check_format(dir)?;
        Ok(store)
    }

    fn create(dir: &Path, path: &Path, cache_bytes: u64) -> Result<(), OpenError> {
        let fresh = dir.join("db.new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(|cause| unusable(dir, cause))?;
        }
        Self::open_at(&fresh, cache_bytes)
            .and_then(|store| {
                store
                    .meta
                    .insert(layout::META_FORMAT, layout::FORMAT.to_be_bytes())?;
                store.persist()
            })
            .map_err(|error| describe(dir, error))?;
        fs::rename(&fresh, path)
            .and_then(|()| disk::sync_dir(dir))
            .map_err(|cause| unusable(dir, cause))
    }

    fn open_at(path: &Path, cache_bytes: u64) -> fjall::Result<Self> {
        let db = Database::builder(path)
            .cache_size(cache_bytes)
            .worker_threads(2)
            .max_journaling_size(JOURNAL_BYTES)
            .journal_compression(fjall::CompressionType::None)
            .open()?;
        Ok(Self {
            topics: db.keyspace("topics", other)?,
            records: db.keyspace("records", records)?,
            keys: db.keyspace("keys", other)?,
            expiry: db.keyspace("expiry", other)?,
            meta: db.keyspace("meta", other)?,
            db,
        })
    }

    fn check_format(&self, dir: &Path) -> Result<(), OpenError> {
        let found = self
            .meta
            .get(layout::META_FORMAT)
            .map_err(|error| describe(dir, error))?;
        if found.as_deref() == Some(&layout::FORMAT.to_be_bytes()) {
            return Ok(());
        }
        let found = found
            .and_then(|bytes| <[u8; 4]>::try_from(bytes.as_ref()).ok())
            .map_or_else(
                || "unknown".into(),
                |bytes| u32::from_be_bytes(bytes).to_string(),
            );
        Err(OpenError::Format {
            path: dir.into(),
            found,
        })
    }

    /// An empty batch that is durable once committed.
    pub(super) fn batch(&self) -> fjall::OwnedWriteBatch {
        self.db.batch().durability(Some(PersistMode::SyncData))
    }

    /// Makes everything durable.
    pub(super) fn persist(&self) -> fjall::Result<()> {
        self.db.persist(PersistMode::SyncAll)
    }

    /// Whether a write now would wait for the disk; an error when the database has failed and would wait for ever.
    pub(super) fn is_behind(&self) -> fjall::Result<bool> {
        let written = [
            &self.records,
            &self.keys,
            &self.expiry,
            &self.topics,
            &self.meta,
        ];
        let behind = written.into_iter().any(|keyspace| {
            keyspace.sealed_memtable_count() >= MAX_SEALED
                || keyspace.tree.l0_run_count() >= MAX_RUNS
        });
        if behind {
            self.db.persist(PersistMode::Buffer)?;
        }
        Ok(behind)
    }

    /// What is given out next.
    pub(super) fn next(&self) -> Result<Next, Error> {
        let stored = self.meta.get(layout::META_TOPICS).map_err(failed_read)?;
        Ok(Next {
            topic_id: stored.map_or(Ok(1), |bytes| layout::u64_at(&bytes, 0))?,
            sequence: self.view().tail()?,
        })
    }

    /// The topic's entry; none when nobody wrote to it.
    pub(super) fn topic(&self, topic: &Topic) -> Result<Option<TopicEntry>, Error> {
        let stored = self.topics.get(layout::topic_key(topic));
        decode_entry(stored.map_err(failed_read)?)
    }

    /// The topic's last record; none when it is empty.
    pub(super) fn last(&self, entry: TopicEntry) -> Result<Option<Last>, Error> {
        self.view().last(entry)
    }

    /// What the idempotency key was used for, whether expired or not.
    pub(super) fn known(&self, dedupe_key: [u8; 24]) -> Result<Option<Known>, Error> {
        let stored = self.keys.get(dedupe_key).map_err(failed_read)?;
        stored.map(|value| layout::decode_known(&value)).transpose()
    }

    /// At most `limit` expiries from `from` on up to `until`, oldest first.
    pub(super) fn expiries(
        &self,
        from: &[u8],
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<fjall::UserKey>, Error> {
        let until = until.0.to_be_bytes();
        if from >= until.as_slice() {
            return Ok(Vec::new());
        }
        self.expiry
            .range(from..until.as_slice())
            .take(limit)
            .map(|guard| guard.key().map_err(failed_read))
            .collect()
    }

    pub(super) fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        let view = self.view();
        let entry = view.topic(topic)?;
        Ok(Bounds {
            first: entry.map_or(Sequence::FIRST, |entry| entry.first),
            tail: view.tail()?,
        })
    }

    pub(super) fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        let view = self.view();
        let none = TopicEntry {
            id: 0,
            first: Sequence::FIRST,
        };
        let entry = view.topic(topic)?.unwrap_or(none);
        let tail = view.tail()?;
        let start = crate::log::start_of_read(from, entry.first, tail)?;
        let mut page = Page {
            records: Vec::new(),
            next: start,
            tail,
        };
        view.fill(entry.id, limit, &mut page)?;
        Ok(page)
    }

    /// The topic's newest records that lie before `before`, oldest first.
    pub(super) fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        let view = self.view();
        let Some(entry) = view.topic(topic)? else {
            return Ok(Vec::new());
        };
        let before = before.min(view.tail()?);
        let mut newest = Vec::new();
        let mut bytes = 0;
        for guard in view.range(entry.id, entry.first, before).rev() {
            let (key, value) = guard.into_inner().map_err(failed_read)?;
            let record = layout::decode_record(layout::sequence_of(&key)?, &value)?;
            bytes += record.payload.len();
            newest.push(Arc::new(record));
            if newest.len() >= limit.records || bytes >= limit.bytes {
                break;
            }
        }
        newest.reverse();
        Ok(newest)
    }

    pub(super) fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        let view = self.view();
        let tail = view.tail()?;
        let Some(entry) = view.topic(topic)? else {
            return Ok(tail);
        };
        let found = view.search(entry, tail, |value| Ok(layout::time_of(value)? < time))?;
        Ok(found.map_or(tail, |(sequence, _)| sequence))
    }

    /// The topic's first retained records that lie before `before`, at most [`TRIM_STEP`].
    pub(super) fn oldest(&self, topic: &Topic, before: Sequence) -> Result<Vec<Sequence>, Error> {
        let view = self.view();
        let Some(entry) = view.topic(topic)? else {
            return Ok(Vec::new());
        };
        view.range(entry.id, entry.first, before)
            .take(TRIM_STEP)
            .map(|guard| layout::sequence_of(&guard.key().map_err(failed_read)?))
            .collect()
    }

    /// Where the topic has to start so that it holds no record older than `oldest` and at most `bytes`.
    pub(super) fn retained_from(
        &self,
        topic: &Topic,
        oldest: Timestamp,
        bytes: u64,
    ) -> Result<Option<Cut>, Error> {
        let view = self.view();
        let Some(entry) = view.topic(topic)? else {
            return Ok(None);
        };
        let Some(last) = view.last(entry)? else {
            return Ok(None);
        };
        let is_dropped = |value: &[u8]| {
            let size = last.end - layout::start_of(value)?;
            Ok(layout::time_of(value)? < oldest || size > bytes)
        };
        // Most topics have nothing to drop, which their first record tells.
        let tail = last.sequence.next();
        let Some((_, oldest)) = view.first(entry.id, entry.first, tail)? else {
            return Ok(None);
        };
        if !is_dropped(&oldest)? {
            return Ok(None);
        }
        let (before, end) = match view.search(entry, tail, is_dropped)? {
            Some((kept, value)) => (kept, layout::start_of(&value)?),
            None => (tail, last.end),
        };
        let bytes = end - layout::start_of(&oldest)?;
        Ok(Some(Cut { before, bytes }))
    }

    /// Gives the disk back what holds only records that were trimmed from the topic. The database would get there by itself,
    /// but only as new records come in, which a full disk does not let happen. May wait for a running compaction.
    pub(super) fn reclaim(&self, topic: &Topic) -> Result<(), Error> {
        let Some(entry) = self.topic(topic)? else {
            return Ok(());
        };
        let from = layout::record_key(entry.id, Sequence(0));
        let to = layout::record_key(entry.id, entry.first);
        let dropped = self.records.tree.drop_range(from..to);
        dropped.map_err(|error| Error::Unavailable(error.to_string()))?;
        self.records.rotate_memtable().map_err(failed_read)?;
        // Files go with the last version that names them; versions are let go when a write buffer is put away after a write.
        let written = self.meta.insert(layout::META_RECLAIMED, []);
        written.map_err(failed_read)?;
        self.meta.rotate_memtable().map_err(failed_read)?;
        Ok(())
    }

    pub(super) fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        let tag = layout::space_tag(space);
        let after = after.map(layout::topic_key);
        let start = match &after {
            Some(key) => Bound::Excluded(key.as_slice()),
            None => Bound::Included(std::slice::from_ref(&tag)),
        };
        let end = [tag + 1];
        self.topics
            .range::<&[u8], _>((start, Bound::Excluded(end.as_slice())))
            .take(limit)
            .map(|guard| layout::topic_of(space, &guard.key().map_err(failed_read)?))
            .collect()
    }

    /// Bytes of the topic's records before `tail`.
    pub(super) fn bytes(&self, topic: &Topic, tail: Sequence) -> Result<u64, Error> {
        let view = self.view();
        let Some(entry) = view.topic(topic)? else {
            return Ok(0);
        };
        let Some((_, first)) = view.first(entry.id, entry.first, tail)? else {
            return Ok(0);
        };
        let Some(last) = view.range(entry.id, entry.first, tail).next_back() else {
            return Ok(0);
        };
        let end = layout::end_of(&last.value().map_err(failed_read)?)?;
        Ok(end.saturating_sub(layout::start_of(&first)?))
    }

    /// Values of the topic's records in `within`, from the first on, until they make `bytes`.
    pub(super) fn stored(
        &self,
        topic: u64,
        within: Range<Sequence>,
        bytes: usize,
    ) -> Result<Vec<(Sequence, UserValue)>, Error> {
        let (mut page, mut size) = (Vec::new(), 0);
        for guard in self.view().range(topic, within.start, within.end) {
            let (key, value) = guard.into_inner().map_err(failed_read)?;
            size += value.len();
            page.push((layout::sequence_of(&key)?, value));
            if size >= bytes {
                break;
            }
        }
        Ok(page)
    }

    /// At most `limit` of the topic's idempotency keys, after the hash `after`.
    pub(super) fn keys_of(
        &self,
        topic: u64,
        after: Option<[u8; 16]>,
        limit: usize,
    ) -> Result<Vec<([u8; 16], Known)>, Error> {
        let (from, to) = (
            layout::dedupe_key(topic, after.unwrap_or_default()),
            layout::dedupe_key(topic, [u8::MAX; 16]),
        );
        let from = match after {
            Some(_) => Bound::Excluded(from.as_slice()),
            None => Bound::Included(from.as_slice()),
        };
        self.keys
            .range::<&[u8], _>((from, Bound::Included(to.as_slice())))
            .take(limit)
            .map(|guard| {
                let (key, value) = guard.into_inner().map_err(failed_read)?;
                Ok((layout::hash_of(&key)?, layout::decode_known(&value)?))
            })
            .collect()
    }

    fn view(&self) -> View<'_> {
        View {
            store: self,
            snapshot: self.db.snapshot(),
        }
    }
}

/// The database at one moment.
struct View<'a> {
    store: &'a Store,
    snapshot: Snapshot,
}

impl View<'_> {
    fn topic(&self, topic: &Topic) -> Result<Option<TopicEntry>, Error> {
        let key = layout::topic_key(topic);
        decode_entry(
            self.snapshot
                .get(&self.store.topics, key)
                .map_err(failed_read)?,
        )
    }

    fn last(&self, entry: TopicEntry) -> Result<Option<Last>, Error> {
        let mut range = self.range(entry.id, entry.first, Sequence(u64::MAX));
        let Some(guard) = range.next_back() else {
            return Ok(None);
        };
        let (key, value) = guard.into_inner().map_err(failed_read)?;
        Ok(Some(Last {
            sequence: layout::sequence_of(&key)?,
            time: layout::time_of(&value)?,
            end: layout::end_of(&value)?,
        }))
    }

    /// The log's tail; it lies behind every record of this view.
    fn tail(&self) -> Result<Sequence, Error> {
        let stored = self.snapshot.get(&self.store.meta, layout::META_SEQUENCES);
        let next = stored.map_err(failed_read)?;
        next.map_or(Ok(Sequence::FIRST), |bytes| {
            layout::u64_at(&bytes, 0).map(Sequence)
        })
    }

    /// The topic's records in `from..to`.
    fn range(&self, topic: u64, from: Sequence, to: Sequence) -> fjall::Iter {
        let from = layout::record_key(topic, from);
        let to = layout::record_key(topic, to).max(from);
        self.snapshot.range(&self.store.records, from..to)
    }

    /// Adds the records from `page.next` on to the page.
    fn fill(&self, topic: u64, limit: Limit, page: &mut Page) -> Result<(), Error> {
        let mut bytes = 0;
        for guard in self.range(topic, page.next, page.tail) {
            let (key, value) = guard.into_inner().map_err(failed_read)?;
            let sequence = layout::sequence_of(&key)?;
            let record = layout::decode_record(sequence, &value)?;
            bytes += record.payload.len();
            page.records.push(Arc::new(record));
            page.next = sequence.next();
            if page.records.len() >= limit.records || bytes >= limit.bytes {
                return Ok(());
            }
        }
        page.next = page.tail;
        Ok(())
    }

    /// The topic's first record in `from..to`.
    fn first(
        &self,
        topic: u64,
        from: Sequence,
        to: Sequence,
    ) -> Result<Option<(Sequence, UserValue)>, Error> {
        let Some(guard) = self.range(topic, from, to).next() else {
            return Ok(None);
        };
        let (key, value) = guard.into_inner().map_err(failed_read)?;
        Ok(Some((layout::sequence_of(&key)?, value)))
    }

    /// The first record before `tail` that is not `before`. Records are sorted by `before`.
    fn search(
        &self,
        entry: TopicEntry,
        tail: Sequence,
        before: impl Fn(&[u8]) -> Result<bool, Error>,
    ) -> Result<Option<(Sequence, UserValue)>, Error> {
        let (mut low, mut high) = (entry.first, tail);
        let mut found = None;
        while low < high {
            let middle = Sequence(low.0 + (high.0 - low.0) / 2);
            match self.first(entry.id, middle, high)? {
                Some((sequence, value)) if before(&value)? => low = sequence.next(),
                Some(record) => {
                    found = Some(record);
                    high = middle;
                }
                None => high = middle,
            }
        }
        Ok(found)
    }
}

fn decode_entry(stored: Option<UserValue>) -> Result<Option<TopicEntry>, Error> {
    stored.map(|value| TopicEntry::decode(&value)).transpose()
}

/// Records are found by position or by range, never missed: no filters. Larger blocks make catching up cheaper.
fn records() -> KeyspaceCreateOptions {
    let leveled = Leveled::default().with_table_target_size(RECORDS_TABLE_BYTES);
    KeyspaceCreateOptions::default()
        .max_memtable_size(RECORDS_MEMTABLE_BYTES)
        .compaction_strategy(Arc::new(leveled))
        .filter_policy(FilterPolicy::disabled())
        .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
}

fn other() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(OTHER_MEMTABLE_BYTES)
}

/// A read that failed: the database is there but does not answer as it should.
fn failed_read(error: fjall::Error) -> Error {
    match error {
        fjall::Error::Io(error) => Error::Unavailable(error.to_string()),
        error => Error::Corrupt(error.to_string()),
    }
}

fn unusable(dir: &Path, cause: std::io::Error) -> OpenError {
    OpenError::Directory {
        path: dir.into(),
        cause,
    }
}

fn describe(dir: &Path, error: fjall::Error) -> OpenError {
    let path = dir.into();
    match error {
        fjall::Error::Locked => OpenError::InUse { path },
        fjall::Error::InvalidVersion(found) => OpenError::Format {
            path,
            found: found.map_or_else(|| "unknown".into(), |found| format!("fjall {found}")),
        },
        fjall::Error::Io(cause) => OpenError::Directory { path, cause },
        error => OpenError::Storage {
            path,
            cause: error.to_string(),
        },
    }
}
