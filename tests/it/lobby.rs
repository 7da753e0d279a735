//! `streaming.DataService/Chat`: the lobby, over real sockets.

use tonic::Code;
use weir::proto::streaming::ChatMessage;

use crate::{
    doors::{Talk, has_members, history, lobby, members, point},
    support::{
        TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        eventually, send, soon,
    },
};

/// A stream that named its user.
async fn member(server: &TestServer, user: &str) -> Talk<ChatMessage> {
    let talk = lobby(server.channel().await, None).await.unwrap();
    talk.say(point(user, "joined")).await;
    eventually("the member", || async {
        let members = members(server, "lobby").await;
        let is_there = members.iter().any(|member| member.user == user);
        is_there.then_some(())
    })
    .await;
    talk
}

#[tokio::test]
async fn the_first_message_names_the_user_and_others_hear_that_it_joined() {
    let server = TestServer::start().await;
    let mut bob = member(&server, "bob").await;
    let mut ann = member(&server, "ann").await;
    let told = bob.hear().await;
    assert_eq!(
        (told.user_id.as_str(), told.content.as_str()),
        ("system", "ann joined the chat")
    );
    assert!(told.sequence > 0);
    let second = 1_000_000_000;
    let year = 31_536_000 * second;
    assert!(told.timestamp > 50 * year, "{told:?}");

    let said = ChatMessage {
        timestamp: -1_500_000_001,
        ..point("ann", "hello")
    };
    ann.say(said.clone()).await;
    let heard = bob.hear().await;
    let sequence = heard.sequence;
    assert_eq!(heard, ChatMessage { sequence, ..said });
    // A user named once need not be named again; nobody hears its own.
    ann.say(point("", "still ann")).await;
    let heard = bob.hear().await;
    assert_eq!(
        (heard.user_id.as_str(), heard.content.as_str()),
        ("ann", "still ann")
    );
    assert!(heard.timestamp > 50 * year, "{heard:?}");
    bob.say(point("bob", "hi")).await;
    assert_eq!(ann.hear().await.content, "hi");

    drop(ann.say);
    assert!(soon("the end", ann.hear.message()).await.unwrap().is_none());
    let told = bob.hear().await;
    assert_eq!(
        (told.user_id.as_str(), told.content.as_str()),
        ("system", "ann left the chat")
    );
    has_members(&server, "lobby", &["bob"]).await;
    let texts = history(&server, "lobby").await;
    let texts: Vec<_> = texts
        .iter()
        .map(|(_, content, _)| content.as_str())
        .collect();
    assert_eq!(
        texts,
        [
            "bob joined the chat",
            "ann joined the chat",
            "hello",
            "still ann",
            "hi",
            "ann left the chat"
        ]
    );
}

#[tokio::test]
async fn metadata_resumes_the_lobby() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for content in ["1", "2"] {
        chat.send_message(send("lobby", "bob", content))
            .await
            .unwrap();
    }
    let mut ann = lobby(server.channel().await, Some("0")).await.unwrap();
    ann.say(point("ann", "joined")).await;
    assert_eq!(ann.hear().await.content, "1");
    assert_eq!(ann.hear().await.content, "2");
    let wrong = lobby(server.channel().await, Some("-1"))
        .await
        .err()
        .unwrap();
    assert_invalid(
        &wrong,
        "after-sequence must be a decimal number",
        &["after-sequence"],
    );
}

#[tokio::test]
async fn a_blank_user_or_a_reused_key_ends_the_stream() {
    let server = TestServer::start().await;
    let mut nobody = lobby(server.channel().await, None).await.unwrap();
    nobody.say(point(" ", "joined")).await;
    let status = end(&mut nobody.hear).await.unwrap_err();
    assert_invalid(&status, "user_id is required", &["user_id"]);
    assert_eq!(history(&server, "lobby").await, []);

    let mut ann = member(&server, "ann").await;
    for content in ["one", "two"] {
        let said = ChatMessage {
            idempotency_key: "k".into(),
            ..point("ann", content)
        };
        ann.say(said).await;
    }
    let status = end(&mut ann.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(info(&status).0, "IDEMPOTENCY_KEY_REUSED");
}

#[tokio::test]
async fn a_drain_ends_it_with_the_position_to_resume_after() {
    let server = TestServer::start().await;
    let mut ann = member(&server, "ann").await;
    let bob = member(&server, "bob").await;
    bob.say(point("bob", "last")).await;
    while ann.hear().await.content != "last" {}
    server.terminate();
    let status = end(&mut ann.hear).await.unwrap_err();
    assert!(assert_ended(&status, "DRAINING").is_some());
}
