//! The newest records of topics, without reading all of them.
//!
//! A topic's last records lie anywhere before the log's tail, because other topics have records between. So the position
//! where they begin is searched: back from the tail in growing steps until enough is found, then forth by halves when that
//! was too much. Each probe reads one page, and there are at most 128.

use std::{collections::VecDeque, sync::Arc};

use super::super::{Error, Topics, hub::Found};
use crate::log::{self, Limit, Record, Sequence, Topic};

/// How much to look for.
#[derive(Debug, Clone, Copy)]
pub struct Recent {
    /// Records at most.
    pub records: usize,
    /// Payload bytes of all of them together at most. The very newest comes even if it is up to four times as large.
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
    let Some(first) = of.first() else {
        return Ok(Vec::new());
    };
    let tail = topics.bounds(first).await?.tail;
    let mut newest = VecDeque::new();
    for topic in of {
        let found = of_topic(topics, topic, tail, recent).await?;
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

/// What a probe from a position found.
enum Probe {
    /// More than a page: the search goes forth.
    TooMuch,
    /// All records from there to the tail.
    All(Vec<Arc<Record>>),
}

async fn of_topic(
    topics: &Topics,
    topic: &Topic,
    tail: Sequence,
    recent: Recent,
) -> Result<Vec<Arc<Record>>, Error> {
    let first = topics.bounds(topic).await?.first;
    // What begins before `low` is known to be too much, or is not wanted; from `high` on all is known, and not enough.
    let (mut low, mut high) = (first.max(recent.after.next()), tail);
    let mut best = Vec::new();
    let mut step = 4 * recent.records.max(1) as u64;
    let mut is_crossed = false;
    while low < high {
        let at = match is_crossed {
            true => low.0 + (high.0 - low.0) / 2,
            false => high.0.saturating_sub(step).max(low.0),
        };
        step = step.saturating_mul(4);
        match probe(topics, topic, Sequence(at), tail, recent).await? {
            Probe::TooMuch => {
                is_crossed = true;
                low = Sequence(at + 1);
            }
            Probe::All(records) => {
                high = Sequence(at);
                let is_enough = records.len() >= recent.records;
                best = records;
                if is_enough {
                    break;
                }
            }
        }
    }
    Ok(best)
}

async fn probe(
    topics: &Topics,
    topic: &Topic,
    from: Sequence,
    tail: Sequence,
    recent: Recent,
) -> Result<Probe, Error> {
    let limit = Limit {
        records: recent.records.saturating_mul(2).saturating_add(1),
        // A record that is larger than what is asked for must not look like more than one.
        bytes: recent.bytes.saturating_mul(4),
    };
    let page = match topics.read(topic, from, limit).await {
        Ok(page) => page,
        // Retention came between: the newest lie further on.
        Err(Error::Log(log::Error::Trimmed { .. })) => return Ok(Probe::TooMuch),
        Err(error) => return Err(error),
    };
    if page.next < tail {
        return Ok(Probe::TooMuch);
    }
    let mut records = page.records;
    records.retain(|record| record.sequence < tail);
    Ok(Probe::All(records))
}

#[cfg(test)]
mod tests {
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
