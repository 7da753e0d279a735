//! A deploy: SIGTERM, and what clients of every kind see of it; and the ends by age, which look the same.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use weir::proto::chat::{Message, SendMessageResponse};

use crate::support::{
    Chat, Settings, TestServer, end,
    errors::assert_ended,
    eventually, follow, message, next,
    raw::{Answer, Raw, data, framed},
    send, soon,
};

const SEND: &str = "/chat.ChatService/SendMessage";
const SUBSCRIBE: &str = "/chat.ChatService/SubscribeMessages";

/// A subscriber's life: what it got, how it ended, and when.
struct Life {
    got: Vec<u64>,
    status: Status,
    ended: Instant,
}

/// Reads a welcomed subscription to its end.
fn live(mut stream: Streaming<Message>) -> JoinHandle<Life> {
    tokio::spawn(async move {
        let mut got = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => got.push(message.sequence),
                Ok(None) => panic!("a subscription has no end of its own"),
                Err(status) => {
                    let ended = Instant::now();
                    return Life { got, status, ended };
                }
            }
        }
    })
}

async fn subscribe(chat: &mut Chat, after: Option<u64>) -> Streaming<Message> {
    let mut stream = chat
        .subscribe_messages(follow("general", after))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    stream
}

/// Sends one message after the other until it is refused; returns the sequences and the refusal.
fn publish(mut chat: Chat) -> JoinHandle<(Vec<u64>, Status)> {
    tokio::spawn(async move {
        let mut sent = Vec::new();
        loop {
            match chat.send_message(send("general", "ann", "hi")).await {
                Ok(reply) => sent.push(reply.into_inner().sequence),
                Err(status) => return (sent, status),
            }
        }
    })
}

/// Asks for `/metrics` again and again until nobody answers; returns when it was last answered.
fn scrape(server: &TestServer) -> JoinHandle<Instant> {
    let admin = server.admin();
    tokio::spawn(async move {
        let mut last = Instant::now();
        loop {
            let answer = crate::support::server::http_get(admin, "/metrics").await;
            if answer.is_empty() {
                return last;
            }
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
            assert!(answer.contains("\nweir_draining "));
            last = Instant::now();
        }
    })
}

async fn check(server: &TestServer, service: &str) -> ServingStatus {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    let checked = HealthClient::new(server.channel().await)
        .check(request)
        .await;
    checked.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_loses_nothing_and_spreads_its_closes() {
    const CONNECTIONS: usize = 30;
    const STREAMS: usize = 10;
    const DELAY: Duration = Duration::from_secs(2);
    const SPREAD: Duration = Duration::from_secs(4);
    const TIMEOUT: Duration = Duration::from_secs(15);
    let settings = Settings::default()
        .set("drain.delay", "2s")
        .set("drain.spread", "4s")
        .set("drain.timeout", "15s");
    let mut server = TestServer::with(settings).await;
    let mut lives = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut chat = server.chat().await;
        for _ in 0..STREAMS {
            lives.push(live(subscribe(&mut chat, None).await));
        }
    }
    let publisher = publish(server.chat().await);
    let mut silent = TcpStream::connect(server.grpc()).await.unwrap();
    let watched = HealthClient::new(server.channel().await)
        .watch(HealthCheckRequest::default())
        .await;
    let mut watched = watched.unwrap().into_inner();
    assert_eq!(next(&mut watched).await.status(), ServingStatus::Serving);
    let scraper = scrape(&server);

    server.terminate();
    let told = Instant::now();
    // (a) Not serving at once; new streams are still taken, for whoever has not heard yet.
    assert_eq!(next(&mut watched).await.status(), ServingStatus::NotServing);
    for service in ["", "chat.ChatService"] {
        assert_eq!(
            check(&server, service).await,
            ServingStatus::NotServing,
            "{service:?}"
        );
    }
    assert_eq!(check(&server, "liveness").await, ServingStatus::Serving);
    assert!(
        server
            .admin_get("/readyz")
            .await
            .ends_with("\r\n\r\ndraining\n")
    );
    assert_eq!(server.metric("weir_draining").await, 1.0);
    lives.push(live(subscribe(&mut server.chat().await, Some(0)).await));
    assert!(told.elapsed() < DELAY, "{:?}", told.elapsed());

    // (b) Every stream ends with the status that says where to go on.
    let lives = soon("all streams to end", join_all(lives)).await;
    let lives: Vec<_> = lives.into_iter().map(Result::unwrap).collect();
    let status = end(&mut watched).await.unwrap_err();
    assert_eq!(
        assert_ended(&status, "DRAINING"),
        None,
        "health has no position"
    );
    let positions: Vec<_> = lives
        .iter()
        .map(|life| {
            let position = assert_ended(&life.status, "DRAINING").expect("a position");
            assert!(life.got.last().is_none_or(|last| *last <= position));
            position
        })
        .collect();

    // (c) Evenly, over the spread, after the delay.
    let mut buckets = [0_usize; 8];
    for life in &lives {
        let after = life
            .ended
            .duration_since(told)
            .checked_sub(DELAY)
            .expect("not within the delay");
        let bucket = after.as_millis() * 8 / SPREAD.as_millis();
        buckets[usize::try_from(bucket).unwrap().min(7)] += 1;
    }
    let mean = lives.len() / buckets.len();
    assert!(
        buckets.iter().all(|count| *count <= 2 * mean && *count > 0),
        "{buckets:?}"
    );

    // (e) It ends before its timeout though one connection never spoke.
    let mut rest = Vec::new();
    soon("the silent connection", silent.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(server.exit_code().await, Some(0));
    let took = told.elapsed();
    assert!(
        took >= DELAY && took < TIMEOUT - Duration::from_secs(3),
        "{took:?}"
    );
    // (f) Metrics were answered until the last stream had ended.
    let answered = soon("the last scrape", scraper).await.unwrap();
    assert!(lives.iter().all(|life| life.ended < answered));
    let (sent, refusal) = publisher.await.unwrap();
    // Cancelled is what the client itself calls a request that it could not send any more on a connection told to go.
    assert!(
        refusal.code() == Code::Unavailable
            || (refusal.code() == Code::Cancelled && refusal.details().is_empty()),
        "{refusal:?}"
    );
    assert!(sent.len() > 20, "published throughout: {}", sent.len());

    // (d) The next instance continues behind each position.
    let server = server.restart().await;
    let mut chat = server.chat().await;
    let marker = chat
        .send_message(send("general", "ann", "last"))
        .await
        .unwrap()
        .into_inner()
        .sequence;
    let read_on = async |chat: &mut Chat, after| {
        let mut stream = subscribe(chat, Some(after)).await;
        let mut got = Vec::new();
        while got.last() != Some(&marker) {
            got.push(next(&mut stream).await.sequence);
        }
        got
    };
    let stored = read_on(&mut chat, 0).await;
    let kept: BTreeSet<_> = stored.iter().collect();
    assert!(
        sent.iter().all(|one| kept.contains(one)),
        "what was acknowledged is there"
    );
    for (life, position) in lives.into_iter().zip(positions) {
        let mut got = life.got;
        got.extend(read_on(&mut chat, position).await);
        let start = stored.iter().position(|one| *one == got[0]).unwrap();
        assert_eq!(got, stored[start..], "after {position}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_and_uploads_end_likewise_and_unary_calls_finish() {
    let settings = Settings::default()
        .set("drain.delay", "500ms")
        .set("drain.spread", "500ms")
        .set("drain.timeout", "10s");
    let mut server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let (say, said) = mpsc::channel(1);
    let mut session = chat
        .chat(ReceiverStream::new(said))
        .await
        .unwrap()
        .into_inner();
    say.send(message("general", "ann", "hi")).await.unwrap();
    assert_eq!(next(&mut session).await.content, "Echo: hi");
    let heard = chat
        .send_message(send("general", "bob", "hello"))
        .await
        .unwrap()
        .into_inner()
        .sequence;
    assert_eq!(next(&mut session).await.sequence, heard);
    let (_silent, said) = mpsc::channel::<Message>(1);
    let mut silent = chat
        .chat(ReceiverStream::new(said))
        .await
        .unwrap()
        .into_inner();
    let (upload, uploading) = mpsc::channel(1);
    let uploaded = tokio::spawn({
        let mut chat = chat.clone();
        async move { chat.upload_messages(ReceiverStream::new(uploading)).await }
    });
    upload
        .send(message("general", "ann", "uploaded"))
        .await
        .unwrap();
    let mut listener = subscribe(&mut chat, Some(heard)).await;
    assert_eq!(next(&mut listener).await.content, "uploaded");
    drop(listener);

    // A unary call of which the server has half when it is told.
    let raw = Raw::connect(server.grpc()).await;
    let request = framed(&send("general", "ann", "in flight"));
    let (answer, mut sending) = raw.begin(SEND, &[]).await;
    sending.send_data(request.slice(..7), false).unwrap();
    eventually("half a call", || async {
        let series = "grpc_server_started_total{grpc_method=\"SendMessage\",grpc_service=\"chat.ChatService\",grpc_type=\"unary\"}";
        (server.metric(series).await == 2.0).then_some(())
    })
    .await;

    server.terminate();
    let told = Instant::now();
    let status = end(&mut session).await.unwrap_err();
    assert!(
        assert_ended(&status, "DRAINING") >= Some(heard),
        "{status:?}"
    );
    let status = end(&mut silent).await.unwrap_err();
    assert_eq!(
        assert_ended(&status, "DRAINING"),
        None,
        "it never was in a room"
    );
    let status = soon("the upload", uploaded).await.unwrap().unwrap_err();
    assert_eq!(assert_ended(&status, "DRAINING"), None);
    assert!(told.elapsed() >= Duration::from_millis(500));
    eventually("GOAWAY", || async {
        raw.ready().await.is_err().then_some(())
    })
    .await;
    sending.send_data(request.slice(7..), true).unwrap();
    let answer = Answer::of(answer).await;
    assert_eq!(answer.code(), Code::Ok, "{answer:?}");
    let reply: SendMessageResponse = crate::support::raw::unframed(answer.body.into()).remove(0);
    assert_eq!(server.exit_code().await, Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(8),
        "{:?}",
        told.elapsed()
    );

    let server = server.restart().await;
    let mut stream = subscribe(&mut server.chat().await, Some(reply.sequence - 1)).await;
    assert_eq!(next(&mut stream).await.content, "in flight");
}

#[tokio::test]
async fn streams_that_are_not_read_do_not_hold_a_drain_up() {
    let settings = Settings::default().set("drain.timeout", "60s");
    let mut server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    for _ in 0..40 {
        chat.send_message(send("general", "ann", &"x".repeat(10_000)))
            .await
            .unwrap();
    }
    drop(chat);
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1000);
    let raw = Raw::with(server.grpc(), &narrow).await;
    let unread = raw
        .open(SUBSCRIBE, &[], &follow("general", Some(0)))
        .await
        .into_body();
    server.terminate();
    let told = Instant::now();
    assert_eq!(server.exit_code().await, Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(30),
        "of a timeout of a minute: {:?}",
        told.elapsed()
    );
    drop(unread);
}

#[tokio::test]
async fn a_drain_ends_at_its_timeout_whatever_clients_do() {
    let settings = Settings::default().set("drain.timeout", "1500ms");
    let mut server = TestServer::with(settings).await;
    // A call that never ends: half a message.
    let raw = Raw::connect(server.grpc()).await;
    let (_answer, mut sending) = raw.begin(SEND, &[]).await;
    sending.send_data(vec![0, 0].into(), false).unwrap();
    eventually("half a call", || async {
        let series = "grpc_server_started_total{grpc_method=\"SendMessage\",grpc_service=\"chat.ChatService\",grpc_type=\"unary\"}";
        (server.metric(series).await == 1.0).then_some(())
    })
    .await;
    server.terminate();
    let told = Instant::now();
    assert_eq!(server.exit_code().await, Some(0));
    let took = told.elapsed();
    assert!(took >= Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let settings = Settings::default()
        .set("drain.delay", "60s")
        .set("drain.timeout", "90s");
    let mut server = TestServer::with(settings).await;
    server.terminate();
    let told = Instant::now();
    eventually("the drain", || async {
        (server.metric("weir_draining").await == 1.0).then_some(())
    })
    .await;
    server.terminate();
    assert_eq!(server.exit_code().await, Some(130));
    assert!(
        told.elapsed() < Duration::from_secs(30),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let mut server = TestServer::start().await;
    let _idle = Raw::connect(server.grpc()).await;
    let _silent = TcpStream::connect(server.http()).await.unwrap();
    server.terminate();
    let told = Instant::now();
    assert_eq!(server.exit_code().await, Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(3),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn streams_end_at_their_maximum_age_and_say_where_to_resume() {
    let server = TestServer::with(Settings::default().set("server.max_stream_age", "2s")).await;
    let mut chat = server.chat().await;
    let begun = Instant::now();
    let mut followed = subscribe(&mut chat, None).await;
    let (say, said) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(said));
    request
        .metadata_mut()
        .insert("after-sequence", "0".parse().unwrap());
    let mut session = chat.chat(request).await.unwrap().into_inner();
    say.send(message("general", "ann", "hi")).await.unwrap();
    assert_eq!(next(&mut session).await.content, "Echo: hi");
    assert_eq!(next(&mut followed).await.content, "hi");
    let last = chat
        .send_message(send("general", "bob", "last"))
        .await
        .unwrap()
        .into_inner()
        .sequence;
    for stream in [&mut followed, &mut session] {
        assert_eq!(next(stream).await.sequence, last);
        let status = end(stream).await.unwrap_err();
        assert!(assert_ended(&status, "MAX_AGE") >= Some(last), "{status:?}");
        assert_eq!(
            status.message(),
            "the stream reached its maximum age; reconnect to continue"
        );
    }
    let age = begun.elapsed();
    assert!(
        (Duration::from_millis(1700)..Duration::from_secs(4)).contains(&age),
        "{age:?}"
    );
    assert_eq!(
        server
            .metric("weir_streams_ended_total{reason=\"max_age\"}")
            .await,
        2.0
    );

    let mut resumed = subscribe(&mut chat, Some(last)).await;
    let sent = chat
        .send_message(send("general", "bob", "more"))
        .await
        .unwrap()
        .into_inner()
        .sequence;
    assert_eq!(next(&mut resumed).await.sequence, sent);
}

#[tokio::test]
async fn a_connection_at_its_maximum_age_is_asked_to_go_and_its_streams_go_on() {
    let server = TestServer::with(Settings::default().set("server.max_connection_age", "1s")).await;
    let begun = Instant::now();
    let raw = Raw::connect(server.grpc()).await;
    let mut stream = raw
        .open(SUBSCRIBE, &[], &follow("general", None))
        .await
        .into_body();
    data(&mut stream).await.expect("a welcome");
    eventually("GOAWAY", || async {
        raw.ready().await.is_err().then_some(())
    })
    .await;
    let age = begun.elapsed();
    assert!(
        (Duration::from_millis(850)..Duration::from_secs(4)).contains(&age),
        "{age:?}"
    );
    for content in ["one", "two"] {
        server
            .chat()
            .await
            .send_message(send("general", "ann", content))
            .await
            .unwrap();
        let heard = data(&mut stream).await.expect("the stream goes on");
        assert!(
            heard.ends_with(content.as_bytes())
                || heard.windows(3).any(|part| part == content.as_bytes())
        );
    }
}
