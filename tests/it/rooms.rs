//! `weir.v1.Rooms`, and one room through every door.

use tonic::{Code, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use weir::proto::{
    chat::Message,
    weir::v1::{
        GetHistoryRequest, ListMembersRequest, ListRoomsRequest, RoomEvent, RoomMessage,
        RoomMessageKind, SendRequest, TypingRequest, room_event::Event, rooms_client::RoomsClient,
    },
};

use crate::{
    doors::{self, Talk, has_members, history, join, line, lobby, point, room_message, text, v1},
    support::{
        Chat, Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        eventually, follow, message, next, send, soon,
    },
};

async fn rooms(server: &TestServer) -> RoomsClient<Channel> {
    RoomsClient::new(server.channel().await)
}

/// The ways to say something in the lobby.
enum Speaker {
    Send(Chat),
    Upload(Chat),
    Chat(Talk<Message>),
    V1(Talk<weir::proto::streaming::v1::ChatMessage>),
    Lobby(Talk<weir::proto::streaming::ChatMessage>),
    Rooms(RoomsClient<Channel>),
}

impl Speaker {
    async fn all(server: &TestServer) -> Vec<(&'static str, Self)> {
        let v1 = v1(server.channel().await, None).await.unwrap();
        v1.say(text("lobby", "by v1", "")).await;
        let lobby = lobby(server.channel().await, None).await.unwrap();
        lobby.say(point("by lobby", "joined")).await;
        let talk = doors::chat(server.channel().await).await;
        talk.say(message("lobby", "by chat", "first")).await;
        vec![
            ("by send", Self::Send(server.chat().await)),
            ("by upload", Self::Upload(server.chat().await)),
            ("by chat", Self::Chat(talk)),
            ("by v1", Self::V1(v1)),
            ("by lobby", Self::Lobby(lobby)),
            ("by rooms", Self::Rooms(rooms(server).await)),
        ]
    }

    async fn say(&mut self, user: &str, content: &str) {
        match self {
            Self::Send(chat) => {
                chat.send_message(send("lobby", user, content))
                    .await
                    .unwrap();
            }
            Self::Upload(chat) => {
                let said = tokio_stream::iter([message("lobby", user, content)]);
                chat.upload_messages(said).await.unwrap();
            }
            Self::Chat(talk) => talk.say(message("lobby", user, content)).await,
            Self::V1(talk) => talk.say(text("lobby", user, content)).await,
            Self::Lobby(talk) => talk.say(point(user, content)).await,
            Self::Rooms(rooms) => {
                rooms.send(line("lobby", user, content)).await.unwrap();
            }
        }
    }
}

/// The ways to hear what is said in the lobby.
enum Hearer {
    Subscribe(Streaming<Message>),
    Chat(Talk<Message>),
    V1(Talk<weir::proto::streaming::v1::ChatMessage>),
    Lobby(Talk<weir::proto::streaming::ChatMessage>),
    Rooms(Streaming<RoomEvent>),
}

impl Hearer {
    /// All of them, in the lobby as members of their own.
    async fn all(server: &TestServer) -> Vec<(&'static str, Self)> {
        let subscribed = server
            .chat()
            .await
            .subscribe_messages(follow("lobby", None))
            .await;
        let talk = doors::chat(server.channel().await).await;
        talk.say(message("lobby", "chat hears", "here")).await;
        let v1 = v1(server.channel().await, None).await.unwrap();
        v1.say(text("lobby", "v1 hears", "")).await;
        let lobby = lobby(server.channel().await, None).await.unwrap();
        lobby.say(point("lobby hears", "joined")).await;
        let joined = join(server.channel().await, "lobby", "rooms hears", None).await;
        vec![
            (
                "Subscribe",
                Self::Subscribe(subscribed.unwrap().into_inner()),
            ),
            ("chat Chat", Self::Chat(talk)),
            ("v1 Chat", Self::V1(v1)),
            ("lobby Chat", Self::Lobby(lobby)),
            ("Rooms.Join", Self::Rooms(joined.unwrap())),
        ]
    }

    /// What is heard next: who, what and where.
    async fn hear(&mut self) -> (String, String, u64) {
        match self {
            Self::Subscribe(stream) => {
                let heard = next(stream).await;
                (heard.user, heard.content, heard.sequence)
            }
            Self::Chat(talk) => {
                let heard = talk.hear().await;
                (heard.user, heard.content, heard.sequence)
            }
            Self::V1(talk) => {
                let heard = talk.hear().await;
                (heard.user_id, heard.content, heard.sequence)
            }
            Self::Lobby(talk) => {
                let heard = talk.hear().await;
                (heard.user_id, heard.content, heard.sequence)
            }
            Self::Rooms(events) => {
                let heard = room_message(events).await;
                (heard.user, heard.content, heard.sequence)
            }
        }
    }

    /// Skips up to what `user` says.
    async fn hear_of(&mut self, user: &str) -> (String, u64) {
        loop {
            let (speaker, content, sequence) = self.hear().await;
            if speaker == user {
                return (content, sequence);
            }
        }
    }
}

#[tokio::test]
async fn what_is_said_through_one_door_is_heard_through_every_other() {
    let server = TestServer::start().await;
    let mut hearers = Hearer::all(&server).await;
    let users = [
        "chat hears",
        "lobby hears",
        "reader",
        "rooms hears",
        "v1 hears",
    ];
    has_members(&server, "lobby", &users).await;
    // All follow the room once each has heard a first word.
    server
        .chat()
        .await
        .send_message(send("lobby", "starter", "go"))
        .await
        .unwrap();
    for (_, hearer) in &mut hearers {
        assert_eq!(hearer.hear_of("starter").await.0, "go");
    }
    for (user, mut speaker) in Speaker::all(&server).await {
        let said = format!("said {user}");
        speaker.say(user, &said).await;
        let mut sequences = Vec::new();
        for (door, hearer) in &mut hearers {
            let (heard, sequence) = loop {
                let (content, sequence) = hearer.hear_of(user).await;
                // What it said to get in comes before.
                if content == said {
                    break (content, sequence);
                }
            };
            assert_eq!(heard, said, "{user} → {door}");
            sequences.push(sequence);
        }
        assert!(sequences[0] > 0);
        assert!(
            sequences.iter().all(|sequence| *sequence == sequences[0]),
            "{user}: {sequences:?}"
        );
    }
}

#[tokio::test]
async fn every_service_tells_joins_and_leaves_in_its_own_words() {
    let server = TestServer::with(Settings::default().set("presence.lease", "10m")).await;
    let mut hearers = Hearer::all(&server).await;
    server
        .chat()
        .await
        .send_message(send("lobby", "starter", "go"))
        .await
        .unwrap();
    for (_, hearer) in &mut hearers {
        hearer.hear_of("starter").await;
    }
    let ann = v1(server.channel().await, None).await.unwrap();
    ann.say(text("lobby", "ann", "")).await;
    has_members_besides(&server, "ann").await;
    drop(ann.say);
    for (door, hearer) in &mut hearers {
        let expected = match *door {
            "v1 Chat" => [
                ("system", "User ann joined the chat"),
                ("system", "User ann left the chat"),
            ],
            "lobby Chat" => [
                ("system", "ann joined the chat"),
                ("system", "ann left the chat"),
            ],
            _ => [("ann", "ann joined the chat"), ("ann", "ann left the chat")],
        };
        for (user, content) in expected {
            let heard = hearer.hear().await;
            assert_eq!(
                (heard.0.as_str(), heard.1.as_str()),
                (user, content),
                "{door}"
            );
        }
    }
}

async fn has_members_besides(server: &TestServer, user: &str) {
    eventually("the member", || async {
        let members = doors::members(server, "lobby").await;
        members
            .iter()
            .any(|member| member.user == user)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_joined_stream_hears_everything_and_who_is_typing() {
    let server = TestServer::with(Settings::default().set("presence.lease", "10m")).await;
    let mut client = rooms(&server).await;
    let mut ann = join(server.channel().await, "general", "ann", None)
        .await
        .unwrap();
    let own = room_message(&mut ann).await;
    assert_eq!(
        (own.user.as_str(), own.kind()),
        ("ann", RoomMessageKind::Join)
    );
    // Her own sends too, under the sequence they were answered with.
    let sent = client.send(SendRequest {
        kind: RoomMessageKind::Image.into(),
        ..line("general", "ann", "a picture")
    });
    let sent = sent.await.unwrap().into_inner();
    let heard = room_message(&mut ann).await;
    assert_eq!((&heard.id, heard.sequence), (&sent.id, sent.sequence));
    assert_eq!(
        (heard.content.as_str(), heard.kind()),
        ("a picture", RoomMessageKind::Image)
    );
    // Typing of others only.
    for user in ["ann", "bob"] {
        let typing = TypingRequest {
            room: "general".into(),
            user: user.into(),
        };
        client.typing(typing).await.unwrap();
    }
    assert_eq!(
        next(&mut ann).await.event,
        Some(Event::Typing("bob".into()))
    );
    let mut carol = v1(server.channel().await, None).await.unwrap();
    carol.say(text("general", "carol", "")).await;
    carol.hear().await;
    assert_eq!(room_message(&mut ann).await.user, "carol");
    let typing = TypingRequest {
        room: "general".into(),
        user: "ann".into(),
    };
    client.typing(typing).await.unwrap();
    assert_eq!(carol.hear().await.user_id, "ann");
    assert_eq!(history(&server, "general").await.len(), 3);
}

#[tokio::test]
async fn a_joined_stream_leaves_when_its_client_ends_it() {
    let server = TestServer::with(Settings::default().set("presence.lease", "10m")).await;
    let channel = server.channel().await;
    let ann = join(channel.clone(), "general", "ann", None).await.unwrap();
    has_members(&server, "general", &["ann"]).await;
    drop(ann);
    has_members(&server, "general", &[]).await;
    let mut bob = join(channel, "general", "bob", Some(0)).await.unwrap();
    let kinds = [
        ("ann", RoomMessageKind::Join),
        ("ann", RoomMessageKind::Leave),
        ("bob", RoomMessageKind::Join),
    ];
    for (user, kind) in kinds {
        let heard = room_message(&mut bob).await;
        assert_eq!((heard.user.as_str(), heard.kind()), (user, kind));
    }
    server.terminate();
    let status = end(&mut bob).await.unwrap_err();
    assert!(assert_ended(&status, "DRAINING").is_some());
}

#[tokio::test]
async fn a_joined_stream_says_where_it_begins() {
    let server = TestServer::start().await;
    let sent = server
        .chat()
        .await
        .send_message(send("general", "bob", "old"))
        .await;
    let sequence = sent.unwrap().into_inner().sequence;
    let request = weir::proto::weir::v1::JoinRequest {
        room: "general".into(),
        user: "ann".into(),
        after_sequence: None,
    };
    let joined = rooms(&server).await.join(request).await.unwrap();
    let header = joined.metadata().get("after-sequence").unwrap();
    assert!(header.to_str().unwrap().parse::<u64>().unwrap() >= sequence);
}

#[tokio::test]
async fn rooms_are_listed_in_pages_with_their_ends_and_members() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut last = Vec::new();
    for room in ["a", "b", "c", "a"] {
        let sent = chat.send_message(send(room, "ann", "hi")).await.unwrap();
        last.push(sent.into_inner().sequence);
    }
    let subscribed = chat.subscribe_messages(follow("b", None)).await.unwrap();
    has_members(&server, "b", &["reader"]).await;
    let mut client = rooms(&server).await;
    let mut found = Vec::new();
    let mut request = ListRoomsRequest {
        page_size: 2,
        page_token: String::new(),
    };
    loop {
        let page = client
            .list_rooms(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.rooms.len() <= 2);
        found.extend(page.rooms);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let ends: Vec<_> = found
        .iter()
        .map(|info| (info.room.as_str(), info.last_sequence, info.members))
        .collect();
    assert_eq!(
        ends,
        [("a", last[3], 0), ("b", last[1], 1), ("c", last[2], 0)]
    );
    assert!(
        found
            .iter()
            .all(|info| info.first_sequence <= info.last_sequence)
    );
    drop(subscribed);
    request.page_size = -1;
    let status = client.list_rooms(request).await.unwrap_err();
    assert_invalid(&status, "page_size must not be negative", &["page_size"]);
}

#[tokio::test]
async fn history_comes_in_pages_and_says_where_it_ends() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for number in 0..5 {
        chat.send_message(send("general", "ann", &number.to_string()))
            .await
            .unwrap();
        chat.send_message(send("other", "ann", "elsewhere"))
            .await
            .unwrap();
    }
    let mut client = rooms(&server).await;
    let mut found: Vec<RoomMessage> = Vec::new();
    let mut request = GetHistoryRequest {
        room: "general".into(),
        after_sequence: 0,
        page_size: 2,
    };
    let mut pages = 0;
    loop {
        let page = client
            .get_history(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.messages.len() <= 2);
        found.extend(page.messages);
        pages += 1;
        request.after_sequence = page.next_after_sequence;
        if page.is_end {
            break;
        }
    }
    assert!((3..=4).contains(&pages), "{pages}");
    let contents: Vec<_> = found
        .iter()
        .map(|message| message.content.as_str())
        .collect();
    assert_eq!(contents, ["0", "1", "2", "3", "4"]);
    // The end of one page is where the next message comes.
    chat.send_message(send("general", "ann", "5"))
        .await
        .unwrap();
    let page = client
        .get_history(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page.messages.len(), 1);
    request.after_sequence = 99_999;
    let status = client.get_history(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(info(&status).0, "POSITION_BEYOND_TAIL");
}

#[tokio::test]
async fn history_that_is_no_longer_retained_is_out_of_range() {
    let settings = Settings::default()
        .set("log.retention.room.bytes", "1KiB")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let long = "x".repeat(400);
    for _ in 0..10 {
        chat.send_message(send("general", "ann", &long))
            .await
            .unwrap();
    }
    let mut client = rooms(&server).await;
    let status = eventually("the trim", || {
        let mut client = client.clone();
        let request = GetHistoryRequest {
            room: "general".into(),
            after_sequence: 1,
            page_size: 1,
        };
        async move { client.get_history(request).await.err() }
    })
    .await;
    assert_eq!(status.code(), Code::OutOfRange);
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "POSITION_TRIMMED");
    assert!(metadata["first_sequence"].parse::<u64>().unwrap() > 2);
    let status = join(server.channel().await, "general", "ann", Some(1))
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(doors::members(&server, "general").await.is_empty());
    // From the beginning is from the first retained.
    let request = GetHistoryRequest {
        room: "general".into(),
        ..GetHistoryRequest::default()
    };
    let page = client.get_history(request).await.unwrap().into_inner();
    assert!(!page.messages.is_empty());
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_fields() {
    let server = TestServer::start().await;
    let mut client = rooms(&server).await;
    let status = client.send(line("", " ", "hi")).await.unwrap_err();
    assert_invalid(
        &status,
        "room is required; user is required",
        &["room", "user"],
    );
    for kind in [
        RoomMessageKind::System as i32,
        RoomMessageKind::Join as i32,
        99,
    ] {
        let request = SendRequest {
            kind,
            ..line("general", "ann", "hi")
        };
        let status = client.send(request).await.unwrap_err();
        assert_invalid(&status, "kind must be TEXT, IMAGE or FILE", &["kind"]);
    }
    let nowhere = ListMembersRequest { room: " ".into() };
    let status = client.list_members(nowhere).await.unwrap_err();
    assert_invalid(&status, "room is required", &["room"]);
    let nobody = TypingRequest {
        room: "general".into(),
        user: String::new(),
    };
    let status = client.typing(nobody).await.unwrap_err();
    assert_invalid(&status, "user is required", &["user"]);
    let status = join(server.channel().await, "", "ann", None)
        .await
        .err()
        .unwrap();
    assert_invalid(&status, "room is required", &["room"]);
    let request = GetHistoryRequest {
        room: String::new(),
        page_size: -1,
        ..GetHistoryRequest::default()
    };
    let status = client.get_history(request).await.unwrap_err();
    assert_invalid(
        &status,
        "room is required; page_size must not be negative",
        &["room", "page_size"],
    );
    let keyed = |content: &str| SendRequest {
        idempotency_key: "k".into(),
        ..line("general", "ann", content)
    };
    let first = client.send(keyed("one")).await.unwrap().into_inner();
    let again = client.send(keyed("one")).await.unwrap().into_inner();
    assert_eq!(first, again);
    let status = soon("a refusal", client.send(keyed("two")))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.get_details_error_info().is_some());
}
