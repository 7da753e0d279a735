//! `UploadFile`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::{FileMetadata, UploadRequest, UploadResponse, upload_request::Payload},
    services::{
        Core,
        files::{self, Meta, Part},
    },
};

pub(super) async fn upload(
    core: &Core,
    request: Request<Streaming<UploadRequest>>,
) -> Result<Response<UploadResponse>, Status> {
    let stored = files::receive(core, request.into_inner(), part).await?;
    Ok(Response::new(UploadResponse {
        file_id: stored.info.id.to_string(),
        bytes_received: i64::try_from(stored.info.size).unwrap_or(i64::MAX),
        checksum: stored.info.sha256,
    }))
}

fn part(request: UploadRequest) -> Option<Part> {
    Some(match request.payload? {
        Payload::Metadata(metadata) => Part::Meta(metadata.into()),
        Payload::Chunk(bytes) => Part::Chunk {
            bytes,
            offset: None,
            size: 0,
        },
    })
}

impl From<FileMetadata> for Meta {
    fn from(metadata: FileMetadata) -> Self {
        Self {
            filename: metadata.filename,
            content_type: metadata.content_type,
            total_size: metadata.total_size,
            checksum: String::new(),
            upload_id: metadata.upload_id,
            // The chunks carry none.
            offset: Some(metadata.offset),
        }
    }
}
