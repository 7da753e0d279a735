//! `weir.v1.Files`.

use tonic::service::Routes;

use crate::services::Core;

/// Adds the service.
pub(super) fn add(routes: Routes, _core: &Core) -> Routes {
    routes
}
