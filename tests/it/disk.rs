//! A disk that really is full: a small tmpfs in a mount namespace of its own.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;
use weir::proto::chat::SendMessageRequest;

use crate::support::{Settings, TestServer, eventually, follow, next, send, soon};

const ROOM: &str = "diary";

/// A small disk, as long as the process lives that holds its namespace.
struct Disk {
    keeper: Child,
    dir: TempDir,
}

impl Disk {
    async fn new(mebibytes: u64) -> Self {
        let mut refusals = Vec::new();
        // Root has it for itself; others need a user namespace.
        for options in [&["--mount"][..], &["--mount", "--map-root-user"]] {
            match Self::mount(options, mebibytes).await {
                Ok(disk) => return disk,
                Err(refusal) => refusals.push(refusal),
            }
        }
        panic!(
            "these tests need a mount namespace with a tmpfs, which `unshare` does not get here: {refusals:?}"
        );
    }

    async fn mount(options: &[&str], mebibytes: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a directory");
        // Lives until its input ends, so also not longer than this process.
        let script = r#"mount -t tmpfs -o size="$1"m weir-test "$0" && echo mounted && exec cat"#;
        let mut keeper = Command::new("unshare")
            .args(options)
            .args(["sh", "-c", script])
            .arg(dir.path())
            .arg(mebibytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut lines = BufReader::new(keeper.stdout.take().expect("piped")).lines();
        let line = soon("the disk to be mounted", lines.next_line()).await;
        if line.expect("text").as_deref() == Some("mounted") {
            return Ok(Self { keeper, dir });
        }
        let output = keeper.wait_with_output().await.expect("an end");
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Its root, seen from outside the namespace.
    fn root(&self) -> PathBuf {
        let pid = self.keeper.id().expect("the keeper lives");
        let path = self.dir.path().strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{pid}/root")).join(path)
    }

    fn settings(&self, min_free: &str) -> Settings {
        Settings::default()
            .set("log.dir", self.root().join("data").display())
            .set("log.min_free", min_free)
            // Keeps the engine busy also while it is full.
            .set("canary.interval", "20ms")
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.root()).expect("the disk's state");
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all room but `left_bytes`, at once.
    fn fill(&self, left_bytes: u64) {
        let file = File::create(self.root().join("filler")).expect("the filler");
        let wanted = self.free_bytes().saturating_sub(left_bytes);
        let flags = rustix::fs::FallocateFlags::empty();
        // Others may take room at the same time: then there is as little left as wanted.
        let _ = rustix::fs::fallocate(&file, flags, 0, wanted.max(1));
    }

    fn empty(&self) {
        fs::remove_file(self.root().join("filler")).expect("the filler is removed");
    }
}

async fn health(server: &TestServer) -> i32 {
    let mut health = HealthClient::new(server.channel().await);
    let answer = health.check(HealthCheckRequest::default()).await;
    answer.expect("health answers").into_inner().status
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

/// Everything in the room, by content.
async fn contents(server: &TestServer, last: &str) -> Vec<String> {
    let mut chat = server.chat().await;
    let stream = chat.subscribe_messages(follow(ROOM, Some(0))).await;
    let mut stream = stream.expect("a full disk can be read").into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    let (mut contents, mut sequence) = (Vec::new(), 0);
    while contents.last().is_none_or(|content| content != last) {
        let message = next(&mut stream).await;
        assert!(sequence < message.sequence);
        sequence = message.sequence;
        contents.push(message.content);
    }
    contents
}

fn is_full(status: &Status) -> bool {
    let info = status.get_details_error_info();
    status.code() == Code::ResourceExhausted
        && info.is_some_and(|info| info.reason == "STORAGE_FULL")
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    let disk = Disk::new(96).await;
    let server = TestServer::with(disk.settings("8MiB")).await;
    let mut chat = server.chat().await;
    let stream = chat.subscribe_messages(follow(ROOM, None)).await.unwrap();
    let mut live = stream.into_inner();
    assert_eq!(next(&mut live).await.id, "system");
    let mut acknowledged = Vec::new();
    for number in 0..50 {
        let content = format!("before {number}");
        chat.send_message(send(ROOM, "ann", &content))
            .await
            .unwrap();
        assert_eq!(next(&mut live).await.content, content);
        acknowledged.push(content);
    }

    disk.fill(4 << 20);
    let refused = eventually("publishing to be refused", || {
        let mut chat = chat.clone();
        async move {
            chat.send_message(send("probe", "ann", "refused"))
                .await
                .err()
        }
    })
    .await;
    assert!(is_full(&refused), "{refused:?}");
    let quota = refused.get_details_quota_failure().expect("a QuotaFailure");
    assert_eq!(quota.violations[0].subject, "disk");
    let retry = refused.get_details_retry_info().expect("a RetryInfo");
    assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
    let upload = futures::stream::iter([crate::support::message(ROOM, "ann", "refused")]);
    assert!(is_full(&chat.upload_messages(upload).await.unwrap_err()));

    eventually("readiness to go off", || async {
        let answer = server.admin_get("/readyz").await;
        let is_named = answer.contains("log: the disk is full");
        (answer.starts_with("HTTP/1.1 503") && is_named).then_some(())
    })
    .await;
    eventually("health to say so", || async {
        (health(&server).await == NOT_SERVING).then_some(())
    })
    .await;
    assert!(server.admin_get("/livez").await.starts_with("HTTP/1.1 200"));
    assert_eq!(contents(&server, "before 49").await, acknowledged);
    let mut reader = server.chat().await;
    let stream = reader.subscribe_messages(follow(ROOM, None)).await;
    let mut opened_while_full = stream.expect("live streams open").into_inner();
    assert_eq!(next(&mut opened_while_full).await.id, "system");

    disk.empty();
    eventually("publishing to work again", || {
        let mut chat = chat.clone();
        async move { chat.send_message(send(ROOM, "ann", "after")).await.ok() }
    })
    .await;
    acknowledged.push("after".into());
    assert_eq!(next(&mut live).await.content, "after");
    assert_eq!(next(&mut opened_while_full).await.content, "after");
    server.ready().await;
    assert_eq!(health(&server).await, SERVING);
    assert_eq!(contents(&server, "after").await, acknowledged);

    let server = server.restart().await;
    assert_eq!(contents(&server, "after").await, acknowledged);
}

/// What the writers met.
#[derive(Default)]
struct Met {
    /// Refused, certainly not stored.
    refused: AtomicU64,
    /// Failed in the middle of the write: stored or not.
    cut: AtomicU64,
    stop: AtomicBool,
}

/// Publishes numbered messages, each repeated under its key until it is acknowledged; returns how many were.
async fn write(
    server: &TestServer,
    writer: usize,
    met: Arc<Met>,
) -> impl Future<Output = u64> + use<> {
    let mut chat = server.chat().await;
    async move {
        let mut number = 0;
        // So slow that the writers do not fill the disk by themselves.
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        while !met.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let content = format!("{writer}:{number}:{}", "x".repeat(4 << 10));
            let request = SendMessageRequest {
                idempotency_key: format!("{writer}:{number}"),
                ..send(ROOM, &format!("writer-{writer}"), &content)
            };
            while let Err(status) = chat.send_message(request.clone()).await {
                let count = if is_full(&status) {
                    &met.refused
                } else {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    &met.cut
                };
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            number += 1;
        }
        number
    }
}

/// The number of each writer's messages, after checking that they are in order and there once.
async fn count(server: &TestServer, writers: usize) -> Vec<u64> {
    let mut counts = vec![0; writers];
    for content in contents(server, "end").await {
        let mut parts = content.split(':');
        let (Some(writer), Some(number)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (writer, number): (usize, u64) = (writer.parse().unwrap(), number.parse().unwrap());
        assert_eq!(number, counts[writer], "of writer {writer}");
        counts[writer] += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_runs_into_the_end_of_the_disk_loses_nothing() {
    const WRITERS: usize = 4;
    const ATTEMPTS: usize = 4;
    let disk = Disk::new(384).await;
    let settings = disk.settings("0B").set("log.retention_interval", "200ms");
    let server = TestServer::with(settings).await;
    let met = Arc::new(Met::default());
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let writing = write(&server, writer, Arc::clone(&met)).await;
        writers.spawn(async move { (writer, writing.await) });
    }
    let refused = || met.refused.load(Ordering::Relaxed);
    let cut = || met.cut.load(Ordering::Relaxed);
    // The engine looks for room now and then, and sets it aside in steps: the end comes in different places of its work.
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            disk.empty();
            server.ready().await;
        }
        let before = refused() + cut();
        disk.fill(0);
        eventually("publishing to be refused", || async {
            (refused() + cut() > before).then_some(())
        })
        .await;
    }
    let before = refused();
    eventually("appends to be refused while it is full", || async {
        (refused() > before).then_some(())
    })
    .await;
    let answer = server.admin_get("/readyz").await;
    assert!(answer.contains("log: the disk is full"), "{answer}");

    disk.empty();
    server.ready().await;
    met.stop.store(true, Ordering::Relaxed);
    let mut acknowledged = vec![0; WRITERS];
    while let Some(writer) = soon("the writers to finish", writers.join_next()).await {
        let (writer, count) = writer.expect("a writer");
        acknowledged[writer] = count;
    }
    let mut chat = server.chat().await;
    chat.send_message(send(ROOM, "judge", "end")).await.unwrap();
    assert_eq!(count(&server, WRITERS).await, acknowledged);
    let server = server.restart().await;
    assert_eq!(count(&server, WRITERS).await, acknowledged);
    println!(
        "full disk: {} acknowledged, {} refused, {} cut in the write, {ATTEMPTS} attempts",
        acknowledged.iter().sum::<u64>(),
        refused(),
        cut()
    );
}
