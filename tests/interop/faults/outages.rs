//! NATS servers that go away and come back.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    fleet::Fleet,
    load::{Load, Size},
    report::tell,
};
use crate::{
    nats::Nats,
    support::{Settings, TestServer, eventually, send, soon},
};

const SIZE: Size = Size {
    subscribers: 60,
    publishers: 4,
    pace: Duration::from_millis(20),
};

fn three_copies() -> Settings {
    Settings::default().set("jetstream.replicas", 3)
}

/// The stream's leader, once every copy is complete.
async fn leader(nats: &Nats) -> usize {
    eventually("every copy to be complete", || nats.leader()).await
}

/// A replica's connection starts at one of the servers: it is known which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_nats_server_or_leader_ends_no_stream() {
    let mut nats = Nats::cluster();
    let mut fleet = Fleet::start(2, &nats.url(), three_copies()).await;
    let before = leader(&nats).await;
    let connected = (before + 1) % 3;
    fleet.join_at(&nats.url_of(connected)).await;
    let load = Load::start(&[fleet.balancer.url()], SIZE.scaled()).await;
    let journal = load.journal.clone();
    let mut faults = Vec::new();
    // The server a replica is connected to, then the stream's leader, which may be another one by then.
    for is_leader in [false, true] {
        let node = match is_leader {
            true => leader(&nats).await,
            false => connected,
        };
        load.more(100).await;
        faults.push(Instant::now());
        nats.kill(node);
        load.more(100).await;
        nats.resume(node);
        leader(&nats).await;
    }
    let before = leader(&nats).await;
    faults.push(Instant::now());
    nats.move_leader().await;
    eventually("another leader", || async {
        nats.leader().await.filter(|now| *now != before)
    })
    .await;
    load.more(100).await;
    for replica in &fleet.replicas {
        replica.ready().await;
    }
    let report = load.finish().await;
    tell(
        "NATS servers killed, leader moved",
        &journal,
        &report,
        &faults,
    );
    assert!(
        journal.ends.lock().unwrap().is_empty(),
        "live streams stay open"
    );
}

async fn health(replica: &TestServer) -> ServingStatus {
    let mut health = HealthClient::new(replica.channel().await);
    let answer = health.check(HealthCheckRequest::default()).await;
    answer.unwrap().into_inner().status()
}

async fn is_unready(replica: &TestServer) -> bool {
    let answer = replica.admin_get("/readyz").await;
    answer.starts_with("HTTP/1.1 503") && health(replica).await == ServingStatus::NotServing
}

/// No NATS server answers for a while: neither side of a connection is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_streams_survive_twenty_seconds_without_nats() {
    const OUTAGE: Duration = Duration::from_secs(20);
    let nats = Nats::cluster();
    let fleet = Fleet::start(3, &nats.url(), three_copies()).await;
    let load = Load::start(&[fleet.balancer.url()], SIZE.scaled()).await;
    let journal = load.journal.clone();
    load.more(200).await;
    leader(&nats).await;
    nats.freeze();
    let frozen = Instant::now();
    for replica in &fleet.replicas {
        eventually("a replica to be unready", || async {
            is_unready(replica).await.then_some(())
        })
        .await;
    }
    let noticed = frozen.elapsed();
    // What is under way ends like what comes now: soon, refused, and to be repeated.
    let mut longest = Duration::ZERO;
    for replica in &fleet.replicas {
        let mut chat = replica.chat().await;
        let asked = Instant::now();
        let refused = soon("a refusal", chat.send_message(send("other", "ann", "x"))).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
        longest = longest.max(asked.elapsed());
    }
    sleep_until((frozen + OUTAGE).into()).await;
    for replica in &fleet.replicas {
        assert!(is_unready(replica).await, "as long as it lasts");
        assert!(
            replica
                .admin_get("/livez")
                .await
                .starts_with("HTTP/1.1 200")
        );
    }
    assert!(
        journal.ends.lock().unwrap().is_empty(),
        "live streams stay open"
    );
    let acknowledged = journal.acknowledged();
    nats.thaw();
    let thawed = Instant::now();
    for replica in &fleet.replicas {
        replica.ready().await;
    }
    let recovered = thawed.elapsed();
    load.more(200).await;
    let report = load.finish().await;
    println!(
        "no NATS for {OUTAGE:?}: all replicas unready after {noticed:.1?}, appends refused within {longest:.1?}, ready \
         again after {recovered:.1?}; {acknowledged} of {} acknowledged before",
        report.messages
    );
    tell("no NATS", &journal, &report, &[frozen]);
    assert!(journal.ends.lock().unwrap().is_empty(), "and go on");
}
