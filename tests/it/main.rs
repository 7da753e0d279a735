//! Tests of the whole service that need nothing beyond the toolchain.

#![allow(clippy::unwrap_used)]

mod config;
