//! What is written and read.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::BufMut as _;
use hdrhistogram::Histogram;
use weir::log::{NewRecord, Sequence, Timestamp, Topic};

use crate::{
    options::Options,
    procfs,
    report::Row,
    side::{self, Side},
};

/// Topics of the workload with many of them.
pub(crate) const TOPICS: u64 = 2000;
const SINGLE: &str = "bulk";
/// Batches of one writer that wait at the same time.
const IN_FLIGHT: usize = 4;
/// Header of a record and its share of a batch's, as the bare loop writes it.
const HEADER_BYTES: usize = 24;

pub(crate) struct Writing {
    name: &'static str,
    writers: usize,
    batch: usize,
    /// Batches of a writer that wait at once.
    in_flight: usize,
    topics: Vec<Topic>,
    until: Until,
}

/// When a run ends.
#[derive(Clone, Copy)]
enum Until {
    Elapsed(Duration, u64),
    Records(u64),
}

impl Writing {
    pub(crate) fn all(options: &Options) -> Vec<Self> {
        let waits = Until::Elapsed(options.duration, options.rounds);
        let batches = Until::Records(options.records);
        let shape = |name, writers, batch, topics, until| Self {
            name,
            writers,
            batch,
            in_flight: if batch == 1 { 1 } else { IN_FLIGHT },
            topics,
            until,
        };
        let eight = (0..8).map(|n| side::topic(&format!("r{n}"))).collect();
        let single = vec![side::topic(SINGLE)];
        vec![
            shape("64 waiting writers", 64, 1, eight, waits),
            shape("one writer", 1, 1, vec![side::topic("one")], waits),
            shape("batches of 1000", 1, 1000, single, batches),
            shape("64 x 2000 topics", 1, 64, many(TOPICS), batches),
        ]
    }

    pub(crate) async fn run(&self, side: &Side, options: &Options) -> Row {
        let start = Start::now();
        let mut latencies = histogram();
        let rounds = match self.until {
            Until::Elapsed(_, rounds) => rounds,
            Until::Records(_) => 1,
        };
        let mut records = 0;
        for _ in 0..rounds {
            records += match side {
                Side::Bare(bare) => self.bare(bare, options.size, &mut latencies),
                _ => self.engine(side, options.size, &mut latencies).await,
            };
        }
        let kept = records * side::stored_bytes(options.size) as u64;
        start.row(self.name, side, records, &latencies, kept)
    }

    async fn engine(&self, side: &Side, size: usize, latencies: &mut Histogram<u64>) -> u64 {
        let records: Vec<NewRecord> = self.topics.iter().map(|t| side::record(t, size)).collect();
        let tasks = (0..self.writers).map(|at| {
            let mut writer = Writer {
                side: side.clone(),
                records: records.clone(),
                // The many topics are shared by one writer; writers of few have one each.
                at: at % records.len(),
                batch: self.batch,
                is_spread: self.writers == 1,
                in_flight: self.in_flight,
                times: histogram(),
                written: 0,
            };
            let until = self.until;
            tokio::spawn(async move {
                writer.run(until).await;
                (writer.written, writer.times)
            })
        });
        let mut written = 0;
        for task in tasks.collect::<Vec<_>>() {
            let (records, times) = task.await.unwrap();
            written += records;
            latencies.add(times).unwrap();
        }
        written
    }

    /// As many records together as wait together at an engine.
    fn bare(&self, bare: &crate::bare::Bare, size: usize, latencies: &mut Histogram<u64>) -> u64 {
        let group = self.writers.max(self.batch);
        let record = side::record(&self.topics[0], size);
        let start = Instant::now();
        let mut written = 0;
        let mut bytes = Vec::new();
        while !self.until.is_over(start, written) {
            let began = Instant::now();
            bytes.clear();
            for _ in 0..group {
                bytes.put_bytes(0, HEADER_BYTES);
                weir::log::encode(&record, Timestamp(0), &mut bytes);
            }
            bare.write(&bytes);
            latencies.record(micros(began)).unwrap();
            written += group as u64;
        }
        written
    }
}

impl Until {
    fn is_over(self, start: Instant, written: u64) -> bool {
        match self {
            Self::Elapsed(most, _) => start.elapsed() >= most,
            Self::Records(most) => written >= most,
        }
    }
}

struct Writer {
    side: Side,
    records: Vec<NewRecord>,
    at: usize,
    batch: usize,
    /// Whether its records go to one topic after the other.
    is_spread: bool,
    in_flight: usize,
    times: Histogram<u64>,
    written: u64,
}

impl Writer {
    async fn run(&mut self, until: Until) {
        let start = Instant::now();
        let mut pending = VecDeque::new();
        while !until.is_over(start, self.written) {
            let began = Instant::now();
            let batch = self.next();
            self.written += batch.len() as u64;
            pending.push_back((began, self.side.enqueue(batch).await));
            if pending.len() >= self.in_flight {
                self.finish(pending.pop_front().unwrap()).await;
            }
        }
        for append in pending {
            self.finish(append).await;
        }
    }

    fn next(&mut self) -> Vec<NewRecord> {
        (0..self.batch)
            .map(|_| {
                let record = self.records[self.at].clone();
                if self.is_spread {
                    self.at = (self.at + 1) % self.records.len();
                }
                record
            })
            .collect()
    }

    async fn finish(&mut self, (began, pending): (Instant, side::Pending)) {
        pending.done().await;
        self.times.record(micros(began)).unwrap();
    }
}

/// Reading back what was written in batches, as a subscriber that catches up does.
pub(crate) struct Reading {
    name: &'static str,
    is_spread: bool,
}

impl Reading {
    pub(crate) const ALL: [Self; 2] = [
        Self {
            name: "catch-up, 1 topic",
            is_spread: false,
        },
        Self {
            name: "catch-up, 2000",
            is_spread: true,
        },
    ];

    pub(crate) async fn run(&self, side: &Side) -> Row {
        let topics = if self.is_spread {
            many(TOPICS)
        } else {
            vec![side::topic(SINGLE)]
        };
        let start = Start::now();
        let mut latencies = histogram();
        let mut records = 0;
        for topic in &topics {
            let mut from = Sequence::FIRST;
            loop {
                let began = Instant::now();
                let page = side.read(topic, from).await;
                latencies.record(micros(began)).unwrap();
                records += page.records.len() as u64;
                from = page.next;
                if from == page.tail {
                    break;
                }
            }
        }
        start.row(self.name, side, records, &latencies, 0)
    }
}

/// Names of many topics.
pub(crate) fn many(topics: u64) -> Vec<Topic> {
    (0..topics)
        .map(|n| side::topic(&format!("t{n:07}")))
        .collect()
}

/// The counters when a run began.
struct Start {
    at: Instant,
    cpu: Duration,
    written: u64,
}

impl Start {
    fn now() -> Self {
        Self {
            written: procfs::written_bytes(),
            cpu: procfs::cpu_time(),
            at: Instant::now(),
        }
    }

    /// What the run came to, with what goes on behind it until all is quiet.
    fn row(
        self,
        workload: &'static str,
        side: &Side,
        records: u64,
        latencies: &Histogram<u64>,
        kept: u64,
    ) -> Row {
        let seconds = self.at.elapsed().as_secs_f64();
        let cpu = procfs::cpu_time() - self.cpu;
        procfs::settle();
        let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / records as f64;
        let written = procfs::written_bytes() - self.written;
        Row {
            workload,
            side: side.name(),
            records,
            per_second: records as f64 / seconds,
            cpu: micros(cpu),
            cpu_settled: micros(procfs::cpu_time() - self.cpu),
            p50: latencies.value_at_quantile(0.5),
            p99: latencies.value_at_quantile(0.99),
            written_by_kept: (kept > 0).then(|| written as f64 / kept as f64),
            resident_mib: procfs::memory_mib("VmRSS"),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap()
}
