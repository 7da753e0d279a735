//! Replicas that come and go.

use std::time::{Duration, Instant};

use super::{
    fleet::Fleet,
    load::{Load, Size},
    report::{after, tell},
};
use crate::{
    nats::Nats,
    support::{Settings, eventually},
};

/// Subscriptions of a replica that run now.
const SUBSCRIPTIONS: &str =
    "weir_streams_active{grpc_method=\"SubscribeMessages\",grpc_service=\"chat.ChatService\"}";
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_on_two_replicas_hear_one_order() {
    let nats = Nats::start();
    let fleet = Fleet::start(2, &nats.url(), Settings::default()).await;
    let urls: Vec<_> = fleet.replicas.iter().map(|replica| replica.url()).collect();
    let size = Size {
        subscribers: 20,
        publishers: 4,
        pace: Duration::from_millis(5),
    };
    let load = Load::start(&urls, size).await;
    load.more(1000).await;
    let journal = load.journal.clone();
    let report = load.finish().await;
    assert!(report.messages >= 1000);
    assert!(journal.resumed.lock().unwrap().is_empty(), "nothing broke");
    assert!(journal.refusals().is_empty(), "{:?}", journal.refusals());
}

/// Two rounds of a deploy: one replica after the other drains, ends and is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_and_repeats_nothing() {
    const DELAY: Duration = Duration::from_millis(500);
    const SPREAD: Duration = Duration::from_secs(3);
    const REPLICAS: usize = 3;
    const ROUNDS: usize = 2;
    let nats = Nats::start();
    let settings = Settings::default()
        .set("drain.delay", "500ms")
        .set("drain.spread", "3s")
        .set("drain.timeout", "15s");
    let mut fleet = Fleet::start(REPLICAS, &nats.url(), settings).await;
    let size = Size {
        subscribers: 300,
        publishers: 8,
        pace: Duration::from_millis(100),
    }
    .scaled();
    let load = Load::start(&[fleet.balancer.url()], size).await;
    let journal = load.journal.clone();
    let mut told = Vec::new();
    for _ in 0..ROUNDS {
        for index in 0..REPLICAS {
            load.more(size.publishers).await;
            told.push(Instant::now());
            fleet.replicas[index].terminate();
            assert_eq!(fleet.replicas[index].exit_code().await, Some(0));
            fleet.resume(index).await;
        }
    }
    load.more(size.publishers).await;
    let report = load.finish().await;
    tell("rolling restart", &journal, &report, &told);

    let ends = journal.ends.lock().unwrap().clone();
    let drained: Vec<_> = ends.iter().filter(|end| end.reason == "DRAINING").collect();
    for subscriber in 0..size.subscribers {
        let own = drained.iter().filter(|end| end.subscriber == subscriber);
        assert!(own.count() >= ROUNDS, "each stream moved in each round");
    }
    // Were they ended all at once, one quarter of the time would hold them all.
    let mut quarters = [0; 4];
    for after in after(drained.iter().map(|end| end.at), &told) {
        let quarter = after.saturating_sub(DELAY).as_millis() * 4 / SPREAD.as_millis();
        quarters[usize::try_from(quarter).unwrap().min(3)] += 1;
    }
    let most = drained.len() / 2;
    assert!(
        quarters.iter().all(|count| (1..most).contains(count)),
        "ended one by one: {quarters:?}"
    );
}

/// Replicas are killed one after the other, and started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_loses_and_repeats_nothing() {
    let nats = Nats::start();
    let mut fleet = Fleet::start(3, &nats.url(), Settings::default()).await;
    let size = Size {
        subscribers: 300,
        publishers: 8,
        pace: Duration::from_millis(100),
    }
    .scaled();
    let load = Load::start(&[fleet.balancer.url()], size).await;
    let journal = load.journal.clone();
    let mut killed = Vec::new();
    for index in 0..3 {
        load.more(5 * size.publishers).await;
        let before = journal.ends.lock().unwrap().len();
        killed.push(Instant::now());
        fleet.replicas[index].kill().await;
        eventually("its streams to be opened elsewhere", || async {
            let broke = journal.ends.lock().unwrap().len() > before;
            (broke && journal.away() == 0).then_some(())
        })
        .await;
        load.more(5 * size.publishers).await;
        fleet.resume(index).await;
    }
    load.more(size.publishers).await;
    let report = load.finish().await;
    tell("kill -9", &journal, &report, &killed);
    let ends = journal.ends.lock().unwrap().len();
    let resumed = journal.resumed.lock().unwrap().len();
    assert!(resumed >= size.subscribers / 3, "{resumed}");
    // The first wait of the back-off was enough, or the second.
    assert!(
        ends <= 2 * resumed,
        "{ends} attempts for {resumed} reconnects"
    );
}
/// A replica that joins gets its part of streams that live long, as they come of age.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_even_out_within_one_age_after_a_replica_joined() {
    let nats = Nats::start();
    let settings = Settings::default().set("server.max_stream_age", "6s");
    let mut fleet = Fleet::start(2, &nats.url(), settings).await;
    let size = Size {
        subscribers: 60,
        publishers: 4,
        pace: Duration::from_millis(50),
    }
    .scaled();
    let load = Load::start(&[fleet.balancer.url()], size).await;
    let journal = load.journal.clone();
    fleet.join().await;
    let joined = Instant::now();
    eventually("every stream to come of age once", || async {
        (journal.back_since(joined) == size.subscribers).then_some(())
    })
    .await;
    let took = joined.elapsed();
    let mut active = Vec::new();
    for replica in &fleet.replicas {
        active.push(replica.metric(SUBSCRIPTIONS).await);
    }
    let report = load.finish().await;
    println!("a third replica: streams {active:?} after {took:.1?}");
    tell("evening out", &journal, &report, &[joined]);
    let least = size.subscribers as f64 / 6.0;
    assert!(active.iter().all(|count| *count >= least), "{active:?}");
    assert_eq!(fleet.replicas.len(), active.len());
}
