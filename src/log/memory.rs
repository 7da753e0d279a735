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
    Ack, Bounds, Clock, Engine, Error, Follow, Follower, Health, Limit, LogId, NewRecord,
    Numbering, Outcome, Page, Record, Sequence, Space, Timestamp, Topic,
    clock::{SystemTime, TimeSource},
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
    id: LogId,
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

struct State {
    numbering: Numbering,
    topics: BTreeMap<Topic, Log>,
    keys: HashMap<DedupeKey, Known>,
    expiry: VecDeque<(Timestamp, DedupeKey)>,
    closed: bool,
}

struct Log {
    first: Sequence,
    records: VecDeque<Arc<Record>>,
    bytes: u64,
}

impl Memory {
    /// An empty engine.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self::with_time(options, Arc::new(SystemTime))
    }

    /// The same with clocks other than this machine's.
    #[must_use]
    pub fn with_time(options: Options, source: Arc<dyn TimeSource>) -> Self {
        let is_suspect = options.metrics.log_clock_suspect.clone();
        let clock = Clock::open(source, Timestamp::default(), is_suspect);
        let meters = Meters::new(options.metrics.clone());
        meters.health(&Health::Ready);
        Self {
            id: LogId::random(),
            meters,
            options,
            state: Mutex::new(State::new(clock)),
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
        let now = state.numbering.now();
        state.forget_keys(now.before(self.options.dedupe_window));
        Ok(state)
    }

    /// Runs `use_log` on the topic's log after retention, and on the tail of all; on an empty log when nobody wrote to it.
    fn with_log<T>(
        &self,
        topic: &Topic,
        use_log: impl FnOnce(&mut Log, Sequence) -> T,
    ) -> Result<T, Error> {
        let mut state = self.open_state()?;
        let tail = state.numbering.next();
        let now = state.numbering.for_expiry();
        let Some(log) = state.topics.get_mut(topic) else {
            return Ok(use_log(&mut Log::new(), tail));
        };
        let dropped = log.retain(self.options.retention.of(topic.space()), now);
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
        let (sequence, time) = state.numbering.assign();
        let log = state.topics.entry(topic.clone()).or_insert_with(Log::new);
        let record = log.push(record.into_record(sequence, time));
        self.meters.appended(topic.space(), 1, bytes);
        if let Some(fingerprint) = fingerprint {
            state.remember(&topic, &fingerprint, &record);
        }
        news.entry(topic).or_default().push(record);
        Outcome::Stored { sequence, time }
    }
}

#[async_trait]
impl Engine for Memory {
    fn id(&self) -> LogId {
        self.id
    }

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
        lock(&self.state).numbering.next()
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
        let tail = || Ok(self.open_state()?.numbering.next());
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
    fn new(clock: Clock) -> Self {
        Self {
            numbering: Numbering::new(Sequence::FIRST, clock),
            topics: BTreeMap::new(),
            keys: HashMap::new(),
            expiry: VecDeque::new(),
            closed: false,
        }
    }

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
            records: VecDeque::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, record: Record) -> Arc<Record> {
        let record = Arc::new(record);
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

    /// Drops what is too old, if the present is known, and too much; how many records that were.
    fn retain(&mut self, retention: Retention, now: Option<Timestamp>) -> u64 {
        let oldest = now.map_or(Timestamp::default(), |now| now.before(retention.age));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::clock::ManualTime;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn topic() -> Topic {
        Topic::new(Space::Room, "clocks").unwrap()
    }

    fn keyed(key: &str) -> NewRecord {
        NewRecord {
            topic: topic(),
            publisher: "".into(),
            id: "".into(),
            kind: 0,
            event_time: None,
            key: Some(key.into()),
            trace: None,
            payload: bytes::Bytes::from_static(b"x"),
        }
    }

    /// An engine that keeps records for 30 days and keys for one, by these clocks.
    fn memory(time: &ManualTime) -> Memory {
        let mut config = config::Log {
            dedupe_window: DAY,
            ..config::Log::default()
        };
        config.retention.room.age = 30 * DAY;
        let options = Options::new(&config, Metrics::new());
        Memory::with_time(options, Arc::new(time.clone()))
    }

    #[tokio::test]
    async fn a_wall_clock_that_jumps_drops_no_record_and_forgets_no_key() {
        let start = Timestamp::now();
        let time = ManualTime::new(start);
        let memory = memory(&time);
        let first = memory.append(keyed("k")).await.unwrap();
        time.set_wall(Timestamp(start.0 + 31 * 86_400_000_000_000));
        assert!(memory.last(&topic()).await.unwrap().is_some());
        let repeated = memory.append(keyed("k")).await.unwrap();
        assert!(matches!(repeated, Outcome::Duplicate { .. }));
        let Outcome::Stored { time: stored, .. } = memory.append(keyed("l")).await.unwrap() else {
            panic!("not stored after {first:?}");
        };
        assert_eq!(stored, start, "it carries no time of the jump");
        time.set_wall(start);
        // Time that passes on both clocks does drop and forget.
        for _ in 0..31 {
            time.pass(DAY);
            assert!(memory.last(&topic()).await.is_ok());
        }
        assert!(memory.last(&topic()).await.unwrap().is_none());
        let again = memory.append(keyed("k")).await.unwrap();
        assert!(matches!(again, Outcome::Stored { .. }));
    }
}
