//! Files on S3: a real server of that protocol (moto) behind a real Weir.

use std::{net::SocketAddr, process::Stdio};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use tonic::Code;
use weir::proto::{
    streaming::v1::FileMetadata,
    weir::v1::{DeleteFileRequest, ListFilesRequest},
};

use crate::{
    file_support::{CHUNK, Clients, MIB, Open, chunks, content, described, fetch, first, send},
    support::{
        Settings, TestServer,
        errors::info,
        eventually,
        server::{http_get, lasting_address},
    },
    tools::tool,
};

/// What Weir sends as one part.
const PART: usize = 8 * MIB;
/// Creates the bucket and, asked for it, tells what is in it: objects, then multipart uploads under way.
const BUCKET: &str = "import boto3, sys\n\
    s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id='a', \
    aws_secret_access_key='b')\n\
    if len(sys.argv) > 2: s3.create_bucket(Bucket='weir')\n\
    else:\n\
    \x20   print(*[o['Key'] for o in s3.list_objects_v2(Bucket='weir').get('Contents', [])])\n\
    \x20   print(len(s3.list_multipart_uploads(Bucket='weir').get('Uploads', [])))";

struct S3 {
    _process: Child,
    address: SocketAddr,
}

impl S3 {
    async fn start() -> Self {
        let address = lasting_address();
        let process = Command::new(tool("python"))
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p"])
            .arg(address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("S3", || async { TcpStream::connect(address).await.ok() }).await;
        let this = Self {
            _process: process,
            address,
        };
        this.python(&["create"]).await;
        this
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn python(&self, args: &[&str]) -> String {
        let done = Command::new(tool("python"))
            .args(["-c", BUCKET, &self.endpoint()])
            .args(args)
            .output()
            .await
            .unwrap();
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{error}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// The keys in the bucket and how many multipart uploads are under way.
    async fn content(&self) -> (Vec<String>, String) {
        let text = self.python(&[]).await;
        let (keys, uploads) = text.trim_end().rsplit_once('\n').unwrap_or(("", &text));
        let keys = keys.split_whitespace().map(str::to_owned).collect();
        (keys, uploads.trim().to_owned())
    }

    fn settings(&self) -> Settings {
        Settings::default()
            .set("files.store", "s3://weir/some/prefix")
            .env("AWS_ENDPOINT", &self.endpoint())
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b")
            .env("AWS_REGION", "us-east-1")
    }
}

/// Sends the bytes of `range`, and the end of the stream.
async fn send_range(
    clients: &mut Clients,
    metadata: &FileMetadata,
    bytes: &[u8],
    range: std::ops::Range<usize>,
) -> Result<weir::proto::streaming::v1::UploadFileResponse, tonic::Status> {
    let mut parts = vec![first(metadata.clone())];
    parts.extend(chunks(&bytes[..range.end], range.start, CHUNK));
    send(&mut clients.service, parts).await
}

#[tokio::test]
async fn files_live_on_s3_and_uploads_go_on_from_their_last_part() {
    let s3 = S3::start().await;
    let server = TestServer::with(s3.settings()).await;
    let mut clients = Clients::of(&server).await;

    // Smaller than a part, empty, and of several parts.
    for size in [10, 0, 2 * PART + 12_345] {
        let bytes = content(size);
        let metadata = described("a", &bytes, "");
        let sent = send_range(&mut clients, &metadata, &bytes, 0..size).await;
        let stored = sent.unwrap();
        assert!(stored.checksum_verified);
        let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
        assert!(received == bytes, "{size}");
        if size > 1000 {
            let part = fetch(&mut clients.service, &stored.file_id, 1000, 100_000);
            let (_, part) = part.await;
            assert!(part == bytes[1000..101_000]);
            let response = http_get(server.http(), &format!("/files/{}", stored.file_id)).await;
            assert!(response.starts_with("HTTP/1.1 200"), "{response:.100}");
        }
        let file_id = stored.file_id;
        let request = DeleteFileRequest { file_id };
        clients.files.delete_file(request).await.unwrap();
    }
    assert_eq!(s3.content().await, (vec![], "0".into()));

    // Broken after two parts and some: the parts stay, through a restart.
    let bytes = content(3 * PART + 777);
    let metadata = described("a", &bytes, "up-1");
    let broken = send_range(&mut clients, &metadata, &bytes, 0..2 * PART + 100_000).await;
    assert_eq!(broken.unwrap_err().code(), Code::InvalidArgument);
    let upload = clients.progress("up-1").await.unwrap();
    assert_eq!(upload.committed_offset, 2 * PART as i64);
    let server = server.restart().await;
    let mut clients = Clients::of(&server).await;
    let upload = clients.progress("up-1").await.unwrap();
    assert_eq!(upload.committed_offset, 2 * PART as i64);
    let sent = send_range(&mut clients, &metadata, &bytes, 2 * PART..bytes.len()).await;
    let stored = sent.unwrap();
    assert!(stored.checksum_verified);
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    let again = send_range(&mut clients, &metadata, &bytes, 0..bytes.len()).await;
    assert_eq!(again.unwrap().file_id, stored.file_id);
    let listed = clients.files.list_files(ListFilesRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().files.len(), 1);

    // What is refused leaves no part behind.
    let wrong = FileMetadata {
        checksum: "0".repeat(64),
        ..described("a", &bytes, "")
    };
    let refused = send_range(&mut clients, &wrong, &bytes, 0..bytes.len()).await;
    assert_eq!(refused.unwrap_err().code(), Code::DataLoss);
    let (keys, uploads) = s3.content().await;
    assert_eq!(uploads, "0", "{keys:?}");
    let kinds: Vec<_> = keys
        .iter()
        .filter_map(|key| key.split('/').nth(2))
        .collect();
    assert_eq!(kinds, ["blobs", "done", "meta"], "{keys:?}");
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_hinders_nothing_else() {
    let s3 = S3::start().await;
    let away = s3.settings().env("AWS_ENDPOINT", "http://127.0.0.1:1");
    let server = TestServer::with(away).await;
    let mut clients = Clients::of(&server).await;
    let bytes = content(10);
    let metadata = described("a", &bytes, "");
    let refused = send_range(&mut clients, &metadata, &bytes, 0..10).await;
    let status = refused.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the file storage is not available now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_on_the_bucket_takes_an_upload_over() {
    let s3 = S3::start().await;
    let one = TestServer::with(s3.settings()).await;
    let two = TestServer::with(s3.settings().set("server.instance_id", "two")).await;
    let bytes = content(3 * PART + 777);
    let metadata = described("a", &bytes, "up-1");
    let first_one = Open::begin(&Clients::of(&one).await.service, metadata.clone());
    let parts = chunks(&bytes, 0, CHUNK);
    first_one.send(parts[..PART / CHUNK + 1].to_vec()).await;
    let mut clients = Clients::of(&two).await;
    eventually("a part to be committed", || async {
        let upload = Clients::of(&two).await.progress("up-1").await.ok()?;
        (upload.committed_offset == PART as i64).then_some(())
    })
    .await;
    // The first is still there; what it sends next ends it.
    let sent = send_range(&mut clients, &metadata, &bytes, PART..bytes.len()).await;
    let stored = sent.unwrap();
    for part in &parts[PART / CHUNK + 1..] {
        if first_one.parts.send(part.clone()).await.is_err() {
            break;
        }
    }
    let status = first_one.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(info(&status).0, "SUPERSEDED");
    let (_, received) = fetch(&mut clients.service, &stored.file_id, 0, 0).await;
    assert!(received == bytes);
    let listed = clients.files.list_files(ListFilesRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().files.len(), 1);
    let (keys, uploads) = s3.content().await;
    assert_eq!((keys.len(), &*uploads), (3, "0"), "{keys:?}");
}
