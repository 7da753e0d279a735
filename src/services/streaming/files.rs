//! `UploadFile`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::{UploadRequest, UploadResponse},
    services::Core,
};

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn upload(
    _core: &Core,
    _request: Request<Streaming<UploadRequest>>,
) -> Result<Response<UploadResponse>, Status> {
    Err(Status::unimplemented("not served yet"))
}
