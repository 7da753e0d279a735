//! `weir backup` and `weir restore`: what comes back, what is refused, and that nobody else is let in.

use std::{
    fs,
    io::{Read as _, Write as _},
    ops::ControlFlow,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, process::Command, task::JoinSet};
use tonic::{Code, metadata::AsciiMetadataValue};
use weir::{
    backup::{self, Error},
    client::Client,
    log::{
        Engine, Sequence,
        embedded::{Embedded, open_export},
        export::Item,
    },
    telemetry::Metrics,
};

use crate::{
    cli::Run,
    file_support::{self as files, Clients, content},
    log_support::{ALL, append_all, read_all, room, settings},
    support::{
        Settings, TestServer, end, errors::info, eventually, follow, next, send, server::binary,
        soon,
    },
};

/// Who marks the end of a room for a reader.
const JUDGE: &str = "judge";

/// Backs the data directory up into `file`; returns the archive's tail.
async fn back_up(data: &Path, file: &Path) -> u64 {
    let (data, output) = (data.to_str().unwrap(), file.to_str().unwrap());
    let ended = Run::start(&["backup", "--dir", data, "--output", output]);
    let ended = ended.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let line = ended.err.last().unwrap();
    let (_, tail) = line.rsplit_once(' ').unwrap();
    tail.parse()
        .unwrap_or_else(|_| panic!("no tail in {line:?}"))
}

/// A server on what `archive` holds.
async fn restored(archive: &Path, settings: Settings) -> TestServer {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let args = ["restore", "--dir", data.to_str().unwrap()];
    let ended = Run::start(&[&args[..], &[archive.to_str().unwrap()]].concat());
    let ended = ended.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let server = TestServer::starting(dir, settings, Stdio::inherit()).await;
    server.ready().await;
    server
}

/// Everything of the room that the judge did not say.
async fn everything(server: &TestServer, room: &str) -> Vec<(u64, String)> {
    let mut chat = server.chat().await;
    let end = chat.send_message(send(room, JUDGE, "end")).await.unwrap();
    let end = end.into_inner().sequence;
    let stream = chat.subscribe_messages(follow(room, Some(0))).await;
    let mut stream = stream.unwrap().into_inner();
    let mut all = Vec::new();
    loop {
        let message = next(&mut stream).await;
        if message.sequence == end {
            return all;
        }
        if message.sequence > 0 && message.user != JUDGE {
            all.push((message.sequence, message.content));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_busy_server_is_a_prefix_of_its_log() {
    const ROOMS: [&str; 2] = ["one", "two"];
    let server = TestServer::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut writers = JoinSet::new();
    for writer in 0..4_usize {
        let client = Client::connect(&server.url()).await.unwrap();
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        writers.spawn(async move {
            let (room, mut number) = (ROOMS[writer % 2], 0);
            while !stop.load(Ordering::Relaxed) {
                let text = format!("{writer}:{number}");
                let sent = client.send("ann", room, &text, &text).await.unwrap();
                acknowledged
                    .lock()
                    .unwrap()
                    .push((room, sent.sequence, text));
                number += 1;
            }
        });
    }
    let count = || acknowledged.lock().unwrap().len();
    let reached = async |least: usize| {
        eventually("messages", || async { (count() >= least).then_some(()) }).await;
    };
    reached(200).await;
    let before = acknowledged.lock().unwrap().clone();
    let dir = tempfile::tempdir().unwrap();
    let files = ["a.tar", "b.tar"].map(|name| dir.path().join(name));
    let data = server.dir().join("data");
    let (tail, _) = tokio::join!(back_up(&data, &files[0]), back_up(&data, &files[1]));
    reached(count() + 100).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(writer) = soon("the writers", writers.join_next()).await {
        writer.unwrap();
    }
    let names = fs::read_dir(dir.path()).unwrap();
    assert_eq!(names.count(), 2, "nothing but the archives is left");

    let copy = restored(&files[0], Settings::default()).await;
    for room in ROOMS {
        let original = everything(&server, room).await;
        let prefix: Vec<_> = original
            .iter()
            .filter(|(sequence, _)| *sequence < tail)
            .cloned()
            .collect();
        assert!(prefix.len() < original.len(), "nothing came afterwards");
        let kept = everything(&copy, room).await;
        assert_eq!(kept, prefix, "{room}");
        for (_, sequence, text) in before.iter().filter(|(of, ..)| *of == room) {
            let known = (*sequence, text.clone());
            assert!(kept.contains(&known), "{known:?} was acknowledged before");
        }
        // A client's position goes on, and no position before the tail is given out again.
        let (last, text) = kept.last().unwrap().clone();
        let mut chat = copy.chat().await;
        let sent = chat.send_message(send(room, "bob", "more")).await.unwrap();
        let sequence = sent.into_inner().sequence;
        assert!(sequence >= tail, "{sequence} was used before {tail}");
        let stream = chat.subscribe_messages(follow(room, Some(last))).await;
        let mut stream = stream.unwrap().into_inner();
        let resumed = loop {
            let message = next(&mut stream).await;
            if message.sequence > 0 && message.user != JUDGE {
                break message;
            }
        };
        assert_eq!(
            (resumed.sequence, resumed.content.as_str()),
            (sequence, "more")
        );
        // A publisher that repeats what was stored is told so.
        let client = Client::connect(&copy.url()).await.unwrap();
        let again = client.send("ann", room, &text, &text).await.unwrap();
        assert_eq!(again.sequence, last, "{text} was stored twice");
    }
    println!("backup under load: {} before, tail {tail}", before.len());
}

#[tokio::test]
async fn files_and_trimmed_topics_come_back_as_they_were() {
    let retention = Settings::default()
        .set("log.retention.room.bytes", "32KiB")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(retention).await;
    let mut clients = Clients::of(&server).await;
    let contents = [content(5_000_000), content(1000), Vec::new()];
    let mut ids = Vec::new();
    for bytes in &contents {
        ids.push(files::store(&mut clients, "name", bytes).await.file_id);
    }
    let mut chat = server.chat().await;
    let filler = "x".repeat(1000);
    for _ in 0..100 {
        chat.send_message(send("old", "ann", &filler))
            .await
            .unwrap();
    }
    let first_of = async |mut chat: crate::support::Chat| {
        let refused = chat
            .subscribe_messages(follow("old", Some(1)))
            .await
            .err()?;
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        let info = tonic_types::StatusExt::get_details_error_info(&refused).unwrap();
        info.metadata["first_sequence"].parse::<u64>().ok()
    };
    let before = eventually("a trim", || first_of(chat.clone())).await;

    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("weir.tar");
    let data = server.dir().join("data");
    server.terminate();
    let mut server = server;
    assert_eq!(server.exit_code().await, Some(0));
    assert!(
        !data.join("control.sock").exists(),
        "a clean stop removes it"
    );
    let tail = back_up(&data, &archive).await;
    let server = server.restart().await;
    // Retention may have gone on before the stop and after the restart.
    let after = first_of(server.chat().await).await;

    let copy = restored(&archive, Settings::default()).await;
    let first = first_of(copy.chat().await).await;
    assert!(
        Some(before) <= first && first <= after,
        "{first:?} of {before} to {after:?}"
    );
    let sent = copy
        .chat()
        .await
        .send_message(send("old", "ann", "new"))
        .await;
    assert!(sent.unwrap().into_inner().sequence >= tail);
    let mut clients = Clients::of(&copy).await;
    for (id, bytes) in ids.iter().zip(&contents) {
        let known = clients.get(id).await.unwrap();
        assert_eq!(known.checksum, files::sha256(bytes));
        let stored = copy.dir().join("data/files/blobs").join(id);
        assert!(fs::read(stored).unwrap() == *bytes, "{id} differs");
        let (_, fetched) = files::fetch(&mut clients.service, id, 0, 0).await;
        assert!(fetched == *bytes, "{id} is delivered otherwise");
    }
}

/// The log that a response names.
fn log_of<T>(response: &tonic::Response<T>) -> AsciiMetadataValue {
    response.metadata().get("log-id").unwrap().clone()
}

#[tokio::test]
async fn a_restored_log_is_another_one() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let sent = chat.send_message(send("general", "ann", "hi")).await;
    let sent = sent.unwrap();
    let old = log_of(&sent);
    let position = sent.into_inner().sequence;
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("weir.tar");
    let tail = back_up(&server.dir().join("data"), &archive).await;
    let lost = chat.send_message(send("general", "ann", "lost")).await;
    let lost = lost.unwrap().into_inner().sequence;
    let mut ids = vec![old.clone()];
    for _ in 0..2 {
        let copy = restored(&archive, Settings::default()).await;
        let mut chat = copy.chat().await;
        let mut request = tonic::Request::new(follow("general", Some(position)));
        let resumed = chat.subscribe_messages(follow("general", Some(position)));
        ids.push(log_of(&resumed.await.unwrap()));
        request.metadata_mut().insert("log-id", old.clone());
        let refused = chat.subscribe_messages(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        assert_eq!(info(&refused).0, "LOG_REPLACED");
        // Numbers alone tell as much: what came after the backup lies in none of the copies.
        let unknown = chat.subscribe_messages(follow("general", Some(lost)));
        let mut unknown = unknown.await.unwrap().into_inner();
        let refused = end(&mut unknown).await.unwrap_err();
        let (reason, metadata) = info(&refused);
        assert_eq!(reason, "LOG_REPLACED", "{refused:?}");
        assert_eq!(metadata["first_sequence"], tail.to_string());
        let copy = copy.restart().await;
        let mut chat = copy.chat().await;
        let again = chat.send_message(send("general", "ann", "hi")).await;
        assert_eq!(log_of(&again.unwrap()), ids[ids.len() - 1]);
    }
    ids.sort_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
    ids.dedup();
    assert_eq!(ids.len(), 3, "each copy has an id of its own");
}

#[tokio::test]
async fn what_an_export_still_reads_is_not_trimmed() {
    let dir = TempDir::new().unwrap();
    let engine = Embedded::open(&settings(dir.path()), Metrics::new()).unwrap();
    let (topic, other) = (room("kept"), room("new"));
    append_all(&engine, &topic, &["a", "b"]).await;
    let exporter = engine.exporter().unwrap();
    let export = tokio::task::spawn_blocking(move || exporter.begin().unwrap());
    let export = export.await.unwrap();
    append_all(&engine, &topic, &["c"]).await;
    append_all(&engine, &other, &["d"]).await;
    engine.trim(&topic, Sequence(u64::MAX)).await.unwrap();
    assert_eq!(
        read_all(&engine, &topic).await.len(),
        3,
        "nothing is dropped"
    );

    let mut seen = Vec::new();
    export
        .visit(&mut |item| {
            seen.push(match item {
                Item::Topic { name, .. } => name.to_owned(),
                Item::Record { sequence, .. } => sequence.to_string(),
                Item::Key { .. } => "key".to_owned(),
            });
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        seen,
        ["kept", "1", "2"],
        "what came later is not part of it"
    );
    drop(export);
    engine.trim(&topic, Sequence(3)).await.unwrap();
    assert_eq!(
        read_all(&engine, &topic).await.len(),
        1,
        "dropped afterwards"
    );
}

/// An archive of a small log with a key and a file, made of a directory that nobody has open.
async fn small(dir: &Path) -> Vec<u8> {
    let log = settings(dir);
    let engine = Embedded::open(&log, Metrics::new()).unwrap();
    append_all(&engine, &room("a"), &["1", "2"]).await;
    let keyed = crate::log_support::keyed(&room("b"), "key", "3");
    crate::log_support::append(&engine, vec![keyed]).await;
    engine.close().await;
    let files = log.dir.join("files");
    let digits = "5".repeat(32);
    let id = format!("file-{:032x}", !u128::from_str_radix(&digits, 16).unwrap());
    for (name, bytes) in [
        (format!("meta/{digits}.json"), b"{}".to_vec()),
        (format!("blobs/{id}"), content(2000)),
    ] {
        fs::create_dir_all(files.join(&name).parent().unwrap()).unwrap();
        fs::write(files.join(&name), bytes).unwrap();
    }
    let contents = backup::Contents {
        log: open_export(&log.dir).unwrap(),
        files: Some(files),
    };
    let manifest = contents.manifest().unwrap();
    let (summary, archive) = backup::write(&contents, &manifest, Vec::new()).unwrap();
    assert_eq!((summary.records, summary.keys, summary.files), (3, 1, 1));
    archive
}

#[tokio::test]
async fn a_damaged_archive_is_refused_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let archive = small(dir.path()).await;
    let target = dir.path().join("restored");
    let refused = |bytes: &[u8], what: String| {
        let error = backup::restore(&target, bytes).expect_err(&what);
        assert!(
            matches!(error, Error::Damaged(_) | Error::Format(_)),
            "{what}: {error:?}"
        );
        assert!(!target.exists(), "{what} leaves something");
    };
    let length = archive.len();
    for cut in (0..length).step_by(1024).chain([1, 700, length - 1]) {
        refused(&archive[..cut], format!("cut at {cut}"));
    }
    refused(&[&archive[..], b"\0"].concat(), "a byte more".into());
    for at in (0..length).step_by(211).chain([length - 1]) {
        let mut flipped = archive.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&flipped, format!("a bit of byte {at}"));
    }
    let restored = backup::restore(&target, archive.as_slice()).unwrap();
    assert_eq!(restored.summary.records, 3);
    // Also by the command, with its exit code, into a directory that is there.
    let file = dir.path().join("cut.tar");
    fs::write(&file, &archive[..length / 2]).unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let args = ["restore", "--dir", empty.to_str().unwrap()];
    let ended = Run::start(&[&args[..], &[file.to_str().unwrap()]].concat())
        .end()
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err[0].contains("damaged or incomplete"), "{ended:?}");
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

#[tokio::test]
async fn only_an_empty_directory_is_restored_into() {
    let dir = TempDir::new().unwrap();
    let archive = small(dir.path()).await;
    let log = settings(dir.path());
    let names = || {
        let entries = fs::read_dir(&log.dir).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let error = backup::restore(&log.dir, archive.as_slice()).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert_eq!(names(), before, "what is there stays");
    // What a restore left that was killed keeps a log from beginning there, and gives way to the next.
    let target = dir.path().join("killed");
    let staged = target.join("restoring/files/blobs");
    fs::create_dir_all(&staged).unwrap();
    fs::create_dir_all(target.join("lost+found")).unwrap();
    let config = weir::config::Log {
        dir: target.clone(),
        ..log.clone()
    };
    let error = Embedded::open(&config, Metrics::new()).err().unwrap();
    assert!(error.to_string().contains("was not finished"), "{error}");
    backup::restore(&target, archive.as_slice()).unwrap();
    let engine = Embedded::open(&config, Metrics::new()).unwrap();
    assert_eq!(read_all(&engine, &room("a")).await.len(), 2);
    // The log that is replaced may have given out numbers behind the archive's tail: they are left out, and refused.
    let next = Sequence(4 + (1 << 32));
    assert_eq!(append_all(&engine, &room("c"), &["4"]).await, [next]);
    let tail = Sequence(4);
    for lost in [Sequence(5), Sequence(next.0 - 1)] {
        let refused = engine.read(&room("a"), lost, ALL).await;
        assert_eq!(refused.unwrap_err(), weir::log::Error::Replaced { tail });
    }
    for known in [tail, next, next.next()] {
        assert!(engine.read(&room("a"), known, ALL).await.is_ok(), "{known}");
    }
}

#[tokio::test]
async fn the_door_is_its_owners_and_a_stale_one_is_replaced() {
    // Longer than the address of a socket may be.
    let data = format!("data/{}", ["d"; 60].join("/"));
    for data in ["data", &data] {
        let settings = Settings::default().set("log.dir", data);
        let mut server = TestServer::with(settings).await;
        let socket = server.dir().join(data).join("control.sock");
        for _ in 0..2 {
            let mode = fs::metadata(&socket).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let archive = server.dir().join("weir.tar");
            back_up(&server.dir().join(data), &archive).await;
            let mode = fs::metadata(&archive).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            server.kill().await;
            assert!(socket.exists(), "a crash leaves it");
            // Nobody listens there any more: the directory is read by itself.
            back_up(&server.dir().join(data), &archive).await;
            server = server.restart().await;
        }
    }
}

#[tokio::test]
async fn a_backup_of_a_server_that_is_killed_fails_and_says_so() {
    let mut server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    // More than pipes and buffers hold, so that it cannot be through.
    files::store(&mut clients, "large", &content(24 * files::MIB)).await;
    let mut child = Command::new(binary())
        .args(["backup", "--dir"])
        .arg(server.dir().join("data"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut first = [0; 4096];
    let stdout = child.stdout.as_mut().unwrap();
    soon("the beginning", stdout.read_exact(&mut first))
        .await
        .unwrap();
    server.kill().await;
    let output = soon("the command's end", child.wait_with_output())
        .await
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("went away during the backup"), "{text}");
    let cut = [&first[..], &output.stdout].concat();
    let target = server.dir().join("restored");
    backup::restore(&target, cut.as_slice()).expect_err("half an archive");
}

#[tokio::test]
async fn half_a_backup_never_has_the_name_of_a_whole_one() {
    let dir = TempDir::new().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("weir.tar"));
    fs::create_dir(&data).unwrap();
    fs::write(&file, "the one before").unwrap();
    let listener = UnixListener::bind(data.join("control.sock")).unwrap();
    // What an instance does that ends in the middle.
    let half = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 9]).unwrap();
        stream.write_all(b"D\0\0\0\x04half").unwrap();
    });
    let args = [data.to_str().unwrap(), file.to_str().unwrap()];
    let ended = Run::start(&["backup", "--dir", args[0], "-o", args[1]])
        .end()
        .await;
    half.join().unwrap();
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(fs::read(&file).unwrap(), b"the one before");
    let names: Vec<PathBuf> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn other_logs_have_other_backups() {
    for (engine, hint) in [("jetstream", "nats stream backup"), ("memory", "embedded")] {
        let setting = format!("log.engine={engine}");
        let ended = Run::start(&["backup", "--set", &setting, "-o", "x"])
            .end()
            .await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err[0].contains(hint), "{ended:?}");
    }
    let dir = TempDir::new().unwrap();
    let args = ["backup", "-o", "x", "--dir", dir.path().to_str().unwrap()];
    let ended = Run::start(&args).end().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err[0].contains("there is no log"), "{ended:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
