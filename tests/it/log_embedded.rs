//! What the embedded engine promises beyond the contract: restarts, crashes, faults, full disks.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use bytesize::ByteSize;
use futures::future::join_all;
use tempfile::TempDir;
use weir::{
    config,
    core::hub::{Hub, Records, Start},
    log::{
        Engine, Error, Health, OpenError, Outcome, Sequence, Timestamp, Topic,
        embedded::{Embedded, Faults},
    },
    telemetry::{Metrics, Traces},
};

use super::log_support::{
    ALL, DEADLINE, Feed, append, append_all, copy_dir, eventually, keyed, payloads, read_all,
    record, room, settings, stored,
};

fn open(config: &config::Log) -> Embedded {
    Embedded::open(config, Metrics::new()).unwrap()
}

fn faulty(config: &config::Log) -> (Embedded, Faults, Metrics) {
    let (faults, metrics) = (Faults::default(), Metrics::new());
    let engine = Embedded::open_with(config, metrics.clone(), faults.clone()).unwrap();
    (engine, faults, metrics)
}

async fn health_is(engine: &Embedded, wanted: impl Fn(&Health) -> bool) {
    let mut health = engine.health();
    let reached = tokio::time::timeout(DEADLINE, health.wait_for(wanted)).await;
    assert!(
        reached.is_ok(),
        "health stays {:?}",
        engine.health().borrow()
    );
}

/// Bytes of the files below `dir`.
fn used_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => used_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// The journal that is written to: the last one that holds a batch.
fn journal(config: &config::Log) -> std::path::PathBuf {
    let files = fs::read_dir(config.dir.join("log")).unwrap();
    let journals = files
        .map(|file| file.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "journal")
        })
        .filter(|path| fs::read(path).unwrap()[64..].iter().any(|byte| *byte != 0));
    journals.max().unwrap()
}

/// Bytes of a journal up to the last one that is not zero.
fn written(journal: &Path) -> u64 {
    let bytes = fs::read(journal).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last as u64 + 1)
}

#[tokio::test]
async fn reopening_keeps_records_keys_and_positions() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let (topic, other) = (room("kept"), room("other"));
    let engine = open(&config);
    let first = append(&engine, vec![keyed(&topic, "k", "a")]).await;
    let last = append_all(&engine, &other, &["x", "y"]).await[1];
    let before = read_all(&engine, &topic).await;
    engine.close().await;

    let engine = open(&config);
    assert_eq!(read_all(&engine, &topic).await, before);
    let Outcome::Stored { sequence, time } = first[0] else {
        panic!("not stored: {first:?}");
    };
    let repeats = vec![
        keyed(&topic, "k", "a"),
        keyed(&topic, "k", "b"),
        record(&topic, "c"),
    ];
    let outcomes = append(&engine, repeats).await;
    assert_eq!(outcomes[0], Outcome::Duplicate { sequence, time });
    assert_eq!(outcomes[1], Outcome::Conflict { sequence });
    assert_eq!(stored(outcomes[2]), last.next());
    append_all(&engine, &room("new"), &["z"]).await;
    assert_eq!(payloads(&read_all(&engine, &other).await), ["x", "y"]);
    assert_eq!(payloads(&read_all(&engine, &room("new")).await), ["z"]);
}

#[tokio::test]
async fn sequences_are_not_reused_after_a_full_trim_and_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("emptied");
    let engine = open(&config);
    let last = append_all(&engine, &topic, &["a", "b", "c"]).await[2];
    engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
    engine.close().await;
    let engine = open(&config);
    let bounds = engine.bounds(&topic).await.unwrap();
    assert_eq!((bounds.first, bounds.tail), (last.next(), last.next()));
    assert_eq!(append_all(&engine, &topic, &["d"]).await, [last.next()]);
}

#[tokio::test]
async fn sequences_are_not_reused_by_any_topic_after_trims_and_restarts() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let (topic, other, new) = (room("emptied"), room("other"), room("new"));
    let mut last = Sequence(0);
    for round in 0..3 {
        let engine = open(&config);
        let tail = engine.bounds(&new).await.unwrap().tail;
        assert_eq!(tail, last.next(), "in round {round}");
        let first = append_all(&engine, &other, &["a"]).await[0];
        assert_eq!(first, last.next());
        last = append_all(&engine, &topic, &["b", "c"]).await[1];
        // The newest records of the log are gone, then all of them.
        engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
        if round > 0 {
            engine.trim(&other, Sequence(u64::MAX)).await.unwrap();
        }
        if round == 1 {
            // As it is for a process that is killed.
            let crashed = settings(&dir.path().join("crash"));
            copy_dir(&config.dir, &crashed.dir);
            let survivor = open(&crashed);
            assert_eq!(append_all(&survivor, &new, &["d"]).await, [last.next()]);
        }
        engine.close().await;
    }
    let engine = open(&config);
    assert_eq!(append_all(&engine, &new, &["d"]).await, [last.next()]);
}

#[tokio::test]
async fn expired_keys_are_swept_and_do_not_come_back() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.dedupe_window = Duration::from_millis(1);
    config.retention_interval = Duration::from_millis(2);
    let topic = room("swept");
    let engine = open(&config);
    // The same keys again and again: an expiry of an old use must not take a newer use away.
    eventually("keys were used twice", async || {
        let batch = (0..50)
            .map(|at| keyed(&topic, &at.to_string(), "x"))
            .collect();
        append(&engine, batch).await;
        read_all(&engine, &topic).await.len() >= 100
    })
    .await;
    engine.close().await;
    config.dedupe_window = Duration::from_secs(600);
    let engine = open(&config);
    let batch = vec![keyed(&topic, "again", "x"), keyed(&topic, "again", "x")];
    let outcomes = append(&engine, batch).await;
    assert!(matches!(outcomes[1], Outcome::Duplicate { .. }));
}

#[tokio::test]
async fn a_directory_in_use_is_refused_and_free_after_close() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let engine = open(&config);
    let second = Embedded::open(&config, Metrics::new()).err().unwrap();
    assert!(matches!(&second, OpenError::InUse { path } if *path == config.dir));
    assert!(
        second.to_string().contains("in use by another process"),
        "{second}"
    );
    append_all(&engine, &room("fine"), &["still works"]).await;
    engine.close().await;
    let engine = open(&config);
    assert_eq!(read_all(&engine, &room("fine")).await.len(), 1);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let config = settings(&dir.path().join("file"));
    let error = Embedded::open(&config, Metrics::new()).err().unwrap();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&config.dir.display().to_string()), "{text}");
    assert_eq!(text.lines().count(), 1);
}

/// Every file below `dir` with its content.
fn contents(dir: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

/// Opening fails with one line and leaves every file as it was.
fn refusal(config: &config::Log) -> OpenError {
    let before = contents(&config.dir);
    let error = Embedded::open(config, Metrics::new()).err().unwrap();
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    assert!(
        contents(&config.dir) == before,
        "something was changed: {error}"
    );
    error
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let engine = open(&config);
    append_all(&engine, &room("kept"), &["a"]).await;
    engine.close().await;
    let identity = config.dir.join("log/identity");
    let ours = fs::read_to_string(&identity).unwrap();
    let body = ours.replace("format 2", "format 3");
    let body = &body[..body.find("checksum").unwrap()];
    let checksum = crc32c::crc32c(body.as_bytes());
    fs::write(&identity, format!("{body}checksum {checksum:08x}\n")).unwrap();
    let error = refusal(&config);
    assert!(
        matches!(&error, OpenError::Format { found, .. } if found == "3"),
        "{error}"
    );
    fs::write(&identity, ours).unwrap();
    assert_eq!(read_all(&open(&config), &room("kept")).await.len(), 1);
}

#[tokio::test]
async fn a_directory_of_the_former_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    fs::create_dir_all(config.dir.join("db")).unwrap();
    fs::write(config.dir.join("lock"), "").unwrap();
    fs::write(config.dir.join("db/0.jnl"), "what a database wrote").unwrap();
    let error = refusal(&config);
    assert!(
        matches!(&error, OpenError::Format { found, .. } if found == "1"),
        "{error}"
    );
    assert!(error.to_string().contains("weir restore"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_none_of_the_log_is_named_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let engine = open(&config);
    append_all(&engine, &room("kept"), &["a"]).await;
    engine.close().await;
    for (name, content) in [
        ("notes.txt", "hello".to_owned()),
        ("00000000000000000009.segment", "x".repeat(300)),
        ("00000000000000000009.journal", "x".repeat(300)),
    ] {
        let path = config.dir.join("log").join(name);
        fs::write(&path, content).unwrap();
        let error = refusal(&config);
        assert!(error.to_string().contains(name), "{error}");
        fs::remove_file(&path).unwrap();
    }
    // A file of another log.
    let other = settings(&dir.path().join("other"));
    let engine = open(&other);
    append_all(&engine, &room("other"), &["a"]).await;
    engine.close().await;
    let foreign = config.dir.join("log/00000000000000000009.journal");
    fs::copy(journal(&other), &foreign).unwrap();
    let error = refusal(&config);
    assert!(
        matches!(&error, OpenError::Strange { path } if *path == foreign),
        "{error}"
    );
    fs::remove_file(&foreign).unwrap();
    assert_eq!(read_all(&open(&config), &room("kept")).await.len(), 1);
}

#[tokio::test]
async fn what_an_interrupted_start_left_is_started_over() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let log = config.dir.join("log");
    fs::create_dir_all(&log).unwrap();
    fs::write(log.join("identity.new"), "weir lo").unwrap();
    append_all(&open(&config), &room("fine"), &["a"]).await;
    // A journal of which not even the header came to be, and a segment that is not complete.
    fs::write(log.join("00000000000000000009.journal"), [0; 4096]).unwrap();
    fs::write(log.join("00000000000000000001.segment.new"), "half").unwrap();
    append_all(&open(&config), &room("fine"), &["b"]).await;
    let engine = open(&config);
    assert_eq!(
        payloads(&read_all(&engine, &room("fine")).await),
        ["a", "b"]
    );
    assert!(!log.join("00000000000000000001.segment.new").exists());
}

#[tokio::test]
async fn a_failed_flush_poisons_until_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("poisoned");
    let (engine, faults, metrics) = faulty(&config);
    let feed = Feed::new();
    let _follow = engine.follow(&topic, feed.weak()).await.unwrap();
    append_all(&engine, &topic, &["good"]).await;
    faults.fail_commit_after(0, io::ErrorKind::Other);
    let lost = engine
        .enqueue(vec![record(&topic, "bad")])
        .await
        .unwrap()
        .await;
    assert!(matches!(lost, Err(Error::Failed(_))), "{lost:?}");
    health_is(&engine, |health| matches!(health, Health::Failed(_))).await;
    let refused = engine.enqueue(vec![record(&topic, "late")]).await;
    assert!(matches!(refused, Err(Error::Failed(_))), "{refused:?}");
    assert!(engine.trim(&topic, Sequence(2)).await.is_err());
    assert_eq!(metrics.log_health.with_label_values(&["failed"]).get(), 1);
    assert_eq!(
        payloads(&read_all(&engine, &topic).await),
        ["good"],
        "reads go on"
    );
    assert_eq!(feed.seen(|seen| payloads(&seen.records)), ["good"]);
    engine.close().await;
    let engine = open(&config);
    append_all(&engine, &topic, &["after"]).await;
    assert_eq!(
        payloads(&read_all(&engine, &topic).await),
        ["good", "after"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_failed_commit_and_behind_it_fails() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("piled up");
    let (engine, faults, _) = faulty(&config);
    faults.hold();
    faults.fail_commit_after(1, io::ErrorKind::Other);
    let first = engine.enqueue(vec![record(&topic, "a")]).await.unwrap();
    tokio::task::block_in_place(|| faults.wait_until_held());
    let mut behind = Vec::new();
    for _ in 0..10 {
        behind.push(engine.enqueue(vec![record(&topic, "b")]).await.unwrap());
    }
    faults.release();
    assert!(first.await.is_ok());
    for outcome in join_all(behind).await {
        assert!(matches!(outcome, Err(Error::Failed(_))), "{outcome:?}");
    }
    assert_eq!(payloads(&read_all(&engine, &topic).await), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_shares_one_commit() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("grouped");
    let (engine, faults, metrics) = faulty(&config);
    let feed = Feed::new();
    let _follow = engine.follow(&topic, feed.weak()).await.unwrap();
    faults.hold();
    let first = engine.enqueue(vec![record(&topic, "a")]).await.unwrap();
    tokio::task::block_in_place(|| faults.wait_until_held());
    let mut behind = Vec::new();
    for _ in 0..10 {
        let repeat = vec![keyed(&topic, "k", "b"), record(&topic, "c")];
        behind.push(engine.enqueue(repeat).await.unwrap());
    }
    assert_eq!(
        feed.seen(|seen| seen.records.len()),
        0,
        "nothing is fed before it is durable"
    );
    faults.release();
    first.await.unwrap();
    let outcomes = join_all(behind).await.into_iter().flat_map(Result::unwrap);
    let repeats = outcomes.filter(|outcome| matches!(outcome, Outcome::Duplicate { .. }));
    assert_eq!(repeats.count(), 9, "keys count within one commit");
    assert_eq!(metrics.commit_records.get_sample_count(), 2);
    assert_eq!(
        feed.seen(|seen| (seen.calls_with_records, seen.records.len())),
        (2, 12)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_bounded_in_bytes() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.queue = ByteSize::kib(4);
    let topic = room("queued");
    let (engine, faults, _) = faulty(&config);
    let engine = Arc::new(engine);
    faults.hold();
    let larger_than_the_queue = vec![record(&topic, vec![1; 64 * 1024])];
    let first = engine.enqueue(larger_than_the_queue).await.unwrap();
    tokio::task::block_in_place(|| faults.wait_until_held());
    let waits = engine.enqueue(vec![record(&topic, "b")]);
    let mut waits = Box::pin(waits);
    assert!(futures::poll!(&mut waits).is_pending(), "the queue is full");
    faults.release();
    assert!(first.await.is_ok());
    assert!(waits.await.unwrap().await.is_ok());
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.min_free = ByteSize::mib(64);
    let topic = room("full");
    let (engine, faults, metrics) = faulty(&config);
    append_all(&engine, &topic, &["a", "b"]).await;
    faults.set_free_bytes(Some(ByteSize::mib(63).as_u64()));
    eventually("the disk is full", async || {
        match engine.enqueue(vec![record(&topic, "x")]).await {
            Ok(ack) => ack.await == Err(Error::Full),
            Err(error) => error == Error::Full,
        }
    })
    .await;
    assert_eq!(*engine.health().borrow(), Health::Full);
    assert_eq!(metrics.log_health.with_label_values(&["full"]).get(), 1);
    assert!(!read_all(&engine, &topic).await.is_empty(), "reads go on");
    engine.trim(&topic, Sequence(2)).await.unwrap();
    assert_eq!(
        engine.bounds(&topic).await.unwrap().first,
        Sequence(2),
        "trimming goes on"
    );
    faults.set_free_bytes(Some(ByteSize::mib(65).as_u64()));
    assert_eq!(
        *engine.health().borrow(),
        Health::Full,
        "not before there is some to spare"
    );
    faults.set_free_bytes(None);
    health_is(&engine, |health| *health == Health::Ready).await;
    append_all(&engine, &topic, &["after"]).await;
    assert_eq!(
        payloads(&read_all(&engine, &topic).await).last().unwrap(),
        "after"
    );
}

#[tokio::test]
async fn a_write_that_finds_the_disk_full_is_recovered_from() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("ran full");
    let (engine, faults, _) = faulty(&config);
    let feed = Feed::new();
    let _follow = engine.follow(&topic, feed.weak()).await.unwrap();
    append_all(&engine, &topic, &["a"]).await;
    faults.set_free_bytes(Some(ByteSize::mib(2).as_u64()));
    faults.fail_commit_after(0, io::ErrorKind::StorageFull);
    let unknown = engine
        .enqueue(vec![record(&topic, "lost")])
        .await
        .unwrap()
        .await;
    assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
    health_is(&engine, |health| *health == Health::Ready).await;
    append_all(&engine, &topic, &["b"]).await;
    assert_eq!(payloads(&read_all(&engine, &topic).await), ["a", "b"]);
    assert_eq!(feed.seen(|seen| payloads(&seen.records)), ["a", "b"]);
}

#[tokio::test]
async fn what_a_failed_flush_left_on_the_disk_is_taken_back() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("taken back");
    let (engine, faults, metrics) = faulty(&config);
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let hub = Hub::new(
        engine.clone(),
        &config::Hub::default(),
        metrics,
        Traces::off(),
    );
    let mut live = hub.subscribe(&topic, Start::Live, Records).await.unwrap();
    append_all(&*engine, &topic, &["a"]).await;
    faults.set_free_bytes(Some(ByteSize::mib(2).as_u64()));
    faults.fail_after_next_commit(io::ErrorKind::StorageFull);
    let unknown = engine.enqueue(vec![record(&topic, "b")]).await.unwrap();
    let unknown = unknown.await;
    assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
    let mut health = engine.health();
    let ready = health.wait_for(|health| *health == Health::Ready);
    ready.await.unwrap();
    append_all(&*engine, &room("other"), &["x"]).await;
    append_all(&*engine, &topic, &["c"]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(payloads(&live.next().await.unwrap().data));
    }
    assert_eq!(seen, ["a", "c"]);
    // A crash finds the same.
    let crashed = settings(&dir.path().join("crash"));
    copy_dir(&config.dir, &crashed.dir);
    let survivor = open(&crashed);
    assert_eq!(payloads(&read_all(&survivor, &topic).await), ["a", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_moment_loses_nothing_acknowledged() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("crashing");
    let engine = Arc::new(open(&config));
    let writers = (0..4).map(|writer| {
        let (engine, topic) = (engine.clone(), topic.clone());
        tokio::spawn(async move {
            for at in 0..150 {
                let text = format!("{writer}:{at}");
                append(
                    &*engine,
                    vec![record(&topic, text.clone()), record(&topic, text)],
                )
                .await;
            }
        })
    });
    let writers = writers.collect::<Vec<_>>();
    for round in 0..5 {
        let acknowledged = engine.bounds(&topic).await.unwrap().tail;
        let crashed = settings(&dir.path().join(format!("crash-{round}")));
        tokio::task::block_in_place(|| copy_dir(&config.dir, &crashed.dir));
        let survivor = open(&crashed);
        let records = read_all(&survivor, &topic).await;
        assert!(
            records.len() as u64 >= acknowledged.0 - 1,
            "acknowledged records are missing"
        );
        assert!(
            records
                .iter()
                .zip(1..)
                .all(|(record, at)| record.sequence.0 == at)
        );
        for pair in records.chunks(2) {
            assert_eq!(pair[0].payload, pair[1].payload, "a batch is whole");
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

/// The same with the copy cut at any byte of what was written after the last look at what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_that_cuts_the_end_anywhere_loses_nothing_acknowledged() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("cut");
    let engine = Arc::new(open(&config));
    append_all(&*engine, &topic, &["first"]).await;
    let writers = (0..8).map(|writer| {
        let (engine, topic) = (engine.clone(), topic.clone());
        tokio::spawn(async move {
            for at in 0..300 {
                append(&*engine, vec![record(&topic, format!("{writer}:{at}"))]).await;
            }
        })
    });
    let writers = writers.collect::<Vec<_>>();
    let mut cuts = 0;
    while cuts < 40 {
        let acknowledged = engine.tail();
        // Everything acknowledged lies before this byte.
        let safe = written(&journal(&config));
        let crashed = settings(&dir.path().join(format!("cut-{cuts}")));
        tokio::task::block_in_place(|| copy_dir(&config.dir, &crashed.dir));
        let copy = journal(&crashed);
        let end = written(&copy);
        let cut = safe + (end - safe) * (cuts % 7) / 7;
        let file = fs::OpenOptions::new().write(true).open(&copy).unwrap();
        file.set_len(cut).unwrap();
        let survivor = open(&crashed);
        let records = read_all(&survivor, &topic).await;
        assert!(
            records.len() as u64 >= acknowledged.0 - 1,
            "cut at {cut} of {end}"
        );
        let numbers = records.iter().map(|record| record.sequence.0);
        assert!(numbers.eq(1..=records.len() as u64));
        let next = append_all(&survivor, &topic, &["on"]).await[0];
        assert_eq!(next.0, records.len() as u64 + 1);
        drop(survivor);
        fs::remove_dir_all(&crashed.dir).unwrap();
        cuts += 1;
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_torn_write_is_cut_off_and_the_rest_is_kept() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("torn");
    let engine = open(&config);
    append_all(&engine, &topic, &["a", "b"]).await;
    drop(engine);
    let whole = written(&journal(&config));
    let engine = open(&config);
    append_all(&engine, &topic, &["lost", "with it"]).await;
    drop(engine);
    let written = written(&journal(&config));
    assert!(written > whole);
    for cut in whole..written {
        let crashed = settings(&dir.path().join("cut"));
        copy_dir(&config.dir, &crashed.dir);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(journal(&crashed))
            .unwrap();
        file.set_len(cut).unwrap();
        let engine = open(&crashed);
        assert_eq!(
            payloads(&read_all(&engine, &topic).await),
            ["a", "b"],
            "cut at {cut}"
        );
        assert_eq!(append_all(&engine, &topic, &["c"]).await, [Sequence(3)]);
        drop(engine);
        fs::remove_dir_all(&crashed.dir).unwrap();
    }
}

#[tokio::test]
async fn many_topics_and_large_batches_outgrow_the_write_buffers() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topics = (0..20)
        .map(|at| room(&format!("t{at}")))
        .collect::<Vec<_>>();
    let engine = open(&config);
    for round in 0..10_u8 {
        let of = |topic: &Topic| record(topic, vec![round; 200 * 1024]);
        append(&engine, topics.iter().map(of).collect()).await;
    }
    drop(engine);
    let engine = open(&config);
    for topic in &topics {
        let records = read_all(&engine, topic).await;
        let rounds = records.iter().map(|record| record.payload[100_000]);
        assert!(rounds.eq(0..10));
        engine.trim(topic, records[9].sequence).await.unwrap();
        assert_eq!(read_all(&engine, topic).await.len(), 1);
    }
}

#[tokio::test]
async fn log_bytes_are_what_the_disk_holds() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.retention_interval = Duration::from_millis(5);
    let metrics = Metrics::new();
    let engine = Embedded::open(&config, metrics.clone()).unwrap();
    append(&engine, vec![record(&room("big"), vec![1; 1024 * 1024])]).await;
    eventually("the gauge shows it", async || {
        metrics.log_bytes.get() > 1024 * 1024
    })
    .await;
    assert!(
        metrics.log_bytes.get() < 16 * 1024 * 1024,
        "{}",
        metrics.log_bytes.get()
    );
}

#[tokio::test]
async fn a_trim_gives_the_disk_its_room_back() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    let topic = room("shrinks");
    let kept = room("kept");
    let engine = open(&config);
    append_all(&engine, &kept, &["a"]).await;
    for _ in 0..10 {
        let batch = vec![record(&topic, vec![1; 100 * 1024]); 40];
        append(&engine, batch).await;
    }
    append_all(&engine, &kept, &["b"]).await;
    let log = config.dir.join("log");
    let mib = 1024 * 1024;
    assert!(used_bytes(&log) > 38 * mib);
    engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
    eventually("the room is back", async || used_bytes(&log) < 10 * mib).await;
    assert_eq!(payloads(&read_all(&engine, &kept).await), ["a", "b"]);
    drop(engine);
    let engine = open(&config);
    assert_eq!(engine.bounds(&topic).await.unwrap().first, Sequence(402));
    assert_eq!(payloads(&read_all(&engine, &kept).await), ["a", "b"]);
    assert_eq!(append_all(&engine, &topic, &["y"]).await, [Sequence(403)]);
    assert_eq!(payloads(&read_all(&engine, &topic).await), ["y"]);
}

#[tokio::test]
async fn time_does_not_go_back_over_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("times");
    append_all(&open(&config), &topic, &["a"]).await;
    let engine = open(&config);
    append_all(&engine, &topic, &["b"]).await;
    let records = read_all(&engine, &topic).await;
    assert!(records[0].time <= records[1].time);
    assert!(records[0].time > Timestamp(0));
    let page = engine.read(&topic, Sequence::FIRST, ALL).await.unwrap();
    assert_eq!(page.next, page.tail);
}
