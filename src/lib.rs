//! Weir: durable gRPC streaming over one ordered, replayable log.
//!
//! Modules in reading order: [`log`] (the contract and its engines), [`core`] (fan-out and the domain), [`services`] (the
//! wire), [`config`] and [`telemetry`], [`cli`] (the commands).

pub mod app;
pub mod backup;
pub mod blob;
pub mod call;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
mod dirs;
pub mod log;
pub mod nats;
pub mod net;
pub mod peers;
pub mod registry;
pub mod services;
pub mod telemetry;
pub mod web;

/// Types and services generated from `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    /// Package `chat`.
    pub mod chat {
        tonic::include_proto!("chat");
    }
    /// Package `helloworld`.
    pub mod helloworld {
        tonic::include_proto!("helloworld");
    }
    /// No package: `FeedbackService`.
    pub mod feedback {
        tonic::include_proto!("_");
    }
    /// Package `streaming`, and `streaming.v1` in it.
    pub mod streaming {
        tonic::include_proto!("streaming");
        /// Package `streaming.v1`.
        pub mod v1 {
            tonic::include_proto!("streaming.v1");
        }
    }
    /// What only this service has.
    pub mod weir {
        /// Package `weir.v1`.
        pub mod v1 {
            tonic::include_proto!("weir.v1");
        }
    }
    /// All descriptors, for reflection and the call layer.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
