//! The log has an identity: responses name it, and a position of another log is refused, whatever its number.

use std::fs;

use bytes::Bytes;
use futures::stream;
use http::HeaderMap;
use tonic::{Code, Request, Status, metadata::MetadataMap};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weir::{
    client::{Client, Sequenced, Subscription},
    log::LogId,
    proto::{
        chat::Message,
        streaming::{
            StreamRequest,
            v1::{StreamUserEventsRequest, SubscribeRequest as Notifications},
        },
        weir::v1::{
            PublishDataRequest, PublishNotificationRequest, PublishUserEventRequest,
            SubmitFeedbackRequest,
        },
    },
    services,
    telemetry::Metrics,
};

use crate::{
    cli::Run,
    support::{
        OWN_ADDRESS, Settings, TestServer,
        errors::{assert_invalid, info, retry_after},
        follow, next,
        raw::{Raw, framed},
        send, soon,
    },
};

/// The header.
const LOG_ID: &str = "log-id";
/// A log that no server of these tests has.
const OTHER: &str = "0123456789abcdef0123456789abcdef";

/// The log of a server, as it says.
async fn log_of(server: &TestServer) -> String {
    let sent = server
        .chat()
        .await
        .send_message(send("id", "ann", "hi"))
        .await;
    named(sent.unwrap().metadata())
}

/// The log that a response names.
fn named(metadata: &MetadataMap) -> String {
    let id = metadata.get(LOG_ID).expect("a log-id").to_str().unwrap();
    assert!(id.parse::<LogId>().is_ok(), "{id}");
    id.to_owned()
}

/// A request that names a log.
fn naming<T>(log: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(LOG_ID, log.parse().unwrap());
    request
}

#[track_caller]
fn assert_replaced(status: &Status, here: &str) {
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (reason, metadata) = info(status);
    assert_eq!(
        (&*reason, &*metadata[LOG_ID]),
        ("LOG_REPLACED", here),
        "{status:?}"
    );
    assert_eq!(retry_after(status), None);
    let text = status.message();
    assert!(
        text.contains("another log") && text.contains("start from live"),
        "{text}"
    );
}

/// The paths of all methods, and whether the core serves them.
fn methods() -> Vec<(String, bool)> {
    let methods = services::methods(&Metrics::new()).unwrap();
    let all = methods.all().into_iter();
    let served = all.filter(|method| method.service != "other");
    served
        .map(|method| {
            let is_of_core = !method.service.starts_with("grpc.");
            (format!("/{}", method.full_name), is_of_core)
        })
        .collect()
}

/// The header of the response to a call with one empty message.
async fn header(raw: &Raw, path: &str, headers: &[(&'static str, &str)]) -> HeaderMap {
    let (response, mut sending) = raw.begin(path, headers).await;
    sending.send_data(framed(&()), true).unwrap();
    let response = soon("a response", response).await.unwrap();
    response.headers().clone()
}

#[tokio::test]
async fn every_response_names_the_log() {
    let server = TestServer::start().await;
    let id = log_of(&server).await;
    let raw = Raw::connect(server.grpc()).await;
    let methods = methods();
    assert!(methods.iter().filter(|(_, is_of_core)| *is_of_core).count() > 40);
    for (path, is_of_core) in methods {
        let headers = header(&raw, &path, &[]).await;
        let found = headers.get(LOG_ID).map(|id| id.to_str().unwrap());
        assert_eq!(found, is_of_core.then_some(&*id), "{path}: {headers:?}");
    }

    // Beside a success, and before the first message of either direction.
    let mut chat = server.chat().await;
    let followed = chat.subscribe_messages(follow("id", None)).await.unwrap();
    assert_eq!(named(followed.metadata()), id);
    let open = chat.chat(stream::pending::<Message>()).await.unwrap();
    assert_eq!(named(open.metadata()), id);
    let beyond = chat.subscribe_messages(follow("id", Some(1 << 40))).await;
    assert_eq!(named(beyond.unwrap_err().metadata()), id);
}

#[tokio::test]
async fn a_log_keeps_its_id_and_no_other_has_it() {
    let server = TestServer::start().await;
    let id = log_of(&server).await;
    let mut server = server.restart().await;
    assert_eq!(log_of(&server).await, id, "after kill -9");
    server.terminate();
    assert_eq!(server.exit_code().await, Some(0));
    let server = server.restart().await;
    assert_eq!(log_of(&server).await, id, "after a clean stop");
    assert_ne!(log_of(&TestServer::start().await).await, id);
}

#[tokio::test]
async fn a_call_that_names_another_log_is_refused_before_it_does_anything() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let sent = chat.send_message(send("general", "ann", "hi")).await;
    let sent = sent.unwrap();
    let id = named(sent.metadata());
    let first = sent.into_inner().sequence;
    let raw = Raw::connect(server.grpc()).await;
    for (path, is_of_core) in methods() {
        let headers = header(&raw, &path, &[(LOG_ID, OTHER)]).await;
        let status = Status::from_header_map(&headers);
        if is_of_core {
            assert_replaced(&status.expect("a refusal"), &id);
            assert_eq!(headers[LOG_ID], *id, "{path}");
        } else {
            let code = status.map_or(Code::Ok, |status| status.code());
            assert_ne!(code, Code::OutOfRange, "{path} knows no log");
        }
    }
    let refused = chat.send_message(naming(OTHER, send("general", "ann", "lost")));
    assert_replaced(&refused.await.unwrap_err(), &id);
    let known = chat.send_message(naming(&id, send("general", "ann", "known")));
    let known = known.await.unwrap().into_inner().sequence;
    let request = naming(&id, follow("general", Some(first)));
    let mut stream = chat.subscribe_messages(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    assert_eq!(
        next(&mut stream).await.sequence,
        known,
        "nothing lies between"
    );

    let mut health = HealthClient::new(server.channel().await);
    let request = naming(OTHER, HealthCheckRequest::default());
    health.check(request).await.expect("health knows no log");
}

#[tokio::test]
async fn a_malformed_id_names_the_field() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let text = "log-id must be 32 lower-case hexadecimal digits";
    for id in ["", "1", &OTHER[1..], &OTHER.to_uppercase(), "my log"] {
        let request = naming(id, send("general", "ann", "hi"));
        assert_invalid(
            &chat.send_message(request).await.unwrap_err(),
            text,
            &[LOG_ID],
        );
        let request = naming(id, follow("general", Some(0)));
        let refused = chat.subscribe_messages(request).await.unwrap_err();
        assert_invalid(&refused, text, &[LOG_ID]);
    }
    let raw = Raw::connect(server.grpc()).await;
    let mut request = http::Request::post("http://weir/chat.ChatService/SendMessage");
    let value = http::HeaderValue::from_bytes(b"\xff").unwrap();
    request = request.header("content-type", "application/grpc");
    let (response, mut sending) = raw
        .send(request.header(LOG_ID, value).body(()).unwrap())
        .await;
    sending.send_data(Bytes::new(), true).unwrap();
    let response = soon("a response", response).await.unwrap();
    let status = Status::from_header_map(response.headers()).expect("a refusal");
    assert_invalid(&status, text, &[LOG_ID]);
}

/// Kills the server and has it start over on an empty directory, at the same address.
async fn replaced(mut server: TestServer) -> TestServer {
    server.kill().await;
    fs::remove_dir_all(server.dir().join("data")).unwrap();
    server.restart_in_place().await
}

async fn in_place() -> TestServer {
    TestServer::with(Settings::default().set("server.grpc", OWN_ADDRESS)).await
}

/// Says as much in `room` as it takes to have a record behind `position`.
async fn grow_beyond(server: &TestServer, room: &str, position: u64) {
    let mut chat = server.chat().await;
    loop {
        let sent = chat.send_message(send(room, "bob", "new")).await.unwrap();
        if sent.into_inner().sequence > position + 1 {
            return;
        }
    }
}

#[tokio::test]
async fn an_old_position_is_refused_by_a_fresh_directory_whatever_its_number() {
    let server = in_place().await;
    let old = log_of(&server).await;
    let mut position = 0;
    for _ in 0..20 {
        let mut chat = server.chat().await;
        let sent = chat.send_message(send("general", "ann", "old")).await;
        position = sent.unwrap().into_inner().sequence;
    }
    let server = replaced(server).await;
    let mut chat = server.chat().await;

    // Without the log's name the number alone is judged.
    let beyond = chat.subscribe_messages(follow("general", Some(position)));
    let beyond = beyond.await.unwrap_err();
    assert_eq!(info(&beyond).0, "POSITION_BEYOND_TAIL");
    let here = named(beyond.metadata());
    assert_ne!(here, old);
    let refused = chat.subscribe_messages(naming(&old, follow("general", Some(position))));
    assert_replaced(&refused.await.unwrap_err(), &here);

    grow_beyond(&server, "general", position).await;
    chat.subscribe_messages(follow("general", Some(position)))
        .await
        .expect("the number is in range");
    let refused = chat.subscribe_messages(naming(&old, follow("general", Some(position))));
    assert_replaced(&refused.await.unwrap_err(), &here);
    let mut request = naming(&old, stream::pending::<Message>());
    let after = position.to_string().parse().unwrap();
    request.metadata_mut().insert("after-sequence", after);
    assert_replaced(&chat.chat(request).await.unwrap_err(), &here);
    chat.subscribe_messages(naming(&here, follow("general", Some(position))))
        .await
        .expect("a position of this log");
}

/// The position of the first record that a subscription brings.
async fn first<T: Sequenced + 'static>(subscription: &mut Subscription<T>) -> u64 {
    loop {
        let item = soon("a record", subscription.next()).await;
        let sequence = item.expect("it goes on").expect("a record").sequence();
        if sequence > 0 {
            return sequence;
        }
    }
}

/// Reads a subscription until its server is away, and its end once there is one with another log.
async fn assert_ends<T: Sequenced + 'static>(
    what: &str,
    mut subscription: Subscription<T>,
    here: &str,
) {
    let status = loop {
        match soon(what, subscription.next()).await.expect("an end") {
            Ok(item) => assert_eq!(item.sequence(), 0, "{what} brought a record of another log"),
            Err(status) => break status,
        }
    };
    assert_replaced(&status, here);
    assert!(subscription.next().await.is_none(), "{what}");
}

#[tokio::test]
async fn what_resumes_by_itself_ends_where_the_log_is_another() {
    let server = in_place().await;
    let client = Client::connect(&server.url()).await.unwrap();
    let mut room = client.subscribe("general", "reader", Some(0));
    let mut live = client.subscribe("quiet", "reader", None);
    let events = StreamUserEventsRequest {
        user_id: "ann".into(),
        after_sequence: Some(0),
        ..StreamUserEventsRequest::default()
    };
    let mut events = client.user_events(events);
    let notifications = Notifications {
        user_id: "ann".into(),
        after_sequence: Some(0),
        ..Notifications::default()
    };
    let mut notifications = client.notifications(notifications);
    let data = StreamRequest {
        topics: vec!["heat".into()],
        after_sequence: Some(0),
        ..StreamRequest::default()
    };
    let mut data = client.data(data);
    let mut feedback = client.watch_feedback(0, 0, Some(0));

    fill(&client).await;
    soon("a welcome", live.next()).await.unwrap().unwrap();
    let mut last = 0;
    last = last.max(first(&mut room).await);
    last = last.max(first(&mut events).await);
    last = last.max(first(&mut notifications).await);
    last = last.max(first(&mut data).await);
    last = last.max(first(&mut feedback).await);

    // Nothing is read meanwhile: the new log grows beyond every position before anything resumes.
    let server = replaced(server).await;
    let again = Client::connect(&server.url()).await.unwrap();
    fill(&again).await;
    grow_beyond(&server, "general", last).await;
    let here = log_of(&server).await;
    assert_ends("the room", room, &here).await;
    assert_ends("the live room", live, &here).await;
    assert_ends("events", events, &here).await;
    assert_ends("notifications", notifications, &here).await;
    assert_ends("data", data, &here).await;
    assert_ends("feedback", feedback, &here).await;

    // A new subscription is served.
    assert!(first(&mut again.subscribe("general", "reader", Some(0))).await > 0);
}

/// One record for each kind of subscription.
async fn fill(client: &Client) {
    client.send("bob", "general", "hi", "").await.unwrap();
    let event = PublishUserEventRequest {
        user_id: "ann".into(),
        r#type: 1,
        ..PublishUserEventRequest::default()
    };
    client.publish_user_event(event).await.unwrap();
    let notification = PublishNotificationRequest {
        user_id: "ann".into(),
        title: "hi".into(),
        ..PublishNotificationRequest::default()
    };
    client.publish_notification(notification).await.unwrap();
    let point = PublishDataRequest {
        topic: "heat".into(),
        ..PublishDataRequest::default()
    };
    client.publish_data(vec![point]).await.unwrap();
    let feedback = SubmitFeedbackRequest {
        consumer_id: "ann".into(),
        feedback: "good".into(),
        ..SubmitFeedbackRequest::default()
    };
    client.submit_feedback(feedback).await.unwrap();
}

#[tokio::test]
async fn a_command_that_follows_says_that_the_log_is_another() {
    let server = in_place().await;
    let mut run = Run::on(&server, &["subscribe", "general", "--after", "0"]);
    let mut chat = server.chat().await;
    chat.send_message(send("general", "ann", "old"))
        .await
        .unwrap();
    while !run.line().await.ends_with("old") {}
    let server = replaced(server).await;
    let ended = run.end().await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let last = ended.err.last().unwrap();
    assert!(
        last.starts_with("weir: refused: ") && last.contains("another log"),
        "{ended:?}"
    );
    assert!(ended.out.is_empty(), "{ended:?}");
    drop(server);
}
