//! Files over gRPC: every way in and out, what breaks and goes on, and what is refused.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use weir::proto::{
    streaming::v1::{FileChunk, FileMetadata, file_chunk::Data},
    streaming::{self, UploadRequest, UploadResponse, upload_request::Payload},
    weir::v1::{DeleteFileRequest, ListFilesRequest},
};

use crate::{
    file_support::{
        CHUNK, Clients, MIB, Open, chunk, chunks, content, described, fetch, first, open_download,
        send, sha256, store, whole,
    },
    support::{
        Settings, TestServer,
        errors::{assert_invalid, info},
        eventually, server,
    },
};

#[tokio::test]
async fn what_is_uploaded_is_downloaded() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    for size in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * MIB + 5] {
        let bytes = content(size);
        let stored = store(&mut clients, "notes.txt", &bytes).await;
        assert!(stored.file_id.starts_with("file-"), "{stored:?}");
        assert_eq!(stored.bytes_uploaded, size as i64);
        assert!(stored.checksum_verified);
        let url = format!("http://{}/files/{}", server.http(), stored.file_id);
        assert_eq!(stored.download_url, url);
        let (metadata, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
        assert_eq!(metadata, described("notes.txt", &bytes, ""));
        assert!(received == bytes, "{size} bytes come back");
        let file = clients.get(&stored.file_id).await.unwrap();
        assert_eq!((file.size, &*file.filename), (size as i64, "notes.txt"));
        assert_eq!((file.checksum, file.download_url), (sha256(&bytes), url));
        assert!(file.created.is_some());
    }
    assert_eq!(
        server
            .metric("weir_uploads_ended_total{outcome=\"stored\"}")
            .await,
        5.0
    );
    let sent = server
        .metric("weir_file_bytes_total{direction=\"down\"}")
        .await;
    assert_eq!(sent, (1 + 3 * CHUNK + 3 * MIB + 5) as f64);
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let stored = store(&mut clients, "empty", &[]).await;
    assert_eq!(stored.bytes_uploaded, 0);
    let (metadata, bytes) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert_eq!((metadata.total_size, bytes.len()), (0, 0));
}

#[tokio::test]
async fn size_and_checksum_may_be_left_out() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(100_000);
    let metadata = FileMetadata {
        filename: "a".into(),
        ..FileMetadata::default()
    };
    // As the tutorials send it: chunks say neither offset nor size.
    let bare = bytes.chunks(1000).map(|part| FileChunk {
        data: Some(Data::Chunk(Bytes::copy_from_slice(part))),
        ..FileChunk::default()
    });
    let parts = std::iter::once(first(metadata)).chain(bare).collect();
    let stored = send(&mut clients.service, parts).await.unwrap();
    assert!(!stored.checksum_verified);
    let (metadata, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert_eq!(metadata.content_type, "application/octet-stream");
    assert_eq!(metadata.checksum, sha256(&bytes));
    assert!(received == bytes);
}

#[tokio::test]
async fn a_checksum_is_compared_whatever_its_case() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let mut metadata = described("a", b"hello", "");
    metadata.checksum = metadata.checksum.to_uppercase();
    let stored = send(&mut clients.service, whole(metadata, b"hello")).await;
    assert!(stored.unwrap().checksum_verified);
}

#[tokio::test]
async fn what_was_stored_by_one_service_is_there_for_all() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(200_000);
    let metadata = streaming::FileMetadata {
        filename: "data.bin".into(),
        content_type: "application/x-data".into(),
        total_size: bytes.len() as i64,
        ..streaming::FileMetadata::default()
    };
    let parts = std::iter::once(Payload::Metadata(metadata)).chain(
        bytes
            .chunks(10_000)
            .map(|part| Payload::Chunk(Bytes::copy_from_slice(part))),
    );
    let parts: Vec<_> = parts
        .map(|payload| UploadRequest {
            payload: Some(payload),
        })
        .collect();
    let uploaded = clients.data.upload_file(tokio_stream::iter(parts)).await;
    let UploadResponse {
        file_id,
        bytes_received,
        checksum,
    } = uploaded.unwrap().into_inner();
    assert_eq!(bytes_received, bytes.len() as i64);
    assert_eq!(checksum, sha256(&bytes));
    let (metadata, received) = fetch(&mut clients.service, &file_id, 0, 0).await;
    assert_eq!(metadata.filename, "data.bin");
    assert!(received == bytes);
    let file = clients.get(&file_id).await.unwrap();
    assert_eq!(file.content_type, "application/x-data");
    let response = server::http_get(server.http(), &format!("/files/{file_id}")).await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response:.200}");
    assert!(response.contains(&format!("etag: \"{checksum}\"")));
}

#[tokio::test]
async fn a_range_is_sent_and_cut_at_the_end() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(MIB + 7);
    let id = store(&mut clients, "a", &bytes).await.file_id;
    for (offset, length, until) in [
        (0, 10, 10),
        (5, 0, bytes.len()),
        (CHUNK - 1, 2, CHUNK + 1),
        (MIB, 100, bytes.len()),
        (bytes.len(), 0, bytes.len()),
    ] {
        let (_, received) = fetch(&mut clients.service, &id, offset, length).await;
        assert!(received == bytes[offset..until], "{offset}+{length}");
    }
}

#[tokio::test]
async fn a_download_is_refused_with_reasons() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let id = store(&mut clients, "a", b"hello").await.file_id;
    let mut refused = async |id: &str, offset, length| match open_download(
        &mut clients.service,
        id,
        offset,
        length,
    )
    .await
    {
        Ok(_) => panic!("a refusal"),
        Err(status) => status,
    };
    for unknown in [
        "nope",
        "file-00000000000000000000000000000000",
        "../meta/x",
        "file-../../../../etc/passwd",
    ] {
        let status = refused(unknown, 0, 0).await;
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), format!("File {unknown} not found"));
        let resource = status.get_details_resource_info().unwrap();
        assert_eq!(
            (&*resource.resource_type, &*resource.resource_name),
            ("File", unknown)
        );
        assert_eq!(info(&status).0, "NOT_FOUND");
    }
    let status = refused(&id, 6, 0).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (reason, metadata) = info(&status);
    assert_eq!((&*reason, &*metadata["size"]), ("RANGE_OUTSIDE", "5"));
    assert_invalid(
        &refused("", 0, 0).await,
        "file_id is required",
        &["file_id"],
    );
    assert_invalid(
        &refused(&id, -1, -1).await,
        "offset must not be negative; length must not be negative",
        &["offset", "length"],
    );
}

#[tokio::test]
async fn an_upload_is_refused_with_reasons_and_leaves_nothing() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let ok = described("a", b"hello", "");
    let with = |change: &dyn Fn(&mut FileMetadata)| {
        let mut metadata = ok.clone();
        change(&mut metadata);
        whole(metadata, b"hello")
    };
    let late = vec![first(ok.clone()), chunk(b"hello", 2)];
    let sized = FileChunk {
        size: 4,
        ..chunk(b"hello", 0)
    };
    let cases: Vec<(Vec<FileChunk>, &str, &[&str])> = vec![
        (vec![], "File metadata must be sent first", &["metadata"]),
        (
            vec![chunk(b"hello", 0)],
            "File metadata must be sent first",
            &["metadata"],
        ),
        (
            vec![first(ok.clone()), first(ok.clone())],
            "File metadata was sent already",
            &["metadata"],
        ),
        (
            with(&|metadata| metadata.total_size = 4),
            "File size exceeds declared size",
            &["total_size"],
        ),
        (
            with(&|metadata| metadata.total_size = 6),
            "File size is less than declared size: 5 of 6 bytes",
            &["total_size"],
        ),
        (
            with(&|metadata| metadata.filename = " ".into()),
            "filename is required",
            &["metadata.filename"],
        ),
        (
            with(&|metadata| metadata.filename = "a\0b".into()),
            "filename must not contain control characters",
            &["metadata.filename"],
        ),
        (
            with(&|metadata| metadata.filename = "x".repeat(300)),
            "filename must be at most 256 bytes",
            &["metadata.filename"],
        ),
        (
            with(&|metadata| metadata.checksum = "abc".into()),
            "checksum must be a SHA-256 in hexadecimal",
            &["metadata.checksum"],
        ),
        (
            with(&|metadata| {
                metadata.total_size = -1;
                metadata.content_type = "a\r\nb".into();
            }),
            "content_type must not contain control characters; total_size must not be negative",
            &["metadata.content_type", "metadata.total_size"],
        ),
        (late, "offset must be 0", &["offset"]),
        (
            vec![first(ok.clone()), sized],
            "size must be 5, the chunk's length",
            &["size"],
        ),
    ];
    for (parts, text, names) in cases {
        let status = send(&mut clients.service, parts).await.unwrap_err();
        assert_invalid(&status, text, names);
    }
    let wrong = with(&|metadata| metadata.checksum = sha256(b"hullo"));
    let status = send(&mut clients.service, wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    assert_eq!(status.message(), "File checksum verification failed");
    assert_eq!(info(&status).0, "CHECKSUM_MISMATCH");
    nothing_is_left(&server).await;
    assert_eq!(clients.count().await, 0);
}

/// Waits until the store holds no byte of any file.
pub(crate) async fn nothing_is_left(server: &TestServer) {
    eventually("an empty store", || async {
        let files = server.dir().join("data/files");
        let left: Vec<_> = ["meta", "blobs", "uploads", "staging", "done"]
            .into_iter()
            .filter_map(|dir| std::fs::read_dir(files.join(dir)).ok())
            .flatten()
            .collect();
        let under_way = server.metric("weir_uploads_under_way").await;
        (left.is_empty() && under_way == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn names_are_kept_as_they_are() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    for name in [
        "../../etc/passwd",
        "/absolute",
        "..",
        "C:\\temp\\x",
        "a\u{202e}txt.exe",
        "naïve 文件 🎈.txt",
        "\"quoted\"; x=y",
    ] {
        let stored = store(&mut clients, name, b"x").await;
        let (metadata, _) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
        assert_eq!(metadata.filename, name);
    }
}

#[tokio::test]
async fn a_broken_stream_without_an_id_leaves_nothing() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(2 * MIB);
    let open = Open::begin(&clients.service, described("a", &bytes, ""));
    open.send(chunks(&bytes, 0, CHUNK)[..20].to_vec()).await;
    eventually("the upload to begin", || async {
        (server.metric("weir_uploads_under_way").await == 1.0).then_some(())
    })
    .await;
    open.break_off().await;
    nothing_is_left(&server).await;
    assert_eq!(clients.count().await, 0);
    let broken = server.metric("weir_uploads_ended_total{outcome=\"broken\"}");
    assert_eq!(broken.await, 1.0);
}

#[tokio::test]
async fn an_upload_past_its_deadline_leaves_nothing() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let (parts, receiver) = mpsc::channel(2);
    parts.try_send(first(described("a", b"hello", ""))).unwrap();
    parts.try_send(chunk(b"hel", 0)).unwrap();
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.set_timeout(Duration::from_millis(300));
    let status = clients.service.upload_file(request).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status:?}"
    );
    nothing_is_left(&server).await;
    drop(parts);
}

#[track_caller]
fn assert_exhausted(status: &Status, subject: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let quota = status.get_details_quota_failure().unwrap();
    assert_eq!(quota.violations[0].subject, subject);
}

#[tokio::test]
async fn limits_are_told_before_anything_is_sent_and_while_it_is() {
    let settings = Settings::default()
        .set("files.max_file", "1MiB")
        .set("files.max_total", "2MiB")
        .set("files.max_uploads", 2);
    let server = TestServer::with(settings).await;
    let mut clients = Clients::of(&server).await;
    let large = content(MIB + 1);
    let declared = first(described("a", &large, ""));
    let status = send(&mut clients.service, vec![declared]).await;
    assert_exhausted(&status.unwrap_err(), "bytes of a file");
    let undeclared = FileMetadata {
        total_size: 0,
        ..described("a", &large, "")
    };
    let status = send(&mut clients.service, whole(undeclared.clone(), &large)).await;
    assert_exhausted(&status.unwrap_err(), "bytes of a file");

    // A place is taken by what was declared.
    let half = content(MIB);
    let one = Open::begin(&clients.service, described("one", &half, "up-1"));
    eventually("the upload to begin", || async {
        Clients::of(&server).await.progress("up-1").await.ok()
    })
    .await;
    let kept = store(&mut clients, "two", &half).await;
    let status = send(&mut clients.service, vec![first(described("c", b"x", ""))]).await;
    assert_exhausted(&status.unwrap_err(), "bytes of all files");
    let status = send(&mut clients.service, whole(undeclared, b"x")).await;
    assert_exhausted(&status.unwrap_err(), "bytes of all files");
    // A file that goes makes room.
    let request = DeleteFileRequest {
        file_id: kept.file_id,
    };
    clients.files.delete_file(request).await.unwrap();
    let two = Open::begin(&clients.service, described("two", b"x", "up-2"));
    eventually("the upload to begin", || async {
        Clients::of(&server).await.progress("up-2").await.ok()
    })
    .await;
    let status = send(&mut clients.service, whole(described("c", b"x", ""), b"x")).await;
    assert_exhausted(&status.unwrap_err(), "uploads under way");
    one.send(chunks(&half, 0, CHUNK)).await;
    one.outcome().await.unwrap();
    two.send(chunks(b"x", 0, CHUNK)).await;
    two.outcome().await.unwrap();
    assert_eq!(clients.count().await, 2);
}

#[tokio::test]
async fn files_are_listed_newest_first_and_deleted() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let mut ids = Vec::new();
    for index in 0..7 {
        ids.push(store(&mut clients, &index.to_string(), b"x").await.file_id);
    }
    ids.reverse();
    let mut listed = Vec::new();
    let mut request = ListFilesRequest {
        page_size: 3,
        ..ListFilesRequest::default()
    };
    let mut pages = 0;
    loop {
        let page = clients.files.list_files(request.clone()).await;
        let page = page.unwrap().into_inner();
        listed.extend(page.files.into_iter().map(|file| file.file_id));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((listed, pages), (ids.clone(), 3));

    let delete = |id: &str| DeleteFileRequest { file_id: id.into() };
    clients.files.delete_file(delete(&ids[0])).await.unwrap();
    for status in [
        clients.files.delete_file(delete(&ids[0])).await.map(drop),
        clients.get(&ids[0]).await.map(drop),
        open_download(&mut clients.service, &ids[0], 0, 0)
            .await
            .map(drop),
    ] {
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), format!("File {} not found", ids[0]));
    }
    assert_eq!(clients.count().await, 6);
    let bad = ListFilesRequest {
        page_token: "../x".into(),
        ..ListFilesRequest::default()
    };
    let status = clients.files.list_files(bad).await.unwrap_err();
    assert_invalid(
        &status,
        "page_token is not one that was given out",
        &["page_token"],
    );
    let bad = ListFilesRequest {
        page_size: -1,
        ..ListFilesRequest::default()
    };
    let status = clients.files.list_files(bad).await.unwrap_err();
    assert_invalid(&status, "page_size must not be negative", &["page_size"]);
    let status = clients.progress(" ").await.unwrap_err();
    assert_invalid(&status, "upload_id is required", &["upload_id"]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    // More than any disk has free.
    let settings = Settings::default()
        .set("log.engine", "memory")
        .set("log.min_free", "1EiB");
    let server = TestServer::with(settings).await;
    let mut clients = Clients::of(&server).await;
    let parts = whole(described("a", b"hello", ""), b"hello");
    let status = send(&mut clients.service, parts).await.unwrap_err();
    assert_exhausted(&status, "disk");
    assert_eq!(info(&status).0, "STORAGE_FULL");
    nothing_is_left(&server).await;
}
