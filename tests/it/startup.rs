//! Starting and stopping the binary: what it says, how it exits, and that nothing is damaged.

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::Command,
};
use weir::cli::exit;

use crate::{
    file_support::{Clients, store},
    support::{
        Settings, TestServer, eventually, follow, next, send,
        server::{command, http_get},
        soon,
    },
};

/// How a process that must not start ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: Vec<String>,
}

async fn ended(command: &mut Command) -> Ended {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    let output = soon("the process to end", output)
        .await
        .expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    Ended {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr).lines().map(str::to_owned).collect(),
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test]
async fn a_taken_port_is_named_and_nothing_is_touched() {
    for key in ["server.grpc", "server.http", "server.admin"] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::default().set(key, address);
        let end = ended(&mut command(dir.path(), &settings)).await;
        assert_eq!(end.code, Some(exit::FAILED.into()), "{:?}", end.stderr);
        let [line] = &end.stderr[..] else {
            panic!("not one line: {:?}", end.stderr);
        };
        assert!(
            line.starts_with(&format!("weir: cannot listen on {address} ({key}): ")),
            "{line}"
        );
        assert_eq!(end.stdout, "", "it does not claim to serve");
        assert!(
            is_empty(dir.path()),
            "the log was touched before the ports were had"
        );
    }
}

#[tokio::test]
async fn an_unusable_data_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let data = file.join("data");
    let settings = Settings::default().set("log.dir", data.display());
    let end = ended(&mut command(dir.path(), &settings)).await;
    assert_eq!(end.code, Some(exit::FAILED.into()), "{:?}", end.stderr);
    let [line] = &end.stderr[..] else {
        panic!("not one line: {:?}", end.stderr);
    };
    let expected = format!("weir: cannot use the data directory {}: ", data.display());
    assert!(line.starts_with(&expected), "{line}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[tokio::test]
async fn directories_for_data_are_made_for_their_owner_alone_and_others_left_as_they_are() {
    let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), Permissions::from_mode(0o755)).unwrap();
    let there = outer.path().join("there");
    fs::create_dir(&there).unwrap();
    fs::set_permissions(&there, Permissions::from_mode(0o750)).unwrap();
    let made = outer.path().join("new/data");
    for (data, expected) in [(&made, 0o700), (&there, 0o750)] {
        let settings = Settings::default().set("log.dir", data.display());
        let server = TestServer::with(settings).await;
        store(&mut Clients::of(&server).await, "notes.txt", b"mine").await;
        assert_eq!(mode(data), expected, "{}", data.display());
        assert_eq!(mode(&data.join("files")), 0o700);
        assert_eq!(mode(&data.join("files/blobs")), 0o700);
    }
    assert_eq!(mode(&outer.path().join("new")), 0o700);
    assert_eq!(mode(outer.path()), 0o755);
}

#[tokio::test]
async fn a_successor_may_wait_for_the_data() {
    let mut server = TestServer::start().await;
    let mut chat = server.chat().await;
    let sent = chat.send_message(send("general", "ann", "kept")).await;
    let sequence = sent.unwrap().into_inner().sequence;
    let settings = Settings::default()
        .set("log.dir", server.dir().join("data").display())
        .set("log.lock_timeout", "1m");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut successor = TestServer::starting(elsewhere, settings, Stdio::inherit()).await;
    let waiting = successor.admin_get("/readyz").await;
    assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
    server.terminate();
    assert_eq!(server.exit_code().await, Some(0));
    successor.ready().await;
    let mut chat = successor.chat().await;
    let stream = chat.subscribe_messages(follow("general", Some(0))).await;
    let mut stream = stream.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    assert_eq!(next(&mut stream).await.sequence, sequence);
    successor.terminate();
    assert_eq!(successor.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_and_the_first_goes_on() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let first = chat
        .send_message(send("general", "ann", "before"))
        .await
        .unwrap();

    let end = ended(&mut command(server.dir(), &Settings::default())).await;
    assert_eq!(end.code, Some(exit::FAILED.into()), "{:?}", end.stderr);
    let [line] = &end.stderr[..] else {
        panic!("not one line: {:?}", end.stderr);
    };
    assert!(line.contains("is in use by another process"), "{line}");
    assert!(line.contains(server.dir().to_str().unwrap()), "{line}");

    let second = chat
        .send_message(send("general", "ann", "after"))
        .await
        .unwrap();
    let sequences = [first.into_inner().sequence, second.into_inner().sequence];
    let server = server.restart().await;
    let mut chat = server.chat().await;
    let stream = chat.subscribe_messages(follow("general", Some(0))).await;
    let mut stream = stream.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    for (sequence, content) in sequences.into_iter().zip(["before", "after"]) {
        let message = next(&mut stream).await;
        assert_eq!(
            (message.sequence, message.content.as_str()),
            (sequence, content)
        );
    }
}

#[tokio::test]
async fn every_wrong_setting_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("weir.toml"),
        "[log]\nengine = \"embeded\"\n",
    )
    .unwrap();
    let settings = Settings::default()
        .set("log.queue", "many")
        .set("server.max_connections", 0);
    let mut command = command(dir.path(), &settings);
    let end = ended(command.args(["--config", "weir.toml", "--set", "hub.tial=1MiB"])).await;
    assert_eq!(end.code, Some(exit::USAGE.into()), "{:?}", end.stderr);
    let (title, problems) = end.stderr.split_first().expect("a title");
    assert_eq!(title, "weir: the settings are wrong:");
    assert_eq!(problems.len(), 4, "{problems:#?}");
    let parts = [
        ["weir.toml", "log.engine", "embedded, jetstream, memory"],
        ["WEIR__LOG__QUEUE", "many", "a size"],
        [
            "WEIR__SERVER__MAX_CONNECTIONS",
            "server.max_connections = ",
            "1 to 10000000",
        ],
        ["--set", "hub.tial", "did you mean hub.tail?"],
    ];
    for part in parts {
        let is_told = |line: &&String| part.iter().all(|part| line.contains(part));
        assert_eq!(
            problems.iter().filter(is_told).count(),
            1,
            "{part:?} in {problems:#?}"
        );
    }
    assert_eq!(end.stdout, "");
    assert!(!dir.path().join("data").exists());
}

#[tokio::test]
async fn the_start_up_line_tells_version_addresses_and_settings() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("weir.toml"), "[log]\nqueue = \"32MiB\"\n").unwrap();
    let mut child = command(dir.path(), &Settings::default())
        .args(["--config", "weir.toml", "--set", "drain.timeout=1s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = soon("the start-up line", lines.next_line())
        .await
        .unwrap()
        .unwrap();
    let version = concat!(
        "weir ",
        env!("CARGO_PKG_VERSION"),
        " serves gRPC 127.0.0.1:"
    );
    assert!(line.starts_with(version), "{line}");
    for part in [
        "; HTTP 127.0.0.1:",
        "; admin 127.0.0.1:",
        "; log embedded",
        "settings: defaults, weir.toml, ",
        " variables, 1 flag",
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(
        !line.contains(":0,") && !line.contains(":0;"),
        "the real ports: {line}"
    );
    child.kill().await.unwrap();
    assert_eq!(lines.next_line().await.unwrap(), None, "one line only");
}

#[tokio::test]
async fn sigterm_ends_an_idle_server_at_once() {
    let settings = Settings::default().set("drain.timeout", "1h");
    let mut server = TestServer::with(settings).await;
    server.terminate();
    assert_eq!(server.exit_code().await, Some(exit::OK.into()));
}

#[tokio::test]
async fn sigterm_does_not_wait_for_a_connection_that_never_speaks() {
    let settings = Settings::default()
        .set("server.preface_timeout", "10m")
        .set("drain.timeout", "500ms");
    let mut server = TestServer::with(settings).await;
    let mut silent = Vec::new();
    for address in [server.grpc(), server.http(), server.admin()] {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    eventually("the connections to be accepted", || async {
        (server.metric("weir_connections_active").await >= 3.0).then_some(())
    })
    .await;
    server.terminate();
    assert_eq!(server.exit_code().await, Some(exit::OK.into()));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let settings = Settings::default()
        .set("drain.delay", "1h")
        .set("drain.timeout", "2h");
    let mut server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let sent = chat
        .send_message(send("general", "ann", "kept"))
        .await
        .unwrap();
    server.terminate();
    let admin = server.admin();
    eventually("the drain to begin", || async {
        let answer = http_get(admin, "/readyz").await;
        answer.contains("draining").then_some(())
    })
    .await;
    server.terminate();
    assert_eq!(server.exit_code().await, Some(exit::INTERRUPTED.into()));

    let server = server.restart().await;
    let mut chat = server.chat().await;
    let stream = chat.subscribe_messages(follow("general", Some(0))).await;
    let mut stream = stream.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    assert_eq!(next(&mut stream).await.sequence, sent.into_inner().sequence);
}
