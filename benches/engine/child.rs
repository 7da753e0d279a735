//! Processes of their own: one to be killed, others that open what it left. Each tells its figures as `name=value` on a line.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use std::sync::Arc;

use weir::log::{Engine as _, Limit, Sequence};

use crate::{
    baseline::Baseline,
    procfs, runtime,
    side::{self, Side},
    workload,
};

pub(crate) const WEIR: &str = "weir";
pub(crate) const FJALL: &str = "fjall";

const MIB: f64 = 1024.0 * 1024.0;
/// Rounds of retention that are measured, and as many seconds without.
const ROUNDS: u32 = 5;
const BATCH: u64 = 1000;

pub(crate) type Figures = HashMap<String, f64>;

/// Fills a log and kills the process that did.
pub(crate) fn fill(engine: &str, dir: &Path, records: u64, topics: u64, size: usize) -> Figures {
    let numbers = [records, topics, size as u64].map(|number| number.to_string());
    let mut words = vec!["fill", engine, dir.to_str().unwrap()];
    words.extend(numbers.iter().map(String::as_str));
    let (mut child, figures) = start(&words);
    child.kill().unwrap();
    child.wait().unwrap();
    figures
}

/// Opens a log.
pub(crate) fn open(engine: &str, dir: &Path) -> Figures {
    finish(start(&["open", engine, dir.to_str().unwrap()]))
}

/// Trims every topic of Weir's log.
pub(crate) fn trim(dir: &Path) -> Figures {
    finish(start(&["trim", WEIR, dir.to_str().unwrap()]))
}

/// Measures rounds of retention of Weir's log.
pub(crate) fn rounds(dir: &Path) -> Figures {
    let measure = |interval| {
        let dir = dir.to_str().unwrap();
        finish(start(&["rest", WEIR, dir, interval]))["ms_a_second"]
    };
    // A minute is longer than what is measured.
    let idle = measure("60");
    let busy = measure("1");
    let figures = [
        ("busy_ms", busy),
        ("idle_ms", idle),
        ("round_ms", busy - idle),
    ];
    figures.map(|(name, value)| (name.to_owned(), value)).into()
}

fn start(words: &[&str]) -> (Child, Figures) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("child")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pairs = line
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='));
    let figures = pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    (child, figures.collect())
}

fn finish((mut child, figures): (Child, Figures)) -> Figures {
    assert!(child.wait().unwrap().success(), "the process failed");
    figures
}

/// The child's side of it.
pub(crate) fn run(words: &[String]) {
    let [what, engine, dir, rest @ ..] = words else {
        panic!("words are missing");
    };
    let dir = Path::new(dir);
    let number = |at: usize| rest[at].parse::<u64>().unwrap();
    let runtime = runtime();
    let _context = runtime.enter();
    match what.as_str() {
        "fill" => runtime.block_on(be_filled(engine, dir, number(0), number(1), number(2))),
        "open" => be_opened(engine, dir),
        "trim" => runtime.block_on(be_trimmed(dir)),
        "rest" => be_resting(dir, number(0)),
        _ => panic!("{what} is nothing"),
    }
}

fn side_of(engine: &str, dir: &Path) -> Side {
    if engine == WEIR {
        Side::Weir(Arc::new(side::open_weir(dir, None)))
    } else {
        Side::Fjall(Arc::new(Baseline::open(dir)))
    }
}

/// Writes and then waits to be killed, or for the parent to be gone.
async fn be_filled(engine: &str, dir: &Path, records: u64, topics: u64, size: u64) {
    let side = side_of(engine, dir);
    let topics = workload::many(topics);
    let template = side::record(&topics[0], usize::try_from(size).unwrap());
    let mut next = topics.iter().cycle();
    let mut left = records;
    let mut pending = std::collections::VecDeque::new();
    while left > 0 {
        let batch: Vec<_> = next
            .by_ref()
            .take(usize::try_from(left.min(BATCH)).unwrap())
            .map(|topic| weir::log::NewRecord {
                topic: topic.clone(),
                ..template.clone()
            })
            .collect();
        left -= batch.len() as u64;
        pending.push_back(side.enqueue(batch).await);
        if pending.len() >= 4 {
            pending.pop_front().unwrap().done().await;
        }
    }
    for append in pending {
        append.done().await;
    }
    drop(topics);
    procfs::settle();
    println!(
        "resident_mib={} peak_mib={} disk_mib={}",
        procfs::memory_mib("VmRSS"),
        procfs::memory_mib("VmHWM"),
        procfs::disk_bytes(dir) as f64 / MIB,
    );
    std::io::stdin().lines().next();
}

fn be_opened(engine: &str, dir: &Path) {
    let start = Instant::now();
    let cpu = procfs::cpu_time();
    let side = side_of(engine, dir);
    println!(
        "seconds={} cpu_seconds={} resident_mib={}",
        start.elapsed().as_secs_f64(),
        (procfs::cpu_time() - cpu).as_secs_f64(),
        procfs::memory_mib("VmRSS"),
    );
    drop(side);
}

async fn be_trimmed(dir: &Path) {
    let engine = side::open_weir(dir, Some(Duration::from_secs(1)));
    let start = Instant::now();
    let space = weir::log::Space::Room;
    let mut after = None;
    loop {
        let topics = engine.topics(space, after.as_ref(), 10_000).await.unwrap();
        let Some(last) = topics.last().cloned() else {
            break;
        };
        for topic in &topics {
            engine.trim(topic, engine.tail()).await.unwrap();
        }
        after = Some(last);
    }
    let left = engine
        .newest(&workload::many(1)[0], Sequence(u64::MAX), Limit::ONE)
        .await
        .unwrap();
    assert!(left.is_empty(), "a record stayed");
    let seconds = start.elapsed().as_secs_f64();
    procfs::settle();
    let disk = procfs::disk_bytes(dir) as f64;
    let segment = weir::config::Log::default().segment.as_u64() as f64;
    println!(
        "seconds={seconds} disk_mib={} segments={}",
        disk / MIB,
        disk / segment,
    );
    engine.close().await;
}

fn be_resting(dir: &Path, interval_seconds: u64) {
    let engine = side::open_weir(dir, Some(Duration::from_secs(interval_seconds)));
    // The first round comes at once.
    std::thread::sleep(Duration::from_secs(3));
    let cpu = procfs::cpu_time();
    std::thread::sleep(Duration::from_secs(ROUNDS.into()));
    let spent = procfs::cpu_time() - cpu;
    println!(
        "ms_a_second={}",
        spent.as_secs_f64() * 1e3 / f64::from(ROUNDS)
    );
    drop(engine);
}
