//! Tests that need nothing beyond the toolchain.
#![allow(clippy::unwrap_used)]

mod admin;
mod otlp;
mod telemetry;
