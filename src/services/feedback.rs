//! `FeedbackService`, `weir.v1.FeedbackDesk` and `weir.v1.Feedback`.

use tonic::service::Routes;

use super::Core;

/// Adds the three services.
pub(super) fn add(routes: Routes, _core: &Core) -> Routes {
    routes
}
