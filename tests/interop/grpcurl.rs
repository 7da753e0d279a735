//! grpcurl, which knows nothing but what reflection tells it.

use std::process::Stdio;

use tokio::process::Command;

use crate::{support::TestServer, tools::tool};

/// Exit code and output of `grpcurl -plaintext OPTIONS ADDRESS WORDS`.
async fn grpcurl(server: &TestServer, options: &[&str], words: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(tool("grpcurl"))
        .arg("-plaintext")
        .args(options)
        .arg(server.grpc().to_string())
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = [done.stdout, done.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    (done.status.code(), text)
}

/// The objects of an output, one after the other.
fn objects(text: &str) -> Vec<serde_json::Value> {
    let objects = serde_json::Deserializer::from_str(text).into_iter();
    objects.map_while(Result::ok).collect()
}

#[tokio::test]
async fn reflection_lists_and_describes() {
    let server = TestServer::start().await;
    let (code, text) = grpcurl(&server, &[], &["list"]).await;
    assert_eq!(code, Some(0), "{text}");
    for service in [
        "chat.ChatService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        assert!(
            text.lines().any(|line| line == service),
            "no {service}: {text}"
        );
    }
    let (code, text) = grpcurl(&server, &[], &["describe", "chat.ChatService"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("rpc Chat ( stream .chat.Message ) returns ( stream .chat.Message );"),
        "{text}"
    );
    assert!(
        text.contains("Stores one message in its room"),
        "the comments are missing: {text}"
    );
    let series = "grpc_server_started_total{grpc_method=\"ServerReflectionInfo\",\
        grpc_service=\"grpc.reflection.v1.ServerReflection\",grpc_type=\"bidi_stream\"}";
    assert!(
        server.metric(series).await >= 2.0,
        "{}",
        server.admin_get("/metrics").await
    );
}

#[tokio::test]
async fn calls_by_reflection() {
    let server = TestServer::start().await;
    let body = r#"{"user": "ann", "room": "general", "content": "hi"}"#;
    let (code, text) = grpcurl(&server, &["-d", body], &["chat.ChatService/SendMessage"]).await;
    assert_eq!(code, Some(0), "{text}");
    let sent = &objects(&text)[0];
    assert!(
        sent["messageId"].is_string() && sent["timestamp"].is_string(),
        "{text}"
    );

    let body = r#"{"user": "bob", "room": "general", "after_sequence": 0}"#;
    let options = ["-max-time", "2", "-d", body];
    let (code, text) = grpcurl(&server, &options, &["chat.ChatService/SubscribeMessages"]).await;
    assert_eq!(code, Some(64 + 4), "not DEADLINE_EXCEEDED: {text}");
    let heard = objects(&text);
    assert_eq!(heard[0]["content"], "Welcome to room general, bob!");
    assert_eq!(
        (&heard[1]["id"], &heard[1]["sequence"]),
        (&sent["messageId"], &sent["sequence"])
    );
}

#[tokio::test]
async fn a_refusal_shows_its_details() {
    let server = TestServer::start().await;
    let (code, text) = grpcurl(
        &server,
        &["-d", r#"{"user": "ann"}"#],
        &["chat.ChatService/SendMessage"],
    )
    .await;
    assert_eq!(code, Some(64 + 3), "not INVALID_ARGUMENT: {text}");
    assert!(text.contains("Message: room is required"), "{text}");
    assert!(text.contains("google.rpc.BadRequest"), "{text}");
}
