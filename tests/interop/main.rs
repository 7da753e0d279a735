//! Tests against foreign tools and clients; `make tools` fetches them, `make test` runs these tests.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that unwraps fails, as it should"
)]

#[macro_use]
mod log_engines;

mod clients;
mod container;
mod dashboards;
mod documents;
#[allow(
    dead_code,
    reason = "shared with the tests of the binary, which use all of it"
)]
#[path = "../it/doors.rs"]
mod doors;
#[allow(
    dead_code,
    reason = "shared with the tests of the binary, which use all of it"
)]
#[path = "../it/editors.rs"]
mod editors;
mod examples;
mod faults;
#[allow(
    dead_code,
    reason = "shared with the tests of files on a directory, which use all of it"
)]
#[path = "../it/file_support.rs"]
mod file_support;
mod grpcurl;
mod jetstream;
mod kubernetes;
mod link;
#[path = "../it/log_conformance.rs"]
mod log_conformance;
mod log_id;
#[allow(
    dead_code,
    reason = "shared with the tests of the other engines, which use all of it"
)]
#[path = "../it/log_support.rs"]
mod log_support;
mod nats;
mod nats_access;
mod nats_drain;
mod nats_files;
mod nats_files_faults;
mod peers;
mod prometheus;
mod registry;
mod s3;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests of the binary, which use all of it"
)]
#[path = "../it/support/mod.rs"]
mod support;
mod tools;

use std::process::Command;

use tools::tool;

/// Runs the tool and returns what it printed.
#[track_caller]
fn output(name: &str, args: &[&str]) -> String {
    let done = Command::new(tool(name)).args(args).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.status.success(), "{name} {args:?} failed: {text}");
    text
}

#[test]
fn nats_server_runs() {
    assert!(output("nats-server", &["--version"]).contains("nats-server"));
}

#[test]
fn prometheus_and_promtool_run() {
    assert!(output("prometheus", &["--version"]).contains("prometheus"));
    assert!(output("promtool", &["--version"]).contains("promtool"));
}

#[test]
fn ip_runs() {
    assert!(output("ip", &["-V"]).contains("iproute2"));
}

#[test]
fn grpcurl_runs() {
    assert!(output("grpcurl", &["-version"]).contains("grpcurl"));
}

#[test]
fn python_has_the_client_packages_and_the_stubs() {
    let program = "import grpc, grpc_health.v1.health_pb2_grpc, grpc_reflection.v1alpha.reflection_pb2_grpc\n\
        import chat_pb2, chat_pb2_grpc\n\
        print(chat_pb2.DESCRIPTOR.services_by_name['ChatService'].full_name)";
    assert_eq!(
        output("python", &["-c", program]).trim(),
        "chat.ChatService"
    );
}

#[test]
fn node_has_the_client_packages() {
    let program = "for (const name of ['@grpc/grpc-js', '@grpc/proto-loader', 'google-protobuf', 'grpc-web', 'yjs', 'y-protocols/sync'])\n\
        console.log(typeof require(name))";
    assert_eq!(
        output("node", &["-e", program]).trim(),
        "object\nobject\nobject\nobject\nobject\nobject"
    );
}
