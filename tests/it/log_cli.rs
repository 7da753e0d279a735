//! `weir log inspect` and `weir repair`, and what `weir serve` says of a directory that it cannot use: the real binary.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::process::Command;
use weir::cli::exit;

use crate::support::{
    Settings, TestServer, follow, next, send,
    server::{binary, command},
    soon,
};

const ROOM: &str = "general";

async fn weir(args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(binary());
    command.args(args).arg("--dir").arg(dir).kill_on_drop(true);
    command.output().await.expect("the command runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// A directory in which a server stored messages, stopped.
async fn stored(count: usize) -> (TestServer, PathBuf) {
    let mut server = TestServer::start().await;
    let mut chat = server.chat().await;
    for number in 0..count {
        let content = format!("message {number}");
        chat.send_message(send(ROOM, "ann", &content))
            .await
            .unwrap();
    }
    server.kill().await;
    let dir = server.dir().join("data");
    (server, dir)
}

fn journal(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("log")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let journals = paths.filter(|path| path.extension().is_some_and(|found| found == "journal"));
    journals.min().unwrap()
}

/// Every file below `dir` with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else if path.extension().is_none_or(|found| found != "sock") {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

/// Flips a bit in the middle of the first message's content.
fn damage(dir: &Path) -> PathBuf {
    let path = journal(dir);
    let mut bytes = fs::read(&path).unwrap();
    let needle = b"message 0";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    bytes[at.unwrap()] ^= 1;
    fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test]
async fn a_damaged_log_is_refused_inspected_and_repaired() {
    let (server, dir) = stored(20).await;
    let sound = weir(&["log", "inspect", "--topics"], &dir).await;
    assert_eq!(sound.status.code(), Some(exit::OK.into()));
    assert!(
        stdout(&sound).contains("room/general"),
        "{}",
        stdout(&sound)
    );
    let path = damage(&dir);
    let name = path.file_name().unwrap().to_str().unwrap();

    let before = contents(&dir);
    let refused = serve(server.dir()).await;
    assert!(
        refused.contains(name) && refused.contains("weir repair"),
        "{refused}"
    );
    assert!(
        contents(&dir) == before,
        "a refused start changed something"
    );

    let seen = weir(&["log", "inspect", "--json"], &dir).await;
    assert_eq!(seen.status.code(), Some(exit::FAILED.into()));
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["damage"][0]["file"], name);
    assert!(contents(&dir) == before, "a look changed something");

    let repaired = weir(&["repair"], &dir).await;
    assert_eq!(
        repaired.status.code(),
        Some(exit::OK.into()),
        "{repaired:?}"
    );
    assert!(
        stdout(&repaired).contains("are lost"),
        "{}",
        stdout(&repaired)
    );
    assert!(dir.join("damaged/1").join(name).exists());
    let again = weir(&["repair"], &dir).await;
    assert!(
        stdout(&again).contains("nothing is damaged"),
        "{}",
        stdout(&again)
    );

    let server = server.restart().await;
    let mut chat = server.chat().await;
    let stream = chat
        .subscribe_messages(follow(ROOM, Some(0)))
        .await
        .unwrap();
    let mut stream = stream.into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    for number in 1..20 {
        assert_eq!(next(&mut stream).await.content, format!("message {number}"));
    }
}

/// Runs `weir serve` beside its data, where it does not start; its only line.
async fn serve(dir: &Path) -> String {
    let mut command = command(dir, &Settings::default());
    let output = soon(
        "the process to end",
        command.stderr(Stdio::piped()).output(),
    )
    .await;
    let output = output.expect("the binary starts");
    assert_eq!(
        output.status.code(),
        Some(exit::FAILED.into()),
        "{output:?}"
    );
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[tokio::test]
async fn directories_that_hold_no_log_of_ours_are_refused_in_one_line() {
    let (server, dir) = stored(2).await;
    let strange = dir.join("log/00000000000000000099.segment");
    fs::write(
        &strange,
        "no segment at all, whatever its name says".repeat(3),
    )
    .unwrap();
    let before = contents(&dir);
    let text = serve(server.dir()).await;
    assert!(text.contains("00000000000000000099.segment"), "{text}");
    assert!(contents(&dir) == before);
    fs::remove_file(&strange).unwrap();

    let former = tempfile::tempdir().unwrap();
    let data = former.path().join("data");
    fs::create_dir_all(data.join("db")).unwrap();
    fs::write(data.join("db/keyspace"), "of a database").unwrap();
    fs::write(data.join("lock"), "").unwrap();
    let before = contents(former.path());
    let text = serve(former.path()).await;
    assert!(text.contains("has format 1"), "{text}");
    assert!(contents(former.path()) == before);

    let nothing = tempfile::tempdir().unwrap();
    for command in [&["log", "inspect"][..], &["repair"]] {
        let output = weir(command, nothing.path()).await;
        assert_eq!(output.status.code(), Some(exit::FAILED.into()));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("there is no log in"), "{text}");
        assert_eq!(fs::read_dir(nothing.path()).unwrap().count(), 0);
    }
}
