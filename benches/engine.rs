//! How fast the embedded log appends: `cargo bench --bench engine`.
//!
//! First 64 tasks that each wait for their record before they append the next, then one task that keeps four batches of a
//! thousand in flight, then single records with nothing else going on, then reading it all back.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark"
)]

use std::{
    collections::VecDeque,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use weir::{
    config,
    log::{Engine, Limit, NewRecord, Sequence, Space, Topic, embedded::Embedded},
    telemetry::Metrics,
};

const WRITERS: usize = 64;
const BATCH: usize = 1000;
const RUN: Duration = Duration::from_secs(4);

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for bytes in [100, 1024] {
        let dir = std::env::temp_dir().join(format!("weir-bench-{}", std::process::id()));
        let config = config::Log {
            dir: dir.clone(),
            ..config::Log::default()
        };
        let engine = Arc::new(Embedded::open(&config, Metrics::new()).unwrap());
        println!("records of {bytes} bytes");
        println!("  resident: {} MiB", memory_mib("VmRSS"));
        runtime.block_on(async {
            concurrent(&engine, bytes).await;
            bulk(&engine, bytes).await;
            single(&engine, bytes).await;
            read(&engine).await;
            engine.close().await;
        });
        println!("  resident at most: {} MiB", memory_mib("VmHWM"));
        fs::remove_dir_all(&dir).unwrap();
    }
}

fn record(topic: &str, bytes: usize) -> NewRecord {
    NewRecord {
        topic: Topic::new(Space::Room, topic).unwrap(),
        publisher: "bench".into(),
        id: "0123456789abcdef".into(),
        kind: 1,
        event_time: None,
        key: None,
        trace: None,
        payload: Bytes::from(vec![b'x'; bytes]),
    }
}

async fn append(engine: &Embedded, batch: Vec<NewRecord>) {
    engine.enqueue(batch).await.unwrap().await.unwrap();
}

async fn concurrent(engine: &Arc<Embedded>, bytes: usize) {
    let (started, cpu) = (Instant::now(), cpu_time());
    let tasks = (0..WRITERS).map(|at| {
        let engine = engine.clone();
        tokio::spawn(async move {
            let record = record(&format!("r{}", at % 8), bytes);
            let mut times = Vec::new();
            while started.elapsed() < RUN {
                let began = Instant::now();
                append(&engine, vec![record.clone()]).await;
                times.push(began.elapsed());
            }
            times
        })
    });
    let mut all = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        all.extend(task.await.unwrap());
    }
    report("64 waiting writers", all.len(), started, cpu, &all);
}

async fn bulk(engine: &Embedded, bytes: usize) {
    let (started, cpu) = (Instant::now(), cpu_time());
    let batch = vec![record("bulk", bytes); BATCH];
    let mut acks = VecDeque::new();
    let (mut times, mut records) = (Vec::new(), 0);
    while started.elapsed() < RUN {
        acks.push_back((Instant::now(), engine.enqueue(batch.clone()).await.unwrap()));
        records += BATCH;
        if acks.len() >= 4
            && let Some((began, ack)) = acks.pop_front()
        {
            ack.await.unwrap();
            times.push(began.elapsed());
        }
    }
    for (_, ack) in acks {
        ack.await.unwrap();
    }
    report("batches of 1000", records, started, cpu, &times);
    println!("  resident: {} MiB", memory_mib("VmRSS"));
}

async fn single(engine: &Embedded, bytes: usize) {
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut times = Vec::new();
    for _ in 0..2000 {
        let began = Instant::now();
        append(engine, vec![record("single", bytes)]).await;
        times.push(began.elapsed());
    }
    report("one at a time", times.len(), started, cpu, &times);
}

async fn read(engine: &Embedded) {
    let (started, cpu) = (Instant::now(), cpu_time());
    let topic = Topic::new(Space::Room, "bulk").unwrap();
    let limit = Limit {
        records: 4096,
        bytes: 1024 * 1024,
    };
    let (mut at, mut records, mut times) = (Sequence::FIRST, 0, Vec::new());
    while started.elapsed() < RUN {
        let began = Instant::now();
        let page = engine.read(&topic, at, limit).await.unwrap();
        times.push(began.elapsed());
        records += page.records.len();
        at = page.next;
        if at == page.tail {
            break;
        }
    }
    report("reading back", records, started, cpu, &times);
}

fn report(what: &str, records: usize, started: Instant, cpu: Duration, times: &[Duration]) {
    let secs = started.elapsed().as_secs_f64();
    let cpu = cpu_time() - cpu;
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    for time in times {
        histogram
            .record(u64::try_from(time.as_micros()).unwrap())
            .unwrap();
    }
    println!(
        "  {what:<20} {:>9.0} records/s   p50 {:>6} µs   p99 {:>6} µs   {:>6.2} µs CPU a record",
        records as f64 / secs,
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.99),
        cpu.as_secs_f64() * 1e6 / records as f64,
    );
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = ticks
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

fn memory_mib(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
