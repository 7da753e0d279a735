//! `chat.ChatService/UploadMessages` over real sockets.

use prost_types::Timestamp;
use tonic::{Code, Status};
use weir::proto::chat::{Message, MessageType, UploadResponse};

use crate::support::{
    Chat, TestServer,
    errors::{assert_invalid, info},
    follow, message, next,
};

async fn upload(chat: &mut Chat, messages: Vec<Message>) -> Result<UploadResponse, Status> {
    let uploaded = chat.upload_messages(tokio_stream::iter(messages)).await;
    uploaded.map(tonic::Response::into_inner)
}

/// Everything stored in `room`, up to a marker sent now.
async fn stored(chat: &mut Chat, room: &str) -> Vec<Message> {
    let mut stream = chat
        .subscribe_messages(follow(room, Some(0)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.id, "system");
    let marker = upload(chat, vec![message(room, "marker", "end")])
        .await
        .unwrap();
    assert_eq!(marker.message_count, 1);
    let mut all = Vec::new();
    loop {
        let message = next(&mut stream).await;
        if message.user == "marker" {
            return all;
        }
        all.push(message);
    }
}

#[tokio::test]
async fn every_message_is_stored_in_its_room_and_counted() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let messages = (0..5000).map(|number| {
        let room = ["one", "two", "three"][number % 3];
        message(room, "ann", &number.to_string())
    });
    let uploaded = upload(&mut chat, messages.collect()).await.unwrap();
    assert_eq!(
        uploaded,
        UploadResponse {
            message_count: 5000,
            success: true
        }
    );
    for (index, room) in ["one", "two", "three"].into_iter().enumerate() {
        let contents: Vec<_> = stored(&mut chat, room)
            .await
            .into_iter()
            .map(|one| one.content)
            .collect();
        let expected: Vec<_> = (index..5000)
            .step_by(3)
            .map(|number| number.to_string())
            .collect();
        assert_eq!(contents, expected, "{room}");
    }
}

#[tokio::test]
async fn an_empty_upload_is_no_error() {
    let server = TestServer::start().await;
    let uploaded = upload(&mut server.chat().await, Vec::new()).await.unwrap();
    assert_eq!(
        uploaded,
        UploadResponse {
            message_count: 0,
            success: true
        }
    );
}

#[tokio::test]
async fn own_ids_times_and_types_pass_through() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
    let given = [
        ("m-1", time(1, 2), MessageType::Chat),
        ("m-1", time(-62_135_596_800, 0), MessageType::Join),
        (
            " ü ",
            time(253_402_300_799, 999_999_999),
            MessageType::Leave,
        ),
        ("", None, MessageType::System),
    ];
    let messages = given.iter().map(|(id, timestamp, kind)| Message {
        id: (*id).into(),
        timestamp: *timestamp,
        r#type: (*kind).into(),
        // A client's own number means nothing.
        sequence: 77,
        ..message("general", "ann", "x")
    });
    upload(&mut chat, messages.collect()).await.unwrap();
    let all = stored(&mut chat, "general").await;
    assert_eq!(all.len(), given.len());
    for (got, (id, timestamp, kind)) in all.iter().zip(&given) {
        assert_eq!(got.r#type(), *kind);
        match timestamp {
            Some(_) => assert_eq!((got.id.as_str(), &got.timestamp), (*id, timestamp)),
            None => assert!(
                got.id.starts_with("msg_") && got.timestamp.is_some(),
                "{got:?}"
            ),
        }
    }
    assert!(
        all.is_sorted_by(|one, other| one.sequence < other.sequence),
        "{all:?}"
    );
    assert!(all.iter().all(|one| one.sequence != 77));
}

#[tokio::test]
async fn a_bad_message_is_named_and_those_before_it_are_stored() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for bad in [0, 1, 9, 2000] {
        let room = format!("room {bad}");
        let good = |number: usize| message(&room, "ann", &number.to_string());
        let mut messages: Vec<_> = (0..bad).map(good).collect();
        messages.push(message("", "ann", "bad"));
        messages.push(good(bad));
        let status = upload(&mut chat, messages).await.unwrap_err();
        assert_invalid(
            &status,
            "room is required",
            &[&format!("messages[{bad}].room")],
        );
        let contents: Vec<_> = stored(&mut chat, &room)
            .await
            .into_iter()
            .map(|one| one.content)
            .collect();
        let expected: Vec<_> = (0..bad).map(|number| number.to_string()).collect();
        assert_eq!(contents, expected);
    }
}

#[tokio::test]
async fn all_that_is_wrong_with_a_message_is_named() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let bad = Message {
        id: "x".repeat(257),
        user: " ".into(),
        r#type: 9,
        idempotency_key: "k".repeat(257),
        ..Message::default()
    };
    let status = upload(&mut chat, vec![message("general", "ann", ""), bad])
        .await
        .unwrap_err();
    let names = ["user", "room", "id", "idempotency_key", "type"]
        .map(|field| format!("messages[1].{field}"));
    let text = "user is required; room is required; id must be at most 256 bytes; \
                idempotency_key must be at most 256 bytes; type 9 is not known";
    assert_invalid(&status, text, &names.each_ref().map(String::as_str));
}

#[tokio::test]
async fn a_repeated_upload_with_keys_is_stored_once() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let messages: Vec<_> = (0..100)
        .map(|number| Message {
            idempotency_key: format!("k-{number}"),
            ..message("general", "ann", &number.to_string())
        })
        .collect();
    for _ in 0..2 {
        assert_eq!(
            upload(&mut chat, messages.clone())
                .await
                .unwrap()
                .message_count,
            100
        );
    }
    let all = stored(&mut chat, "general").await;
    assert_eq!(all.len(), 100);

    let mut other = messages[50].clone();
    other.content = "something else".into();
    let status = upload(&mut chat, vec![other]).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(metadata["sequence"], all[50].sequence.to_string());
}
