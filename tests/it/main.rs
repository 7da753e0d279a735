//! Tests that need nothing beyond the toolchain.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod log_conformance;
mod log_embedded;
mod log_model;
mod log_support;
