//! Files on S3: a real server of that protocol (moto) behind a real Weir.

use std::{net::SocketAddr, process::Stdio};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use tonic::{Code, Status, transport::Channel};
use weir::proto::{
    streaming::v1::{
        DownloadFileRequest, FileChunk, FileMetadata, UploadFileResponse, file_chunk::Data,
        streaming_service_client::StreamingServiceClient,
    },
    weir::v1::{
        DeleteFileRequest, GetUploadRequest, ListFilesRequest, Upload, files_client::FilesClient,
    },
};

use crate::{
    support::{
        Settings, TestServer, eventually, next,
        server::{http_get, lasting_address},
        soon,
    },
    tools::tool,
};

const MIB: usize = 1024 * 1024;
const CHUNK: usize = 64 * 1024;
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

struct Clients {
    service: StreamingServiceClient<Channel>,
    files: FilesClient<Channel>,
}

impl Clients {
    async fn of(server: &TestServer) -> Self {
        let channel = server.channel().await;
        Self {
            service: StreamingServiceClient::new(channel.clone()),
            files: FilesClient::new(channel),
        }
    }

    async fn send(
        &mut self,
        metadata: &FileMetadata,
        bytes: &[u8],
        range: std::ops::Range<usize>,
    ) -> Result<UploadFileResponse, Status> {
        let first = FileChunk {
            data: Some(Data::Metadata(metadata.clone())),
            ..FileChunk::default()
        };
        let from = range.start;
        let chunks = bytes[range].chunks(CHUNK).enumerate();
        let chunks = chunks.map(|(index, part)| FileChunk {
            data: Some(Data::Chunk(Bytes::copy_from_slice(part))),
            offset: (from + index * CHUNK) as i64,
            size: part.len() as i64,
        });
        let parts: Vec<_> = std::iter::once(first).chain(chunks).collect();
        let sent = soon(
            "an answer",
            self.service.upload_file(tokio_stream::iter(parts)),
        )
        .await;
        sent.map(tonic::Response::into_inner)
    }

    async fn fetch(&mut self, id: &str, offset: i64, length: i64) -> Vec<u8> {
        let request = DownloadFileRequest {
            file_id: id.into(),
            offset,
            length,
        };
        let call = self.service.download_file(request).await.unwrap();
        let mut stream = call.into_inner();
        assert!(matches!(
            next(&mut stream).await.data,
            Some(Data::Metadata(_))
        ));
        let mut bytes = Vec::new();
        while let Some(part) = soon("a chunk", stream.message()).await.unwrap() {
            assert_eq!(part.offset, offset + bytes.len() as i64);
            if let Some(Data::Chunk(piece)) = part.data {
                bytes.extend_from_slice(&piece);
            }
        }
        bytes
    }

    async fn progress(&mut self, id: &str) -> Result<Upload, Status> {
        let request = GetUploadRequest {
            upload_id: id.into(),
        };
        Ok(self.files.get_upload(request).await?.into_inner())
    }
}

fn content(size: usize) -> Vec<u8> {
    (0..size)
        .map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8)
        .collect()
}

fn described(bytes: &[u8], upload_id: &str) -> FileMetadata {
    let digest = Sha256::digest(bytes);
    FileMetadata {
        filename: "a.bin".into(),
        total_size: bytes.len() as i64,
        content_type: "application/x-test".into(),
        checksum: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        upload_id: upload_id.into(),
    }
}

#[tokio::test]
async fn files_live_on_s3_and_uploads_go_on_from_their_last_part() {
    let s3 = S3::start().await;
    let server = TestServer::with(s3.settings()).await;
    let mut clients = Clients::of(&server).await;

    // Smaller than a part, empty, and of several parts.
    for size in [10, 0, 2 * PART + 12_345] {
        let bytes = content(size);
        let stored = clients
            .send(&described(&bytes, ""), &bytes, 0..size)
            .await
            .unwrap();
        assert!(stored.checksum_verified);
        assert!(
            clients.fetch(&stored.file_id, 0, 0).await == bytes,
            "{size}"
        );
        if size > 1000 {
            let part = clients.fetch(&stored.file_id, 1000, 100_000).await;
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
    let metadata = described(&bytes, "up-1");
    let broken = clients.send(&metadata, &bytes, 0..2 * PART + 100_000).await;
    assert_eq!(broken.unwrap_err().code(), Code::InvalidArgument);
    let upload = clients.progress("up-1").await.unwrap();
    assert_eq!(upload.committed_offset, 2 * PART as i64);
    let server = server.restart().await;
    let mut clients = Clients::of(&server).await;
    let upload = clients.progress("up-1").await.unwrap();
    assert_eq!(upload.committed_offset, 2 * PART as i64);
    let stored = clients
        .send(&metadata, &bytes, 2 * PART..bytes.len())
        .await
        .unwrap();
    assert!(stored.checksum_verified);
    assert!(clients.fetch(&stored.file_id, 0, 0).await == bytes);
    let again = clients.send(&metadata, &bytes, 0..bytes.len()).await;
    assert_eq!(again.unwrap().file_id, stored.file_id);
    let listed = clients.files.list_files(ListFilesRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().files.len(), 1);

    // What is refused leaves no part behind.
    let wrong = FileMetadata {
        checksum: "0".repeat(64),
        ..described(&bytes, "")
    };
    let refused = clients.send(&wrong, &bytes, 0..bytes.len()).await;
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
    let refused = clients.send(&described(&bytes, ""), &bytes, 0..10).await;
    let status = refused.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the file storage is not available now");
}
