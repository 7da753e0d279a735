//! `GetData` and `SubscribeData`.

use tonic::{Request, Response, Status};

use crate::{
    proto::streaming::{StreamRequest, StreamResponse},
    services::{Core, Responses},
};

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn get(
    _core: &Core,
    _request: Request<StreamRequest>,
) -> Result<Response<StreamResponse>, Status> {
    Err(Status::unimplemented("not served yet"))
}

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn subscribe(
    _core: &Core,
    _request: Request<StreamRequest>,
) -> Result<Response<Responses<StreamResponse>>, Status> {
    Err(Status::unimplemented("not served yet"))
}
