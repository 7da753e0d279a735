//! Files of any size, cut in any way: flat memory, slow readers, and the same content whatever happened on its way.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tonic::Code;
use weir::proto::streaming::v1::{FileChunk, FileMetadata, UploadFileResponse, file_chunk::Data};

use crate::{
    file_support::{
        CHUNK, Clients, MIB, Service, chunks, content, described, fetch, first, open_download,
        send, store,
    },
    support::{TestServer, next, soon},
};

#[tokio::test]
async fn a_reader_that_stops_costs_two_pieces() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(64 * MIB);
    let id = store(&mut clients, "a", &bytes).await.file_id;
    let sent = async || {
        server
            .metric("weir_file_bytes_total{direction=\"down\"}")
            .await
    };
    let mut stream = open_download(&mut clients.service, &id, 0, 0)
        .await
        .unwrap();
    next(&mut stream).await;
    // What the windows hold is sent, then nothing is read further.
    let mut last = -1.0;
    let stopped = loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let current = sent().await;
        if current == last && current > 0.0 {
            break current;
        }
        last = current;
    };
    assert!(stopped < (16 * MIB) as f64, "{stopped} bytes read ahead");
    let mut received = 0;
    while let Some(part) = soon("a chunk", stream.message()).await.unwrap() {
        received += part.size;
    }
    assert_eq!(received, bytes.len() as i64);
}

/// Sends `size` bytes without holding them, with chunks as the tutorials cut them.
async fn send_large(service: &mut Service, size: u64) -> UploadFileResponse {
    let piece = Bytes::from(content(CHUNK));
    let metadata = FileMetadata {
        filename: "large".into(),
        total_size: size as i64,
        ..FileMetadata::default()
    };
    let chunks = (0..size / CHUNK as u64).map(move |_| FileChunk {
        data: Some(Data::Chunk(piece.clone())),
        ..FileChunk::default()
    });
    let parts = std::iter::once(first(metadata)).chain(chunks);
    let sent = service.upload_file(tokio_stream::iter(parts)).await;
    sent.unwrap().into_inner()
}

/// Uploads and downloads a file of `WEIR_FILE_MIB` MiB, by default 256, and compares the server's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_flat_whatever_the_size() {
    let mib = std::env::var("WEIR_FILE_MIB").map_or(256, |text| text.parse().unwrap());
    let size = mib * MIB as u64;
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    // The first transfer pays for buffers that stay.
    let small = send_large(&mut clients.service, 16 * MIB as u64).await;
    fetch(&mut clients.service, &small.file_id, 0, 0).await;
    let before = server.resident_bytes();
    let peak = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let pid = server.pid();
    let watch = {
        let peak = std::sync::Arc::clone(&peak);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let resident = resident_bytes(pid);
                peak.fetch_max(resident, std::sync::atomic::Ordering::Relaxed);
            }
        })
    };
    let start = std::time::Instant::now();
    let stored = send_large(&mut clients.service, size).await;
    let up = start.elapsed();
    let start = std::time::Instant::now();
    let mut stream = open_download(&mut clients.service, &stored.file_id, 0, 0)
        .await
        .unwrap();
    let mut received = 0;
    while let Some(part) = stream.message().await.unwrap() {
        received += part.size as u64;
    }
    let down = start.elapsed();
    watch.abort();
    assert_eq!(received, size);
    let peak = peak.load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "{mib} MiB: up {up:?}, down {down:?}; resident {} MiB before, {} MiB at most",
        before / MIB as u64,
        peak / MIB as u64
    );
    let grown = peak.saturating_sub(before);
    assert!(
        grown < 48 * MIB as u64,
        "grew by {} MiB",
        grown / MIB as u64
    );
}

fn resident_bytes(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|text| text.parse().ok());
    pages.unwrap_or(0_u64) * rustix::param::page_size() as u64
}

/// A way to cut and break an upload.
#[derive(Debug, Clone)]
struct Plan {
    size: usize,
    /// The chunks of each try, and how many of them are sent before it breaks.
    tries: Vec<(usize, usize)>,
    last: usize,
    range: (usize, usize),
}

fn plan() -> impl Strategy<Value = Plan> {
    let tries = prop::collection::vec((1..200_000usize, 0..30usize), 0..3);
    (
        1..2_000_000usize,
        tries,
        1..300_000usize,
        any::<(u32, u32)>(),
    )
        .prop_map(|(size, tries, last, (from, length))| Plan {
            size,
            tries,
            last,
            range: (from as usize % size, length as usize % size),
        })
}

#[test]
fn however_it_is_cut_and_broken_the_content_is_the_same() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(TestServer::start());
    let clients = std::cell::RefCell::new(runtime.block_on(Clients::of(&server)));
    let config = ProptestConfig::with_cases(24);
    proptest!(config, |(plan in plan())| {
        let id = format!("up-{}", rand::random::<u64>());
        runtime.block_on(cut_and_break(&mut clients.borrow_mut(), &plan, &id));
    });
    drop(clients);
    runtime.block_on(async { drop(server) });
}

async fn cut_and_break(clients: &mut Clients, plan: &Plan, id: &str) {
    let bytes = content(plan.size);
    let metadata = described("a", &bytes, id);
    for (size, count) in &plan.tries {
        let from = match clients.progress(id).await {
            Ok(upload) => upload.committed_offset as usize,
            Err(_) => 0,
        };
        // Half-closed too early: what came is kept.
        let mut parts = vec![first(metadata.clone())];
        parts.extend(chunks(&bytes, from, *size).into_iter().take(*count));
        match send(&mut clients.service, parts).await {
            Ok(stored) => assert_eq!(stored.bytes_uploaded, plan.size as i64),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status:?}"),
        }
    }
    let from = match clients.progress(id).await {
        Ok(upload) => upload.committed_offset as usize,
        Err(_) => 0,
    };
    let mut parts = vec![first(metadata)];
    parts.extend(chunks(&bytes, from, plan.last));
    let stored = send(&mut clients.service, parts).await.unwrap();
    assert!(stored.checksum_verified);
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes, "{plan:?}");
    let (from, length) = plan.range;
    let until = match length {
        0 => plan.size,
        length => (from + length).min(plan.size),
    };
    let (_, received) = fetch(&mut clients.service, &stored.file_id, from, length).await;
    assert!(received == bytes[from..until], "{plan:?}");
}
