//! What the service tells of itself, as data topics: `metrics`, `events` and `logs`.
//!
//! Nobody who tells something waits: it goes into a bounded queue, and one task stores what is there every
//! `feeds.interval`, all three topics in one batch, so that the log sees one commit. What does not fit a queue, or cannot be
//! stored, is dropped and counted. The task logs nothing itself: its lines would come back to it.

use std::sync::Arc;

use prometheus::core::Collector as _;
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval},
};

use super::{
    super::{
        Appender, Error,
        instance::{Instance, Sample},
    },
    OwnFeed, Point, data_topic,
};
use crate::{
    config,
    log::{Engine, NewRecord, Timestamp},
    telemetry::{Line, Lines, Metrics, Queue, Traces},
};

/// Events that may wait to be stored.
const WAITING_EVENTS: usize = 1024;
/// The rate that is reported for every endpoint.
const REQUEST_RATE: &str = "requests_per_second";

/// What can happen; a closed set. Subscribers of `events` find it in the metadata `event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// The instance started.
    Started,
    /// The instance serves.
    Ready,
    /// The instance does not serve for now.
    NotReady,
    /// The instance drains.
    Draining,
    /// The instance stops: the last event of its life.
    Stopped,
    /// A user joined a room.
    Joined,
    /// A user left a room.
    Left,
    /// A file was uploaded.
    Uploaded,
    /// A file was deleted.
    Deleted,
}

impl Happening {
    /// Its name in the topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Uploaded => "uploaded",
            Self::Deleted => "deleted",
        }
    }
}

/// Something that happened.
struct Event {
    time: Timestamp,
    what: Happening,
    labels: Vec<(Box<str>, Box<str>)>,
}

/// Takes events on their way to the topic. Cheap to clone.
#[derive(Clone)]
pub struct Sender(Queue<Event>);

impl Default for Sender {
    /// A sender of nobody's: what it takes is dropped once its queue is full.
    fn default() -> Self {
        Self(Queue::new(WAITING_EVENTS))
    }
}

impl Sender {
    /// Notes that something happened, with what it happened to. Never waits; dropped and counted when too much waits.
    pub fn event(&self, what: Happening, labels: &[(&str, &str)]) {
        let time = Timestamp::now();
        self.0.push(|| Event {
            time,
            what,
            labels: labels
                .iter()
                .map(|&(name, text)| (name.into(), text.into()))
                .collect(),
        });
    }
}

/// The service's own feeds of one instance.
pub struct OwnFeeds {
    appender: Appender,
    config: config::Feeds,
    instance: Instance,
    metrics: Metrics,
    events: Queue<Event>,
    lines: Lines,
    /// Since when the next measurement measures; held while a batch is stored, so that batches keep their order.
    since: Mutex<Sample>,
}

impl OwnFeeds {
    /// The own feeds of `instance`, stored in `engine`; `lines` are its log lines.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        config: config::Feeds,
        instance: Instance,
        metrics: Metrics,
        lines: Lines,
    ) -> Self {
        Self {
            appender: Appender::new(engine, Traces::off()),
            config,
            since: Mutex::new(instance.sample()),
            instance,
            metrics,
            events: Queue::new(WAITING_EVENTS),
            lines,
        }
    }

    /// Where events are told.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender(self.events.clone())
    }

    /// Measures and stores for ever.
    pub async fn run(&self) {
        let mut ticks = interval(self.config.interval);
        // After a stall one measurement covers it all.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut since = self.since.lock().await;
            let measured = self.measure(&mut since);
            self.store(measured).await;
        }
    }

    /// Stores the events and lines that wait; returns when they are durable, or dropped because the log refused them.
    pub async fn flush(&self) {
        let _turn = self.since.lock().await;
        self.store(Vec::new()).await;
    }

    async fn store(&self, measured: Vec<Told>) {
        let (events, lines) = (self.events.take(), self.lines.take());
        self.dropped(OwnFeed::Events, self.events.take_dropped());
        self.dropped(OwnFeed::Logs, self.lines.take_dropped());
        let told: Vec<_> = measured
            .into_iter()
            .chain(events.into_iter().map(|event| self.event(event)))
            .chain(lines.into_iter().map(|line| self.line(line)))
            .collect();
        let mut counts = [0; OwnFeed::ALL.len()];
        for one in &told {
            counts[one.feed as usize] += 1;
        }
        if self.append(told).await.is_err() {
            for (feed, count) in OwnFeed::ALL.into_iter().zip(counts) {
                self.dropped(feed, count);
            }
        }
    }

    async fn append(&self, told: Vec<Told>) -> Result<(), Error> {
        let records: Result<Vec<_>, Error> = told.into_iter().map(|one| self.record(one)).collect();
        let mut pipeline = self.appender.pipeline();
        pipeline.push(records?).await?;
        pipeline.finish().await?;
        Ok(())
    }

    fn record(&self, told: Told) -> Result<NewRecord, Error> {
        let topic = data_topic(told.feed.as_str())
            .map_err(|error| Error::invalid("topic", error.to_string()))?;
        Ok(NewRecord {
            topic,
            publisher: self.instance.id().into(),
            id: Box::default(),
            kind: 0,
            event_time: Some(told.time.into()),
            key: None,
            trace: None,
            payload: told.point.encode(),
        })
    }

    fn dropped(&self, feed: OwnFeed, count: u64) {
        let dropped = &self.metrics.feed_dropped;
        dropped.with_label_values(&[feed.as_str()]).inc_by(count);
    }

    /// At least ten samples: the instance's own measurements, with the rates of the endpoints that were asked, and gauges.
    fn measure(&self, since: &mut Sample) -> Vec<Told> {
        let mut requests = 0.0;
        let mut all = Vec::new();
        let time = Timestamp::now();
        for one in self.instance.measure(since) {
            if one.name == REQUEST_RATE {
                requests += one.value;
                if one.value == 0.0 {
                    continue;
                }
            }
            all.push(sample(
                one.name,
                one.value,
                one.time,
                one.labels.into_iter(),
            ));
        }
        let mut add = |name, value, label: Option<(&'static str, &str)>| {
            let instance = ("instance", self.instance.id().into());
            let label = label.map(|(label, of)| (label, of.into()));
            all.push(sample(
                name,
                value,
                time,
                [instance].into_iter().chain(label),
            ));
        };
        add(REQUEST_RATE, requests, Some(("endpoint", "all")));
        let metrics = &self.metrics;
        for source in ["tail", "log"] {
            let gauge = metrics.subscribers.with_label_values(&[source]);
            add("subscribers", float(gauge.get()), Some(("source", source)));
        }
        add("connections", float(metrics.connections_active.get()), None);
        add("streams", streams(metrics), None);
        add("tails", float(metrics.tails.get()), None);
        add("tail_bytes", float(metrics.tail_bytes.get()), None);
        add("log_bytes", float(metrics.log_bytes.get()), None);
        all
    }

    fn event(&self, event: Event) -> Told {
        let mut metadata = event.labels;
        metadata.push(("event".into(), event.what.as_str().into()));
        metadata.push(("instance".into(), self.instance.id().into()));
        Told {
            feed: OwnFeed::Events,
            time: event.time,
            point: Point::new(1.0, metadata),
        }
    }

    fn line(&self, line: Line) -> Told {
        let value = f64::from(line.severity());
        let mut metadata: Vec<(Box<str>, Box<str>)> = line
            .fields
            .into_iter()
            .map(|(name, text)| (name.into(), text.into()))
            .collect();
        metadata.extend([
            ("level".into(), line.level.as_str().into()),
            ("target".into(), line.target.into()),
            ("message".into(), line.message.into()),
            ("instance".into(), self.instance.id().into()),
        ]);
        Told {
            feed: OwnFeed::Logs,
            time: line.time,
            point: Point::new(value, metadata),
        }
    }
}

/// One point of an own feed.
struct Told {
    feed: OwnFeed,
    time: Timestamp,
    point: Point,
}

fn sample(
    name: &str,
    value: f64,
    time: Timestamp,
    labels: impl Iterator<Item = (&'static str, Box<str>)>,
) -> Told {
    let name = ("name", name.into());
    Told {
        feed: OwnFeed::Metrics,
        time,
        point: Point::new(value, labels.chain([name])),
    }
}

/// Streams open now, of every method.
fn streams(metrics: &Metrics) -> f64 {
    let families = metrics.streams_active.collect();
    let each = families.iter().flat_map(|family| family.get_metric());
    each.map(|metric| metric.get_gauge().get_value()).sum()
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(gauge: i64) -> f64 {
    gauge as f64
}
