//! `Chat`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::v1::ChatMessage,
    services::{Core, Responses},
};

pub(super) fn chat(
    _core: &Core,
    _request: Request<Streaming<ChatMessage>>,
) -> Result<Response<Responses<ChatMessage>>, Status> {
    Err(Status::unimplemented("not served yet"))
}
