//! `UploadFile` and `DownloadFile`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    call::into_status,
    proto::streaming::v1::{
        DownloadFileRequest, FileChunk, FileMetadata, UploadFileResponse, file_chunk,
    },
    services::{
        Core,
        check::Check,
        files::{self, Meta, Part},
        live::WithLive,
    },
};

/// Adds `DownloadFile`, whose body is made of frames of its own.
pub(super) fn add<S>(with_live: WithLive<S>, core: &Core) -> WithLive<S> {
    let core = core.clone();
    with_live.frames(
        "/streaming.v1.StreamingService/DownloadFile",
        move |request: DownloadFileRequest, call| {
            let core = core.clone();
            async move {
                let (id, from, length) = range(request).map_err(into_status)?;
                let content = core.files.read(&id, from, length).await;
                Ok(files::download(
                    &core.files,
                    content.map_err(into_status)?,
                    call,
                ))
            }
        },
    )
}

fn range(request: DownloadFileRequest) -> Result<(String, u64, Option<u64>), crate::core::Error> {
    let mut check = Check::new(&"");
    let id = check.name("file_id", request.file_id.as_str());
    let mut number = |field, value| {
        if value < 0 {
            check.refuse(field, format!("{field} must not be negative"));
        }
        u64::try_from(value).unwrap_or_default()
    };
    let from = number("offset", request.offset);
    let length = number("length", request.length);
    let length = (length > 0).then_some(length);
    check.finish(id.map(|_| (request.file_id, from, length)))
}

pub(super) async fn upload(
    core: &Core,
    request: Request<Streaming<FileChunk>>,
) -> Result<Response<UploadFileResponse>, Status> {
    let stored = files::receive(core, request.into_inner(), part).await?;
    Ok(Response::new(UploadFileResponse {
        file_id: stored.info.id.to_string(),
        bytes_uploaded: i64::try_from(stored.info.size).unwrap_or(i64::MAX),
        download_url: core.files.url(stored.info.id),
        checksum_verified: stored.is_verified,
    }))
}

fn part(chunk: FileChunk) -> Option<Part> {
    let FileChunk { data, offset, size } = chunk;
    Some(match data? {
        file_chunk::Data::Metadata(metadata) => Part::Meta(metadata.into()),
        file_chunk::Data::Chunk(bytes) => Part::Chunk {
            bytes,
            offset: Some(offset),
            size,
        },
    })
}

impl From<FileMetadata> for Meta {
    fn from(metadata: FileMetadata) -> Self {
        Self {
            filename: metadata.filename,
            content_type: metadata.content_type,
            total_size: metadata.total_size,
            checksum: metadata.checksum,
            upload_id: metadata.upload_id,
            offset: None,
        }
    }
}
