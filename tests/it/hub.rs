//! The hub on the engine in memory: cursors, tails, wire forms, and a feed that loses records.

use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::watch;
use weir::{
    config,
    core::{
        Hub, Readiness,
        canary::Canary,
        hub::{Encoded, Encoding, Records, Start, Subscription, View},
        readiness::Condition,
    },
    log::{
        Ack, Bounds, Engine, Error, Follow, Follower, Health, Limit, LogId, NewRecord, Page,
        Record, Sequence, Space, Timestamp, Topic,
        memory::{Memory, Options},
    },
    telemetry::{Metrics, Traces},
};

use crate::support::{eventually, soon};

/// A wire form of two bytes a record: its payload's length and a mark.
struct Marked;

impl Encoding for Marked {
    fn encode(_: &Topic, record: &Record, out: &mut BytesMut) {
        out.put_slice(&record.payload);
        out.put_u8(b';');
    }
}

struct Rig {
    engine: Arc<Ears>,
    hub: Hub,
    metrics: Metrics,
    topic: Topic,
}

impl Rig {
    fn new(tail_bytes: u64) -> Self {
        let metrics = Metrics::new();
        let mut options = Options::new(&config::Log::default(), metrics.clone());
        options.dedupe_window = std::time::Duration::from_secs(60);
        let engine = Arc::new(Ears::new(Memory::new(options)));
        let config = config::Hub {
            tail: bytesize::ByteSize(tail_bytes),
            ..config::Hub::default()
        };
        Self {
            hub: Hub::new(engine.clone(), &config, metrics.clone(), Traces::off()),
            engine,
            metrics,
            topic: Topic::new(Space::Room, "r").unwrap(),
        }
    }

    async fn publish(&self, payload: &str) -> Sequence {
        let record = NewRecord {
            topic: self.topic.clone(),
            publisher: "p".into(),
            id: "i".into(),
            kind: 0,
            event_time: None,
            key: None,
            trace: None,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        let outcomes = self.engine.enqueue(vec![record]).await.unwrap().await;
        match outcomes.unwrap()[..] {
            [weir::log::Outcome::Stored { sequence, .. }] => sequence,
            ref other => panic!("not stored: {other:?}"),
        }
    }

    async fn subscribe<V: View>(&self, start: Start, view: V) -> Subscription<V> {
        soon(
            "a subscription",
            self.hub.subscribe(&self.topic, start, view),
        )
        .await
        .unwrap()
    }
}

/// What `count` records bring.
async fn payloads(subscription: &mut Subscription<Records>, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = soon("a batch", subscription.next()).await.unwrap();
        all.extend(
            batch
                .data
                .iter()
                .map(|record| String::from_utf8(record.payload.to_vec()).unwrap()),
        );
    }
    all
}

async fn text(subscription: &mut Subscription<Encoded<Marked>>, records: usize) -> String {
    let (mut all, mut count) = (String::new(), 0);
    while count < records {
        let batch = soon("a batch", subscription.next()).await.unwrap();
        all += std::str::from_utf8(&batch.data).unwrap();
        count += batch.records;
    }
    all
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_cursor_that_left_the_tail_reads_the_log_and_comes_back() {
    let rig = Rig::new(1000);
    let mut slow = rig.subscribe(Start::Live, Records).await;
    let mut quick = rig
        .subscribe(Start::Live, Encoded::<Marked>::default())
        .await;
    let mut heard = String::new();
    for number in 0..3000 {
        rig.publish(&number.to_string()).await;
        if number % 7 == 0 {
            let batch = soon("a batch", quick.next()).await.unwrap();
            heard += std::str::from_utf8(&batch.data).unwrap();
        }
    }
    let held = rig.metrics.tail_bytes.get();
    assert!(held <= 1300, "the tail holds {held} bytes");
    assert_eq!(payloads(&mut slow, 3000).await, numbers(0..3000));
    heard += &text(&mut quick, 3000 - heard.matches(';').count()).await;
    let expected: String = numbers(0..3000)
        .iter()
        .map(|number| format!("{number};"))
        .collect();
    assert_eq!(heard, expected);
    rig.publish("live again").await;
    assert_eq!(payloads(&mut slow, 1).await, ["live again"]);
    assert_eq!(text(&mut quick, 1).await, "live again;");
}

#[tokio::test]
async fn the_seam_between_history_and_live_has_no_gap_and_no_repeat() {
    let rig = Arc::new(Rig::new(500));
    for number in 0..200 {
        rig.publish(&number.to_string()).await;
    }
    let publishing = tokio::spawn({
        let rig = rig.clone();
        async move {
            for number in 200..2000 {
                rig.publish(&number.to_string()).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut subscription = rig.subscribe(Start::After(Sequence(0)), Records).await;
    assert_eq!(payloads(&mut subscription, 2000).await, numbers(0..2000));
    publishing.await.unwrap();
}

#[tokio::test]
async fn subscribers_of_one_wire_type_at_any_position_get_their_own_suffix() {
    let rig = Rig::new(1 << 20);
    let mut subscriptions = Vec::new();
    for number in 0..300 {
        subscriptions.push(
            rig.subscribe(Start::Live, Encoded::<Marked>::default())
                .await,
        );
        rig.publish(&number.to_string()).await;
        // Some poll at once, so that the wire form grows in many small chunks which others then lag behind.
        if number % 3 == 0 {
            assert!(text(&mut subscriptions[0], 1).await.ends_with(';'));
        }
    }
    for (first, subscription) in (0..300).zip(&mut subscriptions).skip(1) {
        let expected: String = numbers(first..300)
            .iter()
            .map(|number| format!("{number};"))
            .collect();
        assert_eq!(text(subscription, (300 - first) as usize).await, expected);
    }
}

#[tokio::test]
async fn a_feed_that_lost_records_sends_everybody_to_the_log() {
    let rig = Rig::new(1 << 20);
    let mut records = rig.subscribe(Start::Live, Records).await;
    let mut encoded = rig
        .subscribe(Start::Live, Encoded::<Marked>::default())
        .await;
    rig.publish("heard").await;
    assert_eq!(payloads(&mut records, 1).await, ["heard"]);
    rig.engine.deafen(true);
    rig.publish("lost 1").await;
    let lost = rig.publish("lost 2").await;
    rig.engine.deafen(false);
    rig.engine.tell(&rig.topic, lost.next());
    rig.publish("heard again").await;
    assert_eq!(
        payloads(&mut records, 3).await,
        ["lost 1", "lost 2", "heard again"]
    );
    assert_eq!(
        text(&mut encoded, 4).await,
        "heard;lost 1;lost 2;heard again;"
    );
}

#[tokio::test]
async fn a_topic_without_subscribers_holds_nothing() {
    let rig = Rig::new(1 << 20);
    let first = rig.subscribe(Start::Live, Records).await;
    let second = rig
        .subscribe(Start::Live, Encoded::<Marked>::default())
        .await;
    rig.publish("something").await;
    assert_eq!(rig.metrics.tails.get(), 1);
    assert_eq!(
        rig.engine.followed(),
        1,
        "one feed, whatever the number of subscribers"
    );
    drop(first);
    assert_eq!(rig.metrics.tails.get(), 1);
    drop(second);
    assert_eq!(rig.metrics.tails.get(), 0);
    assert_eq!(rig.metrics.tail_bytes.get(), 0);
    assert_eq!(rig.engine.followed(), 0);
}

#[tokio::test]
async fn a_canary_that_is_not_delivered_takes_readiness_away() {
    let rig = Rig::new(1 << 20);
    let readiness = Readiness::new();
    readiness.clear(Condition::Recovering);
    let config = config::Canary {
        interval: std::time::Duration::from_millis(5),
        timeout: std::time::Duration::from_millis(50),
    };
    let canary = Canary::new(
        rig.engine.clone(),
        rig.hub.clone(),
        config,
        "server-01",
        readiness.clone(),
        rig.metrics.clone(),
    );
    let probing = tokio::spawn(canary.run());
    let delivered = || async { (rig.metrics.canary_up.get() == 1).then_some(()) };
    eventually("a delivered canary", delivered).await;
    assert!(readiness.is_ready());
    rig.engine.deafen(true);
    eventually("readiness to go", || async {
        (!readiness.is_ready()).then_some(())
    })
    .await;
    assert!(
        readiness.reasons()[0].starts_with("canary"),
        "{:?}",
        readiness.reasons()
    );
    rig.engine.deafen(false);
    eventually("readiness to come back", || async {
        readiness.is_ready().then_some(())
    })
    .await;
    probing.abort();
}

/// An engine whose feed can be made to lose records, as one whose connection breaks does.
struct Ears {
    inner: Memory,
    relays: Relays,
    is_deaf: watch::Sender<bool>,
}

type Relays = Arc<Mutex<Vec<(Topic, Weak<Relay>)>>>;

/// Stands between the engine and the hub.
struct Relay {
    to: Weak<dyn Follower>,
    is_deaf: watch::Receiver<bool>,
}

impl Follower for Relay {
    fn records(&self, from: Sequence, next: Sequence, records: &[Arc<Record>]) {
        // A feed tells where it begins even when it loses what comes then.
        if (!*self.is_deaf.borrow() || records.is_empty())
            && let Some(to) = self.to.upgrade()
        {
            to.records(from, next, records);
        }
    }
}

impl Ears {
    fn new(inner: Memory) -> Self {
        Self {
            inner,
            relays: Arc::default(),
            is_deaf: watch::Sender::new(false),
        }
    }

    fn deafen(&self, is_deaf: bool) {
        self.is_deaf.send_replace(is_deaf);
    }

    /// Says that the feed is complete from `from` on, as an engine does after its connection was broken.
    fn tell(&self, topic: &Topic, from: Sequence) {
        for (of, relay) in self.relays.lock().unwrap().iter() {
            if let Some(relay) = relay.upgrade().filter(|_| of == topic) {
                relay.records(from, from, &[]);
            }
        }
    }

    fn followed(&self) -> usize {
        let relays = self.relays.lock().unwrap();
        relays
            .iter()
            .filter(|(_, relay)| relay.strong_count() > 0)
            .count()
    }
}

#[async_trait]
impl Engine for Ears {
    fn id(&self) -> LogId {
        self.inner.id()
    }

    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, Error> {
        self.inner.enqueue(batch).await
    }

    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        self.inner.read(topic, from, limit).await
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
            is_deaf: self.is_deaf.subscribe(),
        });
        let weak = Arc::downgrade(&relay);
        self.relays.lock().unwrap().push((topic.clone(), weak));
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
