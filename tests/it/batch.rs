//! `streaming.v1.StreamingService/ProcessDataBatch` over real sockets.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Instant,
};

use futures::stream;
use prost::Message as _;
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, transport::Channel};
use weir::{
    config,
    core::feeds::Point,
    log::{self, Limit, Record, Sequence, Space, Topic},
    proto::streaming::{
        DataPoint,
        v1::{
            BatchProcessingResult, DataRecord, SeriesStatistics,
            streaming_service_client::StreamingServiceClient,
        },
    },
    telemetry::Metrics,
};

use crate::support::{Settings, TestServer, errors::assert_ended, eventually, soon};

pub(crate) type V1 = StreamingServiceClient<Channel>;

pub(crate) async fn client(server: &TestServer) -> V1 {
    V1::new(server.channel().await).max_decoding_message_size(64 << 20)
}

fn point(record: &Record) -> DataPoint {
    let stored = Point::decode(record.payload.clone()).unwrap();
    let metadata = stored.metadata.into_iter();
    let time = record.shown_time();
    DataPoint {
        id: record.id.to_string(),
        value: stored.value,
        timestamp: time.seconds * 1_000_000_000 + i64::from(time.nanos),
        metadata: metadata
            .map(|(name, text)| (name.into(), text.into()))
            .collect(),
        sequence: record.sequence.0,
    }
}

/// Everything in a topic, read from the directory of a server that is gone.
pub(crate) async fn stored_points(dir: &Path, space: Space, name: &str) -> Vec<DataPoint> {
    let mut config = config::Config::default();
    config.log.dir = dir.join("data");
    let engine = log::open(&config, None, Metrics::new()).await.unwrap();
    let topic = Topic::new(space, name).unwrap();
    let (mut from, mut points) = (Sequence::FIRST, Vec::new());
    let limit = Limit {
        records: 10_000,
        bytes: 1 << 20,
    };
    loop {
        let page = engine.read(&topic, from, limit).await.unwrap();
        points.extend(page.records.iter().map(|record| point(record)));
        if page.next == page.tail {
            engine.close().await;
            return points;
        }
        from = page.next;
    }
}

fn record(series: &str, value: f64) -> DataRecord {
    DataRecord {
        series: series.into(),
        value,
        ..DataRecord::default()
    }
}

fn with_id(id: &str, record: DataRecord) -> DataRecord {
    DataRecord {
        id: id.into(),
        ..record
    }
}

fn keyed(key: &str, record: DataRecord) -> DataRecord {
    DataRecord {
        idempotency_key: key.into(),
        ..record
    }
}

async fn process(v1: &mut V1, records: Vec<DataRecord>) -> Result<BatchProcessingResult, Status> {
    let result = v1.process_data_batch(stream::iter(records)).await;
    result.map(tonic::Response::into_inner)
}

/// Received, accepted, rejected.
fn counts(result: &BatchProcessingResult) -> (i64, i64, i64) {
    (result.received, result.accepted, result.rejected)
}

/// Index, id and reason of every error.
fn errors(result: &BatchProcessingResult) -> Vec<(i64, &str, &str)> {
    let errors = result.errors.iter();
    errors
        .map(|error| (error.index, error.id.as_str(), error.reason.as_str()))
        .collect()
}

fn series(result: &BatchProcessingResult) -> Vec<&str> {
    result
        .series
        .iter()
        .map(|one| one.series.as_str())
        .collect()
}

fn assert_close(found: f64, exact: f64, bound: f64) {
    assert!(
        (found - exact).abs() <= exact.abs() * bound,
        "{found} for {exact}"
    );
}

/// Compares with statistics computed the plain way.
fn assert_statistics(found: &SeriesStatistics, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let at = |quantile: f64| values[(quantile * (count - 1.0)) as usize];
    assert_eq!(found.count, count as i64);
    assert_eq!((found.min, found.max), (values[0], at(1.0)));
    assert_close(found.sum, mean * count, 1e-9);
    assert_close(found.mean, mean, 1e-9);
    assert_close(found.stddev, (squares / count).sqrt(), 1e-9);
    for (found, quantile) in [(found.p50, 0.5), (found.p95, 0.95), (found.p99, 0.99)] {
        assert_close(found, at(quantile), 0.01);
    }
}

#[tokio::test]
async fn a_batch_is_described_by_series() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let value = |number: i32| match number % 3 {
        0 => f64::from(number),
        1 => -1e6 / f64::from(number),
        _ => 5.0,
    };
    let name = |number: i32| ["b", "a", "const"][(number % 3) as usize];
    let records = (0..9000).map(|number| record(name(number), value(number)));
    let result = process(&mut v1, records.collect()).await.unwrap();
    assert_eq!(counts(&result), (9000, 9000, 0));
    assert_eq!(series(&result), ["a", "b", "const"]);
    for (found, remainder) in result.series.iter().zip([1, 0, 2]) {
        let values = (0..9000)
            .filter(|number| number % 3 == remainder)
            .map(value);
        assert_statistics(found, values.collect());
    }
}

#[tokio::test]
async fn an_empty_batch_is_no_error() {
    let server = TestServer::start().await;
    let result = process(&mut client(&server).await, Vec::new())
        .await
        .unwrap();
    assert_eq!(result, BatchProcessingResult::default());
}

#[tokio::test]
async fn a_bad_record_is_named_and_sinks_nothing() {
    let mut server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let long = "ü".repeat(129);
    let time = |seconds, nanos| DataRecord {
        timestamp: Some(Timestamp { seconds, nanos }),
        ..record("s", 1.0)
    };
    let records = vec![
        with_id("first", record("s", 1.0)),
        with_id("blank", record(" ", 1.0)),
        record(&long, 1.0),
        with_id("nan", record("s", f64::NAN)),
        record("s", f64::INFINITY),
        with_id(&long, record("s", 1.0)),
        with_id(" ", record("s", 1.0)),
        keyed(&long, record("s", 1.0)),
        with_id("nanos", time(0, 1_000_000_000)),
        time(253_402_300_799, 0),
        with_id("all", record("", f64::NEG_INFINITY)),
        with_id("last", time(-1, 5)),
    ];
    let result = process(&mut v1, records).await.unwrap();
    assert_eq!(counts(&result), (12, 2, 10));
    assert_eq!(
        errors(&result),
        [
            (1, "blank", "series is required"),
            (2, "", "series must be at most 256 bytes"),
            (3, "nan", "value must be finite"),
            (4, "", "value must be finite"),
            (5, &long[..256], "id must be at most 256 bytes"),
            (6, " ", "id must not be blank"),
            (7, "", "idempotency_key must be at most 256 bytes"),
            (8, "nanos", "timestamp must be a time from 1677 to 2262"),
            (9, "", "timestamp must be a time from 1677 to 2262"),
            (10, "all", "series is required; value must be finite"),
        ]
    );
    assert_eq!(series(&result), ["s"]);
    assert_statistics(&result.series[0], vec![1.0, 1.0]);
    server.kill().await;
    let points = stored_points(server.dir(), Space::Data, "data").await;
    let ids: Vec<_> = points.iter().map(|point| point.id.as_str()).collect();
    assert_eq!(ids, ["first", "last"]);
}

#[tokio::test]
async fn the_first_hundred_errors_are_named() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let records = (0..5000).map(|number| match number % 2 {
        0 => record("s", 1.0),
        _ => record("s", f64::NAN),
    });
    let result = process(&mut v1, records.collect()).await.unwrap();
    assert_eq!(counts(&result), (5000, 2500, 2500));
    let indices: Vec<_> = result.errors.iter().map(|error| error.index).collect();
    let expected: Vec<_> = (0..100).map(|number| 2 * number + 1).collect();
    assert_eq!(indices, expected);
}

#[tokio::test]
async fn accepted_records_are_durable_points_when_the_result_comes() {
    let mut server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let records = (0..3000).map(|number| DataRecord {
        timestamp: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: number,
        }),
        attributes: HashMap::from([
            ("unit".to_owned(), "°C".to_owned()),
            ("series".to_owned(), "not this".to_owned()),
        ]),
        ..with_id(&number.to_string(), record("heat", f64::from(number)))
    });
    process(&mut v1, records.collect()).await.unwrap();
    process(&mut v1, vec![record("heat", 0.5)]).await.unwrap();
    server.kill().await;
    let mut points = stored_points(server.dir(), Space::Data, "data").await;
    let last = points.pop().unwrap();
    assert!(
        last.id.is_empty() && last.timestamp > 1_700_000_000_000_000_000,
        "{last:?}"
    );
    assert_eq!(points.len(), 3000);
    for (number, point) in (0..).zip(points) {
        assert_eq!(
            (point.id, point.value),
            (number.to_string(), f64::from(number))
        );
        assert_eq!(
            point.timestamp,
            1_700_000_000_000_000_000 + i64::from(number)
        );
        let metadata: BTreeMap<_, _> = point.metadata.into_iter().collect();
        let expected = [("series", "heat"), ("unit", "°C")];
        assert_eq!(
            metadata,
            expected
                .map(|(key, value)| (key.into(), value.into()))
                .into()
        );
    }
}

#[tokio::test]
async fn a_repeated_key_is_accepted_and_stored_once_and_a_reused_one_is_refused() {
    let mut server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let attributes = |number: i32| {
        let pairs = (0..20).map(|label| (format!("label {label}"), number.to_string()));
        pairs.collect::<HashMap<_, _>>()
    };
    let keyed_record = |number: i32| DataRecord {
        attributes: attributes(number),
        ..keyed(&format!("k-{number}"), record("s", f64::from(number)))
    };
    for _ in 0..3 {
        let result = process(&mut v1, (0..100).map(keyed_record).collect())
            .await
            .unwrap();
        assert_eq!(counts(&result), (100, 100, 0));
        assert_eq!(result.series[0].count, 100);
    }
    let records = vec![
        with_id("reused", keyed("k-5", record("s", -1.0))),
        with_id("bad", record("s", f64::NAN)),
        with_id("again", keyed("k-6", record("other", 6.0))),
        record("s", 7.0),
    ];
    let result = process(&mut v1, records).await.unwrap();
    assert_eq!(counts(&result), (4, 1, 3));
    let found: Vec<_> = result
        .errors
        .iter()
        .map(|error| (error.index, &*error.id))
        .collect();
    assert_eq!(found, [(0, "reused"), (1, "bad"), (2, "again")]);
    for error in [&result.errors[0], &result.errors[2]] {
        assert!(
            error.reason.contains("idempotency key was already used"),
            "{error:?}"
        );
    }
    // Nothing of what was refused is in the statistics, not even an empty series.
    assert_eq!(series(&result), ["s"]);
    assert_statistics(&result.series[0], vec![7.0]);
    server.kill().await;
    assert_eq!(
        stored_points(server.dir(), Space::Data, "data").await.len(),
        101
    );
}

#[tokio::test]
async fn records_of_one_series_too_many_are_refused() {
    let server = TestServer::with(Settings::default().set("processing.max_series", 2)).await;
    let mut v1 = client(&server).await;
    let records = ["a", "b", "c", "a", "d", "b"].map(|series| record(series, 1.0));
    let result = process(&mut v1, records.to_vec()).await.unwrap();
    assert_eq!(counts(&result), (6, 4, 2));
    let reason = "series of one batch is limited to 2";
    assert_eq!(errors(&result), [(2, "", reason), (4, "", reason)]);
    assert_eq!(series(&result), ["a", "b"]);
}

#[tokio::test]
async fn a_result_never_exceeds_the_largest_message() {
    let settings = Settings::default()
        .set("processing.max_series", 1_000_000)
        .set("limits.message", "64KiB");
    let server = TestServer::with(settings).await;
    let mut v1 =
        StreamingServiceClient::new(server.channel().await).max_decoding_message_size(64 << 10);
    let records = (0..2000).map(|number| record(&format!("{number:0>200}"), 1.0));
    let result = process(&mut v1, records.collect()).await.unwrap();
    assert_eq!(result.received, 2000);
    assert!(
        result.accepted > 50 && result.rejected > 1000,
        "{:?}",
        counts(&result)
    );
    assert!(result.encoded_len() <= 64 << 10);
    assert_eq!(result.series.len() as i64, result.accepted);
}

#[tokio::test]
async fn a_batch_ends_with_the_drain_and_what_came_is_stored() {
    let mut server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let (send, records) = mpsc::channel(10);
    let batch = tokio::spawn(async move {
        let result = v1.process_data_batch(ReceiverStream::new(records)).await;
        result.unwrap_err()
    });
    send.send(record("s", 1.0)).await.unwrap();
    let appended = || async {
        let data = "weir_appended_records_total{space=\"data\"}";
        (server.metric(data).await == 1.0).then_some(())
    };
    eventually("the record to be stored", appended).await;
    server.terminate();
    let status = soon("the batch's end", batch).await.unwrap();
    assert_eq!(assert_ended(&status, "DRAINING"), None);
    assert_eq!(server.exit_code().await, Some(0));
}

/// A batch of so many records; ten million with `WEIR_BATCH_RECORDS=10000000`.
const RECORDS: u64 = 300_000;
/// What the server's memory may grow by, however many they are.
const GROWTH_BYTES: u64 = 96 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_batch_takes_flat_memory() {
    let count = std::env::var("WEIR_BATCH_RECORDS").ok();
    let count = count.map_or(RECORDS, |text| text.parse().expect("a number"));
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let records = |count: u64| {
        stream::iter((0..count).map(|number| DataRecord {
            id: number.to_string(),
            // Heavy tails of both signs, and everything around 1000.
            value: match number % 2 {
                0 => 1e6 / (number % 9973 + 1) as f64 - 500.0,
                _ => 1000.0 + (number % 1009) as f64,
            },
            ..record(["tails", "hill"][(number % 2) as usize], 0.0)
        }))
    };
    v1.process_data_batch(records(50_000)).await.unwrap();
    let (baseline, began) = (server.resident_bytes(), Instant::now());
    let mut peak = baseline;
    let batch = v1.process_data_batch(records(count));
    tokio::pin!(batch);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
    let result = loop {
        tokio::select! {
            result = &mut batch => break result.unwrap().into_inner(),
            _ = ticks.tick() => peak = peak.max(server.resident_bytes()),
        }
    };
    let grown = peak.saturating_sub(baseline) >> 20;
    println!(
        "batch: {count} records in {:.1} s ({:.0}/s), memory {} MiB, grown by {grown} MiB",
        began.elapsed().as_secs_f64(),
        count as f64 / began.elapsed().as_secs_f64(),
        baseline >> 20,
    );
    assert_eq!(counts(&result), (count as i64, count as i64, 0));
    assert_eq!(series(&result), ["hill", "tails"]);
    assert_eq!(
        result.series.iter().map(|one| one.count).sum::<i64>(),
        count as i64
    );
    let hill: Vec<_> = (0..count)
        .filter(|number| number % 2 == 1)
        .map(|number| 1000.0 + (number % 1009) as f64)
        .collect();
    assert_statistics(&result.series[0], hill);
    assert!(grown < GROWTH_BYTES >> 20, "{grown} MiB");
    let stored = server
        .metric("weir_appended_records_total{space=\"data\"}")
        .await;
    assert_eq!(stored as u64, count + 50_000);
}

#[tokio::test]
async fn a_batch_that_is_given_up_has_no_result_and_leaves_no_stream() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let endless =
        futures::stream::repeat(record("s", 1.0)).throttle(std::time::Duration::from_millis(1));
    let batch = tokio::spawn(async move { v1.process_data_batch(endless).await.map(drop) });
    let active = "weir_streams_active{grpc_method=\"ProcessDataBatch\",\
                  grpc_service=\"streaming.v1.StreamingService\"}";
    let is = |wanted: f64| {
        let server = &server;
        async move { (server.metric(active).await == wanted).then_some(()) }
    };
    eventually("the batch to begin", || is(1.0)).await;
    batch.abort();
    eventually("the batch to be gone", || is(0.0)).await;
}
