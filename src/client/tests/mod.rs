//! The client against a scripted server on a loopback port.

mod server;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use self::server::{Act, Clock, End, Proxy, Script, record, welcome};
use super::{Client, Event, RetryPolicy, Subscription};
use crate::proto::chat::Message;

type Served = Result<Act, Status>;

fn act(items: Vec<Message>, end: End) -> Served {
    Ok(Act {
        header: None,
        log: None,
        items,
        end,
    })
}

fn with_header(header: u64, items: Vec<Message>, end: End) -> Served {
    Ok(Act {
        header: Some(header),
        log: None,
        items,
        end,
    })
}

/// A drain's status: a position if one is given, and the delay the server asks for.
fn draining(position: Option<u64>, delay: Duration) -> Status {
    let metadata = position.map(|position| ("after_sequence".to_owned(), position.to_string()));
    let mut details = ErrorDetails::new();
    details
        .set_error_info("DRAINING", "weir", HashMap::from_iter(metadata))
        .set_retry_info(Some(delay));
    Status::with_error_details(Code::Unavailable, "draining", details)
}

struct Setup {
    script: Arc<Script>,
    clock: Arc<Clock>,
    client: Client,
}

impl Setup {
    fn over(script: Arc<Script>, addr: std::net::SocketAddr) -> Self {
        let clock = Arc::new(Clock::default());
        let client = Client::connect_lazy(&format!("http://{addr}")).unwrap();
        Self {
            script,
            client: client.with_timing(clock.clone()),
            clock,
        }
    }

    fn new(script: Arc<Script>) -> Self {
        let addr = script.serve();
        Self::over(script, addr)
    }

    fn playing(acts: impl IntoIterator<Item = Served>) -> Self {
        Self::new(Script::plays(acts))
    }
}

async fn received(subscription: &mut Subscription<Message>, wanted: usize) -> Vec<u64> {
    let mut sequences = Vec::new();
    while sequences.len() < wanted {
        sequences.push(subscription.next().await.unwrap().unwrap().sequence);
    }
    sequences
}

/// Runs a subscription to its end: what it delivered, and the status.
async fn outcome(subscription: &mut Subscription<Message>) -> (Vec<u64>, Status) {
    let mut sequences = Vec::new();
    loop {
        match subscription.next().await.unwrap() {
            Ok(message) => sequences.push(message.sequence),
            Err(status) => return (sequences, status),
        }
    }
}

#[tokio::test]
async fn resumes_after_the_last_record_without_repeating_the_welcome() {
    let setup = Setup::playing([
        act(
            vec![welcome(), record(4), record(7)],
            End::With(Status::unavailable("bye")),
        ),
        act(vec![welcome(), record(9)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", Some(3));
    assert_eq!(received(&mut subscription, 4).await, [0, 4, 7, 9]);
    assert_eq!(setup.script.positions(), [Some(3), Some(7)]);
    assert_eq!(setup.clock.delays(), [Duration::from_millis(50)]);
}

#[tokio::test]
async fn the_servers_delay_is_the_least_wait() {
    let setup = Setup::playing([
        Err(draining(None, Duration::from_secs(3))),
        act(vec![record(1)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", Some(0));
    received(&mut subscription, 1).await;
    assert_eq!(setup.clock.delays(), [Duration::from_secs(3)]);
}

#[tokio::test]
async fn live_from_now_resumes_at_the_position_of_the_header() {
    let setup = Setup::playing([
        with_header(41, vec![welcome()], End::With(Status::unavailable("bye"))),
        with_header(45, vec![welcome(), record(42), record(45)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", None);
    assert_eq!(received(&mut subscription, 3).await, [0, 42, 45]);
    assert_eq!(setup.script.positions(), [None, Some(41)]);
}

#[tokio::test]
async fn live_from_now_resumes_at_the_position_of_the_final_status() {
    let setup = Setup::playing([
        act(
            vec![welcome()],
            End::With(draining(Some(41), Duration::ZERO)),
        ),
        Err(draining(Some(3), Duration::ZERO)),
        act(vec![record(42)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", None);
    assert_eq!(received(&mut subscription, 2).await, [0, 42]);
    assert_eq!(setup.script.positions(), [None, Some(41), Some(41)]);
}

#[tokio::test]
async fn live_from_now_stays_live_when_the_server_tells_no_position() {
    let setup = Setup::playing([
        act(vec![welcome()], End::With(Status::unavailable("bye"))),
        act(vec![welcome(), record(50)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", None);
    assert_eq!(received(&mut subscription, 2).await, [0, 50]);
    assert_eq!(setup.script.positions(), [None, None]);
}

#[tokio::test]
async fn a_cut_connection_is_resumed() {
    let script = Script::plays([
        act(vec![welcome(), record(1)], End::Never),
        act(vec![welcome(), record(2)], End::Never),
    ]);
    let proxy = Proxy::before(script.serve()).await;
    let setup = Setup::over(script, proxy.addr);
    let mut subscription = setup.client.subscribe("general", "ann", None);
    assert_eq!(received(&mut subscription, 2).await, [0, 1]);
    proxy.cut();
    assert_eq!(received(&mut subscription, 1).await, [2]);
    assert_eq!(setup.script.positions().last(), Some(&Some(1)));
}

#[tokio::test]
async fn a_clean_end_is_resumed() {
    let setup = Setup::playing([
        act(vec![record(1)], End::Cleanly),
        act(vec![record(2)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", Some(0));
    assert_eq!(received(&mut subscription, 2).await, [1, 2]);
    assert_eq!(setup.script.positions(), [Some(0), Some(1)]);
}

#[tokio::test]
async fn a_record_is_delivered_once() {
    let setup = Setup::playing([
        act(
            vec![record(1), record(2)],
            End::With(Status::unavailable("bye")),
        ),
        act(vec![record(1), record(2), record(2), record(3)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", Some(0));
    assert_eq!(received(&mut subscription, 3).await, [1, 2, 3]);
    assert_eq!(subscription.duplicates(), 3);
}

#[tokio::test]
async fn a_permanent_status_ends_it() {
    let setup = Setup::playing([act(
        vec![record(1)],
        End::With(Status::out_of_range("too old")),
    )]);
    let mut subscription = setup.client.subscribe("general", "ann", Some(0));
    let (sequences, status) = outcome(&mut subscription).await;
    assert_eq!((sequences, status.code()), (vec![1], Code::OutOfRange));
    assert!(subscription.next().await.is_none());
    assert!(setup.clock.delays().is_empty());
}

#[tokio::test]
async fn the_log_of_the_position_is_named_when_it_resumes() {
    let bye = || End::With(Status::unavailable("bye"));
    let in_log = |log, items, end| {
        Ok(Act {
            header: Some(3),
            log: Some(log),
            items,
            end,
        })
    };
    let setup = Setup::playing([
        in_log("one", vec![record(4)], bye()),
        Err(Status::unavailable("not yet")),
        in_log("one", vec![record(5)], bye()),
        Err(Status::out_of_range("another log")),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", None);
    let (sequences, status) = outcome(&mut subscription).await;
    assert_eq!((sequences, status.code()), (vec![4, 5], Code::OutOfRange));
    let one = || Some("one".to_owned());
    assert_eq!(setup.script.logs(), [None, one(), one(), one()]);
    assert_eq!(setup.script.positions(), [None, Some(4), Some(4), Some(5)]);
}

#[tokio::test]
async fn waits_grow_without_progress_and_start_over_with_a_record() {
    let refused = || Err(Status::unavailable("no"));
    let end = End::With(Status::unavailable("bye"));
    let setup = Setup::playing([
        refused(),
        refused(),
        act(vec![welcome(), record(1)], end),
        refused(),
    ]);
    let (_, status) = outcome(&mut setup.client.subscribe("general", "ann", Some(0))).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        setup.clock.delays(),
        [50, 100, 50, 100].map(Duration::from_millis)
    );
}

#[tokio::test]
async fn a_welcome_is_no_progress() {
    let bye = || act(vec![welcome()], End::With(Status::unavailable("bye")));
    let setup = Setup::playing([bye(), bye(), bye(), bye()]);
    let policy = RetryPolicy {
        max_retries: Some(2),
        ..RetryPolicy::default()
    };
    let client = setup.client.with_subscribe_policy(policy);
    let (sequences, status) = outcome(&mut client.subscribe("general", "ann", None)).await;
    assert_eq!((sequences, status.code()), (vec![0], Code::Unavailable));
    assert_eq!(setup.script.positions().len(), 3);
}

#[tokio::test]
async fn a_healthy_period_is_progress() {
    let bye = || act(vec![welcome()], End::With(Status::unavailable("bye")));
    let setup = Setup::playing([bye(), bye(), bye()]);
    let policy = RetryPolicy {
        healthy_after: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let client = setup.client.with_subscribe_policy(policy);
    outcome(&mut client.subscribe("general", "ann", None)).await;
    assert_eq!(setup.clock.delays(), [Duration::from_millis(50); 3]);
}

#[tokio::test]
async fn the_observer_sees_connections_come_and_go() {
    let setup = Setup::playing([
        act(vec![record(6)], End::With(Status::unavailable("bye"))),
        act(vec![record(7)], End::Never),
    ]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let observe = move |event: Event<'_>| {
        log.lock().unwrap().push(match event {
            Event::Connected {
                is_resumed,
                position,
            } => format!("connected {is_resumed} {position:?}"),
            Event::Reconnecting { delay, cause } => format!("in {delay:?}: {}", cause.message()),
        });
    };
    let mut subscription = setup
        .client
        .subscribe("general", "ann", Some(5))
        .with_observer(observe);
    received(&mut subscription, 2).await;
    let expected = [
        "connected false Some(5)",
        "in 50ms: bye",
        "connected true Some(6)",
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn an_abandoned_next_loses_nothing() {
    let setup = Setup::playing([
        act(vec![record(1)], End::With(Status::unavailable("bye"))),
        act(vec![record(2), record(3)], End::Never),
    ]);
    let mut subscription = setup.client.subscribe("general", "ann", Some(0));
    let mut sequences = Vec::new();
    while sequences.len() < 3 {
        tokio::select! {
            biased;
            message = subscription.next() => sequences.push(message.unwrap().unwrap().sequence),
            () = tokio::task::yield_now() => (),
        }
    }
    assert_eq!(sequences, [1, 2, 3]);
    assert_eq!(setup.script.positions().len(), 2);
}

#[tokio::test]
async fn a_send_is_repeated_under_one_key() {
    let setup = Setup::new(Script::fails_publishes([
        Status::unavailable("no"),
        draining(None, Duration::from_secs(2)),
    ]));
    setup.client.send("ann", "general", "hi", "").await.unwrap();
    setup.client.send("ann", "general", "hi", "").await.unwrap();
    let keys: Vec<_> = setup
        .script
        .sent()
        .into_iter()
        .map(|sent| sent.idempotency_key)
        .collect();
    assert!(!keys[0].is_empty());
    assert!(keys[..3].iter().all(|key| *key == keys[0]));
    assert_ne!(keys[3], keys[0]);
    assert_eq!(
        setup.clock.delays(),
        [Duration::from_millis(50), Duration::from_secs(2)]
    );
}

#[tokio::test]
async fn a_send_keeps_the_callers_key_and_stops_at_a_permanent_status() {
    let setup = Setup::new(Script::fails_publishes([Status::already_exists(
        "other content",
    )]));
    let status = setup
        .client
        .send("ann", "general", "hi", "k")
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let sent = setup.script.sent();
    assert_eq!((sent.len(), sent[0].idempotency_key.as_str()), (1, "k"));
}

#[tokio::test]
async fn an_upload_is_repeated_with_the_same_keys() {
    let setup = Setup::new(Script::fails_publishes([Status::unavailable("no")]));
    let mut own = record(0);
    own.idempotency_key = "mine".into();
    assert_eq!(
        setup.client.upload_all(vec![own, record(0)]).await.unwrap(),
        2
    );
    let uploads = setup.script.uploads();
    assert_eq!(uploads.len(), 2);
    assert_eq!(uploads[0], uploads[1]);
    assert_eq!(uploads[0][0].idempotency_key, "mine");
    assert!(!uploads[0][1].idempotency_key.is_empty());
}

#[tokio::test]
async fn a_streamed_upload_is_sent_as_it_is_and_once() {
    let setup = Setup::new(Script::fails_publishes([Status::unavailable("no")]));
    let messages = || futures::stream::iter([record(0)]);
    setup.client.upload(messages()).await.unwrap_err();
    assert_eq!(setup.client.upload(messages()).await.unwrap(), 1);
    assert_eq!(setup.script.uploads(), [[record(0)], [record(0)]]);
}

#[test]
fn an_address_must_be_plain_http() {
    for addr in [
        "",
        "localhost",
        "localhost:50051",
        "https://localhost:1",
        "http://",
        "ftp://h:1",
    ] {
        assert!(Client::connect_lazy(addr).is_err(), "{addr}");
    }
}
