//! Members of rooms over several replicas: the real binary and a real NATS server.

use tonic::{Code, Streaming, transport::Channel};
use weir::proto::weir::v1::{
    ListMembersRequest, ListRoomsRequest, Member, RoomEvent,
    RoomMessageKind::{self, Join, Leave},
    rooms_client::RoomsClient,
};

use super::{
    doors::{has_members, join, kinds, members},
    link::Link,
    nats::Nats,
    support::{
        Settings, TestServer, breakable, end, errors::assert_ended, eventually, follow, next,
    },
};

const ROOM: &str = "the hall > of *all*";
/// Longer than a test takes.
const LONG: &str = "3m";
/// What who stays away is waited for.
const SHORT: &str = "2s";

pub(crate) async fn replica(url: String, name: &str, lease: &str) -> TestServer {
    let settings = Settings::default()
        .set("server.instance_id", name)
        .set("log.engine", "jetstream")
        .set("jetstream.url", url)
        .set("jetstream.timeout", "1s")
        .set("presence.lease", lease);
    TestServer::with(settings).await
}

async fn replicas(nats: &Nats, lease: &str) -> [TestServer; 2] {
    let (one, two) = tokio::join!(
        replica(nats.url(), "one", lease),
        replica(nats.url(), "two", lease)
    );
    [one, two]
}

/// A user comes; it is in the room when this returns.
pub(crate) async fn visit(server: &TestServer, user: &str) -> Visit {
    let channel = server.channel().await;
    let events = join(channel.clone(), ROOM, user, None).await.unwrap();
    Visit { events, channel }
}

/// A user in the room, whose connection outlives its stream so that the server hears of the stream's end.
pub(crate) struct Visit {
    events: Streaming<RoomEvent>,
    channel: Channel,
}

impl Visit {
    pub(crate) async fn leave(self) {
        drop(self.events);
        // Whatever is asked next on the connection comes after.
        let mut rooms = RoomsClient::new(self.channel);
        rooms.list_rooms(ListRoomsRequest::default()).await.unwrap();
    }
}

/// Waits until both list these, alike to the instant.
pub(crate) async fn agree(servers: &[TestServer; 2], users: &[&str]) -> Vec<Member> {
    for server in servers {
        has_members(server, ROOM, users).await;
    }
    let found = members(&servers[0], ROOM).await;
    assert_eq!(found, members(&servers[1], ROOM).await);
    found
}

/// What the room was told of a user, in its order.
async fn told(server: &TestServer, user: &str) -> Vec<RoomMessageKind> {
    let all = kinds(server, ROOM).await.into_iter();
    all.filter(|(by, _)| by == user)
        .map(|(_, kind)| kind)
        .collect()
}

async fn is_told(server: &TestServer, user: &str, kinds: &[RoomMessageKind]) {
    eventually("what the room is told", || async {
        (told(server, user).await == kinds).then_some(())
    })
    .await;
}

async fn counted(server: &TestServer) -> i32 {
    let mut rooms = RoomsClient::new(server.channel().await);
    let listed = rooms.list_rooms(ListRoomsRequest::default()).await.unwrap();
    listed.into_inner().rooms[0].members
}

/// What a replica answers that is asked for the members.
async fn refusal(server: &TestServer) -> Code {
    let mut rooms = RoomsClient::new(server.channel().await);
    let request = ListMembersRequest { room: ROOM.into() };
    rooms.list_members(request).await.unwrap_err().code()
}

async fn refused_entry(channel: Channel, user: &str) -> Code {
    join(channel, ROOM, user, None).await.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_lists_the_same_members_and_each_comes_and_goes_once() {
    let nats = Nats::start();
    let servers = replicas(&nats, LONG).await;
    let ann = visit(&servers[0], "ann").await;
    let since = agree(&servers, &["ann"]).await;
    let bob = visit(&servers[1], "bob").await;
    let again = visit(&servers[1], "ann").await;
    let mut chat = servers[0].chat().await;
    let mut reading = chat.subscribe_messages(follow(ROOM, None)).await.unwrap();
    next(reading.get_mut()).await;
    let all = agree(&servers, &["ann", "bob", "reader"]).await;
    assert_eq!(all[0], since[0]);
    for server in &servers {
        assert_eq!(counted(server).await, 3);
    }
    // So does one that starts now.
    let third = replica(nats.url(), "three", LONG).await;
    assert_eq!(members(&third, ROOM).await, all);
    ann.leave().await;
    bob.leave().await;
    is_told(&servers[0], "bob", &[Join, Leave]).await;
    drop(reading);
    // Her other stream keeps her.
    assert_eq!(agree(&servers, &["ann"]).await, since);
    again.leave().await;
    agree(&servers, &[]).await;
    for server in &servers {
        is_told(server, "ann", &[Join, Leave]).await;
        assert_eq!(told(server, "bob").await, [Join, Leave]);
        assert_eq!(told(server, "reader").await, []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_has_one_watch_and_a_key_however_many_clients_it_has() {
    let nats = Nats::start();
    let servers = replicas(&nats, LONG).await;
    let mut visits = Vec::new();
    for number in 0..20 {
        visits.push(visit(&servers[number % 2], &format!("user {number:02}")).await);
    }
    let users: Vec<_> = (0..20).map(|number| format!("user {number:02}")).collect();
    let users: Vec<_> = users.iter().map(String::as_str).collect();
    agree(&servers, &users).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let bucket = context.get_stream("KV_weir-presence").await.unwrap();
    let state = bucket.cached_info().state.clone();
    assert_eq!(state.consumer_count, 2);
    assert_eq!(state.messages, 20 + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resumes_elsewhere_after_a_drain_never_left() {
    let nats = Nats::start();
    let [mut one, two] = replicas(&nats, SHORT).await;
    let mut ann = visit(&one, "ann").await;
    let mut bob = visit(&one, "bob").await;
    has_members(&two, ROOM, &["ann", "bob"]).await;
    let since = members(&two, ROOM).await;
    one.terminate();
    let after = assert_ended(&end(&mut ann.events).await.unwrap_err(), "DRAINING");
    assert_ended(&end(&mut bob.events).await.unwrap_err(), "DRAINING");
    let channel = two.channel().await;
    let events = join(channel.clone(), ROOM, "ann", after).await.unwrap();
    let back = Visit { events, channel };
    one.exit_code().await;
    // He stays away: when he is gone, nothing holds her but her new stream.
    is_told(&two, "bob", &[Join, Leave]).await;
    assert_eq!(told(&two, "ann").await, [Join]);
    assert_eq!(members(&two, ROOM).await, since[..1]);
    back.leave().await;
    is_told(&two, "ann", &[Join, Leave]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_who_comes_back_never_left_and_the_others_leave_once() {
    let nats = Nats::start();
    let [mut one, two] = replicas(&nats, SHORT).await;
    let third = replica(nats.url(), "three", SHORT).await;
    let _ann = visit(&one, "ann").await;
    let mut away = Vec::new();
    for number in 0..20 {
        away.push(visit(&one, &format!("user {number}")).await);
    }
    let since = eventually("all members", || async {
        let members = members(&two, ROOM).await;
        (members.len() == 21).then_some(members)
    })
    .await;
    one.kill().await;
    let _back = visit(&two, "ann").await;
    assert_eq!(members(&two, ROOM).await, since);
    has_members(&two, ROOM, &["ann"]).await;
    has_members(&third, ROOM, &["ann"]).await;
    assert_eq!(told(&two, "ann").await, [Join]);
    for number in 0..20 {
        is_told(&third, &format!("user {number}"), &[Join, Leave]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nats_is_away_nobody_leaves() {
    let mut nats = Nats::start();
    let servers = replicas(&nats, SHORT).await;
    let _ann = visit(&servers[0], "ann").await;
    let _bob = visit(&servers[1], "bob").await;
    let (channel, socket) = breakable(&servers[0]).await;
    let _carol = join(channel, ROOM, "carol", None).await.unwrap();
    agree(&servers, &["ann", "bob", "carol"]).await;
    let clients = [servers[0].channel().await, servers[1].channel().await];
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    nats.kill(0);
    for server in &servers {
        // What is on its way when the connection breaks may still arrive.
        eventually("the broken connection", || async {
            let answer = server.admin_get("/readyz").await;
            answer.starts_with("HTTP/1.1 503").then_some(())
        })
        .await;
    }
    // Each waits for a second: together longer than the keys of the instances live.
    for _ in 0..2 {
        for client in &clients {
            let refused = refused_entry(client.clone(), "dan").await;
            assert_eq!(refused, Code::Unavailable);
        }
    }
    assert_eq!(refusal(&servers[0]).await, Code::Unavailable);
    nats.resume(0);
    // Her lease ends once the others had the time to come back: hers, and no other.
    is_told(&servers[1], "carol", &[Join, Leave]).await;
    agree(&servers, &["ann", "bob"]).await;
    for user in ["ann", "bob"] {
        assert_eq!(told(&servers[0], user).await, [Join]);
    }
    assert_eq!(told(&servers[0], "dan").await, []);
    // They know of each other without a restart.
    let _dan = visit(&servers[0], "dan").await;
    agree(&servers, &["ann", "bob", "dan"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_replica_that_was_cut_off_come_again() {
    let nats = Nats::start();
    let mut link = Link::to(&nats.url()).await;
    let servers = [
        replica(link.url(), "away", SHORT).await,
        replica(nats.url(), "here", SHORT).await,
    ];
    let _ann = visit(&servers[0], "ann").await;
    let mut chat = servers[0].chat().await;
    let mut reading = chat.subscribe_messages(follow(ROOM, None)).await.unwrap();
    next(reading.get_mut()).await;
    let _bob = visit(&servers[1], "bob").await;
    agree(&servers, &["ann", "bob", "reader"]).await;
    link.cut().await;
    is_told(&servers[1], "ann", &[Join, Leave]).await;
    has_members(&servers[1], ROOM, &["bob"]).await;
    assert_eq!(refusal(&servers[0]).await, Code::Unavailable, "never stale");
    link.mend().await;
    is_told(&servers[1], "ann", &[Join, Leave, Join]).await;
    servers[0].ready().await;
    agree(&servers, &["ann", "bob", "reader"]).await;
    assert_eq!(told(&servers[1], "bob").await, [Join]);
}
