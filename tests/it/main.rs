//! Tests that need nothing beyond the toolchain.
#![allow(clippy::unwrap_used)]

mod otlp;
mod telemetry;
