//! `weir bench catchup`: how fast readers read a history to its end, and what each record costs the server.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use tokio::{sync::Barrier, task::JoinSet, time::timeout};

use super::{
    args::CatchupArgs,
    frame::FrameCounter,
    grpc::{self, Target},
    message::{self, Template},
    process::Process,
    publisher::Upload,
    report::{self, Table},
};
use crate::proto::chat::SubscribeRequest;

/// Messages written together while the history is made.
const BATCH: u64 = 1000;
/// How long all readers together may take.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(20);

/// What the command found.
#[derive(Debug, Serialize)]
struct Figures {
    seconds: f64,
    records_read: u64,
    records_per_sec: f64,
    records_per_sec_and_reader: f64,
    /// From a reader's request to its first record; the slowest of all readers.
    first_record_ms: f64,
    server_cpu_us_per_record: Option<f64>,
    /// The most that the server's memory grew by while it was read.
    server_resident_growth_bytes: Option<u64>,
}

/// Runs the command.
pub(super) async fn run(args: &CatchupArgs, json: bool) -> Result<()> {
    let process = args.server.process()?;
    let room = message::fresh_room();
    report::progress("writing the history");
    fill(args, &room).await?;
    if let Some(dir) = &args.cold {
        forget(dir).with_context(|| format!("cannot drop {} from the cache", dir.display()))?;
    }
    report::progress("reading it");
    let before = process.as_ref().map(Process::cpu_time).transpose()?;
    let resident = process.as_ref().map(Process::resident_bytes).transpose()?;
    let start = Instant::now();
    let reading = read(args, &room);
    let (slowest_first, most) = match &process {
        Some(process) => watched(reading, process).await?,
        None => (reading.await?, 0),
    };
    let seconds = start.elapsed().as_secs_f64();
    let after = process.as_ref().map(Process::cpu_time).transpose()?;
    let cpu = before.zip(after).map(|(before, after)| after.since(before));
    let records = args.count * args.readers as u64;
    let figures = Figures {
        seconds,
        records_read: records,
        records_per_sec: records as f64 / seconds,
        records_per_sec_and_reader: args.count as f64 / seconds,
        first_record_ms: slowest_first.as_secs_f64() * 1e3,
        server_cpu_us_per_record: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / records as f64),
        server_resident_growth_bytes: resident.map(|before| most.saturating_sub(before)),
    };
    if json {
        return report::print_json("catchup", args, &figures);
    }
    report::print(&table(&figures))
}

fn table(figures: &Figures) -> String {
    let mut table = Table::new(["figure", "value"]);
    table.row(["records/s", &report::count(figures.records_per_sec)]);
    let each = report::count(figures.records_per_sec_and_reader);
    table.row(["records/s a reader", &each]);
    table.row(["records", &report::count(figures.records_read as f64)]);
    table.row(["seconds", &format!("{:.2}", figures.seconds)]);
    let first = format!("{:.1}", figures.first_record_ms);
    table.row(["ms to the first record", &first]);
    if let Some(cpu) = figures.server_cpu_us_per_record {
        table.row(["server CPU µs/record", &format!("{cpu:.3}")]);
    }
    if let Some(bytes) = figures.server_resident_growth_bytes {
        let mebibytes = format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        table.row(["server MiB more at most", &mebibytes]);
    }
    table.render()
}

/// Uploads the history.
async fn fill(args: &CatchupArgs, room: &str) -> Result<()> {
    let templates = vec![Template::message(room, args.size)];
    let mut upload = Upload::open(&args.server.addr, templates).await?;
    while upload.sent() < args.count {
        upload.send(BATCH.min(args.count - upload.sent())).await?;
    }
    upload.finish().await
}

/// Drops the log's files from the page cache, so that readers read the disk.
fn forget(dir: &Path) -> Result<()> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir.join("log"))? {
        let path = entry?.path();
        let Ok(file) = std::fs::File::open(&path) else {
            // Sealed or removed meanwhile.
            continue;
        };
        // Pages that are not on the disk yet stay.
        file.sync_data()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        files += 1;
    }
    ensure!(files > 0, "there is no log");
    Ok(())
}

/// Reads the history by all readers at once; the longest that one waited for its first record.
async fn read(args: &CatchupArgs, room: &str) -> Result<Duration> {
    let begin = Arc::new(Barrier::new(args.readers));
    let mut readers = JoinSet::new();
    for _ in 0..args.readers {
        let target = args.server.addr.clone();
        let room = room.to_owned();
        let count = args.count;
        let begin = begin.clone();
        readers.spawn(async move {
            let sender = target.connect_driven().await?;
            begin.wait().await;
            read_one(&target, sender, &room, count).await
        });
    }
    let all = async {
        let mut slowest = Duration::ZERO;
        while let Some(first) = readers.join_next().await {
            slowest = slowest.max(first.context("a reader panicked")??);
        }
        Ok(slowest)
    };
    timeout(PATIENCE, all)
        .await
        .context("the history did not come in time")?
}

/// Reads so many messages from the room's beginning; how long the first took.
async fn read_one(
    target: &Target,
    mut sender: h2::client::SendRequest<bytes::Bytes>,
    room: &str,
    count: u64,
) -> Result<Duration> {
    let request = SubscribeRequest {
        room: room.to_owned(),
        user: "bench".to_owned(),
        after_sequence: Some(0),
    };
    let start = Instant::now();
    let head = target.request("SubscribeMessages")?;
    let frame = message::grpc_frame(&request).into();
    let response = grpc::call(&mut sender, head, frame).await?;
    let mut stream = grpc::accepted(response, grpc::PATIENCE).await?;
    let mut counter = FrameCounter::new(u64::MAX, 1);
    // The welcome comes first.
    let mut left = count + 1;
    let mut first = None;
    while left > 0 {
        let next = timeout(grpc::PATIENCE, stream.data()).await;
        let Some(chunk) = next.context("the history stopped coming")? else {
            return Err(grpc::ended(stream.trailers().await?));
        };
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        let messages = counter.feed(&chunk, |_| Ok(()))?;
        ensure!(messages <= left, "more was read than was written");
        left -= messages;
        if left < count {
            first.get_or_insert_with(|| start.elapsed());
        }
    }
    Ok(first.unwrap_or_default())
}

/// Waits for `reading` and watches how much memory the server has at most meanwhile.
async fn watched<T>(
    reading: impl Future<Output = Result<T>>,
    process: &Process,
) -> Result<(T, u64)> {
    tokio::pin!(reading);
    let mut looks = tokio::time::interval(LOOK);
    let mut most = process.resident_bytes()?;
    loop {
        tokio::select! {
            read = &mut reading => return Ok((read?, most.max(process.resident_bytes()?))),
            _ = looks.tick() => most = most.max(process.resident_bytes()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_was_measured() {
        let figures = Figures {
            seconds: 0.5,
            records_read: 2000,
            records_per_sec: 4000.0,
            records_per_sec_and_reader: 2000.0,
            first_record_ms: 1.25,
            server_cpu_us_per_record: Some(0.5),
            server_resident_growth_bytes: Some(3 << 20),
        };
        let text = table(&figures);
        for part in ["4 000", "0.500", "3.0", "1.2"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_directory_without_a_log_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(forget(dir.path()).is_err());
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert!(forget(dir.path()).is_err());
        std::fs::write(dir.path().join("log/identity"), "x").unwrap();
        forget(dir.path()).unwrap();
    }
}
