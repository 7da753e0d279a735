//! What tests of the log share.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::{runtime::Handle, sync::watch};
use weir::{
    config::{self, Config, EngineKind},
    log::{
        self, Engine, Follower, Limit, NewRecord, Outcome, Page, Record, Sequence, Space, Topic,
    },
    telemetry::Metrics,
};

use crate::log_engines;

/// How long anything that is bound to happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Everything there is.
pub(crate) const ALL: Limit = Limit {
    records: usize::MAX,
    bytes: usize::MAX,
};

/// An engine and the directory it may use.
pub(crate) struct Rig {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) metrics: Metrics,
    /// What the engine runs on; dropped after it.
    _backend: log_engines::Backend,
    _dir: TempDir,
}

impl Rig {
    pub(crate) fn new(kind: EngineKind) -> Self {
        Self::with(kind, |_| {})
    }

    pub(crate) fn with(kind: EngineKind, change: impl FnOnce(&mut config::Log)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut log = settings(dir.path());
        log.engine = kind;
        change(&mut log);
        let mut config = Config {
            log,
            ..Config::default()
        };
        let backend = log_engines::prepare(&mut config);
        let metrics = Metrics::new();
        let opened = log::open(&config, None, metrics.clone());
        let opened = tokio::task::block_in_place(|| Handle::current().block_on(opened));
        Self {
            engine: opened.unwrap(),
            metrics,
            _backend: backend,
            _dir: dir,
        }
    }
}

/// Settings for a log in `dir` that needs little room.
pub(crate) fn settings(dir: &Path) -> config::Log {
    config::Log {
        dir: dir.join("log"),
        min_free: bytesize::ByteSize::b(0),
        ..config::Log::default()
    }
}

pub(crate) fn room(name: &str) -> Topic {
    Topic::new(Space::Room, name).unwrap()
}

pub(crate) fn record(topic: &Topic, payload: impl Into<Bytes>) -> NewRecord {
    NewRecord {
        topic: topic.clone(),
        publisher: "ada".into(),
        id: "id".into(),
        kind: 7,
        event_time: None,
        key: None,
        trace: None,
        payload: payload.into(),
    }
}

pub(crate) fn keyed(topic: &Topic, key: &str, payload: &'static str) -> NewRecord {
    NewRecord {
        key: Some(key.into()),
        ..record(topic, payload)
    }
}

/// Appends one batch and waits until it is durable.
pub(crate) async fn append(engine: &dyn Engine, batch: Vec<NewRecord>) -> Vec<Outcome> {
    engine.enqueue(batch).await.unwrap().await.unwrap()
}

/// Appends records with these payloads and returns their positions.
pub(crate) async fn append_all(
    engine: &dyn Engine,
    topic: &Topic,
    payloads: &[&'static str],
) -> Vec<Sequence> {
    let batch = payloads.iter().map(|text| record(topic, *text)).collect();
    append(engine, batch)
        .await
        .into_iter()
        .map(stored)
        .collect()
}

pub(crate) fn stored(outcome: Outcome) -> Sequence {
    match outcome {
        Outcome::Stored { sequence, .. } => sequence,
        other => panic!("not stored: {other:?}"),
    }
}

/// Reads from `from` to the tail, page by page, checking that pages join.
pub(crate) async fn read_on(
    engine: &dyn Engine,
    topic: &Topic,
    from: Sequence,
    limit: Limit,
) -> Vec<Arc<Record>> {
    let mut records = Vec::<Arc<Record>>::new();
    let mut at = from;
    loop {
        let Page {
            records: more,
            next,
            tail,
        } = engine.read(topic, at, limit).await.unwrap();
        assert!(
            more.iter()
                .all(|record| at <= record.sequence && record.sequence < next)
        );
        assert!(more.is_sorted_by(|a, b| a.sequence < b.sequence));
        assert!(next <= tail);
        assert!(
            next > at || next == tail,
            "a page before the tail has to lead on"
        );
        records.extend(more);
        if next == tail {
            return records;
        }
        at = next;
    }
}

/// Everything retained.
pub(crate) async fn read_all(engine: &dyn Engine, topic: &Topic) -> Vec<Arc<Record>> {
    let first = engine.bounds(topic).await.unwrap().first;
    read_on(engine, topic, first, ALL).await
}

pub(crate) fn payloads(records: &[Arc<Record>]) -> Vec<String> {
    let text = |record: &Arc<Record>| String::from_utf8_lossy(&record.payload).into_owned();
    records.iter().map(text).collect()
}

/// Tries again until it holds; fails the test at a deadline far beyond what it takes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let tries = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, tries).await.is_ok(),
        "never happened: {what}"
    );
}

/// Copies a directory as a crash would leave it: all files as of one moment. Files that come or go while it copies, as those
/// of a compaction do, make it copy again.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let before = files(from);
        let copied = copy_tree(from, to);
        if copied.is_ok()
            && before.is_ok_and(|before| files(from).is_ok_and(|after| after == before))
        {
            return;
        }
        assert!(Instant::now() < deadline, "never quiet: {}", from.display());
        fs::remove_dir_all(to).unwrap();
    }
}

/// Every file below `dir` with its length.
fn files(dir: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let (entry, path) = entry.map(|entry| (entry.metadata(), entry.path()))?;
        match entry? {
            meta if meta.is_dir() => all.extend(files(&path)?),
            meta => drop(all.insert(path, meta.len())),
        }
    }
    Ok(all)
}

/// Later files first: what an earlier one holds was written before, so a copy of it has all of that.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            copy_file(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Copies a file from its end to its start: what lies before a piece was written before it, and is there when that is read.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    const PIECE: u64 = 64 * 1024;
    let from = fs::File::open(from)?;
    let to = fs::File::create(to)?;
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut end = len;
    while end > 0 {
        let start = (end - 1) / PIECE * PIECE;
        let mut piece = vec![0; usize::try_from(end - start).unwrap()];
        from.read_exact_at(&mut piece, start)?;
        // What was only set aside stays a hole.
        if piece.iter().any(|byte| *byte != 0) {
            to.write_all_at(&piece, start)?;
        }
        end = start;
    }
    Ok(())
}

/// A follower that keeps what it is called with and checks the contract of the calls.
pub(crate) struct Feed {
    seen: Mutex<Seen>,
    calls: watch::Sender<usize>,
}

#[derive(Default)]
pub(crate) struct Seen {
    /// Where the feed began; none before the first call.
    pub(crate) start: Option<Sequence>,
    pub(crate) next: Sequence,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) calls_with_records: usize,
}

impl Feed {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            calls: watch::Sender::new(0),
        })
    }

    pub(crate) fn weak(self: &Arc<Self>) -> Weak<dyn Follower> {
        let feed: Arc<dyn Follower> = self.clone();
        Arc::downgrade(&feed)
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    /// Waits until what was seen satisfies `is_enough`.
    pub(crate) async fn until(&self, is_enough: impl Fn(&Seen) -> bool) {
        let mut calls = self.calls.subscribe();
        let enough = calls.wait_for(|_| self.seen(&is_enough));
        let waited = tokio::time::timeout(DEADLINE, enough).await;
        assert!(
            waited.is_ok(),
            "the feed never got there: {} records",
            self.seen(|seen| seen.records.len())
        );
    }

    /// The position it begins at, once known.
    pub(crate) async fn start(&self) -> Sequence {
        self.until(|seen| seen.start.is_some()).await;
        self.seen(|seen| seen.start.unwrap())
    }
}

impl Follower for Feed {
    fn records(&self, from: Sequence, next: Sequence, records: &[Arc<Record>]) {
        let mut seen = self.seen.try_lock().expect("two calls at the same time");
        if seen.start.is_some() {
            assert_eq!(
                from, seen.next,
                "a feed of one node has no gap and no repeat"
            );
        } else {
            seen.start = Some(from);
        }
        assert!(
            records
                .iter()
                .all(|record| from <= record.sequence && record.sequence < next)
        );
        assert!(records.is_sorted_by(|a, b| a.sequence < b.sequence));
        seen.next = next;
        seen.calls_with_records += usize::from(!records.is_empty());
        seen.records.extend_from_slice(records);
        drop(seen);
        self.calls.send_modify(|calls| *calls += 1);
    }
}
