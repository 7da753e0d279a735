//! Points of data topics as they are stored: a `streaming.DataPoint` without what delivery adds.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use prost_types::Timestamp;

use crate::{
    core::Name,
    log::{self, NewRecord, Topic, TraceContext},
};

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// `streaming.DataPoint` with its metadata in order, so that the same point is always the same bytes: an idempotency key
/// stands for them. Without a sequence; without a time when only the log knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Point {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(double, tag = "2")]
    pub(super) value: f64,
    #[prost(int64, tag = "3")]
    pub(super) timestamp: i64,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(super) metadata: BTreeMap<String, String>,
}

impl Point {
    /// The record it is stored as. Without a time it gets the present, unless it has a key: a repetition has to be the same
    /// point, so zero stands for the time it is appended at.
    pub(super) fn record(
        mut self,
        topic: &Topic,
        key: Option<Name>,
        trace: Option<TraceContext>,
    ) -> NewRecord {
        if self.timestamp == 0 && key.is_none() {
            self.timestamp = now();
        }
        NewRecord {
            topic: topic.clone(),
            publisher: "".into(),
            id: self.id.as_str().into(),
            kind: 0,
            event_time: None,
            key: key.map(Into::into),
            trace,
            payload: Bytes::from(self.encode_to_vec()),
        }
    }
}

/// The present in Unix nanoseconds.
pub(super) fn now() -> i64 {
    i64::try_from(log::Timestamp::now().0).unwrap_or(i64::MAX)
}

/// A time in Unix nanoseconds: 1677 to 2262. `None`: it lies outside of them, or is no time at all.
pub(super) fn nanos(time: Timestamp) -> Option<i64> {
    let nanos = i64::from(time.nanos);
    if !(0..SECOND).contains(&nanos) {
        return None;
    }
    // The earliest second is only there in part: from its end backwards it fits.
    let (seconds, nanos) = match time.seconds < 0 {
        true => (time.seconds + 1, nanos - SECOND),
        false => (time.seconds, nanos),
    };
    seconds.checked_mul(SECOND)?.checked_add(nanos)
}

/// The time of Unix nanoseconds.
pub(super) fn time(nanos: i64) -> Timestamp {
    Timestamp {
        seconds: nanos.div_euclid(SECOND),
        // Less than a second.
        nanos: i32::try_from(nanos.rem_euclid(SECOND)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config,
        core::{Hub, Topics, hub::Start},
        log::Space,
        proto::streaming::DataPoint,
        telemetry::{Metrics, Traces},
    };

    proptest! {
        #[test]
        fn nanoseconds_and_times_are_the_same(any in prop::num::i64::ANY) {
            prop_assert_eq!(nanos(time(any)), Some(any));
        }
    }

    #[test]
    fn what_is_no_time_is_found() {
        for (seconds, nanos_) in [
            (0, -1),
            (0, 1_000_000_000),
            (i64::MAX, 0),
            (i64::MIN, 0),
            (9_223_372_037, 0),
        ] {
            assert_eq!(
                nanos(Timestamp {
                    seconds,
                    nanos: nanos_
                }),
                None
            );
        }
    }

    #[test]
    fn a_stored_point_reads_as_a_data_point() {
        let topic = Topic::new(Space::Data, "data").unwrap();
        let point = Point {
            id: "p".into(),
            value: 1.5,
            timestamp: 7,
            metadata: BTreeMap::from([("a".into(), "b".into())]),
        };
        let stored = point.record(&topic, None, None);
        let read = DataPoint::decode(stored.payload).unwrap();
        assert_eq!(
            (read.id.as_str(), read.value, read.timestamp, read.sequence),
            ("p", 1.5, 7, 0)
        );
        assert_eq!(read.metadata["a"], "b");
    }

    #[tokio::test]
    async fn who_follows_the_topic_gets_the_point_with_its_place() {
        let metrics = Metrics::new();
        let config = config::Log {
            engine: config::EngineKind::Memory,
            ..config::Log::default()
        };
        let engine = log::open(&config, metrics.clone()).unwrap();
        let hub = Hub::new(
            Arc::clone(&engine),
            &config::Hub::default(),
            metrics,
            Traces::off(),
        );
        let topics = Topics::new(engine, hub, Traces::off());
        let topic = Topic::new(Space::Telemetry, "metrics").unwrap();
        let mut followed = topics
            .merge(std::slice::from_ref(&topic), Start::Live)
            .await
            .unwrap();
        let point = Point {
            value: 2.5,
            metadata: BTreeMap::from([("name".into(), "heat".into())]),
            ..Point::default()
        };
        let mut pipeline = topics.pipeline();
        pipeline
            .push(vec![point.record(&topic, None, None)])
            .await
            .unwrap();
        assert_eq!(pipeline.finish().await.unwrap(), 1);
        let heard = followed.next().await.unwrap();
        let (from, record) = &heard[0];
        let read = DataPoint::decode(record.payload.clone()).unwrap();
        assert_eq!((from, record.sequence.0 > 0), (&topic, true));
        assert_eq!((read.value, &*read.metadata["name"]), (2.5, "heat"));
    }

    #[test]
    fn a_keyed_point_without_a_time_is_the_same_whenever_it_comes() {
        let topic = Topic::new(Space::Data, "data").unwrap();
        let payload = |key: Option<&str>| {
            let key = key.map(|key| Name::new(key).unwrap());
            Point::decode(Point::default().record(&topic, key, None).payload).unwrap()
        };
        assert_eq!(payload(Some("k")).timestamp, 0);
        assert!(payload(None).timestamp > 0);
    }
}
