//! Shared documents over real sockets: `streaming.v1.StreamingService/Collaborate` and `weir.v1.Documents`.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use tonic::Code;
use tonic_types::StatusExt as _;
use weir::{
    client::TextDocument,
    config,
    log::{self, Limit, Space, Topic},
    proto::{
        streaming::v1::{CollaborationEvent, Presence, collaboration_event::Event},
        weir::v1::{GetDocumentRequest, WatchRequest, documents_client::DocumentsClient},
    },
    telemetry::Metrics,
};

use crate::{
    editors::{Editor, awareness, documents, event, missing, state_vector, sync, sync_of, text},
    support::{
        Settings, TestServer, end,
        errors::{assert_ended, assert_invalid, info},
        next,
        server::binary,
        soon,
    },
};

#[tokio::test]
async fn editors_hear_each_other_and_are_told_what_is_saved() {
    let server = TestServer::start().await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    let first = ann.append("a", "one ").await;
    let mut bob = Editor::join(&server, "bob", "a").await;
    assert_eq!(bob.document.text(), "one ");
    let came = next(&mut ann.hear).await;
    let presence = Presence {
        user_id: "bob".into(),
        joined: true,
    };
    assert_eq!(came.event, Some(Event::Presence(presence)));
    assert_eq!(
        (came.document_id.as_str(), came.user_id.as_str()),
        ("a", "bob")
    );
    let second = bob.append("a", "two").await;
    assert!(second > first && first > 0);
    // An update carries who made it and the editor's id for it; its own never comes back.
    let heard = next(&mut ann.hear).await;
    assert_eq!((heard.id.as_str(), heard.user_id.as_str()), ("two", "bob"));
    assert!(heard.timestamp.is_some());
    assert_eq!(sync_of(&heard).0, 2);
    ann.document.hear(&heard).unwrap();
    assert_eq!(ann.document.text(), "one two");
    let last = ann.append("a", "!").await;
    bob.until("one two!").await;
    drop(bob);
    let went = next(&mut ann.hear).await;
    let presence = Presence {
        user_id: "bob".into(),
        joined: false,
    };
    assert_eq!(went.event, Some(Event::Presence(presence)));
    drop(ann.say);
    end(&mut ann.hear).await.unwrap();
    let request = GetDocumentRequest {
        document_id: "a".into(),
    };
    let got = documents(&server).await.get_document(request).await;
    let got = got.unwrap().into_inner();
    assert_eq!((got.document_id.as_str(), got.sequence), ("a", last));
}

#[tokio::test]
async fn an_update_that_brings_nothing_is_saved_where_the_document_has_it() {
    let server = TestServer::start().await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    let update = ann.document.append("text");
    for _ in 0..2 {
        ann.say("a", "same", sync(2, &update)).await;
    }
    let first = ann.saved("same").await;
    assert_eq!(ann.saved("same").await, first);
    let keyed = CollaborationEvent {
        idempotency_key: "k".into(),
        ..event("a", "ann", "keyed", sync(2, &update))
    };
    ann.say.send(keyed.clone()).await.unwrap();
    let under_key = ann.saved("keyed").await;
    ann.append("a", " more").await;
    ann.say.send(keyed).await.unwrap();
    assert_eq!(ann.saved("keyed").await, under_key);
    let conflict = CollaborationEvent {
        idempotency_key: "k".into(),
        ..event("a", "ann", "other", sync(2, &ann.document.append("!")))
    };
    let status = ann.refused(conflict).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let (reason, metadata) = info(&status);
    assert_eq!(reason, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(metadata["sequence"], under_key.to_string());
    assert_eq!(text(&server, "a").await, "text more");
}

#[tokio::test]
async fn awareness_reaches_who_is_there_and_is_never_stored() {
    let server = TestServer::start().await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    let mut bob = Editor::join(&server, "bob", "a").await;
    next(&mut ann.hear).await;
    let cursor = awareness(7, r#"{"cursor":3}"#);
    bob.say("a", "", Event::Awareness(cursor.clone())).await;
    let heard = next(&mut ann.hear).await;
    assert_eq!(heard.event, Some(Event::Awareness(cursor.clone())));
    assert_eq!(heard.user_id, "bob");
    // Nor does it come back: what bob hears next is this.
    let update = ann.append("a", "x").await;
    assert!(update > 0);
    bob.until("x").await;
    // A newcomer is told of those who are there, and of nobody else.
    let mut carol = Editor::silent(&server, "carol").await;
    carol.say("a", "", sync(0, &[0])).await;
    assert_eq!(sync_of(&next(&mut carol.hear).await).0, 1);
    assert_eq!(sync_of(&next(&mut carol.hear).await).0, 0);
    let told = next(&mut carol.hear).await;
    assert_eq!(told.event, Some(Event::Awareness(cursor.clone())));
    assert_eq!(told.user_id, "bob");
    drop(bob);
    let went = next(&mut carol.hear).await;
    assert!(matches!(went.event, Some(Event::Presence(_))), "{went:?}");
    let mut dan = Editor::silent(&server, "dan").await;
    dan.say("a", "", sync(0, &[0])).await;
    dan.say("a", "last", sync(2, &dan.document.append("y")))
        .await;
    loop {
        match next(&mut dan.hear).await.event {
            Some(Event::Saved(_)) => break,
            Some(Event::Awareness(_)) => panic!("bob is gone"),
            _ => {}
        }
    }
    let mut documents = documents(&server).await;
    let other = event("b", "bob", "", Event::Awareness(cursor));
    let applied = documents.apply(other).await.unwrap().into_inner();
    assert_eq!(applied.sequence, 0);
    let request = GetDocumentRequest {
        document_id: "b".into(),
    };
    let status = documents.get_document(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "document b not found");
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!(
        (
            resource.resource_type.as_str(),
            resource.resource_name.as_str()
        ),
        ("document", "b")
    );
    assert_eq!(info(&status).0, "NOT_FOUND");
}

#[tokio::test]
async fn one_stream_is_in_several_documents() {
    let server = TestServer::with(Settings::default().set("limits.rooms_per_stream", 2)).await;
    let mut ann = Editor::silent(&server, "ann").await;
    ann.enter("a").await;
    ann.enter("b").await;
    let other = TextDocument::new("content");
    let mut documents = documents(&server).await;
    for document in ["a", "b"] {
        let update = other.append(document);
        let said = event(document, "bob", "web", sync(2, &update));
        documents.apply(said).await.unwrap();
        let heard = next(&mut ann.hear).await;
        assert_eq!(
            (heard.document_id.as_str(), heard.id.as_str()),
            (document, "web")
        );
    }
    let third = event("c", "ann", "", sync(0, &[0]));
    let status = ann.refused(third).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "documents of one stream is limited to 2");
    let quota = status.get_details_quota_failure().unwrap();
    assert_eq!(quota.violations[0].subject, "documents of one stream");
}

#[tokio::test]
async fn bad_events_are_refused_with_their_field() {
    let server = TestServer::start().await;
    let step_1 = || sync(0, &[0]);
    let presence = Event::Presence(Presence::default());
    let cases = [
        (
            event("", "ann", "", step_1()),
            "document_id is required",
            "document_id",
        ),
        (
            event("a", " ", "", step_1()),
            "user_id is required",
            "user_id",
        ),
        (
            event("a", "ann", &"x".repeat(257), step_1()),
            "id must be at most 256 bytes",
            "id",
        ),
        (
            CollaborationEvent {
                event: None,
                ..event("a", "ann", "", step_1())
            },
            "event is required",
            "event",
        ),
        (
            event("a", "ann", "", presence),
            "presence and saved are sent by the server only",
            "event",
        ),
        (
            event("a", "ann", "", Event::Sync(vec![9, 1, 0].into())),
            "sync is no y-protocols sync message",
            "sync",
        ),
        (
            event("a", "ann", "", Event::Awareness(vec![1].into())),
            "awareness is no y-protocols awareness update",
            "awareness",
        ),
        (
            event("a", "ann", "", sync(0, &[9, 9])),
            "state_vector is no state vector of this document",
            "state_vector",
        ),
        (
            event("a", "ann", "", sync(2, &[9, 9])),
            "the update is malformed",
            "update",
        ),
        (
            // An item whose parent is a text.
            event(
                "a",
                "ann",
                "",
                sync(
                    2,
                    &[1, 2, 1, 0, 4, 1, 1, b't', 1, b'x', 4, 0, 1, 0, 1, b'y', 0],
                ),
            ),
            "the update makes no sense in this document",
            "update",
        ),
    ];
    for (bad, message, field) in cases {
        let editor = Editor::silent(&server, "ann").await;
        assert_invalid(&editor.refused(bad.clone()).await, message, &[field]);
        // What only asks is not for Apply.
        if field != "state_vector" {
            let status = documents(&server).await.apply(bad).await.unwrap_err();
            if !status.message().starts_with("sync step 1") {
                assert_invalid(&status, message, &[field]);
            }
        }
    }
    let asks = event("a", "ann", "", step_1());
    let status = documents(&server).await.apply(asks).await.unwrap_err();
    let message = "sync step 1 is answered by Watch, whose request has the state vector";
    assert_invalid(&status, message, &["sync"]);
    let large = event("a", "ann", "", Event::Awareness(vec![0; 65 * 1024].into()));
    let status = documents(&server).await.apply(large).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let watch = WatchRequest {
        state_vector: vec![9].into(),
        ..watch_request("a")
    };
    let status = documents(&server).await.watch(watch).await.unwrap_err();
    assert_invalid(
        &status,
        "state_vector is no state vector of this document",
        &["state_vector"],
    );
    let status = documents(&server)
        .await
        .watch(WatchRequest::default())
        .await;
    assert_invalid(
        &status.unwrap_err(),
        "document_id is required; user_id is required",
        &["document_id", "user_id"],
    );
    let status = documents(&server)
        .await
        .get_document(GetDocumentRequest::default())
        .await;
    assert_invalid(
        &status.unwrap_err(),
        "document_id is required",
        &["document_id"],
    );
}

#[tokio::test]
async fn what_was_said_before_a_bad_update_is_saved() {
    let server = TestServer::start().await;
    let ann = Editor::join(&server, "ann", "a").await;
    let update = ann.document.append("kept");
    ann.say("a", "good", sync(2, &update)).await;
    let status = ann.refused(event("a", "ann", "bad", sync(2, &[1]))).await;
    assert_invalid(&status, "the update is malformed", &["update"]);
    assert_eq!(text(&server, "a").await, "kept");
}

#[tokio::test]
async fn documents_have_limits_of_size_and_number() {
    let settings = Settings::default()
        .set("documents.max_size", "4KiB")
        .set("documents.max_open", 1);
    let server = TestServer::with(settings).await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    ann.append("a", "small").await;
    let status = documents(&server).await.watch(watch_request("b")).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "documents in use is limited to 1");
    let large = ann.document.append(&"x".repeat(5000));
    let status = ann.refused(event("a", "ann", "", sync(2, &large))).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "bytes of a document is limited to 4096");
    assert_eq!(text(&server, "a").await, "small");
}

fn watch_request(document: &str) -> WatchRequest {
    WatchRequest {
        document_id: document.into(),
        user_id: "web".into(),
        ..WatchRequest::default()
    }
}

#[tokio::test]
async fn a_browser_watches_and_applies_as_others_collaborate() {
    let server = TestServer::start().await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    ann.append("a", "from ann").await;
    let mut documents = documents(&server).await;
    let web = TextDocument::new("content");
    drop(web.set("offline; "));
    let request = WatchRequest {
        state_vector: state_vector(&web).into(),
        ..watch_request("a")
    };
    let mut watch = documents.watch(request).await.unwrap().into_inner();
    let (kind, update) = sync_of(&next(&mut watch).await);
    assert_eq!(kind, 1);
    web.apply(&update).unwrap();
    let (kind, has) = sync_of(&next(&mut watch).await);
    assert_eq!(kind, 0);
    let lacks = sync(1, &missing(&web, &has));
    let applied = documents.apply(event("a", "web", "w", lacks)).await;
    let sequence = applied.unwrap().into_inner().sequence;
    assert!(sequence > 0);
    ann.until(&web.text()).await;
    ann.say("a", "", Event::Awareness(awareness(7, "{}"))).await;
    // It hears its own update too, which changes nothing.
    let heard = next(&mut watch).await;
    assert_eq!((heard.id.as_str(), sync_of(&heard).0), ("w", 2));
    let heard = next(&mut watch).await;
    assert_eq!(heard.event, Some(Event::Awareness(awareness(7, "{}"))));
    drop(watch);
    loop {
        let event = next(&mut ann.hear).await;
        if let Some(Event::Presence(presence)) = event.event
            && !presence.joined
        {
            assert_eq!(presence.user_id, "web");
            break;
        }
    }
}

#[tokio::test]
async fn acknowledged_updates_survive_kill_9_and_offline_edits_come_after() {
    let mut server = TestServer::start().await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    let mut expected = String::new();
    for number in 0..100 {
        let text = format!("{number} ");
        ann.append("a", &text).await;
        expected.push_str(&text);
    }
    server.kill().await;
    let server = server.restart().await;
    assert_eq!(text(&server, "a").await, expected);
    let offline = ann.document;
    drop(offline.append("offline"));
    let mut again = Editor::silent(&server, "ann").await;
    again.document = offline;
    again.enter("a").await;
    assert_eq!(text(&server, "a").await, format!("{expected}offline"));
}

#[tokio::test]
async fn a_drain_ends_streams_which_then_resume_by_their_state_vector() {
    let mut server = TestServer::start().await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    ann.append("a", "before").await;
    let watch = documents(&server).await.watch(watch_request("a")).await;
    let mut watch = watch.unwrap().into_inner();
    next(&mut watch).await;
    server.terminate();
    for stream in [&mut ann.hear, &mut watch] {
        let status = end(stream).await.unwrap_err();
        assert_eq!(assert_ended(&status, "DRAINING"), None);
    }
    assert_eq!(server.exit_code().await, Some(0));
    let server = server.restart().await;
    let mut again = Editor::silent(&server, "ann").await;
    again.document = ann.document;
    again.enter("a").await;
    again.append("a", ", after").await;
    assert_eq!(text(&server, "a").await, "before, after");
}

#[tokio::test]
async fn a_watcher_that_compaction_overtook_gets_the_whole_document() {
    let settings = Settings::default()
        .set("hub.tail", "4KiB")
        .set("documents.compact_after", 20);
    let server = TestServer::with(settings).await;
    // A stream that is not read, on a connection with small windows.
    let channel = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
    let channel = channel.initial_stream_window_size(64 * 1024);
    let mut slow = DocumentsClient::new(channel.connect().await.unwrap());
    let watching = soon("a watch", slow.watch(watch_request("a"))).await;
    let mut watch = watching.unwrap().into_inner();
    let mut ann = Editor::join(&server, "ann", "a").await;
    for number in 0..400 {
        let text = format!("{number:04}").repeat(1000);
        let update = ann.document.set(&text);
        ann.say("a", "edit", sync(2, &update)).await;
        ann.saved("edit").await;
    }
    let web = TextDocument::new("content");
    let mut wholes = 0;
    while web.text() != ann.document.text() {
        let event = next(&mut watch).await;
        if let Some(Event::Sync(_)) = event.event {
            wholes += usize::from(sync_of(&event).0 == 1);
        }
        web.hear(&event).unwrap();
    }
    assert!(wholes >= 2, "{wholes}");
    // It goes on live.
    let update = ann.document.set("the end");
    ann.say("a", "edit", sync(2, &update)).await;
    while web.text() != "the end" {
        web.hear(&next(&mut watch).await).unwrap();
    }
}

#[tokio::test]
async fn a_long_edited_small_text_stays_small_on_disk() {
    // What erased text leaves in a Yjs document, so that offline editors still find their place, takes 20 bytes an edit here.
    // The tail is so short that compaction overtakes the very stream that edits.
    let settings = Settings::default()
        .set("documents.compact_after", 100)
        .set("hub.tail", "4KiB");
    let mut server = TestServer::with(settings).await;
    let mut ann = Editor::join(&server, "ann", "a").await;
    let mut expected: Vec<u8> = b"0123456789".repeat(10);
    let update = ann.document.set(std::str::from_utf8(&expected).unwrap());
    ann.say("a", "first", sync(2, &update)).await;
    let say = ann.say.clone();
    let copy = ann.document.clone();
    let typing = tokio::spawn(async move {
        for number in 0..10_000 {
            let at = number * 7 % 100;
            expected.insert(at, b'a' + (number % 26) as u8);
            let inserted = copy.set(std::str::from_utf8(&expected).unwrap());
            expected.remove(number * 13 % 101);
            let erased = copy.set(std::str::from_utf8(&expected).unwrap());
            for update in [inserted, erased] {
                let said = event("a", "ann", &number.to_string(), sync(2, &update));
                say.send(said).await.unwrap();
            }
        }
        String::from_utf8(expected).unwrap()
    });
    for number in 0..10_000 {
        let id = number.to_string();
        ann.saved(&id).await;
        ann.saved(&id).await;
    }
    let expected = typing.await.unwrap();
    assert_eq!(expected.len(), 100);
    server.kill().await;
    let mut config = config::Config::default();
    config.log.dir = server.dir().join("data");
    let engine = log::open(&config, None, Metrics::new()).await.unwrap();
    let topic = Topic::new(Space::Document, "a").unwrap();
    let first = engine.bounds(&topic).await.unwrap().first;
    let everything = Limit {
        records: usize::MAX,
        bytes: usize::MAX,
    };
    let page = engine.read(&topic, first, everything).await.unwrap();
    let bytes: usize = page.records.iter().map(|record| record.size()).sum();
    println!("{} records, {bytes} bytes", page.records.len());
    assert!(bytes < 256 * 1024, "{bytes}");
    engine.close().await;
    drop(engine);
    let server = server.restart().await;
    assert_eq!(text(&server, "a").await, expected);
}

/// Runs `weir doc` to its end; returns its exit code and stdout.
async fn doc(server: &TestServer, args: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(binary())
        .arg("doc")
        .args(args)
        .args(["--addr", &server.url()])
        .kill_on_drop(true)
        .output();
    let done = soon("the command to end", done).await.unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

#[tokio::test]
async fn the_doc_commands_read_and_edit_a_text() {
    let server = TestServer::start().await;
    assert_eq!(doc(&server, &["get", "minutes"]).await.0, Some(4));
    let (code, first) = doc(&server, &["set", "minutes", "Agenda"]).await;
    assert_eq!(code, Some(0));
    let mut watching = Command::new(binary())
        .args(["doc", "watch", "minutes", "--addr", &server.url()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let line = soon("the text", lines.next_line()).await.unwrap();
    assert_eq!(line.as_deref(), Some("Agenda"));
    let (_, second) = doc(&server, &["append", "minutes", ": budget"]).await;
    let sequence = |text: &str| text.trim().parse::<u64>().unwrap();
    assert!(sequence(&second) > sequence(&first));
    let line = soon("the new text", lines.next_line()).await.unwrap();
    assert_eq!(line.as_deref(), Some("Agenda: budget"));
    let (code, text) = doc(&server, &["get", "minutes"]).await;
    assert_eq!((code, text.as_str()), (Some(0), "Agenda: budget\n"));
}
