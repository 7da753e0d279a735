//! `ProcessDataBatch`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::v1::{BatchProcessingResult, DataRecord},
    services::Core,
};

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn process(
    _core: &Core,
    _request: Request<Streaming<DataRecord>>,
) -> Result<Response<BatchProcessingResult>, Status> {
    Err(Status::unimplemented("not served yet"))
}
