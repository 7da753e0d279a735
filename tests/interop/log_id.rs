//! The identity of a log on JetStream: that of its stream, as every replica and every server sees it.

use std::time::Duration;

use async_nats::jetstream::{self, stream::Stream};
use weir::log::{Engine, Health, LogId, jetstream::Jetstream};

use super::{
    jetstream::{config, open},
    log_support::{append_all, room},
    nats::Nats,
    support::{self, Settings, TestServer, follow, send},
};

async fn stream(nats: &Nats) -> Stream {
    let client = async_nats::connect(nats.url()).await.unwrap();
    jetstream::new(client).get_stream("weir").await.unwrap()
}

/// Waits until the health says that the log is another one.
async fn replaced(engine: &Jetstream) {
    let mut health = engine.health();
    let is_other =
        |health: &Health| matches!(health, Health::Unavailable(why) if why.contains("another one"));
    let told = health.wait_for(is_other);
    support::soon("the health of a replaced log", told)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_names_the_same_log_over_restarts_and_settings() {
    let mut nats = Nats::start();
    let mut config = config(nats.url());
    let one = open(&config).await;
    let id = one.id();
    assert_eq!(open(&config).await.id(), id);
    append_all(&one, &room("a"), &["x"]).await;
    config.log.dedupe_window += Duration::from_secs(60);
    assert_eq!(
        open(&config).await.id(),
        id,
        "the stream has other settings"
    );
    nats.kill(0);
    nats.resume(0);
    assert_eq!(open(&config).await.id(), id, "the server was killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_of_a_cluster_names_the_same_log() {
    let nats = Nats::cluster();
    let mut config = config(nats.url());
    config.jetstream.replicas = 3;
    let id = open(&config).await.id();
    let leader = support::eventually("a leader", async || nats.leader().await).await;
    nats.move_leader().await;
    support::eventually("another leader", async || {
        nats.leader().await.filter(|now| *now != leader)
    })
    .await;
    assert_eq!(open(&config).await.id(), id, "after an election");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_created_again_is_another_log() {
    let nats = Nats::start();
    let config = config(nats.url());
    let one = open(&config).await;
    let mut ids = vec![one.id()];
    let client = async_nats::connect(nats.url()).await.unwrap();
    jetstream::new(client).delete_stream("weir").await.unwrap();
    let two = open(&config).await;
    ids.push(two.id());
    // Nothing but the identity tells: the new stream has grown beyond the old one.
    append_all(&two, &room("a"), &["x", "y", "z"]).await;
    replaced(&one).await;

    // What NATS restores keeps its time of creation; the mark makes it another log all the same.
    let stream = stream(&nats).await;
    let mut settings = stream.cached_info().config.clone();
    settings
        .metadata
        .insert("weir-log".into(), "restored".into());
    let client = async_nats::connect(nats.url()).await.unwrap();
    jetstream::new(client)
        .update_stream(settings)
        .await
        .unwrap();
    replaced(&two).await;
    let three = open(&config).await;
    ids.push(three.id());
    ids.sort_by_key(LogId::to_string);
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn a_position_of_a_deleted_stream_is_refused() {
    let nats = Nats::start();
    let settings = Settings::default()
        .set("log.engine", "jetstream")
        .set("jetstream.url", nats.url());
    let server = TestServer::with(settings.clone()).await;
    let mut chat = server.chat().await;
    let sent = chat.send_message(send("general", "ann", "old"));
    let sent = sent.await.unwrap();
    let old = sent.metadata().get("log-id").unwrap().clone();
    let position = sent.into_inner().sequence;
    drop(server);
    let client = async_nats::connect(nats.url()).await.unwrap();
    jetstream::new(client).delete_stream("weir").await.unwrap();

    let server = TestServer::with(settings.clone()).await;
    let replica = TestServer::with(settings.set("server.instance_id", "other")).await;
    let mut last = 0;
    while last <= position {
        let mut chat = server.chat().await;
        let sent = chat.send_message(send("general", "ann", "new"));
        last = sent.await.unwrap().into_inner().sequence;
    }
    for server in [&server, &replica] {
        let mut request = tonic::Request::new(follow("general", Some(position)));
        request.metadata_mut().insert("log-id", old.clone());
        let refused = server
            .chat()
            .await
            .subscribe_messages(request)
            .await
            .unwrap_err();
        assert_eq!(support::errors::info(&refused).0, "LOG_REPLACED");
        let here = refused.metadata().get("log-id").unwrap().clone();
        let mut request = tonic::Request::new(follow("general", Some(position)));
        request.metadata_mut().insert("log-id", here);
        server
            .chat()
            .await
            .subscribe_messages(request)
            .await
            .unwrap();
    }
}
