//! `chat.ChatService` over real sockets: `SendMessage` and `SubscribeMessages`.

use std::{collections::BTreeSet, process::Stdio};

use futures::future::join_all;
use tonic::{Code, Status};
use weir::proto::chat::{Message, MessageType, SendMessageRequest, SendMessageResponse};

use crate::support::{
    Chat, Settings, TestServer, end,
    errors::{assert_invalid, info, retry_after},
    eventually, follow, next, send,
};

/// The next `count` messages' sequences.
async fn sequences(stream: &mut tonic::Streaming<Message>, count: usize) -> Vec<u64> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(next(stream).await.sequence);
    }
    all
}

/// Follows `room` and takes the welcome.
async fn subscribe(chat: &mut Chat, room: &str, after: Option<u64>) -> tonic::Streaming<Message> {
    let mut stream = chat
        .subscribe_messages(follow(room, after))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    stream
}

async fn post(chat: &mut Chat, request: SendMessageRequest) -> SendMessageResponse {
    chat.send_message(request).await.unwrap().into_inner()
}

async fn refused(chat: &mut Chat, request: SendMessageRequest) -> Status {
    chat.send_message(request).await.unwrap_err()
}

/// A message with an idempotency key.
fn keyed(room: &str, user: &str, content: &str, key: &str) -> SendMessageRequest {
    SendMessageRequest {
        idempotency_key: key.into(),
        ..send(room, user, content)
    }
}

#[tokio::test]
async fn a_subscriber_is_welcomed_and_hears_everyone() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = chat
        .subscribe_messages(follow("general", None))
        .await
        .unwrap()
        .into_inner();
    let welcome: Message = next(&mut stream).await;
    assert_eq!(welcome.id, "system");
    assert_eq!(welcome.user, "System");
    assert_eq!(welcome.content, "Welcome to room general, reader!");
    assert_eq!(welcome.room, "general");
    assert_eq!(welcome.r#type(), MessageType::System);
    assert_eq!(welcome.sequence, 0);
    assert!(welcome.timestamp.is_some());

    let sent = post(&mut chat, send("general", "alice", "hello")).await;
    let heard = next(&mut stream).await;
    assert_eq!(heard.id, sent.message_id);
    assert_eq!(heard.sequence, sent.sequence);
    assert_eq!(heard.timestamp, sent.timestamp);
    assert_eq!(
        (heard.user.as_str(), heard.content.as_str()),
        ("alice", "hello")
    );
    assert_eq!(heard.room, "general");
    assert_eq!(heard.r#type(), MessageType::Chat);

    let own = post(&mut chat, keyed("general", "reader", "", "own")).await;
    let heard = next(&mut stream).await;
    assert_eq!((heard.sequence, heard.content.as_str()), (own.sequence, ""));
    assert_eq!(heard.idempotency_key, "", "never delivered");
}

#[tokio::test]
async fn rooms_are_separate_and_content_passes_through() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = subscribe(&mut chat, "here", None).await;
    post(&mut chat, send("there", "ann", "not for here")).await;
    post(&mut chat, send("HERE", "ann", "nor this")).await;
    for content in [
        "",
        " ",
        "\0",
        "line\nline\r\n",
        "späß 本 👩‍👩‍👧",
        "\u{feff}\u{202e}",
    ] {
        post(&mut chat, send("here", "ann", content)).await;
        assert_eq!(next(&mut stream).await.content, content);
    }
}

#[tokio::test]
async fn names_may_be_anything_but_blank_or_too_long() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let long = "x".repeat(257);
    for blank in ["", " ", "\t\r\n", "\u{3000}\u{a0}"] {
        let status = refused(&mut chat, send("general", blank, "")).await;
        assert_invalid(&status, "user is required", &["user"]);
        let status = refused(&mut chat, send(blank, "ann", "")).await;
        assert_invalid(&status, "room is required", &["room"]);
        let status = refused(&mut chat, send(blank, blank, "")).await;
        assert_invalid(
            &status,
            "user is required; room is required",
            &["user", "room"],
        );
        let status = chat
            .subscribe_messages(follow(blank, Some(0)))
            .await
            .unwrap_err();
        assert_invalid(&status, "room is required", &["room"]);
        let mut nobody = follow("general", None);
        nobody.user = blank.into();
        let status = chat.subscribe_messages(nobody).await.unwrap_err();
        assert_invalid(&status, "user is required", &["user"]);
    }
    let status = refused(&mut chat, send(&long, &long, "")).await;
    let text = "user must be at most 256 bytes; room must be at most 256 bytes";
    assert_invalid(&status, text, &["user", "room"]);
    let status = refused(&mut chat, keyed("general", "ann", "", &long)).await;
    let text = "idempotency_key must be at most 256 bytes";
    assert_invalid(&status, text, &["idempotency_key"]);

    // 256 bytes are enough for 85 of these and one more letter.
    let unicode = format!("{}x", "本".repeat(85));
    let status = refused(&mut chat, send(&format!("{unicode}é"), "ann", "")).await;
    assert_invalid(&status, "room must be at most 256 bytes", &["room"]);
    for name in [
        &"x".repeat(256),
        &unicode,
        " a ",
        "a/b",
        "*",
        ">",
        "\0",
        "..",
        "%2F",
        "'\"\\",
    ] {
        let mut stream = subscribe(&mut chat, name, Some(0)).await;
        let sent = post(&mut chat, keyed(name, name, "hi", name)).await;
        let heard = next(&mut stream).await;
        assert_eq!((heard.room.as_str(), heard.user.as_str()), (name, name));
        assert_eq!(
            heard.sequence, sent.sequence,
            "{name:?} is a room of its own"
        );
    }
}

#[tokio::test]
async fn a_subscription_resumes_after_any_sequence() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut all = Vec::new();
    for number in 0..20 {
        all.push(
            post(&mut chat, send("general", "ann", &number.to_string()))
                .await
                .sequence,
        );
    }
    assert!(all.is_sorted_by(|one, other| one < other), "{all:?}");
    for position in [0, all[0], all[9], all[18], all[19]] {
        let mut stream = subscribe(&mut chat, "general", Some(position)).await;
        let expected: Vec<_> = all.iter().copied().filter(|one| *one > position).collect();
        assert_eq!(sequences(&mut stream, expected.len()).await, expected);
        all.push(
            post(&mut chat, send("general", "ann", "live"))
                .await
                .sequence,
        );
        assert_eq!(
            sequences(&mut stream, 1).await,
            all[all.len() - 1..],
            "then live"
        );
    }
}

#[tokio::test]
async fn the_response_says_where_a_subscription_begins() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let first = post(&mut chat, send("general", "ann", "one"))
        .await
        .sequence;
    let last = post(&mut chat, send("general", "ann", "two"))
        .await
        .sequence;
    for (wanted, expected) in [
        (None, last..u64::MAX),
        (Some(first), first..last),
        (Some(0), 0..first),
    ] {
        let response = chat
            .subscribe_messages(follow("general", wanted))
            .await
            .unwrap();
        let position = response
            .metadata()
            .get("after-sequence")
            .unwrap()
            .to_str()
            .unwrap();
        assert!(
            expected.contains(&position.parse().unwrap()),
            "{wanted:?}: {position}"
        );
    }
}

#[tokio::test]
async fn resuming_behind_the_last_message_is_out_of_range() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let last = post(&mut chat, send("general", "ann", "hi")).await.sequence;
    for (room, position) in [
        ("general", last + 1000),
        ("general", u64::MAX),
        ("empty", last + 1000),
    ] {
        let status = chat
            .subscribe_messages(follow(room, Some(position)))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        let (reason, metadata) = info(&status);
        assert_eq!(reason, "POSITION_BEYOND_TAIL");
        // All topics share one counter, and the canary's goes on.
        let end: u64 = metadata["last_sequence"].parse().unwrap();
        assert!((last..last + 1000).contains(&end), "{end}");
        assert_eq!(status.message(), format!("the log ends before {}", end + 1));
        assert_eq!(retry_after(&status), None);
    }
    let mut stream = subscribe(&mut chat, "empty", Some(0)).await;
    post(&mut chat, send("empty", "ann", "first")).await;
    assert_eq!(next(&mut stream).await.content, "first");
}

#[tokio::test]
async fn resuming_before_retention_is_out_of_range() {
    let settings = Settings::default()
        .set("log.retention.room.bytes", "1KiB")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let mut last = 0;
    for _ in 0..50 {
        last = post(&mut chat, send("general", "ann", &"x".repeat(100)))
            .await
            .sequence;
    }
    let status = eventually("retention", || {
        let mut chat = chat.clone();
        async move {
            chat.subscribe_messages(follow("general", Some(1)))
                .await
                .err()
        }
    })
    .await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "POSITION_TRIMMED");
    let first: u64 = metadata["first_sequence"].parse().unwrap();
    assert!((3..=last).contains(&first), "{first}");
    assert_eq!(
        status.message(),
        format!("records before {first} are no longer retained")
    );

    // From there, and from zero, what is left is served; retention may still go on while this looks.
    let mut stream = subscribe(&mut chat, "general", Some(0)).await;
    let got = next(&mut stream).await.sequence;
    assert!((first..=last).contains(&got), "{got}");
    let mut stream = subscribe(&mut chat, "general", Some(last)).await;
    let sent = post(&mut chat, send("general", "ann", "live"))
        .await
        .sequence;
    assert_eq!(next(&mut stream).await.sequence, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seam_between_history_and_live_has_no_gap_and_no_repeat() {
    const WRITERS: usize = 8;
    const EACH: usize = 150;
    let server = TestServer::start().await;
    let channel = server.channel().await;
    let writers = (0..WRITERS).map(|writer| {
        let mut chat = Chat::new(channel.clone());
        tokio::spawn(async move {
            let mut sent = Vec::new();
            for _ in 0..EACH {
                sent.push(
                    post(&mut chat, send("general", &format!("w{writer}"), "x"))
                        .await
                        .sequence,
                );
            }
            sent
        })
    });
    let writers: Vec<_> = writers.collect();
    // Every reader joins while the writers write, from where the one before it was: the seam lies somewhere else each time.
    let mut readers = Vec::new();
    let mut position = 0;
    for _ in 0..24 {
        let mut chat = Chat::new(channel.clone());
        let mut stream = subscribe(&mut chat, "general", Some(position)).await;
        let start = position;
        position = next(&mut stream).await.sequence;
        let first = position;
        readers.push(tokio::spawn(async move {
            let mut got = vec![first];
            loop {
                let message = next(&mut stream).await;
                got.push(message.sequence);
                if message.user == "marker" {
                    return (start, got);
                }
            }
        }));
    }
    let sent: BTreeSet<u64> = join_all(writers)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    assert_eq!(sent.len(), WRITERS * EACH, "no sequence twice");
    let marker = post(
        &mut Chat::new(channel.clone()),
        send("general", "marker", ""),
    )
    .await
    .sequence;
    for reader in join_all(readers).await {
        let (start, got) = reader.unwrap();
        let expected: Vec<_> = sent
            .iter()
            .copied()
            .filter(|one| *one > start)
            .chain([marker])
            .collect();
        assert_eq!(got, expected, "after {start}");
    }
}

#[tokio::test]
async fn a_sequence_of_one_room_resumes_another() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut all = Vec::new();
    for (room, content) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5")] {
        all.push(post(&mut chat, send(room, "ada", content)).await.sequence);
    }
    assert!(all.is_sorted_by(|one, other| one < other), "{all:?}");
    let mut stream = subscribe(&mut chat, "a", Some(all[1])).await;
    assert_eq!(sequences(&mut stream, 2).await, [all[2], all[4]]);
}

#[tokio::test]
async fn a_live_subscription_begins_after_what_was_acknowledged() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for round in 0..50 {
        post(&mut chat, send("general", "ann", "before")).await;
        let mut stream = subscribe(&mut chat, "general", None).await;
        let sent = post(&mut chat, send("general", "ann", "after"))
            .await
            .sequence;
        assert_eq!(next(&mut stream).await.sequence, sent, "round {round}");
    }
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let settings = Settings::default()
        .set("hub.tail", "4KiB")
        .set("hub.total", "4KiB");
    let server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let mut stream = subscribe(&mut chat, "general", None).await;
    let mut sent = Vec::new();
    for _ in 0..200 {
        sent.push(
            post(&mut chat, send("general", "ann", &"x".repeat(500)))
                .await
                .sequence,
        );
    }
    assert_eq!(sequences(&mut stream, sent.len()).await, sent);
}

#[tokio::test]
async fn a_repeated_key_is_stored_once() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = subscribe(&mut chat, "general", None).await;
    let first = post(&mut chat, keyed("general", "ann", "pay 5", "k-1")).await;
    let again = post(&mut chat, keyed("general", "ann", "pay 5", "k-1")).await;
    assert_eq!(again, first, "id, time and sequence");

    // Somebody else's key, the same key elsewhere, and no key at all are other messages.
    let other_user = post(&mut chat, keyed("general", "bob", "pay 5", "k-1")).await;
    let other_room = post(&mut chat, keyed("elsewhere", "ann", "pay 6", "k-1")).await;
    let other_key = post(&mut chat, keyed("general", "ann", "pay 5", "k-2")).await;
    let unkeyed = post(&mut chat, send("general", "ann", "pay 5")).await;
    assert_eq!(
        post(&mut chat, keyed("elsewhere", "ann", "pay 6", "k-1")).await,
        other_room
    );
    let ids: BTreeSet<_> = [&first, &other_user, &other_room, &other_key, &unkeyed]
        .iter()
        .map(|one| &one.message_id)
        .collect();
    assert_eq!(ids.len(), 5);
    let expected = [
        first.sequence,
        other_user.sequence,
        other_key.sequence,
        unkeyed.sequence,
    ];
    assert_eq!(sequences(&mut stream, 4).await, expected);
    assert_eq!(server.metric("weir_deduplicated_total").await, 2.0);
}

#[tokio::test]
async fn a_key_used_for_other_content_exists_already() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let first = post(&mut chat, keyed("general", "ann", "pay 5", "k-1")).await;
    let status = refused(&mut chat, keyed("general", "ann", "pay 500", "k-1")).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let text = format!(
        "the idempotency key was already used for another content at sequence {}",
        first.sequence
    );
    assert_eq!(status.message(), text);
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(metadata["sequence"], first.sequence.to_string());
    assert_eq!(retry_after(&status), None);
    let mut stream = subscribe(&mut chat, "general", Some(0)).await;
    let next_one = post(&mut chat, send("general", "ann", "next"))
        .await
        .sequence;
    assert_eq!(sequences(&mut stream, 2).await, [first.sequence, next_one]);
}

#[tokio::test]
async fn keys_and_messages_survive_a_kill() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let first = post(&mut chat, keyed("general", "ann", "pay 5", "k-1")).await;
    let second = post(&mut chat, send("general", "ann", "more")).await;
    let server = server.restart().await;
    let mut chat = server.chat().await;
    assert_eq!(
        post(&mut chat, keyed("general", "ann", "pay 5", "k-1")).await,
        first
    );
    let status = refused(&mut chat, keyed("general", "ann", "pay 6", "k-1")).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let third = post(&mut chat, send("general", "ann", "and more")).await;
    let mut stream = subscribe(&mut chat, "general", Some(0)).await;
    let expected = [first.sequence, second.sequence, third.sequence];
    assert_eq!(sequences(&mut stream, 3).await, expected);
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_window() {
    let server = TestServer::with(Settings::default().set("log.dedupe_window", "1s")).await;
    let chat = server.chat().await;
    let first = post(&mut chat.clone(), keyed("general", "ann", "a", "k")).await;
    let later = eventually("another message", || {
        let mut chat = chat.clone();
        async move {
            let sent = post(&mut chat, keyed("general", "ann", "a", "k")).await;
            (sent.sequence != first.sequence).then_some(sent)
        }
    })
    .await;
    assert!(later.sequence > first.sequence);
    assert_ne!(later.message_id, first.message_id);
}

#[tokio::test]
async fn a_full_disk_exhausts_resources_and_says_when_to_retry() {
    let settings = Settings::default().set("log.min_free", "1000000GiB");
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::starting(dir, settings, Stdio::inherit()).await;
    let chat = server.chat().await;
    let status = eventually("the log", || {
        let mut chat = chat.clone();
        async move {
            let status = refused(&mut chat, send("general", "ann", "hi")).await;
            // Before the log is open.
            (status.code() != Code::Unavailable).then_some(status)
        }
    })
    .await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.message(), "the log's storage is full");
    assert_eq!(info(&status).0, "STORAGE_FULL");
    assert!(retry_after(&status).is_some());
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
}

#[tokio::test]
async fn a_killed_server_ends_its_streams() {
    let mut server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = subscribe(&mut chat, "general", None).await;
    server.kill().await;
    assert!(end(&mut stream).await.is_err());
}
