//! Measurements of this process: what `StreamMetrics` shows.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::machine::{Machine, Usage};
use crate::log::Timestamp;

/// This instance and its counters. A cheap handle; all clones are one.
#[derive(Clone)]
pub struct Instance(Arc<State>);

struct State {
    id: Box<str>,
    endpoints: Box<[Endpoint]>,
    machine: Machine,
}

struct Endpoint {
    method: Box<str>,
    requests: AtomicU64,
}

impl Endpoint {
    fn new(method: impl Into<Box<str>>) -> Self {
        Self {
            method: method.into(),
            requests: AtomicU64::new(0),
        }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// One value at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// What is measured, unit included where it is not obvious.
    pub name: &'static str,
    /// The value.
    pub value: f64,
    /// When.
    pub time: Timestamp,
    /// What it belongs to.
    pub labels: Vec<(&'static str, Box<str>)>,
}

/// What a caller saw last: its rates are over the time since then. Every stream keeps its own.
#[derive(Debug)]
pub struct Sample {
    at: Instant,
    requests: Box<[u64]>,
    usage: Usage,
}

impl Instance {
    /// An instance named `id` that serves `methods`, each written like `chat.ChatService/SendMessage`.
    #[must_use]
    pub fn new(id: &str, methods: impl IntoIterator<Item = impl Into<Box<str>>>) -> Self {
        Self(Arc::new(State {
            id: id.into(),
            endpoints: methods.into_iter().map(Endpoint::new).collect(),
            machine: Machine::new(),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Counts a request of the method at `index` in the list given at the start; others are not counted.
    pub fn count(&self, index: usize) {
        if let Some(endpoint) = self.0.endpoints.get(index) {
            endpoint.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Where a caller's first interval begins.
    #[must_use]
    pub fn sample(&self) -> Sample {
        self.sample_at(Instant::now())
    }

    fn sample_at(&self, at: Instant) -> Sample {
        Sample {
            at,
            requests: self.0.endpoints.iter().map(Endpoint::requests).collect(),
            usage: Usage::since(&self.0.machine.read(at)),
        }
    }

    /// Measures the time from `since` to now and moves `since` there: `cpu_usage` in percent of every core of the machine,
    /// `memory_usage` of the process in MiB and `requests_per_second` of every endpoint.
    pub fn measure(&self, since: &mut Sample) -> Vec<Measurement> {
        self.measure_at(since, Instant::now())
    }

    fn measure_at(&self, since: &mut Sample, now: Instant) -> Vec<Measurement> {
        let reading = self.0.machine.read(now);
        let time = Timestamp::now();
        let mut all = Vec::new();
        let mut add = |name, value, label: &'static str, of: &str| {
            let labels = vec![("instance", self.id().into()), (label, of.into())];
            all.push(Measurement {
                name,
                value,
                time,
                labels,
            });
        };
        for (core, percent) in since.usage.advance(&reading).iter().enumerate() {
            add("cpu_usage", *percent, "core", &core.to_string());
        }
        add("memory_usage", reading.resident_mib(), "type", "resident");
        let secs = now.duration_since(since.at).as_secs_f64();
        since.at = now;
        for (endpoint, before) in self.0.endpoints.iter().zip(&mut since.requests) {
            let requests = endpoint.requests();
            let rate = rate(requests - *before, secs);
            *before = requests;
            add("requests_per_second", rate, "endpoint", &endpoint.method);
        }
        all
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn rate(count: u64, secs: f64) -> f64 {
    if secs > 0.0 { count as f64 / secs } else { 0.0 }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instance").field(&self.id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SEND: &str = "chat.ChatService/SendMessage";
    const CHAT: &str = "chat.ChatService/Chat";

    fn rate_of(all: &[Measurement], method: &str) -> f64 {
        let wanted = ("endpoint", method.into());
        let found = all.iter().find(|one| one.labels.contains(&wanted));
        found.unwrap().value
    }

    #[test]
    fn rates_are_over_the_callers_own_interval() {
        let instance = Instance::new("server-01", vec![SEND, CHAT]);
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let rates = |since: &mut Sample, now| {
            let all = instance.measure_at(since, now);
            (rate_of(&all, SEND), rate_of(&all, CHAT))
        };
        let mut often = instance.sample_at(start);
        let mut rarely = instance.sample_at(start);
        for _ in 0..100 {
            instance.count(0);
        }
        instance.count(2);
        assert_eq!(rates(&mut often, after(4)), (25.0, 0.0));
        instance.count(1);
        assert_eq!(rates(&mut often, after(5)), (0.0, 1.0));
        assert_eq!(rates(&mut rarely, after(5)), (20.0, 0.2));
        assert_eq!(rates(&mut rarely, after(5)), (0.0, 0.0));
    }

    #[test]
    fn cores_and_memory_are_measured() {
        let instance = Instance::new("server-01", [""; 0]);
        let mut since = instance.sample();
        std::thread::sleep(Duration::from_millis(250));
        let all = instance.measure(&mut since);
        let cores: Vec<_> = all.iter().filter(|one| one.name == "cpu_usage").collect();
        assert!(!cores.is_empty());
        assert!(cores.iter().all(|core| (0.0..=100.0).contains(&core.value)));
        assert_eq!(cores[0].labels[1], ("core", "0".into()));
        let memory = all.iter().find(|one| one.name == "memory_usage").unwrap();
        assert!(memory.value > 1.0, "{memory:?}");
        let labels = [
            ("instance", "server-01".into()),
            ("type", "resident".into()),
        ];
        assert_eq!(memory.labels, labels);
    }
}
