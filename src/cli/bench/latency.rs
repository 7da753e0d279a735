//! `weir bench latency`: how late messages are at a fixed rate.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    args::{ClusterArgs, LatencyArgs},
    fleet::{Fleet, FleetPlan},
    message::{self, Template},
    process::Process,
    publisher::Upload,
    report::{self, Table},
    round::Round,
};

/// How long the last messages may take.
const TAIL: Duration = Duration::from_secs(10);
/// The timer wakes up to a millisecond late: the rest of the way to a send time is spent polling.
const TIMER_SLACK: Duration = Duration::from_micros(1_500);

/// When each message was to be sent, and how late each delivery was.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Set when the first message may go.
    start: OnceLock<Instant>,
    interval: Duration,
    /// Stamps below this one belong to the warm-up.
    record_from: u64,
    latencies: Mutex<Histogram<u64>>,
    pub(super) arrived: AtomicU64,
}

impl Timeline {
    /// Nothing was sent yet; messages within the warm-up are not recorded.
    pub(super) fn new(interval: Duration, warmup: Duration) -> Result<Self> {
        Ok(Self {
            start: OnceLock::new(),
            interval,
            record_from: messages_within(warmup, interval),
            latencies: Mutex::new(histogram()?),
            arrived: AtomicU64::new(0),
        })
    }

    /// When a message was meant to be sent: a late send counts as latency, so a stalled server cannot hide it.
    fn intended(&self, stamp: u64) -> Instant {
        let start = *self.start.get_or_init(Instant::now);
        start + Duration::from_nanos(self.interval.as_nanos() as u64 * stamp)
    }

    /// How many messages should have been sent by now.
    fn due(&self) -> u64 {
        messages_within(self.intended(0).elapsed(), self.interval) + 1
    }

    /// Behind the last message of a measurement of this length.
    pub(super) fn last(&self, duration: Duration) -> u64 {
        self.record_from + messages_within(duration, self.interval)
    }

    /// How many of the messages before `end` are recorded.
    pub(super) fn counted(&self, end: u64) -> u64 {
        end.saturating_sub(self.record_from)
    }

    /// Waits until a message was meant to be sent.
    pub(super) async fn wait_for_turn(&self, stamp: u64) {
        wait_until(self.intended(stamp)).await;
    }

    /// Waits for the last messages, as long as that may take.
    pub(super) async fn wait_for(
        &self,
        wanted: u64,
        healthy: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let end = Instant::now() + TAIL;
        while self.arrived.load(Ordering::Relaxed) < wanted && Instant::now() < end {
            healthy()?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// What was recorded.
    pub(super) fn percentiles(&self) -> Percentiles {
        let latencies = self.latencies.lock();
        Percentiles::of(&latencies.unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a delivery that happens now.
    pub(super) fn arrived(&self, stamp: u64) {
        if stamp < self.record_from {
            return;
        }
        let late = Instant::now().saturating_duration_since(self.intended(stamp));
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record(late.as_nanos() as u64);
        drop(latencies);
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many messages are due within the time.
fn messages_within(time: Duration, interval: Duration) -> u64 {
    u64::try_from(time.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// Nanoseconds up to a minute, to three digits.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("the histogram's bounds are invalid")
}

/// Records how long something took.
pub(super) fn record(latencies: &Mutex<Histogram<u64>>, latency: Duration) {
    let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    latencies.saturating_record(latency.as_nanos() as u64);
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

impl Percentiles {
    /// Of recorded nanoseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
        }
    }

    /// Appends them to a table.
    pub(super) fn rows(&self, table: &mut Table) {
        let rows = [
            ("p50 µs", self.p50_us),
            ("p90 µs", self.p90_us),
            ("p99 µs", self.p99_us),
            ("p99.9 µs", self.p999_us),
            ("max µs", self.max_us),
        ];
        for (name, value) in rows {
            table.row([name, &report::count(value)]);
        }
    }
}

/// What the command found.
#[derive(Debug, Serialize)]
struct Figures {
    published: u64,
    delivered: u64,
    lost: u64,
    latency: Percentiles,
    server_cpu_us_per_delivery: Option<f64>,
}

async fn measure(
    args: &LatencyArgs,
    timeline: Arc<Timeline>,
    process: Option<&Process>,
) -> Result<Figures> {
    let room = message::fresh_room();
    let template = Template::message(&room, args.size);
    let fleet = open_fleet(args, room, &timeline).await?;
    let round = fleet.round();
    round.open(u64::MAX, fleet.connections());
    let mut upload = Upload::open(&args.server.addr, vec![template]).await?;
    report::progress(&format!("sending {} messages a second", args.rate));
    publish(&mut upload, &timeline, &round, timeline.record_from).await?;
    let before = process.map(Process::cpu_time).transpose()?;
    let published = messages_within(args.duration, timeline.interval);
    let end = timeline.record_from + published;
    publish(&mut upload, &timeline, &round, end).await?;
    let wanted = published * args.subscribers as u64;
    timeline.wait_for(wanted, || round.healthy()).await?;
    let after = process.map(Process::cpu_time).transpose()?;
    upload.finish().await?;
    let cpu = before.zip(after).map(|(before, after)| after.since(before));
    figures(args, &timeline, published, cpu)
}

async fn open_fleet(args: &LatencyArgs, room: String, timeline: &Arc<Timeline>) -> Result<Fleet> {
    Fleet::open(FleetPlan {
        target: args.server.addr.clone(),
        room,
        subscribers: args.subscribers,
        connections: args.connections,
        size: args.size,
        timeline: Some(Arc::clone(timeline)),
    })
    .await
}

fn figures(
    args: &LatencyArgs,
    timeline: &Timeline,
    published: u64,
    cpu: Option<Duration>,
) -> Result<Figures> {
    let delivered = timeline.arrived.load(Ordering::Relaxed);
    ensure!(
        delivered > 0,
        "no subscriber got a message: does this server deliver what is published?"
    );
    let wanted = published * args.subscribers as u64;
    Ok(Figures {
        published,
        delivered,
        lost: wanted.saturating_sub(delivered),
        latency: timeline.percentiles(),
        server_cpu_us_per_delivery: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / delivered as f64),
    })
}

/// Sends every message at its time, up to the one with that stamp.
async fn publish(upload: &mut Upload, timeline: &Timeline, round: &Round, end: u64) -> Result<()> {
    while upload.sent() < end {
        round.healthy()?;
        wait_until(timeline.intended(upload.sent())).await;
        let due = timeline.due().clamp(upload.sent() + 1, end);
        upload.send(due - upload.sent()).await?;
    }
    Ok(())
}

async fn wait_until(time: Instant) {
    if let Some(early) = time.checked_sub(TIMER_SLACK) {
        tokio::time::sleep_until(early.into()).await;
    }
    while Instant::now() < time {
        tokio::task::yield_now().await;
    }
}

/// Half and 99 of a hundred deliveries from the first replica to the last take so many microseconds at most.
pub(super) async fn between(args: &ClusterArgs) -> Result<(f64, f64)> {
    let timeline = Arc::new(Timeline::new(args.interval(), args.warmup)?);
    let room = message::fresh_room();
    let plan = FleetPlan {
        target: args.last().clone(),
        room: room.clone(),
        subscribers: 1,
        connections: 1,
        size: args.size,
        timeline: Some(Arc::clone(&timeline)),
    };
    let fleet = Fleet::open(plan).await?;
    let round = fleet.round();
    round.open(u64::MAX, fleet.connections());
    let templates = vec![Template::message(&room, args.size)];
    let mut upload = Upload::open(args.first(), templates).await?;
    let end = timeline.last(args.duration);
    publish(&mut upload, &timeline, &round, end).await?;
    let wanted = timeline.counted(end);
    timeline.wait_for(wanted, || round.healthy()).await?;
    upload.finish().await?;
    let arrived = timeline.arrived.load(Ordering::Relaxed);
    ensure!(
        arrived == wanted,
        "{arrived} of {wanted} messages were delivered"
    );
    let percentiles = timeline.percentiles();
    Ok((percentiles.p50_us, percentiles.p99_us))
}

/// Runs the command.
pub(super) async fn run(args: &LatencyArgs, json: bool) -> Result<()> {
    let process = args.server.process()?;
    let interval = Duration::from_secs(1) / args.rate;
    let timeline = Arc::new(Timeline::new(interval, args.warmup)?);
    let figures = measure(args, timeline, process.as_ref()).await?;
    if json {
        return report::print_json("latency", args, &figures);
    }
    let mut table = Table::new(["figure", "value"]);
    figures.latency.rows(&mut table);
    table.row(["delivered", &report::count(figures.delivered as f64)]);
    table.row(["lost", &report::count(figures.lost as f64)]);
    if let Some(cpu) = figures.server_cpu_us_per_delivery {
        table.row(["server CPU µs/delivery", &format!("{cpu:.4}")]);
    }
    report::print(&table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_times_do_not_move_when_sending_is_late() {
        let timeline = Timeline::new(Duration::from_millis(10), Duration::from_millis(25)).unwrap();
        let first = timeline.intended(0);
        std::thread::sleep(Duration::from_millis(15));
        assert_eq!(timeline.intended(3) - first, Duration::from_millis(30));
        assert!(timeline.due() >= 2);
        assert_eq!(timeline.record_from, 2);
    }

    #[test]
    fn a_delivery_is_measured_from_its_send_time() {
        let timeline = Timeline::new(Duration::from_millis(1), Duration::from_millis(1)).unwrap();
        timeline.intended(0);
        std::thread::sleep(Duration::from_millis(20));
        timeline.arrived(0);
        assert_eq!(timeline.latencies.lock().unwrap().len(), 0, "warm-up");
        timeline.arrived(1);
        assert!(timeline.latencies.lock().unwrap().max() >= 19_000_000);
    }
}
