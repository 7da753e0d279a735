//! Files on JetStream when NATS goes away, or has no room.

use tonic::Code;
use weir::proto::streaming::v1::file_chunk::Data;

use crate::{
    file_support::{
        CHUNK, Clients, MIB, Open, chunks, content, described, fetch, first, open_download, send,
        store, whole,
    },
    nats::Nats,
    nats_files::{PART, committed, messages, serve},
    support::{TestServer, eventually, next, soon},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_across_a_restart_of_nats_is_whole_or_fails() {
    const SIZE: usize = 48 * MIB;
    let mut nats = Nats::start();
    let server = TestServer::with(serve(&nats, "one")).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(SIZE);
    let id = store(&mut clients, "a", &bytes).await.file_id;
    for is_back in [true, false] {
        let opened = open_download(&mut clients.service, &id, 0, 0).await;
        let mut stream = opened.unwrap();
        next(&mut stream).await;
        nats.kill(0);
        if is_back {
            nats.resume(0);
        }
        let mut received = Vec::new();
        let ended = loop {
            match soon("a chunk or an end", stream.message()).await {
                Ok(Some(part)) => {
                    if let Some(Data::Chunk(piece)) = part.data {
                        received.extend_from_slice(&piece);
                    }
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        };
        assert!(received == bytes[..received.len()]);
        match ended {
            Ok(()) => assert_eq!(received.len(), SIZE, "whole"),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        if !is_back {
            assert!(received.len() < SIZE, "it was not in memory");
            nats.resume(0);
        }
        eventually("files to be served again", || async {
            let mut clients = Clients::of(&server).await;
            clients.get(&id).await.ok()
        })
        .await;
    }
    let (_, received) = fetch(&mut clients.service, &id, 0, 0).await;
    assert!(received == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_away_is_unavailable_and_an_upload_goes_on_when_it_is_back() {
    let mut nats = Nats::start();
    let server = TestServer::with(serve(&nats, "one")).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(3 * PART);
    let metadata = described("a", &bytes, "up-1");
    let open = Open::begin(&clients.service, metadata.clone());
    let parts = chunks(&bytes, 0, CHUNK);
    open.send(parts[..PART / CHUNK + 1].to_vec()).await;
    committed(&server, "up-1", PART).await;
    nats.kill(0);
    for part in &parts[PART / CHUNK + 1..] {
        if open.parts.send(part.clone()).await.is_err() {
            break;
        }
    }
    let status = open.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let other = whole(described("b", b"b", ""), b"b");
    let refused = soon("an answer", send(&mut clients.service, other)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    nats.resume(0);
    let from = eventually("the upload to be found", || async {
        let upload = Clients::of(&server).await.progress("up-1").await.ok()?;
        Some(upload.committed_offset as usize)
    })
    .await;
    assert!(from >= PART, "nothing acknowledged is lost: {from}");
    let mut rest = vec![first(metadata)];
    rest.extend(chunks(&bytes, from, CHUNK));
    let stored = send(&mut clients.service, rest).await.unwrap();
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_jetstream_is_told_and_leaves_nothing() {
    let settings = "max_payload: 16MB\njetstream { store_dir: \"DIR\", max_file_store: 20MB }\n";
    let nats = Nats::with(settings);
    let server = TestServer::with(serve(&nats, "one")).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(40 * MIB);
    let parts = whole(described("a", &bytes, ""), &bytes);
    let status = send(&mut clients.service, parts).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    eventually("nothing to be left", || async {
        (messages(&nats).await == [0, 0]).then_some(())
    })
    .await;
    let small = content(MIB);
    let stored = store(&mut clients, "b", &small).await;
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == small);
}
