//! What the kernel knows about the measured server, and about this machine.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Clock ticks a second in `/proc/PID/stat`; a constant of Linux's interface on every common architecture.
const TICKS_PER_SEC: u64 = 100;

/// A running process, read through `/proc`.
#[derive(Debug, Clone)]
pub(super) struct Process {
    root: PathBuf,
}

/// Processor time of a process up to some moment, user and kernel, measured in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuTime {
    /// Nanosecond accounting of the threads that live now.
    threads: Duration,
    /// Coarse accounting that includes threads that have ended.
    process: Duration,
}

impl CpuTime {
    /// Time spent since `earlier`. The fine measure counts, unless threads ended in between and took theirs along.
    pub(super) fn since(self, earlier: Self) -> Duration {
        let threads = self.threads.saturating_sub(earlier.threads);
        let process = self.process.saturating_sub(earlier.process);
        let slack = Duration::from_millis(30) + process / 20;
        if process > threads + slack {
            process
        } else {
            threads
        }
    }
}

impl Process {
    /// The process with that id; fails unless it runs and may be looked at.
    pub(super) fn open(pid: u32) -> Result<Self> {
        let process = Self {
            root: PathBuf::from(format!("/proc/{pid}")),
        };
        process
            .cpu_time()
            .with_context(|| format!("cannot measure process {pid}"))?;
        Ok(process)
    }

    /// Processor time spent so far.
    pub(super) fn cpu_time(&self) -> Result<CpuTime> {
        let mut threads = Duration::ZERO;
        for task in fs::read_dir(self.root.join("task"))? {
            // A thread may end between being listed and being read.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                threads += parse_schedstat(&text).context("schedstat is not in a known form")?;
            }
        }
        let stat = fs::read_to_string(self.root.join("stat"))?;
        let process = parse_stat(&stat).context("stat is not in a known form")?;
        Ok(CpuTime { threads, process })
    }

    /// Resident memory in bytes.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(self.root.join("status"))?;
        parse_resident(&status).context("status names no resident size")
    }
}

fn parse_schedstat(text: &str) -> Option<Duration> {
    let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// User and system time: fields 14 and 15, counted after the command's name, which may hold anything.
fn parse_stat(text: &str) -> Option<Duration> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1000 / TICKS_PER_SEC,
    ))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    /// Processors of the machine, whatever this process is pinned to.
    pub(super) cores: usize,
    /// The first processor's model.
    pub(super) cpu_model: String,
    /// The kernel's release.
    pub(super) kernel: String,
    /// The load generator's version.
    pub(super) weir_version: &'static str,
}

impl Machine {
    /// This machine; what it does not tell is `unknown`.
    pub(super) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = cpuinfo.lines().filter(|line| line.starts_with("processor"));
        Self {
            cores: processors.count(),
            cpu_model: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
            kernel: kernel.trim().to_owned(),
            weir_version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_gives_its_first_field() {
        assert_eq!(
            parse_schedstat("8041297 1202 77\n"),
            Some(Duration::from_nanos(8_041_297))
        );
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        let text = "42 (a) R) b) S 1 42 42 0 -1 4194304 99 0 0 0 150 25 0 0 20 0 2 0 100 0 0";
        assert_eq!(parse_stat(text), Some(Duration::from_millis(1750)));
        assert_eq!(parse_stat("42 (a) S 1"), None);
    }

    #[test]
    fn resident_size_is_in_bytes() {
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t    12 kB\n"),
            Some(12 * 1024)
        );
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn ended_threads_are_not_forgotten() {
        let at = |threads, process| CpuTime {
            threads: Duration::from_millis(threads),
            process: Duration::from_millis(process),
        };
        let start = at(1000, 1000);
        assert_eq!(
            at(1100, 1110).since(start),
            Duration::from_millis(100),
            "within its slack"
        );
        assert_eq!(
            at(900, 1500).since(start),
            Duration::from_millis(500),
            "a thread took its time along"
        );
    }

    #[test]
    fn the_test_itself_can_be_measured() {
        let process = Process::open(std::process::id()).unwrap();
        assert!(process.resident_bytes().unwrap() > 0);
        assert!(Process::open(u32::MAX).is_err());
    }
}
