//! `streaming.DataService`: `GetData`, `SubscribeData`, and the topics that the service feeds itself.

use std::{collections::HashSet, process::Stdio, time::Duration};

use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use weir::proto::streaming::{
    DataPoint, StreamRequest, StreamResponse, data_service_client::DataServiceClient,
};

use crate::{
    publisher::{data, newest, publish_data, publisher},
    support::{
        Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        eventually, next,
    },
};

type Data = DataServiceClient<Channel>;

async fn service(server: &TestServer) -> Data {
    DataServiceClient::new(server.channel().await).max_decoding_message_size(64 << 20)
}

fn of(topics: &[&str], batch_size: i32, after_sequence: Option<u64>) -> StreamRequest {
    StreamRequest {
        subscription_id: "sub".into(),
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        batch_size,
        after_sequence,
    }
}

async fn subscribe(data: &mut Data, request: StreamRequest) -> Streaming<StreamResponse> {
    data.subscribe_data(request).await.unwrap().into_inner()
}

/// The next points, at least `count`; checks that batches are numbered from `number` on.
async fn points(
    stream: &mut Streaming<StreamResponse>,
    number: &mut i64,
    count: usize,
) -> Vec<DataPoint> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = next(stream).await;
        assert_eq!(batch.sequence_number, *number);
        *number += 1;
        all.extend(batch.data_points);
    }
    all
}

fn values(points: &[DataPoint]) -> Vec<f64> {
    points.iter().map(|point| point.value).collect()
}

fn numbers(range: std::ops::Range<i32>) -> Vec<f64> {
    range.map(f64::from).collect()
}

#[tokio::test]
async fn batches_hold_what_was_asked_for_and_a_silent_second_brings_a_heartbeat() {
    let server = TestServer::start().await;
    let (mut service, mut publisher) = (service(&server).await, publisher(&server).await);
    for number in 0..25 {
        publish_data(&mut publisher, data("a", f64::from(number))).await;
    }
    let mut stream = subscribe(&mut service, of(&["a"], 0, Some(0))).await;
    for (index, range) in [(0, 0..10), (1, 10..20)] {
        let batch = next(&mut stream).await;
        assert_eq!(batch.sequence_number, index);
        assert_eq!(values(&batch.data_points), numbers(range));
        for point in &batch.data_points {
            assert_eq!(point.metadata["topic"], "a");
            assert_eq!(point.id, format!("sub-{}", point.sequence));
        }
    }
    let rest = next(&mut stream).await;
    assert_eq!(values(&rest.data_points), numbers(20..25), "after a second");
    let heartbeat = next(&mut stream).await;
    assert_eq!(
        (heartbeat.sequence_number, heartbeat.data_points),
        (3, vec![])
    );
    publish_data(&mut publisher, data("a", 25.0)).await;
    let mut number = 4;
    assert_eq!(values(&points(&mut stream, &mut number, 1).await), [25.0]);
}

#[tokio::test]
async fn one_position_resumes_several_topics() {
    let server = TestServer::start().await;
    let (mut service, mut publisher) = (service(&server).await, publisher(&server).await);
    let mut all = Vec::new();
    for number in 0..60 {
        let topic = ["a", "b", "c", "b"][number as usize % 4];
        let stored = publish_data(&mut publisher, data(topic, f64::from(number))).await;
        if topic != "c" {
            all.push((f64::from(number), topic, stored.sequence));
        }
    }
    let topics = ["b", "a", "b"];
    for position in [0, all[0].2, all[7].2, all[30].2, all[44].2] {
        let expected: Vec<_> = all.iter().filter(|one| one.2 > position).collect();
        let mut stream = subscribe(&mut service, of(&topics, 7, Some(position))).await;
        let got = points(&mut stream, &mut 0, expected.len()).await;
        for (point, (value, topic, sequence)) in got.iter().zip(expected) {
            assert_eq!((point.value, point.sequence), (*value, *sequence));
            assert_eq!(point.metadata["topic"], *topic);
        }
    }
}

#[tokio::test]
async fn the_newest_points_are_found_in_a_busy_log() {
    let server = TestServer::start().await;
    let (mut service, mut publisher) = (service(&server).await, publisher(&server).await);
    for number in 0..20 {
        publish_data(&mut publisher, data("old", f64::from(number))).await;
    }
    let bulk: Vec<_> = (0..3000)
        .map(|number| data("bulk", f64::from(number)))
        .collect();
    publisher
        .publish_stream(futures::stream::iter(bulk))
        .await
        .unwrap();
    publish_data(&mut publisher, data("late", 1.0)).await;
    assert_eq!(values(&newest(&server, "old", 0).await), numbers(10..20));
    assert_eq!(
        values(&newest(&server, "bulk", 1000).await),
        numbers(2000..3000)
    );
    assert_eq!(
        values(&newest(&server, "nobody wrote", 5).await),
        numbers(0..0)
    );
    let got = service
        .get_data(of(&["old", "late", "bulk"], 3, None))
        .await
        .unwrap();
    let got = got.into_inner();
    assert_eq!(values(&got.data_points), [2998.0, 2999.0, 1.0], "merged");
    assert_eq!(got.sequence_number, 0);
    let last = got.data_points[1].sequence;
    let after = service
        .get_data(of(&["late", "bulk"], 9, Some(last)))
        .await
        .unwrap();
    assert_eq!(
        values(&after.into_inner().data_points),
        [1.0],
        "only what is newer"
    );
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused() {
    let settings = Settings::default().set("limits.rooms_per_stream", "2");
    let server = TestServer::with(settings).await;
    let mut service = service(&server).await;
    let long = "x".repeat(257);
    let cases = [
        (of(&[], 0, None), "topics is required", vec!["topics"]),
        (
            of(&["a", " "], -1, None),
            "topics[1] is required; batch_size must be 0 to 1000",
            vec!["topics[1]", "batch_size"],
        ),
        (
            of(&["a"], 1001, None),
            "batch_size must be 0 to 1000",
            vec!["batch_size"],
        ),
        (
            of(&[&long], 0, None),
            "topics[0] must be at most 256 bytes",
            vec!["topics[0]"],
        ),
        (
            StreamRequest {
                subscription_id: long.clone(),
                ..of(&["a"], 0, None)
            },
            "subscription_id must be at most 256 bytes",
            vec!["subscription_id"],
        ),
    ];
    for (request, text, fields) in cases {
        let status = service.subscribe_data(request.clone()).await.unwrap_err();
        assert_invalid(&status, text, &fields);
        let status = service.get_data(request).await.unwrap_err();
        assert_invalid(&status, text, &fields);
    }
    subscribe(&mut service, of(&["a", "b", "a"], 1000, None)).await;
    let status = service.subscribe_data(of(&["a", "b", "c"], 0, None)).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let quota = status.get_details_quota_failure().unwrap();
    assert_eq!(quota.violations[0].subject, "topics of one stream");
    let status = service.subscribe_data(of(&["a"], 0, Some(1 << 40))).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(info(&status).0, "POSITION_BEYOND_TAIL");
}

#[tokio::test]
async fn batches_respect_the_message_limit() {
    let settings = Settings::default().set("limits.message", "64KiB");
    let server = TestServer::with(settings).await;
    let (mut service, mut publisher) = (service(&server).await, publisher(&server).await);
    for number in 0..10 {
        let mut point = data("large", f64::from(number));
        point.metadata.insert("text".into(), "x".repeat(40_000));
        publish_data(&mut publisher, point).await;
    }
    let mut stream = subscribe(&mut service, of(&["large"], 1000, Some(0))).await;
    let got = points(&mut stream, &mut 0, 10).await;
    assert_eq!(values(&got), numbers(0..10));
    let got = service.get_data(of(&["large"], 5, None)).await.unwrap();
    assert_eq!(values(&got.into_inner().data_points), [9.0]);
}

#[tokio::test]
async fn a_reader_that_pauses_gets_everything_and_a_drain_says_where_to_resume() {
    let server = TestServer::with(Settings::default().set("hub.tail", "4KiB")).await;
    let (mut service, mut publisher) = (service(&server).await, publisher(&server).await);
    let mut stream = subscribe(&mut service, of(&["a", "b"], 1000, None)).await;
    let all: Vec<_> = (0..20_000)
        .map(|number| data(["a", "b"][number as usize % 2], f64::from(number)))
        .collect();
    let count = all.len();
    publisher
        .publish_stream(futures::stream::iter(all))
        .await
        .unwrap();
    let mut number = 0;
    let got = points(&mut stream, &mut number, count).await;
    assert_eq!(values(&got), numbers(0..20_000));
    let last = got.last().unwrap().sequence;
    server.terminate();
    let status = end(&mut stream).await.unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), Some(last));
}

#[tokio::test]
async fn a_stream_that_is_dropped_leaves_nothing() {
    let server = TestServer::start().await;
    let mut service = service(&server).await;
    let before = server.tails().await;
    let opened = service
        .subscribe_data(of(&["a", "b", "metrics"], 0, None))
        .await;
    let opened = opened.unwrap();
    assert!(opened.metadata().contains_key("after-sequence"));
    assert_eq!(server.tails().await, before + 3.0);
    drop(opened);
    eventually("the tails to go", || async {
        (server.tails().await == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deadline_ends_a_subscription() {
    let server = TestServer::start().await;
    let mut service = service(&server).await;
    let mut request = tonic::Request::new(of(&["a"], 0, None));
    request.set_timeout(Duration::from_millis(300));
    let mut stream = service.subscribe_data(request).await.unwrap().into_inner();
    let status = end(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn the_instance_feeds_its_measurements_ten_a_second() {
    let server = TestServer::start().await;
    let mut service = service(&server).await;
    let mut stream = subscribe(&mut service, of(&["metrics"], 10, None)).await;
    let got = points(&mut stream, &mut 0, 60).await;
    let names: HashSet<_> = got
        .iter()
        .map(|point| point.metadata["name"].as_str())
        .collect();
    for name in [
        "cpu_usage",
        "memory_usage",
        "requests_per_second",
        "connections",
        "streams",
        "subscribers",
        "tails",
        "tail_bytes",
        "log_bytes",
    ] {
        assert!(names.contains(name), "{name} of {names:?}");
    }
    assert!(
        got.iter()
            .all(|point| point.metadata["instance"] == "server-01")
    );
    let streams = got
        .iter()
        .filter(|point| point.metadata["name"] == "streams");
    assert!(streams.clone().any(|point| point.value >= 1.0), "this one");
    // By the clock of the samples themselves: ten for every second between the first and the last.
    let (first, last) = (got[0].timestamp, got[got.len() - 1].timestamp);
    let secs = (last - first) as f64 / 1e9;
    assert!(got.len() as f64 >= 10.0 * secs, "{} in {secs} s", got.len());
}

#[tokio::test]
async fn what_happens_to_the_instance_is_told() {
    let server = TestServer::start().await;
    let mut service = service(&server).await;
    let mut stream = subscribe(&mut service, of(&["events"], 1, Some(0))).await;
    let event = |point: &DataPoint| point.metadata["event"].clone();
    let began = points(&mut stream, &mut 0, 2).await;
    assert_eq!(
        began.iter().map(event).collect::<Vec<_>>(),
        ["started", "ready"]
    );
    assert_eq!(began[0].metadata["version"], env!("CARGO_PKG_VERSION"));
    server.terminate();
    end(&mut stream).await.unwrap_err();
    let mut server = server;
    assert_eq!(server.exit_code().await, Some(0));
    let server = server.restart().await;
    let told = newest(&server, "events", 100).await;
    let told: Vec<_> = told.iter().map(event).collect();
    let life = ["started", "ready", "draining", "stopped"];
    assert_eq!(told[..4], life.map(String::from));
}

#[tokio::test]
async fn log_lines_are_data_and_do_not_feed_back() {
    let settings = Settings::default().set("telemetry.log_level", "trace");
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::starting(dir, settings, Stdio::null()).await;
    server.ready().await;
    let mut service = service(&server).await;
    let mut stream = subscribe(&mut service, of(&["logs"], 1, Some(0))).await;
    let mut number = 0;
    let ready = loop {
        let point = points(&mut stream, &mut number, 1).await.remove(0);
        if point.metadata["message"] == "ready" {
            break point;
        }
    };
    assert_eq!(
        (ready.value, ready.metadata["level"].as_str()),
        (9.0, "INFO")
    );
    assert_eq!(ready.metadata["target"], "weir::app::serving");
    drop(stream);
    // The end of that stream is a line. Storing and delivering lines makes none, whatever the level of the log.
    let ended = |points: &[DataPoint]| {
        let ended = points.iter().find(|point| {
            point.metadata["message"] == "call ended"
                && point.metadata["method"].ends_with("SubscribeData")
        });
        ended.map(|point| point.sequence)
    };
    let last = eventually("the line of the stream's end", || async {
        ended(&newest(&server, "logs", 1000).await)
    })
    .await;
    let mut stream = subscribe(&mut service, of(&["logs"], 10, Some(last))).await;
    for number in 0..3 {
        let batch = next(&mut stream).await;
        assert_eq!((batch.sequence_number, batch.data_points), (number, vec![]));
    }
    assert_eq!(
        server
            .metric("weir_feed_dropped_total{feed=\"logs\"}")
            .await,
        0.0
    );
}
