//! The wire: one file for each proto service, from messages to the core and back.
//!
//! A handler validates in `TryFrom`, calls the core, converts the answer. It has no store, no queue and no broadcast of its
//! own. What all calls share is in [`crate::call`]; what hot subscriptions share is in `live`.

mod chat;
mod helloworld;
mod incoming;
mod live;

use tonic::service::Routes;

use crate::{
    call::Methods,
    config::Limits,
    core::{instance::Instance, rooms::Rooms},
    proto,
    telemetry::Metrics,
};

/// What the services stand on.
#[derive(Clone)]
pub struct Core {
    /// The rooms.
    pub rooms: Rooms,
    /// This instance's own measurements.
    pub instance: Instance,
    /// What a call may ask for.
    pub limits: Limits,
    /// The metrics.
    pub metrics: Metrics,
}

/// Names of the services whose health is reported beside the server's own.
pub const SERVICE_NAMES: &[&str] = &[
    "chat.ChatService",
    "helloworld.ServerStreamServer",
    "helloworld.ClientStreamServer",
    "helloworld.AllStreamServer",
];

/// Descriptor sets of everything served, for reflection and for [`Methods`].
pub const DESCRIPTORS: &[&[u8]] = &[
    proto::DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Adds the domain's services to `routes`.
#[must_use]
pub fn routes(routes: Routes, core: &Core) -> Routes {
    helloworld::add(routes.add_service(chat::routes(core)), core)
}

/// Adds reflection, in both of its versions.
///
/// # Errors
/// The descriptors do not fit together: a programming error.
pub fn with_reflection(routes: Routes) -> Result<Routes, tonic_reflection::server::Error> {
    let builder = || {
        DESCRIPTORS.iter().fold(
            tonic_reflection::server::Builder::configure(),
            |builder, set| builder.register_encoded_file_descriptor_set(set),
        )
    };
    Ok(routes
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?))
}

/// The largest message in bytes, as tonic takes it.
fn message_limit(limits: &Limits) -> usize {
    usize::try_from(limits.message.as_u64()).unwrap_or(usize::MAX)
}

/// Kept so that the methods known to the layer and the services served come from one place.
///
/// # Errors
/// The descriptors do not decode: a programming error.
pub fn methods(metrics: &Metrics) -> Result<Methods, prost::DecodeError> {
    Methods::new(DESCRIPTORS, metrics)
}
