//! Several topics as one subscription, against a model: random appends, feeds that show their records late and in any order
//! among topics, reads that take their time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, Weak},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use proptest::prelude::*;
use tokio::{sync::watch, task::yield_now};
use weir::{
    config,
    core::{
        Hub, Topics,
        hub::{Merged, Start},
    },
    log::{
        Ack, Bounds, Engine, Error, Follow, Follower, Health, Limit, LogId, NewRecord, Outcome,
        Page, Record, Sequence, Space, Timestamp, Topic,
        memory::{Memory, Options},
    },
    telemetry::{Metrics, Traces},
};

use crate::support::soon;

const TOPICS: usize = 3;

fn topic(number: usize) -> Topic {
    Topic::new(Space::Data, &number.to_string()).unwrap()
}

fn followed() -> Vec<Topic> {
    (0..TOPICS).map(topic).collect()
}

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    /// One batch of records, of these topics; topic `TOPICS` is followed by nobody.
    Append(Vec<usize>),
    /// The feed of a topic shows what is stored of it.
    Show(usize),
    /// The reader takes what is there.
    Poll,
    /// Retention drops what the reader has seen of a topic.
    Trim(usize),
    /// The reader goes away and comes back where it was.
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(0..=TOPICS, 1..6).prop_map(Step::Append),
        3 => (0..TOPICS).prop_map(Step::Show),
        4 => Just(Step::Poll),
        1 => (0..TOPICS).prop_map(Step::Trim),
        1 => Just(Step::Resume),
    ];
    prop::collection::vec(step, 1..60)
}

/// A log whose feeds show records when they are told to.
struct Rig {
    engine: Arc<Late>,
    topics: Topics,
    /// Everything stored in topics that are followed.
    stored: Vec<(Topic, Sequence)>,
}

impl Rig {
    fn new(tail_bytes: u64, read_turns: usize) -> Self {
        let metrics = Metrics::new();
        let options = Options::new(&config::Log::default(), metrics.clone());
        let engine = Arc::new(Late {
            inner: Memory::new(options),
            relays: Relays::default(),
            read_turns,
        });
        let config = config::Hub {
            tail: bytesize::ByteSize(tail_bytes),
            ..config::Hub::default()
        };
        let hub = Hub::new(engine.clone(), &config, metrics, Traces::off());
        Self {
            topics: Topics::new(engine.clone(), hub, Traces::off()),
            engine,
            stored: Vec::new(),
        }
    }

    async fn append(&mut self, of: &[usize]) {
        let record = |number: &usize| NewRecord {
            topic: topic(*number),
            publisher: "p".into(),
            id: "i".into(),
            kind: 0,
            event_time: None,
            key: None,
            trace: None,
            payload: Bytes::from_static(&[b'x'; 50]),
        };
        let batch = of.iter().map(record).collect();
        let outcomes = self.engine.enqueue(batch).await.unwrap().await.unwrap();
        for (number, outcome) in of.iter().zip(outcomes) {
            let Outcome::Stored { sequence, .. } = outcome else {
                panic!("{outcome:?}");
            };
            if *number < TOPICS {
                self.stored.push((topic(*number), sequence));
            }
        }
    }
}

fn positions(records: Vec<(Topic, Arc<Record>)>) -> Vec<(Topic, Sequence)> {
    let records = records.into_iter();
    records
        .map(|(topic, record)| (topic, record.sequence))
        .collect()
}

/// A position is right when it parts what was delivered from what was not.
fn check_cursor(rig: &Rig, merged: &Merged, start: Sequence, got: &[(Topic, Sequence)]) {
    let due = rig.stored.iter().filter(|(_, at)| *at >= start);
    let before: Vec<_> = due
        .filter(|(_, at)| *at < merged.cursor())
        .cloned()
        .collect();
    assert_eq!(got, before, "up to {}", merged.cursor());
}

async fn run(steps: Vec<Step>, before: Vec<usize>, live: bool, tail: u64, turns: usize) {
    let mut rig = Rig::new(tail, turns);
    if !before.is_empty() {
        rig.append(&before).await;
    }
    let start = if live {
        Start::Live
    } else {
        Start::After(Sequence(0))
    };
    let mut merged = rig.topics.merge(&followed(), start).await.unwrap();
    let first = match live {
        true => Sequence(before.len() as u64 + 1),
        false => Sequence::FIRST,
    };
    let mut got = Vec::new();
    for step in steps {
        match step {
            Step::Append(of) => rig.append(&of).await,
            Step::Show(number) => rig.engine.show(&topic(number)),
            Step::Poll => {
                if let Some(records) = merged.next().now_or_never() {
                    got.extend(positions(records.unwrap()));
                }
            }
            Step::Trim(number) => {
                let cursor = merged.cursor();
                rig.topics.trim(&topic(number), cursor).await.unwrap();
            }
            Step::Resume => {
                let after = Start::After(Sequence(merged.cursor().0 - 1));
                drop(merged);
                merged = rig.topics.merge(&followed(), after).await.unwrap();
            }
        }
        check_cursor(&rig, &merged, first, &got);
    }
    let due: Vec<_> = rig
        .stored
        .iter()
        .filter(|(_, at)| *at >= first)
        .cloned()
        .collect();
    for number in 0..TOPICS {
        rig.engine.show(&topic(number));
    }
    while got.len() < due.len() {
        let records = soon("what is left", merged.next()).await.unwrap();
        assert!(!records.is_empty());
        got.extend(positions(records));
        check_cursor(&rig, &merged, first, &got);
    }
    assert_eq!(got, due);
    for _ in 0..10 {
        assert!(merged.next().now_or_never().is_none(), "nothing is left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn topics_merge_in_the_order_of_the_log_and_every_position_resumes_them(
        steps in steps(),
        before in prop::collection::vec(0..=TOPICS, 0..10),
        live: bool,
        tail in prop_oneof![Just(200), Just(1 << 20)],
        turns in 0..3usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps, before, live, tail, turns));
    }

    #[test]
    fn a_reader_that_waits_is_woken(batches in prop::collection::vec(
        (prop::collection::vec(0..=TOPICS, 1..4), 0..TOPICS), 1..30), turns in 0..3usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut rig = Rig::new(200, turns);
            let mut merged = rig.topics.merge(&followed(), Start::Live).await.unwrap();
            let count: usize = batches.iter().flat_map(|(of, _)| of).filter(|of| **of < TOPICS).count();
            let reader = tokio::spawn(async move {
                let mut got = Vec::new();
                while got.len() < count {
                    got.extend(positions(merged.next().await.unwrap()));
                }
                got
            });
            for (of, shown) in batches {
                rig.append(&of).await;
                yield_now().await;
                rig.engine.show(&topic(shown));
                yield_now().await;
            }
            for number in 0..TOPICS {
                rig.engine.show(&topic(number));
                yield_now().await;
            }
            assert_eq!(soon("all of them", reader).await.unwrap(), rig.stored);
        });
    }
}

/// The engine in memory, except that its feeds wait to be told to show, and reads give up their turn before they answer with
/// what they saw.
struct Late {
    inner: Memory,
    relays: Relays,
    read_turns: usize,
}

type Relays = Arc<Mutex<HashMap<Topic, Weak<Relay>>>>;

/// A call that was held back.
type Held = (Sequence, Sequence, Vec<Arc<Record>>);

/// Stands between the engine and the hub.
struct Relay {
    to: Weak<dyn Follower>,
    held: Mutex<VecDeque<Held>>,
}

impl Follower for Relay {
    fn records(&self, from: Sequence, next: Sequence, records: &[Arc<Record>]) {
        match (records.is_empty(), self.to.upgrade()) {
            (true, Some(to)) => to.records(from, next, records),
            _ => self
                .held
                .lock()
                .unwrap()
                .push_back((from, next, records.to_vec())),
        }
    }
}

impl Late {
    /// Shows the records of `topic` that were held back.
    fn show(&self, topic: &Topic) {
        let relay = self
            .relays
            .lock()
            .unwrap()
            .get(topic)
            .and_then(Weak::upgrade);
        let Some(relay) = relay else { return };
        let held = std::mem::take(&mut *relay.held.lock().unwrap());
        for (from, next, records) in held {
            if let Some(to) = relay.to.upgrade() {
                to.records(from, next, &records);
            }
        }
    }
}

#[async_trait]
impl Engine for Late {
    fn id(&self) -> LogId {
        self.inner.id()
    }

    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, Error> {
        self.inner.enqueue(batch).await
    }

    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        let page = self.inner.read(topic, from, limit).await;
        for _ in 0..self.read_turns {
            yield_now().await;
        }
        page
    }

    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        self.inner.seek(topic, time).await
    }

    fn tail(&self) -> Sequence {
        self.inner.tail()
    }

    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        self.inner.newest(topic, before, limit).await
    }

    async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        self.inner.bounds(topic).await
    }

    async fn follow(&self, topic: &Topic, follower: Weak<dyn Follower>) -> Result<Follow, Error> {
        let relay = Arc::new(Relay {
            to: follower,
            held: Mutex::default(),
        });
        let weak = Arc::downgrade(&relay);
        self.relays.lock().unwrap().insert(topic.clone(), weak);
        let weak = Arc::downgrade(&relay) as Weak<dyn Follower>;
        let follow = self.inner.follow(topic, weak).await?;
        Ok(Follow::new(move || drop((follow, relay))))
    }

    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        self.inner.trim(topic, before).await
    }

    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        self.inner.topics(space, after, limit).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
