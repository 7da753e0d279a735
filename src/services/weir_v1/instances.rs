//! `weir.v1.Instances`.

use tonic::{Request, Response, Status, service::Routes};

use crate::{
    call::into_status,
    log::Timestamp,
    peers::Description,
    proto::weir::v1::{
        Instance, InstanceState, ListInstancesRequest, ListInstancesResponse,
        instances_server::{Instances, InstancesServer},
    },
    services::{Core, check::timestamp},
};

/// Adds the service.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    routes.add_service(InstancesServer::new(Service { core: core.clone() }))
}

/// The service.
struct Service {
    core: Core,
}

#[tonic::async_trait]
impl Instances for Service {
    async fn list_instances(
        &self,
        _: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let listed = self.core.instances.list().await.map_err(into_status)?;
        Ok(Response::new(ListInstancesResponse {
            instances: listed.into_iter().map(Instance::from).collect(),
            answered_by: self.core.instance.id().to_owned(),
        }))
    }
}

impl From<Description> for Instance {
    fn from(told: Description) -> Self {
        let state = match (told.is_draining, told.reasons.is_empty()) {
            (true, _) => InstanceState::Draining,
            (false, false) => InstanceState::NotReady,
            (false, true) => InstanceState::Ready,
        };
        Self {
            instance_id: told.id,
            version: told.version,
            started: Some(timestamp(Timestamp(told.started).into())),
            state: state.into(),
            reasons: told.reasons,
            active_streams: i64::try_from(told.streams).unwrap_or(i64::MAX),
            grpc_addresses: told.grpc,
        }
    }
}
