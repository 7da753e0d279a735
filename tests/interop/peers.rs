//! Replicas that know each other: real ones on a real NATS.

use std::net::SocketAddr;

use tokio::{process::Command, task::JoinSet};
use tonic::{Code, Status, Streaming, transport::Channel};
use weir::{
    client::TextDocument,
    proto::{
        chat::{Metric, MetricsRequest},
        streaming::v1::{Presence, collaboration_event::Event},
        weir::v1::{
            GetDocumentRequest, InstanceState, JoinRequest, ListInstancesRequest,
            ListInstancesResponse, RoomEvent, TypingRequest, instances_client::InstancesClient,
            room_event, rooms_client::RoomsClient,
        },
    },
};

use crate::{
    editors::{Editor, awareness, documents, state_vector, sync, text},
    jetstream::serve,
    nats::{Nats, SETTINGS},
    support::{
        self, Settings, TestServer, end,
        errors::{info, retry_after},
        follow, next, send,
        server::{binary, http_get, lasting_address},
    },
};

async fn two(nats: &Nats) -> [TestServer; 2] {
    [
        TestServer::with(serve(nats, "one")).await,
        TestServer::with(serve(nats, "two")).await,
    ]
}

async fn rooms(server: &TestServer) -> RoomsClient<Channel> {
    RoomsClient::new(server.channel().await)
}

async fn join(server: &TestServer, room: &str, user: &str) -> Streaming<RoomEvent> {
    let request = JoinRequest {
        room: room.into(),
        user: user.into(),
        after_sequence: None,
    };
    let joined = rooms(server).await.join(request).await;
    joined.unwrap().into_inner()
}

async fn types(server: &TestServer, room: &str, user: &str) {
    let request = TypingRequest {
        room: room.into(),
        user: user.into(),
    };
    rooms(server).await.typing(request).await.unwrap();
}

/// Who types next, as a member hears it.
async fn typing(member: &mut Streaming<RoomEvent>) -> String {
    loop {
        if let Some(room_event::Event::Typing(user)) = next(member).await.event {
            return user;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_reaches_members_of_every_replica_once() {
    let nats = Nats::start();
    let servers = two(&nats).await;
    let mut here = join(&servers[0], "hall", "ann").await;
    let mut there = join(&servers[1], "hall", "bob").await;
    let mut elsewhere = join(&servers[1], "other", "cid").await;
    for user in ["dan", "eve", "fay"] {
        types(&servers[0], "hall", user).await;
        assert_eq!(typing(&mut here).await, user);
        // What came twice, or back, would be in between.
        assert_eq!(typing(&mut there).await, user);
    }
    types(&servers[0], "other", "gus").await;
    assert_eq!(typing(&mut elsewhere).await, "gus");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awareness_and_presence_of_a_document_reach_every_replica() {
    let nats = Nats::start();
    let servers = two(&nats).await;
    let mut ann = Editor::join(&servers[0], "ann", "a").await;
    let cursor = awareness(7, r#"{"cursor":3}"#);
    ann.say("a", "", Event::Awareness(cursor.clone())).await;
    // What is acknowledged after it came after it.
    ann.append("a", "x").await;
    // A newcomer need not wait until somebody moves, on neither replica.
    for server in &servers {
        let mut bob = Editor::silent(server, "bob").await;
        bob.say("a", "", sync(0, &state_vector(&bob.document)))
            .await;
        let told = heard(&mut bob, |event| matches!(event, Event::Awareness(_))).await;
        assert_eq!(told, Event::Awareness(cursor.clone()));
        let came = heard(&mut ann, |event| matches!(event, Event::Presence(_))).await;
        assert_eq!(came, presence("bob", true));
        let moved = awareness(8, r#"{"cursor":5}"#);
        bob.say("a", "", Event::Awareness(moved.clone())).await;
        let told = heard(&mut ann, |event| matches!(event, Event::Awareness(_))).await;
        assert_eq!(told, Event::Awareness(moved));
        drop(bob);
        let went = heard(&mut ann, |event| matches!(event, Event::Presence(_))).await;
        assert_eq!(went, presence("bob", false));
    }
}

fn presence(user: &str, joined: bool) -> Event {
    Event::Presence(Presence {
        user_id: user.into(),
        joined,
    })
}

/// The next event that is wanted.
async fn heard(editor: &mut Editor, is_wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        let event = next(&mut editor.hear).await;
        if let Some(event) = event.event.filter(&is_wanted) {
            return event;
        }
    }
}

/// Subscriptions of each of Weir's connections.
async fn subscriptions(monitor: SocketAddr) -> Vec<u64> {
    let answer = http_get(monitor, "/connz").await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let connections: serde_json::Value = serde_json::from_str(body).unwrap();
    let connections = connections["connections"].as_array().unwrap();
    let counts = connections.iter().map(|one| one["subscriptions"].as_u64());
    counts.map(Option::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_do_not_grow_with_clients() {
    let monitor = lasting_address();
    let nats = Nats::with(&format!("{SETTINGS}http: \"{monitor}\"\n"));
    let server = TestServer::with(serve(&nats, "one")).await;
    let mut first = join(&server, "hall", "first").await;
    types(&server, "hall", "ann").await;
    assert_eq!(typing(&mut first).await, "ann");
    let before = subscriptions(monitor).await;
    // The log, signals, questions to all and to this one, answers, and what else is the same on every instance.
    assert!(before.iter().sum::<u64>() < 16, "{before:?}");
    let mut members = Vec::new();
    for number in 0..100 {
        members.push(join(&server, &format!("room {number}"), "ann").await);
        members.push(join(&server, "hall", &format!("user {number}")).await);
    }
    let mut editor = Editor::join(&server, "ann", "a").await;
    editor.append("a", "x").await;
    support::eventually("it is as before", || async {
        (subscriptions(monitor).await <= before).then_some(())
    })
    .await;
}

async fn metrics(server: &TestServer, instance: &str) -> Result<Streaming<Metric>, Status> {
    let request = MetricsRequest {
        instance_id: instance.into(),
        interval_seconds: 0,
    };
    let stream = server.chat().await.stream_metrics(request).await;
    stream.map(tonic::Response::into_inner)
}

/// The next measurement of an endpoint.
async fn rate(stream: &mut Streaming<Metric>, endpoint: &str) -> Metric {
    loop {
        let metric = next(stream).await;
        if metric
            .labels
            .get("endpoint")
            .is_some_and(|of| of == endpoint)
        {
            return metric;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_is_measured_until_it_is_gone() {
    const ENDPOINT: &str = "chat.ChatService/SendMessage";
    let nats = Nats::start();
    let [one, mut two] = two(&nats).await;
    let mut of_two = metrics(&one, "two").await.unwrap();
    let quiet = rate(&mut of_two, ENDPOINT).await;
    assert_eq!(
        (quiet.value, quiet.labels["instance"].as_str()),
        (0.0, "two")
    );
    // What the asking one does is not what is asked for.
    let mut chats = [one.chat().await, two.chat().await];
    for chat in &mut chats {
        for _ in 0..30 {
            chat.send_message(send("hall", "ann", "x")).await.unwrap();
        }
    }
    // All of it within one interval or in two that follow each other.
    let mut counted = 0.0;
    while counted < 25.0 {
        counted += rate(&mut of_two, ENDPOINT).await.value;
    }
    assert!(counted < 35.0, "{counted}");
    for chat in &mut chats[..1] {
        chat.send_message(send("hall", "ann", "x")).await.unwrap();
    }
    assert_eq!(rate(&mut of_two, ENDPOINT).await.value, 0.0);
    let names = ["cpu_usage", "memory_usage", "requests_per_second"];
    for name in names {
        let mut stream = metrics(&one, "two").await.unwrap();
        while next(&mut stream).await.name != name {}
    }

    two.kill().await;
    let status = end(&mut of_two).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(info(&status).0, "INSTANCE_UNAVAILABLE");
    assert!(retry_after(&status).is_some());
    assert_eq!(status.message(), "instance two is gone; it may come back");
    let status = metrics(&one, "two").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "instance two not found; there is one");
    let _two = two.restart().await;
    let mut again = metrics(&one, "two").await.unwrap();
    rate(&mut again, ENDPOINT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_lists_all() {
    let nats = Nats::start();
    let name = "two.*> é";
    let one = TestServer::with(serve(&nats, "one")).await;
    let draining = serve(&nats, name)
        .set("drain.delay", "60s")
        .set("drain.timeout", "90s");
    let two = TestServer::with(draining).await;
    let mut following = two.chat().await;
    let _following = following
        .subscribe_messages(follow("hall", None))
        .await
        .unwrap();
    for server in [&one, &two] {
        let answer = instances(server).await.unwrap();
        let answered_by = if std::ptr::eq(server, &one) {
            "one"
        } else {
            name
        };
        assert_eq!(answer.answered_by, answered_by);
        let listed = answer.instances.iter().map(|one| one.instance_id.as_str());
        assert_eq!(listed.collect::<Vec<_>>(), ["one", name]);
        for (instance, server) in answer.instances.iter().zip([&one, &two]) {
            assert_eq!(instance.state(), InstanceState::Ready, "{instance:?}");
            assert_eq!(instance.version, env!("CARGO_PKG_VERSION"));
            assert_eq!(instance.grpc_addresses, [server.grpc().to_string()]);
            assert!(instance.started.unwrap().seconds > 1_700_000_000);
        }
        assert!(answer.instances[1].active_streams >= 1);
    }
    let status = metrics(&one, "three").await.unwrap_err();
    let text = format!("instance three not found; there are one, {name}");
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, text.as_str())
    );
    // Who is asked to stop still answers.
    two.terminate();
    support::eventually("it is seen to drain", || async {
        let answer = instances(&one).await.unwrap();
        let state = answer.instances.get(1)?.state();
        (state == InstanceState::Draining).then_some(())
    })
    .await;
    let listed = Command::new(binary())
        .args(["instances", "--addr", &one.url()])
        .output()
        .await
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines[0].starts_with("one\tready\t"), "{listed}");
    assert!(
        lines[1].starts_with(&format!("{name}\tdraining\t")),
        "{listed}"
    );
}

pub(crate) async fn instances(server: &TestServer) -> Result<ListInstancesResponse, Status> {
    let mut client = InstancesClient::new(server.channel().await);
    let listed = client.list_instances(ListInstancesRequest {}).await;
    listed.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_and_questions_work_again_when_nats_is_back() {
    let mut nats = Nats::start();
    let [one, two] =
        [("one"), ("two")].map(|name| serve(&nats, name).set("jetstream.timeout", "2s"));
    let [one, two] = [TestServer::with(one).await, TestServer::with(two).await];
    let mut there = join(&two, "hall", "bob").await;
    types(&one, "hall", "before").await;
    assert_eq!(typing(&mut there).await, "before");
    let mut of_two = metrics(&one, "two").await.unwrap();
    nats.kill(0);
    let status = end(&mut of_two).await.unwrap_err();
    assert_eq!(
        (status.code(), info(&status).0),
        (Code::Unavailable, "INSTANCE_UNAVAILABLE".into())
    );
    let status = instances(&one).await.unwrap_err();
    assert_eq!(
        (status.code(), info(&status).0),
        (Code::Unavailable, "INSTANCE_UNAVAILABLE".into())
    );
    // What nobody can be told is dropped, and nobody waits for it.
    types(&one, "hall", "meanwhile").await;
    assert!(
        one.metric(r#"weir_signals_dropped_total{signal="peers"}"#)
            .await
            >= 1.0
    );
    nats.resume(0);
    one.ready().await;
    two.ready().await;
    support::eventually("they find each other", || async {
        let answer = instances(&one).await.ok()?;
        (answer.instances.len() == 2).then_some(())
    })
    .await;
    types(&one, "hall", "after").await;
    assert_eq!(typing(&mut there).await, "after");
    let mut of_two = metrics(&one, "two").await.unwrap();
    next(&mut of_two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_messages_are_counted_and_break_nothing() {
    let nats = Nats::start();
    let [one, two] = two(&nats).await;
    let mut there = join(&two, "hall", "bob").await;
    let foreign = async_nats::connect(nats.url()).await.unwrap();
    for garbage in ["", "x", "W\u{1}", "W\u{1}\u{ff}\u{ff}", "W\u{2}x"] {
        for subject in ["weir.peers.signal", "weir.peers.ask", "weir.peers.ask.two"] {
            foreign.publish(subject, garbage.into()).await.unwrap();
        }
    }
    foreign.flush().await.unwrap();
    support::eventually("it is counted", || async {
        let counted = two
            .metric(r#"weir_signals_dropped_total{signal="unreadable"}"#)
            .await;
        (counted >= 14.0).then_some(())
    })
    .await;
    types(&one, "hall", "ann").await;
    assert_eq!(typing(&mut there).await, "ann");
    assert_eq!(instances(&one).await.unwrap().instances.len(), 2);
}

/// Settings of a replica that compacts all the time.
fn compacting(nats: &Nats, name: &str) -> Settings {
    serve(nats, name).set("documents.compact_after", 3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn editors_on_two_replicas_converge_over_offline_edits_and_a_killed_replica() {
    let nats = Nats::start();
    let mut one = TestServer::with(compacting(&nats, "one")).await;
    let two = TestServer::with(compacting(&nats, "two")).await;
    let mut ann = Editor::join(&one, "ann", "a").await;
    let mut bob = Editor::join(&two, "bob", "a").await;
    let mut written = 0;
    for round in 0..4 {
        ann.append("a", &format!("<ann {round}>")).await;
        bob.append("a", &format!("<bob {round}>")).await;
        written += 2;
        alike(&mut ann, &mut bob, written).await;
        // Both edit without a connection, at the same place, and come back at once.
        let both = [ann, bob].map(|editor| {
            let Editor { user, document, .. } = editor;
            for number in 0..10 {
                drop(document.append(&format!("<{user} {round} {number}>")));
            }
            (user, document)
        });
        written += 20;
        let [(_, anns), (_, bobs)] = both;
        let back = async |server, user, document| {
            let mut editor = Editor::silent(server, user).await;
            editor.document = document;
            editor.enter("a").await;
            editor
        };
        (ann, bob) = tokio::join!(back(&one, "ann", anns), back(&two, "bob", bobs));
        alike(&mut ann, &mut bob, written).await;
    }
    // What ann has not sent goes to the other replica, and so does ann.
    ann.append("a", "<saved>").await;
    let unsent = ann.document.clone();
    one.kill().await;
    drop(unsent.append("<unsent>"));
    let mut ann = Editor::silent(&two, "ann").await;
    ann.document = unsent;
    ann.enter("a").await;
    alike(&mut ann, &mut bob, written + 2).await;
    let one = one.restart().await;
    assert_eq!(text(&one, "a").await, ann.document.text());
    let mut ann = Editor::join(&one, "ann", "a").await;
    ann.append("a", "<again>").await;
    alike(&mut ann, &mut bob, written + 3).await;
}

/// Waits until both have so many pieces; then their texts are the same.
async fn alike(one: &mut Editor, other: &mut Editor, pieces: usize) {
    for editor in [&mut *one, &mut *other] {
        while editor.document.text().matches('<').count() < pieces {
            let event = next(&mut editor.hear).await;
            editor.document.hear(&event).unwrap();
        }
    }
    assert_eq!(one.document.text(), other.document.text());
    assert_eq!(one.document.text().matches('<').count(), pieces);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_compact_at_the_same_time_lose_no_edit() {
    const EDITS: usize = 60;
    let nats = Nats::start();
    let one = TestServer::with(compacting(&nats, "one")).await;
    let two = TestServer::with(compacting(&nats, "two")).await;
    // Keeps no document in memory while it reads another: it reads each anew, while the others compact.
    let reading = compacting(&nats, "three").set("documents.max_open", 1);
    let three = TestServer::with(reading).await;
    let mut writers = JoinSet::new();
    for (server, user) in [(&one, "a"), (&one, "b"), (&two, "c"), (&two, "d")] {
        let mut editor = Editor::join(server, user, "doc").await;
        writers.spawn(async move {
            for _ in 0..EDITS {
                editor.append("doc", &format!("<{user}>")).await;
            }
            editor
        });
    }
    let mut read = 0;
    let mut editors = Vec::new();
    // Each read runs to its end: one that is given up still uses the one document in memory.
    while !writers.is_empty() {
        let pieces = reread(&three).await.matches('<').count();
        // What was there once stays.
        assert!(pieces >= read, "{pieces} after {read}");
        read = pieces;
        while let Some(editor) = writers.try_join_next() {
            editors.push(editor.unwrap());
        }
    }
    for editor in &mut editors {
        while editor.document.text().matches('<').count() < 4 * EDITS {
            let event = next(&mut editor.hear).await;
            editor.document.hear(&event).unwrap();
        }
    }
    let wanted = editors[0].document.text();
    for user in ["<a>", "<b>", "<c>", "<d>"] {
        assert_eq!(wanted.matches(user).count(), EDITS, "{user}");
    }
    assert!(
        editors
            .iter()
            .all(|editor| editor.document.text() == wanted)
    );
    for server in [&one, &two, &three] {
        let all = support::eventually("the replica has come by it", || async {
            let text = text(server, "doc").await;
            (text.len() == wanted.len()).then_some(text)
        });
        assert_eq!(all.await, wanted);
    }
}

/// The document as a replica has it that read another one in between.
async fn reread(server: &TestServer) -> String {
    let mut documents = documents(server).await;
    let other = GetDocumentRequest {
        document_id: "another".into(),
    };
    let none = documents.get_document(other).await;
    assert_eq!(none.unwrap_err().code(), Code::NotFound);
    let request = GetDocumentRequest {
        document_id: "doc".into(),
    };
    match documents.get_document(request).await {
        Ok(got) => {
            let copy = TextDocument::new("content");
            copy.apply(&got.into_inner().state).unwrap();
            copy.text()
        }
        // Nobody wrote yet.
        Err(status) if status.code() == Code::NotFound => String::new(),
        Err(status) => panic!("{status:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_the_same_name_is_warned_of_and_listed() {
    let nats = Nats::start();
    let first = TestServer::with(serve(&nats, "one")).await;
    let logs = tempfile::tempdir().unwrap();
    let path = logs.path().join("log");
    let log = std::fs::File::create(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let second = TestServer::starting(dir, serve(&nats, "one"), log.into()).await;
    second.ready().await;
    let told = std::fs::read_to_string(&path).unwrap();
    assert!(
        told.contains("another instance on this NATS has the same name"),
        "{told}"
    );
    for server in [&first, &second] {
        let listed = instances(server).await.unwrap().instances;
        let names = listed.iter().map(|one| one.instance_id.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["one", "one"]);
    }
}
