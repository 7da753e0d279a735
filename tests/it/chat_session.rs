//! `chat.ChatService/Chat` over real sockets.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;
use weir::proto::chat::{Message, MessageType};

use crate::support::{
    Chat, Settings, TestServer, end,
    errors::{assert_invalid, info, retry_after},
    follow, message, next, send, soon,
};

/// One open conversation.
struct Session {
    say: mpsc::Sender<Message>,
    hear: Streaming<Message>,
}

impl Session {
    async fn open(chat: &mut Chat) -> Self {
        Self::with(chat, None).await.unwrap()
    }

    async fn with(chat: &mut Chat, after: Option<&str>) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(100);
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(after) = after {
            request
                .metadata_mut()
                .insert("after-sequence", after.parse().unwrap());
        }
        let hear = soon("a response", chat.chat(request)).await?.into_inner();
        Ok(Self { say, hear })
    }

    async fn say(&self, room: &str, user: &str, content: &str) {
        let id = format!("{user}-{content}");
        let said = Message {
            id,
            ..message(room, user, content)
        };
        self.say.send(said).await.unwrap();
    }

    /// Says something and takes its echo, which must come next.
    async fn echoed(&mut self, room: &str, user: &str, content: &str) {
        self.say(room, user, content).await;
        let echo = next(&mut self.hear).await;
        assert_eq!(echo.content, format!("Echo: {content}"));
    }
}

/// Contents of everything in `room`.
async fn stored(chat: &mut Chat, room: &str) -> Vec<String> {
    let mut stream = chat
        .subscribe_messages(follow(room, Some(0)))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    chat.send_message(send(room, "marker", "end"))
        .await
        .unwrap();
    let mut all = Vec::new();
    loop {
        let message = next(&mut stream).await;
        if message.user == "marker" {
            return all;
        }
        all.push(message.content);
    }
}

#[tokio::test]
async fn every_message_is_echoed_in_order_once_it_is_stored() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut session = Session::open(&mut chat).await;
    for number in 0..300 {
        let said = Message {
            id: format!("m{number}"),
            ..message(["one", "two"][number % 2], "ann", &number.to_string())
        };
        if session.say.try_send(said.clone()).is_err() {
            session.say.send(said).await.unwrap();
        }
        if number % 100 == 99 {
            for number in number - 99..=number {
                let echo = next(&mut session.hear).await;
                assert_eq!(echo.id, format!("echo_m{number}"));
                assert_eq!(echo.user, "Server");
                assert_eq!(echo.content, format!("Echo: {number}"));
                assert_eq!(echo.room, ["one", "two"][number % 2]);
                assert_eq!(echo.r#type(), MessageType::System);
                assert_eq!((echo.sequence, echo.idempotency_key.as_str()), (0, ""));
                assert!(echo.timestamp.is_some());
            }
        }
    }
    let expected: Vec<_> = (0..300)
        .step_by(2)
        .map(|number| number.to_string())
        .collect();
    assert_eq!(stored(&mut chat, "one").await, expected);
}

#[tokio::test]
async fn the_stream_hears_that_the_server_is_alive_every_five_seconds() {
    let server = TestServer::start().await;
    let mut session = Session::open(&mut server.chat().await).await;
    let begun = Instant::now();
    let alive = next(&mut session.hear).await;
    assert_eq!(alive.content, "Server is alive!");
    assert_eq!((alive.user.as_str(), alive.room.as_str()), ("Server", ""));
    assert_eq!(alive.r#type(), MessageType::System);
    assert_eq!(alive.sequence, 0);
    assert!(alive.id.starts_with("server_"), "{alive:?}");
    let passed = begun.elapsed();
    assert!(
        (Duration::from_millis(4500)..Duration::from_secs(8)).contains(&passed),
        "{passed:?}"
    );
}

#[tokio::test]
async fn a_stream_hears_others_in_all_its_rooms_and_never_itself() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    chat.send_message(send("one", "bob", "too early"))
        .await
        .unwrap();
    let mut ann = Session::open(&mut chat).await;
    ann.echoed("one", "ann", "hi").await;
    ann.echoed("two", "ann", "hello").await;
    chat.send_message(send("three", "bob", "not a room of hers"))
        .await
        .unwrap();
    chat.send_message(send("one", "ann", "her own, said elsewhere"))
        .await
        .unwrap();
    for (room, content) in [("one", "first"), ("two", "second"), ("one", "third")] {
        let sent = chat
            .send_message(send(room, "bob", content))
            .await
            .unwrap()
            .into_inner();
        let heard = next(&mut ann.hear).await;
        assert_eq!(
            (heard.room.as_str(), heard.content.as_str()),
            (room, content)
        );
        assert_eq!((heard.user.as_str(), &heard.id), ("bob", &sent.message_id));
        assert_eq!(heard.sequence, sent.sequence);
        assert_eq!(heard.r#type(), MessageType::Chat);
    }
    // Two conversations hear each other.
    let mut carol = Session::open(&mut chat).await;
    carol.echoed("two", "carol", "here too").await;
    assert_eq!(next(&mut ann.hear).await.content, "here too");
    ann.echoed("two", "ann", "welcome").await;
    let heard = next(&mut carol.hear).await;
    assert_eq!(
        (heard.user.as_str(), heard.content.as_str()),
        ("ann", "welcome")
    );
}

#[tokio::test]
async fn metadata_resumes_every_room() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut sent = Vec::new();
    for (user, content) in [("bob", "1"), ("bob", "2"), ("ann", "own"), ("bob", "3")] {
        let reply = chat
            .send_message(send("general", user, content))
            .await
            .unwrap();
        sent.push(reply.into_inner().sequence);
    }
    for (after, expected) in [
        ("0", &["1", "2", "3"][..]),
        (&sent[0].to_string(), &["2", "3"]),
        (&sent[3].to_string(), &[]),
    ] {
        let mut ann = Session::with(&mut chat, Some(after)).await.unwrap();
        ann.say("general", "ann", "back").await;
        let mut heard = Vec::new();
        let mut is_echoed = false;
        while heard.len() < expected.len() || !is_echoed {
            let message = next(&mut ann.hear).await;
            match message.user.as_str() {
                "Server" => is_echoed = true,
                user => {
                    assert_eq!(user, "bob");
                    heard.push(message.content);
                }
            }
        }
        assert_eq!(heard, expected, "after {after}");
        // The same position resumes a further room: what was said there since then comes, and nothing before it.
        let before = chat.send_message(send("other", "bob", "before"));
        let before = before.await.unwrap().into_inner().sequence.to_string();
        chat.send_message(send("other", "bob", "since"))
            .await
            .unwrap();
        let mut ann = Session::with(&mut chat, Some(&before)).await.unwrap();
        ann.echoed("general", "ann", "hi").await;
        ann.say("other", "ann", "hi").await;
        let mut news = [next(&mut ann.hear).await, next(&mut ann.hear).await];
        news.sort_by_key(|message| message.sequence);
        let contents = news.each_ref().map(|message| message.content.as_str());
        assert_eq!(contents, ["Echo: hi", "since"]);
    }
}

#[tokio::test]
async fn a_position_that_is_no_number_is_refused() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for wrong in ["", "x", "-1", "1.0", "18446744073709551616", " 1x"] {
        let status = Session::with(&mut chat, Some(wrong))
            .await
            .err()
            .expect("a refusal");
        assert_invalid(
            &status,
            "after-sequence must be a decimal number",
            &["after-sequence"],
        );
    }
}

#[tokio::test]
async fn resuming_behind_the_last_message_is_refused_before_anything_is_stored() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut session = Session::with(&mut chat, Some("99999")).await.unwrap();
    session.say("general", "ann", "hi").await;
    let status = end(&mut session.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "POSITION_BEYOND_TAIL");
    assert!(metadata["last_sequence"].parse::<u64>().unwrap() < 99_999);
    assert_eq!(stored(&mut chat, "general").await, [""; 0]);
}

#[tokio::test]
async fn the_stream_ends_after_the_last_echo_when_the_client_is_done() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let said: Vec<_> = (0..500)
        .map(|number| message("general", "ann", &number.to_string()))
        .collect();
    let mut hear = chat
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    for number in 0..500 {
        assert_eq!(next(&mut hear).await.content, format!("Echo: {number}"));
    }
    assert!(soon("the end", hear.message()).await.unwrap().is_none());

    let mut silent = Session::open(&mut chat).await;
    drop(silent.say);
    assert!(
        soon("the end", silent.hear.message())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_bad_message_ends_the_stream_after_the_echoes_of_those_before_it() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    // All of them at once, so that they arrive together.
    let mut said: Vec<_> = (0..5)
        .map(|number| message("general", "ann", &number.to_string()))
        .collect();
    said.push(message("", " ", "bad"));
    said.push(message("general", "ann", "after"));
    let mut hear = chat
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    for number in 0..5 {
        assert_eq!(next(&mut hear).await.content, format!("Echo: {number}"));
    }
    let status = soon("the end", hear.message()).await.unwrap_err();
    assert_invalid(
        &status,
        "user is required; room is required",
        &["user", "room"],
    );
    assert_eq!(
        stored(&mut chat, "general").await,
        ["0", "1", "2", "3", "4"]
    );
}

#[tokio::test]
async fn a_key_used_for_other_content_ends_the_stream_after_the_echoes_before_it() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let keyed = |content: &str, key: &str| Message {
        idempotency_key: key.into(),
        ..message("general", "ann", content)
    };
    let said = vec![
        keyed("one", "k"),
        keyed("one", "k"),
        keyed("two", ""),
        keyed("three", "k"),
    ];
    let mut hear = chat
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    for content in ["one", "one", "two"] {
        assert_eq!(next(&mut hear).await.content, format!("Echo: {content}"));
    }
    let status = soon("the end", hear.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert_eq!(info(&status).0, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(stored(&mut chat, "general").await, ["one", "two"]);
}

#[tokio::test]
async fn rooms_of_one_stream_are_limited_and_the_refused_message_is_not_stored() {
    let server = TestServer::with(Settings::default().set("limits.rooms_per_stream", 2)).await;
    let mut chat = server.chat().await;
    let mut session = Session::open(&mut chat).await;
    for room in ["one", "two", "one"] {
        session.echoed(room, "ann", "hi").await;
    }
    session.say("three", "ann", "hi").await;
    let status = end(&mut session.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.message(), "rooms of one stream is limited to 2");
    assert_eq!(info(&status).0, "LIMIT_EXCEEDED");
    let quota = status.get_details_quota_failure().unwrap();
    assert_eq!(quota.violations[0].subject, "rooms of one stream");
    assert_eq!(quota.violations[0].description, "at most 2");
    assert_eq!(retry_after(&status), None);
    assert_eq!(stored(&mut chat, "three").await, [""; 0]);

    // Rooms that come in one go count as well.
    let said = ["one", "two", "three"].map(|room| message(room, "bob", "hi"));
    let mut hear = chat
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut hear).await.room, "one");
    let status = end(&mut hear).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(stored(&mut chat, "three").await, [""; 0]);
}

#[tokio::test]
async fn users_of_one_stream_are_limited() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut session = Session::open(&mut chat).await;
    for number in 0..64 {
        session
            .echoed("general", &format!("user {number}"), "hi")
            .await;
    }
    session.echoed("general", "user 0", "again").await;
    session.say("general", "user 64", "one too many").await;
    let status = end(&mut session.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.message(), "users of one stream is limited to 64");
    assert_eq!(info(&status).0, "LIMIT_EXCEEDED");
}
