//! What holds on every call: deadlines, cancellation, limits of messages and of streams.

use std::time::{Duration, Instant};

use futures::future::join_all;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_types::StatusExt as _;
use weir::proto::chat::{Message, MetricsRequest, SendMessageRequest};

use crate::support::{
    SOON, Settings, TestServer,
    errors::{assert_invalid, info},
    eventually, follow, message, next,
    raw::{Raw, data, framed, rest},
    send, soon,
};

const SEND: &str = "/chat.ChatService/SendMessage";
const SUBSCRIBE: &str = "/chat.ChatService/SubscribeMessages";
const UPLOAD: &str = "/chat.ChatService/UploadMessages";
const CHAT: &str = "/chat.ChatService/Chat";
const METRICS: &str = "/chat.ChatService/StreamMetrics";
const LIMIT_BYTES: usize = 10 * 1024 * 1024;

/// What calls hold while they run.
async fn held(server: &TestServer) -> [f64; 5] {
    let active = |method: &str| {
        let series = format!(
            "weir_streams_active{{grpc_method=\"{method}\",grpc_service=\"chat.ChatService\"}}"
        );
        async move { server.metric(&series).await }
    };
    [
        active("SubscribeMessages").await,
        active("Chat").await + active("UploadMessages").await + active("StreamMetrics").await,
        server.metric("weir_subscribers{source=\"tail\"}").await,
        server.metric("weir_subscribers{source=\"log\"}").await,
        server.metric("weir_tails").await,
    ]
}

/// Held by an idle server: the canary follows its own topic.
const NOTHING: [f64; 5] = [0.0, 0.0, 1.0, 0.0, 1.0];

async fn holds(server: &TestServer, what: &str, wanted: [f64; 5]) {
    let begun = Instant::now();
    while held(server).await != wanted {
        assert!(
            begun.elapsed() < SOON,
            "{what}: {:?}, not {wanted:?}",
            held(server).await
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ended(server: &TestServer, reason: &str) -> f64 {
    server
        .metric(&format!("weir_streams_ended_total{{reason=\"{reason}\"}}"))
        .await
}

#[tokio::test]
async fn a_deadline_ends_a_stream_in_its_middle_by_the_server_itself() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    holds(&server, "an idle server", NOTHING).await;
    let begun = Instant::now();
    let timeout = &[("grpc-timeout", "400m")];
    let response = raw.open(SUBSCRIBE, timeout, &follow("general", None)).await;
    let (messages, status) = rest::<Message>(&mut response.into_body()).await;
    assert_eq!(messages[0].id, "system", "it began");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        status.message(),
        "the deadline passed during chat.ChatService/SubscribeMessages"
    );

    let (response, mut sending) = raw.begin(CHAT, timeout).await;
    sending
        .send_data(framed(&message("general", "ann", "hi")), false)
        .unwrap();
    let response = soon("a response", response).await.unwrap();
    let (messages, status) = rest::<Message>(&mut response.into_body()).await;
    assert_eq!(messages[0].content, "Echo: hi");
    assert_eq!(status.code(), Code::DeadlineExceeded);

    // An upload has not answered yet: its status is all of its response.
    let (response, mut sending) = raw.begin(UPLOAD, timeout).await;
    sending
        .send_data(framed(&message("general", "ann", "hi")), false)
        .unwrap();
    let response = soon("a response", response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");

    let passed = begun.elapsed();
    assert!(
        (Duration::from_millis(1200)..Duration::from_secs(6)).contains(&passed),
        "{passed:?}"
    );
    holds(&server, "nothing left", NOTHING).await;
    assert_eq!(ended(&server, "deadline").await, 3.0);
}

#[tokio::test]
async fn a_deadline_ends_a_stream_whose_client_does_not_read() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for _ in 0..40 {
        chat.send_message(send("general", "ann", &"x".repeat(10_000)))
            .await
            .unwrap();
    }
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1000);
    let raw = Raw::with(server.grpc(), &narrow).await;
    holds(&server, "an idle server", NOTHING).await;
    let response = raw
        .open(
            SUBSCRIBE,
            &[("grpc-timeout", "300m")],
            &follow("general", Some(0)),
        )
        .await;
    let unread = response.into_body();
    eventually("the deadline", || async {
        (ended(&server, "deadline").await == 1.0).then_some(())
    })
    .await;
    holds(&server, "nothing left", NOTHING).await;
    drop(unread);
}

#[tokio::test]
async fn a_deadline_that_has_passed_stores_nothing() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    for timeout in ["1n", "0S", "1u"] {
        let request = framed(&send("general", "ann", timeout));
        let answer = raw.call(SEND, &[("grpc-timeout", timeout)], request).await;
        assert_eq!(
            answer.code(),
            Code::DeadlineExceeded,
            "{timeout}: {answer:?}"
        );
        assert_eq!(
            answer.status().message(),
            "the deadline passed during chat.ChatService/SendMessage"
        );
    }
    let mut chat = server.chat().await;
    chat.send_message(send("general", "ann", "first"))
        .await
        .unwrap();
    let mut stream = chat
        .subscribe_messages(follow("general", Some(0)))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    assert_eq!(next(&mut stream).await.content, "first");
}

#[tokio::test]
async fn a_generous_deadline_does_not_matter_and_a_wrong_one_is_refused() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let request = framed(&send("general", "ann", "hi"));
    for timeout in ["99999999H", "99999999S", "10S", "20000m"] {
        let answer = raw
            .call(SEND, &[("grpc-timeout", timeout)], request.clone())
            .await;
        assert_eq!(answer.code(), Code::Ok, "{timeout}: {answer:?}");
    }
    for timeout in ["", "10", "S", "-1S", "1.5S", "123456789S", "10s"] {
        let answer = raw
            .call(SEND, &[("grpc-timeout", timeout)], request.clone())
            .await;
        let text = "grpc-timeout must be 1 to 8 digits and a unit of H M S m u n";
        assert_invalid(&answer.status(), text, &["grpc-timeout"]);
    }
}

#[tokio::test]
async fn a_cancelled_call_leaves_nothing() {
    let server = TestServer::start().await;
    holds(&server, "an idle server", NOTHING).await;
    let mut chat = server.chat().await;
    let mut follower = chat
        .subscribe_messages(follow("one", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut follower).await;
    let raw = Raw::connect(server.grpc()).await;
    let (session, mut say) = raw.begin(CHAT, &[]).await;
    let mut session = soon("a response", session).await.unwrap().into_body();
    for room in ["two", "three"] {
        say.send_data(framed(&message(room, "ann", "hi")), false)
            .unwrap();
        data(&mut session).await.expect("an echo");
    }
    let measured = chat
        .stream_metrics(MetricsRequest::default())
        .await
        .unwrap();
    let (uploaded, mut upload) = raw.begin(UPLOAD, &[]).await;
    upload
        .send_data(framed(&message("four", "ann", "hi")), false)
        .unwrap();
    holds(&server, "four streams", [1.0, 3.0, 4.0, 0.0, 4.0]).await;

    drop(follower);
    holds(&server, "the follower gone", [0.0, 3.0, 3.0, 0.0, 3.0]).await;
    drop((session, say, measured, uploaded, upload));
    holds(&server, "nothing left", NOTHING).await;
    eventually("the count", || async {
        (ended(&server, "client_cancel").await == 4.0).then_some(())
    })
    .await;
    let answer = raw.call(SEND, &[], framed(&send("one", "ann", "hi"))).await;
    assert_eq!(answer.code(), Code::Ok, "the connection goes on");
}

#[tokio::test]
async fn a_lost_connection_leaves_nothing() {
    let server = TestServer::start().await;
    let mut connections = Vec::new();
    for number in 0..10 {
        let raw = Raw::connect(server.grpc()).await;
        let room = format!("room {number}");
        let followed = raw.open(SUBSCRIBE, &[], &follow(&room, None)).await;
        let session = raw.begin(CHAT, &[]).await;
        let measured = raw.open(METRICS, &[], &MetricsRequest::default()).await;
        connections.push((raw, followed, session, measured));
    }
    holds(&server, "thirty streams", [10.0, 20.0, 11.0, 0.0, 11.0]).await;
    drop(connections);
    holds(&server, "nothing left", NOTHING).await;
    eventually("no connection", || async {
        // The one that asks is one.
        (server.metric("weir_connections_active").await <= 1.0).then_some(())
    })
    .await;
    let garbage = server
        .metric("weir_connections_refused_total{reason=\"protocol\"}")
        .await;
    assert_eq!(garbage, 0.0, "a client that goes away is no garbage");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_a_thousand_streams_and_the_next_one_waits() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let request = follow("general", None);
    let open = (0..1000).map(|_| raw.open(SUBSCRIBE, &[], &request));
    let mut streams: Vec<_> = join_all(open)
        .await
        .into_iter()
        .map(|one| one.into_body())
        .collect();
    for stream in &mut streams {
        data(stream).await.expect("a welcome");
    }
    holds(
        &server,
        "a thousand streams",
        [1000.0, 0.0, 1001.0, 0.0, 2.0],
    )
    .await;
    let (mut waiting, mut sending) = raw.begin(SUBSCRIBE, &[]).await;
    sending.send_data(framed(&request), true).unwrap();

    // Everybody hears a message; meanwhile the one too many got no answer.
    let mut chat = server.chat().await;
    chat.send_message(send("general", "ann", "to all"))
        .await
        .unwrap();
    for stream in &mut streams {
        data(stream).await.expect("the message");
    }
    assert!(futures::poll!(&mut waiting).is_pending());
    assert_eq!(held(&server).await[0], 1000.0);
    drop(streams.pop());
    let mut last = soon("the last stream", waiting).await.unwrap().into_body();
    data(&mut last).await.expect("a welcome");
    drop((streams, last, sending));
    holds(&server, "nothing left", NOTHING).await;
}

/// A request that takes exactly `bytes`.
fn request_of(bytes: usize) -> SendMessageRequest {
    let mut request = send("big", "ann", "");
    request.content = "x".repeat(bytes - 64);
    request
        .content
        .push_str(&"x".repeat(bytes - request.encoded_len()));
    assert_eq!(request.encoded_len(), bytes);
    request
}

#[tokio::test]
async fn the_largest_message_is_stored_echoed_and_delivered() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut live = chat
        .subscribe_messages(follow("big", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut live).await;
    let (say, said) = mpsc::channel(1);
    let mut session = chat
        .chat(ReceiverStream::new(said))
        .await
        .unwrap()
        .into_inner();
    say.send(message("big", "bob", "here")).await.unwrap();
    assert_eq!(next(&mut session).await.content, "Echo: here");
    next(&mut live).await;

    let request = request_of(LIMIT_BYTES);
    let sent = chat
        .send_message(request.clone())
        .await
        .unwrap()
        .into_inner();
    for stream in [&mut live, &mut session] {
        let heard = next(stream).await;
        assert_eq!(heard.sequence, sent.sequence);
        assert!(heard.content == request.content, "delivered whole");
    }
    let mut late = chat
        .subscribe_messages(follow("big", Some(sent.sequence - 1)))
        .await
        .unwrap()
        .into_inner();
    next(&mut late).await;
    assert!(
        next(&mut late).await.content == request.content,
        "from the log"
    );

    let mut said = message("big", "bob", &request.content);
    said.content.truncate(LIMIT_BYTES - 64);
    let expected = format!("Echo: {}", said.content);
    say.send(said).await.unwrap();
    assert!(next(&mut session).await.content == expected, "echoed whole");
}

#[tokio::test]
async fn a_larger_message_exhausts_the_limit_and_stores_nothing() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let too_large = request_of(LIMIT_BYTES + 1);
    let status = chat.send_message(too_large.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("10485761"), "{status:?}");
    assert!(status.message().contains("10485760"), "{status:?}");
    assert_eq!(info(&status).0, "LIMIT_EXCEEDED");
    assert_eq!(
        status.get_details_quota_failure().unwrap().violations[0].subject,
        "message"
    );

    let large = message("big", "ann", &too_large.content);
    let messages = vec![message("big", "ann", "before"), large.clone()];
    let status = chat
        .upload_messages(tokio_stream::iter(messages))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let said = vec![message("big", "ann", "said"), large];
    let mut session = chat
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut session).await.content, "Echo: said");
    let status = soon("the end", session.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let mut subscribe = follow("big", None);
    subscribe.user = too_large.content + &"x".repeat(100);
    let status = chat.subscribe_messages(subscribe).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    chat.send_message(send("big", "ann", "fits")).await.unwrap();
    let mut stream = chat
        .subscribe_messages(follow("big", Some(0)))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    for content in ["before", "said", "fits"] {
        assert_eq!(next(&mut stream).await.content, content);
    }
}

#[tokio::test]
async fn the_limit_of_messages_is_configurable() {
    let server = TestServer::with(Settings::default().set("limits.message", "1KiB")).await;
    let mut chat = server.chat().await;
    chat.send_message(request_of(1024)).await.unwrap();
    let status = chat.send_message(request_of(1025)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}
