//! The embedded log beside what it replaced and beside the bare disk: `cargo bench --bench engine`.
//!
//! Three sides take turns in one run: Weir's engine, a baseline on fjall ([`baseline`]: a group commit into an LSM tree), and a
//! loop that only writes and flushes ([`bare`]). Then Weir and the baseline are filled by a process of their own that is killed
//! with SIGKILL, opened again, and Weir's log is trimmed empty ([`child`]). Figures are only printed; nothing passes or fails.
//!
//! ```text
//! cargo bench --bench engine                       # about three minutes
//! cargo bench --bench engine -- --records 10m      # 10 M records in batches, read back, and after a kill
//! cargo bench --bench engine -- --topics 1m        # 1 M topics of one record: opening, and a round of retention
//! ```

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark"
)]

mod bare;
mod baseline;
mod child;
mod options;
mod procfs;
mod report;
mod side;
mod workload;

use std::fs;

use options::Options;
use report::Report;
use side::Side;
use workload::{Reading, Writing};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "child") {
        return child::run(&words[1..]);
    }
    let options = Options::parse(&words).unwrap_or_else(|error| {
        println!("{error}\n\n{}", options::HELP);
        std::process::exit(2);
    });
    let root = options.dir();
    if options.topics == 0 {
        compare(&options, &root);
        after_a_kill(&options, &root);
    } else {
        many_topics(&options, &root);
    }
    fs::remove_dir_all(&root).unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// Every workload on every side, in turns.
fn compare(options: &Options, root: &std::path::Path) {
    let runtime = runtime();
    let _context = runtime.enter();
    let sides = Side::all(root);
    let mut report = Report::new();
    for writing in Writing::all(options) {
        for side in &sides {
            report.add(runtime.block_on(writing.run(side, options)));
        }
    }
    for reading in Reading::ALL {
        for side in sides.iter().filter(|side| side.can_read()) {
            report.add(runtime.block_on(reading.run(side)));
        }
    }
    println!(
        "{} byte payloads, {} bytes a stored record",
        options.size,
        side::stored_bytes(options.size)
    );
    println!("{}", report.text());
}

/// A process fills a log and is killed; another one opens it.
fn after_a_kill(options: &Options, root: &std::path::Path) {
    println!(
        "\nafter kill -9, {} records in {} topics",
        options.records,
        workload::TOPICS
    );
    for engine in [child::WEIR, child::FJALL] {
        let dir = root.join(format!("killed-{engine}"));
        let filled = child::fill(
            engine,
            &dir,
            options.records,
            workload::TOPICS,
            options.size,
        );
        let opened = child::open(engine, &dir);
        println!(
            "  {engine:<6} writer: {:.0} MiB resident, {:.0} at most; disk {:.1} MiB; open {:.3} s, {:.0} MiB resident, CPU {:.3} s",
            filled["resident_mib"],
            filled["peak_mib"],
            filled["disk_mib"],
            opened["seconds"],
            opened["resident_mib"],
            opened["cpu_seconds"],
        );
        if engine == child::WEIR {
            let trimmed = child::trim(&dir);
            println!(
                "  {engine:<6} all trimmed: disk {:.1} MiB, {:.2} segments, after {:.1} s",
                trimmed["disk_mib"], trimmed["segments"], trimmed["seconds"],
            );
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// One record in each of many topics.
fn many_topics(options: &Options, root: &std::path::Path) {
    let topics = options.topics;
    println!("{topics} topics of one record, after kill -9");
    for engine in [child::WEIR, child::FJALL] {
        let dir = root.join(format!("topics-{engine}"));
        let filled = child::fill(engine, &dir, topics, topics, options.size);
        let opened = child::open(engine, &dir);
        println!(
            "  {engine:<6} writer: {:.0} MiB resident; disk {:.1} MiB; open {:.3} s, {:.0} MiB resident, CPU {:.3} s",
            filled["resident_mib"],
            filled["disk_mib"],
            opened["seconds"],
            opened["resident_mib"],
            opened["cpu_seconds"],
        );
        if engine == child::WEIR {
            let rounds = child::rounds(&dir);
            println!(
                "  {engine:<6} a round of retention: {:.2} ms of CPU ({:.1} ms a second with rounds, {:.1} without)",
                rounds["round_ms"], rounds["busy_ms"], rounds["idle_ms"],
            );
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
