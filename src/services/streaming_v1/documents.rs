//! `Collaborate`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::v1::CollaborationEvent,
    services::{Core, Responses},
};

pub(super) fn collaborate(
    _core: &Core,
    _request: Request<Streaming<CollaborationEvent>>,
) -> Result<Response<Responses<CollaborationEvent>>, Status> {
    Err(Status::unimplemented("not served yet"))
}
