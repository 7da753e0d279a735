//! Uploads that break and go on: by a client that comes back, another one, a restart, a drain; and that nobody goes on with.

use bytes::Bytes;
use tonic::Code;
use tonic_types::StatusExt as _;
use weir::proto::{
    streaming::v1::FileMetadata,
    streaming::{self, UploadRequest, upload_request::Payload},
    weir::v1::DeleteFileRequest,
};

use crate::{
    file_support::{
        CHUNK, Clients, MIB, Open, chunks, content, described, fetch, first, open_download, send,
        sha256, store, whole,
    },
    files::nothing_is_left,
    support::{
        Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        eventually, next, soon,
    },
};

/// Waits until the upload's committed offset is `offset`.
async fn committed(server: &TestServer, id: &str, offset: usize) {
    eventually("the offset to be committed", || async {
        let mut clients = Clients::of(server).await;
        let upload = clients.progress(id).await.ok()?;
        (upload.committed_offset == offset as i64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_broke() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(3 * MIB + 1);
    let metadata = described("a", &bytes, "up-1");
    let open = Open::begin(&clients.service, metadata.clone());
    open.send(chunks(&bytes, 0, CHUNK)[..20].to_vec()).await;
    eventually("chunks to arrive", || async {
        let up = server.metric("weir_file_bytes_total{direction=\"up\"}");
        (up.await > 0.0).then_some(())
    })
    .await;
    open.break_off().await;
    let upload = eventually("something to be committed", || async {
        let upload = Clients::of(&server).await.progress("up-1").await.ok()?;
        (upload.committed_offset > 0).then_some(upload)
    })
    .await;
    assert_eq!(upload.total_size, bytes.len() as i64);
    assert!(upload.expires.is_some());
    assert_eq!(clients.count().await, 0, "nothing partial is visible");

    let from = upload.committed_offset as usize;
    let mut wrong = vec![first(metadata.clone())];
    wrong.extend(chunks(&bytes, 0, CHUNK));
    let status = send(&mut clients.service, wrong).await.unwrap_err();
    assert_invalid(&status, &format!("offset must be {from}"), &["offset"]);

    let mut rest = vec![first(metadata.clone())];
    rest.extend(chunks(&bytes, from, CHUNK));
    let stored = send(&mut clients.service, rest).await.unwrap();
    assert!(stored.checksum_verified);
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);

    let status = clients.progress("up-1").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "Upload up-1 not found");

    // Repeating it changes nothing.
    let again = send(&mut clients.service, whole(metadata.clone(), &bytes)).await;
    assert_eq!(again.unwrap(), stored);
    assert_eq!(clients.count().await, 1);
    // Other metadata under the same id is another file.
    let other = FileMetadata {
        filename: "b".into(),
        ..metadata
    };
    let status = send(&mut clients.service, whole(other, &bytes)).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(info(&status).0, "ALREADY_EXISTS");
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!(resource.resource_name, "up-1");
}

#[tokio::test]
async fn a_data_service_upload_goes_on_from_the_offset_it_names() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(100_000);
    let parts = |offset: usize, until: usize| {
        let metadata = streaming::FileMetadata {
            filename: "a".into(),
            total_size: bytes.len() as i64,
            upload_id: "up-1".into(),
            offset: offset as i64,
            ..streaming::FileMetadata::default()
        };
        let chunk = Payload::Chunk(Bytes::copy_from_slice(&bytes[offset..until]));
        let parts = [Payload::Metadata(metadata), chunk];
        tokio_stream::iter(parts.map(|payload| UploadRequest {
            payload: Some(payload),
        }))
    };
    let short = clients.data.upload_file(parts(0, 60_000)).await;
    assert_invalid(
        &short.unwrap_err(),
        "File size is less than declared size: 60000 of 100000 bytes",
        &["total_size"],
    );
    committed(&server, "up-1", 60_000).await;
    let wrong = clients.data.upload_file(parts(0, 100_000)).await;
    assert_invalid(&wrong.unwrap_err(), "offset must be 60000", &["offset"]);
    let done = clients.data.upload_file(parts(60_000, 100_000)).await;
    assert_eq!(done.unwrap().into_inner().checksum, sha256(&bytes));
}

#[tokio::test]
async fn an_upload_goes_on_after_kill_9() {
    let server = TestServer::start().await;
    let bytes = content(40 * MIB);
    let metadata = described("a", &bytes, "up-1");
    let clients = Clients::of(&server).await;
    let open = Open::begin(&clients.service, metadata.clone());
    open.send(chunks(&bytes, 0, CHUNK)[..600].to_vec()).await;
    // It is committed in steps while the stream runs.
    let before = eventually("a first step to be committed", || async {
        let upload = Clients::of(&server).await.progress("up-1").await.ok()?;
        (upload.committed_offset > 0).then_some(upload.committed_offset)
    })
    .await;
    // A nameless upload that the process takes with it.
    let lost = Open::begin(&clients.service, described("b", &bytes, ""));
    lost.send(chunks(&bytes, 0, CHUNK)[..20].to_vec()).await;
    let server = server.restart().await;
    open.outcome().await.unwrap_err();
    drop(lost);

    let mut clients = Clients::of(&server).await;
    let from = clients.progress("up-1").await.unwrap().committed_offset;
    assert!(from >= before, "{from} of {before}");
    assert_eq!(server.metric("weir_uploads_under_way").await, 1.0);
    let mut rest = vec![first(metadata)];
    rest.extend(chunks(&bytes, from as usize, CHUNK));
    let stored = send(&mut clients.service, rest).await.unwrap();
    assert!(stored.checksum_verified);
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    assert_eq!(clients.count().await, 1);
    let staged = std::fs::read_dir(server.dir().join("data/files/staging")).unwrap();
    assert_eq!(staged.count(), 0, "nothing stays behind");
    assert_eq!(server.metric("weir_files_bytes").await, bytes.len() as f64);
}

#[tokio::test]
async fn files_and_outcomes_survive_a_restart() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(MIB);
    let parts = whole(described("a", &bytes, "up-1"), &bytes);
    let stored = send(&mut clients.service, parts.clone()).await.unwrap();
    let server = server.restart().await;
    let mut clients = Clients::of(&server).await;
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    let again = send(&mut clients.service, parts).await.unwrap();
    assert_eq!(again.file_id, stored.file_id);
    assert_eq!(server.metric("weir_files_bytes").await, bytes.len() as f64);
}

#[tokio::test]
async fn a_drain_keeps_what_has_arrived() {
    let mut server = TestServer::start().await;
    let clients = Clients::of(&server).await;
    let bytes = content(MIB);
    let metadata = described("a", &bytes, "up-1");
    let open = Open::begin(&clients.service, metadata.clone());
    open.send(chunks(&bytes, 0, CHUNK)[..10].to_vec()).await;
    eventually("chunks to arrive", || async {
        let received = "grpc_server_msg_received_total{grpc_method=\"UploadFile\",\
            grpc_service=\"streaming.v1.StreamingService\",grpc_type=\"client_stream\"}";
        (server.metric(received).await == 11.0).then_some(())
    })
    .await;
    server.terminate();
    let status = soon("an end", open.call).await.unwrap().unwrap_err();
    assert_ended(&status, "DRAINING");
    assert_eq!(server.exit_code().await, Some(0));
    let server = server.restart().await;
    let upload = Clients::of(&server).await.progress("up-1").await.unwrap();
    assert_eq!(upload.committed_offset, 10 * CHUNK as i64);
}

#[tokio::test]
async fn a_drain_ends_a_download() {
    let mut server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let id = store(&mut clients, "a", &content(20 * MIB)).await.file_id;
    let mut stream = open_download(&mut clients.service, &id, 0, 0)
        .await
        .unwrap();
    next(&mut stream).await;
    server.terminate();
    assert_ended(&end(&mut stream).await.unwrap_err(), "DRAINING");
    assert_eq!(server.exit_code().await, Some(0));
}

#[tokio::test]
async fn the_second_writer_takes_over() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(2 * MIB);
    let metadata = described("a", &bytes, "up-1");
    let one = Open::begin(&clients.service, metadata.clone());
    one.send(chunks(&bytes, 0, CHUNK)[..10].to_vec()).await;
    eventually("the first to begin", || async {
        Clients::of(&server).await.progress("up-1").await.ok()
    })
    .await;
    // Other metadata is a mistake and takes nothing over.
    let other = FileMetadata {
        filename: "b".into(),
        ..metadata.clone()
    };
    let refused = send(&mut clients.service, whole(other, &bytes)).await;
    assert_eq!(refused.unwrap_err().code(), Code::AlreadyExists);
    assert!(!one.call.is_finished());

    let two = Open::begin(&clients.service, metadata);
    let status = soon("the first to end", one.call)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(info(&status).0, "SUPERSEDED");
    assert_eq!(status.message(), "another stream took this upload over");
    // What the first had not committed is the second's to send.
    let from = clients.progress("up-1").await.unwrap().committed_offset;
    two.send(chunks(&bytes, from as usize, CHUNK)).await;
    let stored = two.outcome().await.unwrap();
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    let superseded = server.metric("weir_uploads_ended_total{outcome=\"superseded\"}");
    assert_eq!(superseded.await, 1.0);
}

#[tokio::test]
async fn of_many_writers_one_wins() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(300_000);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let mut service = clients.service.clone();
            let parts = whole(described("a", &bytes, "up-1"), &bytes);
            tokio::spawn(async move { send(&mut service, parts).await })
        })
        .collect();
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
    assert_eq!(clients.count().await, 1);
    let (_, received) = fetch(&mut clients.service, &ids[0], 0, 0).await;
    assert!(received == bytes);
}

#[tokio::test]
async fn what_nobody_goes_on_with_is_swept() {
    let settings = Settings::default().set("files.upload_ttl", "1s");
    let server = TestServer::with(settings).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(MIB);
    let open = Open::begin(&clients.service, described("a", &bytes, "up-1"));
    open.send(chunks(&bytes, 0, CHUNK)[..10].to_vec()).await;
    eventually("the upload to begin", || async {
        Clients::of(&server).await.progress("up-1").await.ok()
    })
    .await;
    open.break_off().await;
    let parts = whole(described("b", b"hello", "up-2"), b"hello");
    let stored = send(&mut clients.service, parts).await.unwrap();
    eventually("the sweep", || async {
        let expired = server.metric("weir_uploads_ended_total{outcome=\"expired\"}");
        (expired.await == 1.0).then_some(())
    })
    .await;
    let status = clients.progress("up-1").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    clients.get(&stored.file_id).await.unwrap();
    let request = DeleteFileRequest {
        file_id: stored.file_id,
    };
    clients.files.delete_file(request).await.unwrap();
    nothing_is_left(&server).await;
}
