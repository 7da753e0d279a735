//! Damage to the embedded log's files: what a power cut leaves, bits that changed, pages that are gone; and its repair.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use tempfile::TempDir;
use weir::{
    config,
    log::{
        Engine, Error, Limit, OpenError, Sequence, Topic,
        embedded::{Embedded, inspect, repair},
    },
    telemetry::Metrics,
};

use super::log_support::{
    append, append_all, copy_dir, eventually, keyed, payloads, read_all, record, room, settings,
    stored,
};

const PAGE: usize = 4096;
/// What batches are aligned to.
const ALIGNED: u64 = 32;

fn open(config: &config::Log) -> Embedded {
    Embedded::open(config, Metrics::new()).unwrap()
}

fn files(config: &config::Log, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(config.dir.join("log")).unwrap();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

/// The journal that holds the newest batch, and where that ends.
fn journal(config: &config::Log) -> (PathBuf, u64) {
    let written = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last as u64 + 1)
    };
    let journals = files(config, "journal");
    let mut found = journals.into_iter().map(|path| (written(&path), path));
    let (end, path) = found.rfind(|(end, _)| *end > 64).unwrap();
    (path, end.next_multiple_of(ALIGNED))
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// A directory in memory where there is one: what these tests do ten thousand times needs no real flush.
fn quick_dir() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

/// A log of a few records, closed; its topics and what they hold.
async fn small(config: &config::Log) -> Vec<(Topic, Vec<(Sequence, String)>)> {
    let engine = open(config);
    let topics = [room("one"), room("two")];
    for number in 0..6 {
        let topic = &topics[number % 2];
        let batch = vec![
            record(topic, format!("record {number}")),
            keyed(topic, "key", "keyed"),
        ];
        append(&engine, batch).await;
    }
    engine.trim(&topics[1], Sequence(4)).await.unwrap();
    let held = held(&engine, &topics).await;
    engine.close().await;
    held
}

async fn held(engine: &Embedded, topics: &[Topic]) -> Vec<(Topic, Vec<(Sequence, String)>)> {
    let mut all = Vec::new();
    for topic in topics {
        let records = read_all(engine, topic).await;
        let sequences = records.iter().map(|record| record.sequence);
        all.push((topic.clone(), sequences.zip(payloads(&records)).collect()));
    }
    all
}

/// What can be read of a topic, page by page of one record, and the positions at which reading fails.
async fn readable(engine: &Embedded, topic: &Topic) -> (Vec<(Sequence, String)>, Vec<Sequence>) {
    let mut at = engine.bounds(topic).await.unwrap().first;
    let mut found = Vec::new();
    let mut failed = Vec::new();
    let one = Limit {
        records: 1,
        bytes: usize::MAX,
    };
    loop {
        match engine.read(topic, at, one).await {
            Ok(page) => {
                found.extend(
                    page.records
                        .iter()
                        .map(|record| record.sequence)
                        .zip(payloads(&page.records)),
                );
                if page.next == page.tail {
                    return (found, failed);
                }
                at = page.next;
            }
            Err(Error::Corrupt(_)) => {
                failed.push(at);
                at = at.next();
            }
            Err(Error::Trimmed { first }) => at = first,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A page that a power cut left out, at every place of the last batch: the start cuts the batch off, and nothing that was
/// acknowledged before it is gone.
#[tokio::test]
async fn a_page_missing_anywhere_in_the_last_batch_is_an_end() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("power cut");
    let engine = open(&config);
    let large = |text: &str| record(&topic, text.repeat(20_000 / text.len()));
    append(&engine, vec![large("kept"); 3]).await;
    append_all(&engine, &topic, &["acknowledged"]).await;
    drop(engine);
    let (path, start) = journal(&config);
    let engine = open(&config);
    append(&engine, vec![large("torn"); 8]).await;
    drop(engine);
    let (_, end) = journal(&config);
    assert!(end - start > 160_000, "{start}..{end}");
    let positions = (0..end)
        .step_by(PAGE)
        .filter(|page| page + PAGE as u64 > start);
    let mut tried = 0;
    for page in positions {
        let crashed = settings(&dir.path().join("crash"));
        copy_dir(&config.dir, &crashed.dir);
        let copy = crashed.dir.join(path.strip_prefix(&config.dir).unwrap());
        // The part of the page that lies before the batch was durable already.
        let from = usize::try_from(page.max(start)).unwrap();
        let to = usize::try_from(page).unwrap() + PAGE;
        change(&copy, |bytes| {
            let to = to.min(bytes.len());
            bytes[from..to].fill(0);
        });
        let engine = open(&crashed);
        let found = payloads(&read_all(&engine, &topic).await);
        assert_eq!(found.len(), 4, "page at {page}");
        assert_eq!(found[3], "acknowledged");
        assert_eq!(append_all(&engine, &topic, &["on"]).await, [Sequence(5)]);
        drop(engine);
        fs::remove_dir_all(&crashed.dir).unwrap();
        tried += 1;
    }
    assert!(tried >= 40, "{tried} pages");
}

/// The same with pages of zeros in what was written: blank as written is not torn, and torn is seen among blanks.
#[tokio::test]
async fn blank_content_is_told_from_missing_pages() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let topic = room("blank");
    let engine = open(&config);
    append_all(&engine, &topic, &["acknowledged"]).await;
    append(&engine, vec![record(&topic, vec![0; 40_000]); 2]).await;
    drop(engine);
    assert_eq!(read_all(&open(&config), &topic).await.len(), 3);
    let (path, end) = journal(&config);
    let middle = usize::try_from(end).unwrap() - 41_000;
    // A bit in the zeros of the last batch, all of which was acknowledged.
    change(&path, |bytes| bytes[middle - 20_000] ^= 1);
    let error = Embedded::open(&config, Metrics::new()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    change(&path, |bytes| bytes[middle - 20_000] ^= 1);
    // A page that holds the border of two records is missing.
    let crashed = settings(&dir.path().join("crash"));
    copy_dir(&config.dir, &crashed.dir);
    let copy = crashed.dir.join(path.strip_prefix(&config.dir).unwrap());
    // The second record's head lies right before its 40,000 bytes and the end of the batch.
    let page = (usize::try_from(end).unwrap() - 40_060) / PAGE * PAGE;
    change(&copy, |bytes| {
        assert!(bytes[page..page + PAGE].iter().any(|byte| *byte != 0));
        bytes[page..page + PAGE].fill(0);
    });
    let engine = open(&crashed);
    assert_eq!(payloads(&read_all(&engine, &topic).await), ["acknowledged"]);
}

/// Every single bit of a journal: the start refuses and says where, or nothing is missing; a repair brings the rest.
#[tokio::test]
async fn no_bit_of_a_journal_is_a_silent_loss() {
    let dir = quick_dir();
    let config = settings(dir.path());
    let held_before = small(&config).await;
    let [path] = &files(&config, "journal")[..] else {
        panic!("one journal");
    };
    let name = path.file_name().unwrap().to_str().unwrap();
    let bytes = fs::read(path).unwrap();
    let topics: Vec<_> = held_before.iter().map(|(topic, _)| topic.clone()).collect();
    let tail = Sequence(9);
    let mut refused = 0;
    for bit in 0..bytes.len() * 8 {
        let copy = settings(&dir.path().join("flip"));
        copy_dir(&config.dir, &copy.dir);
        let file = copy.dir.join("log").join(name);
        change(&file, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        match Embedded::open(&copy, Metrics::new()) {
            Ok(engine) => {
                assert_eq!(held(&engine, &topics).await, held_before, "bit {bit}");
            }
            Err(OpenError::Damaged { file, offset, what }) => {
                refused += 1;
                assert!(
                    file.ends_with(name) && offset <= bit as u64 / 8,
                    "bit {bit}: {offset}"
                );
                assert!(what.contains("in doubt"), "bit {bit}: {what}");
                // A repair takes longer than a look: every bit of some bytes, and one of the others.
                if bit % 61 == 0 {
                    repaired(&copy, &held_before, tail, bit).await;
                }
            }
            Err(OpenError::Strange { .. } | OpenError::Format { .. }) => {
                panic!("bit {bit}: strange")
            }
            Err(error) => panic!("bit {bit}: {error}"),
        }
        fs::remove_dir_all(&copy.dir).unwrap();
    }
    assert!(
        refused > bytes.len() * 8 / 2,
        "{refused} of {}",
        bytes.len() * 8
    );
}

/// After a repair it opens, at most one commit of two records is missing, and what it told as lost is that; no number that may have
/// been given out is given out again.
async fn repaired(
    config: &config::Log,
    before: &[(Topic, Vec<(Sequence, String)>)],
    tail: Sequence,
    bit: usize,
) {
    let seen = inspect(&config.dir).unwrap();
    assert!(!seen.damage.is_empty(), "bit {bit}");
    let done = repair(&config.dir).unwrap();
    assert!(done.aside.is_some(), "bit {bit}");
    let engine = open(config);
    for (topic, records) in before {
        let found: BTreeSet<_> = held(&engine, std::slice::from_ref(topic)).await[0]
            .1
            .iter()
            .cloned()
            .collect();
        for record in records.iter().filter(|record| !found.contains(record)) {
            let sequence = record.0.0;
            let is_told =
                |loss: &weir::log::embedded::Loss| loss.first <= sequence && sequence <= loss.last;
            assert!(
                done.lost.iter().any(is_told),
                "bit {bit}: {record:?} {:?}",
                done.lost
            );
        }
    }
    let next = stored(append(&engine, vec![record(&room("new"), "x")]).await[0]);
    assert!(next >= tail, "bit {bit}: {next}");
    engine.close().await;
    assert_eq!(inspect(&config.dir).unwrap().damage, [], "bit {bit}");
}

/// A sealed log of small segments, closed.
async fn sealed(config: &config::Log) -> Vec<(Topic, Vec<(Sequence, String)>)> {
    let engine = open(config);
    let topics = [room("one"), room("two")];
    for number in 0..6 {
        let batch = topics
            .iter()
            .map(|topic| record(topic, format!("record {number}")))
            .chain([keyed(&topics[0], "key", "keyed")]);
        append(&engine, batch.collect()).await;
    }
    // Fills the journal, so that another follows.
    append(&engine, vec![record(&room("filler"), vec![7; 1 << 20])]).await;
    append_all(&engine, &room("filler"), &["x"]).await;
    eventually("the journal is sealed", async || {
        !files(config, "segment").is_empty()
    })
    .await;
    engine
        .trim(&room("filler"), Sequence(u64::MAX))
        .await
        .unwrap();
    eventually("what is dropped is gone", async || {
        let segments = files(config, "segment");
        segments.len() == 1 && fs::metadata(&segments[0]).is_ok_and(|meta| meta.len() < 4096)
    })
    .await;
    let held = held(&engine, &topics).await;
    engine.close().await;
    held
}

/// Every single bit of a segment: a read of what it hit fails and everything else is served, or the start refuses and says where.
#[tokio::test]
async fn no_bit_of_a_segment_is_a_silent_loss() {
    let dir = quick_dir();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    let held_before = sealed(&config).await;
    let [path] = &files(&config, "segment")[..] else {
        panic!("one segment");
    };
    let name = path.file_name().unwrap().to_str().unwrap();
    let bytes = fs::read(path).unwrap();
    let mut refused = 0;
    let mut failed_reads = 0;
    for bit in 0..bytes.len() * 8 {
        let mut copy = settings(&dir.path().join("flip"));
        copy.segment = config.segment;
        copy_dir(&config.dir, &copy.dir);
        let file = copy.dir.join("log").join(name);
        change(&file, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        match Embedded::open(&copy, Metrics::new()) {
            Ok(engine) => {
                for (topic, records) in &held_before {
                    let (found, failed) = readable(&engine, topic).await;
                    failed_reads += failed.len();
                    for record in records.iter().filter(|record| !found.contains(record)) {
                        assert!(!failed.is_empty(), "bit {bit}: {record:?} is gone silently");
                    }
                    assert!(
                        found.iter().all(|record| records.contains(record)),
                        "bit {bit}"
                    );
                    assert!(records.len() - found.len() <= 1, "bit {bit}: {failed:?}");
                }
                append_all(&engine, &held_before[0].0, &["on"]).await;
            }
            Err(OpenError::Damaged { file, .. }) => {
                refused += 1;
                assert!(file.ends_with(name), "bit {bit}");
            }
            Err(error) => panic!("bit {bit}: {error}"),
        }
        if bit % 97 == 0 {
            fs::remove_dir_all(&copy.dir).unwrap();
            copy_dir(&config.dir, &copy.dir);
            change(&file, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            repair(&copy.dir).unwrap();
            let engine = open(&copy);
            for (topic, records) in &held_before {
                let (found, failed) = readable(&engine, topic).await;
                assert!(failed.is_empty(), "bit {bit}");
                assert!(
                    records.len() - found.len() <= records.len().min(12),
                    "bit {bit}"
                );
            }
        }
        fs::remove_dir_all(&copy.dir).unwrap();
    }
    assert!(
        refused > 0 && failed_reads > 0,
        "{refused} refused, {failed_reads} reads"
    );
}

/// A damaged old segment stops neither appends nor retention nor other topics.
#[tokio::test]
async fn a_damaged_segment_stops_nothing_else() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    config.retention_interval = std::time::Duration::from_millis(20);
    config.retention.room.bytes = ByteSize::mib(3);
    let (hurt, other) = (room("hurt"), room("other"));
    let engine = open(&config);
    let kib = |topic: &Topic, count: usize| vec![record(topic, vec![5; 1024]); count];
    append(&engine, kib(&other, 500)).await;
    for _ in 0..4 {
        append(&engine, kib(&hurt, 500)).await;
    }
    eventually("journals are sealed", async || {
        files(&config, "segment").len() >= 2
    })
    .await;
    engine.close().await;
    let first = &files(&config, "segment")[0];
    // In the records of both topics.
    change(first, |bytes| {
        let len = bytes.len();
        bytes[len / 3] ^= 1;
        bytes[len * 2 / 3] ^= 1;
    });
    let engine = open(&config);
    let (found, failed) = readable(&engine, &hurt).await;
    assert!(
        !failed.is_empty() && found.len() >= 1990,
        "{} {failed:?}",
        found.len()
    );
    // Retention goes on over it, as other topics grow and as this one does.
    for _ in 0..8 {
        append(&engine, kib(&hurt, 500)).await;
        append(&engine, kib(&other, 500)).await;
    }
    eventually("both topics are within their bounds", async || {
        let mut is_within = true;
        for topic in [&hurt, &other] {
            let (found, failed) = readable(&engine, topic).await;
            is_within &= failed.is_empty() && found.len() <= 3 * 1024;
        }
        is_within
    })
    .await;
}

/// A log that is sound is left as it is.
#[tokio::test]
async fn a_repair_of_a_sound_log_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let before = small(&config).await;
    let seen = inspect(&config.dir).unwrap();
    assert_eq!(seen.damage, []);
    assert_eq!(seen.files.iter().map(|file| file.records).sum::<u64>(), 8);
    assert_eq!(seen.topics["room/one"].records, 4);
    let done = repair(&config.dir).unwrap();
    assert_eq!((done.aside, done.lost.len()), (None, 0));
    let engine = open(&config);
    let topics: Vec<_> = before.iter().map(|(topic, _)| topic.clone()).collect();
    assert_eq!(held(&engine, &topics).await, before);
}

/// An identity that does not read back is refused, and made again from what the files say.
#[tokio::test]
async fn a_log_whose_identity_is_lost_is_repaired() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    let before = small(&config).await;
    let id = open(&config).id();
    let identity = config.dir.join("log/identity");
    change(&identity, |bytes| bytes[20] ^= 1);
    let error = Embedded::open(&config, Metrics::new()).err().unwrap();
    assert!(error.to_string().contains("weir repair"), "{error}");
    repair(&config.dir).unwrap();
    let engine = open(&config);
    assert_eq!(engine.id(), id);
    let topics: Vec<_> = before.iter().map(|(topic, _)| topic.clone()).collect();
    assert_eq!(held(&engine, &topics).await, before);
}

/// A journal whose beginning is gone is damaged, not new.
#[tokio::test]
async fn a_journal_without_its_header_is_no_empty_one() {
    let dir = TempDir::new().unwrap();
    let config = settings(dir.path());
    small(&config).await;
    let (path, _) = journal(&config);
    change(&path, |bytes| bytes[..64].fill(0));
    let error = Embedded::open(&config, Metrics::new()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(!inspect(&config.dir).unwrap().damage.is_empty());
    let done = repair(&config.dir).unwrap();
    assert!(done.kept >= 8, "{done:?}");
    let engine = open(&config);
    assert_eq!(read_all(&engine, &room("one")).await.len(), 4);
    assert!(append_all(&engine, &room("one"), &["on"]).await[0] > Sequence(8));
}

/// Numbers stay used though everything that had them was dropped, sealed away and never followed by anything.
#[tokio::test]
async fn numbers_of_a_journal_that_was_dropped_whole_stay_used() {
    let dir = TempDir::new().unwrap();
    let mut config = settings(dir.path());
    config.segment = ByteSize::mib(1);
    let topic = room("dropped");
    let engine = open(&config);
    append(&engine, vec![record(&topic, vec![7; 600 * 1024]); 2]).await;
    let tail = engine.tail();
    engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
    eventually("the journal is sealed and gone", async || {
        let journals = files(&config, "journal");
        journals
            .iter()
            .all(|path| !path.ends_with("00000000000000000001.journal"))
    })
    .await;
    let crashed = settings(&dir.path().join("crash"));
    copy_dir(&config.dir, &crashed.dir);
    let engine = open(&crashed);
    assert_eq!(engine.tail(), tail);
    assert_eq!(append_all(&engine, &topic, &["on"]).await, [tail]);
}
