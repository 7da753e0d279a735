//! `StreamUserEvents` over real sockets.

use prost_types::{Any, Timestamp};
use tonic::{Code, Status, Streaming, transport::Channel};
use weir::proto::{
    streaming::v1::{
        StreamUserEventsRequest, UserEvent, UserEventType,
        streaming_service_client::StreamingServiceClient,
    },
    weir::v1::PublishUserEventRequest,
};

use crate::{
    publisher::{event, publish_event, publisher},
    support::{
        Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        eventually, next,
    },
};

const LOGIN: i32 = UserEventType::Login as i32;
const LOGOUT: i32 = UserEventType::Logout as i32;

pub(crate) type V1 = StreamingServiceClient<Channel>;

pub(crate) async fn v1(server: &TestServer) -> V1 {
    StreamingServiceClient::new(server.channel().await).max_decoding_message_size(64 << 20)
}

fn of(user: &str, after_sequence: Option<u64>) -> StreamUserEventsRequest {
    StreamUserEventsRequest {
        user_id: user.into(),
        after_sequence,
        ..StreamUserEventsRequest::default()
    }
}

async fn stream(v1: &mut V1, request: StreamUserEventsRequest) -> Streaming<UserEvent> {
    v1.stream_user_events(request).await.unwrap().into_inner()
}

async fn refused(v1: &mut V1, request: StreamUserEventsRequest) -> Status {
    v1.stream_user_events(request).await.unwrap_err()
}

async fn sequences(stream: &mut Streaming<UserEvent>, count: usize) -> Vec<u64> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(next(stream).await.sequence);
    }
    all
}

#[tokio::test]
async fn events_of_a_user_come_as_they_happen_and_as_they_were_published() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let mut anns = stream(&mut v1, of("ann", None)).await;
    publish_event(&mut publisher, event("bob", LOGIN)).await;
    let data = Any {
        type_url: "type.googleapis.com/some.Thing".into(),
        value: vec![0, 1, 255],
    };
    let when = Timestamp {
        seconds: -62_000_000_000,
        nanos: 7,
    };
    let whole = PublishUserEventRequest {
        id: "e1".into(),
        timestamp: Some(when),
        data: Some(data.clone()),
        ..event("ann", LOGOUT)
    };
    let stored = publish_event(&mut publisher, whole).await;
    assert_eq!(stored.id, "e1");
    let expected = UserEvent {
        id: "e1".into(),
        user_id: "ann".into(),
        r#type: LOGOUT,
        timestamp: Some(when),
        data: Some(data),
        sequence: stored.sequence,
    };
    assert_eq!(next(&mut anns).await, expected);
    let stored = publish_event(&mut publisher, event("ann", 0)).await;
    let heard = next(&mut anns).await;
    assert_eq!((heard.id, heard.sequence), (stored.id, stored.sequence));
    assert_eq!((heard.r#type, heard.data), (0, None));
    assert_eq!(heard.timestamp, stored.timestamp);
}

#[tokio::test]
async fn a_filter_passes_its_types_alone() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let only = |types: &[i32], after| StreamUserEventsRequest {
        event_types: types.to_vec(),
        ..of("ann", after)
    };
    let mut live = stream(&mut v1, only(&[LOGIN, LOGIN], None)).await;
    let mut stored = Vec::new();
    for kind in [LOGOUT, LOGIN, 3, 4, LOGIN, 0] {
        let one = publish_event(&mut publisher, event("ann", kind)).await;
        stored.push((kind, one.sequence));
    }
    let of_type = |types: &[i32]| -> Vec<u64> {
        let wanted = stored.iter().filter(|(kind, _)| types.contains(kind));
        wanted.map(|(_, sequence)| *sequence).collect()
    };
    assert_eq!(sequences(&mut live, 2).await, of_type(&[LOGIN]));
    let mut history = stream(&mut v1, only(&[3, 0], Some(0))).await;
    assert_eq!(sequences(&mut history, 2).await, of_type(&[3, 0]));
    let mut all = stream(&mut v1, only(&[0, 1, 2, 3, 4], Some(stored[2].1))).await;
    assert_eq!(sequences(&mut all, 3).await, of_type(&[0, 1, 2, 3, 4])[3..]);
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused() {
    let server = TestServer::start().await;
    let mut v1 = v1(&server).await;
    for blank in ["", " ", "\t\n"] {
        let status = refused(&mut v1, of(blank, None)).await;
        assert_invalid(&status, "User ID is required", &["user_id"]);
    }
    let status = refused(&mut v1, of(&"x".repeat(257), None)).await;
    assert_invalid(&status, "user_id must be at most 256 bytes", &["user_id"]);
    let mut request = of("ann", None);
    request.event_types = vec![1, 5, -1];
    let status = refused(&mut v1, request).await;
    assert_invalid(
        &status,
        "type 5 is not known; type -1 is not known",
        &["event_types[1]", "event_types[2]"],
    );
    let mut request = of("ann", Some(0));
    request.start_time = Some(Timestamp::default());
    let status = refused(&mut v1, request).await;
    let text = "start_time and after_sequence exclude each other";
    assert_invalid(&status, text, &["start_time"]);
    let status = refused(&mut v1, of("ann", Some(1 << 40))).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "POSITION_BEYOND_TAIL");
    assert!(metadata.contains_key("last_sequence"), "{metadata:?}");
}

#[tokio::test]
async fn a_subscription_resumes_over_the_seam() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let mut all = Vec::new();
    for _ in 0..30 {
        all.push(
            publish_event(&mut publisher, event("ann", LOGIN))
                .await
                .sequence,
        );
    }
    for types in [vec![], vec![LOGIN]] {
        for position in [0, all[0], all[14], all[29]] {
            let request = StreamUserEventsRequest {
                event_types: types.clone(),
                ..of("ann", Some(position))
            };
            let mut stream = stream(&mut v1, request).await;
            let expected: Vec<_> = all.iter().copied().filter(|at| *at > position).collect();
            assert_eq!(sequences(&mut stream, expected.len()).await, expected);
            let live = publish_event(&mut publisher, event("ann", LOGIN))
                .await
                .sequence;
            assert_eq!(sequences(&mut stream, 1).await, [live]);
            all.push(live);
        }
    }
}

#[tokio::test]
async fn a_start_time_replays_what_was_stored_from_then_on() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let since = |time| StreamUserEventsRequest {
        start_time: time,
        ..of("ann", None)
    };
    // Nobody wrote yet: from any time on, it is live.
    let mut early = stream(&mut v1, since(Some(Timestamp::default()))).await;
    let mut stored = Vec::new();
    for _ in 0..5 {
        // What the publisher says about the time does not count: it may say anything.
        let lying = PublishUserEventRequest {
            timestamp: Some(Timestamp::default()),
            ..event("ann", LOGIN)
        };
        stored.push(publish_event(&mut publisher, lying).await);
        // Another user's events lie between.
        publish_event(&mut publisher, event("bob", LOGIN)).await;
    }
    let all: Vec<_> = stored.iter().map(|one| one.sequence).collect();
    assert_eq!(sequences(&mut early, 5).await, all);
    let mut from_third = stream(&mut v1, since(stored[2].timestamp)).await;
    assert_eq!(sequences(&mut from_third, 3).await, all[2..]);
    let before_all = Timestamp {
        seconds: i64::MIN,
        nanos: -1,
    };
    let mut whole = stream(&mut v1, since(Some(before_all))).await;
    assert_eq!(sequences(&mut whole, 5).await, all);
    let future = Timestamp {
        seconds: i64::MAX,
        nanos: 0,
    };
    let mut live = stream(&mut v1, since(Some(future))).await;
    let last = publish_event(&mut publisher, event("ann", LOGIN))
        .await
        .sequence;
    assert_eq!(sequences(&mut live, 1).await, [last]);
    assert_eq!(sequences(&mut from_third, 1).await, [last], "then live");
}

#[tokio::test]
async fn a_trimmed_position_names_the_first_that_is_left() {
    let settings = Settings::default()
        .set("log.retention.event.age", "1s")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(settings).await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let first = publish_event(&mut publisher, event("ann", LOGIN))
        .await
        .sequence;
    let second = publish_event(&mut publisher, event("ann", LOGIN))
        .await
        .sequence;
    eventually("retention", || async {
        let trimmed = r#"weir_trimmed_records_total{space="event"}"#;
        (server.metric(trimmed).await >= 2.0).then_some(())
    })
    .await;
    assert!(first < second);
    for types in [vec![], vec![LOGIN]] {
        let request = StreamUserEventsRequest {
            event_types: types,
            ..of("ann", Some(first))
        };
        let status = refused(&mut v1, request).await;
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        let (reason, metadata) = info(&status);
        assert_eq!(reason, "POSITION_TRIMMED");
        assert_eq!(metadata["first_sequence"], (second + 1).to_string());
    }
    // A time before what is left begins with what is left.
    let request = StreamUserEventsRequest {
        start_time: Some(Timestamp::default()),
        ..of("ann", None)
    };
    let mut rest = stream(&mut v1, request).await;
    let last = publish_event(&mut publisher, event("ann", LOGIN))
        .await
        .sequence;
    assert_eq!(sequences(&mut rest, 1).await, [last]);
}

#[tokio::test]
async fn a_drain_says_where_to_resume() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let filtered = StreamUserEventsRequest {
        event_types: vec![LOGOUT],
        ..of("ann", Some(0))
    };
    let mut all = stream(&mut v1, of("ann", Some(0))).await;
    let mut none = stream(&mut v1, filtered).await;
    let last = publish_event(&mut publisher, event("ann", LOGIN))
        .await
        .sequence;
    assert_eq!(sequences(&mut all, 1).await, [last]);
    let out = publish_event(&mut publisher, event("ann", LOGOUT))
        .await
        .sequence;
    assert_eq!(sequences(&mut none, 1).await, [out]);
    assert_eq!(sequences(&mut all, 1).await, [out]);
    server.terminate();
    let status = end(&mut all).await.unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), Some(out));
    let status = end(&mut none).await.unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), Some(out));
}

#[tokio::test]
async fn what_a_filter_drops_counts_as_seen() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let filtered = StreamUserEventsRequest {
        event_types: vec![LOGOUT],
        ..of("ann", Some(0))
    };
    let mut none = stream(&mut v1, filtered).await;
    let mut all = stream(&mut v1, of("ann", Some(0))).await;
    let mut last = 0;
    for _ in 0..50 {
        last = publish_event(&mut publisher, event("ann", LOGIN))
            .await
            .sequence;
    }
    sequences(&mut all, 50).await;
    server.terminate();
    let status = end(&mut none).await.unwrap_err();
    let resume = assert_ended(&status, "DRAINING").unwrap();
    // Its connection may not have come to the very last ones.
    assert!(resume > 0 && resume <= last, "{resume} of {last}");
}

#[tokio::test]
async fn a_stream_that_is_dropped_leaves_nothing() {
    let server = TestServer::start().await;
    let mut v1 = v1(&server).await;
    let before = server.tails().await;
    let streams = [of("ann", None), of("bob", Some(0)), of("ann", Some(0))];
    let mut open = Vec::new();
    for request in streams {
        open.push(stream(&mut v1, request).await);
    }
    assert_eq!(server.tails().await, before + 2.0);
    drop(open);
    eventually("the tails to go", || async {
        (server.tails().await == before).then_some(())
    })
    .await;
}
