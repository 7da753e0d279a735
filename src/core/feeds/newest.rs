//! The newest records of several topics together.

use std::collections::VecDeque;

use super::super::{Error, Topics, hub::Found};
use crate::log::{Limit, Sequence, Topic};

/// How much to look for.
#[derive(Debug, Clone, Copy)]
pub struct Recent {
    /// Records at most.
    pub records: usize,
    /// Payload bytes of all of them together at most. The very newest comes whatever its size.
    pub bytes: usize,
    /// Only records after this sequence.
    pub after: Sequence,
}

/// The newest records of all `topics` together that lie before one and the same tail, oldest first: whoever goes on after
/// the last of them misses nothing.
pub(super) async fn read(
    topics: &Topics,
    of: &[Topic],
    recent: Recent,
) -> Result<Vec<Found>, Error> {
    let tail = topics.tail();
    let most = Limit {
        records: recent.records,
        bytes: recent.bytes,
    };
    let mut newest = VecDeque::new();
    for topic in of {
        let mut found = topics.newest(topic, tail, most).await?;
        found.retain(|record| record.sequence > recent.after);
        newest.extend(found.into_iter().map(|record| (topic.clone(), record)));
        newest
            .make_contiguous()
            .sort_by_key(|(_, record)| record.sequence);
        limit(&mut newest, recent);
    }
    Ok(newest.into())
}

/// Drops the oldest beyond the limits.
fn limit(newest: &mut VecDeque<Found>, recent: Recent) {
    let mut bytes: usize = newest.iter().map(|(_, record)| record.payload.len()).sum();
    while newest.len() > recent.records || (newest.len() > 1 && bytes > recent.bytes) {
        let Some((_, dropped)) = newest.pop_front() else {
            break;
        };
        bytes -= dropped.payload.len();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config,
        core::Hub,
        log::{
            Engine, NewRecord, Space,
            memory::{Memory, Options},
        },
        telemetry::{Metrics, Traces},
    };

    fn topics() -> Topics {
        let metrics = Metrics::new();
        let options = Options::new(&config::Log::default(), metrics.clone());
        let engine: Arc<dyn Engine> = Arc::new(Memory::new(options));
        let hub = Hub::new(
            Arc::clone(&engine),
            &config::Hub::default(),
            metrics,
            Traces::off(),
        );
        Topics::new(engine, hub, Traces::off())
    }

    fn topic(number: usize) -> Topic {
        Topic::new(Space::Data, &number.to_string()).unwrap()
    }

    fn record(number: usize, bytes: usize) -> NewRecord {
        NewRecord {
            topic: topic(number),
            publisher: "".into(),
            id: "".into(),
            kind: 0,
            event_time: None,
            key: None,
            trace: None,
            payload: Bytes::from(vec![b'x'; bytes]),
        }
    }

    /// Runs of records of one topic each.
    fn runs() -> impl Strategy<Value = Vec<(usize, usize)>> {
        prop::collection::vec((0..3usize, 1..400usize), 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_newest_are_found_wherever_they_lie(
            runs in runs(),
            records in 1..40usize,
            trimmed in 0..500u64,
            after in 0..500u64,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let topics = topics();
                let mut all = Vec::new();
                for (number, count) in runs {
                    for _ in 0..count {
                        let stored = topics.append(record(number, 8)).await.unwrap();
                        all.push((topic(number), stored.sequence));
                    }
                }
                topics.trim(&topic(0), Sequence(trimmed)).await.unwrap();
                let wanted = [topic(0), topic(2)];
                all.retain(|(of, at)| {
                    wanted.contains(of) && at.0 > after && (*of == topic(2) || at.0 >= trimmed)
                });
                let recent = Recent { records, bytes: 1 << 20, after: Sequence(after) };
                let found = read(&topics, &wanted, recent).await.unwrap();
                let found: Vec<_> = found.into_iter().map(|(of, one)| (of, one.sequence)).collect();
                let expected = all.split_off(all.len().saturating_sub(records));
                assert_eq!(found, expected);
            });
        }
    }

    #[tokio::test]
    async fn large_records_are_bounded_by_bytes_and_the_newest_always_comes() {
        let topics = topics();
        for _ in 0..50 {
            topics.append(record(1, 1000)).await.unwrap();
        }
        let recent = |bytes| Recent {
            records: 10,
            bytes,
            after: Sequence(0),
        };
        let found = read(&topics, &[topic(1)], recent(3500)).await.unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[2].1.sequence, Sequence(50));
        let found = read(&topics, &[topic(1)], recent(400)).await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.sequence, Sequence(50));
    }
}
