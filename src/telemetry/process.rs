//! Collectors that look when they are scraped: the process (`process_*`, from `/proc`), what it may use (`weir_memory_*`,
//! `weir_cpu_*`, from its control group) and its tokio runtime (`weir_runtime_*`). Where there is no `/proc`, the first two are
//! absent.

use std::{collections::HashMap, fs};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto::{Counter, Gauge, Metric, MetricFamily, MetricType},
};
use tokio::runtime::{Handle, RuntimeMetrics};

/// Registers the collectors; `runtime` is the one to report on.
///
/// # Errors
/// They are registered already.
pub fn register(registry: &Registry, runtime: &Handle) -> prometheus::Result<()> {
    registry.register(Box::new(Collected::new(PROCESS, process_values)?))?;
    registry.register(Box::new(Collected::new(ALLOWED, allowed_values)?))?;
    let metrics = runtime.metrics();
    registry.register(Box::new(Collected::new(RUNTIME, move || {
        runtime_values(&metrics)
    })?))
}

/// Name, help and type of one metric.
type Family = (&'static str, &'static str, MetricType);

const PROCESS: [Family; 7] = [
    (
        "process_cpu_seconds_total",
        "User and system CPU time spent.",
        MetricType::COUNTER,
    ),
    (
        "process_resident_memory_bytes",
        "Resident memory.",
        MetricType::GAUGE,
    ),
    (
        "process_virtual_memory_bytes",
        "Virtual memory.",
        MetricType::GAUGE,
    ),
    (
        "process_open_fds",
        "Open file descriptors.",
        MetricType::GAUGE,
    ),
    (
        "process_max_fds",
        "File descriptors that may be open.",
        MetricType::GAUGE,
    ),
    (
        "process_start_time_seconds",
        "When the process started, since the Unix epoch.",
        MetricType::GAUGE,
    ),
    ("process_threads", "Threads.", MetricType::GAUGE),
];

const ALLOWED: [Family; 2] = [
    (
        "weir_memory_limit_bytes",
        "Memory the process may use: its control group's limit, else the machine's memory.",
        MetricType::GAUGE,
    ),
    (
        "weir_cpu_throttled_seconds_total",
        "Time the process was kept from running by its control group's CPU quota; 0 without a quota.",
        MetricType::COUNTER,
    ),
];

const RUNTIME: [Family; 4] = [
    (
        "weir_runtime_workers",
        "Worker threads of the async runtime.",
        MetricType::GAUGE,
    ),
    (
        "weir_runtime_alive_tasks",
        "Tasks alive in the async runtime.",
        MetricType::GAUGE,
    ),
    (
        "weir_runtime_global_queue_depth",
        "Tasks waiting in the runtime's global queue.",
        MetricType::GAUGE,
    ),
    (
        "weir_runtime_busy_seconds_total",
        "Time the runtime's workers were busy, together.",
        MetricType::COUNTER,
    ),
];

/// Metrics whose values `read` yields, in the order of `families`; none of them when it fails.
struct Collected<const N: usize, F> {
    families: [Family; N],
    descs: Vec<Desc>,
    read: F,
}

impl<const N: usize, F> Collected<N, F> {
    fn new(families: [Family; N], read: F) -> prometheus::Result<Self> {
        let descs = families
            .iter()
            .map(|(name, help, _)| {
                Desc::new((*name).into(), (*help).into(), vec![], HashMap::new())
            })
            .collect::<prometheus::Result<_>>()?;
        Ok(Self {
            families,
            descs,
            read,
        })
    }
}

impl<const N: usize, F> Collector for Collected<N, F>
where
    F: Fn() -> Option<[f64; N]> + Send + Sync,
{
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let values = (self.read)();
        let pairs = values
            .iter()
            .flat_map(|values| self.families.iter().zip(values));
        pairs
            .map(|(family, value)| filled(family, *value))
            .collect()
    }
}

fn filled(&(name, help, kind): &Family, value: f64) -> MetricFamily {
    let mut metric = Metric::default();
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn runtime_values(metrics: &RuntimeMetrics) -> Option<[f64; 4]> {
    let workers = metrics.num_workers();
    let busy = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker));
    Some([
        workers as f64,
        metrics.num_alive_tasks() as f64,
        metrics.global_queue_depth() as f64,
        busy.map(|time| time.as_secs_f64()).sum(),
    ])
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn process_values() -> Option<[f64; 7]> {
    let ticks_per_sec = rustix::param::clock_ticks_per_second() as f64;
    let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
    let booted = boot_time(&fs::read_to_string("/proc/stat").ok()?)?;
    // The listing itself holds one open.
    let open = fs::read_dir("/proc/self/fd")
        .ok()?
        .count()
        .saturating_sub(1);
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    Some([
        stat.cpu_ticks as f64 / ticks_per_sec,
        stat.resident_pages as f64 * rustix::param::page_size() as f64,
        stat.virtual_bytes as f64,
        open as f64,
        most.current.map_or(f64::INFINITY, |most| most as f64),
        booted as f64 + stat.start_ticks as f64 / ticks_per_sec,
        stat.threads as f64,
    ])
}

/// Where a container sees its own control group, version 2.
const CONTROL_GROUP: &str = "/sys/fs/cgroup";

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn allowed_values() -> Option<[f64; 2]> {
    let machine = memory_total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = |file: &str| fs::read_to_string(format!("{CONTROL_GROUP}/{file}")).ok();
    // "max" where there is no limit.
    let limit = group("memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let throttled = group("cpu.stat").and_then(|text| throttled_micros(&text));
    Some([
        limit.unwrap_or(machine).min(machine) as f64,
        throttled.unwrap_or(0) as f64 / 1e6,
    ])
}

/// Bytes of memory in `/proc/meminfo`.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn throttled_micros(cpu_stat: &str) -> Option<u64> {
    let line = cpu_stat
        .lines()
        .find_map(|line| line.strip_prefix("throttled_usec "))?;
    line.trim().parse().ok()
}

/// What is of use in `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field, the name in brackets, may hold anything, brackets and spaces too.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbered from one in proc(5), where the first of `rest` is number three.
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            threads: number(20)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

fn boot_time(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_is_no_trouble() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 50 25 0 0 20 0 9 0 1234 4096000 300 18446744073709551615 1";
        let stat = Stat {
            cpu_ticks: 75,
            threads: 9,
            start_ticks: 1234,
            virtual_bytes: 4_096_000,
            resident_pages: 300,
        };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn limits_are_found() {
        let meminfo = "MemTotal:       16777216 kB\nMemFree:  1 kB\n";
        assert_eq!(memory_total(meminfo), Some(16 << 30));
        let cpu_stat = "usage_usec 5\nnr_throttled 2\nthrottled_usec 1500\n";
        assert_eq!(throttled_micros(cpu_stat), Some(1500));
        assert_eq!(throttled_micros("usage_usec 5\n"), None);
    }

    #[test]
    fn boot_time_is_found() {
        assert_eq!(
            boot_time("cpu  1 2\nbtime 1700000000\nprocesses 3\n"),
            Some(1_700_000_000)
        );
    }
}
