//! Members of rooms: who is listed, and what a room is told, over broken connections, drains and restarts.

use tonic::transport::Channel;
use weir::proto::{
    streaming::v1::ChatMessage,
    weir::v1::RoomMessageKind::{self, Join, Leave},
};

use crate::{
    doors::{self, Talk, has_members, join, kinds, members, room_message, text, v1},
    support::{
        OWN_ADDRESS, Settings, TestServer, breakable, end, errors::assert_ended, eventually,
        follow, message, next,
    },
};

/// Longer than a test takes.
const LONG: &str = "10m";
/// Shorter than anybody comes back in.
const SHORT: &str = "50ms";

async fn server(lease: &str) -> TestServer {
    TestServer::with(Settings::default().set("presence.lease", lease)).await
}

async fn member(channel: Channel, room: &str, user: &str) -> Talk<ChatMessage> {
    let mut talk = v1(channel, None).await.unwrap();
    talk.say(text(room, user, "")).await;
    assert_eq!(
        talk.hear().await.content,
        format!("User {user} joined the chat")
    );
    talk
}

/// Waits until the server has no chat of `streaming.v1` any more.
async fn chats_end(server: &TestServer) {
    let chats =
        r#"weir_streams_active{grpc_method="Chat",grpc_service="streaming.v1.StreamingService"}"#;
    eventually("the streams' end", || async {
        (server.metric(chats).await == 0.0).then_some(())
    })
    .await;
}

fn joins_and_leaves(user: &str, kinds: &[RoomMessageKind]) -> Vec<(String, RoomMessageKind)> {
    kinds.iter().map(|kind| (user.to_owned(), *kind)).collect()
}

#[tokio::test]
async fn every_door_makes_a_member_once_with_its_service_and_since_when() {
    let server = server(LONG).await;
    let _v1 = member(server.channel().await, "lobby", "by v1").await;
    let _join = join(server.channel().await, "lobby", "by join", None)
        .await
        .unwrap();
    let lobby = doors::lobby(server.channel().await, None).await.unwrap();
    lobby.say(doors::point("by data", "joined")).await;
    let mut talk = doors::chat(server.channel().await).await;
    talk.say(message("lobby", "by chat", "hi")).await;
    talk.hear().await;
    let mut chat = server.chat().await;
    let mut reading = chat
        .subscribe_messages(follow("lobby", None))
        .await
        .unwrap();
    next(reading.get_mut()).await;
    let second = member_again(&server, "lobby", "by v1").await;
    has_members(
        &server,
        "lobby",
        &["by chat", "by data", "by join", "by v1", "reader"],
    )
    .await;
    let services: Vec<_> = members(&server, "lobby")
        .await
        .into_iter()
        .map(|m| m.service)
        .collect();
    let expected = [
        "chat.ChatService",
        "streaming.DataService",
        "weir.v1.Rooms",
        "streaming.v1.StreamingService",
        "chat.ChatService",
    ];
    assert_eq!(services, expected);
    assert!(server.metric("weir_members").await >= 5.0);
    drop(second);
    drop(reading);
    has_members(
        &server,
        "lobby",
        &["by chat", "by data", "by join", "by v1"],
    )
    .await;
    // Those that came silently were not announced.
    let told = kinds(&server, "lobby").await;
    assert!(
        told.iter()
            .all(|(user, kind)| *kind != Join || (user != "by chat" && user != "reader"))
    );
}

/// A further stream of somebody who is there: welcomed, and the room is not told again.
async fn member_again(server: &TestServer, room: &str, user: &str) -> Talk<ChatMessage> {
    let before = members(server, room).await;
    let talk = member(server.channel().await, room, user).await;
    let after = members(server, room).await;
    assert_eq!(before.len(), after.len());
    let since = |members: &[weir::proto::weir::v1::Member]| {
        members
            .iter()
            .find(|member| member.user == user)
            .unwrap()
            .since
    };
    assert_eq!(since(&before), since(&after));
    talk
}

#[tokio::test]
async fn the_room_is_told_once_however_many_streams_a_user_has() {
    let server = server(LONG).await;
    let first = member(server.channel().await, "general", "ann").await;
    let second = member_again(&server, "general", "ann").await;
    drop(first);
    drop(second);
    has_members(&server, "general", &[]).await;
    eventually("the leave", || async {
        let told = kinds(&server, "general").await;
        (told == joins_and_leaves("ann", &[Join, Leave])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_crashed_client_is_there_for_its_lease_and_then_gone() {
    let server = server("1s").await;
    let (channel, socket) = breakable(&server).await;
    let _ann = member(channel.clone(), "general", "ann").await;
    let _joined = join(channel, "general", "bob", None).await.unwrap();
    has_members(&server, "general", &["ann", "bob"]).await;
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    chats_end(&server).await;
    has_members(&server, "general", &[]).await;
    // Both are told with one flush, which may come a moment later.
    eventually("the leaves", || async {
        let told = kinds(&server, "general").await;
        let left = told.iter().filter(|(_, kind)| *kind == Leave);
        (left.count() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broken_client_that_comes_back_within_its_lease_never_left() {
    let server = server(LONG).await;
    let (channel, socket) = breakable(&server).await;
    let ann = member(channel.clone(), "general", "ann").await;
    let joined = join(channel, "general", "bob", None).await.unwrap();
    let since = members(&server, "general").await;
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    chats_end(&server).await;
    drop((ann, joined));
    assert_eq!(members(&server, "general").await, since);
    let _ann = member(server.channel().await, "general", "ann").await;
    let _bob = join(server.channel().await, "general", "bob", None)
        .await
        .unwrap();
    assert_eq!(members(&server, "general").await, since);
    let told = kinds(&server, "general").await;
    assert_eq!(told, [("ann".into(), Join), ("bob".into(), Join)]);
}

#[tokio::test]
async fn who_comes_back_after_the_lease_left_and_joined() {
    let server = server(SHORT).await;
    let (channel, socket) = breakable(&server).await;
    let _ann = member(channel, "general", "ann").await;
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    has_members(&server, "general", &[]).await;
    let _back = member(server.channel().await, "general", "ann").await;
    let told = kinds(&server, "general").await;
    assert_eq!(told, joins_and_leaves("ann", &[Join, Leave, Join]));
}

#[tokio::test]
async fn a_drain_and_resume_is_no_leave_and_no_join() {
    let settings = Settings::default()
        .set("server.grpc", OWN_ADDRESS)
        .set("presence.lease", LONG);
    let mut server = TestServer::with(settings).await;
    let mut ann = member(server.channel().await, "general", "ann").await;
    let mut bob = join(server.channel().await, "general", "bob", None)
        .await
        .unwrap();
    room_message(&mut bob).await;
    let since = members(&server, "general").await;
    server.terminate();
    let after_ann = assert_ended(&end(&mut ann.hear).await.unwrap_err(), "DRAINING").unwrap();
    let after_bob = assert_ended(&end(&mut bob).await.unwrap_err(), "DRAINING").unwrap();
    drop((ann, bob));
    server.exit_code().await;
    let server = server.restart_in_place().await;
    // Those of before hold a lease from the start.
    assert_eq!(members(&server, "general").await, since);
    let after = after_ann.to_string();
    let mut ann = v1(server.channel().await, Some(&after)).await.unwrap();
    ann.say(text("general", "ann", "back")).await;
    let mut bob = join(server.channel().await, "general", "bob", Some(after_bob))
        .await
        .unwrap();
    assert_eq!(room_message(&mut bob).await.content, "back");
    server
        .chat()
        .await
        .send_message(crate::support::send("general", "carol", "welcome back"))
        .await
        .unwrap();
    // She resumed, so she is not welcomed again: the next she hears is what the room says.
    assert_eq!(ann.hear().await.content, "welcome back");
    assert_eq!(members(&server, "general").await, since);
    let told = kinds(&server, "general").await;
    let told = told.iter().filter(|(_, kind)| matches!(kind, Join | Leave));
    assert_eq!(told.count(), 2);
}

#[tokio::test]
async fn after_kill_9_members_hold_a_lease_and_those_who_stay_away_leave() {
    let settings = Settings::default()
        .set("server.grpc", OWN_ADDRESS)
        .set("presence.lease", LONG);
    let mut server = TestServer::with(settings).await;
    let ann = member(server.channel().await, "general", "ann").await;
    let bob = member(server.channel().await, "general", "bob").await;
    let since = members(&server, "general").await;
    server.kill().await;
    drop((ann, bob));
    let server = server.restart_in_place().await;
    assert_eq!(members(&server, "general").await, since);
    let ann = member(server.channel().await, "general", "ann").await;
    assert_eq!(members(&server, "general").await, since);
    let told = kinds(&server, "general").await;
    assert_eq!(told, [("ann".into(), Join), ("bob".into(), Join)]);
    // She leaves by closing; bob stays away and leaves when his lease ends: tested with a short one.
    drop(ann);
    has_members(&server, "general", &["bob"]).await;
}

#[tokio::test]
async fn a_member_of_before_a_restart_that_stays_away_leaves() {
    let settings = Settings::default()
        .set("server.grpc", OWN_ADDRESS)
        .set("presence.lease", "1s");
    let mut server = TestServer::with(settings).await;
    let ann = member(server.channel().await, "general", "ann").await;
    server.kill().await;
    drop(ann);
    let server = server.restart_in_place().await;
    eventually("the leave", || async {
        let told = kinds(&server, "general").await;
        (told == joins_and_leaves("ann", &[Join, Leave])).then_some(())
    })
    .await;
    has_members(&server, "general", &[]).await;
    // Its going is durable too: the next start knows of nobody.
    let server = server.restart_in_place().await;
    assert_eq!(members(&server, "general").await, []);
}

#[tokio::test]
async fn streams_ended_by_age_do_not_make_members_leave() {
    let settings = Settings::default()
        .set("server.max_stream_age", "1s")
        .set("presence.lease", LONG);
    let server = TestServer::with(settings).await;
    let mut ann = member(server.channel().await, "general", "ann").await;
    let status = end(&mut ann.hear).await.unwrap_err();
    assert_ended(&status, "MAX_AGE");
    drop(ann);
    let _back = member(server.channel().await, "general", "ann").await;
    let told = kinds(&server, "general").await;
    assert_eq!(told, joins_and_leaves("ann", &[Join]));
}

#[tokio::test]
async fn beyond_the_limit_users_chat_unlisted() {
    let settings = Settings::default().set("presence.max_members", 1);
    let server = TestServer::with(settings).await;
    let mut ann = member(server.channel().await, "general", "ann").await;
    let bob = member(server.channel().await, "general", "bob").await;
    bob.say(text("general", "bob", "unlisted, but heard")).await;
    assert_eq!(ann.hear().await.content, "unlisted, but heard");
    has_members(&server, "general", &["ann"]).await;
    assert_eq!(server.metric("weir_members").await, 1.0);
}
