//! Clients' telemetry as `/metrics` shows it.
//!
//! Owns the present value of every series that clients send. The samples themselves are records of the log; here is only
//! what a scrape shows, in memory: gauges are empty and counters begin at zero after a restart, which Prometheus takes for
//! the reset that it is.
//!
//! Bounds: `collect.max_series` series, each at most a name, [`MAX_LABELS`] labels and their texts; a series without a
//! sample for `collect.series_ttl` is forgotten. [`MAX_ABANDONED`] keys of calls that broke off.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{config, log::Topic, telemetry::Metrics};

/// Labels of one series at most.
pub const MAX_LABELS: usize = 32;
/// The longest label value in bytes; names are at most [`Topic::MAX_NAME_BYTES`].
pub const MAX_LABEL_VALUE_BYTES: usize = 1024;
/// Keys of samples whose call broke off that are remembered, the newest: two streams' worth.
pub const MAX_ABANDONED: usize = 16 * 1024;
/// What the names of this service's own metrics begin with, and of what Prometheus adds to every scrape.
const RESERVED_PREFIXES: [&str; 5] = ["weir_", "grpc_", "process_", "tokio_", "scrape_"];
/// Labels that mean something of their own in the exposition format.
const RESERVED_LABELS: [&str; 2] = ["le", "quantile"];
/// How often at most forgotten series are looked for when there seems to be no room.
const SWEEP: Duration = Duration::from_secs(1);

/// What kind of metric a sample is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that goes up and down; a sample replaces it.
    Gauge,
    /// Something that only grows; a sample is added to it.
    Counter,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// Why a sample is refused; the closed set that labels `weir_collect_rejected_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The metric's name.
    Name,
    /// The labels.
    Labels,
    /// The value.
    Value,
    /// Its kind is unknown, or another than the metric's.
    Kind,
    /// The time.
    Timestamp,
    /// The idempotency key, malformed or used for another sample.
    Key,
    /// There are as many series as there may be.
    Limit,
}

impl Reason {
    /// Its name in the metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Labels => "labels",
            Self::Value => "value",
            Self::Kind => "kind",
            Self::Timestamp => "timestamp",
            Self::Key => "key",
            Self::Limit => "limit",
        }
    }
}

/// A refused sample: why, and in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    text: String,
}

impl Refusal {
    /// Refused for `reason`, in words.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { reason, text }
    }
}

/// Names and values of labels, in the order of their names; none is empty.
type Labels = Box<[(Box<str>, Box<str>)]>;

/// A sample that Prometheus would take.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    name: Box<str>,
    kind: Kind,
    labels: Labels,
    value: f64,
}

impl Sample {
    /// Checks a sample. A label with an empty value is as good as none, as in Prometheus.
    ///
    /// # Errors
    /// The name is not `[a-zA-Z_:][a-zA-Z0-9_:]*`, too long, or the service's own; a label's name is not
    /// `[a-zA-Z_][a-zA-Z0-9_]*` or reserved, or there are too many or too long ones; the increase of a counter is negative
    /// or not finite.
    pub fn new(
        name: &str,
        kind: Kind,
        labels: &BTreeMap<String, String>,
        value: f64,
    ) -> Result<Self, Refusal> {
        check_name(name)?;
        if kind == Kind::Counter && !(value.is_finite() && value >= 0.0) {
            return Err(Refusal::new(
                Reason::Value,
                "value must be finite and not negative: it is the increase of a counter",
            ));
        }
        let labels: Labels = labels
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect();
        check_labels(&labels)?;
        Ok(Self {
            name: name.into(),
            kind,
            labels,
            value,
        })
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let refuse = |text: &str| Err(Refusal::new(Reason::Name, text));
    if name.trim().is_empty() {
        return refuse("name is required");
    }
    if name.len() > Topic::MAX_NAME_BYTES {
        return refuse("name must be at most 256 bytes");
    }
    if !is_identifier(name, b":") {
        return refuse("name must match [a-zA-Z_:][a-zA-Z0-9_:]*");
    }
    if name == "up"
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
    {
        return refuse(
            "name is taken: up and what begins with weir_, grpc_, process_, tokio_ or scrape_",
        );
    }
    Ok(())
}

fn check_labels(labels: &[(Box<str>, Box<str>)]) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::new(Reason::Labels, text));
    if labels.len() > MAX_LABELS {
        return refuse(format!("labels must be at most {MAX_LABELS}"));
    }
    for (name, value) in labels {
        if name.len() > Topic::MAX_NAME_BYTES || value.len() > MAX_LABEL_VALUE_BYTES {
            return refuse(format!(
                "labels must have names of at most 256 bytes and values of at most {MAX_LABEL_VALUE_BYTES}"
            ));
        }
        if !is_identifier(name, b"") {
            return refuse("labels must have names that match [a-zA-Z_][a-zA-Z0-9_]*".into());
        }
        if name.starts_with("__") || RESERVED_LABELS.contains(&&**name) {
            return refuse(format!(
                "labels must not be called {name}: that name is reserved"
            ));
        }
    }
    Ok(())
}

/// Whether `text` is letters, digits, `_` and what is in `more`, and does not begin with a digit.
fn is_identifier(text: &str, more: &[u8]) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || more.contains(&byte);
    text.bytes().all(is_part)
        && text
            .bytes()
            .next()
            .is_some_and(|first| !first.is_ascii_digit())
}

/// The telemetry of all clients. Cheap to clone.
#[derive(Clone)]
pub struct Collect(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    metrics: Metrics,
    /// The number of series, which is a metric of the service itself.
    desc: Desc,
}

struct State {
    max_series: usize,
    ttl: Duration,
    families: BTreeMap<Box<str>, Family>,
    count: usize,
    swept: Option<Instant>,
    abandoned: Abandoned,
}

/// Keys of samples that may be stored and are not shown.
#[derive(Default)]
struct Abandoned {
    /// When each came, counted.
    keys: HashMap<Box<str>, u64>,
    order: BTreeMap<u64, Box<str>>,
    next: u64,
}

impl Abandoned {
    fn add(&mut self, key: Box<str>) {
        self.remove(Some(&key));
        self.next += 1;
        self.order.insert(self.next, key.clone());
        self.keys.insert(key, self.next);
        if self.keys.len() > MAX_ABANDONED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.keys.remove(&oldest);
        }
    }

    /// Forgets a key; whether it was there.
    fn remove(&mut self, key: Option<&str>) -> bool {
        let number = key.and_then(|key| self.keys.remove(key));
        number.is_some_and(|number| self.order.remove(&number).is_some())
    }
}

struct Family {
    kind: Kind,
    series: HashMap<Labels, Series>,
}

struct Series {
    /// `None` while its first sample is on its way into the log.
    value: Option<f64>,
    touched: Instant,
}

impl Collect {
    /// No series yet; shown by the registry of `metrics` from now on.
    ///
    /// # Errors
    /// The registry shows another's series already: a programming error.
    pub fn new(settings: &config::Collect, metrics: &Metrics) -> prometheus::Result<Self> {
        let collect = Self(Arc::new(Inner {
            state: Mutex::new(State::new(settings)),
            metrics: metrics.clone(),
            desc: Desc::new(
                "weir_collect_series".into(),
                "Series of clients' telemetry held for /metrics.".into(),
                Vec::new(),
                HashMap::new(),
            )?,
        }));
        metrics.registry().register(Box::new(collect.clone()))?;
        Ok(collect)
    }

    /// Takes a place for the sample's series, so that the sample can be shown once it is stored.
    ///
    /// # Errors
    /// Its metric is of another kind, or there are as many series as there may be.
    pub fn reserve(&self, sample: &Sample) -> Result<(), Refusal> {
        self.0.lock().reserve(sample, Instant::now())
    }

    /// Shows a sample that is stored.
    pub fn stored(&self, sample: Sample, key: Option<&str>) {
        let mut state = self.0.lock();
        state.abandoned.remove(key);
        state.show(sample, Instant::now());
    }

    /// A sample repeats one that was stored under its key: it is shown already, unless the call that stored it broke off
    /// before it knew.
    pub fn repeated(&self, sample: Sample, key: Option<&str>) {
        let mut state = self.0.lock();
        if state.abandoned.remove(key) {
            state.show(sample, Instant::now());
        }
    }

    /// The call of a sample broke off before it was known whether the sample is stored.
    pub fn abandoned(&self, key: Box<str>) {
        self.0.lock().abandoned.add(key);
    }

    /// Counts a refused sample.
    pub fn refused(&self, reason: Reason) {
        let rejected = &self.0.metrics.collect_rejected;
        rejected.with_label_values(&[reason.as_str()]).inc();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(settings: &config::Collect) -> Self {
        Self {
            max_series: settings.max_series,
            ttl: settings.series_ttl,
            families: BTreeMap::new(),
            count: 0,
            swept: None,
            abandoned: Abandoned::default(),
        }
    }

    fn reserve(&mut self, sample: &Sample, now: Instant) -> Result<(), Refusal> {
        self.place(sample, now).or_else(|refusal| {
            // What is forgotten may have stood in the way.
            let is_due = self
                .swept
                .is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP);
            if !is_due {
                return Err(refusal);
            }
            self.sweep(now);
            self.place(sample, now)
        })
    }

    /// Finds or makes the sample's series.
    fn place(&mut self, sample: &Sample, now: Instant) -> Result<(), Refusal> {
        if let Some(family) = self.families.get_mut(&sample.name) {
            if family.kind != sample.kind {
                let text = format!(
                    "kind must be {}, as before",
                    family.kind.as_str().to_uppercase()
                );
                return Err(Refusal::new(Reason::Kind, text));
            }
            if let Some(series) = family.series.get_mut(&sample.labels) {
                series.touched = now;
                return Ok(());
            }
        }
        if self.count >= self.max_series {
            let text = format!(
                "series of clients' telemetry are limited to {}",
                self.max_series
            );
            return Err(Refusal::new(Reason::Limit, text));
        }
        self.count += 1;
        let family = self.families.entry(sample.name.clone());
        let family = family.or_insert_with(|| Family {
            kind: sample.kind,
            series: HashMap::new(),
        });
        let fresh = Series {
            value: None,
            touched: now,
        };
        family.series.insert(sample.labels.clone(), fresh);
        Ok(())
    }

    fn show(&mut self, sample: Sample, now: Instant) {
        // Its place may have been forgotten while it was stored; then there may be no other.
        if self.place(&sample, now).is_err() {
            return;
        }
        let family = self.families.get_mut(&sample.name);
        let Some(series) = family.and_then(|family| family.series.get_mut(&sample.labels)) else {
            return;
        };
        series.value = Some(match sample.kind {
            Kind::Gauge => sample.value,
            Kind::Counter => (series.value.unwrap_or(0.0) + sample.value).min(f64::MAX),
        });
    }

    /// Forgets series without a sample for too long.
    fn sweep(&mut self, now: Instant) {
        self.swept = Some(now);
        let ttl = self.ttl;
        self.families.retain(|_, family| {
            family
                .series
                .retain(|_, series| now.saturating_duration_since(series.touched) < ttl);
            !family.series.is_empty()
        });
        self.count = self
            .families
            .values()
            .map(|family| family.series.len())
            .sum();
    }

    fn families(&self) -> Vec<MetricFamily> {
        self.families
            .iter()
            .filter_map(|(name, family)| family.shown(name))
            .collect()
    }
}

impl Family {
    /// What a scrape shows of it, if anything.
    fn shown(&self, name: &str) -> Option<MetricFamily> {
        let shown = self
            .series
            .iter()
            .filter_map(|(labels, series)| Some(metric(self.kind, labels, series.value?)));
        let shown: Vec<_> = shown.collect();
        (!shown.is_empty()).then(|| family(name, "Collected from clients.", self.kind, shown))
    }
}

impl Collector for Collect {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn collect(&self) -> Vec<MetricFamily> {
        let mut state = self.0.lock();
        state.sweep(Instant::now());
        let mut families = state.families();
        let count = metric(Kind::Gauge, &[], state.count as f64);
        let desc = &self.0.desc;
        families.push(family(&desc.fq_name, &desc.help, Kind::Gauge, vec![count]));
        families
    }
}

fn family(name: &str, help: &str, kind: Kind, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(match kind {
        Kind::Gauge => MetricType::GAUGE,
        Kind::Counter => MetricType::COUNTER,
    });
    family.set_metric(metrics);
    family
}

fn metric(kind: Kind, labels: &[(Box<str>, Box<str>)], value: f64) -> Metric {
    let pair = |(name, value): &(Box<str>, Box<str>)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_string());
        pair.set_value(value.to_string());
        pair
    };
    let mut metric = Metric::from_label(labels.iter().map(pair).collect());
    match kind {
        Kind::Gauge => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
    }
    metric
}
