//! Files: uploads and downloads that go on by themselves where they broke.

use std::{
    io::{self, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{Client, Retry};
use crate::{
    blob::hex,
    proto::{
        streaming::v1::{
            DownloadFileRequest, FileChunk, FileMetadata, UploadFileResponse, file_chunk::Data,
        },
        weir::v1::{
            self as wire, DeleteFileRequest, GetUploadRequest, ListFilesRequest, ListFilesResponse,
            files_client::FilesClient,
        },
    },
};

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes read from a local file together.
const READ_BYTES: usize = 1024 * 1024;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The local file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server, after the repetitions that make sense.
    #[error("{0}")]
    Status(#[from] Status),
    /// What arrived is not what the server says it stores.
    #[error("what arrived does not match the file's checksum")]
    Checksum,
}

/// What happens during a transfer.
#[derive(Debug)]
pub enum Transfer<'a> {
    /// So many bytes are through, of so many.
    Progress {
        /// Bytes that are through, those of earlier tries included.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// The stream broke and goes on after a wait.
    Reconnecting {
        /// The wait.
        delay: std::time::Duration,
        /// What broke it.
        cause: &'a Status,
    },
}

/// What to upload, and as what.
#[derive(Debug, Clone, Default)]
pub struct FileUpload {
    /// The local file.
    pub path: PathBuf,
    /// Its name on the server.
    pub name: String,
    /// Its media type; empty: octets.
    pub content_type: String,
    /// Names the upload; empty: a name made of the metadata and the content, so that the same upload is found again.
    pub upload_id: String,
}

impl Client {
    /// Uploads a file and returns once it is stored. A broken stream goes on from the committed offset, also one of an
    /// earlier process; the SHA-256 is computed first and compared by the server. Repeating a complete upload gives the
    /// stored file.
    ///
    /// # Errors
    /// The local file cannot be read, a permanent status, or the last one when repetitions without progress are used up.
    ///
    /// # Cancellation
    /// Dropping the future leaves an upload to go on from.
    pub async fn upload_file(
        &self,
        upload: &FileUpload,
        mut observer: impl FnMut(Transfer<'_>),
    ) -> Result<UploadFileResponse, TransferError> {
        let metadata = describe(upload).await?;
        let mut retry = self.publish_retry();
        let mut before = 0;
        loop {
            let tried = self.try_upload(upload, &metadata, &mut observer).await;
            let (offset, status) = match tried {
                Ok(stored) => return Ok(stored),
                Err(Broken::Local(error)) => return Err(error.into()),
                Err(Broken::Remote(offset, status)) => (offset, status),
            };
            if offset > before {
                before = offset;
                retry.reset();
            }
            pause(&mut retry, status, &mut observer).await?;
        }
    }

    async fn try_upload(
        &self,
        upload: &FileUpload,
        metadata: &FileMetadata,
        observer: &mut impl FnMut(Transfer<'_>),
    ) -> Result<UploadFileResponse, Broken> {
        let from = match self.committed(&metadata.upload_id).await {
            Ok(offset) => offset,
            Err(status) => return Err(Broken::Remote(0, status)),
        };
        let total = metadata.total_size.unsigned_abs();
        let (sent, failed) = (Arc::new(Mutex::new(from)), Arc::new(Mutex::new(None)));
        let mut file = File::open(&upload.path).await?;
        file.seek(SeekFrom::Start(from)).await?;
        let parts = parts(
            file,
            metadata.clone(),
            from,
            Arc::clone(&sent),
            Arc::clone(&failed),
        );
        let mut service = self.streaming();
        let mut call = std::pin::pin!(service.upload_file(parts));
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
        let answer = loop {
            tokio::select! {
                answer = &mut call => break answer,
                _ = ticks.tick() => observer(Transfer::Progress { done: *lock(&sent), total }),
            }
        };
        if let Some(error) = lock(&failed).take() {
            return Err(Broken::Local(error));
        }
        match answer {
            Ok(stored) => {
                observer(Transfer::Progress { done: total, total });
                Ok(stored.into_inner())
            }
            // The offset moved between the question and the answer: asked again.
            Err(status) if is_wrong_offset(&status) => {
                Err(Broken::Remote(from, Status::aborted(status.message())))
            }
            Err(status) => Err(Broken::Remote(from, status)),
        }
    }

    /// From where an upload goes on.
    async fn committed(&self, upload_id: &str) -> Result<u64, Status> {
        let request = GetUploadRequest {
            upload_id: upload_id.to_owned(),
        };
        match self.files().get_upload(request).await {
            Ok(upload) => Ok(upload.into_inner().committed_offset.unsigned_abs()),
            Err(status) if status.code() == Code::NotFound => Ok(0),
            Err(status) => Err(status),
        }
    }

    /// Downloads a file to `partial` and returns its metadata once all of it is there, flushed and compared with its
    /// SHA-256. What is in `partial` already is taken for its beginning, so that a broken download of an earlier process
    /// goes on.
    ///
    /// # Errors
    /// The local file cannot be written, a permanent status, the last one when repetitions without progress are used up, or
    /// [`TransferError::Checksum`]; then `partial` is emptied.
    ///
    /// # Cancellation
    /// Dropping the future leaves the beginning of the file in `partial`.
    pub async fn download_file(
        &self,
        id: &str,
        partial: &Path,
        mut observer: impl FnMut(Transfer<'_>),
    ) -> Result<FileMetadata, TransferError> {
        let mut target = Target::open(partial).await?;
        let began_with = target.written;
        let mut retry = self.publish_retry();
        loop {
            let before = target.written;
            let status = match self.try_download(id, &mut target, &mut observer).await {
                Ok(metadata) if target.matches(&metadata) => {
                    target.file.sync_all().await?;
                    return Ok(metadata);
                }
                Ok(_) if began_with > 0 && before > 0 => {
                    // The beginning was of something else.
                    target.clear().await?;
                    continue;
                }
                Ok(_) => {
                    target.clear().await?;
                    return Err(TransferError::Checksum);
                }
                Err(Broken::Local(error)) => return Err(error.into()),
                Err(Broken::Remote(_, status)) => status,
            };
            if status.code() == Code::OutOfRange && target.written > 0 {
                target.clear().await?;
                continue;
            }
            if target.written > before {
                retry.reset();
            }
            pause(&mut retry, status, &mut observer).await?;
        }
    }

    async fn try_download(
        &self,
        id: &str,
        target: &mut Target,
        observer: &mut impl FnMut(Transfer<'_>),
    ) -> Result<FileMetadata, Broken> {
        let request = DownloadFileRequest {
            file_id: id.to_owned(),
            offset: i64::try_from(target.written).unwrap_or(i64::MAX),
            length: 0,
        };
        let remote = |status| Broken::Remote(0, status);
        let call = self.streaming().download_file(request).await;
        let mut stream = call.map_err(remote)?.into_inner();
        let first = stream.message().await.map_err(remote)?;
        let Some(Data::Metadata(metadata)) = first.and_then(|first| first.data) else {
            return Err(remote(Status::internal("the file's metadata did not come")));
        };
        let total = metadata.total_size.unsigned_abs();
        while let Some(chunk) = stream.message().await.map_err(remote)? {
            let Some(Data::Chunk(bytes)) = chunk.data else {
                continue;
            };
            if chunk.offset.unsigned_abs() != target.written {
                return Err(remote(Status::internal("a chunk is out of place")));
            }
            target.write(&bytes).await?;
            observer(Transfer::Progress {
                done: target.written,
                total,
            });
        }
        match target.written < total {
            true => Err(remote(Status::unavailable("the file ended too early"))),
            false => Ok(metadata),
        }
    }

    /// A file's description. Failed tries are repeated.
    ///
    /// # Errors
    /// A permanent status, or the last one when the repetitions are used up.
    pub async fn file(&self, id: &str) -> Result<wire::File, Status> {
        let call = || {
            let (mut files, file_id) = (self.files(), id.to_owned());
            async move { files.get_file(wire::GetFileRequest { file_id }).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// A page of files, newest first. Failed tries are repeated.
    ///
    /// # Errors
    /// As [`Client::file`].
    pub async fn list_files(
        &self,
        page_size: i32,
        page_token: &str,
    ) -> Result<ListFilesResponse, Status> {
        let call = || {
            let mut files = self.files();
            let request = ListFilesRequest {
                page_size,
                page_token: page_token.to_owned(),
            };
            async move { files.list_files(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Deletes a file. Not repeated: the second try would not find it.
    ///
    /// # Errors
    /// Any status; unless it is permanent, it is unknown whether the file is deleted.
    pub async fn delete_file(&self, id: &str) -> Result<(), Status> {
        let request = DeleteFileRequest {
            file_id: id.to_owned(),
        };
        self.files().delete_file(request).await.map(drop)
    }

    fn files(&self) -> FilesClient<Channel> {
        FilesClient::new(self.channel())
    }
}

/// How one try ends.
enum Broken {
    Local(io::Error),
    /// The offset it went on from, and the status.
    Remote(u64, Status),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the status only says that the upload goes on elsewhere.
fn is_wrong_offset(status: &Status) -> bool {
    let bad = status.get_details_bad_request();
    bad.is_some_and(|bad| bad.field_violations.iter().any(|one| one.field == "offset"))
}

/// Waits before the next try, if there shall be one. Whoever was superseded does not fight.
async fn pause(
    retry: &mut Retry,
    status: Status,
    observer: &mut impl FnMut(Transfer<'_>),
) -> Result<(), TransferError> {
    let info = status.get_details_error_info();
    let is_superseded = info.is_some_and(|info| info.reason == "SUPERSEDED");
    let delay = match is_superseded {
        true => None,
        false => retry.next_delay(&status),
    };
    let Some(delay) = delay else {
        return Err(status.into());
    };
    observer(Transfer::Reconnecting {
        delay,
        cause: &status,
    });
    retry.timing().sleep(delay).await;
    Ok(())
}

/// The metadata of a local file: it is read once for its checksum.
async fn describe(upload: &FileUpload) -> io::Result<FileMetadata> {
    let path = upload.path.clone();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(path)?;
        let mut hasher = Sha256::new();
        let size = io::copy(&mut file, &mut HashWriter(&mut hasher))?;
        Ok::<_, io::Error>((size, hex(&hasher.finalize())))
    });
    let (size, checksum) = hashed.await.map_err(io::Error::other)??;
    let upload_id = match upload.upload_id.as_str() {
        "" => {
            let text = format!("{}\0{}\0{checksum}", upload.name, upload.content_type);
            format!("weir-{}", hex(&Sha256::digest(text)))
        }
        given => given.to_owned(),
    };
    Ok(FileMetadata {
        filename: upload.name.clone(),
        total_size: i64::try_from(size).unwrap_or(i64::MAX),
        content_type: upload.content_type.clone(),
        checksum,
        upload_id,
    })
}

/// Hashes what is written to it.
struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The messages of an upload: the metadata, then the content from `offset` on. `sent` tells how far it is; what goes wrong
/// with the file ends the stream and is left in `failed`.
fn parts(
    file: File,
    metadata: FileMetadata,
    offset: u64,
    sent: Arc<Mutex<u64>>,
    failed: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = FileChunk> + Send + 'static {
    struct Reading {
        file: File,
        offset: u64,
        piece: Bytes,
    }
    let first = FileChunk {
        data: Some(Data::Metadata(metadata)),
        ..FileChunk::default()
    };
    let reading = Reading {
        file,
        offset,
        piece: Bytes::new(),
    };
    let chunks = stream::unfold(reading, move |mut reading| {
        let (sent, failed) = (Arc::clone(&sent), Arc::clone(&failed));
        async move {
            if reading.piece.is_empty() {
                let mut piece = BytesMut::with_capacity(READ_BYTES);
                if let Err(error) = reading.file.read_buf(&mut piece).await {
                    *lock(&failed) = Some(error);
                    return None;
                }
                reading.piece = piece.freeze();
            }
            let length = reading.piece.len().min(CHUNK_BYTES);
            let chunk = reading.piece.split_to(length);
            if chunk.is_empty() {
                return None;
            }
            let part = FileChunk {
                offset: i64::try_from(reading.offset).unwrap_or(i64::MAX),
                size: i64::try_from(length).unwrap_or(i64::MAX),
                data: Some(Data::Chunk(chunk)),
            };
            reading.offset += length as u64;
            *lock(&sent) = reading.offset;
            Some((part, reading))
        }
    });
    futures::StreamExt::chain(stream::iter([first]), chunks)
}

/// The local file of a download.
struct Target {
    file: File,
    written: u64,
    hasher: Sha256,
}

impl Target {
    /// Opens the file and hashes what is there.
    async fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .await?;
        let mut hasher = Sha256::new();
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut written = 0;
        while file.read_buf(&mut buffer).await? > 0 {
            hasher.update(&buffer);
            written += buffer.len() as u64;
            buffer.clear();
        }
        Ok(Self {
            file,
            written,
            hasher,
        })
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn matches(&self, metadata: &FileMetadata) -> bool {
        hex(&self.hasher.clone().finalize()) == metadata.checksum
    }

    async fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0).await?;
        self.written = 0;
        self.hasher = Sha256::new();
        Ok(())
    }
}
