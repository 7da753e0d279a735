//! What an operator sees of calls really made: traces at a collector, log lines with their ids, and metrics.

use std::{collections::BTreeMap, fs::File, path::PathBuf, process::Stdio};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use weir::proto::chat::{Message, MetricsRequest};

use crate::{
    otlp::{Collector, Exported},
    support::{
        Settings, TestServer, end, eventually, follow, message, next,
        raw::{Raw, rest},
        send, soon,
    },
};

const CALLER: &str = "b7ad6b7169203331";

/// A trace of its own for each call.
fn trace_id(number: u8) -> String {
    format!("0af7651916cd43dd8448eb211c8031{number:02x}")
}

fn traced<T>(number: u8, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{}-{CALLER}-01", trace_id(number));
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    request
}

/// A server that sends its traces to `collector`, and where its log lines go.
async fn start(collector: &Collector) -> (TestServer, PathBuf) {
    let settings = Settings::default()
        .set("telemetry.otlp_endpoint", collector.endpoint())
        .set("telemetry.log_format", "json")
        .set("telemetry.log_level", "info,weir=debug");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.json");
    let log = Stdio::from(File::create(&path).unwrap());
    let server = TestServer::starting(dir, settings, log).await;
    server.ready().await;
    (server, path)
}

/// The spans of one trace by name, once all of `names` have arrived.
async fn spans(collector: &Collector, trace: &str, names: &[&str]) -> BTreeMap<String, Exported> {
    eventually("the trace", || async {
        let spans = collector
            .spans()
            .into_iter()
            .filter(|one| one.ids().0 == trace);
        let spans: BTreeMap<_, _> = spans.map(|one| (one.span.name.clone(), one)).collect();
        names
            .iter()
            .all(|name| spans.contains_key(*name))
            .then_some(spans)
    })
    .await
}

/// Asserts one trace from its caller through the log to a subscriber.
async fn assert_traced(collector: &Collector, number: u8, method: &str, room: &str) {
    let trace = trace_id(number);
    let spans = spans(collector, &trace, &[method, "append", "deliver"]).await;
    let (_, rpc, parent) = spans[method].ids();
    assert_eq!(parent, CALLER, "{method} continues its caller's span");
    assert_eq!(spans[method].span.kind, 2, "server");
    assert_eq!(spans[method].attribute("rpc.method"), Some(method));
    let (_, append, parent) = spans["append"].ids();
    assert_eq!(parent, rpc, "append is part of {method}");
    let (_, _, parent) = spans["deliver"].ids();
    assert!(
        parent == append || parent == rpc,
        "deliver follows what was stored"
    );
    for name in ["append", "deliver"] {
        let topic = spans[name].attribute("messaging.destination.name");
        assert_eq!(topic, Some(&*format!("room/{room}")), "{name}");
    }
    for one in spans.values() {
        assert_eq!(one.resource("service.name"), Some("weir"));
        assert_eq!(one.resource("service.instance.id"), Some("server-01"));
    }
}

#[tokio::test]
async fn a_trace_runs_from_the_caller_to_the_subscriber() {
    let collector = Collector::start().await;
    let (server, log) = start(&collector).await;
    let mut chat = server.chat().await;
    let mut listeners = Vec::new();
    for room in ["sent", "uploaded", "said"] {
        let mut stream = chat
            .subscribe_messages(follow(room, None))
            .await
            .unwrap()
            .into_inner();
        next(&mut stream).await;
        listeners.push(stream);
    }
    chat.send_message(traced(1, send("sent", "ann", "hi")))
        .await
        .unwrap();
    let upload = tokio_stream::iter([message("uploaded", "ann", "hi")]);
    chat.upload_messages(traced(2, upload)).await.unwrap();
    let said = tokio_stream::iter([message("said", "ann", "hi")]);
    let mut session = chat.chat(traced(3, said)).await.unwrap().into_inner();
    end(&mut session).await.unwrap();
    for listener in &mut listeners {
        assert_eq!(next(listener).await.content, "hi");
    }
    assert_traced(&collector, 1, "chat.ChatService/SendMessage", "sent").await;
    assert_traced(&collector, 2, "chat.ChatService/UploadMessages", "uploaded").await;
    assert_traced(&collector, 3, "chat.ChatService/Chat", "said").await;

    // A refused call's line and span.
    chat.send_message(traced(4, send("", "ann", "hi")))
        .await
        .unwrap_err();
    let refused = spans(&collector, &trace_id(4), &["chat.ChatService/SendMessage"]).await;
    let refused = &refused["chat.ChatService/SendMessage"];
    assert_eq!(
        refused.attribute("rpc.status_code"),
        Some("INVALID_ARGUMENT")
    );
    assert_eq!(
        refused.attribute("error.type"),
        None,
        "the caller's fault is none of the server's"
    );
    let lines = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (number, method, status) in [
        (1, "chat.ChatService/SendMessage", "OK"),
        (2, "chat.ChatService/UploadMessages", "OK"),
        (4, "chat.ChatService/SendMessage", "InvalidArgument"),
    ] {
        let trace = trace_id(number);
        let line = lines.iter().find(|line| line["trace_id"] == *trace);
        let line = line.unwrap_or_else(|| panic!("no line of trace {number} in {lines:#?}"));
        assert_eq!(line["message"], "call ended");
        assert_eq!(
            (line["method"].as_str(), line["status"].as_str()),
            (Some(method), Some(status))
        );
        assert_eq!(line["span_id"].as_str().unwrap().len(), 16);
        assert!(line["duration_ms"].is_u64(), "{line}");
    }
}

#[tokio::test]
async fn a_record_is_delivered_in_its_trace_after_a_restart() {
    let collector = Collector::start().await;
    let (server, _) = start(&collector).await;
    let sent = server
        .chat()
        .await
        .send_message(traced(1, send("general", "ann", "hi")))
        .await;
    let sent = sent.unwrap().into_inner();
    let server = server.restart().await;
    let mut chat = server.chat().await;
    let mut stream = chat
        .subscribe_messages(follow("general", Some(0)))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    assert_eq!(next(&mut stream).await.sequence, sent.sequence);
    // What the killed process had not exported is lost; the stored trace is not: a live record carries it on.
    let mut session = chat
        .chat(traced(
            2,
            tokio_stream::iter([message("general", "bob", "yo")]),
        ))
        .await
        .unwrap()
        .into_inner();
    end(&mut session).await.unwrap();
    assert_eq!(next(&mut stream).await.content, "yo");
    assert_traced(&collector, 2, "chat.ChatService/Chat", "general").await;
}

#[tokio::test]
async fn an_unsampled_callers_trace_goes_nowhere() {
    let collector = Collector::start().await;
    let (server, _) = start(&collector).await;
    let mut chat = server.chat().await;
    let mut request = traced(1, send("general", "ann", "hi"));
    let parent = format!("00-{}-{CALLER}-00", trace_id(1));
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    chat.send_message(request).await.unwrap();
    chat.send_message(traced(2, send("general", "ann", "hi")))
        .await
        .unwrap();
    spans(
        &collector,
        &trace_id(2),
        &["chat.ChatService/SendMessage", "append"],
    )
    .await;
    assert!(
        collector
            .spans()
            .iter()
            .all(|one| one.ids().0 != trace_id(1))
    );
}

/// The value of a metric of `ChatService` with these labels, written as they are exposed.
async fn counted(server: &TestServer, name: &str, code: &str, method: &str, kind: &str) -> f64 {
    let code = if code.is_empty() {
        String::new()
    } else {
        format!("grpc_code=\"{code}\",")
    };
    let labels = format!(
        "{code}grpc_method=\"{method}\",grpc_service=\"chat.ChatService\",grpc_type=\"{kind}\""
    );
    server.metric(&format!("{name}{{{labels}}}")).await
}

#[tokio::test]
async fn metrics_count_the_calls_and_messages_really_made() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut followers = Vec::new();
    for _ in 0..3 {
        let mut stream = chat
            .subscribe_messages(follow("general", None))
            .await
            .unwrap()
            .into_inner();
        next(&mut stream).await;
        followers.push(stream);
    }
    for _ in 0..20 {
        chat.send_message(send("general", "ann", "hi"))
            .await
            .unwrap();
    }
    for _ in 0..2 {
        chat.send_message(send("", "ann", "hi")).await.unwrap_err();
    }
    let upload: Vec<_> = (0..30).map(|_| message("general", "ann", "hi")).collect();
    chat.upload_messages(tokio_stream::iter(upload))
        .await
        .unwrap();
    let said: Vec<_> = (0..7).map(|_| message("elsewhere", "ann", "hi")).collect();
    let mut session = chat
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    end(&mut session).await.unwrap();
    // Every follower got its welcome, 20 and 30.
    for stream in &mut followers {
        for _ in 0..50 {
            next(stream).await;
        }
    }
    let mut late = chat
        .subscribe_messages(follow("general", Some(0)))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..51 {
        next(&mut late).await;
    }
    let expected = [
        ("started", "", "SendMessage", "unary", 22.0),
        ("handled", "OK", "SendMessage", "unary", 20.0),
        ("handled", "InvalidArgument", "SendMessage", "unary", 2.0),
        ("msg_received", "", "SendMessage", "unary", 22.0),
        ("msg_sent", "", "SendMessage", "unary", 20.0),
        ("started", "", "SubscribeMessages", "server_stream", 4.0),
        ("handled", "OK", "SubscribeMessages", "server_stream", 0.0),
        (
            "msg_received",
            "",
            "SubscribeMessages",
            "server_stream",
            4.0,
        ),
        (
            "msg_sent",
            "",
            "SubscribeMessages",
            "server_stream",
            4.0 * 51.0,
        ),
        ("started", "", "UploadMessages", "client_stream", 1.0),
        ("handled", "OK", "UploadMessages", "client_stream", 1.0),
        ("msg_received", "", "UploadMessages", "client_stream", 30.0),
        ("msg_sent", "", "UploadMessages", "client_stream", 1.0),
        ("started", "", "Chat", "bidi_stream", 1.0),
        ("handled", "OK", "Chat", "bidi_stream", 1.0),
        ("msg_received", "", "Chat", "bidi_stream", 7.0),
        ("msg_sent", "", "Chat", "bidi_stream", 7.0),
    ];
    for (name, code, method, kind, value) in expected {
        let name = format!("grpc_server_{name}_total");
        let found = counted(&server, &name, code, method, kind).await;
        assert_eq!(found, value, "{name} {code} {method}");
    }
    let timed = counted(
        &server,
        "grpc_server_handling_seconds_count",
        "",
        "SendMessage",
        "unary",
    )
    .await;
    assert_eq!(timed, 22.0);
    assert_eq!(
        server
            .metric("weir_appended_records_total{space=\"room\"}")
            .await,
        57.0
    );
    drop(followers);
    eventually("the followers' ends", || async {
        let ended = counted(
            &server,
            "grpc_server_handled_total",
            "Canceled",
            "SubscribeMessages",
            "server_stream",
        )
        .await;
        (ended == 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn streams_are_counted_by_why_they_ended() {
    let server = TestServer::with(Settings::default().set("server.max_stream_age", "2s")).await;
    let mut chat = server.chat().await;
    let ended = async |reason: &'static str, count: f64| {
        let series = format!("weir_streams_ended_total{{reason=\"{reason}\"}}");
        eventually(reason, || async {
            (server.metric(&series).await == count).then_some(())
        })
        .await;
    };
    chat.upload_messages(tokio_stream::iter([message("general", "ann", "hi")]))
        .await
        .unwrap();
    end(&mut chat
        .chat(tokio_stream::iter([message("general", "ann", "hi")]))
        .await
        .unwrap()
        .into_inner())
    .await
    .unwrap();
    ended("complete", 2.0).await;

    chat.upload_messages(tokio_stream::iter([Message::default()]))
        .await
        .unwrap_err();
    chat.subscribe_messages(follow("general", Some(u64::MAX)))
        .await
        .unwrap_err();
    ended("refused", 2.0).await;

    let raw = Raw::connect(server.grpc()).await;
    let path = "/chat.ChatService/SubscribeMessages";
    let response = raw
        .open(path, &[("grpc-timeout", "50m")], &follow("general", None))
        .await;
    rest::<Message>(&mut response.into_body()).await;
    ended("deadline", 1.0).await;

    drop(
        chat.stream_metrics(MetricsRequest::default())
            .await
            .unwrap(),
    );
    ended("client_cancel", 1.0).await;

    let mut old = chat
        .subscribe_messages(follow("general", None))
        .await
        .unwrap()
        .into_inner();
    end(&mut old).await.unwrap_err();
    ended("max_age", 1.0).await;
    // Each by its reason and no other.
    for (reason, count) in [
        ("complete", 2.0),
        ("refused", 2.0),
        ("deadline", 1.0),
        ("client_cancel", 1.0),
    ] {
        ended(reason, count).await;
    }
}

#[tokio::test]
async fn a_drain_is_counted_as_such() {
    let settings = Settings::default().set("drain.timeout", "3s");
    let mut server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let mut stream = chat
        .subscribe_messages(follow("general", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    // A call that does not end keeps the instance up, so that its metrics can be read.
    let (_say, said) = mpsc::channel::<Message>(1);
    let raw = Raw::connect(server.grpc()).await;
    let (_answer, mut held) = raw.begin("/chat.ChatService/SendMessage", &[]).await;
    held.send_data(vec![0].into(), false).unwrap();
    let mut session = chat
        .chat(ReceiverStream::new(said))
        .await
        .unwrap()
        .into_inner();
    eventually("the held call", || async {
        (counted(
            &server,
            "grpc_server_started_total",
            "",
            "SendMessage",
            "unary",
        )
        .await
            == 1.0)
            .then_some(())
    })
    .await;
    server.terminate();
    end(&mut stream).await.unwrap_err();
    end(&mut session).await.unwrap_err();
    assert_eq!(
        server
            .metric("weir_streams_ended_total{reason=\"drain\"}")
            .await,
        2.0
    );
    assert_eq!(server.metric("weir_draining").await, 1.0);
    let unavailable = counted(
        &server,
        "grpc_server_handled_total",
        "Unavailable",
        "Chat",
        "bidi_stream",
    )
    .await;
    assert_eq!(unavailable, 1.0);
    soon("its end", server.exit_code()).await;
}
