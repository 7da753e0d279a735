//! What every engine of the log promises: one suite, run on each. `suite!` of the test target says on which.
//!
//! It assumes no more than the contract says: sequences grow over all topics, may have gaps and may start anywhere.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use bytesize::ByteSize;
use futures::future::join_all;
use weir::{
    config::{self, EngineKind, Retention},
    core::{
        Topics,
        hub::{Hub, Records, Start},
    },
    log::{
        Bounds, Error, EventTime, Health, Limit, NewRecord, Outcome, Sequence, Space, Timestamp,
        Topic, TraceContext,
    },
    telemetry::{Metrics, Traces},
};

use super::log_support::{
    ALL, DEADLINE, Feed, Rig, append, append_all, eventually, keyed, payloads, read_all, read_on,
    record, room, stored,
};

suite!(
    a_log_has_an_id_of_its_own,
    records_come_back_as_they_were_appended,
    extreme_records_come_back,
    a_batch_over_several_topics_goes_to_each,
    pipelined_batches_keep_their_order,
    appends_beside_each_other_are_each_answered,
    appends_beside_each_other_know_repeats,
    sequences_and_times_never_go_back,
    topics_share_one_growing_sequence,
    a_position_of_one_topic_resumes_another,
    only_positions_beyond_the_whole_log_are_refused,
    an_acknowledged_record_is_readable_and_was_fed,
    a_dropped_ack_still_appends,
    an_empty_batch_is_acknowledged,
    pages_respect_limits_and_join,
    a_record_beyond_the_byte_limit_still_comes,
    positions_outside_the_log_are_refused,
    an_unknown_topic_is_empty,
    tail_is_known_without_waiting,
    newest_are_found_behind_other_topics,
    newest_respects_limits_and_before,
    newest_of_a_trimmed_topic_are_the_retained,
    last_of_an_emptied_topic_is_none,
    seek_finds_the_first_record_at_or_after_a_time,
    seek_finds_records_between_gaps,
    trim_drops_what_is_before,
    trim_of_everything_keeps_sequences_used,
    trim_of_many_records_is_complete,
    trim_of_a_sparse_topic_counts_its_records,
    a_repeated_key_is_a_duplicate,
    a_reused_key_is_a_conflict,
    a_key_repeats_within_one_batch,
    concurrent_repeats_store_once,
    keys_belong_to_topic_and_publisher,
    a_key_is_forgotten_after_the_window,
    a_feed_joins_history_without_gap_or_repeat,
    a_feed_of_an_unknown_topic_starts_with_its_first_record,
    a_feed_of_a_quiet_topic_starts_at_the_tail_of_the_log,
    a_subscription_joins_history_and_live_over_gaps,
    a_subscription_starts_at_a_position_of_another_topic,
    several_topics_are_followed_in_the_order_of_the_log,
    every_follower_sees_every_record,
    one_batch_is_fed_in_one_call,
    dropping_a_follow_ends_the_feed,
    a_gone_follower_does_no_harm,
    topics_list_in_name_order_with_any_name,
    retention_by_bytes_drops_the_oldest,
    retention_by_age_drops_the_old,
    retention_is_per_space,
    metrics_count_what_happened,
    close_refuses_appends_and_is_idempotent,
);

async fn a_log_has_an_id_of_its_own(kind: EngineKind) {
    let (one, other) = (Rig::new(kind), Rig::new(kind));
    let id = one.engine.id();
    append_all(&*one.engine, &room("a"), &["x"]).await;
    assert_eq!(one.engine.id(), id);
    assert_ne!(other.engine.id(), id);
    one.engine.close().await;
    assert_eq!(one.engine.id(), id);
}

async fn records_come_back_as_they_were_appended(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("one");
    let full = NewRecord {
        topic: topic.clone(),
        publisher: "Ωmega".into(),
        id: "m-1".into(),
        kind: 65_535,
        event_time: Some(EventTime {
            seconds: i64::MIN,
            nanos: -5,
        }),
        key: Some("k".into()),
        trace: Some(TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            flags: 1,
        }),
        payload: Bytes::from_static(b"hello"),
    };
    let outcomes = append(&*rig.engine, vec![full.clone()]).await;
    let [Outcome::Stored { sequence, time }] = outcomes[..] else {
        panic!("not stored: {outcomes:?}");
    };
    let records = read_all(&*rig.engine, &topic).await;
    assert_eq!(records.len(), 1);
    assert_eq!(*records[0], full.into_record(sequence, time));
    assert!(sequence >= Sequence::FIRST);
}

async fn extreme_records_come_back(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("extreme");
    let large = Bytes::from(vec![7; 10 * 1024 * 1024]);
    let mut empty = record(&topic, "");
    empty.id = "".into();
    empty.publisher = "".into();
    append(&*rig.engine, vec![record(&topic, large.clone()), empty]).await;
    let records = read_all(&*rig.engine, &topic).await;
    assert!(records[0].payload == large);
    assert_eq!((&*records[1].id, records[1].payload.len()), ("", 0));
}

async fn a_batch_over_several_topics_goes_to_each(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (a, b) = (room("a"), room("b"));
    let batch = vec![record(&a, "1"), record(&b, "2"), record(&a, "3")];
    let outcomes = append(&*rig.engine, batch).await;
    assert_eq!(payloads(&read_all(&*rig.engine, &a).await), ["1", "3"]);
    assert_eq!(payloads(&read_all(&*rig.engine, &b).await), ["2"]);
    let sequences = outcomes.into_iter().map(stored).collect::<Vec<_>>();
    let of = |records: &[Arc<weir::log::Record>]| records[0].sequence;
    assert_eq!(of(&read_all(&*rig.engine, &b).await), sequences[1]);
}

async fn pipelined_batches_keep_their_order(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("order");
    let publish = |publisher: usize| {
        let (engine, topic) = (rig.engine.clone(), topic.clone());
        async move {
            let mut acks = Vec::new();
            for batch in 0..20 {
                let texts = (0..5).map(|at| format!("{publisher}:{:03}", batch * 5 + at));
                let batch = texts.map(|text| record(&topic, text)).collect();
                acks.push(engine.enqueue(batch).await.unwrap());
            }
            let outcomes = join_all(acks).await;
            outcomes
                .into_iter()
                .flat_map(Result::unwrap)
                .map(stored)
                .collect::<Vec<_>>()
        }
    };
    let sequences = join_all((0..8).map(publish)).await;
    assert!(sequences.iter().all(|own| own.is_sorted_by(|a, b| a < b)));
    let records = read_all(&*rig.engine, &topic).await;
    assert_eq!(records.len(), 8 * 100);
    for (publisher, own) in sequences.iter().enumerate() {
        let texts = payloads(&records);
        let prefix = format!("{publisher}:");
        let texts = texts.iter().filter(|text| text.starts_with(&prefix));
        assert!(texts.is_sorted());
        assert!(
            own.iter()
                .all(|sequence| records.iter().any(|r| r.sequence == *sequence))
        );
    }
}

/// Single appends of many, who each wait for theirs.
async fn appends_beside_each_other_are_each_answered(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("beside");
    let write = |publisher: usize| {
        let (engine, topic) = (rig.engine.clone(), topic.clone());
        async move {
            let mut own = Vec::new();
            for number in 0..20 {
                let text = format!("{publisher}:{number}");
                let outcome = engine.append(record(&topic, text.clone())).await.unwrap();
                own.push((stored(outcome), text));
            }
            own
        }
    };
    let answers = join_all((0..32).map(write)).await;
    assert!(answers.iter().all(|own| own.is_sorted_by(|a, b| a.0 < b.0)));
    let mut answers = answers.concat();
    answers.sort();
    let records = read_all(&*rig.engine, &topic).await;
    let sequences = records.iter().map(|record| record.sequence);
    let found: Vec<_> = sequences.zip(payloads(&records)).collect();
    assert_eq!(found, answers);
}

/// Several use one key at once, with one content and with another.
async fn appends_beside_each_other_know_repeats(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("repeats");
    let append = |text: &'static str| rig.engine.append(keyed(&topic, "k", text));
    let others = (0..10).map(|_| rig.engine.append(record(&topic, "unkeyed")));
    let (outcomes, others) =
        tokio::join!(join_all(["a", "a", "a", "b"].map(append)), join_all(others));
    let stored_at: BTreeSet<_> = others
        .into_iter()
        .map(|outcome| stored(outcome.unwrap()))
        .collect();
    assert_eq!(stored_at.len(), 10);
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let Outcome::Stored { sequence, time } = outcomes[0] else {
        panic!("the first was not stored: {outcomes:?}");
    };
    let repeated = Outcome::Duplicate { sequence, time };
    assert_eq!(
        outcomes[1..],
        [repeated, repeated, Outcome::Conflict { sequence }]
    );
    assert_eq!(read_all(&*rig.engine, &topic).await.len(), 11);
}

async fn sequences_and_times_never_go_back(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("growing");
    for _ in 0..20 {
        append_all(&*rig.engine, &topic, &["a", "b"]).await;
    }
    let records = read_all(&*rig.engine, &topic).await;
    assert!(records.is_sorted_by(|a, b| a.sequence < b.sequence && a.time <= b.time));
    assert!(records[39].time.elapsed() < Duration::from_secs(60));
}

/// Appends one record to each of `topics`, as often as said, each in a batch of its own.
async fn interleave(rig: &Rig, topics: &[&Topic], times: usize) -> Vec<Sequence> {
    let mut sequences = Vec::new();
    for _ in 0..times {
        for topic in topics {
            sequences.extend(append_all(&*rig.engine, topic, &["x"]).await);
        }
    }
    sequences
}

async fn topics_share_one_growing_sequence(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (a, b) = (room("a"), room("b"));
    let batch = vec![record(&b, "1"), record(&a, "2"), record(&b, "3")];
    let mut sequences = interleave(&rig, &[&a, &b], 5).await;
    let outcomes = append(&*rig.engine, batch).await;
    sequences.extend(outcomes.into_iter().map(stored));
    sequences.extend(interleave(&rig, &[&b, &room("c"), &a], 5).await);
    assert!(sequences.is_sorted_by(|one, next| one < next));
    let mut found = Vec::new();
    for topic in [&a, &b, &room("c")] {
        found.extend(
            read_all(&*rig.engine, topic)
                .await
                .iter()
                .map(|r| r.sequence),
        );
    }
    found.sort();
    assert_eq!(found, sequences);
}

async fn a_position_of_one_topic_resumes_another(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (a, b) = (room("a"), room("b"));
    append_all(&*rig.engine, &a, &["seen"]).await;
    let seen = append_all(&*rig.engine, &b, &["seen too"]).await[0];
    append_all(&*rig.engine, &a, &["next"]).await;
    append_all(&*rig.engine, &b, &["and next"]).await;
    append_all(&*rig.engine, &a, &["last"]).await;
    let resumed = read_on(&*rig.engine, &a, seen.next(), ALL).await;
    assert_eq!(payloads(&resumed), ["next", "last"]);
    let resumed = read_on(&*rig.engine, &b, seen.next(), ALL).await;
    assert_eq!(payloads(&resumed), ["and next"]);
}

async fn only_positions_beyond_the_whole_log_are_refused(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (quiet, busy, unknown) = (room("quiet"), room("busy"), room("unknown"));
    let own = append_all(&*rig.engine, &quiet, &["a"]).await[0];
    let last = append_all(&*rig.engine, &busy, &["x"; 9]).await[8];
    for topic in [&quiet, &busy, &unknown] {
        let tail = rig.engine.bounds(topic).await.unwrap().tail;
        assert!(tail > last);
        for from in [own.next(), last, tail] {
            let page = rig.engine.read(topic, from, ALL).await.unwrap();
            assert_eq!((page.next, page.tail), (tail, tail));
            assert_eq!(page.records.is_empty(), topic != &busy || from == tail);
        }
        let beyond = rig.engine.read(topic, tail.next(), ALL).await;
        assert_eq!(beyond.unwrap_err(), Error::BeyondTail { tail });
    }
    assert_eq!(rig.engine.bounds(&unknown).await.unwrap().first.0, 1);
}

async fn an_acknowledged_record_is_readable_and_was_fed(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("visible");
    let feed = Feed::new();
    let _follow = rig.engine.follow(&topic, feed.weak()).await.unwrap();
    for round in 1..=50 {
        let sequence = append_all(&*rig.engine, &topic, &["x"]).await[0];
        assert_eq!(
            feed.seen(|seen| seen.records.len()),
            round,
            "fed before the ack"
        );
        let page = rig.engine.read(&topic, sequence, ALL).await.unwrap();
        assert_eq!(page.records[0].sequence, sequence);
        assert_eq!(rig.engine.bounds(&topic).await.unwrap().tail, page.next);
    }
}

async fn a_dropped_ack_still_appends(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("dropped");
    drop(rig.engine.enqueue(vec![record(&topic, "a")]).await.unwrap());
    append_all(&*rig.engine, &topic, &["b"]).await;
    assert_eq!(payloads(&read_all(&*rig.engine, &topic).await), ["a", "b"]);
}

async fn an_empty_batch_is_acknowledged(kind: EngineKind) {
    let rig = Rig::new(kind);
    assert!(append(&*rig.engine, Vec::new()).await.is_empty());
}

async fn pages_respect_limits_and_join(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("pages");
    let texts = (0..100).map(|at| format!("{at:010}")).collect::<Vec<_>>();
    let batch = texts
        .iter()
        .map(|text| record(&topic, text.clone()))
        .collect();
    let first = stored(append(&*rig.engine, batch).await[0]);
    let three = Limit {
        records: 3,
        bytes: usize::MAX,
    };
    let page = rig.engine.read(&topic, first, three).await.unwrap();
    assert_eq!(payloads(&page.records), texts[..3]);
    assert!(page.next < page.tail);
    let bytes = Limit {
        records: usize::MAX,
        bytes: 25,
    };
    let page = rig.engine.read(&topic, first, bytes).await.unwrap();
    assert_eq!(
        payloads(&page.records),
        texts[..3],
        "the third passes 25 bytes"
    );
    assert_eq!(
        payloads(&read_on(&*rig.engine, &topic, first, three).await),
        texts
    );
    assert_eq!(
        payloads(&read_on(&*rig.engine, &topic, Sequence(0), bytes).await),
        texts
    );
}

async fn a_record_beyond_the_byte_limit_still_comes(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("too large");
    append_all(&*rig.engine, &topic, &["0123456789", "next"]).await;
    let tight = Limit {
        records: 0,
        bytes: 0,
    };
    let page = rig
        .engine
        .read(&topic, Sequence::FIRST, tight)
        .await
        .unwrap();
    assert_eq!(payloads(&page.records), ["0123456789"]);
}

async fn positions_outside_the_log_are_refused(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("bounds");
    let sequences = append_all(&*rig.engine, &topic, &["a", "b", "c"]).await;
    let Bounds { first, tail } = rig.engine.bounds(&topic).await.unwrap();
    assert!(first <= sequences[0]);
    assert!(tail > sequences[2]);
    let page = rig.engine.read(&topic, tail, ALL).await.unwrap();
    assert_eq!((page.records.len(), page.next, page.tail), (0, tail, tail));
    let beyond = rig.engine.read(&topic, tail.next(), ALL).await;
    assert_eq!(beyond.unwrap_err(), Error::BeyondTail { tail });
}

async fn an_unknown_topic_is_empty(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("nobody wrote here");
    let Bounds { first, tail } = rig.engine.bounds(&topic).await.unwrap();
    assert_eq!((first, tail), (Sequence::FIRST, Sequence::FIRST));
    assert!(
        read_on(&*rig.engine, &topic, Sequence(0), ALL)
            .await
            .is_empty()
    );
    let start = rig.engine.seek(&topic, Timestamp(0)).await.unwrap();
    assert_eq!(start, Sequence::FIRST);
    rig.engine.trim(&topic, Sequence(10)).await.unwrap();
    let topics = rig.engine.topics(Space::Room, None, 10).await.unwrap();
    assert!(topics.is_empty());
}

/// The tail lies behind everything acknowledged, is where reads end, and outlives the engine.
async fn tail_is_known_without_waiting(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("tail");
    assert_eq!(rig.engine.tail(), Sequence::FIRST);
    for _ in 0..20 {
        let last = append_all(&*rig.engine, &topic, &["a", "b"]).await[1];
        let tail = rig.engine.tail();
        assert!(tail > last);
        let bounds = rig.engine.bounds(&room("other")).await.unwrap();
        assert_eq!(bounds.tail, tail);
        let feed = Feed::new();
        let _follow = rig.engine.follow(&topic, feed.weak()).await.unwrap();
        assert_eq!(feed.start().await, tail);
    }
    let tail = rig.engine.tail();
    rig.engine.close().await;
    assert_eq!(rig.engine.tail(), tail);
}

async fn newest_are_found_behind_other_topics(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (quiet, busy) = (room("quiet"), room("busy"));
    append_all(&*rig.engine, &quiet, &["a", "b", "c"]).await;
    for _ in 0..5 {
        append_all(&*rig.engine, &busy, &["x"; 200]).await;
    }
    append_all(&*rig.engine, &quiet, &["d"]).await;
    append_all(&*rig.engine, &busy, &["y"; 300]).await;
    let newest = async |topic: &Topic, records| {
        let limit = Limit {
            records,
            bytes: usize::MAX,
        };
        let all = Sequence(u64::MAX);
        let found = rig.engine.newest(topic, all, limit).await;
        payloads(&found.unwrap())
    };
    assert_eq!(newest(&quiet, 1).await, ["d"]);
    assert_eq!(newest(&quiet, 3).await, ["b", "c", "d"]);
    assert_eq!(newest(&quiet, 9).await, ["a", "b", "c", "d"]);
    assert_eq!(newest(&busy, 301).await[..2], ["x", "y"]);
    assert!(newest(&room("unknown"), 9).await.is_empty());
    let last = rig.engine.last(&quiet).await.unwrap();
    assert_eq!(payloads(&last.into_iter().collect::<Vec<_>>()), ["d"]);
}

async fn newest_respects_limits_and_before(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("newest");
    let sequences = append_all(&*rig.engine, &topic, &["1234567890"; 50]).await;
    let newest = async |before, records, bytes| {
        let limit = Limit { records, bytes };
        let found = rig.engine.newest(&topic, before, limit).await.unwrap();
        found.iter().map(|r| r.sequence).collect::<Vec<_>>()
    };
    let (tail, all) = (rig.engine.tail(), usize::MAX);
    assert_eq!(newest(tail, 7, all).await, sequences[43..]);
    assert_eq!(newest(tail, 0, 0).await, sequences[49..]);
    assert_eq!(
        newest(tail, all, 25).await,
        sequences[47..],
        "the third passes 25 bytes"
    );
    assert_eq!(newest(sequences[20], 5, all).await, sequences[15..20]);
    assert_eq!(newest(sequences[2], 5, all).await, sequences[..2]);
    assert!(newest(sequences[0], 5, all).await.is_empty());
    assert!(newest(Sequence::default(), 5, all).await.is_empty());
}

async fn newest_of_a_trimmed_topic_are_the_retained(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("trimmed");
    let sequences = append_all(&*rig.engine, &topic, &["a", "b", "c", "d"]).await;
    append_all(&*rig.engine, &room("other"), &["x"; 30]).await;
    rig.engine.trim(&topic, sequences[2]).await.unwrap();
    let all = Sequence(u64::MAX);
    let newest = rig.engine.newest(&topic, all, ALL).await.unwrap();
    assert_eq!(payloads(&newest), ["c", "d"]);
    let newest = rig.engine.newest(&topic, sequences[2], ALL).await.unwrap();
    assert!(newest.is_empty());
}

async fn last_of_an_emptied_topic_is_none(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("emptied");
    assert!(rig.engine.last(&topic).await.unwrap().is_none());
    let sequences = append_all(&*rig.engine, &topic, &["a", "b"]).await;
    let last = rig.engine.last(&topic).await.unwrap().unwrap();
    assert_eq!(last.sequence, sequences[1]);
    rig.engine.trim(&topic, sequences[1].next()).await.unwrap();
    assert!(rig.engine.last(&topic).await.unwrap().is_none());
    let again = append_all(&*rig.engine, &topic, &["c"]).await[0];
    let last = rig.engine.last(&topic).await.unwrap().unwrap();
    assert_eq!(last.sequence, again);
}

async fn seek_finds_the_first_record_at_or_after_a_time(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("times");
    for _ in 0..30 {
        append_all(&*rig.engine, &topic, &["x"]).await;
    }
    let records = read_all(&*rig.engine, &topic).await;
    let Bounds { first, tail } = rig.engine.bounds(&topic).await.unwrap();
    let seek = |time| rig.engine.seek(&topic, time);
    for wanted in &records {
        let at_or_after = records.iter().find(|record| record.time >= wanted.time);
        let found = seek(wanted.time).await.unwrap();
        let page = rig.engine.read(&topic, found, ALL).await.unwrap();
        assert_eq!(page.records[0].sequence, at_or_after.unwrap().sequence);
    }
    let after = seek(Timestamp(records[29].time.0 + 1)).await.unwrap();
    assert_eq!(after, tail);
    assert!(seek(Timestamp(0)).await.unwrap() >= first);
    let between = seek(Timestamp(records[9].time.0 + 1)).await.unwrap();
    assert!(between > records[9].sequence);
}

async fn seek_finds_records_between_gaps(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (sparse, busy) = (room("sparse"), room("busy"));
    for gap in [0, 1, 40, 3, 0, 700, 2] {
        append_all(&*rig.engine, &busy, &["x"; 700][..gap]).await;
        append_all(&*rig.engine, &sparse, &["y"]).await;
    }
    append_all(&*rig.engine, &busy, &["x"; 50]).await;
    let records = read_all(&*rig.engine, &sparse).await;
    let seek = |time| rig.engine.seek(&sparse, time);
    for wanted in &records {
        let at_or_after = records.iter().find(|record| record.time >= wanted.time);
        let found = seek(wanted.time).await.unwrap();
        assert_eq!(found, at_or_after.unwrap().sequence);
    }
    rig.engine.trim(&sparse, records[3].sequence).await.unwrap();
    assert_eq!(seek(Timestamp(0)).await.unwrap(), records[3].sequence);
    let tail = rig.engine.bounds(&sparse).await.unwrap().tail;
    assert_eq!(seek(Timestamp(u64::MAX)).await.unwrap(), tail);
}

async fn trim_drops_what_is_before(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("trimmed");
    let sequences = append_all(&*rig.engine, &topic, &["a", "b", "c"]).await;
    rig.engine.trim(&topic, sequences[1]).await.unwrap();
    let Bounds { first, .. } = rig.engine.bounds(&topic).await.unwrap();
    assert!(sequences[0] < first && first <= sequences[1]);
    for from in [Sequence(0), sequences[0]] {
        let trimmed = rig.engine.read(&topic, from, ALL).await;
        assert_eq!(trimmed.unwrap_err(), Error::Trimmed { first });
    }
    assert_eq!(payloads(&read_all(&*rig.engine, &topic).await), ["b", "c"]);
    rig.engine.trim(&topic, sequences[0]).await.unwrap();
    assert_eq!(
        rig.engine.bounds(&topic).await.unwrap().first,
        first,
        "never back"
    );
    let start = rig.engine.seek(&topic, Timestamp(0)).await.unwrap();
    assert!(first <= start && start <= sequences[1]);
}

async fn trim_of_everything_keeps_sequences_used(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("emptied");
    let sequences = append_all(&*rig.engine, &topic, &["a", "b"]).await;
    rig.engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
    let Bounds { first, tail } = rig.engine.bounds(&topic).await.unwrap();
    assert_eq!(first, sequences[1].next());
    assert!(tail >= first);
    assert!(read_on(&*rig.engine, &topic, first, ALL).await.is_empty());
    let others = append_all(&*rig.engine, &room("other"), &["x"]).await;
    assert!(others[0] > sequences[1]);
    assert!(append_all(&*rig.engine, &topic, &["c"]).await[0] > sequences[1]);
    assert_eq!(payloads(&read_all(&*rig.engine, &topic).await), ["c"]);
}

async fn trim_of_many_records_is_complete(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (topic, other) = (room("many"), room("many more"));
    let sequences = append_all(&*rig.engine, &topic, &["x"; 3000]).await;
    append_all(&*rig.engine, &other, &["y"; 10]).await;
    rig.engine.trim(&topic, sequences[2990]).await.unwrap();
    assert_eq!(read_all(&*rig.engine, &topic).await.len(), 10);
    assert_eq!(read_all(&*rig.engine, &other).await.len(), 10);
}

async fn trim_of_a_sparse_topic_counts_its_records(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (sparse, busy) = (room("sparse"), room("busy"));
    let mut own = Vec::new();
    for _ in 0..3 {
        own.extend(append_all(&*rig.engine, &sparse, &["y"]).await);
        append_all(&*rig.engine, &busy, &["x"; 1500]).await;
    }
    let trimmed = rig.metrics.trimmed.with_label_values(&["room"]);
    // One record is dropped, not one for each number before it.
    rig.engine.trim(&sparse, own[1]).await.unwrap();
    let first = rig.engine.bounds(&sparse).await.unwrap().first;
    assert_eq!((first, trimmed.get()), (own[0].next(), 1));
    let page = rig.engine.read(&sparse, first, ALL).await.unwrap();
    assert_eq!(page.records[0].sequence, own[1], "nobody lost it");
    let lost = rig.engine.read(&sparse, own[0], ALL).await;
    assert_eq!(lost.unwrap_err(), Error::Trimmed { first });
    // Nothing lies in the gap.
    rig.engine.trim(&sparse, own[1]).await.unwrap();
    assert_eq!(rig.engine.bounds(&sparse).await.unwrap().first, first);
    rig.engine.trim(&sparse, own[1].next()).await.unwrap();
    rig.engine.trim(&sparse, own[2]).await.unwrap();
    let first = rig.engine.bounds(&sparse).await.unwrap().first;
    assert_eq!((first, trimmed.get()), (own[1].next(), 2));
    rig.engine.trim(&busy, own[2]).await.unwrap();
    assert_eq!(trimmed.get(), 2 + 3000);
    assert_eq!(read_all(&*rig.engine, &sparse).await.len(), 1);
    assert_eq!(read_all(&*rig.engine, &busy).await.len(), 1500);
}

async fn a_repeated_key_is_a_duplicate(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("keys");
    let first = append(&*rig.engine, vec![keyed(&topic, "k", "a")]).await;
    let Outcome::Stored { sequence, time } = first[0] else {
        panic!("not stored: {first:?}");
    };
    let batch = vec![
        record(&topic, "x"),
        keyed(&topic, "k", "a"),
        record(&topic, "y"),
    ];
    let outcomes = append(&*rig.engine, batch).await;
    assert_eq!(outcomes[1], Outcome::Duplicate { sequence, time });
    assert_eq!(
        payloads(&read_all(&*rig.engine, &topic).await),
        ["a", "x", "y"]
    );
}

async fn a_reused_key_is_a_conflict(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("keys");
    let sequence = stored(append(&*rig.engine, vec![keyed(&topic, "k", "a")]).await[0]);
    let mut other_kind = keyed(&topic, "k", "a");
    other_kind.kind += 1;
    let outcomes = append(&*rig.engine, vec![keyed(&topic, "k", "b"), other_kind]).await;
    assert_eq!(outcomes, [Outcome::Conflict { sequence }; 2]);
    assert_eq!(payloads(&read_all(&*rig.engine, &topic).await), ["a"]);
}

async fn a_key_repeats_within_one_batch(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("keys");
    let batch = vec![
        keyed(&topic, "k", "a"),
        keyed(&topic, "k", "a"),
        keyed(&topic, "k", "b"),
    ];
    let outcomes = append(&*rig.engine, batch).await;
    let Outcome::Stored { sequence, time } = outcomes[0] else {
        panic!("not stored: {outcomes:?}");
    };
    let repeats = [
        Outcome::Duplicate { sequence, time },
        Outcome::Conflict { sequence },
    ];
    assert_eq!(outcomes[1..], repeats);
    assert_eq!(payloads(&read_all(&*rig.engine, &topic).await), ["a"]);
}

async fn concurrent_repeats_store_once(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("keys");
    let repeats = (0..40).map(|_| append(&*rig.engine, vec![keyed(&topic, "k", "a")]));
    let outcomes = join_all(repeats).await.concat();
    let is_stored = |outcome: &&Outcome| matches!(outcome, Outcome::Stored { .. });
    assert_eq!(outcomes.iter().filter(is_stored).count(), 1);
    assert_eq!(read_all(&*rig.engine, &topic).await.len(), 1);
}

async fn keys_belong_to_topic_and_publisher(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (topic, other) = (room("keys"), room("other keys"));
    let mut by_other = keyed(&topic, "k", "a");
    by_other.publisher = "bob".into();
    // Publisher and key together spell the same as above.
    let mut shifted = keyed(&topic, "ak", "a");
    shifted.publisher = "ad".into();
    let batch = vec![
        keyed(&topic, "k", "a"),
        keyed(&other, "k", "a"),
        by_other,
        shifted,
    ];
    let outcomes = append(&*rig.engine, batch).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Stored { .. }))
    );
}

async fn a_key_is_forgotten_after_the_window(kind: EngineKind) {
    let rig = Rig::with(kind, |log| log.dedupe_window = Duration::from_millis(50));
    let topic = room("keys");
    let first = stored(append(&*rig.engine, vec![keyed(&topic, "k", "a")]).await[0]);
    eventually("the key is free again", async || {
        match append(&*rig.engine, vec![keyed(&topic, "k", "b")]).await[0] {
            Outcome::Stored { sequence, .. } => sequence > first,
            Outcome::Conflict { sequence } => sequence != first,
            Outcome::Duplicate { .. } => false,
        }
    })
    .await;
    assert_eq!(payloads(&read_all(&*rig.engine, &topic).await), ["a", "b"]);
}

async fn a_feed_joins_history_without_gap_or_repeat(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("seam");
    let writing = {
        let (engine, topic) = (rig.engine.clone(), topic.clone());
        tokio::spawn(async move {
            for _ in 0..300 {
                append_all(&*engine, &topic, &["x", "y"]).await;
            }
        })
    };
    let mut feeds = Vec::new();
    for _ in 0..10 {
        let feed = Feed::new();
        let follow = rig.engine.follow(&topic, feed.weak()).await.unwrap();
        let start = feed.start().await;
        feeds.push((feed, start, follow));
        append_all(&*rig.engine, &topic, &["z"]).await;
    }
    writing.await.unwrap();
    let all = read_all(&*rig.engine, &topic).await;
    let sequences = all.iter().map(|record| record.sequence).collect::<Vec<_>>();
    let last = sequences[sequences.len() - 1];
    for (feed, start, _follow) in feeds {
        feed.until(|seen| seen.next > last).await;
        let history = all.iter().filter(|record| record.sequence < start).cloned();
        let joined = history.chain(feed.seen(|seen| seen.records.clone()));
        assert!(
            joined
                .map(|record| record.sequence)
                .eq(sequences.iter().copied())
        );
    }
}

async fn a_feed_of_an_unknown_topic_starts_with_its_first_record(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("not yet");
    let feed = Feed::new();
    let _follow = rig.engine.follow(&topic, feed.weak()).await.unwrap();
    let start = feed.start().await;
    let sequence = append_all(&*rig.engine, &topic, &["x"]).await[0];
    assert!(start <= sequence);
    feed.until(|seen| seen.records.len() == 1).await;
}

async fn a_feed_of_a_quiet_topic_starts_at_the_tail_of_the_log(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("quiet");
    append_all(&*rig.engine, &topic, &["a"]).await;
    let early = Feed::new();
    let _follow = rig.engine.follow(&topic, early.weak()).await.unwrap();
    let acknowledged = append_all(&*rig.engine, &room("busy"), &["x"; 9]).await[8];
    // Each feed goes on from its own start, also when there are several.
    let late = Feed::new();
    let _follow = rig.engine.follow(&topic, late.weak()).await.unwrap();
    let start = late.start().await;
    assert_eq!(start, acknowledged.next());
    assert_eq!(start, rig.engine.bounds(&topic).await.unwrap().tail);
    assert!(early.start().await < start);
    append_all(&*rig.engine, &room("busy"), &["x"; 9]).await;
    let own = append_all(&*rig.engine, &topic, &["b"]).await[0];
    for feed in [early, late] {
        feed.until(|seen| seen.next == own.next()).await;
        assert_eq!(feed.seen(|seen| payloads(&seen.records)), ["b"]);
    }
}

fn hub(rig: &Rig) -> Hub {
    let config = config::Hub::default();
    Hub::new(rig.engine.clone(), &config, Metrics::new(), Traces::off())
}

async fn next_texts(subscription: &mut weir::core::hub::Subscription<Records>) -> Vec<String> {
    let batch = tokio::time::timeout(DEADLINE, subscription.next());
    payloads(&batch.await.expect("something new").unwrap().data)
}

async fn a_subscription_joins_history_and_live_over_gaps(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (topic, busy) = (room("quiet"), room("busy"));
    append_all(&*rig.engine, &topic, &["a"]).await;
    append_all(&*rig.engine, &busy, &["x"; 50]).await;
    let hub = hub(&rig);
    let from_first = Start::After(Sequence(0));
    let mut all = hub.subscribe(&topic, from_first, Records).await.unwrap();
    let mut live = hub.subscribe(&topic, Start::Live, Records).await.unwrap();
    assert_eq!(next_texts(&mut all).await, ["a"]);
    append_all(&*rig.engine, &busy, &["x"; 50]).await;
    append_all(&*rig.engine, &topic, &["b"]).await;
    append_all(&*rig.engine, &busy, &["x"; 50]).await;
    for subscription in [&mut all, &mut live] {
        assert_eq!(next_texts(subscription).await, ["b"]);
    }
    append_all(&*rig.engine, &topic, &["c"]).await;
    for subscription in [&mut all, &mut live] {
        assert_eq!(next_texts(subscription).await, ["c"]);
    }
}

/// Topics written to at the same time, in batches over several, some rarely: one follower sees the log's order, and one who
/// resumes at any of its positions sees the rest.
async fn several_topics_are_followed_in_the_order_of_the_log(kind: EngineKind) {
    const BATCHES: usize = 300;
    let rig = Rig::new(kind);
    let topics = ["a", "b", "rare"].map(room);
    let core = Topics::new(rig.engine.clone(), hub(&rig), Traces::off());
    let from_first = Start::After(Sequence(0));
    append_all(&*rig.engine, &topics[1], &["before"]).await;
    let mut merged = core.merge(&topics, from_first).await.unwrap();
    let engine = rig.engine.clone();
    let [a, b, rare] = topics.clone();
    let writing = tokio::spawn(async move {
        let mut written = Vec::new();
        for number in 0..BATCHES {
            let mut batch = vec![
                record(&b, "1"),
                record(&a, "2"),
                record(&room("other"), "3"),
            ];
            if number % 50 == 0 {
                batch.push(record(&rare, "4"));
            }
            let outcomes = append(&*engine, batch).await;
            let others = outcomes.into_iter().map(stored).enumerate();
            written.extend(
                others
                    .filter(|(index, _)| *index != 2)
                    .map(|(_, sequence)| sequence),
            );
        }
        written
    });
    let mut cursors = vec![merged.cursor()];
    let mut seen = Vec::new();
    while seen.len() < 1 + 2 * BATCHES + BATCHES / 50 {
        let batch = tokio::time::timeout(DEADLINE, merged.next());
        let batch = batch.await.expect("something new").unwrap();
        seen.extend(batch.iter().map(|(_, record)| record.sequence));
        cursors.push(merged.cursor());
    }
    assert!(seen.is_sorted_by(|one, next| one < next));
    assert_eq!(seen[1..], writing.await.unwrap());
    for cursor in cursors {
        let rest: Vec<_> = seen
            .iter()
            .filter(|sequence| **sequence >= cursor)
            .collect();
        let start = Start::After(Sequence(cursor.0 - 1));
        let mut resumed = core.merge(&topics, start).await.unwrap();
        let mut again = Vec::new();
        while again.len() < rest.len() {
            let batch = resumed.next().await.unwrap();
            again.extend(batch.into_iter().map(|(_, record)| record.sequence));
        }
        assert!(again.iter().eq(rest), "after {cursor}");
    }
}

async fn a_subscription_starts_at_a_position_of_another_topic(kind: EngineKind) {
    let rig = Rig::new(kind);
    let (topic, busy) = (room("quiet"), room("busy"));
    append_all(&*rig.engine, &topic, &["a"]).await;
    let hub = hub(&rig);
    // Keeps the topic's tail in memory, behind which the position lies.
    let mut live = hub.subscribe(&topic, Start::Live, Records).await.unwrap();
    append_all(&*rig.engine, &topic, &["b"]).await;
    let seen = append_all(&*rig.engine, &busy, &["x"; 9]).await[8];
    let at_seen = Start::After(seen);
    let mut resumed = hub.subscribe(&topic, at_seen, Records).await.unwrap();
    append_all(&*rig.engine, &topic, &["c"]).await;
    assert_eq!(next_texts(&mut resumed).await, ["c"]);
    assert_eq!(next_texts(&mut live).await, ["b", "c"]);
    let tail = rig.engine.bounds(&topic).await.unwrap().tail;
    let beyond = hub.subscribe(&topic, Start::After(tail), Records).await;
    assert_eq!(beyond.err().unwrap(), Error::BeyondTail { tail });
}

async fn every_follower_sees_every_record(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("shared");
    let (one, two) = (Feed::new(), Feed::new());
    let _follow_one = rig.engine.follow(&topic, one.weak()).await.unwrap();
    let _follow_two = rig.engine.follow(&topic, two.weak()).await.unwrap();
    one.start().await;
    two.start().await;
    append_all(&*rig.engine, &topic, &["x"]).await;
    append_all(&*rig.engine, &room("another"), &["y"]).await;
    for feed in [one, two] {
        feed.until(|seen| !seen.records.is_empty()).await;
        assert_eq!(feed.seen(|seen| payloads(&seen.records)), ["x"]);
    }
}

async fn one_batch_is_fed_in_one_call(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("burst");
    let feed = Feed::new();
    let _follow = rig.engine.follow(&topic, feed.weak()).await.unwrap();
    feed.start().await;
    append_all(&*rig.engine, &topic, &["x"; 100]).await;
    assert_eq!(
        feed.seen(|seen| (seen.calls_with_records, seen.records.len())),
        (1, 100)
    );
}

async fn dropping_a_follow_ends_the_feed(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("left");
    let (gone, stays) = (Feed::new(), Feed::new());
    let follow = rig.engine.follow(&topic, gone.weak()).await.unwrap();
    let _follow = rig.engine.follow(&topic, stays.weak()).await.unwrap();
    gone.start().await;
    drop(follow);
    append_all(&*rig.engine, &topic, &["x"]).await;
    stays.until(|seen| seen.records.len() == 1).await;
    assert_eq!(gone.seen(|seen| seen.records.len()), 0);
}

async fn a_gone_follower_does_no_harm(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("gone");
    let feed = Feed::new();
    let _follow = rig.engine.follow(&topic, feed.weak()).await.unwrap();
    feed.start().await;
    drop(feed);
    append_all(&*rig.engine, &topic, &["x"]).await;
    assert_eq!(read_all(&*rig.engine, &topic).await.len(), 1);
}

async fn topics_list_in_name_order_with_any_name(kind: EngineKind) {
    let rig = Rig::new(kind);
    let long = "é".repeat(128);
    let names = [
        "a/b",
        "a",
        "a\0b",
        "\0",
        "*",
        ">",
        ".",
        "..",
        "a.b",
        "a b",
        "%2F",
        "עברית",
        "🦀",
        "\u{202e}rtl",
        "\u{ffff}",
        "\u{10ffff}",
        &long,
        "A",
        " padded ",
    ];
    let topics = names.map(room);
    append(
        &*rig.engine,
        topics
            .iter()
            .map(|topic| record(topic, topic.name().to_owned()))
            .collect(),
    )
    .await;
    let canary = Topic::new(Space::Canary, "a").unwrap();
    append_all(&*rig.engine, &canary, &["c"]).await;
    let expected = topics
        .iter()
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>();
    let all = rig.engine.topics(Space::Room, None, 100).await.unwrap();
    assert_eq!(all, expected);
    let mut paged = Vec::<Topic>::new();
    loop {
        let page = rig
            .engine
            .topics(Space::Room, paged.last(), 4)
            .await
            .unwrap();
        assert!(page.len() <= 4);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, expected);
    assert_eq!(
        rig.engine.topics(Space::Canary, None, 9).await.unwrap(),
        [canary]
    );
    for topic in &topics {
        assert_eq!(
            payloads(&read_all(&*rig.engine, topic).await),
            [topic.name()]
        );
    }
}

fn retention(bytes: ByteSize, age: Duration) -> impl FnOnce(&mut weir::config::Log) {
    move |log| {
        log.retention_interval = Duration::from_millis(10);
        log.retention.room = Retention { age, bytes };
    }
}

async fn retention_by_bytes_drops_the_oldest(kind: EngineKind) {
    let rig = Rig::with(
        kind,
        retention(ByteSize::kib(50), Duration::from_secs(3600)),
    );
    let topic = room("large");
    let batch = (0..100).map(|_| record(&topic, vec![1; 1024])).collect();
    let last = append(&*rig.engine, batch)
        .await
        .into_iter()
        .map(stored)
        .max()
        .unwrap();
    eventually("the topic shrinks to its bound", async || {
        let first = rig.engine.bounds(&topic).await.unwrap().first;
        let kept = match rig.engine.read(&topic, first, ALL).await {
            Ok(page) => page.records,
            Err(Error::Trimmed { .. }) => return false,
            Err(error) => panic!("{error}"),
        };
        assert!(
            kept.len() >= 30,
            "no more than needed is dropped: {} left",
            kept.len()
        );
        assert_eq!(kept[kept.len() - 1].sequence, last, "the newest stays");
        kept.len() <= 50
    })
    .await;
}

async fn retention_by_age_drops_the_old(kind: EngineKind) {
    let rig = Rig::with(
        kind,
        retention(ByteSize::gib(1), Duration::from_millis(100)),
    );
    let topic = room("old");
    let last = append_all(&*rig.engine, &topic, &["a", "b"]).await[1];
    eventually("old records go", async || {
        rig.engine.bounds(&topic).await.unwrap().first > last
    })
    .await;
    assert!(append_all(&*rig.engine, &topic, &["c"]).await[0] > last);
}

async fn retention_is_per_space(kind: EngineKind) {
    let rig = Rig::with(kind, |log| {
        retention(ByteSize::gib(1), Duration::from_secs(3600))(log);
        log.retention.canary.age = Duration::ZERO;
    });
    let canary = Topic::new(Space::Canary, "probe").unwrap();
    let kept = room("kept");
    let outcomes = append(&*rig.engine, vec![record(&canary, "a"), record(&kept, "b")]).await;
    let probe = stored(outcomes[0]);
    eventually("the canary's record goes", async || {
        rig.engine.bounds(&canary).await.unwrap().first > probe
    })
    .await;
    assert_eq!(read_all(&*rig.engine, &kept).await.len(), 1);
}

async fn metrics_count_what_happened(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("counted");
    let sequences = append_all(&*rig.engine, &topic, &["a", "b"]).await;
    append(
        &*rig.engine,
        vec![keyed(&topic, "k", "c"), keyed(&topic, "k", "c")],
    )
    .await;
    rig.engine.trim(&topic, sequences[1]).await.unwrap();
    let metrics = &rig.metrics;
    assert_eq!(metrics.appended.with_label_values(&["room"]).get(), 3);
    assert!(metrics.appended_bytes.with_label_values(&["room"]).get() > 3);
    assert_eq!(metrics.deduplicated.get(), 1);
    assert_eq!(metrics.trimmed.with_label_values(&["room"]).get(), 1);
    assert_eq!(metrics.append_secs.get_sample_count(), 2);
    assert_eq!(metrics.log_health.with_label_values(&["ready"]).get(), 1);
    rig.engine.close().await;
    assert_eq!(metrics.log_health.with_label_values(&["ready"]).get(), 0);
    assert_eq!(metrics.log_health.with_label_values(&["closed"]).get(), 1);
}

async fn close_refuses_appends_and_is_idempotent(kind: EngineKind) {
    let rig = Rig::new(kind);
    let topic = room("closing");
    let health = rig.engine.health();
    assert_eq!(*health.borrow(), Health::Ready);
    let mut acks = Vec::new();
    for _ in 0..20 {
        acks.push(rig.engine.enqueue(vec![record(&topic, "x")]).await.unwrap());
    }
    tokio::join!(rig.engine.close(), rig.engine.close());
    assert_eq!(*health.borrow(), Health::Closed);
    for ack in acks {
        assert!(ack.await.is_ok(), "what was queued is finished");
    }
    let refused = rig.engine.enqueue(vec![record(&topic, "y")]).await;
    assert_eq!(refused.unwrap_err(), Error::Closed);
    let refused = rig.engine.read(&topic, Sequence::FIRST, ALL).await;
    assert_eq!(refused.unwrap_err(), Error::Closed);
    assert!(rig.engine.follow(&topic, Feed::new().weak()).await.is_err());
    rig.engine.close().await;
}
