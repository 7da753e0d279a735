//! `streaming.v1.StreamingService/Chat` over real sockets.

use prost_types::Timestamp;
use tonic::{Code, Streaming};
use weir::proto::{
    chat::{Message, MessageType},
    streaming::v1::{
        ChatMessage, ChatMessageType, streaming_service_client::StreamingServiceClient,
    },
    weir::v1::RoomMessageKind,
};

use crate::{
    doors::{Talk, has_members, history, kinds, text, v1},
    support::{
        Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        follow, next, send, soon,
    },
};

async fn open(server: &TestServer) -> Talk<ChatMessage> {
    v1(server.channel().await, None).await.unwrap()
}

/// A stream of `user` in `room` that has been welcomed.
async fn member(server: &TestServer, room: &str, user: &str) -> Talk<ChatMessage> {
    let mut talk = open(server).await;
    talk.say(text(room, user, "")).await;
    assert_eq!(talk.hear().await.content, joined(user));
    talk
}

fn joined(user: &str) -> String {
    format!("User {user} joined the chat")
}

fn left(user: &str) -> String {
    format!("User {user} left the chat")
}

async fn subscribed(server: &TestServer, room: &str) -> Streaming<Message> {
    let mut chat = server.chat().await;
    let stream = chat.subscribe_messages(follow(room, None)).await.unwrap();
    let mut stream = stream.into_inner();
    next(&mut stream).await;
    stream
}

#[tokio::test]
async fn the_first_message_joins_and_is_passed_on() {
    let server = TestServer::start().await;
    let mut bob = member(&server, "general", "bob").await;
    let mut reader = subscribed(&server, "general").await;
    let mut ann = open(&server).await;
    ann.say(text("general", "ann", "Hello, world!")).await;

    let welcome = ann.hear().await;
    assert_eq!(welcome.content, "User ann joined the chat");
    assert_eq!(welcome.user_id, "system");
    assert_eq!(welcome.room_id, "general");
    assert_eq!(welcome.r#type(), ChatMessageType::System);
    assert!(!welcome.id.is_empty() && welcome.timestamp.is_some());

    let told = bob.hear().await;
    assert_eq!(
        (told.user_id.as_str(), told.content.as_str()),
        ("system", welcome.content.as_str())
    );
    assert_eq!(told.r#type(), ChatMessageType::System);
    assert_eq!(told.sequence, welcome.sequence);
    let heard = bob.hear().await;
    assert_eq!(
        (heard.user_id.as_str(), heard.content.as_str()),
        ("ann", "Hello, world!")
    );
    assert_eq!(heard.r#type(), ChatMessageType::Text);
    assert!(heard.sequence > told.sequence);

    let told = next(&mut reader).await;
    assert_eq!(
        (told.user.as_str(), told.content.as_str()),
        ("ann", "ann joined the chat")
    );
    assert_eq!(told.r#type(), MessageType::Join);
    let heard = next(&mut reader).await;
    assert_eq!(
        (heard.user.as_str(), heard.content.as_str()),
        ("ann", "Hello, world!")
    );

    // She hears others, and never herself.
    bob.say(text("general", "bob", "hi ann")).await;
    assert_eq!(ann.hear().await.content, "hi ann");
}

#[tokio::test]
async fn a_first_message_without_content_only_joins() {
    let server = TestServer::start().await;
    let ann = member(&server, "general", "ann").await;
    let mut bob = member(&server, "general", "bob").await;
    // An empty content is passed on from then on.
    ann.say(text("general", "ann", "")).await;
    assert_eq!(bob.hear().await.content, "");
    let all = kinds(&server, "general").await;
    let expected = [
        ("ann".to_owned(), RoomMessageKind::Join),
        ("bob".to_owned(), RoomMessageKind::Join),
        ("ann".to_owned(), RoomMessageKind::Text),
    ];
    assert_eq!(all, expected);
}

#[tokio::test]
async fn texts_images_and_files_pass_as_they_came_and_never_back() {
    let server = TestServer::start().await;
    let mut ann = member(&server, "general", "ann").await;
    let mut bob = member(&server, "general", "bob").await;
    ann.hear().await;
    for (number, kind) in [
        ChatMessageType::Unspecified,
        ChatMessageType::Text,
        ChatMessageType::Image,
        ChatMessageType::File,
    ]
    .into_iter()
    .enumerate()
    {
        let said = ChatMessage {
            id: format!("m{number}"),
            timestamp: Some(Timestamp {
                seconds: 7,
                nanos: 5,
            }),
            r#type: kind.into(),
            ..text("general", "ann", "that")
        };
        ann.say(said.clone()).await;
        let heard = bob.hear().await;
        assert!(heard.sequence > 0);
        let expected = match kind {
            ChatMessageType::Unspecified => ChatMessageType::Text,
            kind => kind,
        };
        let expected = ChatMessage {
            sequence: heard.sequence,
            r#type: expected.into(),
            ..said
        };
        assert_eq!(heard, expected);
    }
    bob.say(text("general", "bob", "thanks")).await;
    assert_eq!(ann.hear().await.content, "thanks");
}

#[tokio::test]
async fn typing_is_forwarded_and_never_stored() {
    let server = TestServer::start().await;
    let mut ann = member(&server, "general", "ann").await;
    let mut bob = member(&server, "general", "bob").await;
    ann.hear().await;
    let typing = ChatMessage {
        r#type: ChatMessageType::Typing.into(),
        ..text("general", "ann", "")
    };
    ann.say(typing.clone()).await;
    let heard = bob.hear().await;
    assert_eq!(heard.r#type(), ChatMessageType::Typing);
    assert_eq!(
        (heard.user_id.as_str(), heard.room_id.as_str()),
        ("ann", "general")
    );
    assert_eq!(heard.sequence, 0);
    // Not back to who types, and nothing of it is stored.
    bob.say(text("general", "bob", "you type")).await;
    assert_eq!(ann.hear().await.content, "you type");
    let texts = history(&server, "general").await;
    assert_eq!(texts.len(), 3, "{texts:?}");

    // A first message that types joins as well.
    let mut carol = open(&server).await;
    carol
        .say(ChatMessage {
            user_id: "carol".into(),
            ..typing
        })
        .await;
    assert_eq!(carol.hear().await.content, joined("carol"));
    // What is stored and what is not go different ways.
    let heard = [ann.hear().await, ann.hear().await];
    assert!(heard.iter().any(|heard| heard.content == joined("carol")));
    assert!(
        heard
            .iter()
            .any(|heard| heard.r#type() == ChatMessageType::Typing)
    );
}

#[tokio::test]
async fn one_stream_joins_rooms_by_speaking_in_them() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut ann = member(&server, "one", "ann").await;
    ann.say(text("two", "ann", "also here")).await;
    let welcome = ann.hear().await;
    assert_eq!(
        (welcome.room_id.as_str(), welcome.content),
        ("two", joined("ann"))
    );
    for room in ["one", "three", "two"] {
        chat.send_message(send(room, "bob", room)).await.unwrap();
    }
    assert_eq!(ann.hear().await.content, "one");
    assert_eq!(ann.hear().await.content, "two");
    has_members(&server, "one", &["ann"]).await;
    has_members(&server, "two", &["ann"]).await;
    drop(ann.say);
    assert!(soon("the end", ann.hear.message()).await.unwrap().is_none());
    for room in ["one", "two"] {
        has_members(&server, room, &[]).await;
    }
}

#[tokio::test]
async fn users_of_one_stream_come_and_speak_in_the_order_of_its_messages() {
    let server = TestServer::start().await;
    // All at once, and more users than batches go at a time.
    let said: Vec<_> = (0..20)
        .flat_map(|user| {
            [0, 1].map(|number| text("general", &format!("u{user}"), &number.to_string()))
        })
        .collect();
    let channel = server.channel().await;
    let mut client = StreamingServiceClient::new(channel);
    let mut heard = client
        .chat(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    for user in 0..20 {
        assert_eq!(next(&mut heard).await.content, joined(&format!("u{user}")));
    }
    assert!(soon("the end", heard.message()).await.unwrap().is_none());
    let mut expected = Vec::new();
    for user in 0..20 {
        let user = format!("u{user}");
        expected.push((user.clone(), RoomMessageKind::Join));
        expected.extend([
            (user.clone(), RoomMessageKind::Text),
            (user, RoomMessageKind::Text),
        ]);
    }
    let told = kinds(&server, "general").await;
    assert_eq!(told[..60], expected);
}

#[tokio::test]
async fn leaving_tells_the_room_whether_the_client_closes_or_cancels() {
    let server = TestServer::with(Settings::default().set("presence.lease", "10m")).await;
    let mut bob = member(&server, "general", "bob").await;
    let mut reader = subscribed(&server, "general").await;
    for is_cancelled in [false, true] {
        let mut ann = member(&server, "general", "ann").await;
        assert_eq!(bob.hear().await.content, joined("ann"));
        next(&mut reader).await;
        if is_cancelled {
            drop(ann);
        } else {
            ann.say(text("general", "ann", "bye")).await;
            assert_eq!(bob.hear().await.content, "bye");
            next(&mut reader).await;
            drop(ann.say);
            assert!(soon("the end", ann.hear.message()).await.unwrap().is_none());
        }
        let told = bob.hear().await;
        assert_eq!(
            (told.user_id.as_str(), &told.content),
            ("system", &left("ann"))
        );
        assert_eq!(told.r#type(), ChatMessageType::System);
        let told = next(&mut reader).await;
        assert_eq!(
            (told.user.as_str(), told.content.as_str()),
            ("ann", "ann left the chat")
        );
        assert_eq!(told.r#type(), MessageType::Leave);
    }
}

#[tokio::test]
async fn metadata_resumes_the_rooms() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut last = 0;
    for content in ["1", "2", "3"] {
        let sent = chat.send_message(send("general", "bob", content)).await;
        if content == "1" {
            last = sent.unwrap().into_inner().sequence;
        }
    }
    let after = last.to_string();
    let mut ann = v1(server.channel().await, Some(&after)).await.unwrap();
    ann.say(text("general", "ann", "back")).await;
    let mut heard = Vec::new();
    while heard.len() < 3 {
        heard.push(ann.hear().await.content);
    }
    assert_eq!(heard, [&joined("ann"), "2", "3"]);

    let wrong = v1(server.channel().await, Some("x")).await.err().unwrap();
    assert_invalid(
        &wrong,
        "after-sequence must be a decimal number",
        &["after-sequence"],
    );
    let mut beyond = v1(server.channel().await, Some("99999")).await.unwrap();
    beyond.say(text("general", "carol", "hi")).await;
    let status = end(&mut beyond.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(info(&status).0, "POSITION_BEYOND_TAIL");
    has_members(&server, "general", &["ann"]).await;
}

#[tokio::test]
async fn bad_messages_end_the_stream_and_are_not_stored() {
    let server = TestServer::start().await;
    let system = ChatMessage {
        r#type: ChatMessageType::System.into(),
        ..text("general", "ann", "I am the server")
    };
    let unknown = ChatMessage {
        r#type: 99,
        ..text("general", "ann", "?")
    };
    let long = "x".repeat(257);
    for (message, words, fields) in [
        (
            text(" ", "", "hi"),
            "user_id is required; room_id is required",
            &["user_id", "room_id"][..],
        ),
        (
            text(&long, "ann", "hi"),
            "room_id must be at most 256 bytes",
            &["room_id"],
        ),
        (system, "type SYSTEM is what the service says", &["type"]),
        (unknown, "type 99 is not known", &["type"]),
    ] {
        let mut ann = open(&server).await;
        ann.say(message).await;
        let status = end(&mut ann.hear).await.unwrap_err();
        assert_invalid(&status, words, fields);
    }
    assert_eq!(history(&server, "general").await, []);
}

#[tokio::test]
async fn a_key_used_for_other_content_ends_the_stream() {
    let server = TestServer::start().await;
    let mut bob = member(&server, "general", "bob").await;
    let mut ann = member(&server, "general", "ann").await;
    bob.hear().await;
    for content in ["one", "one", "two"] {
        let said = ChatMessage {
            idempotency_key: "k".into(),
            ..text("general", "ann", content)
        };
        ann.say(said).await;
    }
    let status = end(&mut ann.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(info(&status).0, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(bob.hear().await.content, "one");
    bob.say(text("general", "bob", "end")).await;
    let texts = history(&server, "general").await;
    let texts = texts
        .iter()
        .filter(|(_, _, kind)| *kind == RoomMessageKind::Text);
    assert!(texts.count() <= 2);
}

#[tokio::test]
async fn rooms_of_one_stream_are_limited() {
    let server = TestServer::with(Settings::default().set("limits.rooms_per_stream", 1)).await;
    let mut ann = member(&server, "one", "ann").await;
    ann.say(text("two", "ann", "hi")).await;
    let status = end(&mut ann.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "rooms of one stream is limited to 1");
    assert_eq!(history(&server, "two").await, []);
}

#[tokio::test]
async fn a_drain_ends_it_with_the_position_to_resume_after() {
    let server = TestServer::start().await;
    let mut bob = member(&server, "general", "bob").await;
    let ann = member(&server, "general", "ann").await;
    bob.hear().await;
    ann.say(text("general", "ann", "last")).await;
    let last = bob.hear().await;
    server.terminate();
    let status = end(&mut bob.hear).await.unwrap_err();
    let after = assert_ended(&status, "DRAINING").expect("a position");
    assert!(after >= last.sequence, "{after} < {}", last.sequence);
}
