//! The embedded engine against a model: any mix of appends, trims, reads, seeks, restarts, crashes, power cuts and clocks that jump.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::prelude::*;
use tempfile::TempDir;
use weir::{
    log::{
        Bounds, Engine, Error, Limit, Outcome, Sequence, Timestamp, Topic,
        clock::{ManualTime, TimeSource as _},
        embedded::{Embedded, Ground},
    },
    telemetry::Metrics,
};

use super::log_support::{copy_dir, payloads, record, room, settings as defaults};

const TOPICS: usize = 2;

/// Files are small, so that there are several: a batch that holds a large record fills one.
fn settings(dir: &std::path::Path) -> weir::config::Log {
    weir::config::Log {
        segment: bytesize::ByteSize::kib(2),
        // A log that opens believes a wall clock that is a little ahead: keys outlive any clock here.
        dedupe_window: std::time::Duration::from_secs(200 * 365 * 24 * 3600),
        ..defaults(dir)
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Payloads of a batch, each with its topic and maybe a key.
    Append(Vec<(usize, Option<u8>, u8)>),
    /// Trims a topic before a share of it.
    Trim(usize, u8),
    /// Reads from a share of a topic, at most so many records.
    Read(usize, u8, usize),
    /// Seeks the time of the record at a share of a topic.
    Seek(usize, u8),
    /// Closes and opens again.
    Restart,
    /// Opens a copy of what is on disk, without closing.
    Crash,
    /// The same after a power cut in the middle of a commit: a share of its bytes is there.
    PowerCut(u8),
    /// The wall clock is set by so many seconds.
    Clock(i32),
}

fn step() -> impl Strategy<Value = Step> {
    let topic = || 0..TOPICS;
    let record = (topic(), proptest::option::of(0..6_u8), 0..4_u8);
    prop_oneof![
        6 => proptest::collection::vec(record, 1..8).prop_map(Step::Append),
        2 => (topic(), any::<u8>()).prop_map(|(topic, share)| Step::Trim(topic, share)),
        4 => (topic(), any::<u8>(), 1..5_usize).prop_map(|(t, share, limit)| Step::Read(t, share, limit)),
        2 => (topic(), any::<u8>()).prop_map(|(topic, share)| Step::Seek(topic, share)),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => any::<u8>().prop_map(Step::PowerCut),
        1 => prop_oneof![-7200..7200_i32, Just(31 * 24 * 3600), Just(i32::MAX)].prop_map(Step::Clock),
    ]
}

/// A topic as it should be.
struct Model {
    /// Every record ever stored.
    records: Vec<(Sequence, String, Timestamp)>,
    /// Behind the last record that was trimmed.
    first: Sequence,
    keys: std::collections::HashMap<u8, (u64, u8)>,
}

impl Model {
    fn new() -> Self {
        Self {
            records: Vec::new(),
            first: Sequence::FIRST,
            keys: std::collections::HashMap::new(),
        }
    }

    /// The retained records at `from` or later.
    fn retained(
        &self,
        from: Sequence,
    ) -> impl Iterator<Item = &(Sequence, String, Timestamp)> + Clone {
        let from = from.max(self.first);
        self.records.iter().filter(move |record| record.0 >= from)
    }

    /// Notes what became of a record, in a log that ends at `tail`; returns the tail after it.
    fn append(
        &mut self,
        tail: Sequence,
        key: Option<u8>,
        content: u8,
        outcome: Outcome,
    ) -> Sequence {
        let used = key.and_then(|key| self.keys.get(&key).copied());
        match (used, outcome) {
            (None, Outcome::Stored { sequence, time }) => {
                assert_eq!(sequence, tail);
                assert!(self.records.last().is_none_or(|(.., last)| *last <= time));
                self.records.push((sequence, content.to_string(), time));
                if let Some(key) = key {
                    self.keys.insert(key, (sequence.0, content));
                }
                return tail.next();
            }
            (
                Some((sequence, same)),
                Outcome::Duplicate {
                    sequence: found, ..
                },
            ) => {
                assert_eq!((found.0, content), (sequence, same));
            }
            (Some((sequence, other)), Outcome::Conflict { sequence: found }) => {
                assert_eq!(found.0, sequence);
                assert_ne!(content, other);
            }
            (used, outcome) => panic!("{used:?} became {outcome:?}"),
        }
        tail
    }
}

struct World {
    dir: TempDir,
    lives: usize,
    engine: Embedded,
    topics: Vec<Topic>,
    models: Vec<Model>,
    /// Of the log, shared by its topics.
    tail: Sequence,
    time: ManualTime,
}

/// The engine in the directory of a life, by the world's clock.
fn open(life: &Path, time: &ManualTime) -> Embedded {
    let ground = Ground {
        time: Arc::new(time.clone()),
        ..Ground::default()
    };
    Embedded::open_on(&settings(life), Metrics::new(), ground).unwrap()
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let time = ManualTime::new(Timestamp::now());
        let engine = open(dir.path(), &time);
        Self {
            time,
            dir,
            lives: 0,
            engine,
            topics: (0..TOPICS).map(|at| room(&format!("t{at}"))).collect(),
            models: (0..TOPICS).map(|_| Model::new()).collect(),
            tail: Sequence::FIRST,
        }
    }

    /// A position from before the log to after it.
    fn at(&self, share: u8) -> Sequence {
        Sequence(u64::from(share) * (self.tail.0 + 3) / 256)
    }

    fn life(&self) -> std::path::PathBuf {
        match self.lives {
            0 => self.dir.path().into(),
            lives => self.dir.path().join(lives.to_string()),
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Append(batch) => self.append(batch).await,
            Step::Trim(topic, share) => self.trim(topic, share).await,
            Step::Read(topic, share, limit) => self.read(topic, share, limit).await,
            Step::Seek(topic, share) => self.seek(topic, share).await,
            Step::Restart => {
                self.engine.close().await;
                self.engine = open(&self.life(), &self.time);
            }
            Step::Crash => self.crash(),
            Step::PowerCut(share) => self.power_cut(share).await,
            Step::Clock(seconds) => {
                let nanos = i64::from(seconds) * 1_000_000_000;
                let wall = self.time.wall().0.saturating_add_signed(nanos);
                self.time.set_wall(Timestamp(wall));
            }
        }
    }

    async fn append(&mut self, batch: Vec<(usize, Option<u8>, u8)>) {
        let records = batch.iter().map(|(topic, key, content)| {
            let mut record = record(&self.topics[*topic], content.to_string());
            record.key = key.map(|key| key.to_string().into());
            record
        });
        let ack = self.engine.enqueue(records.collect()).await.unwrap();
        for ((topic, key, content), outcome) in batch.into_iter().zip(ack.await.unwrap()) {
            self.tail = self.models[topic].append(self.tail, key, content, outcome);
        }
    }

    async fn trim(&mut self, topic: usize, share: u8) {
        let (before, tail) = (self.at(share), self.tail);
        let model = &mut self.models[topic];
        self.engine.trim(&self.topics[topic], before).await.unwrap();
        let dropped = model
            .retained(Sequence(0))
            .filter(|record| record.0 < before);
        model.first = dropped.last().map_or(model.first, |last| last.0.next());
        let first = model.first;
        let bounds = self.engine.bounds(&self.topics[topic]).await.unwrap();
        assert_eq!(bounds, Bounds { first, tail });
    }

    async fn read(&self, topic: usize, share: u8, records: usize) {
        let model = &self.models[topic];
        let (from, first, tail) = (self.at(share), model.first, self.tail);
        let limit = Limit {
            records,
            bytes: usize::MAX,
        };
        let result = self.engine.read(&self.topics[topic], from, limit).await;
        if from.max(Sequence::FIRST) < first {
            assert_eq!(result.unwrap_err(), Error::Trimmed { first });
        } else if from > tail {
            assert_eq!(result.unwrap_err(), Error::BeyondTail { tail });
        } else {
            let page = result.unwrap();
            let expected = model.retained(from).take(records);
            assert!(
                expected
                    .clone()
                    .map(|(_, text, _)| text)
                    .eq(&payloads(&page.records))
            );
            let next = match expected.clone().count() == records {
                true => expected.last().map_or(tail, |last| last.0.next()),
                false => tail,
            };
            assert_eq!((page.next, page.tail), (next, tail));
        }
    }

    async fn seek(&self, topic: usize, share: u8) {
        let model = &self.models[topic];
        let at = self.at(share);
        let time = model
            .records
            .iter()
            .find(|record| record.0 >= at)
            .map_or(Timestamp(u64::MAX), |(.., time)| *time);
        let found = self.engine.seek(&self.topics[topic], time).await.unwrap();
        let wanted = model
            .retained(Sequence(0))
            .find(|(.., other)| *other >= time);
        assert_eq!(found, wanted.map_or(self.tail, |record| record.0));
    }

    fn crash(&mut self) {
        let from = settings(&self.life()).dir;
        self.lives += 1;
        let config = settings(&self.life());
        copy_dir(&from, &config.dir);
        self.engine = open(&self.life(), &self.time);
    }

    /// Goes on in a copy in which a commit was begun: none of it was acknowledged, so none of it may count.
    async fn power_cut(&mut self, share: u8) {
        self.crash();
        let written = |path: &PathBuf| {
            let bytes = fs::read(path).unwrap();
            let end = bytes.iter().rposition(|byte| *byte != 0);
            end.map_or(0, |last| last + 1)
        };
        let journals = || {
            let files = fs::read_dir(settings(&self.life()).dir.join("log")).unwrap();
            let paths = files.map(|file| file.unwrap().path());
            let journals =
                paths.filter(|path| path.extension().is_some_and(|found| found == "journal"));
            let mut journals: Vec<_> = journals
                .map(|path| (path.clone(), written(&path)))
                .collect();
            journals.sort();
            journals
        };
        self.engine.close().await;
        let before = journals();
        let topic = room("cut");
        // In a journal that is not sealed on the way.
        let config = weir::config::Log {
            segment: bytesize::ByteSize::gib(1),
            ..settings(&self.life())
        };
        let engine = Embedded::open(&config, Metrics::new()).unwrap();
        let batch = (0..3).map(|_| record(&topic, vec![share; 300])).collect();
        engine.enqueue(batch).await.unwrap().await.unwrap();
        engine.close().await;
        for (path, end) in journals() {
            let start = before.iter().find(|(other, _)| *other == path);
            let start = start.map_or(64, |(_, end)| (*end).max(64));
            if end > start {
                let keep = start + (end - start) * usize::from(share) / 256;
                let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(keep as u64).unwrap();
            }
        }
        self.engine = open(&self.life(), &self.time);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn embedded_is_like_its_model(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for step in steps {
                world.take(step).await;
            }
            for (topic, model) in world.topics.iter().zip(&world.models) {
                let all = Limit { records: usize::MAX, bytes: usize::MAX };
                let page = world.engine.read(topic, model.first, all).await.unwrap();
                let expected = model.retained(model.first);
                assert!(expected.map(|(_, text, _)| text).eq(&payloads(&page.records)));
            }
        });
    }
}
