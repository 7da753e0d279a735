//! `ProcessLiveData`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::v1::{DataInput, ProcessingResult},
    services::{Core, Responses},
};

pub(super) fn process(
    _core: &Core,
    _request: Request<Streaming<DataInput>>,
) -> Result<Response<Responses<ProcessingResult>>, Status> {
    Err(Status::unimplemented("not served yet"))
}
