//! `weir bench cluster`: replicas on NATS JetStream beside the bare server, with the same work in turns.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    args::ClusterArgs,
    bare::Bare,
    frame::FrameCounter,
    grpc::{self, Target},
    ingest,
    latency::{self, Timeline, histogram},
    message::{self, Template},
    publisher::Upload,
    report::{self, Table},
    stats::Spread,
};
use crate::proto::chat::SubscribeRequest;

/// Messages written together to an upload.
const UPLOAD_BATCH: u64 = 128;
/// How long reading everything may take.
const CATCH_UP: Duration = Duration::from_secs(120);

/// What each round of a side consists of.
const STEPS: [&str; 4] = [
    "publishers that wait",
    "one stream",
    "catching up",
    "deliveries",
];

/// One round of one side.
#[derive(Debug, Default)]
struct Round {
    appends_per_sec: f64,
    append_p50_ms: f64,
    append_p99_ms: f64,
    stream_per_sec: f64,
    delivery_p50_ms: f64,
    delivery_p99_ms: f64,
    catch_up_per_sec: f64,
}

/// A figure by its name, and where a round has it.
type Figure = (&'static str, fn(&Round) -> f64);

const FIGURES: [Figure; 7] = [
    ("appends/s, each waited for", |round| round.appends_per_sec),
    ("p50 ms of those", |round| round.append_p50_ms),
    ("p99 ms of those", |round| round.append_p99_ms),
    ("appends/s, one stream", |round| round.stream_per_sec),
    ("delivery p50 ms", |round| round.delivery_p50_ms),
    ("delivery p99 ms", |round| round.delivery_p99_ms),
    ("catch-up records/s", |round| round.catch_up_per_sec),
];

#[derive(Debug, Serialize)]
struct Row {
    figure: &'static str,
    weir: Option<Spread>,
    nats: Option<Spread>,
    /// Weir's by that of NATS, round by round.
    ratio: Option<Spread>,
}

/// Runs the command.
pub(super) async fn run(args: &ClusterArgs, json: bool) -> Result<()> {
    let (mut weir, mut nats) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        let step = |side, what| {
            report::progress(&format!("round {round} of {}: {side}: {what}", args.rounds));
        };
        weir.push(
            of_weir(args, |what| step("Weir", what))
                .await
                .context("Weir")?,
        );
        nats.push(
            of_nats(args, |what| step("NATS", what))
                .await
                .context("the bare NATS")?,
        );
    }
    let rows = FIGURES.map(|(figure, of)| {
        let [weir, nats] = [&weir, &nats].map(|side| side.iter().map(of).collect::<Vec<f64>>());
        Row {
            figure,
            weir: Spread::of(&weir),
            nats: Spread::of(&nats),
            ratio: Spread::of_ratios(&weir, &nats),
        }
    });
    if json {
        return report::print_json("cluster", args, &rows);
    }
    let mut table = Table::new(["figure", "weir", "bare NATS", "ratio"]);
    for row in &rows {
        let digits = usize::from(row.figure.contains("ms")) * 2;
        let text = |spread: Option<Spread>, digits| spread.map_or("-".into(), |s| s.text(digits));
        table.row([
            row.figure,
            &text(row.weir, digits),
            &text(row.nats, digits),
            &text(row.ratio, 2),
        ]);
    }
    report::print(&table.render())
}

async fn of_weir(args: &ClusterArgs, step: impl Fn(&'static str)) -> Result<Round> {
    let mut round = Round::default();
    step(STEPS[0]);
    let latencies = Arc::new(Mutex::new(histogram()?));
    let shares = args.addr.iter().map(|addr| args.ingest(addr));
    let shares: Vec<_> = shares.collect();
    let rooms = [message::fresh_room()];
    let start = Instant::now();
    let appended = try_join_all(
        shares
            .iter()
            .map(|share| ingest::unary(share, &rooms, &latencies)),
    );
    let appended = appended.await?.iter().sum();
    round.appended(appended, start.elapsed(), &latencies);

    step(STEPS[1]);
    // Another room: what is read back later is what is written here.
    let room = message::fresh_room();
    let start = Instant::now();
    let templates = vec![Template::message(&room, args.size)];
    let mut upload = Upload::open(args.first(), templates).await?;
    while upload.sent() < args.count {
        upload
            .send(UPLOAD_BATCH.min(args.count - upload.sent()))
            .await?;
    }
    upload.finish().await?;
    round.stream_per_sec = args.count as f64 / start.elapsed().as_secs_f64();

    step(STEPS[2]);
    let start = Instant::now();
    let reading = read_all(args.last(), &room, args.count);
    let read = timeout(CATCH_UP, reading).await;
    read.context("the history did not come in time")??;
    round.catch_up_per_sec = args.count as f64 / start.elapsed().as_secs_f64();

    step(STEPS[3]);
    let (p50, p99) = latency::between(args).await?;
    round.delivered(p50, p99);
    Ok(round)
}

async fn of_nats(args: &ClusterArgs, step: impl Fn(&'static str)) -> Result<Round> {
    let mut round = Round::default();
    step(STEPS[0]);
    let bare = Bare::create(&args.nats, args.nats_replicas, args.size).await?;
    let latencies = Arc::new(Mutex::new(histogram()?));
    let start = Instant::now();
    let appended = bare
        .publish_each(args.publishers, args.duration, &latencies)
        .await?;
    round.appended(appended, start.elapsed(), &latencies);
    bare.delete().await?;

    step(STEPS[1]);
    let bare = Bare::create(&args.nats, args.nats_replicas, args.size).await?;
    let start = Instant::now();
    bare.publish_all(args.count).await?;
    round.stream_per_sec = args.count as f64 / start.elapsed().as_secs_f64();
    step(STEPS[2]);
    let start = Instant::now();
    bare.read_all(args.count).await?;
    round.catch_up_per_sec = args.count as f64 / start.elapsed().as_secs_f64();

    step(STEPS[3]);
    let timeline = Arc::new(Timeline::new(args.interval(), args.warmup)?);
    bare.deliver(&timeline, timeline.last(args.duration))
        .await?;
    let percentiles = timeline.percentiles();
    round.delivered(percentiles.p50_us, percentiles.p99_us);
    bare.delete().await?;
    Ok(round)
}

impl Round {
    fn appended(&mut self, count: u64, within: Duration, latencies: &Mutex<Histogram<u64>>) {
        let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
        self.appends_per_sec = count as f64 / within.as_secs_f64();
        (self.append_p50_ms, self.append_p99_ms) = (at(0.5), at(0.99));
    }

    fn delivered(&mut self, p50_us: f64, p99_us: f64) {
        (self.delivery_p50_ms, self.delivery_p99_ms) = (p50_us / 1000.0, p99_us / 1000.0);
    }
}

/// Subscribes from the room's beginning and reads so many messages.
async fn read_all(target: &Target, room: &str, count: u64) -> Result<()> {
    let mut sender = target.connect_driven().await?;
    let request = SubscribeRequest {
        room: room.to_owned(),
        user: "bench".to_owned(),
        after_sequence: Some(0),
    };
    let head = target.request("SubscribeMessages")?;
    let frame = message::grpc_frame(&request).into();
    let response = grpc::call(&mut sender, head, frame).await?;
    let mut stream = grpc::accepted(response, grpc::PATIENCE).await?;
    let mut counter = FrameCounter::new(u64::MAX, 1);
    // The welcome comes first.
    let mut left = count + 1;
    while left > 0 {
        let Some(chunk) = stream.data().await else {
            return Err(grpc::ended(stream.trailers().await?));
        };
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        let messages = counter.feed(&chunk, |_| Ok(()))?;
        ensure!(messages <= left, "more was read than was written");
        left -= messages;
    }
    Ok(())
}
