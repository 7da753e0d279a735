//! A drain while NATS says nothing: it ends in time, however much waits to be appended.

use std::time::{Duration, Instant};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    nats::Nats,
    support::{self, Settings, TestServer, message},
};

/// Uploads under way, each with more batches queued than NATS answers one after the other within the drain.
const UPLOADS: usize = 8;
const MESSAGES: usize = 8 * 1024;
const RECEIVED: &str = "grpc_server_msg_received_total{grpc_method=\"UploadMessages\",grpc_service=\"chat.ChatService\",grpc_type=\"client_stream\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_in_time_while_nats_is_silent_and_appends_are_queued() {
    let nats = Nats::start();
    let settings = Settings::default()
        .set("log.engine", "jetstream")
        .set("jetstream.url", nats.url())
        .set("jetstream.timeout", "10s")
        .set("drain.timeout", "3s");
    let mut server = TestServer::with(settings).await;
    nats.freeze();
    let mut uploads = JoinSet::new();
    for upload in 0..UPLOADS {
        let mut chat = server.chat().await;
        let (say, said) = mpsc::channel(1024);
        uploads.spawn(async move { chat.upload_messages(ReceiverStream::new(said)).await });
        uploads.spawn(async move {
            for number in 0..MESSAGES {
                let text = format!("{upload} {number}");
                if say.send(message("general", "ann", &text)).await.is_err() {
                    break;
                }
            }
            std::future::pending().await
        });
    }
    support::eventually("appends to be queued", || async {
        (server.metric(RECEIVED).await >= (UPLOADS * MESSAGES / 2) as f64).then_some(())
    })
    .await;
    server.terminate();
    let told = Instant::now();
    assert_eq!(server.exit_code().await, Some(0));
    let took = told.elapsed();
    // Every group that waits takes `jetstream.timeout` for itself.
    assert!(took < Duration::from_secs(30), "of 3 s: {took:?}");
    println!("ended after {took:?}");
    nats.thaw();
}
