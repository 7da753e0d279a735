//! A replica that reaches its clients and not NATS, and is not told so.

use std::time::{Duration, Instant};

use tonic::Code;

use super::{
    load::{Load, ROOM, Size},
    network::Network,
    report::tell,
};
use crate::{
    nats::Nats,
    support::{self, Settings, TestServer, eventually, follow},
};

async fn canary(replica: &TestServer) -> bool {
    replica.metric("weir_canary_up").await == 1.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_cut_off_from_nats_says_so_and_serves_nothing_stale() {
    let network = Network::new().await;
    let nats = Nats::on(&network.nats());
    let settings = |name: &str| {
        Settings::default()
            .set("server.instance_id", name)
            .set("log.engine", "jetstream")
            .set("jetstream.url", nats.url())
            .set("jetstream.timeout", "2s")
            .set("canary.timeout", "3s")
    };
    let here = TestServer::with(settings("here")).await;
    let address = |port: u16| format!("{}:{port}", network.replica());
    let away = settings("away")
        .set("server.grpc", address(50051))
        .set("server.admin", address(9464))
        .in_network_of(network.pid());
    let away = TestServer::with(away).await;
    // Half of the subscribers and publishers are on each.
    let size = Size {
        subscribers: 40,
        publishers: 4,
        pace: Duration::from_millis(20),
    }
    .scaled();
    let load = Load::start(&[here.url(), away.url()], size).await;
    let journal = load.journal.clone();
    load.more(200).await;
    eventually("both canaries", || async {
        (canary(&here).await && canary(&away).await).then_some(())
    })
    .await;

    network.cut().await;
    let cut = Instant::now();
    eventually("its readiness to go off", || async {
        let answer = away.admin_get("/readyz").await;
        answer.starts_with("HTTP/1.1 503").then_some(())
    })
    .await;
    let unready = cut.elapsed();
    eventually("its canary to say so", || async {
        (!canary(&away).await).then_some(())
    })
    .await;
    let silent = cut.elapsed();
    load.more(200).await;
    let mut chat = away.chat().await;
    // It does not claim to know what is in the room.
    let past = chat.subscribe_messages(follow(ROOM, Some(0))).await;
    let refused = match past {
        Ok(stream) => support::end(&mut stream.into_inner()).await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    // A live stream opens and waits, as those that are open do.
    let late = chat.subscribe_messages(follow(ROOM, None)).await.unwrap();
    let after = late.metadata().get("after-sequence").cloned();
    let after: u64 = after.unwrap().to_str().unwrap().parse().unwrap();
    let mut late = late.into_inner();
    assert!(here.admin_get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(canary(&here).await, "the other does not mind");
    assert!(
        journal.ends.lock().unwrap().is_empty(),
        "live streams stay open"
    );

    network.mend().await;
    let mended = Instant::now();
    away.ready().await;
    let recovered = mended.elapsed();
    eventually("its canary to be well", || async {
        canary(&away).await.then_some(())
    })
    .await;
    load.more(200).await;
    // The stream that was opened meanwhile goes on without a gap after the position it was told.
    let mut past = here
        .chat()
        .await
        .subscribe_messages(follow(ROOM, Some(after)))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..100 {
        let [one, other] = [&mut late, &mut past].map(support::next);
        let (one, other) = tokio::join!(one, other);
        assert_eq!((one.sequence, one.content), (other.sequence, other.content));
    }
    let report = load.finish().await;
    println!(
        "a replica cut off: unready after {unready:.1?}, its canary down after {silent:.1?}, ready again {recovered:.1?} \
         after the cut ended"
    );
    tell("a replica cut off", &journal, &report, &[cut]);
    assert!(journal.ends.lock().unwrap().is_empty(), "and go on");
}
