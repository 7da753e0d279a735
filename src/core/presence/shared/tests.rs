use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::{
    entry::{Looker, Phase, Wish, plan},
    *,
};
use crate::{
    core::Hub,
    log::{
        Engine, Limit, Space,
        memory::{Memory, Options},
    },
    registry::{Revision, memory},
    telemetry::Traces,
};

const LEASE: Duration = Duration::from_secs(15);

/// A log and a registry that replicas share.
struct Rig {
    topics: Topics,
    registry: memory::Memory,
    room: Topic,
}

struct Replica {
    presence: Shared,
    link: Arc<memory::Link>,
    task: JoinHandle<()>,
}

impl Replica {
    /// As after `kill -9`.
    fn kill(&self) {
        self.task.abort();
        self.link.cut();
    }
}

impl Rig {
    fn new() -> Self {
        let metrics = Metrics::new();
        let options = Options::new(&config::Log::default(), metrics.clone());
        let engine: Arc<dyn Engine> = Arc::new(Memory::new(options));
        let hub = config::Hub::default();
        let hub = Hub::new(Arc::clone(&engine), &hub, metrics, Traces::off());
        Self {
            topics: Topics::new(engine, hub, Traces::off()),
            registry: memory::Memory::default(),
            room: Topic::new(Space::Room, "general").unwrap(),
        }
    }

    async fn replica(&self, name: &str) -> Replica {
        self.limited(name, 1000).await
    }

    async fn limited(&self, name: &str, max_members: usize) -> Replica {
        let link = self.registry.link(name, LEASE);
        let config = config::Presence {
            lease: LEASE,
            max_members,
        };
        let presence = Shared::new(
            link.clone(),
            self.topics.clone(),
            own::Sender::default(),
            &config,
            Metrics::new(),
        );
        let task = tokio::spawn(presence.clone().run());
        settle().await;
        Replica {
            presence,
            link,
            task,
        }
    }

    /// What the room was told: `+user` and `-user`.
    async fn told(&self) -> Vec<String> {
        let limit = Limit {
            records: usize::MAX,
            bytes: usize::MAX,
        };
        let first = self.topics.bounds(&self.room).await.unwrap().first;
        let page = self.topics.read(&self.room, first, limit).await.unwrap();
        let told = page.records.iter().map(|record| match Kind::of(record) {
            Kind::Join => format!("+{}", record.publisher),
            _ => format!("-{}", record.publisher),
        });
        told.collect()
    }

    async fn users(&self, replica: &Replica) -> Vec<Box<str>> {
        let members = replica.presence.members(&self.room).await.unwrap();
        members.into_iter().map(|seen| seen.user).collect()
    }

    async fn enter(&self, replica: &Replica, user: &str) -> Entered {
        let entered = replica.presence.enter(&self.room, user, "x").await;
        entered.unwrap()
    }
}

/// Lets every task do what it can now.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Until keys of instances end and others are taken for gone.
async fn long() {
    tokio::time::sleep(LEASE * 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_comes_with_its_first_stream_anywhere_and_goes_with_its_last() {
    let rig = Rig::new();
    let (one, two) = (rig.replica("one").await, rig.replica("two").await);
    let ann = rig.enter(&one, "ann").await;
    assert!(ann.joined.is_some());
    settle().await;
    let again = rig.enter(&two, "ann").await;
    assert!(again.joined.is_none());
    settle().await;
    let listed = one.presence.members(&rig.room).await.unwrap();
    assert_eq!(two.presence.members(&rig.room).await.unwrap(), listed);
    ann.stay.leave();
    long().await;
    assert_eq!(rig.users(&one).await, ["ann".into()]);
    assert_eq!(rig.told().await, ["+ann"]);
    again.stay.leave();
    settle().await;
    assert!(rig.users(&one).await.is_empty());
    assert_eq!(two.presence.count(&rig.room), 0);
    assert_eq!(rig.told().await, ["+ann", "-ann"]);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_within_the_lease_never_left_and_a_broken_stream_is_no_change() {
    let rig = Rig::new();
    let (one, two) = (rig.replica("one").await, rig.replica("two").await);
    long().await;
    drop(rig.enter(&one, "ann").await);
    drop(rig.enter(&one, "bob").await);
    settle().await;
    let changes = rig.registry.changes();
    drop(rig.enter(&one, "ann").await);
    settle().await;
    assert_eq!(rig.registry.changes(), changes);
    tokio::time::sleep(LEASE / 2).await;
    let ann = rig.enter(&two, "ann").await;
    assert!(ann.joined.is_none());
    tokio::time::sleep(LEASE).await;
    assert_eq!(rig.told().await, ["+ann", "+bob", "-bob"]);
    assert_eq!(rig.users(&one).await, ["ann".into()]);
}

#[tokio::test(start_paused = true)]
async fn who_moved_to_another_replica_and_leaves_there_goes_at_once() {
    let rig = Rig::new();
    let (one, two) = (rig.replica("one").await, rig.replica("two").await);
    drop(rig.enter(&one, "ann").await);
    let ann = rig.enter(&two, "ann").await;
    settle().await;
    ann.stay.leave();
    settle().await;
    assert_eq!(rig.told().await, ["+ann", "-ann"]);
    assert!(rig.users(&one).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn silent_members_are_listed_and_not_announced() {
    let rig = Rig::new();
    let (one, two) = (rig.replica("one").await, rig.replica("two").await);
    let silent = one.presence.attend(&rig.room, "ann", "x");
    settle().await;
    assert_eq!(rig.users(&two).await, ["ann".into()]);
    let loud = rig.enter(&two, "ann").await;
    assert!(loud.joined.is_some());
    settle().await;
    loud.stay.leave();
    settle().await;
    assert_eq!(rig.told().await, ["+ann"]);
    silent.leave();
    settle().await;
    assert_eq!(rig.told().await, ["+ann", "-ann"]);
    one.presence.attend(&rig.room, "bob", "x").leave();
    settle().await;
    assert_eq!(rig.told().await.len(), 2);
    assert!(rig.users(&two).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn members_of_a_dead_replica_hold_a_lease_and_leave_once() {
    let rig = Rig::new();
    let mut others = Vec::new();
    let dead = rig.replica("0").await;
    for name in ["1", "2", "3"] {
        others.push(rig.replica(name).await);
    }
    long().await;
    let stays = [rig.enter(&dead, "ann").await, rig.enter(&dead, "bob").await];
    let silent = dead.presence.attend(&rig.room, "carol", "x");
    settle().await;
    dead.kill();
    std::mem::forget((stays, silent));
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(rig.users(&others[2]).await.len(), 3);
    let back = rig.enter(&others[2], "ann").await;
    assert!(back.joined.is_none());
    long().await;
    for other in &others {
        assert_eq!(rig.users(other).await, ["ann".into()]);
    }
    assert_eq!(rig.told().await, ["+ann", "+bob", "-bob"]);
}

#[tokio::test(start_paused = true)]
async fn while_the_registry_is_away_nothing_ends() {
    let rig = Rig::new();
    let (one, two) = (rig.replica("one").await, rig.replica("two").await);
    long().await;
    let _ann = rig.enter(&one, "ann").await;
    let _bob = rig.enter(&two, "bob").await;
    let broken = rig.enter(&two, "carol").await;
    settle().await;
    drop(broken);
    one.link.cut();
    two.link.cut();
    tokio::time::sleep(LEASE * 10).await;
    assert!(one.presence.enter(&rig.room, "dan", "x").await.is_err());
    assert!(one.presence.members(&rig.room).await.is_err());
    let _silent = one.presence.attend(&rig.room, "eve", "x");
    one.link.mend();
    tokio::time::sleep(LEASE / 2).await;
    two.link.mend();
    settle().await;
    let carol = rig.enter(&one, "carol").await;
    assert!(carol.joined.is_none());
    long().await;
    for replica in [&one, &two] {
        let users = rig.users(replica).await;
        assert_eq!(users.join(" "), "ann bob carol eve");
    }
    assert_eq!(rig.told().await, ["+ann", "+bob", "+carol"]);
}

#[tokio::test(start_paused = true)]
async fn members_of_a_replica_that_alone_was_cut_off_come_again() {
    let rig = Rig::new();
    let (away, here) = (rig.replica("away").await, rig.replica("here").await);
    long().await;
    let _ann = rig.enter(&away, "ann").await;
    let _silent = away.presence.attend(&rig.room, "bob", "x");
    let broken = rig.enter(&away, "carol").await;
    let both = [rig.enter(&away, "dan").await, rig.enter(&here, "dan").await];
    settle().await;
    away.link.cut();
    drop(broken);
    long().await;
    assert_eq!(rig.users(&here).await, ["dan".into()]);
    away.link.mend();
    long().await;
    for replica in [&away, &here] {
        assert_eq!(rig.users(replica).await.join(" "), "ann bob dan");
    }
    let mut told = rig.told().await;
    assert_eq!(told.pop().unwrap(), "+ann");
    told.sort();
    assert_eq!(told, ["+ann", "+carol", "+dan", "-ann", "-carol"]);
    drop(both);
}

/// What a replica that died between two steps leaves is finished by another, and told once.
#[tokio::test(start_paused = true)]
async fn what_a_dead_replica_began_is_finished_once() {
    let rig = Rig::new();
    let one = rig.replica("one").await;
    let link = rig.registry.link("dead", LEASE);
    for (user, phase, told) in [
        ("ann", Phase::Joining, None),
        ("bob", Phase::Joining, Some(Kind::Join)),
        ("carol", Phase::Leaving, None),
        ("dan", Phase::Leaving, Some(Kind::Leave)),
        ("eve", Phase::Silent, None),
    ] {
        let member = member(&rig.room, user);
        let entry = Entry {
            id: user.into(),
            since: 1,
            service: "x".into(),
            phase,
            holders: vec!["dead".into()],
        };
        let value = Some(encode(&entry).unwrap());
        let written = link.write(&member, value, Revision::default()).await;
        assert!(written.unwrap().is_some());
        if let Some(kind) = told {
            one.presence.0.tell(&member, &entry, kind).await.unwrap();
        }
    }
    settle().await;
    // Who comes before that finishes it too.
    let carol = rig.enter(&one, "carol").await;
    assert!(carol.joined.is_some());
    long().await;
    let mut told = rig.told().await;
    let of = |told: &[String], user: &str| {
        let of = told.iter().filter(|text| text.ends_with(user));
        of.cloned().collect::<Vec<_>>()
    };
    assert_eq!(of(&told, "ann"), ["+ann", "-ann"]);
    assert_eq!(of(&told, "bob"), ["+bob", "-bob"]);
    assert_eq!(of(&told, "carol"), ["-carol", "+carol"]);
    assert_eq!(of(&told, "dan"), ["-dan"]);
    told.retain(|text| !text.ends_with("carol"));
    assert_eq!(told.len(), 5, "{told:?}");
    assert_eq!(rig.users(&one).await, ["carol".into()]);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_nobody_is_listed_or_announced() {
    let rig = Rig::new();
    let (one, two) = (rig.limited("one", 1).await, rig.limited("two", 1).await);
    let ann = rig.enter(&one, "ann").await;
    settle().await;
    let bob = rig.enter(&two, "bob").await;
    assert!(bob.joined.is_none());
    assert!(rig.enter(&two, "ann").await.joined.is_none());
    drop(bob);
    ann.stay.leave();
    long().await;
    let bob = rig.enter(&two, "bob").await;
    assert!(bob.joined.is_some());
    assert_eq!(rig.told().await, ["+ann", "-ann", "+bob"]);
}

#[test]
fn only_the_one_who_sweeps_lets_go_of_what_the_dead_hold() {
    let entry = Entry {
        id: "i".into(),
        since: 1,
        service: "x".into(),
        phase: Phase::Announced,
        holders: vec!["dead".into()],
    };
    let looks = |sweeps, is_live: bool| {
        let looker = Looker {
            me: "me",
            is_live: &|_| is_live,
            sweeps,
        };
        plan(Some(&entry), Wish::Nothing, &looker)
    };
    assert_eq!(looks(false, false), Step::Done);
    assert_eq!(looks(true, true), Step::Done);
    let Step::Change(None, Some(leaving)) = looks(true, false) else {
        panic!("it leaves");
    };
    assert_eq!(leaving.phase, Phase::Leaving);
    assert_eq!(leaving.holders, ["me".into()]);
}

/// What may happen to replicas and their clients.
#[derive(Debug, Clone)]
enum Act {
    Enter(usize, usize),
    Attend(usize, usize),
    /// The oldest stream there ends.
    Leave(usize, usize),
    Break(usize, usize),
    Cut(usize),
    Mend(usize),
    /// Killed as by `kill -9`, and another in its place.
    Replace(usize),
    Wait(u64),
}

const USERS: [&str; 3] = ["ann", "bob", "carol"];

fn act() -> impl Strategy<Value = Act> {
    let place = (0..3_usize, 0..USERS.len());
    prop_oneof![
        4 => place.clone().prop_map(|(at, user)| Act::Enter(at, user)),
        2 => place.clone().prop_map(|(at, user)| Act::Attend(at, user)),
        3 => place.clone().prop_map(|(at, user)| Act::Leave(at, user)),
        3 => place.prop_map(|(at, user)| Act::Break(at, user)),
        1 => (0..3_usize).prop_map(Act::Cut),
        1 => (0..3_usize).prop_map(Act::Mend),
        1 => (0..3_usize).prop_map(Act::Replace),
        4 => (0..30_000_u64).prop_map(Act::Wait),
    ]
}

/// Plays `acts` on three replicas, mends everything, and compares.
async fn play(acts: Vec<Act>) {
    let rig = Rig::new();
    let mut replicas = Vec::new();
    for name in ["0", "1", "2"] {
        replicas.push(rig.replica(name).await);
    }
    let mut stays = BTreeMap::<(usize, usize), Vec<Stay>>::new();
    for (turn, act) in acts.into_iter().enumerate() {
        match act {
            Act::Enter(at, user) => {
                let entering = replicas[at].presence.enter(&rig.room, USERS[user], "x");
                if let Ok(entered) = entering.await {
                    stays.entry((at, user)).or_default().push(entered.stay);
                }
            }
            Act::Attend(at, user) => {
                let stay = replicas[at].presence.attend(&rig.room, USERS[user], "x");
                stays.entry((at, user)).or_default().push(stay);
            }
            Act::Leave(at, user) => {
                let stays = stays.get_mut(&(at, user));
                if let Some(stay) = stays.and_then(Vec::pop) {
                    stay.leave();
                }
            }
            Act::Break(at, user) => {
                let stays = stays.get_mut(&(at, user));
                drop(stays.and_then(Vec::pop));
            }
            Act::Cut(at) => replicas[at].link.cut(),
            Act::Mend(at) => replicas[at].link.mend(),
            Act::Replace(at) => {
                replicas[at].kill();
                let name = (3 + turn).to_string();
                replicas[at] = rig.replica(&name).await;
                stays.retain(|place, _| place.0 != at);
            }
            Act::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }
    replicas.iter().for_each(|replica| replica.link.mend());
    tokio::time::sleep(LEASE * 10).await;
    let there =
        |user: usize| (0..3).any(|at| stays.get(&(at, user)).is_some_and(|s| !s.is_empty()));
    let expected: Vec<Box<str>> = (0..USERS.len())
        .filter(|user| there(*user))
        .map(|user| USERS[user].into())
        .collect();
    let listed = replicas[0].presence.members(&rig.room).await.unwrap();
    let users: Vec<_> = listed.iter().map(|seen| seen.user.clone()).collect();
    assert_eq!(users, expected);
    for replica in &replicas {
        assert_eq!(replica.presence.members(&rig.room).await.unwrap(), listed);
    }
    let told = rig.told().await;
    for user in USERS {
        let own: Vec<_> = told.iter().filter(|text| text[1..] == *user).collect();
        let turns = (0..own.len()).map(|turn| ["+", "-"][turn % 2]);
        assert!(own.iter().map(|text| &text[..1]).eq(turns), "{told:?}");
        let is_listed = users.iter().any(|listed| **listed == *user);
        assert!(
            is_listed || own.len() % 2 == 0,
            "who went was told: {told:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn whatever_happens_all_agree_and_the_room_is_told_in_turns(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(acts));
    }
}
