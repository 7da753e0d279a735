use super::*;
use crate::{
    core::{Hub, rooms::is_announcement},
    log::{
        Engine, Record,
        memory::{Memory, Options},
    },
    telemetry::Traces,
};

const LEASE: Duration = Duration::from_secs(15);

/// A log, and presences over it as after restarts.
struct Rig {
    engine: Arc<dyn Engine>,
    topics: Topics,
    room: Topic,
}

impl Rig {
    fn new() -> Self {
        let metrics = Metrics::new();
        let options = Options::new(&config::Log::default(), metrics.clone());
        let engine: Arc<dyn Engine> = Arc::new(Memory::new(options));
        let hub = config::Hub::default();
        let hub = Hub::new(Arc::clone(&engine), &hub, metrics, Traces::off());
        Self {
            topics: Topics::new(Arc::clone(&engine), hub, Traces::off()),
            engine,
            room: Topic::new(Space::Room, "general").unwrap(),
        }
    }

    /// A presence that knows what the log knows; its task runs.
    async fn presence(&self, max_members: usize) -> Alone {
        let config = config::Presence {
            lease: LEASE,
            max_members,
        };
        let presence = Alone::new(
            self.topics.clone(),
            own::Sender::default(),
            &config,
            Metrics::new(),
        )
        .unwrap();
        presence.recover().await.unwrap();
        tokio::spawn(presence.clone().run());
        presence
    }

    async fn records(&self, topic: &Topic) -> Vec<Arc<Record>> {
        let limit = Limit {
            records: usize::MAX,
            bytes: usize::MAX,
        };
        let first = self.topics.bounds(topic).await.unwrap().first;
        self.topics.read(topic, first, limit).await.unwrap().records
    }

    /// What the room was told: `+user` and `-user`.
    async fn told(&self) -> Vec<String> {
        let told = self.records(&self.room).await;
        assert!(told.iter().all(|record| is_announcement(record)));
        told.iter()
            .map(|record| match Kind::of(record) {
                Kind::Join => format!("+{}", record.publisher),
                _ => format!("-{}", record.publisher),
            })
            .collect()
    }

    fn users(&self, presence: &Alone) -> Vec<Box<str>> {
        let members = presence.members(&self.room).into_iter();
        members.map(|seen| seen.user).collect()
    }
}

/// Lets every task do what it can now.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_keeps_a_member_until_it_ends() {
    let rig = Rig::new();
    let presence = rig.presence(10).await;
    let entered = presence.enter(&rig.room, "ann", "x").await.unwrap();
    assert!(entered.joined.is_some());
    drop(entered);
    tokio::time::sleep(LEASE - Duration::from_millis(1)).await;
    assert_eq!(rig.users(&presence), ["ann".into()]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(rig.users(&presence).is_empty());
    assert_eq!(rig.told().await, ["+ann", "-ann"]);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_goes_at_once_and_who_comes_back_in_time_never_left() {
    let rig = Rig::new();
    let presence = rig.presence(10).await;
    let ann = presence.enter(&rig.room, "ann", "x").await.unwrap();
    let since = presence.members(&rig.room);
    drop(ann);
    tokio::time::sleep(LEASE / 2).await;
    let ann = presence.enter(&rig.room, "ann", "y").await.unwrap();
    assert!(ann.joined.is_none());
    assert_eq!(presence.members(&rig.room), since);
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!(rig.told().await, ["+ann"]);
    ann.stay.leave();
    settle().await;
    assert!(rig.users(&presence).is_empty());
    assert_eq!(rig.told().await, ["+ann", "-ann"]);
}

#[tokio::test(start_paused = true)]
async fn silent_members_are_listed_and_not_announced() {
    let rig = Rig::new();
    let presence = rig.presence(10).await;
    let silent = presence.attend(&rig.room, "ann", "x");
    assert_eq!(rig.users(&presence), ["ann".into()]);
    // An announced stream beside it tells the room; the user goes with its last stream.
    let loud = presence.enter(&rig.room, "ann", "y").await.unwrap();
    assert!(loud.joined.is_some());
    loud.stay.leave();
    settle().await;
    assert_eq!(rig.told().await, ["+ann"]);
    silent.leave();
    settle().await;
    assert_eq!(rig.told().await, ["+ann", "-ann"]);
    let silent = presence.attend(&rig.room, "bob", "x");
    silent.leave();
    assert!(rig.users(&presence).is_empty());
    assert_eq!(rig.told().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn members_survive_a_restart_with_their_beginning_and_their_service() {
    let rig = Rig::new();
    let before = rig.presence(10).await;
    let ann = before.enter(&rig.room, "ann", "x").await.unwrap();
    let bob = before.enter(&rig.room, "bob", "y").await.unwrap();
    let gone = before.enter(&rig.room, "carol", "y").await.unwrap();
    gone.stay.leave();
    settle().await;
    let members = before.members(&rig.room);
    // As after a crash: nobody drops anything.
    std::mem::forget((ann, bob));
    let after = rig.presence(10).await;
    assert_eq!(after.members(&rig.room), members);
    let ann = after.enter(&rig.room, "ann", "x").await.unwrap();
    assert!(ann.joined.is_none());
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!(rig.users(&after), ["ann".into()]);
    assert_eq!(
        rig.told().await,
        ["+ann", "+bob", "+carol", "-carol", "-bob"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_presence_topic_stays_short_and_keeps_who_is_there() {
    let rig = Rig::new();
    let presence = rig.presence(10).await;
    let ann = presence.enter(&rig.room, "ann", "x").await.unwrap();
    for _ in 0..SNAPSHOT_CHANGES {
        let bob = presence.enter(&rig.room, "bob", "x").await.unwrap();
        bob.stay.leave();
        settle().await;
    }
    let topic = Topic::new(Space::Presence, TOPIC).unwrap();
    let length = rig.records(&topic).await.len();
    assert!(length <= SNAPSHOT_CHANGES + 1, "{length}");
    assert_eq!(rig.users(&rig.presence(10).await), ["ann".into()]);
    ann.stay.leave();
    // With nobody there nothing is left.
    tokio::time::sleep(SNAPSHOT_AGE * 2).await;
    assert!(rig.records(&topic).await.is_empty());
    assert!(rig.users(&rig.presence(10).await).is_empty());
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_nobody_is_listed_or_announced() {
    let rig = Rig::new();
    let presence = rig.presence(1).await;
    let ann = presence.enter(&rig.room, "ann", "x").await.unwrap();
    let bob = presence.enter(&rig.room, "bob", "x").await.unwrap();
    assert!(bob.joined.is_none());
    drop(bob);
    assert_eq!(rig.users(&presence), ["ann".into()]);
    ann.stay.leave();
    settle().await;
    let _bob = presence.enter(&rig.room, "bob", "x").await.unwrap();
    assert_eq!(rig.told().await, ["+ann", "-ann", "+bob"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_log_refuses_is_no_membership() {
    let rig = Rig::new();
    let presence = rig.presence(10).await;
    let ann = presence.enter(&rig.room, "ann", "x").await.unwrap();
    rig.engine.close().await;
    assert!(presence.enter(&rig.room, "bob", "x").await.is_err());
    assert_eq!(rig.users(&presence), ["ann".into()]);
    // A leave that cannot be told is tried again, and the member stays until then.
    ann.stay.leave();
    settle().await;
    assert_eq!(rig.users(&presence), ["ann".into()]);
}

#[tokio::test(start_paused = true)]
async fn joins_and_leaves_of_one_user_stand_in_the_log_in_their_order() {
    let rig = Rig::new();
    let presence = rig.presence(10).await;
    for _ in 0..50 {
        let entered = presence.enter(&rig.room, "ann", "x").await.unwrap();
        entered.stay.leave();
        tokio::task::yield_now().await;
    }
    settle().await;
    let told = rig.told().await;
    let expected = (0..told.len()).map(|index| ["+ann", "-ann"][index % 2]);
    assert!(told.iter().eq(expected), "{told:?}");
    assert_eq!(told.len() % 2, 0);
}
