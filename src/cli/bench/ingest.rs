//! `weir bench ingest`: how many messages are stored a second, and how long a publisher waits for that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    args::{IngestArgs, IngestMode},
    grpc::{self, Target},
    latency::{Percentiles, histogram, record},
    message::{self, Template},
    process::Process,
    publisher::Upload,
    report::{self, Table},
};

/// Messages written together to an upload.
const UPLOAD_BATCH: u64 = 128;

/// What the command found.
#[derive(Debug, Serialize)]
struct Figures {
    seconds: f64,
    acknowledged: u64,
    appends_per_sec: f64,
    /// From sending a request, or a whole upload, to its answer.
    latency: Percentiles,
    server_cpu_us_per_append: Option<f64>,
}

/// Runs the command.
pub(super) async fn run(args: &IngestArgs, json: bool) -> Result<()> {
    let process = args.server.process()?;
    let latencies = Arc::new(Mutex::new(histogram()?));
    let rooms: Vec<String> = (0..args.rooms).map(|_| message::fresh_room()).collect();
    report::progress("publishing");
    let before = process.as_ref().map(Process::cpu_time).transpose()?;
    let start = Instant::now();
    let acknowledged = match args.mode {
        IngestMode::Unary => unary(args, &rooms, &latencies).await?,
        IngestMode::Stream => stream(args, &rooms, &latencies).await?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let after = process.as_ref().map(Process::cpu_time).transpose()?;
    let cpu = before.zip(after).map(|(before, after)| after.since(before));
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let figures = Figures {
        seconds,
        acknowledged,
        appends_per_sec: acknowledged as f64 / seconds,
        latency: Percentiles::of(&latencies),
        server_cpu_us_per_append: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / acknowledged as f64),
    };
    drop(latencies);
    if json {
        return report::print_json("ingest", args, &figures);
    }
    report::print(&table(args.mode, &figures))
}

fn table(mode: IngestMode, figures: &Figures) -> String {
    let mut table = Table::new(["figure", "value"]);
    table.row(["appends/s", &report::count(figures.appends_per_sec)]);
    table.row(["acknowledged", &report::count(figures.acknowledged as f64)]);
    table.row(["seconds", &format!("{:.2}", figures.seconds)]);
    if mode == IngestMode::Unary {
        figures.latency.rows(&mut table);
    }
    if let Some(cpu) = figures.server_cpu_us_per_append {
        table.row(["server CPU µs/append", &format!("{cpu:.3}")]);
    }
    table.render()
}

/// Publishers that each wait for the answer before they send again.
pub(super) async fn unary(
    args: &IngestArgs,
    rooms: &[String],
    latencies: &Arc<Mutex<Histogram<u64>>>,
) -> Result<u64> {
    let publishers = args.publishers();
    let mut connections = Vec::new();
    for _ in 0..args.connections.min(publishers) {
        connections.push(args.server.addr.connect_driven().await?);
    }
    let mut tasks = JoinSet::new();
    let end = Instant::now() + args.duration;
    for index in 0..publishers {
        tasks.spawn(
            Caller {
                target: args.server.addr.clone(),
                sender: connections[index % connections.len()].clone(),
                template: Template::request(&rooms[index % rooms.len()], args.size),
                latencies: Arc::clone(latencies),
            }
            .run(end),
        );
    }
    total(tasks).await.context("SendMessage failed")
}

struct Caller {
    target: Target,
    sender: SendRequest<Bytes>,
    template: Template,
    latencies: Arc<Mutex<Histogram<u64>>>,
}

impl Caller {
    async fn run(mut self, end: Instant) -> Result<u64> {
        let mut calls = 0;
        while Instant::now() < end {
            let start = Instant::now();
            self.call(calls).await?;
            record(&self.latencies, start.elapsed());
            calls += 1;
        }
        Ok(calls)
    }

    async fn call(&mut self, stamp: u64) -> Result<()> {
        let mut frame = Vec::with_capacity(self.template.frame_bytes());
        self.template.append(stamp, &mut frame);
        let head = self.target.request("SendMessage")?;
        let response = grpc::call(&mut self.sender, head, frame.into()).await?;
        let body = grpc::accepted(response, grpc::PATIENCE).await?;
        grpc::only_message(body, grpc::PATIENCE).await?;
        Ok(())
    }
}

/// Uploads of many messages, each answered once.
async fn stream(
    args: &IngestArgs,
    rooms: &[String],
    latencies: &Arc<Mutex<Histogram<u64>>>,
) -> Result<u64> {
    let publishers = args.publishers() as u64;
    let mut tasks = JoinSet::new();
    for index in 0..publishers {
        let templates = rooms.iter().map(|room| Template::message(room, args.size));
        let upload = Upload::open(&args.server.addr, templates.collect()).await?;
        let share = args.count / publishers + u64::from(index < args.count % publishers);
        tasks.spawn(upload_all(upload, share, Arc::clone(latencies)));
    }
    let acknowledged = total(tasks).await?;
    ensure!(
        acknowledged == args.count,
        "{acknowledged} of {} messages were acknowledged",
        args.count
    );
    Ok(acknowledged)
}

async fn upload_all(
    mut upload: Upload,
    messages: u64,
    latencies: Arc<Mutex<Histogram<u64>>>,
) -> Result<u64> {
    let start = Instant::now();
    while upload.sent() < messages {
        upload
            .send(UPLOAD_BATCH.min(messages - upload.sent()))
            .await?;
    }
    upload.finish().await?;
    record(&latencies, start.elapsed());
    Ok(messages)
}

/// The sum of what all publishers published.
pub(super) async fn total(mut tasks: JoinSet<Result<u64>>) -> Result<u64> {
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        total += done.map_err(|_| anyhow!("a publisher's task panicked"))??;
    }
    Ok(total)
}
