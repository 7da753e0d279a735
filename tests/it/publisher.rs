//! `weir.v1.Publisher` over real sockets: what is stored, what is refused, and what a repeated key means.

use futures::stream;
use prost_types::{Any, Timestamp};
use tonic::{Code, Status, transport::Channel};
use weir::proto::{
    streaming::{DataPoint, StreamRequest, data_service_client::DataServiceClient},
    weir::v1::{
        PublishDataRequest, PublishNotificationRequest, PublishResponse, PublishUserEventRequest,
        publisher_client::PublisherClient,
    },
};

use crate::support::{
    Settings, TestServer,
    errors::{assert_ended, assert_invalid, info},
    soon,
};

pub(crate) type Publisher = PublisherClient<Channel>;

pub(crate) async fn publisher(server: &TestServer) -> Publisher {
    PublisherClient::new(server.channel().await).max_encoding_message_size(64 << 20)
}

pub(crate) fn event(user: &str, kind: i32) -> PublishUserEventRequest {
    PublishUserEventRequest {
        user_id: user.into(),
        r#type: kind,
        ..PublishUserEventRequest::default()
    }
}

pub(crate) fn notification(user: &str, title: &str) -> PublishNotificationRequest {
    PublishNotificationRequest {
        user_id: user.into(),
        title: title.into(),
        ..PublishNotificationRequest::default()
    }
}

pub(crate) fn data(topic: &str, value: f64) -> PublishDataRequest {
    PublishDataRequest {
        topic: topic.into(),
        value,
        ..PublishDataRequest::default()
    }
}

pub(crate) async fn publish_event(
    publisher: &mut Publisher,
    request: PublishUserEventRequest,
) -> PublishResponse {
    let published = publisher.publish_user_event(request).await;
    published.unwrap().into_inner()
}

pub(crate) async fn publish_notification(
    publisher: &mut Publisher,
    request: PublishNotificationRequest,
) -> PublishResponse {
    let published = publisher.publish_notification(request).await;
    published.unwrap().into_inner()
}

pub(crate) async fn publish_data(
    publisher: &mut Publisher,
    request: PublishDataRequest,
) -> PublishResponse {
    publisher.publish_data(request).await.unwrap().into_inner()
}

/// The newest points of a topic.
pub(crate) async fn newest(server: &TestServer, topic: &str, count: i32) -> Vec<DataPoint> {
    let request = StreamRequest {
        subscription_id: "test".into(),
        topics: vec![topic.into()],
        batch_size: count,
        after_sequence: None,
    };
    let mut service = DataServiceClient::new(server.channel().await);
    let got = soon("the data", service.get_data(request)).await;
    got.unwrap().into_inner().data_points
}

fn assert_conflict(status: &Status, first: &PublishResponse) {
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    let (reason, metadata) = info(status);
    assert_eq!(reason, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(metadata["sequence"], first.sequence.to_string());
}

#[tokio::test]
async fn a_repeated_key_is_answered_with_the_first_record() {
    let server = TestServer::start().await;
    let mut publisher = publisher(&server).await;
    let keyed = |kind| PublishUserEventRequest {
        idempotency_key: "k".into(),
        data: Some(Any {
            type_url: "x".into(),
            value: b"y".to_vec(),
        }),
        ..event("ann", kind)
    };
    let first = publish_event(&mut publisher, keyed(1)).await;
    assert!(first.id.starts_with("evt_"), "{first:?}");
    assert!(first.sequence > 0 && first.timestamp.is_some());
    assert_eq!(publish_event(&mut publisher, keyed(1)).await, first);
    let status = publisher.publish_user_event(keyed(2)).await.unwrap_err();
    assert_conflict(&status, &first);
    let other = PublishUserEventRequest {
        user_id: "bob".into(),
        ..keyed(2)
    };
    let other = publish_event(&mut publisher, other).await;
    assert_ne!(other.sequence, first.sequence, "another user's key");

    let keyed = |title: &str| PublishNotificationRequest {
        idempotency_key: "k".into(),
        ..notification("", title)
    };
    let first = publish_notification(&mut publisher, keyed("a")).await;
    assert!(first.id.starts_with("ntf_"), "{first:?}");
    assert_eq!(
        publish_notification(&mut publisher, keyed("a")).await,
        first
    );
    let status = publisher.publish_notification(keyed("b")).await;
    assert_conflict(&status.unwrap_err(), &first);

    let keyed = |value| PublishDataRequest {
        id: "mine".into(),
        idempotency_key: "k".into(),
        metadata: ["a", "b", "c", "d", "e", "f"]
            .map(|name| (name.to_owned(), "x".to_owned()))
            .into(),
        ..data("readings", value)
    };
    let first = publish_data(&mut publisher, keyed(1.0)).await;
    assert_eq!(first.id, "mine");
    for _ in 0..20 {
        // Maps come in any order; the content is the same.
        assert_eq!(publish_data(&mut publisher, keyed(1.0)).await, first);
    }
    let status = publisher.publish_data(keyed(1.5)).await.unwrap_err();
    assert_conflict(&status, &first);
    assert_eq!(newest(&server, "readings", 10).await.len(), 1);
    let server = server.restart().await;
    let mut publisher = self::publisher(&server).await;
    let repeated = publish_data(&mut publisher, keyed(1.0)).await;
    assert_eq!(repeated, first, "also after a restart");
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_with_every_violation() {
    let server = TestServer::start().await;
    let mut publisher = publisher(&server).await;
    let long = "x".repeat(257);
    let mut bad = event(" ", 99);
    bad.id = long.clone();
    bad.idempotency_key = " ".into();
    let status = publisher.publish_user_event(bad).await.unwrap_err();
    assert_invalid(
        &status,
        "user_id is required; id must be at most 256 bytes; idempotency_key must not be blank; type 99 is not known",
        &["user_id", "id", "idempotency_key", "type"],
    );
    let status = publisher
        .publish_notification(notification(" ", ""))
        .await
        .unwrap_err();
    assert_invalid(&status, "user_id is required", &["user_id"]);
    let status = publisher
        .publish_notification(notification(&long, ""))
        .await
        .unwrap_err();
    let text = "user_id must be at most 256 bytes";
    assert_invalid(&status, text, &["user_id"]);
    for own in ["metrics", "events", "logs"] {
        let status = publisher.publish_data(data(own, 1.0)).await.unwrap_err();
        let text = format!("topic {own} is the service's own");
        assert_invalid(&status, &text, &["topic"]);
    }
    let status = publisher.publish_data(data("", 1.0)).await.unwrap_err();
    assert_invalid(&status, "topic is required", &["topic"]);
}

#[tokio::test]
async fn points_come_back_as_they_were_published() {
    let server = TestServer::start().await;
    let mut publisher = publisher(&server).await;
    let values = [
        1.5,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MIN_POSITIVE,
        f64::MAX,
    ];
    for value in values {
        publish_data(&mut publisher, data("values", value)).await;
    }
    let points = newest(&server, "values", 100).await;
    let bits =
        |values: &[f64]| -> Vec<u64> { values.iter().map(|value| value.to_bits()).collect() };
    let got: Vec<_> = points.iter().map(|point| point.value).collect();
    assert_eq!(bits(&got), bits(&values));
    for point in &points {
        assert_eq!(point.id, format!("test-{}", point.sequence));
        assert!(point.timestamp > 1_600_000_000_000_000_000, "now");
    }
    let named = PublishDataRequest {
        id: "p".into(),
        timestamp: -5,
        metadata: [
            ("topic".to_owned(), "a lie".to_owned()),
            ("".into(), "".into()),
        ]
        .into(),
        ..data("named", 1.0)
    };
    publish_data(&mut publisher, named).await;
    let point = newest(&server, "named", 1).await.remove(0);
    assert_eq!((point.id.as_str(), point.timestamp), ("p", -5));
    assert_eq!(point.metadata["topic"], "named");
    assert_eq!(point.metadata[""], "");
}

#[tokio::test]
async fn a_stream_is_stored_up_to_its_first_bad_point() {
    let server = TestServer::start().await;
    let mut publisher = publisher(&server).await;
    let count = 5000;
    let points = stream::iter(0..count).map_value();
    let stored = publisher.publish_stream(points).await.unwrap();
    assert_eq!(stored.into_inner().count, i64::from(count));
    let newest_points = newest(&server, "bulk", 1000).await;
    let got: Vec<_> = newest_points.iter().map(|point| point.value).collect();
    let expected: Vec<_> = (count - 1000..count).map(f64::from).collect();
    assert_eq!(got, expected);

    let mut points: Vec<_> = (0..5)
        .map(|value| data("partly", f64::from(value)))
        .collect();
    points[3].topic = "logs".into();
    let status = publisher.publish_stream(stream::iter(points)).await;
    assert_invalid(
        &status.unwrap_err(),
        "topic logs is the service's own",
        &["messages[3].topic"],
    );
    assert_eq!(newest(&server, "partly", 10).await.len(), 3);

    let keyed = |value: f64| PublishDataRequest {
        idempotency_key: format!("{value}"),
        ..data("keyed", value)
    };
    for _ in 0..2 {
        let points = stream::iter([1.0, 2.0, 3.0, 2.0].map(keyed));
        let stored = publisher.publish_stream(points).await.unwrap();
        assert_eq!(
            stored.into_inner().count,
            4,
            "acknowledged, if not stored anew"
        );
    }
    assert_eq!(newest(&server, "keyed", 10).await.len(), 3);
    let empty = publisher.publish_stream(stream::empty()).await.unwrap();
    assert_eq!(empty.into_inner().count, 0);
}

/// Numbered points of the topic `bulk`.
trait Numbered {
    fn map_value(self) -> impl futures::Stream<Item = PublishDataRequest> + Send + 'static;
}

impl<S: futures::Stream<Item = i32> + Send + 'static> Numbered for S {
    fn map_value(self) -> impl futures::Stream<Item = PublishDataRequest> + Send + 'static {
        use futures::StreamExt as _;
        self.map(|number| data("bulk", f64::from(number)))
    }
}

#[tokio::test]
async fn what_is_acknowledged_survives_a_kill() {
    let mut server = TestServer::start().await;
    let mut publisher = publisher(&server).await;
    let stamped = PublishUserEventRequest {
        timestamp: Some(Timestamp {
            seconds: 5,
            nanos: 0,
        }),
        ..event("ann", 1)
    };
    publish_event(&mut publisher, stamped).await;
    let point = publish_data(&mut publisher, data("kept", 4.0)).await;
    server.kill().await;
    let server = server.restart().await;
    let kept = newest(&server, "kept", 10).await;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].sequence, point.sequence);
}

#[tokio::test]
async fn a_drain_ends_a_bulk_stream_that_goes_on() {
    let server = TestServer::with(Settings::default()).await;
    let mut publisher = publisher(&server).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(data("draining", 1.0)).await.unwrap();
    let points = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let publishing = tokio::spawn(async move { publisher.publish_stream(points).await });
    crate::support::eventually("the first point", || async {
        (newest(&server, "draining", 1).await.len() == 1).then_some(())
    })
    .await;
    server.terminate();
    let status = soon("the end", publishing).await.unwrap().unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), None);
    drop(sender);
}
