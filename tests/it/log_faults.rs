//! The embedded engine on disks that are slow, full, failing or out of descriptors, and by clocks that jump; and what readers see
//! beside all that.

use std::{io, sync::Arc, time::Duration};

use bytesize::ByteSize;
use futures::future::join_all;
use tempfile::TempDir;
use weir::{
    config::{self, Retention},
    core::hub::{Hub, Records, Start},
    log::{
        Engine, Error, Health, OpenError, Outcome, Sequence, Space, Timestamp, Topic,
        clock::{ManualTime, SystemTime, TimeSource as _},
        embedded::{Embedded, Faults, Ground},
    },
    telemetry::{Metrics, Traces},
};

use super::log_support::{
    ALL, DEADLINE, Feed, append, append_all, eventually, keyed, payloads, read_all, record, room,
    settings, stored,
};

const EMFILE: i32 = 24;
const EROFS: i32 = 30;

fn open(config: &config::Log) -> Embedded {
    Embedded::open(config, Metrics::new()).unwrap()
}

fn faulty(config: &config::Log) -> (Embedded, Faults, Metrics) {
    let faults = Faults::default();
    let metrics = Metrics::new();
    let engine = Embedded::open_with(config, metrics.clone(), faults.clone()).unwrap();
    (engine, faults, metrics)
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(DEADLINE, work).await;
    done.unwrap_or_else(|_| panic!("{what} waits for a flush"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_an_append_waits_for_a_flush() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("slow");
    let (engine, faults, metrics) = faulty(&config);
    let engine: Arc<dyn Engine> = Arc::new(engine);
    append_all(&*engine, &topic, &["a", "b"]).await;
    faults.hold();
    let first = engine.enqueue(vec![record(&topic, "c")]).await.unwrap();
    tokio::task::block_in_place(|| faults.wait_until_held());
    let second = engine.enqueue(vec![record(&topic, "d")]).await.unwrap();
    // The flush does not end before all of this has.
    let hub = Hub::new(
        engine.clone(),
        &config::Hub::default(),
        metrics.clone(),
        Traces::off(),
    );
    let live = hub.subscribe(&topic, Start::Live, Records);
    let mut live = in_time("a subscription", live).await.unwrap();
    let feed = Feed::new();
    let follow = engine.follow(&topic, feed.weak());
    let _follow = in_time("a feed", follow).await.unwrap();
    assert_eq!(in_time("a feed's start", feed.start()).await, Sequence(3));
    let page = in_time("a read", engine.read(&topic, Sequence(1), ALL)).await;
    assert_eq!(payloads(&page.unwrap().records), ["a", "b"]);
    let last = in_time("the last record", engine.last(&topic))
        .await
        .unwrap();
    assert_eq!(last.unwrap().sequence, Sequence(2));
    let bounds = in_time("bounds", engine.bounds(&topic)).await.unwrap();
    assert_eq!((bounds.tail, engine.tail()), (Sequence(3), Sequence(3)));
    let seek = engine.seek(&topic, Timestamp(0));
    assert_eq!(in_time("a search", seek).await.unwrap(), Sequence(1));
    let topics = engine.topics(Space::Room, None, 9);
    assert_eq!(in_time("a list", topics).await.unwrap().len(), 1);
    faults.release();
    let first = first.await.unwrap();
    let second = second.await.unwrap();
    assert_eq!(stored(first[0]).next(), stored(second[0]));
    // One flush for what was there before, one for what came during the flush, however much that is.
    assert_eq!(metrics.fsync_secs.get_sample_count(), 3);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(payloads(
            &in_time("live records", live.next()).await.unwrap().data,
        ));
    }
    assert_eq!(seen, ["c", "d"]);
}

#[tokio::test]
async fn flushes_that_fail_for_good_end_appends_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("failing");
    let (engine, faults, _) = faulty(&config);
    append_all(&engine, &topic, &["kept"]).await;
    faults.fail_flushes(Some(io::ErrorKind::Other));
    let lost = engine.enqueue(vec![record(&topic, "unknown")]).await;
    let lost = lost.unwrap().await;
    assert!(matches!(lost, Err(Error::Failed(_))), "{lost:?}");
    for _ in 0..3 {
        let refused = match engine.enqueue(vec![record(&topic, "late")]).await {
            Ok(ack) => ack.await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(refused, Error::Failed(_)), "{refused:?}");
    }
    assert_eq!(payloads(&read_all(&engine, &topic).await), ["kept"]);
    in_time("closing", engine.close()).await;
    // What the failed flush left is there or not; what was acknowledged is, and numbers grow.
    let engine = open(&config);
    let found = payloads(&read_all(&engine, &topic).await);
    assert!(
        found == ["kept"] || found == ["kept", "unknown"],
        "{found:?}"
    );
    let next = append_all(&engine, &topic, &["on"]).await[0];
    assert_eq!(next.0, found.len() as u64 + 1);
}

#[tokio::test]
async fn a_disk_that_does_not_read_fails_reads_only() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("unreadable");
    let (engine, faults, _) = faulty(&config);
    append_all(&engine, &topic, &["a"]).await;
    faults.fail_reads(Some(io::ErrorKind::Other));
    let failed = engine.read(&topic, Sequence(1), ALL).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    append_all(&engine, &topic, &["b"]).await;
    assert_eq!(*engine.health().borrow(), Health::Ready);
    faults.fail_reads(None);
    assert_eq!(payloads(&read_all(&engine, &topic).await), ["a", "b"]);
}

#[tokio::test]
async fn room_that_cannot_be_set_aside_is_a_full_disk_before_anything_is_written() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("no room");
    let (engine, faults, _) = faulty(&config);
    faults.fail_allocations(Some(io::ErrorKind::StorageFull));
    let mut acknowledged = 0;
    let refused = loop {
        let ack = engine
            .enqueue(vec![record(&topic, vec![1; 256 * 1024])])
            .await;
        match ack.unwrap().await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 64, "never full");
    };
    assert_eq!(refused, Error::Full);
    engine.trim(&topic, Sequence(2)).await.unwrap();
    assert_eq!(read_all(&engine, &topic).await.len(), acknowledged - 1);
    faults.fail_allocations(None);
    let mut health = engine.health();
    let ready = health.wait_for(|health| *health == Health::Ready);
    in_time("recovery", ready).await.unwrap();
    let next = append_all(&engine, &topic, &["on"]).await[0];
    assert_eq!(next.0, acknowledged as u64 + 1);
    drop(engine);
    assert_eq!(read_all(&open(&config), &topic).await.len(), acknowledged);
}

#[tokio::test]
async fn without_descriptors_the_log_goes_on_in_the_files_it_has() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    let topic = room("no descriptors");
    let (engine, faults, _) = faulty(&config);
    append_all(&engine, &topic, &["a"]).await;
    faults.fail_creations(Some(EMFILE));
    for _ in 0..8 {
        append(&engine, vec![record(&topic, vec![1; 512 * 1024])]).await;
    }
    assert_eq!(*engine.health().borrow(), Health::Ready);
    faults.fail_creations(None);
    append_all(&engine, &topic, &["b"]).await;
    let segments = || {
        let files = std::fs::read_dir(config.dir.join("log")).unwrap();
        let names = files.map(|file| file.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".segment"))
            .count()
    };
    eventually("journals are sealed again", async || segments() > 0).await;
    assert_eq!(read_all(&engine, &topic).await.len(), 10);
}

#[tokio::test]
async fn a_read_only_disk_is_told_at_the_start() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let faults = Faults::default();
    faults.fail_creations(Some(EROFS));
    let error = Embedded::open_with(&config, Metrics::new(), faults)
        .err()
        .unwrap();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

/// A subscriber to a room that is created at that moment sees every record of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_to_a_room_that_comes_to_be_has_no_hole() {
    const ROUNDS: usize = 10_000;
    const TASKS: usize = 16;
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let engine: Arc<dyn Engine> = Arc::new(open(&config));
    let hub = Hub::new(
        engine.clone(),
        &config::Hub::default(),
        Metrics::new(),
        Traces::off(),
    );
    let rounds = (0..TASKS).map(|task| {
        let engine = engine.clone();
        let hub = hub.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS / TASKS {
                let topic = room(&format!("{task}-{round}"));
                let writing = async {
                    for text in ["a", "b"] {
                        append_all(&*engine, &topic, &[text]).await;
                    }
                };
                let reading = async {
                    let start = Start::After(Sequence(0));
                    let mut all = hub.subscribe(&topic, start, Records).await.unwrap();
                    let mut seen = Vec::new();
                    while seen.len() < 2 {
                        let batch = tokio::time::timeout(DEADLINE, all.next()).await;
                        seen.extend(payloads(&batch.expect("a record").unwrap().data));
                    }
                    assert_eq!(seen, ["a", "b"], "in round {round}");
                };
                tokio::join!(writing, reading);
            }
        })
    });
    for round in join_all(rounds).await {
        round.unwrap();
    }
}

/// A page beside trims begins where it was asked to, or says that it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_beside_a_trim_has_no_hole() {
    const ROUNDS: usize = 10_000;
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::kib(64);
    let topic = room("trimmed");
    let engine = Arc::new(open(&config));
    append(&*engine, vec![record(&topic, vec![1; 100]); 1000]).await;
    let trimming = {
        let engine = engine.clone();
        let topic = topic.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS as u64 / 10 {
                append(&*engine, vec![record(&topic, vec![1; 100]); 10]).await;
                engine.trim(&topic, Sequence(round * 10 + 5)).await.unwrap();
            }
        })
    };
    let mut pages = 0;
    let mut at = Sequence(1);
    while !trimming.is_finished() || pages < ROUNDS {
        let limit = weir::log::Limit {
            records: 64,
            bytes: usize::MAX,
        };
        match engine.read(&topic, at, limit).await {
            Ok(page) => {
                let found = page.records.iter().map(|record| record.sequence.0);
                assert!(found.eq(at.0..page.next.0), "from {at} to {}", page.next);
                at = page.next;
            }
            Err(Error::Trimmed { first }) => {
                assert!(at < first);
                at = first;
            }
            Err(error) => panic!("{error}"),
        }
        pages += 1;
        if at == engine.tail() {
            at = engine.bounds(&topic).await.unwrap().first;
        }
    }
    trimming.await.unwrap();
}

/// Keys outlive what retention drops and the file that their records were written to.
#[tokio::test]
async fn keys_outlive_their_records_and_journals() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    let (topic, other) = (room("keys"), room("others"));
    let engine = open(&config);
    let mut first = Vec::new();
    for number in 0..100 {
        let key = format!("key {number}");
        first.extend(append(&engine, vec![keyed(&topic, &key, "a")]).await);
    }
    append(&engine, vec![keyed(&other, "key 0", "a")]).await;
    for _ in 0..3 {
        append(&engine, vec![record(&other, vec![1; 1 << 20])]).await;
    }
    engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
    engine.trim(&other, Sequence(u64::MAX)).await.unwrap();
    let log = config.dir.join("log");
    eventually("nothing is left but keys", async || {
        let files = std::fs::read_dir(&log).unwrap();
        let segments = files
            .map(|file| file.unwrap())
            .filter(|file| file.file_name().to_string_lossy().ends_with(".segment"));
        let bytes: u64 = segments
            .map(|file| file.metadata().map_or(0, |meta| meta.len()))
            .sum();
        bytes > 0 && bytes < 64 * 1024
    })
    .await;
    let repeat = async |engine: &Embedded| {
        for (number, before) in first.iter().enumerate() {
            let Outcome::Stored { sequence, time } = *before else {
                panic!("not stored: {before:?}");
            };
            let key = format!("key {number}");
            let again = append(engine, vec![keyed(&topic, &key, "a")]).await;
            assert_eq!(again, [Outcome::Duplicate { sequence, time }], "{key}");
            let other = append(engine, vec![keyed(&topic, &key, "b")]).await;
            assert_eq!(other, [Outcome::Conflict { sequence }], "{key}");
        }
        assert!(read_all(engine, &topic).await.is_empty());
    };
    repeat(&engine).await;
    engine.close().await;
    repeat(&open(&config)).await;
}

/// Topics without records are forgotten when there are many; positions in them are told from those of topics that never were.
#[tokio::test]
async fn emptied_topics_are_forgotten_but_not_what_they_lost() {
    const TOPICS: usize = 70_000;
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.retention_interval = Duration::from_millis(50);
    config.retention.canary.age = Duration::ZERO;
    config.max_topics = TOPICS + 10;
    let canary = |number: usize| Topic::new(Space::Canary, &format!("{number:06}")).unwrap();
    let kept = room("kept");
    let engine = open(&config);
    append_all(&engine, &kept, &["a"]).await;
    for start in (0..TOPICS).step_by(1000) {
        let batch = (start..start + 1000).map(|number| record(&canary(number), "x"));
        append(&engine, batch.collect()).await;
    }
    append_all(&engine, &kept, &["b"]).await;
    eventually("the oldest are forgotten", async || {
        let names = engine.topics(Space::Canary, None, TOPICS).await.unwrap();
        names.len() <= 65_536
    })
    .await;
    let check = async |engine: &Embedded| {
        // Its record had number 2, so whoever has seen less missed it.
        let lost = engine.read(&canary(0), Sequence(2), ALL).await;
        assert!(matches!(lost, Err(Error::Trimmed { .. })), "{lost:?}");
        let new = Topic::new(Space::Room, "never was").unwrap();
        let page = engine.read(&new, Sequence(0), ALL).await.unwrap();
        assert_eq!((page.records.len(), page.next), (0, engine.tail()));
        assert_eq!(payloads(&read_all(engine, &kept).await), ["a", "b"]);
    };
    check(&engine).await;
    engine.close().await;
    let engine = open(&config);
    check(&engine).await;
    let again = append_all(&engine, &canary(0), &["again"]).await[0];
    let page = engine.read(&canary(0), again, ALL).await.unwrap();
    assert_eq!(payloads(&page.records), ["again"]);
}

#[tokio::test]
async fn topics_beyond_their_number_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.max_topics = 3;
    let engine = open(&config);
    let topics = ["a", "b", "c", "d", "e"].map(room);
    append(
        &engine,
        topics[..2].iter().map(|topic| record(topic, "x")).collect(),
    )
    .await;
    let batch = topics[2..].iter().map(|topic| record(topic, "x")).collect();
    let refused = engine.enqueue(batch).await.unwrap().await;
    assert_eq!(refused, Err(Error::Topics { limit: 3 }));
    assert!(
        read_all(&engine, &topics[2]).await.is_empty(),
        "nothing of it is stored"
    );
    append_all(&engine, &topics[2], &["x"]).await;
    let refused = engine
        .enqueue(vec![record(&topics[3], "x")])
        .await
        .unwrap()
        .await;
    assert_eq!(refused, Err(Error::Topics { limit: 3 }));
    append_all(&engine, &topics[0], &["y"]).await;
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A log by a clock that the test sets, with retention by age of a day in all its rooms.
struct Timed {
    dir: TempDir,
    config: config::Log,
    time: ManualTime,
}

impl Timed {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut config = settings(dir.path());
        config.retention_interval = Duration::from_millis(2);
        config.retention.room = Retention {
            age: DAY,
            bytes: ByteSize::gib(1),
        };
        let time = ManualTime::new(SystemTime.wall());
        Self { dir, config, time }
    }

    fn open(&self) -> Embedded {
        assert!(self.dir.path().exists());
        let ground = Ground {
            time: Arc::new(self.time.clone()),
            ..Ground::default()
        };
        Embedded::open_on(&self.config, Metrics::new(), ground).unwrap()
    }

    fn jump(&self, seconds: i64) {
        let nanos = seconds * 1_000_000_000;
        self.time
            .set_wall(Timestamp(self.time.wall().0.wrapping_add_signed(nanos)));
    }
}

/// Lets retention run: a record of another space comes and goes, which a round takes.
async fn rounds(engine: &Embedded, timed: &Timed) {
    let filler = room("filler");
    for _ in 0..5 {
        append_all(engine, &filler, &["x"]).await;
        timed.time.pass(Duration::from_secs(1));
        tokio::time::sleep(timed.config.retention_interval * 4).await;
    }
}

async fn is_repeated(engine: &Embedded, topic: &Topic) -> bool {
    let outcome = append(engine, vec![keyed(topic, "k", "keyed")]).await[0];
    matches!(outcome, Outcome::Duplicate { .. })
}

#[tokio::test]
async fn a_clock_31_days_ahead_for_a_moment_drops_nothing_and_forgets_no_key() {
    let timed = Timed::new();
    let topic = room("kept");
    let engine = timed.open();
    append_all(&engine, &topic, &["a"; 1000]).await;
    append(&engine, vec![keyed(&topic, "k", "keyed")]).await;
    timed.jump(31 * 24 * 3600);
    rounds(&engine, &timed).await;
    assert!(is_repeated(&engine, &topic).await);
    append_all(&engine, &topic, &["during"]).await;
    timed.jump(-31 * 24 * 3600);
    rounds(&engine, &timed).await;
    assert!(is_repeated(&engine, &topic).await);
    let records = read_all(&engine, &topic).await;
    assert_eq!(records.len(), 1002);
    // Nothing is pinned: a day later they are dropped, the one of the jump too.
    for _ in 0..26 {
        timed.time.pass(Duration::from_secs(3600));
        append_all(&engine, &room("filler"), &["x"]).await;
    }
    eventually("a day later they go", async || {
        append_all(&engine, &room("filler"), &["x"]).await;
        read_all(&engine, &topic).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn one_record_ten_years_ahead_pins_nothing() {
    let timed = Timed::new();
    let topic = room("pinned");
    let engine = timed.open();
    append(&engine, vec![keyed(&topic, "k", "keyed")]).await;
    engine.close().await;
    timed.time.pass(Duration::from_secs(5));
    timed.jump(3650 * 24 * 3600);
    let engine = timed.open();
    append_all(&engine, &topic, &["ahead"]).await;
    assert!(
        is_repeated(&engine, &topic).await,
        "the key is five seconds old"
    );
    rounds(&engine, &timed).await;
    engine.close().await;
    timed.jump(-3650 * 24 * 3600);
    let engine = timed.open();
    assert_eq!(
        payloads(&read_all(&engine, &topic).await),
        ["keyed", "ahead"]
    );
    assert!(is_repeated(&engine, &topic).await);
    // The key expires in its time, and so do the records.
    timed.time.pass(Duration::from_secs(11 * 60));
    assert!(!is_repeated(&engine, &topic).await);
    for _ in 0..26 {
        timed.time.pass(Duration::from_secs(3600));
        append_all(&engine, &room("filler"), &["x"]).await;
    }
    eventually("a day later they go", async || {
        append_all(&engine, &room("filler"), &["x"]).await;
        read_all(&engine, &topic).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_clock_an_hour_back_drops_nothing_and_keeps_keys_for_their_time() {
    let timed = Timed::new();
    let topic = room("back");
    let engine = timed.open();
    append(&engine, vec![keyed(&topic, "k", "keyed")]).await;
    timed.jump(-3600);
    rounds(&engine, &timed).await;
    let late = append_all(&engine, &topic, &["after"]).await[0];
    assert!(is_repeated(&engine, &topic).await);
    let records = read_all(&engine, &topic).await;
    assert!(records.is_sorted_by_key(|record| record.time));
    assert_eq!(records[records.len() - 1].sequence, late);
    // The log's time goes at half speed until the wall clock has caught up, so a key may be kept twice as long.
    timed.time.pass(Duration::from_secs(21 * 60));
    assert!(
        !is_repeated(&engine, &topic).await,
        "its time is over, whatever the clock says"
    );
}

/// Topics that come and go make room for others, however few there may be, and what they lost does not come back.
#[tokio::test]
async fn topics_that_come_and_go_make_room_for_others() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    config.retention_interval = Duration::from_millis(20);
    config.max_topics = 40;
    let kept = room("kept");
    let engine = open(&config);
    for round in 0..10 {
        append(&engine, vec![record(&kept, vec![1; 200 * 1024])]).await;
        for number in 0..10 {
            let topic = room(&format!("{round}-{number}"));
            eventually("there is room for another topic", async || {
                let batch = vec![record(&topic, vec![2; 20 * 1024])];
                engine.enqueue(batch).await.unwrap().await.is_ok()
            })
            .await;
            engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
        }
    }
    engine.close().await;
    let engine = open(&config);
    for round in 0..10 {
        for number in 0..10 {
            let topic = room(&format!("{round}-{number}"));
            let newest = engine
                .newest(&topic, Sequence(u64::MAX), ALL)
                .await
                .unwrap();
            assert!(newest.is_empty(), "{topic} came back");
        }
    }
    assert_eq!(read_all(&engine, &kept).await.len(), 10);
}
