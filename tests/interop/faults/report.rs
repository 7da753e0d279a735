//! What a run says about itself.

use std::time::{Duration, Instant};

use super::load::{Journal, Report};

/// A bucket of a histogram.
const BUCKET: Duration = Duration::from_millis(500);

/// Times after a fault, in buckets.
fn histogram(times: &[Duration]) -> String {
    let mut counts = Vec::new();
    for time in times {
        let bucket = usize::try_from(time.as_millis() / BUCKET.as_millis()).unwrap();
        if counts.len() <= bucket {
            counts.resize(bucket + 1, 0_usize);
        }
        counts[bucket] += 1;
    }
    let line = |(bucket, count): (u32, &usize)| {
        let (from, to) = (BUCKET * bucket, BUCKET * (bucket + 1));
        format!("  {from:>5.1?} to {to:>5.1?}  {count:>5}\n")
    };
    (0..).zip(&counts).map(line).collect()
}

/// How long after the fault before it each of `events` was.
pub(super) fn after(events: impl Iterator<Item = Instant>, faults: &[Instant]) -> Vec<Duration> {
    let since = |event| {
        let before = faults.iter().rev().find(|fault| **fault <= event);
        before.map(|fault| event - *fault)
    };
    events.filter_map(since).collect()
}

pub(super) fn tell(what: &str, journal: &Journal, report: &Report, faults: &[Instant]) {
    let resumed = journal.resumed.lock().unwrap().clone();
    let reconnects = after(resumed.iter().map(|resumed| resumed.0), faults);
    println!(
        "{what}: {} messages; publishers repeated after {:?}, streams ended with {:?}; longest time without a delivery \
         {:.1?}, of half of the subscribers {:.1?}; {} reconnects, the last {:.1?} after the fault:\n{}",
        report.messages,
        journal.refusals(),
        journal.codes(),
        report.silence,
        report.median_silence,
        reconnects.len(),
        reconnects.iter().max().copied().unwrap_or_default(),
        histogram(&reconnects),
    );
}
