//! Tests of the whole binary and of its parts that need nothing beyond the toolchain.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that unwraps fails, as it should; tests share helpers and print the figures they measure"
)]

#[macro_use]
mod log_engines;

mod admin;
mod backup;
mod batch;
mod calls;
mod chat;
mod chat_metrics;
mod chat_session;
mod chat_upload;
mod chat_v1;
mod cli;
mod cli_feeds;
mod cli_processing;
mod collect;
mod config;
mod core_model;
mod data;
mod descriptors;
mod disk;
mod docs;
mod documents;
mod doors;
mod drain;
mod editors;
mod events;
mod feedback;
mod file_support;
mod files;
mod files_cli;
mod files_http;
mod files_resume;
mod files_scale;
mod garbage;
mod hard_end;
mod health;
mod helloworld;
mod hub;
mod kill9;
mod live_data;
mod lobby;
mod log_cli;
mod log_conformance;
mod log_damage;
mod log_embedded;
mod log_faults;
mod log_fixture;
mod log_id;
mod log_model;
mod log_support;
mod merged;
mod notifications;
mod otlp;
mod presence;
mod publisher;
mod retention;
mod rooms;
mod slow_reader;
mod startup;
mod support;
mod telemetry;
mod trace;
mod web;
