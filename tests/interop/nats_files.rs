//! Files on JetStream: a real NATS server behind real Weirs.

use async_nats::jetstream::{self, object_store::ObjectStore};
use tokio::io::AsyncReadExt as _;
use tonic::Code;
use weir::proto::weir::v1::DeleteFileRequest;

use crate::{
    file_support::{
        CHUNK, Clients, MIB, Open, chunks, content, described, fetch, first, open_download, send,
        store, whole,
    },
    nats::Nats,
    support::{
        Settings, TestServer, end,
        errors::info,
        eventually, next,
        server::{exchange, http_get},
        soon,
    },
};

/// What Weir makes durable at once.
pub(crate) const PART: usize = 2 * MIB;

pub(crate) fn serve(nats: &Nats, name: &str) -> Settings {
    Settings::default()
        .set("log.engine", "jetstream")
        .set("jetstream.url", nats.url())
        .set("jetstream.timeout", "2s")
        .set("server.instance_id", name)
}

pub(crate) async fn two(nats: &Nats) -> [TestServer; 2] {
    [
        TestServer::with(serve(nats, "one")).await,
        TestServer::with(serve(nats, "two")).await,
    ]
}

/// Waits until the upload is durable up to `offset`, and no further.
pub(crate) async fn committed(server: &TestServer, id: &str, offset: usize) {
    eventually("a part to be committed", || async {
        let upload = Clients::of(server).await.progress(id).await.ok()?;
        (upload.committed_offset == offset as i64).then_some(())
    })
    .await;
}

async fn bucket(nats: &Nats) -> ObjectStore {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let context = jetstream::new(client);
    context.get_object_store("weir-files").await.unwrap()
}

/// How many messages the two buckets hold.
pub(crate) async fn messages(nats: &Nats) -> [u64; 2] {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let context = jetstream::new(client);
    let mut counts = [0; 2];
    for (count, name) in counts.iter_mut().zip(["OBJ_weir-files", "KV_weir-files"]) {
        let stream = context.get_stream(name).await.unwrap();
        *count = stream.cached_info().state.messages;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_live_in_the_object_store_and_every_replica_serves_them() {
    let nats = Nats::start();
    let [one, two] = two(&nats).await;
    let (mut here, mut there) = (Clients::of(&one).await, Clients::of(&two).await);
    let chunk = 256 * 1024;
    let sizes = [
        0,
        1,
        chunk - 1,
        chunk,
        chunk + 1,
        PART - 1,
        PART,
        PART + 1,
        3 * PART,
        3 * PART + 5,
    ];
    let mut ids = Vec::new();
    for size in sizes {
        let bytes = content(size);
        let stored = store(&mut here, "a.bin", &bytes).await;
        assert!(stored.checksum_verified);
        let id = stored.file_id;
        let (metadata, received) = fetch(&mut there.service, &id, 0, 0).await;
        assert_eq!(metadata, described("a.bin", &bytes, ""));
        assert!(received == bytes, "{size}");
        for (from, length) in [(0, 1), (chunk - 3, 7), (PART - 1, 2), (PART + 1, 3 * PART)] {
            if from < size {
                let (_, received) = fetch(&mut there.service, &id, from, length).await;
                let until = size.min(from + length);
                assert!(received == bytes[from..until], "{size} from {from}");
            }
        }
        let path = format!("/files/{id}");
        let request = format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        let whole = exchange(two.http(), request.as_bytes()).await;
        assert!(whole.starts_with(b"HTTP/1.1 200"), "{size}");
        assert!(whole.ends_with(&bytes), "{size}");
        if size > PART {
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: t\r\nrange: bytes={}-{}\r\nconnection: close\r\n\r\n",
                PART - 5,
                PART
            );
            let part = exchange(two.http(), request.as_bytes()).await;
            assert!(part.starts_with(b"HTTP/1.1 206"), "{size}");
            assert!(part.ends_with(&bytes[PART - 5..=PART]), "{size}");
        }
        ids.push(id);
    }
    assert_eq!(there.count().await, sizes.len());

    // They are objects that any client of NATS reads; the library checks the digest.
    let bucket = bucket(&nats).await;
    let last = ids.last().unwrap();
    let mut object = bucket.get(last).await.unwrap();
    let mut bytes = Vec::new();
    soon("an object", object.read_to_end(&mut bytes))
        .await
        .unwrap();
    assert!(bytes == content(3 * PART + 5));

    for file_id in ids {
        let request = DeleteFileRequest { file_id };
        there.files.delete_file(request).await.unwrap();
    }
    assert_eq!(here.count().await, 0);
    assert_eq!(messages(&nats).await, [0, 0], "nothing stays behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_at_another_replica_after_kill_9() {
    let nats = Nats::start();
    let [mut one, two] = two(&nats).await;
    let bytes = content(4 * PART + 777);
    let metadata = described("a", &bytes, "up-1");
    let open = Open::begin(&Clients::of(&one).await.service, metadata.clone());
    let parts = chunks(&bytes, 0, CHUNK);
    open.send(parts[..2 * PART / CHUNK + 5].to_vec()).await;
    committed(&two, "up-1", 2 * PART).await;
    one.kill().await;
    open.outcome().await.unwrap_err();

    let mut clients = Clients::of(&two).await;
    let mut rest = vec![first(metadata.clone())];
    rest.extend(chunks(&bytes, 2 * PART, CHUNK));
    let stored = send(&mut clients.service, rest).await.unwrap();
    assert!(stored.checksum_verified);
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);

    // Repeated anywhere it is the same file.
    let one = one.restart().await;
    let mut clients = Clients::of(&one).await;
    let again = send(&mut clients.service, whole(metadata, &bytes)).await;
    assert_eq!(again.unwrap().file_id, stored.file_id);
    assert_eq!(clients.count().await, 1);
    let mut object = bucket(&nats).await.get(&stored.file_id).await.unwrap();
    let mut read = Vec::new();
    soon("an object", object.read_to_end(&mut read))
        .await
        .unwrap();
    assert!(read == bytes, "what the first left beside it is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_takes_over_while_the_first_still_writes() {
    let nats = Nats::start();
    let [one, two] = two(&nats).await;
    let bytes = content(3 * PART + 777);
    let metadata = described("a", &bytes, "up-1");
    let held = Open::begin(&Clients::of(&one).await.service, metadata.clone());
    let parts = chunks(&bytes, 0, CHUNK);
    held.send(parts[..PART / CHUNK + 1].to_vec()).await;
    committed(&two, "up-1", PART).await;

    let taken = Open::begin(&Clients::of(&two).await.service, metadata);
    taken.send(chunks(&bytes[..2 * PART], PART, CHUNK)).await;
    committed(&one, "up-1", 2 * PART).await;
    // All the first has left: its next checkpoint fails.
    for part in &parts[PART / CHUNK + 1..] {
        if held.parts.send(part.clone()).await.is_err() {
            break;
        }
    }
    let status = held.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(info(&status).0, "SUPERSEDED");
    assert_eq!(status.message(), "another stream took this upload over");
    taken.send(chunks(&bytes, 2 * PART, CHUNK)).await;
    let stored = taken.outcome().await.unwrap();
    assert!(stored.checksum_verified);
    let mut clients = Clients::of(&one).await;
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    assert_eq!(clients.count().await, 1);
    let superseded = one.metric("weir_uploads_ended_total{outcome=\"superseded\"}");
    assert_eq!(superseded.await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_has_sent_all_cannot_finish_what_was_taken_over() {
    let nats = Nats::start();
    let [one, two] = two(&nats).await;
    let bytes = content(PART + 777);
    let metadata = described("a", &bytes, "up-1");
    let held = Open::begin(&Clients::of(&one).await.service, metadata.clone());
    held.send(chunks(&bytes, 0, CHUNK)).await;
    committed(&two, "up-1", PART).await;
    let taken = Open::begin(&Clients::of(&two).await.service, metadata);
    taken.send(chunks(&bytes, PART, CHUNK)).await;
    let stored = taken.outcome().await.unwrap();
    let status = held.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    let mut clients = Clients::of(&one).await;
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    assert_eq!(clients.count().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_on_two_replicas_one_wins() {
    let nats = Nats::start();
    let servers = two(&nats).await;
    let bytes = content(300_000);
    let mut writers = Vec::new();
    for turn in 0..8 {
        let mut service = Clients::of(&servers[turn % 2]).await.service;
        let parts = whole(described("a", &bytes, "up-1"), &bytes);
        writers.push(tokio::spawn(async move { send(&mut service, parts).await }));
    }
    let mut ids = Vec::new();
    for writer in writers {
        match writer.await.unwrap() {
            Ok(stored) => ids.push(stored.file_id),
            Err(status) => assert!(
                matches!(status.code(), Code::Aborted | Code::InvalidArgument),
                "{status:?}"
            ),
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let mut clients = Clients::of(&servers[0]).await;
    assert_eq!(clients.count().await, 1);
    let (_, received) = fetch(&mut clients.service, &ids[0], 0, 0).await;
    assert!(received == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_sweeps_what_another_left_and_nothing_that_one_writes() {
    let nats = Nats::start();
    let settings = |name| serve(&nats, name).set("files.upload_ttl", "2s");
    let mut one = TestServer::with(settings("one")).await;
    let two = TestServer::with(settings("two")).await;
    let bytes = content(2 * PART);
    let parts = chunks(&bytes, 0, CHUNK);
    // One with a name and one without, whose replica dies.
    let service = Clients::of(&one).await.service;
    let named = Open::begin(&service, described("a", &bytes, "up-1"));
    let nameless = Open::begin(&service, described("b", &bytes, ""));
    for open in [&named, &nameless] {
        open.send(parts[..PART / CHUNK + 1].to_vec()).await;
    }
    committed(&two, "up-1", PART).await;
    // And chunks that no upload knows.
    let client = async_nats::connect(nats.url()).await.unwrap();
    let lost = format!("$O.weir-files.C.file-{}.r.0", "0".repeat(32));
    let context = jetstream::new(client);
    let stored = context.publish(lost, "lost".into()).await;
    stored.unwrap().await.unwrap();
    one.kill().await;
    // One that is alive on the other, but says nothing for longer than uploads live.
    let quiet = Open::begin(
        &Clients::of(&two).await.service,
        described("c", &bytes, "up-2"),
    );
    quiet.send(parts[..5].to_vec()).await;
    let one = one.restart().await;
    let series = "weir_uploads_ended_total{outcome=\"expired\"}";
    eventually("the sweep", || async {
        let swept = one.metric(series).await + two.metric(series).await;
        (swept == 2.0).then_some(())
    })
    .await;
    eventually("the lost chunks to be dropped", || async {
        // Only the state of the quiet one is left.
        (messages(&nats).await == [0, 1]).then_some(())
    })
    .await;
    quiet.send(parts[5..].to_vec()).await;
    let stored = quiet.outcome().await.unwrap();
    let mut clients = Clients::of(&one).await;
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_or_broken_without_a_name_leaves_nothing() {
    let nats = Nats::start();
    let server = TestServer::with(serve(&nats, "one")).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(PART + 5);
    let mut wrong = described("a", &bytes, "");
    wrong.checksum = "0".repeat(64);
    let refused = send(&mut clients.service, whole(wrong, &bytes)).await;
    assert_eq!(refused.unwrap_err().code(), Code::DataLoss);
    // Less than all: a client that goes away may still have ended its stream.
    let bytes = content(2 * PART);
    let open = Open::begin(&clients.service, described("a", &bytes, ""));
    open.send(chunks(&bytes, 0, CHUNK)[..PART / CHUNK + 1].to_vec())
        .await;
    eventually("a part to be stored", || async {
        (messages(&nats).await[0] > 0).then_some(())
    })
    .await;
    open.break_off().await;
    eventually("nothing to be left", || async {
        (messages(&nats).await == [0, 0]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_at_the_client_s_pace() {
    const SIZE: usize = 64 * MIB;
    let nats = Nats::start();
    let server = TestServer::with(serve(&nats, "one")).await;
    let mut clients = Clients::of(&server).await;
    let id = store(&mut clients, "a", &content(SIZE)).await.file_id;
    let received = || server.metric("weir_file_bytes_total{direction=\"down\"}");
    let mut slow = open_download(&mut clients.service, &id, 0, 0)
        .await
        .unwrap();
    next(&mut slow).await;
    // Others are served meanwhile, and the slow one has not been read ahead for.
    let response = http_get(server.http(), &format!("/files/{id}")).await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response:.100}");
    assert!(received().await < (SIZE + SIZE / 2) as f64);
    end(&mut slow).await.unwrap();
    eventually("all to be sent", || async {
        (received().await == (2 * SIZE) as f64).then_some(())
    })
    .await;
    assert!(
        server.resident_bytes() < SIZE as u64 * 2,
        "it is not in memory"
    );
}
