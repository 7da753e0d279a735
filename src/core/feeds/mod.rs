//! Feeds: what happened to users, notifications, data points, and what the service tells of itself.
//!
//! A feed is a topic like any other; this module names the topics and gives their records one shape. The payload of a data
//! point is a [`Point`]; that of an event or a notification is the message of the service that published it, without what
//! the record itself holds (id, user, time, type). [`own`] writes the feeds of the service itself.

mod newest;
pub mod own;
mod point;

use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

pub use newest::Recent;
pub use own::Happening;
pub use point::{Point, PointError};

use self::own::Sender;
use super::{
    Error, Name, Pipeline, Topics,
    appender::Appended,
    hub::{Found, Start},
};
use crate::{
    log::{EventTime, NewRecord, Space, Timestamp, Topic, TopicError},
    telemetry::trace,
};

/// The one topic of notifications for all users.
const EVERYBODY: &str = "all";

/// The data topics that the service feeds itself; nobody else publishes to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnFeed {
    /// Measurements of the instance, and telemetry that clients sent.
    Metrics,
    /// What happened to the instance and its users.
    Events,
    /// Log lines.
    Logs,
}

impl OwnFeed {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Metrics, Self::Events, Self::Logs];

    /// Its name as a data topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Events => "events",
            Self::Logs => "logs",
        }
    }

    /// The own feed called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feed| feed.as_str() == name)
    }
}

impl fmt::Display for OwnFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The data topic called `name`: one that the service feeds itself, or one that clients publish to.
///
/// # Errors
/// The name is blank or too long.
pub fn data_topic(name: &str) -> Result<Topic, TopicError> {
    match OwnFeed::named(name) {
        Some(_) => Topic::new(Space::Telemetry, name),
        None => Topic::new(Space::Data, name),
    }
}

/// The topic of notifications for all users.
///
/// # Errors
/// None: its name is a constant that is allowed.
pub fn everybody() -> Result<Topic, TopicError> {
    Topic::new(Space::Broadcast, EVERYBODY)
}

/// Something to publish to a feed of clients.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The feed: a topic of events, notifications, broadcasts or data.
    pub topic: Topic,
    /// The publisher's own id. Events and notifications get one when it is absent; data points go without.
    pub id: Option<Name>,
    /// What the feed takes it for: the type of an event.
    pub kind: u16,
    /// When the publisher says it happened.
    pub event_time: Option<EventTime>,
    /// Its idempotency key.
    pub key: Option<Name>,
    /// What it says.
    pub payload: Bytes,
}

/// All feeds of one node. Cheap to clone.
#[derive(Clone)]
pub struct Feeds {
    topics: Topics,
    own: Sender,
}

impl Feeds {
    /// The feeds among `topics`; what the service says of itself goes to `own`.
    #[must_use]
    pub const fn new(topics: Topics, own: Sender) -> Self {
        Self { topics, own }
    }

    /// Stores an entry; returns its id and position when it is durable. With a key that repeats an earlier entry of the same
    /// topic it returns that one's.
    ///
    /// # Errors
    /// [`Error::KeyConflict`], or what the log reports.
    ///
    /// # Cancellation
    /// Dropping the future does not take the entry back.
    pub async fn publish(&self, entry: Entry) -> Result<(Box<str>, Appended), Error> {
        self.topics.publish(self.record(entry)).await
    }

    /// The record of an entry, under the current trace. Events and notifications count as published by their user, so that
    /// users do not share idempotency keys; data points as published by nobody.
    #[must_use]
    pub fn record(&self, entry: Entry) -> NewRecord {
        let (prefix, publisher) = match entry.topic.space() {
            Space::Event => ("evt", entry.topic.name()),
            Space::Notification => ("ntf", entry.topic.name()),
            Space::Broadcast => ("ntf", ""),
            _ => ("", ""),
        };
        let id = match (entry.id, prefix) {
            (Some(id), _) => id.into(),
            (None, "") => Box::default(),
            (None, prefix) => format!("{prefix}_{}", Uuid::now_v7().simple()).into(),
        };
        NewRecord {
            publisher: publisher.into(),
            topic: entry.topic,
            id,
            kind: entry.kind,
            event_time: entry.event_time,
            key: entry.key.map(Into::into),
            trace: trace::current(),
            payload: entry.payload,
        }
    }

    /// The record of a sample that a client sent, for the topic `metrics`: the metric's name is in its metadata as `name`.
    /// Durable when it was appended, through [`Self::pipeline`].
    ///
    /// # Errors
    /// None: the topic's name is a constant that is allowed.
    pub fn metric_record(
        &self,
        name: &str,
        value: f64,
        event_time: Option<EventTime>,
        labels: impl IntoIterator<Item = (Box<str>, Box<str>)>,
        key: Option<Name>,
    ) -> Result<NewRecord, TopicError> {
        let mut metadata: Vec<_> = labels.into_iter().collect();
        metadata.retain(|(label, _)| label.as_ref() != "name");
        metadata.push(("name".into(), name.into()));
        Ok(self.record(Entry {
            topic: data_topic(OwnFeed::Metrics.as_str())?,
            id: None,
            kind: 0,
            event_time,
            key,
            payload: Point::new(value, metadata).encode(),
        }))
    }

    /// A pipeline for many records; feed it with [`Self::record`] or [`Self::metric_record`].
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        self.topics.pipeline()
    }

    /// Tells the topic `events` what happened. Best effort: it never waits, and what does not fit its bounded queue is
    /// dropped and counted.
    pub fn event(&self, happening: Happening, labels: &[(&str, &str)]) {
        self.own.event(happening, labels);
    }

    /// Where a subscription begins that replays what was appended to `topic` at or after `time`; live when nothing was yet.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn start_at(&self, topic: &Topic, time: Timestamp) -> Result<Start, Error> {
        let first = self.topics.seek(topic, time).await?;
        // Zero is before everything retained, which is where the first position of all begins.
        Ok(Start::After(crate::log::Sequence(
            first.0.saturating_sub(1),
        )))
    }

    /// The newest records of `topics` as one, oldest first; see [`Recent`].
    ///
    /// # Errors
    /// What the log reports.
    pub async fn newest(&self, topics: &[Topic], recent: Recent) -> Result<Vec<Found>, Error> {
        newest::read(&self.topics, topics, recent).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_topics_are_apart_from_those_of_clients() {
        for feed in OwnFeed::ALL {
            let topic = data_topic(feed.as_str()).unwrap();
            assert_eq!(topic.space(), Space::Telemetry);
        }
        assert_eq!(data_topic("data").unwrap().space(), Space::Data);
        assert_eq!(data_topic("Metrics").unwrap().space(), Space::Data);
        assert!(data_topic(" ").is_err());
        assert!(everybody().is_ok());
    }
}
