//! The engine in memory, for tests: it keeps the whole contract but survives nothing.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Ack, Bounds, Engine, Error, Follow, Follower, Health, Limit, NewRecord, Outcome, Page, Record,
    Sequence, Space, Timestamp, Topic,
    dedupe::{Fingerprint, Known},
    followers::Followers,
    meters::Meters,
};
use crate::{
    config::{self, Retention, RetentionBySpace},
    telemetry::Metrics,
};

/// How a [`Memory`] behaves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long an idempotency key is remembered.
    pub dedupe_window: Duration,
    /// How long and how much of each topic is kept.
    pub retention: RetentionBySpace,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Options {
    /// What `config` says.
    #[must_use]
    pub fn new(config: &config::Log, metrics: Metrics) -> Self {
        Self {
            dedupe_window: config.dedupe_window,
            retention: config.retention.clone(),
            metrics,
        }
    }
}

/// An engine that holds everything in memory. Appends are acknowledged at once; retention is applied on every use of a
/// topic.
pub struct Memory {
    options: Options,
    meters: Meters,
    state: Mutex<State>,
    /// Locked before `state`, while records are stored and shown.
    followers: Followers,
    /// See [`Engine::shown`].
    shown: AtomicU64,
    health: watch::Sender<Health>,
}

type DedupeKey = (Topic, [u8; 16]);
/// New records of each topic, to be shown to its followers; never empty.
type News = BTreeMap<Topic, Vec<Arc<Record>>>;

#[derive(Default)]
struct State {
    /// The last sequence used, by any topic.
    last: Sequence,
    topics: BTreeMap<Topic, Log>,
    keys: HashMap<DedupeKey, Known>,
    expiry: VecDeque<(Timestamp, DedupeKey)>,
    closed: bool,
}

struct Log {
    first: Sequence,
    last_time: Timestamp,
    records: VecDeque<Arc<Record>>,
    bytes: u64,
}

impl Memory {
    /// An empty engine.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let meters = Meters::new(options.metrics.clone());
        meters.health(&Health::Ready);
        Self {
            meters,
            options,
            state: Mutex::default(),
            followers: Followers::default(),
            shown: AtomicU64::new(0),
            health: watch::Sender::new(Health::Ready),
        }
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Error::Closed);
        }
        state.forget_keys(Timestamp::now().before(self.options.dedupe_window));
        Ok(state)
    }

    /// Runs `use_log` on the topic's log after retention, and on the tail of all; on an empty log when nobody wrote to it.
    fn with_log<T>(
        &self,
        topic: &Topic,
        use_log: impl FnOnce(&mut Log, Sequence) -> T,
    ) -> Result<T, Error> {
        let mut state = self.open_state()?;
        let tail = state.last.next();
        let Some(log) = state.topics.get_mut(topic) else {
            return Ok(use_log(&mut Log::new(), tail));
        };
        let dropped = log.retain(self.options.retention.of(topic.space()));
        self.meters.trimmed(topic.space(), dropped);
        Ok(use_log(log, tail))
    }

    fn store(&self, batch: Vec<NewRecord>) -> Result<(Vec<Outcome>, News), Error> {
        let mut state = self.open_state()?;
        let mut news = News::new();
        let outcomes = batch
            .into_iter()
            .map(|record| self.store_one(&mut state, record, &mut news))
            .collect();
        Ok((outcomes, news))
    }

    fn store_one(&self, state: &mut State, record: NewRecord, news: &mut News) -> Outcome {
        let fingerprint = Fingerprint::of(&record);
        let topic = record.topic.clone();
        if let Some(fingerprint) = &fingerprint
            && let Some(known) = state.keys.get(&(topic.clone(), fingerprint.key))
        {
            self.meters.metrics.deduplicated.inc();
            return known.repeated_by(fingerprint);
        }
        let bytes = record.size() as u64;
        state.last = state.last.next();
        let log = state.topics.entry(topic.clone()).or_insert_with(Log::new);
        let record = log.push(record, state.last);
        self.meters.appended(topic.space(), 1, bytes);
        if let Some(fingerprint) = fingerprint {
            state.remember(&topic, &fingerprint, &record);
        }
        let (sequence, time) = (record.sequence, record.time);
        news.entry(topic).or_default().push(record);
        Outcome::Stored { sequence, time }
    }
}

#[async_trait]
impl Engine for Memory {
    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, Error> {
        let queued = Instant::now();
        let (resolve, ack) = Ack::pending();
        let mut followers = self.followers.lock();
        let (outcomes, news) = self.store(batch)?;
        for (topic, records) in &news {
            if let Some(last) = records.last() {
                followers.show(topic, last.sequence.next(), records);
            }
        }
        self.shown.store(self.tail().0, Ordering::Release);
        drop(followers);
        let append_secs = &self.meters.metrics.append_secs;
        append_secs.observe(queued.elapsed().as_secs_f64());
        // A dropped ack means that nobody asks.
        let _ = resolve.send(Ok(outcomes));
        Ok(ack)
    }

    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        self.with_log(topic, |log, tail| log.read(from, tail, limit))?
    }

    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        self.with_log(topic, |log, tail| log.seek(time).unwrap_or(tail))
    }

    fn tail(&self) -> Sequence {
        lock(&self.state).last.next()
    }

    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        self.with_log(topic, |log, _| log.newest(before, limit))
    }

    async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        self.with_log(topic, |log, tail| Bounds {
            first: log.first,
            tail,
        })
    }

    async fn follow(&self, topic: &Topic, follower: Weak<dyn Follower>) -> Result<Follow, Error> {
        let tail = || Ok(self.open_state()?.last.next());
        self.followers.follow(topic, follower, tail)
    }

    fn shown(&self) -> Sequence {
        Sequence(self.shown.load(Ordering::Acquire))
    }

    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        let dropped = self.with_log(topic, |log, _| log.trim(before))?;
        self.meters.trimmed(topic.space(), dropped);
        Ok(())
    }

    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        let state = self.open_state()?;
        let topics = state.topics.keys();
        Ok(topics
            .filter(|topic| topic.space() == space && after.is_none_or(|after| *topic > after))
            .take(limit)
            .cloned()
            .collect())
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    async fn close(&self) {
        lock(&self.state).closed = true;
        self.meters.health(&Health::Closed);
        self.health.send_replace(Health::Closed);
    }
}

impl State {
    fn remember(&mut self, topic: &Topic, fingerprint: &Fingerprint, record: &Record) {
        let key = (topic.clone(), fingerprint.key);
        let known = Known {
            sequence: record.sequence,
            time: record.time,
            content: fingerprint.content,
        };
        self.keys.insert(key.clone(), known);
        self.expiry.push_back((record.time, key));
    }

    fn forget_keys(&mut self, before: Timestamp) {
        while let Some((time, _)) = self.expiry.front()
            && *time < before
            && let Some((_, key)) = self.expiry.pop_front()
        {
            self.keys.remove(&key);
        }
    }
}

impl Log {
    const fn new() -> Self {
        Self {
            first: Sequence::FIRST,
            last_time: Timestamp(0),
            records: VecDeque::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, record: NewRecord, sequence: Sequence) -> Arc<Record> {
        let time = Timestamp::now().max(self.last_time);
        let record = Arc::new(record.into_record(sequence, time));
        self.last_time = time;
        self.bytes += record.size() as u64;
        self.records.push_back(record.clone());
        record
    }

    /// Drops the records before `before`; how many there were.
    fn trim(&mut self, before: Sequence) -> u64 {
        let dropped = self.position(before);
        for record in self.records.drain(..dropped) {
            self.bytes -= record.size() as u64;
            self.first = record.sequence.next();
        }
        dropped as u64
    }

    fn retain(&mut self, retention: Retention) -> u64 {
        let oldest = Timestamp::now().before(retention.age);
        let mut bytes = self.bytes;
        let mut first = self.first;
        for record in &self.records {
            if record.time >= oldest && bytes <= retention.bytes.as_u64() {
                break;
            }
            bytes -= record.size() as u64;
            first = record.sequence.next();
        }
        self.trim(first)
    }

    fn read(&self, from: Sequence, tail: Sequence, limit: Limit) -> Result<Page, Error> {
        let start = super::start_of_read(from, self.first, tail)?;
        let mut page = Page {
            records: Vec::new(),
            next: tail,
            tail,
        };
        let mut bytes = 0;
        for record in self.records.iter().skip(self.position(start)) {
            bytes += record.payload.len();
            page.records.push(record.clone());
            if page.records.len() >= limit.records || bytes >= limit.bytes {
                page.next = record.sequence.next();
                break;
            }
        }
        Ok(page)
    }

    fn newest(&self, before: Sequence, limit: Limit) -> Vec<Arc<Record>> {
        super::newest_of(self.records.range(..self.position(before)), limit)
    }

    fn seek(&self, time: Timestamp) -> Option<Sequence> {
        let before = self.records.partition_point(|record| record.time < time);
        self.records.get(before).map(|record| record.sequence)
    }

    /// How many records lie before `sequence`.
    fn position(&self, sequence: Sequence) -> usize {
        self.records
            .partition_point(|record| record.sequence < sequence)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
