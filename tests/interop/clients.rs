//! Clients in other languages, each a script with its own expectations.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::process::Command;

use crate::{support::TestServer, tools::tool};

/// How long a script may take: the largest ones say when they give up themselves.
const PATIENCE: Duration = Duration::from_secs(700);

/// A file of this directory or, with `../`, of the repository.
pub(crate) fn file(path: &str) -> String {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    here.join(path).to_str().unwrap().to_owned()
}

/// Runs a client to its end; shows what it printed.
pub(crate) async fn passes(program: &str, args: &[&str]) {
    let run = Command::new(tool(program))
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let done = tokio::time::timeout(PATIENCE, run)
        .await
        .expect("the client ends")
        .unwrap();
    let text = [done.stdout, done.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(done.status.success(), "{program} {args:?}: {text}");
    println!("{program}: {}", text.trim());
}

/// Runs one check of the Python client against a server of its own.
async fn python(check: &str) {
    let server = TestServer::start().await;
    passes(
        "python",
        &[
            &file("python/chat_client.py"),
            &server.grpc().to_string(),
            check,
        ],
    )
    .await;
}

#[tokio::test]
async fn python_calls_every_method() {
    python("methods").await;
}

#[tokio::test]
async fn python_subscribers_receive_everything_in_order_and_unchanged() {
    python("fan_out").await;
}

#[tokio::test]
async fn python_uploads_a_million_messages_on_one_stream() {
    python("million").await;
}

#[tokio::test]
async fn python_reads_the_details_of_every_refusal() {
    python("details").await;
}

#[tokio::test]
async fn python_deadlines_and_cancellation_are_honoured() {
    python("deadlines").await;
}

#[tokio::test]
async fn python_reads_the_protos_by_reflection_v1alpha() {
    python("reflection").await;
}

/// Runs one check of the Go client against a server of its own.
async fn go(check: &str) {
    let server = TestServer::start().await;
    passes("go-client", &[&server.grpc().to_string(), check]).await;
}

#[tokio::test]
async fn go_calls_every_method() {
    go("methods").await;
}

#[tokio::test]
async fn go_uploads_a_million_messages_on_one_stream() {
    go("million").await;
}

#[tokio::test]
async fn node_calls_every_method() {
    let server = TestServer::start().await;
    let (script, proto) = (file("node/chat_client.js"), file("../../proto/chat.proto"));
    passes("node", &[&script, &server.grpc().to_string(), &proto]).await;
}

#[tokio::test]
async fn browsers_call_through_the_grpc_and_the_http_port() {
    let (script, proto) = (file("node/web_client.js"), file("../../proto/chat.proto"));
    for is_http in [false, true] {
        let server = TestServer::start().await;
        let address = if is_http {
            server.http()
        } else {
            server.grpc()
        };
        passes("node", &[&script, &format!("http://{address}"), &proto]).await;
    }
}
