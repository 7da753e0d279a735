//! The members of all replicas, in a registry.
//!
//! Each member has one entry there ([`entry`]), with the instances that hold it: those on which the user has a stream, or a
//! lease after one that broke. So the registry is written when a user comes to an instance or goes from it, not when a
//! stream breaks; the instance knows its leases itself. An instance that stops beating holds nothing any more. That ends
//! the leases of its members, and the eldest instance that runs tells their rooms.
//!
//! An instance converges: whatever happens to a member, it compares what it has itself with what the registry has, and
//! takes the next step. A change that was not made, or made and not answered, is found that way too.
//!
//! While the registry is away nothing ends. When it is back every instance beats, looks at everything anew, and takes
//! nobody for gone before the others had the time to do the same. An instance that alone was cut off finds that others let
//! its members go, and has them come again.
//!
//! Bounds: members as told to [`Shared::new`], checked against what the instance knows, so that those who come at one
//! moment to several replicas may exceed it; an entry's holders are instances that ran when it was written; `AT_ONCE`
//! members are changed at once, `ATTEMPTS` times when others change them too.

mod entry;
mod state;
mod tasks;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use self::{
    entry::{Entry, Step},
    state::State,
};
use super::{Entered, Home, Seen, Stay, tell};
use crate::{
    config,
    core::{
        Error, Topics,
        appender::Appended,
        feeds::{Happening, own},
        rooms::{Kind, announcement},
    },
    log::Topic,
    registry::{self, Member, Registry},
    telemetry::Metrics,
};

/// Members that take turns with each other: one lock for each, so that an instance makes one change of a member at a time.
const TURNS: usize = 256;
/// How often a member is read again because others changed it.
const ATTEMPTS: usize = 32;
/// Members changed at once.
const AT_ONCE: usize = 64;

/// All members of all rooms, known to all replicas. Cheap to clone.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    registry: Arc<dyn Registry>,
    topics: Topics,
    /// Where announced members are told, as rooms are.
    events: own::Sender,
    metrics: Metrics,
    state: Mutex<State>,
    turns: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
    /// Told when a member waits or a lease began.
    changed: Notify,
    /// Whether the registry is known as it is.
    is_current: watch::Sender<bool>,
    /// Told when the registry has to be looked at anew.
    anew: Notify,
}

impl Shared {
    /// Nothing is known yet; see its task.
    #[must_use]
    pub fn new(
        registry: Arc<dyn Registry>,
        topics: Topics,
        events: own::Sender,
        config: &config::Presence,
        metrics: Metrics,
    ) -> Self {
        let state = State::new(registry.me(), config.max_members, config.lease);
        Self(Arc::new(Inner {
            registry,
            topics,
            events,
            metrics,
            state: Mutex::new(state),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            changed: Notify::new(),
            is_current: watch::Sender::new(false),
            anew: Notify::new(),
        }))
    }

    pub(super) async fn enter(
        &self,
        room: &Topic,
        user: &str,
        service: &'static str,
    ) -> Result<Entered, Error> {
        let member = member(room, user);
        let _turn = self.0.turn(&member).lock().await;
        let stay = self.admit(&member, service, true);
        match self.0.converge(&member).await {
            Ok(joined) => Ok(Entered { stay, joined }),
            Err(error) => {
                // What was begun is undone when the registry can be reached.
                stay.leave();
                Err(error)
            }
        }
    }

    pub(super) fn attend(&self, room: &Topic, user: &str, service: &'static str) -> Stay {
        let member = member(room, user);
        let stay = self.admit(&member, service, false);
        self.0.look_at(member);
        stay
    }

    pub(super) async fn members(&self, room: &Topic) -> Result<Vec<Seen>, Error> {
        let mut current = self.0.is_current.subscribe();
        let is_current = current.wait_for(|is_current| *is_current);
        match timeout(self.0.registry.patience(), is_current).await {
            Ok(_) => Ok(self.0.lock().members(room)),
            Err(_) => Err(registry::Error("it is not known as it is".into()).into()),
        }
    }

    pub(super) fn count(&self, room: &Topic) -> usize {
        self.0.lock().count(room)
    }

    fn admit(&self, member: &Member, service: &'static str, announces: bool) -> Stay {
        let mut state = self.0.lock();
        if !state.admit(member, service, announces) {
            return Stay::unlisted();
        }
        drop(state);
        let home: Arc<dyn Home> = self.0.clone();
        Stay::new(home, &member.room, &member.user, announces)
    }
}

impl Inner {
    /// Takes step after step until the registry has of the member what it should; in the member's turn. Returns the
    /// message by which the room was told that it came, if that was told here.
    async fn converge(&self, member: &Member) -> Result<Option<Appended>, Error> {
        let mut joined = None;
        let (mut entry, mut revision) = self.lock().newest(member);
        for _ in 0..ATTEMPTS {
            let step = self.lock().step(member, entry.as_ref());
            let Step::Change(told, next) = step else {
                return Ok(joined);
            };
            if let (Some(kind), Some(entry)) = (told, &entry) {
                let appended = self.tell(member, entry, kind).await?;
                joined = (kind == Kind::Join).then_some(appended);
            }
            let value = next.as_ref().map(encode).transpose()?;
            match self.registry.write(member, value.clone(), revision).await? {
                Some(written) => {
                    self.lock().learn(member, value.as_ref(), written);
                    (entry, revision) = (next, written);
                }
                None => {
                    let (value, newest) = self.registry.read(member).await?;
                    let mut state = self.lock();
                    state.learn(member, value.as_ref(), newest);
                    revision = newest;
                    entry = value.and_then(|value| serde_json::from_slice(&value).ok());
                }
            }
        }
        Err(registry::Error("too many others change this member".into()).into())
    }

    /// Tells the room, once: a repetition finds what was stored.
    async fn tell(&self, member: &Member, entry: &Entry, kind: Kind) -> Result<Appended, Error> {
        let mut record = announcement(&member.room, &member.user, kind);
        record.key = Some(entry.key(kind));
        let appended = self.topics.append(record).await?;
        if !appended.is_duplicate {
            let happening = match kind {
                Kind::Leave => Happening::Left,
                _ => Happening::Joined,
            };
            let (room, user) = (&member.room, &member.user);
            tell(&self.events, happening, room, user, &entry.service);
        }
        Ok(appended)
    }

    fn look_at(&self, member: Member) {
        self.lock().look_at(member);
        self.changed.notify_one();
    }

    fn turn(&self, member: &Member) -> &tokio::sync::Mutex<()> {
        let hash = self.hasher.hash_one(member);
        &self.turns[usize::try_from(hash % TURNS as u64).unwrap_or(0)]
    }

    fn measure(&self, state: &State) {
        let members = i64::try_from(state.total()).unwrap_or(i64::MAX);
        self.metrics.members.set(members);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home for Inner {
    fn end(&self, room: &Topic, user: &str, is_announced: bool, has_left: bool) {
        let mut state = self.lock();
        state.end(&member(room, user), is_announced, has_left);
        drop(state);
        self.changed.notify_one();
    }
}

fn member(room: &Topic, user: &str) -> Member {
    Member {
        room: room.clone(),
        user: user.into(),
    }
}

fn encode(entry: &Entry) -> Result<Bytes, Error> {
    let value = serde_json::to_vec(entry);
    let value = value.map_err(|error| registry::Error(error.to_string()))?;
    Ok(value.into())
}
