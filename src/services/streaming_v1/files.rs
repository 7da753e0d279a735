//! `UploadFile` and `DownloadFile`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::v1::{DownloadFileRequest, FileChunk, UploadFileResponse},
    services::{Core, Responses},
};

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn upload(
    _core: &Core,
    _request: Request<Streaming<FileChunk>>,
) -> Result<Response<UploadFileResponse>, Status> {
    Err(Status::unimplemented("not served yet"))
}

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn download(
    _core: &Core,
    _request: Request<DownloadFileRequest>,
) -> Result<Response<Responses<FileChunk>>, Status> {
    Err(Status::unimplemented("not served yet"))
}
