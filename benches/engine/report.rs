//! The table of what was measured.

use std::fmt::Write as _;

/// One workload on one side.
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) side: &'static str,
    pub(crate) records: u64,
    pub(crate) per_second: f64,
    /// Microseconds of the process's CPU a record, until the last one is acknowledged or read.
    pub(crate) cpu: f64,
    /// The same until the work behind it is done too.
    pub(crate) cpu_settled: f64,
    /// Microseconds of an append, or of a page.
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    /// Bytes that went to the disk by bytes of records; none where nothing is written.
    pub(crate) written_by_kept: Option<f64>,
    pub(crate) resident_mib: f64,
}

pub(crate) struct Report(String);

impl Report {
    pub(crate) fn new() -> Self {
        Self(format!(
            "{:<19} {:<6} {:>10} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6}\n",
            "workload",
            "side",
            "records",
            "records/s",
            "CPU µs",
            "settled",
            "p50 µs",
            "p99 µs",
            "wr/kept",
            "MiB"
        ))
    }

    pub(crate) fn add(&mut self, row: Row) {
        let written = row
            .written_by_kept
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        writeln!(
            self.0,
            "{:<19} {:<6} {:>10} {:>11.0} {:>8.2} {:>8.2} {:>8} {:>8} {:>8} {:>6.0}",
            row.workload,
            row.side,
            row.records,
            row.per_second,
            row.cpu,
            row.cpu_settled,
            row.p50,
            row.p99,
            written,
            row.resident_mib,
        )
        .unwrap();
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}
