//! A process that may have few descriptors: the log keeps its own, and what is too much is refused.

use std::{fs, process::Stdio};

use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinSet};
use tonic::{Code, Status};
use weir::proto::streaming::v1::DownloadFileRequest;

use crate::{
    file_support::{Clients, MIB, content, fetch, store},
    support::{
        Settings, TestServer, eventually, follow, next,
        raw::{Raw, data},
        send,
        server::http_get,
        soon,
    },
};

const REFUSED: &str = "weir_connections_refused_total{reason=\"descriptors\"}";
const DOWNLOAD: &str = "/streaming.v1.StreamingService/DownloadFile";

/// Descriptors that the server has open.
fn open(server: &TestServer) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid()));
    open.unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_connections_is_refused_and_the_log_goes_on() {
    const LIMIT: usize = 200;
    const CROWD: usize = 400;
    const MESSAGES: usize = 200;
    let settings = Settings::default()
        .descriptors(LIMIT, LIMIT)
        // Those that got in stay, though they say nothing.
        .set("server.preface_timeout", "10m");
    let server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    // The log writes several files of records meanwhile, whichever engine it is.
    let text = "x".repeat(100_000);
    let publisher = tokio::spawn(async move {
        let mut sent = Vec::new();
        for _ in 0..MESSAGES {
            let answer = chat.send_message(send("general", "ann", &text)).await;
            sent.push(answer.expect("an acknowledgement").into_inner().sequence);
        }
        sent
    });
    let address = server.grpc();
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        crowd.spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            // Resolves when the server closes it.
            let _ = socket.read(&mut [0]).await;
        });
    }
    let (held, refused) = eventually("the crowd", || async {
        let held = server.metric("weir_connections_active").await;
        let refused = server.metric(REFUSED).await;
        (held + refused >= CROWD as f64).then_some((held, refused))
    })
    .await;
    assert!(held < 64.0, "{held} held");
    assert!(
        server
            .admin_get("/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(open(&server) < LIMIT - 40, "{} open", open(&server));

    let sent = soon("the publisher", publisher).await.unwrap();
    assert_eq!(sent.len(), MESSAGES);
    assert!(
        server
            .admin_get("/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    drop(crowd);
    let mut chat = eventually("room for a client", || async {
        let active = server.metric("weir_connections_active").await;
        (active < 5.0).then_some(server.chat().await)
    })
    .await;
    chat.send_message(send("general", "bob", "later"))
        .await
        .unwrap();
    let server = server.restart().await;
    let stream = server
        .chat()
        .await
        .subscribe_messages(follow("general", Some(0)))
        .await;
    let mut stream = stream.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    for sequence in sent {
        assert_eq!(next(&mut stream).await.sequence, sequence);
    }
    assert_eq!(next(&mut stream).await.content, "later");
    println!("{held} connections held, {refused} refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_beyond_the_share_of_files_are_asked_to_come_again() {
    const LIMIT: usize = 200;
    const DOWNLOADS: usize = 40;
    let server = TestServer::with(Settings::default().descriptors(LIMIT, LIMIT)).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(MIB);
    let file_id = store(&mut clients, "large", &bytes).await.file_id;
    let request = DownloadFileRequest {
        file_id: file_id.clone(),
        ..DownloadFileRequest::default()
    };
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1000);
    let raw = Raw::with(server.grpc(), &narrow).await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..DOWNLOADS {
        let answer = raw.open(DOWNLOAD, &[], &request).await;
        if let Some(status) = Status::from_header_map(answer.headers()) {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(status.message().starts_with("too many files"), "{status:?}");
            refused += 1;
        } else {
            let mut body = answer.into_body();
            data(&mut body).await.expect("a beginning");
            held.push(body);
        }
    }
    assert!(
        held.len() >= 10 && refused >= 10,
        "{} and {refused}",
        held.len()
    );
    let again = format!("/files/{file_id}");
    let busy = http_get(server.http(), &again).await;
    assert!(
        busy.starts_with("HTTP/1.1 503") && busy.contains("retry-after: 1"),
        "{busy}"
    );
    let sent = server
        .chat()
        .await
        .send_message(send("general", "ann", "hi"))
        .await;
    sent.expect("messages need none of them");
    assert!(open(&server) < LIMIT - 40, "{} open", open(&server));

    drop(held);
    eventually("a place for a download", || async {
        let answer = http_get(server.http(), &again).await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    let (_, received) = fetch(&mut clients.service, &file_id, 0, 0).await;
    assert!(received == bytes);
}

#[tokio::test]
async fn the_soft_limit_is_raised_and_what_does_not_fit_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let settings = Settings::default()
        .descriptors(64, 4096)
        .set("drain.timeout", "5s")
        .set("telemetry.log_level", "debug");
    let stderr = Stdio::from(fs::File::create(&log).unwrap());
    let mut server = TestServer::starting(dir, settings, stderr).await;
    server.ready().await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(files, ["4096", "4096"]);
    server.terminate();
    assert_eq!(server.exit_code().await, Some(0));
    let lines = fs::read_to_string(&log).unwrap();
    let told: Vec<_> = lines
        .lines()
        .filter(|line| line.contains("descriptors"))
        .collect();
    let [raised, short] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(
        raised.contains("DEBUG") && raised.contains("from=64 to=4096"),
        "{raised}"
    );
    for part in ["WARN", "connections=2960", "needed=11168", "LimitNOFILE="] {
        assert!(short.contains(part), "no {part} in {short}");
    }
}

#[tokio::test]
async fn nothing_is_said_when_the_connections_fit() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let settings = Settings::default()
        .descriptors(1024, 1024)
        .set("server.max_connections", 500);
    let stderr = Stdio::from(fs::File::create(&log).unwrap());
    let server = TestServer::starting(dir, settings, stderr).await;
    server.ready().await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
}
