//! `weir upload`, `weir download` and `weir files`: through a restart of the server and of themselves.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use tokio::process::{Child, Command};

use crate::{
    file_support::content,
    support::{OWN_ADDRESS, Settings, TestServer, eventually, server::binary, soon},
};

/// Long enough to be broken in the middle.
const LARGE: usize = 192 * 1024 * 1024;

fn weir(dir: &Path, server: &TestServer, args: &[&str]) -> Child {
    Command::new(binary())
        .args(args)
        .args(["--addr", &server.url()])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn end(child: Child) -> (Option<i32>, String, String) {
    let output = soon("the command to end", child.wait_with_output()).await;
    let Output {
        status,
        stdout,
        stderr,
    } = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// What the command prints when it does its work.
async fn done(dir: &Path, server: &TestServer, args: &[&str]) -> String {
    let (code, out, err) = end(weir(dir, server, args)).await;
    assert_eq!(code, Some(0), "{args:?}: {err}");
    out
}

/// Uploads and returns the id.
async fn upload(dir: &Path, server: &TestServer, args: &[&str]) -> String {
    let out = done(dir, server, &[&["upload"], args].concat()).await;
    let (id, url) = out.trim_end().split_once('\t').unwrap();
    assert!(url.ends_with(&format!("/files/{id}")), "{out}");
    id.to_owned()
}

/// Waits until so many MiB went in a direction.
async fn moved(server: &TestServer, direction: &str, mib: f64) {
    let series = format!("weir_file_bytes_total{{direction=\"{direction}\"}}");
    eventually("bytes to move", || async {
        (server.metric(&series).await > mib * 1024.0 * 1024.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn files_go_there_and_back() {
    let server = TestServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(300_000);
    std::fs::write(dir.path().join("report.pdf"), &bytes).unwrap();
    let id = upload(dir.path(), &server, &["report.pdf"]).await;
    // The same file again is the same file.
    assert_eq!(upload(dir.path(), &server, &["report.pdf"]).await, id);
    let named = ["report.pdf", "--name", "../ünï.bin", "--type", "a/b"];
    let other = upload(dir.path(), &server, &named).await;
    assert_ne!(other, id);

    let listed = done(dir.path(), &server, &["files", "list"]).await;
    let lines: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert_eq!(lines[0][0], other);
    assert_eq!(lines[0][2..], ["300000", "a/b", "../ünï.bin"]);
    assert_eq!(lines[1][2..], ["300000", "application/pdf", "report.pdf"]);

    let (code, _, err) = end(weir(dir.path(), &server, &["download", &id])).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("report.pdf exists"), "{err}");
    let out = done(dir.path(), &server, &["download", &id, "--force"]).await;
    assert_eq!(out, "report.pdf\n");
    let out = done(dir.path(), &server, &["download", &other]).await;
    assert_eq!(out, "ünï.bin\n");
    done(dir.path(), &server, &["download", &id, "-o", "copy"]).await;
    for name in ["report.pdf", "ünï.bin", "copy"] {
        assert!(std::fs::read(dir.path().join(name)).unwrap() == bytes);
    }
    done(dir.path(), &server, &["files", "delete", &id]).await;
    let (code, _, err) = end(weir(dir.path(), &server, &["download", &id, "-o", "gone"])).await;
    assert_eq!(code, Some(4));
    assert!(err.contains(&format!("File {id} not found")), "{err}");
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 3, "no part of what failed stays");
}

#[tokio::test]
async fn transfers_outlive_the_server() {
    let settings = Settings::default().set("server.grpc", OWN_ADDRESS);
    let server = TestServer::with(settings).await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(LARGE);
    std::fs::write(dir.path().join("large"), &bytes).unwrap();

    let child = weir(dir.path(), &server, &["upload", "large"]);
    moved(&server, "up", 64.0).await;
    let server = server.restart_in_place().await;
    let (code, out, err) = end(child).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("next attempt in"), "it was broken: {err}");
    let id = out.split('\t').next().unwrap().to_owned();
    let went_on = server.metric("weir_file_bytes_total{direction=\"up\"}");
    assert!(went_on.await < LARGE as f64, "it began anew");

    let child = weir(dir.path(), &server, &["download", &id, "-o", "copy"]);
    moved(&server, "down", 32.0).await;
    let server = server.restart_in_place().await;
    let (code, _, err) = end(child).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("next attempt in"), "it was broken: {err}");
    let went_on = server.metric("weir_file_bytes_total{direction=\"down\"}");
    assert!(went_on.await < LARGE as f64, "it began anew");
    assert!(std::fs::read(dir.path().join("copy")).unwrap() == bytes);
}

#[tokio::test]
async fn transfers_go_on_with_the_next_command() {
    let server = TestServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(LARGE);
    std::fs::write(dir.path().join("large"), &bytes).unwrap();
    let mut child = weir(dir.path(), &server, &["upload", "large"]);
    moved(&server, "up", 64.0).await;
    child.kill().await.unwrap();
    let id = upload(dir.path(), &server, &["large"]).await;
    let sent = server
        .metric("weir_file_bytes_total{direction=\"up\"}")
        .await;
    assert!(sent < 1.5 * LARGE as f64, "it began anew");

    let mut child = weir(dir.path(), &server, &["download", &id, "-o", "copy"]);
    let part = dir.path().join(format!("{id}.part"));
    eventually("a part of the file", || async {
        let there = std::fs::metadata(&part).ok()?.len();
        (there > LARGE as u64 / 8).then_some(())
    })
    .await;
    child.kill().await.unwrap();
    assert!(!dir.path().join("copy").exists());
    done(dir.path(), &server, &["download", &id, "-o", "copy"]).await;
    assert!(std::fs::read(dir.path().join("copy")).unwrap() == bytes);
    assert!(!part.exists());

    // A part that is of something else does not spoil the file.
    std::fs::write(&part, b"something else").unwrap();
    done(
        dir.path(),
        &server,
        &["download", &id, "-o", "copy", "--force"],
    )
    .await;
    assert!(std::fs::read(dir.path().join("copy")).unwrap() == bytes);
}
