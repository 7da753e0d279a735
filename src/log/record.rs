//! Records and the values they carry.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use super::Topic;

/// A position in the log, of one record of one topic. Zero is before every record; the first record is at one or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The lowest position a record can have.
    pub const FIRST: Self = Self(1);

    /// The position right after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a record was appended, in nanoseconds since the Unix epoch by the appending node's clock. Never decreases within a
/// topic of one node's engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long ago this was; zero when the clock went back.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(Self::now().0.saturating_sub(self.0))
    }

    /// This long before; the epoch when that lies before it.
    #[must_use]
    pub fn before(self, age: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// The time a publisher stated for its record. Passed on as it came, so it is not limited to what a clock can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTime {
    /// Seconds since the Unix epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: i32,
}

impl From<Timestamp> for EventTime {
    fn from(time: Timestamp) -> Self {
        Self {
            seconds: i64::try_from(time.0 / 1_000_000_000).unwrap_or(i64::MAX),
            nanos: i32::try_from(time.0 % 1_000_000_000).unwrap_or(0),
        }
    }
}

/// The W3C trace context a record was published under, kept so that a trace runs from publish to delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The publishing span.
    pub span_id: [u8; 8],
    /// W3C trace flags; bit 0 says sampled.
    pub flags: u8,
}

/// A record to append.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Where it goes.
    pub topic: Topic,
    /// Who publishes it.
    pub publisher: Box<str>,
    /// Its id: the publisher's own, or made by the service. Data, not a key.
    pub id: Box<str>,
    /// What the topic's space takes it for; opaque to the log.
    pub kind: u16,
    /// The time the publisher stated.
    pub event_time: Option<EventTime>,
    /// The idempotency key; see [`super::Engine`].
    pub key: Option<Box<str>>,
    /// The trace it was published under, if that is sampled.
    pub trace: Option<TraceContext>,
    /// The content; opaque to the log.
    pub payload: Bytes,
}

impl NewRecord {
    /// Bytes this record takes in queues and limits.
    #[must_use]
    pub fn size(&self) -> usize {
        let key = self.key.as_ref().map_or(0, |key| key.len());
        64 + self.topic.name().len()
            + self.publisher.len()
            + self.id.len()
            + key
            + self.payload.len()
    }
}

impl NewRecord {
    /// The record it becomes at `sequence`, appended at `time`.
    #[must_use]
    pub fn into_record(self, sequence: Sequence, time: Timestamp) -> Record {
        Record {
            sequence,
            time,
            publisher: self.publisher,
            id: self.id,
            kind: self.kind,
            event_time: self.event_time,
            trace: self.trace,
            payload: self.payload,
        }
    }
}

/// A record of a topic, durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub sequence: Sequence,
    /// When it was appended.
    pub time: Timestamp,
    /// Who published it.
    pub publisher: Box<str>,
    /// Its id.
    pub id: Box<str>,
    /// What the topic's space takes it for.
    pub kind: u16,
    /// The time the publisher stated.
    pub event_time: Option<EventTime>,
    /// The trace it was published under.
    pub trace: Option<TraceContext>,
    /// The content.
    pub payload: Bytes,
}

impl Record {
    /// Bytes this record takes in memory, roughly.
    #[must_use]
    pub fn size(&self) -> usize {
        128 + self.publisher.len() + self.id.len() + self.payload.len()
    }

    /// The time to show: what the publisher stated, else when it was appended.
    #[must_use]
    pub fn shown_time(&self) -> EventTime {
        self.event_time.unwrap_or_else(|| self.time.into())
    }
}
