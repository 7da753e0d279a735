//! `chat.ChatService` over real sockets.

use tonic::Code;
use weir::proto::chat::{Message, MessageType};

use crate::support::{TestServer, follow, next, send};

#[tokio::test]
async fn a_sequence_of_one_room_resumes_another() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut sequences = Vec::new();
    for (room, content) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5")] {
        let sent = chat.send_message(send(room, "ada", content)).await.unwrap();
        sequences.push(sent.into_inner().sequence);
    }
    assert!(sequences.is_sorted_by(|one, next| one < next));
    let after_the_first_of_b = follow("a", Some(sequences[1]));
    let stream = chat.subscribe_messages(after_the_first_of_b).await.unwrap();
    let mut stream = stream.into_inner();
    next::<Message>(&mut stream).await;
    for content in ["3", "5"] {
        assert_eq!(next::<Message>(&mut stream).await.content, content);
    }
    let beyond = follow("a", Some(u64::MAX - 1));
    let refused = chat.subscribe_messages(beyond).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
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
    assert_eq!(welcome.r#type(), MessageType::System);
    assert_eq!(welcome.sequence, 0);

    let sent = chat
        .send_message(send("general", "alice", "hello"))
        .await
        .unwrap()
        .into_inner();
    let heard = next(&mut stream).await;
    assert_eq!(heard.id, sent.message_id);
    assert_eq!(heard.sequence, sent.sequence);
    assert_eq!(heard.timestamp, sent.timestamp);
    assert_eq!(
        (heard.user.as_str(), heard.content.as_str()),
        ("alice", "hello")
    );
    assert_eq!(heard.r#type(), MessageType::Chat);

    let own = chat
        .send_message(send("general", "reader", ""))
        .await
        .unwrap()
        .into_inner();
    let heard = next(&mut stream).await;
    assert_eq!((heard.sequence, heard.content.as_str()), (own.sequence, ""));
}
