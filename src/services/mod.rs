//! The wire: one file for each proto service, from messages to the core and back.
//!
//! A handler validates in `TryFrom`, calls the core, converts the answer. It has no store, no queue and no broadcast of its
//! own. What all calls share is in [`crate::call`]; what hot subscriptions share is in `live`.

mod chat;
mod check;
mod collaboration;
mod duplex;
mod feedback;
mod files;
mod helloworld;
mod incoming;
mod intake;
mod live;
mod points;
mod session;
mod streaming;
mod streaming_v1;
mod weir_v1;

use tonic::service::Routes;

use crate::{
    call::Methods,
    config::{Limits, Processing},
    core::{
        Feedback, Feeds, Files, Instances, Presence, Signals, Topics, collect::Collect,
        documents::Documents, instance::Instance, rooms::Rooms,
    },
    proto,
    telemetry::Metrics,
};

/// What is delivered may be so much larger than what came in: an id, a time and a sequence are added, and an echo's prefix.
/// Without it a message of the largest size could be stored and never delivered.
const ENVELOPE_BYTES: usize = 4 * 1024;
/// The answer to a streaming call.
type Responses<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, tonic::Status>> + Send>>;

/// What the services stand on.
#[derive(Clone)]
pub struct Core {
    /// The topics of the log.
    pub topics: Topics,
    /// What happens now and is not stored.
    pub signals: Signals,
    /// Events, notifications and data.
    pub feeds: Feeds,
    /// The rooms.
    pub rooms: Rooms,
    /// Who is in the rooms.
    pub presence: Presence,
    /// The files.
    pub files: Files,
    /// The shared documents.
    pub documents: Documents,
    /// Consumers' feedback and the replies to it.
    pub feedback: Feedback,
    /// This instance's own measurements.
    pub instance: Instance,
    /// All instances.
    pub instances: Instances,
    /// What a call may ask for.
    pub limits: Limits,
    /// Windows and limits of processing.
    pub processing: Processing,
    /// Clients' telemetry as `/metrics` shows it.
    pub collect: Collect,
    /// The metrics.
    pub metrics: Metrics,
}

/// Names of the services whose health is reported beside the server's own.
pub const SERVICE_NAMES: &[&str] = &[
    "FeedbackService",
    "chat.ChatService",
    "helloworld.ServerStreamServer",
    "helloworld.ClientStreamServer",
    "helloworld.AllStreamServer",
    "streaming.DataService",
    "streaming.v1.StreamingService",
    "weir.v1.Documents",
    "weir.v1.Feedback",
    "weir.v1.FeedbackDesk",
    "weir.v1.Files",
    "weir.v1.Instances",
    "weir.v1.Publisher",
    "weir.v1.Rooms",
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
    let routes = routes
        .add_service(chat::routes(core))
        .add_service(streaming::service(core))
        .add_service(streaming_v1::routes(core));
    let routes = helloworld::add(routes, core);
    let routes = feedback::add(routes, core);
    weir_v1::add(routes, core)
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
pub(crate) fn message_limit(limits: &Limits) -> usize {
    usize::try_from(limits.message.as_u64()).unwrap_or(usize::MAX)
}

/// Kept so that the methods known to the layer and the services served come from one place.
///
/// # Errors
/// The descriptors do not decode: a programming error.
pub fn methods(metrics: &Metrics) -> Result<Methods, prost::DecodeError> {
    Methods::new(DESCRIPTORS, metrics)
}
