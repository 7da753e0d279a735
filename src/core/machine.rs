//! Reads the machine's cores and the process's memory, for all that measure together.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::peers::{Counters, Ticks};

/// Readings are shared for this long, so that the number of streams does not matter. It is also the shortest time over which
/// a processor's usage means anything.
const FRESH: Duration = Duration::from_millis(200);

/// The shared reader.
pub(super) struct Machine(Mutex<Reader>);

struct Reader {
    system: Option<System>,
    pid: Option<Pid>,
    last: Option<(Instant, Arc<Reading>)>,
}

/// What the machine said at one time.
#[derive(Debug, Default)]
pub(super) struct Reading {
    cores: Cores,
    resident_bytes: u64,
}

#[derive(Debug)]
enum Cores {
    /// Counters since boot: a caller's own interval can be computed.
    Ticks(Vec<Ticks>),
    /// Percent since the reading before: all that a machine without `/proc` offers.
    Percent(Vec<f64>),
}

impl Default for Cores {
    fn default() -> Self {
        Self::Percent(Vec::new())
    }
}

impl Machine {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Reader {
            system: System::new().ok(),
            pid: sysinfo::get_current_pid().ok(),
            last: None,
        }))
    }

    /// The state at `now`, or a little before it when somebody has just read it.
    pub(super) fn read(&self, now: Instant) -> Arc<Reading> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, reading)) = &reader.last
            && now.duration_since(*at) < FRESH
        {
            return Arc::clone(reading);
        }
        let reading = Arc::new(reader.read());
        reader.last = Some((now, Arc::clone(&reading)));
        reading
    }
}

impl Reader {
    fn read(&mut self) -> Reading {
        Reading {
            cores: self.cores(),
            resident_bytes: self.resident_bytes().unwrap_or_default(),
        }
    }

    fn cores(&mut self) -> Cores {
        let ticks = fs::read_to_string("/proc/stat").map(|stat| ticks(&stat));
        if let Ok(ticks) = ticks
            && !ticks.is_empty()
        {
            return Cores::Ticks(ticks);
        }
        let Some(system) = &mut self.system else {
            return Cores::default();
        };
        system.refresh_cpu_usage();
        let percents = system.cpus().iter();
        Cores::Percent(percents.map(|cpu| f64::from(cpu.usage())).collect())
    }

    fn resident_bytes(&mut self) -> Option<u64> {
        let (pid, system) = (self.pid?, self.system.as_mut()?);
        let memory = ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
        Some(system.process(pid)?.memory())
    }
}

impl Reading {
    /// Adds what was read to `counters`.
    pub(super) fn tell(&self, counters: &mut Counters) {
        match &self.cores {
            Cores::Ticks(ticks) => counters.ticks.clone_from(ticks),
            Cores::Percent(percents) => counters.percents.clone_from(percents),
        }
        counters.resident_bytes = self.resident_bytes;
    }
}

/// One caller's view of the cores: usage between its own readings.
#[derive(Debug)]
pub(super) struct Usage {
    before: Vec<Ticks>,
    percents: Vec<f64>,
}

impl Usage {
    pub(super) fn since(counters: &Counters) -> Self {
        let mut usage = Self {
            before: Vec::new(),
            percents: Vec::new(),
        };
        usage.advance(counters);
        usage
    }

    /// Usage of every core in percent since the reading before. A core for which no time passed keeps its value; a new one is
    /// at zero.
    pub(super) fn advance(&mut self, counters: &Counters) -> &[f64] {
        match counters.ticks.is_empty() {
            true => self.percents.clone_from(&counters.percents),
            false => self.advance_to(&counters.ticks),
        }
        &self.percents
    }

    fn advance_to(&mut self, now: &[Ticks]) {
        self.percents.resize(now.len(), 0.0);
        let known = self.percents.iter_mut().zip(now).zip(&self.before);
        for ((percent, now), before) in known {
            if let Some(value) = percent_between(*before, *now) {
                *percent = value;
            }
        }
        self.before = now.to_vec();
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn percent_between(before: Ticks, now: Ticks) -> Option<f64> {
    // Some of the kernel's counters may step back a little, and another machine's are others.
    let all = now.all.saturating_sub(before.all);
    let busy = now.busy.saturating_sub(before.busy).min(all);
    (all > 0).then(|| busy as f64 / all as f64 * 100.0)
}

/// The lines `cpu0 …`, `cpu1 …` of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; then guest times,
/// which are within user.
fn ticks(stat: &str) -> Vec<Ticks> {
    let cores = stat
        .lines()
        .filter_map(|line| line.strip_prefix("cpu"))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    cores
        .map(|line| {
            let times = line.split_ascii_whitespace().skip(1).take(8);
            let times: Vec<u64> = times.map(|time| time.parse().unwrap_or(0)).collect();
            let idle: u64 = times.iter().skip(3).take(2).sum();
            let all: u64 = times.iter().sum();
            Ticks {
                busy: all - idle,
                all,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(busy: u64, all: u64) -> Counters {
        Counters {
            ticks: vec![Ticks { busy, all }],
            ..Counters::default()
        }
    }

    #[test]
    fn proc_stat_is_read_per_core() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 10 0 5 80 5 0 0 0 7 7\ncpu1 0 0 0 0 0 0 0 0\nintr 1\n";
        let cores = [Ticks { busy: 15, all: 100 }, Ticks::default()];
        assert_eq!(ticks(stat), cores);
    }

    #[test]
    fn two_callers_see_their_own_intervals() {
        let mut often = Usage::since(&reading(0, 0));
        let mut rarely = Usage::since(&reading(0, 0));
        assert_eq!(often.advance(&reading(50, 100)), [50.0]);
        assert_eq!(often.advance(&reading(150, 200)), [100.0]);
        assert_eq!(rarely.advance(&reading(150, 200)), [75.0]);
    }

    #[test]
    fn a_core_without_news_keeps_its_value() {
        let mut usage = Usage::since(&reading(0, 0));
        usage.advance(&reading(25, 100));
        assert_eq!(usage.advance(&reading(25, 100)), [25.0]);
    }

    #[test]
    fn a_reading_is_shared_while_it_is_fresh() {
        let machine = Machine::new();
        let start = Instant::now();
        let first = machine.read(start);
        assert!(Arc::ptr_eq(&first, &machine.read(start)));
        assert!(!Arc::ptr_eq(&first, &machine.read(start + FRESH)));
    }
}
