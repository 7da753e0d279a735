//! `CollectMetrics`.

use tonic::{Request, Response, Status, Streaming};

use crate::{
    proto::streaming::v1::{MetricData, MetricsCollectionResult},
    services::Core,
};

#[allow(clippy::unused_async, reason = "not served yet")]
pub(super) async fn collect(
    _core: &Core,
    _request: Request<Streaming<MetricData>>,
) -> Result<Response<MetricsCollectionResult>, Status> {
    Err(Status::unimplemented("not served yet"))
}
