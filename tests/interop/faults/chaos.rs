//! Faults drawn at random, two at a time: combinations that nobody thought of.

use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::time::sleep;

use super::{
    fleet::Fleet,
    load::{Load, Size},
    report::tell,
};
use crate::{
    nats::Nats,
    support::{Settings, eventually},
};

/// Rounds of a run, unless `WEIR_CHAOS_ROUNDS` says how many.
const ROUNDS: u64 = 3;
/// The longest time in which no NATS server answers.
const FREEZE_MILLIS: u64 = 4000;

/// What happens to NATS.
#[derive(Debug, Clone, Copy)]
enum OfNats {
    KillsOne,
    MovesLeader,
    Freezes,
    Nothing,
}

/// What happens to a replica.
#[derive(Debug, Clone, Copy)]
enum OfReplica {
    Killed,
    Drained,
    Nothing,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Each round one fault of NATS and one of a replica, one into the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_faults_at_once_lose_and_repeat_nothing() {
    let seed = number("WEIR_CHAOS_SEED").unwrap_or_else(rand::random);
    let rounds = number("WEIR_CHAOS_ROUNDS").unwrap_or(ROUNDS);
    println!("chaos: WEIR_CHAOS_SEED={seed}, {rounds} rounds");
    let mut random = StdRng::seed_from_u64(seed);
    let mut nats = Nats::cluster();
    let settings = Settings::default()
        .set("jetstream.replicas", 3)
        .set("drain.spread", "1s")
        .set("drain.timeout", "10s");
    let mut fleet = Fleet::start(3, &nats.url(), settings).await;
    let size = Size {
        subscribers: 60,
        publishers: 4,
        pace: Duration::from_millis(20),
    }
    .scaled();
    let load = Load::start(&[fleet.balancer.url()], size).await;
    let journal = load.journal.clone();
    let mut faults = Vec::new();
    for round in 0..rounds {
        load.more(50).await;
        eventually("every copy to be complete", || nats.leader()).await;
        let of_nats = [
            OfNats::KillsOne,
            OfNats::MovesLeader,
            OfNats::Freezes,
            OfNats::Nothing,
        ];
        let of_nats = *of_nats.choose(&mut random).unwrap();
        let of_replica = [OfReplica::Killed, OfReplica::Drained, OfReplica::Nothing];
        let of_replica = *of_replica.choose(&mut random).unwrap();
        let (node, replica) = (random.random_range(0..3), random.random_range(0..3));
        let freeze = Duration::from_millis(random.random_range(0..FREEZE_MILLIS));
        println!(
            "round {round}: server {node} {of_nats:?} ({freeze:?}), replica {replica} {of_replica:?}"
        );
        faults.push(Instant::now());
        match of_nats {
            OfNats::KillsOne => nats.kill(node),
            OfNats::MovesLeader => nats.move_leader().await,
            OfNats::Freezes => nats.freeze(),
            OfNats::Nothing => {}
        }
        match of_replica {
            OfReplica::Killed => fleet.replicas[replica].kill().await,
            OfReplica::Drained => fleet.replicas[replica].terminate(),
            OfReplica::Nothing => {}
        }
        if matches!(of_nats, OfNats::Freezes) {
            // The fault's length, not a wait for anything.
            sleep(freeze).await;
            nats.thaw();
        }
        match of_replica {
            OfReplica::Drained => {
                assert_eq!(fleet.replicas[replica].exit_code().await, Some(0));
                fleet.resume(replica).await;
            }
            OfReplica::Killed => fleet.resume(replica).await,
            OfReplica::Nothing => {}
        }
        for replica in &fleet.replicas {
            replica.ready().await;
        }
        if matches!(of_nats, OfNats::KillsOne) {
            nats.resume(node);
        }
    }
    load.more(50).await;
    let report = load.finish().await;
    tell("chaos", &journal, &report, &faults);
}
