//! `streaming.v1.StreamingService/ProcessLiveData` over real sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, stream};
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};
use weir::proto::streaming::v1::{
    DataInput, ProcessedData, ProcessingResult, processing_result::Result as Outcome,
};

use crate::{
    batch::{V1, client},
    support::{Settings, TestServer, end, errors::assert_ended, eventually, next, soon},
};

/// One open stream.
struct Live {
    send: mpsc::Sender<DataInput>,
    results: Streaming<ProcessingResult>,
}

impl Live {
    async fn open(v1: &mut V1) -> Self {
        let (send, inputs) = mpsc::channel(100);
        let opened = v1.process_live_data(ReceiverStream::new(inputs));
        let results = soon("a response", opened).await.unwrap().into_inner();
        Self { send, results }
    }

    /// Sends an input and takes its result.
    async fn result(&mut self, input: DataInput) -> ProcessingResult {
        self.send.send(input).await.unwrap();
        next(&mut self.results).await
    }

    async fn processed(&mut self, input: DataInput) -> ProcessedData {
        match self.result(input).await.result {
            Some(Outcome::Processed(processed)) => processed,
            other => panic!("{other:?}"),
        }
    }

    /// The code of the error that an input gets.
    async fn code(&mut self, input: DataInput) -> String {
        match self.result(input).await.result {
            Some(Outcome::Error(error)) => {
                assert!(!error.message.is_empty());
                error.code
            }
            other => panic!("{other:?}"),
        }
    }
}

fn at(series: &str, seconds: i64, value: f64) -> DataInput {
    DataInput {
        id: format!("{series}@{seconds}"),
        series: series.into(),
        value,
        timestamp: Some(Timestamp { seconds, nanos: 0 }),
        ..DataInput::default()
    }
}

#[tokio::test]
async fn results_come_in_the_order_of_the_inputs_with_errors_between_them() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let inputs = (0..20_000i64).map(|number| DataInput {
        id: number.to_string(),
        ..at(
            "s",
            60 + number % 50,
            if number % 7 == 3 { f64::NAN } else { 2.0 },
        )
    });
    let results = v1
        .process_live_data(stream::iter(inputs))
        .await
        .unwrap()
        .into_inner();
    let results: Vec<_> = soon("all results", results.collect::<Vec<_>>()).await;
    assert_eq!(results.len(), 20_000);
    let mut count = 0;
    for (number, result) in results.into_iter().enumerate() {
        let result = result.unwrap();
        assert_eq!(result.id, number.to_string());
        match (number % 7, result.result) {
            (3, Some(Outcome::Error(error))) => assert_eq!(error.code, "INVALID_VALUE"),
            (_, Some(Outcome::Processed(processed))) => {
                count += 1;
                let ProcessedData {
                    count: so_far,
                    mean,
                    stddev,
                    ..
                } = processed;
                assert_eq!((so_far, mean, stddev), (count, 2.0, 0.0));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_value_is_described_by_its_window() {
    let settings = Settings::default()
        .set("processing.window", "10s")
        .set("processing.lateness", "15s");
    let server = TestServer::with(settings).await;
    let mut live = Live::open(&mut client(&server).await).await;
    live.processed(at("s", 100, 1.0)).await;
    let second = live.processed(at("s", 109, 3.0)).await;
    let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
    assert_eq!(
        second,
        ProcessedData {
            series: "s".into(),
            value: 3.0,
            window_start: time(100),
            window_end: time(110),
            count: 2,
            mean: 2.0,
            min: 1.0,
            max: 3.0,
            stddev: 1.0,
            anomaly_score: 0.0,
            is_anomaly: false,
        }
    );
    let other = live.processed(at("s", 110, 5.0)).await;
    assert_eq!((other.window_start, other.count), (time(110), 1));
    // Late, and still in time for its window.
    assert_eq!(live.processed(at("s", 105, 5.0)).await.count, 3);
    live.processed(at("s", 125, 5.0)).await;
    assert_eq!(live.code(at("s", 109, 5.0)).await, "TOO_LATE");
    assert_eq!(live.processed(at("s", 110, 7.0)).await.mean, 6.0);
    // Before the epoch, and of another series.
    assert_eq!(
        live.processed(at("t", -1, 5.0)).await.window_start,
        time(-10)
    );
}

#[tokio::test]
async fn what_is_wrong_with_an_input_is_told_and_the_stream_goes_on() {
    let settings = Settings::default().set("processing.max_series", 2);
    let server = TestServer::with(settings).await;
    let mut live = Live::open(&mut client(&server).await).await;
    live.processed(at("s", 1000, 1.0)).await;
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(live.code(at("s", 1000, value)).await, "INVALID_VALUE");
    }
    for series in ["", " \n", &"x".repeat(257)] {
        assert_eq!(live.code(at(series, 1000, 1.0)).await, "INVALID_SERIES");
    }
    for seconds in [i64::MAX, i64::MIN, 253_402_300_799] {
        assert_eq!(live.code(at("s", seconds, 1.0)).await, "INVALID_TIMESTAMP");
    }
    assert_eq!(live.code(at("s", 939, 1.0)).await, "TOO_LATE");
    live.processed(at("t", 0, 1.0)).await;
    assert_eq!(live.code(at("u", 1000, 1.0)).await, "TOO_MANY_SERIES");
    assert_eq!(live.processed(at("s", 1000, 1.0)).await.count, 2);
    // The input's id comes back, also with what is wrong.
    assert_eq!(live.result(at("u", 7, 1.0)).await.id, "u@7");
}

#[tokio::test]
async fn without_a_time_an_input_is_of_its_arrival() {
    let server = TestServer::start().await;
    let mut live = Live::open(&mut client(&server).await).await;
    let input = DataInput {
        timestamp: None,
        ..at("s", 0, 1.0)
    };
    let processed = live.processed(input).await;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let start = processed.window_start.unwrap().seconds;
    assert!(
        (start - now.cast_signed()).abs() <= 120 && start % 60 == 0,
        "{start}"
    );
}

#[tokio::test]
async fn an_unusual_value_is_flagged() {
    let server = TestServer::start().await;
    let mut live = Live::open(&mut client(&server).await).await;
    for number in 0..100i32 {
        let value = 20.0 + f64::from(number % 5);
        let processed = live.processed(at("noisy", 1000, value)).await;
        assert!(!processed.is_anomaly, "{processed:?}");
        let processed = live.processed(at("constant", 1000, 7.0)).await;
        assert_eq!(
            (processed.anomaly_score, processed.is_anomaly),
            (0.0, false)
        );
    }
    let low = live.processed(at("noisy", 1000, -20.0)).await;
    // The median is 22, the median distance 1.
    assert!(
        low.is_anomaly && (low.anomaly_score + 0.6745 * 42.0).abs() < 1e-6,
        "{low:?}"
    );
    let jump = live.processed(at("constant", 1000, 7.5)).await;
    assert!(jump.is_anomaly && jump.anomaly_score == 1e9, "{jump:?}");
}

/// Inputs sent to a client that does not read: more than the windows of a connection hold.
const INPUTS: u64 = 400_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_not_read_from() {
    let server = TestServer::start().await;
    let baseline = server.resident_bytes();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let inputs = stream::iter(0..INPUTS).map(move |number| {
        counted.fetch_add(1, Ordering::Relaxed);
        DataInput {
            id: format!("{number:0>100}"),
            ..at("s", 0, 1.0)
        }
    });
    let endpoint = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
    let mut v1 = V1::new(endpoint.connect().await.unwrap());
    let mut results = v1.process_live_data(inputs).await.unwrap().into_inner();
    next(&mut results).await;
    let last = AtomicU64::new(0);
    let same = AtomicU64::new(0);
    eventually("the client to be held up", || async {
        let now = sent.load(Ordering::Relaxed);
        match last.swap(now, Ordering::Relaxed) == now {
            true => same.fetch_add(1, Ordering::Relaxed),
            false => same.swap(0, Ordering::Relaxed),
        };
        (same.load(Ordering::Relaxed) >= 100).then_some(())
    })
    .await;
    let held = sent.load(Ordering::Relaxed);
    assert!(
        held < INPUTS / 2,
        "{held} inputs were taken without anybody reading"
    );
    let grown = server.resident_bytes().saturating_sub(baseline);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
    for number in 1..INPUTS {
        let result = next(&mut results).await;
        assert!(
            result.id.ends_with(&number.to_string()),
            "{} for {number}",
            result.id
        );
    }
    end(&mut results).await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_the_stream_after_its_results() {
    let mut server = TestServer::start().await;
    let mut live = Live::open(&mut client(&server).await).await;
    live.processed(at("s", 0, 1.0)).await;
    server.terminate();
    let status = end(&mut live.results).await.unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), None);
    assert_eq!(server.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_deadline_and_a_cancelled_stream_leave_nothing_behind() {
    let server = TestServer::start().await;
    let mut v1 = client(&server).await;
    let active = || async {
        let series = "weir_streams_active{grpc_method=\"ProcessLiveData\",\
                      grpc_service=\"streaming.v1.StreamingService\"}";
        server.metric(series).await
    };
    let mut live = Live::open(&mut v1).await;
    live.processed(at("s", 0, 1.0)).await;
    assert_eq!(active().await, 1.0);
    drop(live);
    eventually("the stream to be gone", || async {
        (active().await == 0.0).then_some(())
    })
    .await;

    let (send, inputs) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(inputs));
    request.set_timeout(Duration::from_millis(300));
    let mut results = v1.process_live_data(request).await.unwrap().into_inner();
    send.send(at("s", 0, 1.0)).await.unwrap();
    let status = end(&mut results).await.unwrap_err();
    assert!(
        matches!(
            status.code(),
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
        ),
        "{status:?}"
    );
    eventually("the stream to be gone", || async {
        (active().await == 0.0).then_some(())
    })
    .await;
}
