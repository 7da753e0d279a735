//! `SubscribeToNotifications`.

use crate::services::{Core, live::WithLive};

/// Adds the method to the service.
pub(super) fn add<S>(service: WithLive<S>, _core: &Core) -> WithLive<S> {
    service
}
