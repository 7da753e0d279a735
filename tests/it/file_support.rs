//! Clients of files and what they send, for the tests of every store.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use weir::proto::{
    streaming::data_service_client::DataServiceClient,
    streaming::v1::{
        DownloadFileRequest, FileChunk, FileMetadata, UploadFileResponse, file_chunk::Data,
        streaming_service_client::StreamingServiceClient,
    },
    weir::v1::{
        File, GetFileRequest, GetUploadRequest, ListFilesRequest, Upload, files_client::FilesClient,
    },
};

use crate::support::{TestServer, next, soon};

/// A chunk as the tutorials cut it.
pub(crate) const CHUNK: usize = 64 * 1024;
pub(crate) const MIB: usize = 1024 * 1024;

pub(crate) type Service = StreamingServiceClient<Channel>;

/// The clients of one server.
pub(crate) struct Clients {
    pub(crate) service: Service,
    pub(crate) data: DataServiceClient<Channel>,
    pub(crate) files: FilesClient<Channel>,
}

impl Clients {
    pub(crate) async fn of(server: &TestServer) -> Self {
        let channel = server.channel().await;
        Self {
            service: StreamingServiceClient::new(channel.clone()),
            data: DataServiceClient::new(channel.clone()),
            files: FilesClient::new(channel),
        }
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<File, Status> {
        let request = GetFileRequest { file_id: id.into() };
        Ok(self.files.get_file(request).await?.into_inner())
    }

    pub(crate) async fn progress(&mut self, id: &str) -> Result<Upload, Status> {
        let request = GetUploadRequest {
            upload_id: id.into(),
        };
        Ok(self.files.get_upload(request).await?.into_inner())
    }

    pub(crate) async fn count(&mut self) -> usize {
        let listed = self.files.list_files(ListFilesRequest::default()).await;
        listed.unwrap().into_inner().files.len()
    }
}

/// Bytes that look random and are the same every time.
pub(crate) fn content(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    })
    .take(size)
    .collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Metadata of `bytes`, with everything said.
pub(crate) fn described(name: &str, bytes: &[u8], upload_id: &str) -> FileMetadata {
    FileMetadata {
        filename: name.into(),
        total_size: bytes.len() as i64,
        content_type: "text/x-test".into(),
        checksum: sha256(bytes),
        upload_id: upload_id.into(),
    }
}

pub(crate) fn first(metadata: FileMetadata) -> FileChunk {
    FileChunk {
        data: Some(Data::Metadata(metadata)),
        ..FileChunk::default()
    }
}

pub(crate) fn chunk(bytes: &[u8], offset: usize) -> FileChunk {
    FileChunk {
        data: Some(Data::Chunk(Bytes::copy_from_slice(bytes))),
        offset: offset as i64,
        size: bytes.len() as i64,
    }
}

/// The chunks of `bytes` from `from` on.
pub(crate) fn chunks(bytes: &[u8], from: usize, size: usize) -> Vec<FileChunk> {
    let parts = bytes[from..].chunks(size).enumerate();
    parts
        .map(|(index, part)| chunk(part, from + index * size))
        .collect()
}

/// A whole upload.
pub(crate) fn whole(metadata: FileMetadata, bytes: &[u8]) -> Vec<FileChunk> {
    let mut all = vec![first(metadata)];
    all.extend(chunks(bytes, 0, CHUNK));
    all
}

pub(crate) async fn send(
    service: &mut Service,
    parts: Vec<FileChunk>,
) -> Result<UploadFileResponse, Status> {
    let sent = soon("an answer", service.upload_file(tokio_stream::iter(parts))).await;
    sent.map(tonic::Response::into_inner)
}

/// Stores `bytes` under `name`.
pub(crate) async fn store(clients: &mut Clients, name: &str, bytes: &[u8]) -> UploadFileResponse {
    let parts = whole(described(name, bytes, ""), bytes);
    send(&mut clients.service, parts).await.unwrap()
}

/// An upload whose stream stays open.
pub(crate) struct Open {
    pub(crate) parts: mpsc::Sender<FileChunk>,
    pub(crate) call: JoinHandle<Result<UploadFileResponse, Status>>,
}

impl Open {
    pub(crate) fn begin(service: &Service, metadata: FileMetadata) -> Self {
        let (parts, receiver) = mpsc::channel(1);
        let mut service = service.clone();
        let call = tokio::spawn(async move {
            let sent = service.upload_file(ReceiverStream::new(receiver)).await;
            sent.map(tonic::Response::into_inner)
        });
        let open = Self { parts, call };
        open.parts.try_send(first(metadata)).unwrap();
        open
    }

    pub(crate) async fn send(&self, parts: Vec<FileChunk>) {
        for part in parts {
            soon("room for a chunk", self.parts.send(part))
                .await
                .unwrap();
        }
    }

    pub(crate) fn abort(&self) -> AbortHandle {
        self.call.abort_handle()
    }

    /// Breaks the call as a client that goes away does.
    pub(crate) async fn break_off(self) {
        self.abort().abort();
        let _ = self.call.await;
    }

    pub(crate) async fn outcome(self) -> Result<UploadFileResponse, Status> {
        drop(self.parts);
        soon("an answer", self.call).await.unwrap()
    }
}

pub(crate) async fn open_download(
    service: &mut Service,
    id: &str,
    offset: i64,
    length: i64,
) -> Result<Streaming<FileChunk>, Status> {
    let request = DownloadFileRequest {
        file_id: id.into(),
        offset,
        length,
    };
    Ok(service.download_file(request).await?.into_inner())
}

/// A download's metadata and content; every chunk's offset and size are checked.
pub(crate) async fn fetch(
    service: &mut Service,
    id: &str,
    offset: usize,
    length: usize,
) -> (FileMetadata, Vec<u8>) {
    let stream = open_download(service, id, offset as i64, length as i64).await;
    let mut stream = stream.unwrap();
    let Some(Data::Metadata(metadata)) = next(&mut stream).await.data else {
        panic!("metadata comes first");
    };
    let mut bytes = Vec::new();
    while let Some(part) = soon("a chunk", stream.message()).await.unwrap() {
        let Some(Data::Chunk(piece)) = part.data else {
            panic!("a chunk comes");
        };
        assert_eq!(part.offset, (offset + bytes.len()) as i64);
        assert_eq!(part.size, piece.len() as i64);
        assert!(piece.len() <= CHUNK);
        bytes.extend_from_slice(&piece);
    }
    (metadata, bytes)
}
