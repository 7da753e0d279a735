//! HTTP beside gRPC. Knows the core and telemetry, no storage.

pub mod admin;
