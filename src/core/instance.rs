//! Measurements of an instance: what `StreamMetrics` shows, of this process and of the others.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::machine::{Machine, Usage};
use crate::{
    log::Timestamp,
    peers::{Counters, Requests},
};

/// This instance and its counters. A cheap handle; all clones are one.
#[derive(Clone)]
pub struct Instance(Arc<State>);

struct State {
    id: Box<str>,
    started: Instant,
    /// Drawn at the start: who asks over and over sees by it that this is another process.
    run: u64,
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

    fn tell(&self) -> Requests {
        Requests {
            method: self.method.to_string(),
            count: self.requests.load(Ordering::Relaxed),
        }
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
    instance: Box<str>,
    before: Counters,
    usage: Usage,
}

impl Sample {
    /// The caller's first interval begins where `instance` counted this.
    #[must_use]
    pub fn new(instance: &str, counters: Counters) -> Self {
        Self {
            instance: instance.into(),
            usage: Usage::since(&counters),
            before: counters,
        }
    }

    /// Measures the time up to `now` and moves there: `cpu_usage` in percent of every core of the machine, `memory_usage` of
    /// the process in MiB and `requests_per_second` of every endpoint. A process that was restarted meanwhile is measured
    /// since its start.
    pub fn measure(&mut self, now: Counters) -> Vec<Measurement> {
        let time = Timestamp(now.time);
        let mut all = Vec::new();
        let instance = &self.instance;
        let mut add = |name, value, label: &'static str, of: &str| {
            let labels = vec![("instance", instance.clone()), (label, of.into())];
            all.push(Measurement {
                name,
                value,
                time,
                labels,
            });
        };
        let is_same = now.run == self.before.run;
        if !is_same {
            // It may run on another machine by now.
            self.usage = Usage::since(&now);
        }
        for (core, percent) in self.usage.advance(&now).iter().enumerate() {
            add("cpu_usage", *percent, "core", &core.to_string());
        }
        add("memory_usage", mib(now.resident_bytes), "type", "resident");
        let before = is_same.then_some(&self.before);
        let since = before.map_or(0, |before| before.uptime);
        let secs = Duration::from_nanos(now.uptime.saturating_sub(since)).as_secs_f64();
        for (index, endpoint) in now.requests.iter().enumerate() {
            let before = before.and_then(|before| before.requests.get(index));
            let before = before.map_or(0, |before| before.count);
            let rate = rate(endpoint.count.saturating_sub(before), secs);
            add("requests_per_second", rate, "endpoint", &endpoint.method);
        }
        self.before = now;
        all
    }
}

impl Instance {
    /// An instance named `id` that serves `methods`, each written like `chat.ChatService/SendMessage`.
    #[must_use]
    pub fn new(id: &str, methods: impl IntoIterator<Item = impl Into<Box<str>>>) -> Self {
        Self(Arc::new(State {
            id: id.into(),
            started: Instant::now(),
            run: rand::random(),
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
        Sample::new(self.id(), self.counters())
    }

    /// Measures the time from `since` to now and moves `since` there; see [`Sample::measure`].
    pub fn measure(&self, since: &mut Sample) -> Vec<Measurement> {
        since.measure(self.counters())
    }

    /// What was counted up to now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters_at(Instant::now())
    }

    fn counters_at(&self, now: Instant) -> Counters {
        let uptime = now.duration_since(self.0.started).as_nanos();
        let mut counters = Counters {
            run: self.0.run,
            uptime: u64::try_from(uptime).unwrap_or(u64::MAX),
            time: Timestamp::now().0,
            requests: self.0.endpoints.iter().map(Endpoint::tell).collect(),
            ..Counters::default()
        };
        self.0.machine.read(now).tell(&mut counters);
        counters
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
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
            let all = since.measure(instance.counters_at(now));
            (rate_of(&all, SEND), rate_of(&all, CHAT))
        };
        let sample = || Sample::new("server-01", instance.counters_at(start));
        let (mut often, mut rarely) = (sample(), sample());
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
    fn a_restarted_process_is_measured_since_its_start() {
        let requests = |method: &str, count| Requests {
            method: method.into(),
            count,
        };
        let second = 1_000_000_000;
        let before = Counters {
            run: 1,
            uptime: 3600 * second,
            requests: vec![requests(SEND, 1000), requests(CHAT, 7)],
            ..Counters::default()
        };
        let mut since = Sample::new("server-02", before);
        let after = Counters {
            run: 2,
            uptime: 2 * second,
            // Another version has other endpoints.
            requests: vec![requests("new/New", 3), requests(SEND, 30)],
            ..Counters::default()
        };
        let all = since.measure(after.clone());
        assert_eq!((rate_of(&all, "new/New"), rate_of(&all, SEND)), (1.5, 15.0));
        assert!(
            all.iter()
                .all(|one| one.labels[0] == ("instance", "server-02".into()))
        );
        let later = Counters {
            uptime: 4 * second,
            ..after
        };
        assert_eq!(rate_of(&since.measure(later), SEND), 0.0);
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
