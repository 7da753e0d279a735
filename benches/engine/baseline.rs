//! A log on fjall, an LSM tree: a thread groups what waits into batches that are flushed once. The former engine of Weir had this
//! shape and these options; what it did beside (keys, followers, a full disk) is left out, so it is a little faster here.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _, UserKey, UserValue,
    compaction::Leveled,
    config::{BlockSizePolicy, FilterPolicy},
};
use tokio::sync::{Semaphore, oneshot};
use weir::log::{NewRecord, Page, Sequence, Timestamp, Topic, decode, encode};

use crate::side::PAGE;

const COMMIT_BYTES: usize = 8 * 1024 * 1024;
const COMMIT_RECORDS: usize = 16 * 1024;
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// The position in the topic's bytes, before the record.
const START_BYTES: usize = 8;

pub(crate) struct Baseline {
    shared: Arc<Shared>,
    appends: Option<mpsc::Sender<Append>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    db: Database,
    records: Keyspace,
    topics: Keyspace,
    meta: Keyspace,
    ids: Mutex<HashMap<Topic, u64>>,
    /// The first sequence not written yet.
    tail: AtomicU64,
    queue: Semaphore,
}

struct Append {
    batch: Vec<NewRecord>,
    size: usize,
    ack: oneshot::Sender<()>,
}

impl Baseline {
    pub(crate) fn open(dir: &Path) -> Self {
        let shared = Arc::new(Shared::open(dir));
        let (appends, waiting) = mpsc::channel();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || of_thread.commit_all(&waiting));
        Self {
            shared,
            appends: Some(appends),
            thread: Some(thread),
        }
    }

    pub(crate) async fn enqueue(&self, batch: Vec<NewRecord>) -> oneshot::Receiver<()> {
        let size = batch.iter().map(NewRecord::size).sum::<usize>();
        let permits = u32::try_from(size.min(QUEUE_BYTES)).unwrap();
        let permit = self.shared.queue.acquire_many(permits).await.unwrap();
        permit.forget();
        let (ack, done) = oneshot::channel();
        let append = Append { batch, size, ack };
        self.appends.as_ref().unwrap().send(append).unwrap();
        done
    }

    pub(crate) async fn read(&self, topic: &Topic, from: Sequence) -> Page {
        let shared = self.shared.clone();
        let topic = topic.clone();
        tokio::task::spawn_blocking(move || shared.page(&topic, from))
            .await
            .unwrap()
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        self.appends = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Shared {
    fn open(dir: &Path) -> Self {
        let db = Database::builder(dir)
            .cache_size(64 * 1024 * 1024)
            .worker_threads(2)
            .max_journaling_size(128 * 1024 * 1024)
            .journal_compression(fjall::CompressionType::None)
            .open()
            .unwrap();
        let meta = db.keyspace("meta", other).unwrap();
        let number = |name: &str| {
            let stored = meta.get(name).unwrap();
            stored.map_or(1, |bytes| {
                u64::from_be_bytes(bytes[..8].try_into().unwrap())
            })
        };
        let tail = AtomicU64::new(number("sequences"));
        Self {
            records: db.keyspace("records", records).unwrap(),
            topics: db.keyspace("topics", other).unwrap(),
            meta,
            ids: Mutex::default(),
            tail,
            queue: Semaphore::new(QUEUE_BYTES),
            db,
        }
    }

    fn commit_all(&self, waiting: &mpsc::Receiver<Append>) {
        let mut ends = HashMap::new();
        while let Ok(first) = waiting.recv() {
            let mut bytes = first.size;
            let mut records = first.batch.len();
            let mut appends = vec![first];
            while bytes < COMMIT_BYTES && records < COMMIT_RECORDS {
                let Ok(append) = waiting.try_recv() else {
                    break;
                };
                bytes += append.size;
                records += append.batch.len();
                appends.push(append);
            }
            self.commit(appends, &mut ends);
            self.queue.add_permits(bytes);
        }
    }

    fn commit(&self, appends: Vec<Append>, ends: &mut HashMap<u64, u64>) {
        let now = Timestamp::now();
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        let mut next = self.tail.load(Ordering::Acquire);
        let mut value = Vec::new();
        let mut acks = Vec::with_capacity(appends.len());
        for append in appends {
            for record in append.batch {
                let id = self.id_of(&record.topic, &mut batch);
                let end = ends.entry(id).or_default();
                value.clear();
                value.extend(end.to_be_bytes());
                encode(&record, now, &mut value);
                *end += value.len() as u64;
                let key = UserKey::from(key(id, next));
                batch.insert(&self.records, key, UserValue::from(value.as_slice()));
                next += 1;
            }
            acks.push(append.ack);
        }
        batch.insert(&self.meta, "sequences", next.to_be_bytes());
        batch.commit().unwrap();
        self.tail.store(next, Ordering::Release);
        for ack in acks {
            ack.send(()).ok();
        }
    }

    fn id_of(&self, topic: &Topic, batch: &mut fjall::OwnedWriteBatch) -> u64 {
        let mut ids = self.ids.lock().unwrap();
        if let Some(id) = ids.get(topic) {
            return *id;
        }
        let id = ids.len() as u64 + 1;
        ids.insert(topic.clone(), id);
        let entry = key(id, 1);
        batch.insert(&self.topics, topic.name(), entry);
        batch.insert(&self.meta, "topics", (id + 1).to_be_bytes());
        id
    }

    fn page(&self, topic: &Topic, from: Sequence) -> Page {
        let tail = self.tail.load(Ordering::Acquire);
        let snapshot = self.db.snapshot();
        let entry = snapshot.get(&self.topics, topic.name()).unwrap().unwrap();
        let id = u64::from_be_bytes(entry[..8].try_into().unwrap());
        let mut page = Page {
            records: Vec::new(),
            next: Sequence(tail),
            tail: Sequence(tail),
        };
        let mut bytes = 0;
        for guard in snapshot.range(&self.records, key(id, from.0)..key(id, tail)) {
            let (key, value) = guard.into_inner().unwrap();
            let sequence = Sequence(u64::from_be_bytes(key[8..16].try_into().unwrap()));
            let stored = Bytes::copy_from_slice(&value[START_BYTES..]);
            let record = decode(sequence, stored).unwrap();
            bytes += record.payload.len();
            page.records.push(Arc::new(record));
            if page.records.len() >= PAGE.records || bytes >= PAGE.bytes {
                page.next = sequence.next();
                break;
            }
        }
        page
    }
}

fn key(topic: u64, sequence: u64) -> [u8; 16] {
    ((u128::from(topic) << 64) | u128::from(sequence)).to_be_bytes()
}

fn records() -> KeyspaceCreateOptions {
    let leveled = Leveled::default().with_table_target_size(16 * 1024 * 1024);
    KeyspaceCreateOptions::default()
        .max_memtable_size(8 * 1024 * 1024)
        .compaction_strategy(Arc::new(leveled))
        .filter_policy(FilterPolicy::disabled())
        .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
}

fn other() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(2 * 1024 * 1024)
}
