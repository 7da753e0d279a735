//! `chat.ChatService/StreamMetrics` over real sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;
use weir::proto::chat::{Metric, MetricsRequest};

use crate::support::{
    Chat, Settings, TestServer,
    errors::{assert_invalid, info, retry_after},
    next, send, soon,
};

fn request(instance_id: &str, interval_seconds: i32) -> MetricsRequest {
    MetricsRequest {
        instance_id: instance_id.into(),
        interval_seconds,
    }
}

async fn open(chat: &mut Chat, instance_id: &str, interval: i32) -> Streaming<Metric> {
    soon(
        "a stream",
        chat.stream_metrics(request(instance_id, interval)),
    )
    .await
    .unwrap()
    .into_inner()
}

/// One measurement of everything: `other` is the last entry.
async fn round(stream: &mut Streaming<Metric>) -> Vec<Metric> {
    let mut all = Vec::new();
    loop {
        let metric = next(stream).await;
        let is_last = metric
            .labels
            .get("endpoint")
            .is_some_and(|endpoint| endpoint == "other/other");
        all.push(metric);
        if is_last {
            return all;
        }
    }
}

/// When a round was measured, in seconds.
fn measured_at(round: &[Metric]) -> f64 {
    let time = round[0].timestamp.as_ref().unwrap();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let seconds = time.seconds as f64;
    seconds + f64::from(time.nanos) / 1e9
}

fn rates(round: &[Metric]) -> BTreeMap<&str, f64> {
    let rates = round
        .iter()
        .filter(|metric| metric.name == "requests_per_second");
    rates
        .map(|metric| (metric.labels["endpoint"].as_str(), metric.value))
        .collect()
}

#[tokio::test]
async fn measurements_are_real_and_labelled() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = open(&mut chat, "", 0).await;
    let measured = round(&mut stream).await;

    let names: BTreeSet<_> = measured.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(
        names,
        BTreeSet::from(["cpu_usage", "memory_usage", "requests_per_second"])
    );
    let mut cores = Vec::new();
    for metric in &measured {
        assert_eq!(metric.labels["instance"], "server-01");
        assert_eq!(metric.labels.len(), 2, "{metric:?}");
        assert!(metric.timestamp.is_some());
        match metric.name.as_str() {
            "cpu_usage" => {
                assert!((0.0..=100.0).contains(&metric.value), "{metric:?}");
                cores.push(metric.labels["core"].clone());
            }
            "memory_usage" => {
                assert_eq!(metric.labels["type"], "resident");
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
                let resident = server.resident_bytes() as f64 / 1_048_576.0;
                let close = resident * 0.5..resident * 1.5;
                assert!(
                    close.contains(&metric.value),
                    "{metric:?} of {resident} MiB"
                );
            }
            _ => assert!(metric.value >= 0.0, "{metric:?}"),
        }
    }
    let online = std::fs::read_to_string("/proc/stat").unwrap();
    let online = online
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    let expected: Vec<_> = (0..online).map(|core| core.to_string()).collect();
    assert_eq!(cores, expected);
    let endpoints = rates(&measured);
    for method in [
        "SendMessage",
        "SubscribeMessages",
        "UploadMessages",
        "Chat",
        "StreamMetrics",
    ] {
        assert!(
            endpoints.contains_key(&*format!("chat.ChatService/{method}")),
            "{endpoints:?}"
        );
    }
}

#[tokio::test]
async fn the_rates_are_those_of_calls_really_made() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = open(&mut chat, "server-01", 1).await;
    let mut until = measured_at(&round(&mut stream).await);
    for _ in 0..50 {
        chat.send_message(send("general", "ann", "hi"))
            .await
            .unwrap();
    }
    chat.send_message(send("", "", "refused, but a request"))
        .await
        .unwrap_err();
    // However the calls fall into the rounds and however long those take: rates times their intervals add up to the calls.
    let (mut sent, mut streams) = (0.0, 0.0);
    for _ in 0..20 {
        let measured = round(&mut stream).await;
        let since = std::mem::replace(&mut until, measured_at(&measured));
        let rates = rates(&measured);
        sent += rates["chat.ChatService/SendMessage"] * (until - since);
        streams += rates["chat.ChatService/StreamMetrics"];
        if sent > 50.5 {
            break;
        }
    }
    // Times are those of the wall clock, rates of a steady one: they differ by next to nothing.
    assert!((50.5..51.5).contains(&sent), "{sent} of 51 calls");
    assert!(streams.abs() < f64::EPSILON, "it was opened before");
    assert!(rates(&round(&mut stream).await)["chat.ChatService/SendMessage"].abs() < f64::EPSILON);
}

#[tokio::test]
async fn the_interval_is_the_callers() {
    let server = TestServer::with(Settings::default().set("server.instance_id", "pod-7")).await;
    let mut chat = server.chat().await;
    let begun = Instant::now();
    let mut stream = open(&mut chat, "pod-7", 2).await;
    let measured = round(&mut stream).await;
    assert!(
        measured
            .iter()
            .all(|metric| metric.labels["instance"] == "pod-7")
    );
    let passed = begun.elapsed();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(5)).contains(&passed),
        "{passed:?}"
    );
}

#[tokio::test]
async fn unknown_instances_and_negative_intervals_are_refused() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let status = chat
        .stream_metrics(request("server-02", 0))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert_eq!(
        status.message(),
        "instance server-02 not found; there is server-01"
    );
    assert_eq!(info(&status).0, "NOT_FOUND");
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!(
        (
            resource.resource_type.as_str(),
            resource.resource_name.as_str()
        ),
        ("instance", "server-02")
    );
    assert_eq!(retry_after(&status), None);
    for negative in [-1, i32::MIN] {
        let status = chat
            .stream_metrics(request("", negative))
            .await
            .unwrap_err();
        assert_invalid(
            &status,
            "interval_seconds must not be negative",
            &["interval_seconds"],
        );
    }
}
