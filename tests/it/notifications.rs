//! `SubscribeToNotifications` over real sockets: a user's own and those for all, as one.

use prost_types::Any;
use tonic::{Code, Streaming};
use weir::proto::{
    streaming::v1::{Notification, SubscribeRequest},
    weir::v1::PublishNotificationRequest,
};

use crate::{
    events::{V1, v1},
    publisher::{notification, publish_notification, publisher},
    support::{
        Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        eventually, next,
    },
};

fn of(user: &str, after_sequence: Option<u64>) -> SubscribeRequest {
    SubscribeRequest {
        user_id: user.into(),
        categories: Vec::new(),
        after_sequence,
    }
}

async fn stream(v1: &mut V1, request: SubscribeRequest) -> Streaming<Notification> {
    let opened = v1.subscribe_to_notifications(request).await;
    opened.unwrap().into_inner()
}

async fn titles(stream: &mut Streaming<Notification>, count: usize) -> Vec<String> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(next(stream).await.title);
    }
    all
}

#[tokio::test]
async fn a_user_gets_its_own_and_those_for_all() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let mut anns = stream(&mut v1, of("ann", None)).await;
    let mut bobs = stream(&mut v1, of("bob", None)).await;
    let data = Any {
        type_url: "t".into(),
        value: b"v".to_vec(),
    };
    let whole = PublishNotificationRequest {
        user_id: "ann".into(),
        title: "for ann".into(),
        body: "text".into(),
        category: "work".into(),
        priority: -3,
        id: "n1".into(),
        data: Some(data.clone()),
        idempotency_key: "k".into(),
    };
    let stored = publish_notification(&mut publisher, whole).await;
    let expected = Notification {
        id: "n1".into(),
        user_id: "ann".into(),
        title: "for ann".into(),
        body: "text".into(),
        category: "work".into(),
        priority: -3,
        timestamp: stored.timestamp,
        data: Some(data),
        sequence: stored.sequence,
    };
    assert_eq!(next(&mut anns).await, expected);
    let all = publish_notification(&mut publisher, notification("", "for all")).await;
    for stream in [&mut anns, &mut bobs] {
        let heard = next(stream).await;
        assert_eq!(
            (heard.title.as_str(), heard.user_id.as_str()),
            ("for all", "")
        );
        assert_eq!((heard.id, heard.sequence), (all.id.clone(), all.sequence));
    }
    // A user who is called as the topic for all is a user of its own.
    publish_notification(&mut publisher, notification("all", "for the user all")).await;
    publish_notification(&mut publisher, notification("bob", "for bob")).await;
    assert_eq!(titles(&mut bobs, 1).await, ["for bob"]);
}

#[tokio::test]
async fn categories_select() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let request = SubscribeRequest {
        categories: vec!["a".into(), "".into()],
        ..of("ann", None)
    };
    let mut selected = stream(&mut v1, request).await;
    for (user, category) in [
        ("ann", "b"),
        ("", "a"),
        ("", "b"),
        ("ann", ""),
        ("ann", "a"),
    ] {
        let request = PublishNotificationRequest {
            category: category.into(),
            ..notification(user, &format!("{user}/{category}"))
        };
        publish_notification(&mut publisher, request).await;
    }
    assert_eq!(titles(&mut selected, 3).await, ["/a", "ann/", "ann/a"]);
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused() {
    let server = TestServer::start().await;
    let mut v1 = v1(&server).await;
    for blank in ["", "  "] {
        let status = v1.subscribe_to_notifications(of(blank, None)).await;
        assert_invalid(&status.unwrap_err(), "user_id is required", &["user_id"]);
    }
    let status = v1
        .subscribe_to_notifications(of(&"x".repeat(257), None))
        .await;
    let text = "user_id must be at most 256 bytes";
    assert_invalid(&status.unwrap_err(), text, &["user_id"]);
    let status = v1
        .subscribe_to_notifications(of("ann", Some(1 << 40)))
        .await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(info(&status).0, "POSITION_BEYOND_TAIL");
}

#[tokio::test]
async fn one_position_resumes_both_topics() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let mut all = Vec::new();
    for number in 0..40 {
        let user = ["ann", "", "bob", "ann", ""][number % 5];
        let title = number.to_string();
        let stored = publish_notification(&mut publisher, notification(user, &title)).await;
        if user != "bob" {
            all.push((title, stored.sequence));
        }
    }
    let positions = [0].into_iter().chain(all.iter().map(|(_, at)| *at));
    for position in positions.collect::<Vec<_>>() {
        let mut stream = stream(&mut v1, of("ann", Some(position))).await;
        let expected: Vec<_> = all.iter().filter(|(_, at)| *at > position).collect();
        for (title, at) in expected {
            let heard = next(&mut stream).await;
            assert_eq!((&heard.title, heard.sequence), (title, *at));
        }
    }
    // History, then live, of both.
    let mut stream = stream(&mut v1, of("ann", Some(all[30].1))).await;
    assert_eq!(titles(&mut stream, 1).await, [all[31].0.as_str()]);
    for (user, title) in [("", "x"), ("ann", "y"), ("", "z")] {
        publish_notification(&mut publisher, notification(user, title)).await;
        assert_eq!(titles(&mut stream, 1).await, [title]);
    }
}

#[tokio::test]
async fn a_live_start_is_one_position_for_both_topics() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    // Another device keeps the user's own topic in memory while others are written to.
    let _other = stream(&mut v1, of("ann", None)).await;
    for number in 0..10 {
        let title = format!("old {number}");
        publish_notification(&mut publisher, notification("", &title)).await;
    }
    let opened = v1
        .subscribe_to_notifications(of("ann", None))
        .await
        .unwrap();
    let after = opened
        .metadata()
        .get("after-sequence")
        .unwrap()
        .to_str()
        .unwrap();
    let after: u64 = after.parse().unwrap();
    drop(opened);
    publish_notification(&mut publisher, notification("", "new")).await;
    let mut resumed = stream(&mut v1, of("ann", Some(after))).await;
    assert_eq!(
        titles(&mut resumed, 1).await,
        ["new"],
        "nothing from before"
    );
}

#[tokio::test]
async fn a_position_trimmed_in_either_topic_names_where_both_go_on() {
    let settings = Settings::default()
        .set("log.retention.notification.age", "1s")
        .set("log.retention.broadcast.age", "1s")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(settings).await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let first = publish_notification(&mut publisher, notification("ann", "a")).await;
    publish_notification(&mut publisher, notification("ann", "b")).await;
    let last = publish_notification(&mut publisher, notification("", "c")).await;
    eventually("retention", || async {
        let of = |space| format!("weir_trimmed_records_total{{space=\"{space}\"}}");
        let own = server.metric(&of("notification")).await;
        let all = server.metric(&of("broadcast")).await;
        (own >= 2.0 && all >= 1.0).then_some(())
    })
    .await;
    let status = v1.subscribe_to_notifications(of("ann", Some(first.sequence)));
    let status = status.await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "POSITION_TRIMMED");
    let left: u64 = metadata["first_sequence"].parse().unwrap();
    assert_eq!(left, last.sequence + 1);
    let mut rest = stream(&mut v1, of("ann", Some(left - 1))).await;
    publish_notification(&mut publisher, notification("ann", "d")).await;
    assert_eq!(titles(&mut rest, 1).await, ["d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_catches_up_without_a_gap() {
    const COUNT: usize = 3000;
    let settings = Settings::default().set("hub.tail", "16KiB");
    let server = TestServer::with(settings).await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let mut slow = stream(&mut v1, of("ann", None)).await;
    let mut live = stream(&mut v1, of("ann", None)).await;
    let publishing = tokio::spawn(async move {
        for number in 0..COUNT {
            let request = PublishNotificationRequest {
                body: "x".repeat(1000),
                ..notification(["ann", ""][number % 2], &number.to_string())
            };
            publish_notification(&mut publisher, request).await;
        }
    });
    let expected: Vec<_> = (0..COUNT).map(|number| number.to_string()).collect();
    assert_eq!(titles(&mut live, COUNT).await, expected);
    publishing.await.unwrap();
    // It has not read at all: its window is full, the tails have moved on long ago.
    assert_eq!(titles(&mut slow, COUNT).await, expected);
}

#[tokio::test]
async fn a_drain_says_where_to_resume_and_dropping_leaves_nothing() {
    let server = TestServer::start().await;
    let (mut v1, mut publisher) = (v1(&server).await, publisher(&server).await);
    let before = server.tails().await;
    let dropped = stream(&mut v1, of("carl", None)).await;
    assert_eq!(server.tails().await, before + 2.0);
    drop(dropped);
    eventually("the tails to go", || async {
        (server.tails().await == before).then_some(())
    })
    .await;
    let mut open = stream(&mut v1, of("ann", Some(0))).await;
    publish_notification(&mut publisher, notification("ann", "a")).await;
    let last = publish_notification(&mut publisher, notification("", "b")).await;
    assert_eq!(titles(&mut open, 2).await, ["a", "b"]);
    server.terminate();
    let status = end(&mut open).await.unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), Some(last.sequence));
}
