//! A directory that an earlier build wrote is opened: format 2, with a journal, a segment, trims, keys and a gap of a restore.
//!
//! `write` made it, once. A change of the format gets a number and a fixture of its own; this one stays.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use tempfile::TempDir;
use weir::{
    config,
    log::{
        Engine, Error, Outcome, Sequence, Space, Topic,
        embedded::{Embedded, inspect},
    },
    telemetry::Metrics,
};

use super::log_support::{
    ALL, append, append_all, copy_dir, eventually, keyed, payloads, read_all, room, settings,
};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/log-format-2")
}

fn feedback() -> Topic {
    Topic::new(Space::Feedback, "all").unwrap()
}

/// Writes what the fixture holds into `dir`. The fixture is a copy of such a directory after a close.
async fn write(config: &config::Log) {
    let engine = Embedded::open(config, Metrics::new()).unwrap();
    append_all(&engine, &room("general"), &["one", "two", "three"]).await;
    append(&engine, vec![keyed(&room("general"), "order 7", "keyed")]).await;
    append_all(&engine, &room("Ωmega/🦀"), &["any name"]).await;
    append_all(&engine, &feedback(), &["good", "bad"]).await;
    engine.trim(&room("general"), Sequence(2)).await.unwrap();
    // Fills the journal, so that it is sealed; then goes, so that the fixture is small.
    let filler = room("filler");
    append(
        &engine,
        vec![super::log_support::record(&filler, vec![7; 1 << 20])],
    )
    .await;
    append_all(&engine, &filler, &["x"]).await;
    let log = config.dir.join("log");
    let segment = log.join("00000000000000000001.segment");
    eventually("the journal is sealed", async || segment.exists()).await;
    engine.trim(&filler, Sequence(u64::MAX)).await.unwrap();
    let small = log.join("00000000000000000001-1.segment");
    eventually("the segment is written once more", async || {
        small.exists() && !segment.exists()
    })
    .await;
    append_all(&engine, &room("general"), &["four"]).await;
    engine.close().await;
}

/// What every directory that `write` wrote holds.
async fn check(config: &config::Log) {
    let seen = inspect(&config.dir).unwrap();
    assert_eq!(seen.damage, []);
    let kinds: Vec<_> = seen.files.iter().map(|file| file.kind).collect();
    assert_eq!(kinds, ["segment", "journal"]);
    let config = config::Log {
        dedupe_window: std::time::Duration::from_secs(3600 * 24 * 365 * 100),
        ..config.clone()
    };
    let engine = Embedded::open(&config, Metrics::new()).unwrap();
    assert_eq!(engine.id().to_string(), seen.id);
    assert_eq!(engine.tail(), Sequence(11));
    let general = read_all(&engine, &room("general")).await;
    assert_eq!(payloads(&general), ["two", "three", "keyed", "four"]);
    let sequences: Vec<_> = general.iter().map(|record| record.sequence.0).collect();
    assert_eq!(sequences, [2, 3, 4, 10]);
    let trimmed = engine.read(&room("general"), Sequence(1), ALL).await;
    let first = Sequence(2);
    assert_eq!(trimmed.unwrap_err(), Error::Trimmed { first });
    assert_eq!(
        payloads(&read_all(&engine, &room("Ωmega/🦀")).await),
        ["any name"]
    );
    assert_eq!(
        payloads(&read_all(&engine, &feedback()).await),
        ["good", "bad"]
    );
    assert!(read_all(&engine, &room("filler")).await.is_empty());
    let again = append(&engine, vec![keyed(&room("general"), "order 7", "keyed")]).await[0];
    let Outcome::Duplicate { sequence, time } = again else {
        panic!("not known: {again:?}");
    };
    assert_eq!((sequence, time), (general[2].sequence, general[2].time));
    assert_eq!(
        append_all(&engine, &room("general"), &["five"]).await,
        [Sequence(11)]
    );
}

#[tokio::test]
async fn a_directory_of_this_format_opens() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    copy_dir(&fixture(), &config.dir.join("log"));
    check(&config).await;
}

#[tokio::test]
async fn what_is_written_today_is_what_the_fixture_holds() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    write(&config).await;
    if let Some(target) = std::env::var_os("WEIR_WRITE_FIXTURE") {
        copy_dir(&config.dir.join("log"), Path::new(&target));
    }
    check(&config).await;
}
