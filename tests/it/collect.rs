//! `streaming.v1.StreamingService/CollectMetrics` over real sockets.

use std::collections::BTreeMap;

use futures::stream;
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weir::{
    log::Space,
    proto::streaming::v1::{MetricData, MetricKind, MetricsCollectionResult},
};

use crate::{
    batch::{V1, client, stored_points},
    support::{Settings, TestServer, errors::assert_ended, eventually, soon},
};

fn gauge(name: &str, value: f64) -> MetricData {
    MetricData {
        name: name.into(),
        value,
        kind: MetricKind::Gauge.into(),
        ..MetricData::default()
    }
}

fn counter(name: &str, value: f64) -> MetricData {
    MetricData {
        kind: MetricKind::Counter.into(),
        ..gauge(name, value)
    }
}

fn labelled(pairs: &[(&str, &str)], sample: MetricData) -> MetricData {
    let pairs = pairs.iter();
    MetricData {
        labels: pairs
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        ..sample
    }
}

fn keyed(key: &str, sample: MetricData) -> MetricData {
    MetricData {
        idempotency_key: key.into(),
        ..sample
    }
}

async fn collect(v1: &mut V1, samples: Vec<MetricData>) -> Result<MetricsCollectionResult, Status> {
    let result = v1.collect_metrics(stream::iter(samples)).await;
    result.map(tonic::Response::into_inner)
}

fn result(received: i64, accepted: i64, error_message: &str) -> MetricsCollectionResult {
    MetricsCollectionResult {
        received,
        accepted,
        rejected: received - accepted,
        error_message: error_message.into(),
    }
}

/// The lines of `/metrics` that are about `name`.
async fn shown(server: &TestServer, name: &str) -> Vec<String> {
    let text = server.admin_get("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(str::to_owned).collect()
}

async fn rejected(server: &TestServer, reason: &str) -> f64 {
    let series = format!("weir_collect_rejected_total{{reason=\"{reason}\"}}");
    server.metric(&series).await
}

#[tokio::test]
async fn samples_show_at_the_metrics_endpoint() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    assert_eq!(
        collect(&mut v1, Vec::new()).await.unwrap(),
        result(0, 0, "")
    );
    let samples = vec![
        labelled(&[("room", "kitchen"), ("floor", "")], gauge("heat", 20.5)),
        labelled(&[("room", "kitchen")], gauge("heat", 21.5)),
        labelled(&[("room", "ü \"\\\n"), ("site", "x")], gauge("heat", -3.0)),
        gauge("app:load", f64::NAN),
        counter("hits_total", 2.0),
        counter("hits_total", 0.0),
        counter("hits_total", 1.5),
    ];
    assert_eq!(collect(&mut v1, samples).await.unwrap(), result(7, 7, ""));
    let heat = shown(&server, "heat").await;
    let expected = [
        "heat{room=\"kitchen\"} 21.5",
        "heat{room=\"ü \\\"\\\\\\n\",site=\"x\"} -3",
    ];
    assert_eq!(heat, expected);
    assert_eq!(shown(&server, "app:load").await, ["app:load NaN"]);
    assert_eq!(shown(&server, "hits_total").await, ["hits_total 3.5"]);
    assert_eq!(
        shown(&server, "# TYPE h").await,
        ["# TYPE heat gauge", "# TYPE hits_total counter"]
    );
    assert_eq!(server.metric("weir_collect_series").await, 4.0);
}

#[tokio::test]
async fn a_bad_sample_is_counted_and_sinks_nothing() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let time = |seconds, nanos| MetricData {
        timestamp: Some(Timestamp { seconds, nanos }),
        ..gauge("fine", 1.0)
    };
    let many: Vec<_> = (0..33).map(|number| format!("l{number}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "v")).collect();
    let cases = [
        (gauge("", 1.0), "name", "name is required"),
        (
            gauge("a-b", 1.0),
            "name",
            "name must match [a-zA-Z_:][a-zA-Z0-9_:]*",
        ),
        (
            gauge(&"x".repeat(257), 1.0),
            "name",
            "name must be at most 256 bytes",
        ),
        (
            gauge("weir_up", 1.0),
            "name",
            "name is taken: up and what begins with weir_, grpc_, process_, tokio_ or scrape_",
        ),
        (
            labelled(&[("le", "1")], gauge("fine", 1.0)),
            "labels",
            "labels must not be called le: that name is reserved",
        ),
        (
            labelled(&many, gauge("fine", 1.0)),
            "labels",
            "labels must be at most 32",
        ),
        (
            labelled(&[("a.b", "v")], gauge("fine", 1.0)),
            "labels",
            "labels must have names that match [a-zA-Z_][a-zA-Z0-9_]*",
        ),
        (
            labelled(&[("a", &"v".repeat(1025))], gauge("fine", 1.0)),
            "labels",
            "labels must have names of at most 256 bytes and values of at most 1024",
        ),
        (
            counter("fine_total", -1.0),
            "value",
            "value must be finite and not negative: it is the increase of a counter",
        ),
        (
            MetricData {
                kind: 2,
                ..gauge("fine", 1.0)
            },
            "kind",
            "kind 2 is not known",
        ),
        (
            counter("fine", 1.0),
            "kind",
            "kind must be GAUGE, as before",
        ),
        (
            time(0, -1),
            "timestamp",
            "timestamp must be a time from 1677 to 2262",
        ),
        (
            keyed(" ", gauge("fine", 1.0)),
            "key",
            "idempotency_key must not be blank",
        ),
    ];
    let mut counts = BTreeMap::new();
    for (sample, reason, text) in cases {
        let samples = vec![gauge("fine", 1.0), sample, gauge("fine", 2.0)];
        let expected = result(3, 2, &format!("sample 1: {text}"));
        assert_eq!(collect(&mut v1, samples).await.unwrap(), expected);
        *counts.entry(reason).or_insert(0.0) += 1.0;
    }
    for (reason, count) in counts {
        assert_eq!(rejected(&server, reason).await, count, "{reason}");
    }
    assert_eq!(shown(&server, "fine").await, ["fine 2"]);
}

#[tokio::test]
async fn a_repeated_key_counts_once_and_a_reused_one_is_refused() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let pairs: Vec<_> = (0..20).map(|number| format!("l{number}")).collect();
    let pairs: Vec<_> = pairs
        .iter()
        .map(|name| (name.as_str(), name.as_str()))
        .collect();
    let sample = keyed("k", labelled(&pairs, counter("hits_total", 5.0)));
    for _ in 0..5 {
        let samples = vec![sample.clone(), sample.clone()];
        assert_eq!(collect(&mut v1, samples).await.unwrap(), result(2, 2, ""));
    }
    let shown = shown(&server, "hits_total").await;
    assert!(
        matches!(&shown[..], [line] if line.ends_with(" 5")),
        "{shown:?}"
    );

    let reused = keyed("k", counter("other_total", 5.0));
    let refused = collect(
        &mut v1,
        vec![counter("x_total", 1.0), reused, gauge("", 1.0)],
    )
    .await
    .unwrap();
    assert_eq!(
        (refused.received, refused.accepted, refused.rejected),
        (3, 1, 2)
    );
    let message = &refused.error_message;
    assert!(
        message.starts_with("sample 1: the idempotency key was already used"),
        "{message}"
    );
    assert_eq!(rejected(&server, "key").await, 1.0);
    assert_eq!(self::shown(&server, "other_total").await, [""; 0]);
}

#[tokio::test]
async fn a_long_stream_shows_its_samples_while_it_goes_on() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let (send, samples) = mpsc::channel(10);
    let collecting = tokio::spawn(async move {
        let result = v1.collect_metrics(ReceiverStream::new(samples)).await;
        result.map(tonic::Response::into_inner)
    });
    for value in [1.0, 2.0, 3.0] {
        send.send(gauge("heat", value)).await.unwrap();
        eventually("the sample to show", || async {
            (server.metric("heat").await == value).then_some(())
        })
        .await;
    }
    drop(send);
    let ended = soon("the result", collecting).await.unwrap();
    assert_eq!(ended.unwrap(), result(3, 3, ""));
}

#[tokio::test]
async fn a_counter_counts_once_what_is_sent_again_after_its_call_broke_off() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    for round in 0..100u64 {
        let keyed = || vec![keyed(&round.to_string(), counter("hits_total", 1.0))];
        // Broken off at any moment: before it arrives, while it is stored, or not at all.
        let patience = std::time::Duration::from_micros(round * 50);
        let _ = tokio::time::timeout(patience, collect(&mut v1, keyed())).await;
        assert_eq!(collect(&mut v1, keyed()).await.unwrap(), result(1, 1, ""));
    }
    assert_eq!(server.metric("hits_total").await, 100.0);
}

#[tokio::test]
async fn series_are_bounded_and_the_excess_is_refused_and_counted() {
    let server = TestServer::with(Settings::default().set("collect.max_series", 2)).await;
    let mut v1 = client(&server).await;
    let of = |room: &str| labelled(&[("room", room)], gauge("heat", 1.0));
    let samples = vec![of("a"), of("b"), of("c"), of("a"), gauge("cold", 1.0)];
    let text = "sample 2: series of clients' telemetry are limited to 2";
    assert_eq!(collect(&mut v1, samples).await.unwrap(), result(5, 3, text));
    assert_eq!(rejected(&server, "limit").await, 2.0);
    assert_eq!(shown(&server, "heat").await.len(), 2);
    assert_eq!(server.metric("weir_collect_series").await, 2.0);
}

#[tokio::test]
async fn a_series_without_samples_is_forgotten() {
    let settings = Settings::default()
        .set("collect.series_ttl", "1s")
        .set("collect.max_series", 1);
    let server = TestServer::with(settings).await;
    let mut v1 = client(&server).await;
    collect(&mut v1, vec![gauge("heat", 1.0)]).await.unwrap();
    eventually("the series to be forgotten", || async {
        shown(&server, "heat").await.is_empty().then_some(())
    })
    .await;
    // Its place is free, and its name may become of another kind.
    let again = collect(&mut v1, vec![counter("heat", 1.0)]).await.unwrap();
    assert_eq!(again, result(1, 1, ""));
}

#[tokio::test]
async fn accepted_samples_are_durable_points_and_counters_begin_anew_after_a_restart() {
    let mut server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let timed = MetricData {
        timestamp: Some(Timestamp {
            seconds: 3,
            nanos: 4,
        }),
        ..labelled(&[("room", "a")], counter("hits_total", 5.0))
    };
    let samples = vec![timed, gauge("weir_x", 1.0), gauge("heat", 2.0)];
    assert_eq!(collect(&mut v1, samples).await.unwrap().accepted, 2);
    server.kill().await;
    let points = stored_points(server.dir(), Space::Telemetry, "metrics").await;
    let ours: Vec<_> = points
        .into_iter()
        .filter(|point| {
            matches!(
                point.metadata.get("name").map(String::as_str),
                Some("hits_total" | "heat")
            )
        })
        .collect();
    let [hits, heat] = ours.as_slice() else {
        panic!("{ours:?}")
    };
    assert_eq!(
        (hits.id.as_str(), hits.value, hits.timestamp),
        ("", 5.0, 3_000_000_004)
    );
    let metadata: BTreeMap<_, _> = hits
        .metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        metadata,
        BTreeMap::from([("kind", "counter"), ("name", "hits_total"), ("room", "a")])
    );
    assert!(
        heat.timestamp > 1_700_000_000_000_000_000 && heat.metadata["kind"] == "gauge",
        "{heat:?}"
    );

    let server = server.restart().await;
    assert_eq!(shown(&server, "hits_total").await, [""; 0]);
    let more = labelled(&[("room", "a")], counter("hits_total", 1.0));
    collect(&mut client(&server).await, vec![more])
        .await
        .unwrap();
    assert_eq!(
        shown(&server, "hits_total").await,
        ["hits_total{room=\"a\"} 1"]
    );
}

#[tokio::test]
async fn a_stream_of_samples_ends_with_the_drain() {
    let mut server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let (send, samples) = mpsc::channel(10);
    let collecting = tokio::spawn(async move {
        let result = v1.collect_metrics(ReceiverStream::new(samples)).await;
        result.unwrap_err()
    });
    send.send(gauge("heat", 1.0)).await.unwrap();
    let started = || async {
        let series = "grpc_server_msg_received_total{grpc_method=\"CollectMetrics\",\
                      grpc_service=\"streaming.v1.StreamingService\",grpc_type=\"client_stream\"}";
        (server.metric(series).await == 1.0).then_some(())
    };
    eventually("the sample to arrive", started).await;
    server.terminate();
    let status = soon("the stream's end", collecting).await.unwrap();
    assert_eq!(assert_ended(&status, "DRAINING"), None);
    assert_eq!(server.exit_code().await, Some(0));
}
