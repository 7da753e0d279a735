//! Log lines and traces, against a collector on a loopback port.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;
use tonic::Code;
use tracing::{
    Instrument as _, Subscriber as _, level_filters::LevelFilter, subscriber::DefaultGuard,
};
use tracing_subscriber::fmt::MakeWriter;
use weir::{
    config::{LogFormat, Telemetry},
    log::{Record, Sequence, Space, Timestamp, Topic},
    telemetry::{self, Guard, Metrics, trace},
};

use crate::{otlp::Collector, support::server::lasting_address};

const METHOD: &str = "chat.ChatService/SendMessage";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Lines in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn json(&self) -> Vec<Value> {
        let text = self.text();
        let parsed = text.lines().map(|line| serde_json::from_str(line).unwrap());
        parsed.collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

fn settings(log_format: LogFormat, otlp_endpoint: String) -> Telemetry {
    Telemetry {
        log_format,
        otlp_endpoint,
        ..Telemetry::default()
    }
}

/// Sets up telemetry for this thread, on which a test's runtime runs everything.
fn install(settings: &Telemetry) -> (Lines, Guard, DefaultGuard) {
    let lines = Lines::default();
    let (subscriber, guard) =
        telemetry::subscriber(settings, "server-07", lines.clone(), false).unwrap();
    (lines, guard, tracing::subscriber::set_default(subscriber))
}

fn caller() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let parent = format!("00-{TRACE}-{CALLER}-01");
    headers.insert("traceparent", HeaderValue::try_from(parent).unwrap());
    headers
}

fn record(trace: Option<weir::log::TraceContext>) -> (Topic, Record) {
    let record = Record {
        sequence: Sequence(7),
        time: Timestamp::now(),
        publisher: "ann".into(),
        id: "m-1".into(),
        kind: 0,
        event_time: None,
        trace,
        payload: Bytes::new(),
    };
    (Topic::new(Space::Room, "general").unwrap(), record)
}

#[tokio::test]
async fn a_json_line_carries_the_callers_trace_even_when_nothing_is_exported() {
    let (lines, guard, _installed) = install(&settings(LogFormat::Json, String::new()));
    let span = guard.traces().rpc(METHOD, &caller());
    span.in_scope(|| tracing::info!(room = "general", tries = 3, "it \"works\""));
    tracing::warn!("outside");
    let lines = lines.json();
    let expected = [
        ("level", "INFO".into()),
        ("target", "it::telemetry".into()),
        ("message", "it \"works\"".into()),
        ("room", "general".into()),
        ("tries", 3.into()),
        ("trace_id", TRACE.into()),
    ];
    for (key, value) in expected {
        let value: Value = value;
        assert_eq!(lines[0][key], value, "{key}");
    }
    assert_eq!(lines[0]["span_id"].as_str().unwrap().len(), 16);
    assert!(lines[0]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(lines[1].get("trace_id").is_none());
    assert_eq!(span.in_scope(trace::current), None, "nothing to store");
}

#[tokio::test]
async fn a_text_line_ends_with_its_trace() {
    let (lines, guard, _installed) = install(&settings(LogFormat::Text, String::new()));
    let span = guard.traces().rpc(METHOD, &caller());
    span.in_scope(|| tracing::info!(room = "general", "stored"));
    let outer = tracing::info_span!("drain", left = 2);
    outer.in_scope(|| tracing::info!("outside"));
    let text = lines.text();
    let (first, second) = text.trim_end().split_once('\n').unwrap();
    let start = format!("INFO it::telemetry: stored room=\"general\" trace_id={TRACE} span_id=");
    assert!(first.contains(&start), "{first}");
    assert!(
        second.ends_with("INFO it::telemetry: drain{left=2}: outside"),
        "{second}"
    );
    assert!(!text.contains('\x1b'));
}

#[tokio::test]
async fn a_trace_runs_from_the_caller_through_append_to_delivery() {
    let collector = Collector::start().await;
    let (_lines, guard, _installed) = install(&settings(LogFormat::Json, collector.endpoint()));
    let traces = guard.traces();
    let rpc = traces.rpc(METHOD, &caller());
    let (topic, _) = record(None);
    let stored = async {
        let append = traces.append(&topic);
        async { trace::current() }.instrument(append).await
    };
    let stored = stored.instrument(rpc.clone()).await;
    trace::finish(&rpc, Code::Unavailable, false);
    drop(rpc);
    let (topic, record) = record(stored);
    drop(traces.deliver(&topic, &record));
    assert!(guard.shutdown(Duration::from_secs(10)).await);

    let rpc = collector.span(METHOD).await;
    let append = collector.span("append").await;
    let deliver = collector.span("deliver").await;
    let (trace_id, rpc_id, rpc_parent) = rpc.ids();
    assert_eq!((&*trace_id, &*rpc_parent), (TRACE, CALLER));
    let (_, append_id, append_parent) = append.ids();
    assert_eq!(append_parent, rpc_id);
    let (trace_id, _, deliver_parent) = deliver.ids();
    assert_eq!((&*trace_id, &*deliver_parent), (TRACE, &*append_id));

    assert_eq!(rpc.span.kind, 2, "server");
    assert_eq!(rpc.attribute("rpc.system.name"), Some("grpc"));
    assert_eq!(rpc.attribute("rpc.method"), Some(METHOD));
    assert_eq!(rpc.attribute(trace::STATUS_CODE), Some("UNAVAILABLE"));
    assert_eq!(rpc.attribute(trace::ERROR_TYPE), Some("UNAVAILABLE"));
    assert_eq!(rpc.resource("service.name"), Some("weir"));
    assert_eq!(
        rpc.resource("service.version"),
        Some(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(rpc.resource("service.instance.id"), Some("server-07"));
    assert_eq!(
        deliver.attribute("messaging.destination.name"),
        Some("room/general")
    );
}

#[tokio::test]
async fn the_exporters_own_calls_are_not_traced() {
    let collector = Collector::start().await;
    let mut settings = settings(LogFormat::Json, collector.endpoint());
    settings.log_level = "trace".into();
    let (_lines, guard, _installed) = install(&settings);
    // What the first export does could only show in the second.
    for method in ["first", "second"] {
        drop(guard.traces().rpc(method, &HeaderMap::new()));
        collector.span(method).await;
    }
    assert!(guard.shutdown(Duration::from_secs(10)).await);
    assert_eq!(collector.spans().len(), 2, "{:?}", collector.spans());
}

#[tokio::test]
async fn log_level_does_not_silence_traces_and_a_clients_trace_goes_out() {
    let collector = Collector::start().await;
    let mut settings = settings(LogFormat::Json, collector.endpoint());
    settings.log_level = "error".into();
    let (_lines, guard, _installed) = install(&settings);
    let call = guard.traces().call(METHOD);
    let mut headers = HeaderMap::new();
    trace::inject(&call, &mut headers);
    let serving = guard.traces().rpc("server", &headers);
    drop((serving, call));
    assert!(guard.shutdown(Duration::from_secs(10)).await);
    let (_, call, _) = collector.span(METHOD).await.ids();
    let (_, _, parent) = collector.span("server").await.ids();
    assert_eq!(parent, call);
}

#[tokio::test]
async fn the_callers_decision_not_to_sample_stands() {
    let collector = Collector::start().await;
    let (_lines, guard, _installed) = install(&settings(LogFormat::Json, collector.endpoint()));
    let mut headers = caller();
    let parent = format!("00-{TRACE}-{CALLER}-00");
    headers.insert("traceparent", HeaderValue::try_from(parent).unwrap());
    let traces = guard.traces();
    let rpc = traces.rpc(METHOD, &headers);
    let (topic, record) = record(rpc.in_scope(trace::current));
    assert_eq!(record.trace, None);
    assert!(rpc.in_scope(|| traces.append(&topic)).is_disabled());
    assert!(traces.deliver(&topic, &record).is_disabled());
    drop(rpc);
    assert!(guard.shutdown(Duration::from_secs(10)).await);
    assert!(collector.spans().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_does_not_wait_for_a_collector_that_is_silent_or_gone() {
    // Takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for address in [silent.local_addr().unwrap(), lasting_address()] {
        let settings = settings(LogFormat::Text, format!("http://{address}"));
        let (subscriber, guard) =
            telemetry::subscriber(&settings, "server-07", io::sink, false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            drop(guard.traces().rpc(METHOD, &HeaderMap::new()));
        });
        let begun = Instant::now();
        guard.shutdown(Duration::from_millis(300)).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{address}");
    }
}

#[test]
fn wrong_settings_are_named() {
    let mut wrong = settings(LogFormat::Text, String::new());
    wrong.log_level = "weir=loud".into();
    let error = telemetry::subscriber(&wrong, "a", io::sink, false).err();
    assert!(
        error
            .unwrap()
            .to_string()
            .starts_with("telemetry.log_level")
    );
    let unrunnable = settings(LogFormat::Text, "http://127.0.0.1:1".into());
    let error = telemetry::subscriber(&unrunnable, "a", io::sink, false).err();
    assert!(matches!(error, Some(telemetry::Error::NoRuntime)));
}

#[tokio::test]
async fn wrong_endpoints_are_named() {
    let wrong = settings(LogFormat::Text, "http://[".into());
    let error = telemetry::subscriber(&wrong, "a", io::sink, false).err();
    let error = error.unwrap().to_string();
    assert!(error.starts_with("telemetry.otlp_endpoint"), "{error}");
}

#[test]
fn libraries_are_not_asked_below_the_level() {
    let settings = settings(LogFormat::Text, String::new());
    let (subscriber, _guard) = telemetry::subscriber(&settings, "a", io::sink, false).unwrap();
    assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::INFO));
}

#[tokio::test]
async fn collectors_register_once() {
    let metrics = Metrics::new();
    let runtime = tokio::runtime::Handle::current();
    telemetry::register_process(metrics.registry(), &runtime).unwrap();
    assert!(telemetry::register_process(metrics.registry(), &runtime).is_err());
}
