//! A subscriber that stops reading: it costs the server no memory and the other subscribers nothing, and it loses nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use hdrhistogram::Histogram;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tonic::Streaming;
use weir::proto::chat::Message;

use crate::support::{TestServer, eventually, follow, message, next, send, soon};

const ROOM: &str = "busy";
/// Records published while the reader stands still.
const RECORDS: u64 = 1_000_000;
const UPLOADS: u64 = 4;
/// Records published before the baseline is taken.
const WARM_UP: u64 = 200_000;
/// What the server's memory may grow by.
const GROWTH_BYTES: u64 = 64 << 20;
/// Subscribers whose latency is measured, each on a connection of its own.
const LIVE: usize = 3;
/// The measured load: so many records at once, so many times, that long apart.
const BURST: u64 = 25;
const BURSTS: u64 = 600;
const PACE: Duration = Duration::from_millis(5);
/// Latencies below this are alike: on a busy machine they measure its scheduler.
const ALIKE: Duration = Duration::from_millis(10);
/// How much later than without the stalled reader records may come.
const RATIO: f64 = 10.0;

/// The largest resident memory seen while it lives.
struct Peak {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Peak {
    fn of(server: &TestServer) -> Self {
        let statm = format!("/proc/{}/statm", server.pid());
        let (bytes, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (peak, stopped) = (Arc::clone(&bytes), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(20));
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let Ok(text) = std::fs::read_to_string(&statm) else {
                    return;
                };
                let pages = text
                    .split(' ')
                    .nth(1)
                    .and_then(|pages| pages.parse::<u64>().ok());
                let resident = pages.unwrap_or(0) * rustix::param::page_size() as u64;
                peak.fetch_max(resident, Ordering::Relaxed);
            }
        });
        Self { bytes, stop }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn subscribe(server: &TestServer, after: Option<u64>) -> Streaming<Message> {
    let mut chat = server.chat().await;
    let stream = chat.subscribe_messages(follow(ROOM, after)).await;
    let mut stream = stream.expect("the room can be followed").into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    stream
}

fn numbered(writer: &str, number: u64) -> Message {
    message(ROOM, writer, &format!("{number:08} {}", "x".repeat(64)))
}

/// Publishes `records` as fast as it goes, in several streams; each writer's records are numbered from zero.
async fn upload(server: &TestServer, name: &str, records: u64) {
    let mut uploads = JoinSet::new();
    for upload in 0..UPLOADS {
        let (mut chat, writer) = (server.chat().await, format!("{name}-{upload}"));
        let count = records / UPLOADS;
        uploads.spawn(async move {
            let messages = stream::iter(0..count).map(move |number| numbered(&writer, number));
            let answer = chat
                .upload_messages(messages)
                .await
                .expect("an upload")
                .into_inner();
            assert_eq!(u64::try_from(answer.message_count).ok(), Some(count));
        });
    }
    while let Some(upload) = uploads.join_next().await {
        upload.expect("an upload");
    }
}

/// Publishes at a fixed pace and measures how late live subscribers get it; returns the 99th percentile.
async fn latency(server: &TestServer) -> Duration {
    let epoch = Instant::now();
    let mut readers = JoinSet::new();
    for _ in 0..LIVE {
        let mut stream = subscribe(server, None).await;
        readers.spawn(async move {
            let mut latencies = Histogram::<u64>::new(3).expect("a histogram");
            while latencies.len() < BURST * BURSTS {
                let message = next(&mut stream).await;
                let sent: u64 = message.content.parse().expect("a time");
                let now = u64::try_from(epoch.elapsed().as_micros()).expect("a short test");
                latencies
                    .record(now.saturating_sub(sent))
                    .expect("a latency");
            }
            latencies
        });
    }
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let bursts = stream::unfold((ticks, 0), move |(mut ticks, burst)| async move {
        ticks.tick().await;
        let now = epoch.elapsed().as_micros().to_string();
        let burst_of = (0..BURST).map(move |_| message(ROOM, "paced", &now));
        (burst < BURSTS).then(|| (stream::iter(burst_of), (ticks, burst + 1)))
    });
    let mut chat = server.chat().await;
    let published = chat.upload_messages(bursts.flatten()).await;
    let published = published.expect("an upload").into_inner();
    assert_eq!(
        u64::try_from(published.message_count).ok(),
        Some(BURST * BURSTS)
    );
    let mut all = Histogram::<u64>::new(3).expect("a histogram");
    while let Some(reader) = soon("the live subscribers", readers.join_next()).await {
        all.add(reader.expect("a live subscriber"))
            .expect("histograms of one kind");
    }
    Duration::from_micros(all.value_at_quantile(0.99))
}

/// Reads the records of [`upload`]s of `name` on from where the stream stands, and checks that none is missing, repeated or
/// out of order.
async fn read_uploads(stream: &mut Streaming<Message>, name: &str, records: u64) {
    let mut expected = vec![0; usize::try_from(UPLOADS).unwrap()];
    let (mut last, mut count) = (0, 0);
    while count < records {
        let message = next(stream).await;
        assert!(
            last < message.sequence,
            "{} came after {last}",
            message.sequence
        );
        last = message.sequence;
        let Some(writer) = message
            .user
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'))
        else {
            continue;
        };
        let writer: usize = writer.parse().expect("a writer");
        let number: u64 = message.content[..8].parse().expect("a number");
        assert_eq!(number, expected[writer], "of writer {writer}, at {last}");
        expected[writer] += 1;
        count += 1;
    }
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_costs_nothing_and_loses_nothing() {
    let started = Instant::now();
    let server = TestServer::start().await;
    let cold = server.resident_bytes();
    upload(&server, "warm", WARM_UP).await;
    let mut warm = subscribe(&server, Some(0)).await;
    read_uploads(&mut warm, "warm", WARM_UP).await;
    drop(warm);
    latency(&server).await;
    let without = latency(&server).await;
    let baseline = server.resident_bytes();

    let peak = Peak::of(&server);
    let mut stalled = subscribe(&server, None).await;
    // More than the windows hold, so that it really stands still.
    upload(&server, "first", RECORDS / 10).await;
    let with = latency(&server).await;
    let at = Instant::now();
    upload(&server, "bulk", RECORDS - RECORDS / 10).await;
    let rate = (RECORDS - RECORDS / 10) as f64 / at.elapsed().as_secs_f64();
    let published = peak.bytes();
    println!(
        "slow reader: {rate:.0} records/s published; memory {} MiB cold, {} MiB warm, at most {} MiB while it stood still",
        mib(cold),
        mib(baseline),
        mib(published),
    );

    let at = Instant::now();
    read_uploads(&mut stalled, "first", RECORDS / 10).await;
    read_uploads(&mut stalled, "bulk", RECORDS - RECORDS / 10).await;
    let rate = RECORDS as f64 / at.elapsed().as_secs_f64();
    // Back at the tail, it is live again.
    let mut chat = server.chat().await;
    let sent = chat
        .send_message(send(ROOM, "ann", "live"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stalled).await.sequence, sent.sequence);
    drop(stalled);
    eventually("the subscription to be gone", || async {
        let left = server.metric("weir_subscribers{source=\"log\"}").await;
        (left == 0.0).then_some(())
    })
    .await;

    let growth = peak.bytes().saturating_sub(baseline);
    let ratio = with.max(ALIKE).as_secs_f64() / without.max(ALIKE).as_secs_f64();
    println!(
        "slow reader: caught up at {rate:.0} records/s; memory grew by {} MiB at most; live p99 {without:?} without it, {with:?} with it, ratio {:.2}; {:.1} s",
        mib(growth),
        with.as_secs_f64() / without.as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    assert!(
        growth < GROWTH_BYTES,
        "a reader that stands still costs {} MiB",
        mib(growth)
    );
    assert!(
        ratio <= RATIO,
        "a reader that stands still slows the others {ratio:.1} times"
    );
}
