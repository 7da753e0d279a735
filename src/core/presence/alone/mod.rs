//! The members of the only instance there is: leases in memory.
//!
//! Members whose coming was posted are also kept in the log ([`Space::Presence`]), so that after a restart they hold a lease
//! from the start: one that comes back has not left, one that does not gets its leave. Members that came silently are
//! known by their streams alone.
//!
//! Bounds: the presence topic is written anew and trimmed every `SNAPSHOT_CHANGES` changes or twice its members, whichever
//! is more, and every `SNAPSHOT_AGE`.

mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use self::state::{State, presence_record};
use super::{Entered, Home, Seen, Stay};
use crate::{
    config,
    core::{
        Error, Topics,
        appender::Appended,
        feeds::{Happening, own},
        rooms::{Kind, announcement},
    },
    log::{Limit, NewRecord, Sequence, Space, Timestamp, Topic, TopicError},
    telemetry::Metrics,
};

/// The one topic of [`Space::Presence`].
const TOPIC: &str = "rooms";
/// Members that go with one flush, and records of one page or batch.
const BATCH: usize = 512;
/// Bytes of one page when members are read back.
const PAGE_BYTES: usize = 1024 * 1024;
/// How long the leaves of members wait when the log did not take them.
const RETRY: Duration = Duration::from_secs(1);
/// Changes after which the topic is written anew at the earliest.
const SNAPSHOT_CHANGES: usize = 1000;
/// Time after which the topic is written anew at the latest: far less than retention keeps.
const SNAPSHOT_AGE: Duration = Duration::from_secs(3600);

/// All members of all rooms, known to this instance alone. Cheap to clone.
#[derive(Clone)]
pub struct Alone(Arc<Inner>);

struct Inner {
    topics: Topics,
    topic: Topic,
    /// Where announced members are told, as rooms are.
    events: own::Sender,
    lease: Duration,
    max_members: usize,
    metrics: Metrics,
    state: Mutex<State>,
    /// Held while a change of an announced member is decided and enqueued, so that the log has the changes in their order.
    order: tokio::sync::Mutex<()>,
    /// Told when a lease may end earlier than the clock waits for.
    changed: Notify,
}

impl Alone {
    /// Nobody is anywhere yet; see [`Self::recover`] and [`Self::run`].
    ///
    /// # Errors
    /// None in practice: the topic's name is fixed.
    pub fn new(
        topics: Topics,
        events: own::Sender,
        config: &config::Presence,
        metrics: Metrics,
    ) -> Result<Self, TopicError> {
        Ok(Self(Arc::new(Inner {
            topics,
            topic: Topic::new(Space::Presence, TOPIC)?,
            events,
            lease: config.lease,
            max_members: config.max_members,
            metrics,
            state: Mutex::default(),
            order: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        })))
    }

    /// A user comes to a room and the room is told, unless it knows. Returns when the message is durable. Dropping the
    /// future leaves a lease behind at most.
    ///
    /// # Errors
    /// What the log reports; the user is not there then.
    pub async fn enter(
        &self,
        room: &Topic,
        user: &str,
        service: &'static str,
    ) -> Result<Entered, Error> {
        let order = self.0.order.lock().await;
        let (stay, is_news) = self.admit(room, user, service, true);
        if !is_news {
            let joined = None;
            return Ok(Entered { stay, joined });
        }
        let mut pipeline = self.0.topics.pipeline();
        let records = self.0.announced(Kind::Join, room, user, service);
        let pushed = pipeline.push(records).await;
        drop(order);
        let appended = match pushed {
            Ok(()) => pipeline.next().await,
            Err(error) => Err(error),
        };
        let appended = appended.and_then(|outcomes| {
            let last = outcomes.into_iter().next_back();
            last.unwrap_or(Err(Error::Log(crate::log::Error::Closed)))
        });
        match appended {
            Ok(joined) => {
                self.0.tell(Happening::Joined, room, user, service);
                let joined = Some(joined);
                Ok(Entered { stay, joined })
            }
            Err(error) => {
                self.0.retract(room, user);
                stay.leave();
                Err(error)
            }
        }
    }

    /// A user comes to a room silently: it is listed, and nobody is told.
    pub fn attend(&self, room: &Topic, user: &str, service: &'static str) -> Stay {
        self.admit(room, user, service, false).0
    }

    /// The members of a room, in name order.
    #[must_use]
    pub fn members(&self, room: &Topic) -> Vec<Seen> {
        let state = self.0.lock();
        let members = state.rooms.get(room).into_iter().flatten();
        members
            .map(|(user, member)| Seen {
                user: user.clone(),
                since: member.since,
                service: member.service.clone(),
            })
            .collect()
    }

    /// How many members a room has.
    #[must_use]
    pub fn count(&self, room: &Topic) -> usize {
        self.0.lock().rooms.get(room).map_or(0, BTreeMap::len)
    }

    /// Reads back who was there before a restart and gives each a lease. Call it once, before anybody enters.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn recover(&self) -> Result<(), Error> {
        let inner = &self.0;
        let mut from = inner.topics.bounds(&inner.topic).await?.first;
        let limit = Limit {
            records: BATCH,
            bytes: PAGE_BYTES,
        };
        loop {
            let page = match inner.topics.read(&inner.topic, from, limit).await {
                Ok(page) => page,
                // Retention was faster.
                Err(Error::Log(crate::log::Error::Trimmed { first })) => {
                    from = first;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut state = inner.lock();
            for record in &page.records {
                state.replay(record, inner.max_members);
            }
            drop(state);
            if page.next >= page.tail {
                break;
            }
            from = page.next;
        }
        let due = Instant::now() + inner.lease;
        let mut state = inner.lock();
        state.lease_all(due);
        inner.count(&state);
        Ok(())
    }

    /// Ends leases and keeps the presence topic short; never returns. One task for all members.
    pub async fn run(self) {
        let mut snapshots = interval_at(Instant::now() + SNAPSHOT_AGE, SNAPSHOT_AGE);
        snapshots.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = self.0.changed.notified();
            let next = self.0.lock().next_lease();
            tokio::select! {
                () = until(next) => self.depart().await,
                () = changed => {}
                _ = snapshots.tick() => self.snapshot().await,
            }
            if self.0.lock().is_long() {
                self.snapshot().await;
            }
        }
    }

    /// The stay of a user, and whether the room has to be told that it came.
    fn admit(
        &self,
        room: &Topic,
        user: &str,
        service: &'static str,
        announces: bool,
    ) -> (Stay, bool) {
        let mut state = self.0.lock();
        let Some(is_news) = state.admit(room, user, service, announces, self.0.max_members) else {
            return (Stay::unlisted(), false);
        };
        self.0.count(&state);
        let home: Arc<dyn Home> = self.0.clone();
        (Stay::new(home, room, user, announces), is_news)
    }

    /// Has members go whose lease ended, and tells their rooms.
    async fn depart(&self) {
        let order = self.0.order.lock().await;
        let departed = {
            let mut state = self.0.lock();
            let departed = state.take_due(Instant::now());
            self.0.count(&state);
            departed
        };
        let announced = departed.iter().filter(|gone| gone.member.is_announced);
        let records: Vec<_> = announced
            .flat_map(|gone| {
                let service = &gone.member.service;
                self.0
                    .announced(Kind::Leave, &gone.room, &gone.user, service)
            })
            .collect();
        let mut pipeline = self.0.topics.pipeline();
        let pushed = pipeline.push(records).await;
        drop(order);
        let stored = match pushed {
            Ok(()) => pipeline.finish().await,
            Err(error) => Err(error),
        };
        if stored.is_ok() {
            for gone in departed.iter().filter(|gone| gone.member.is_announced) {
                let service = &gone.member.service;
                self.0
                    .tell(Happening::Left, &gone.room, &gone.user, service);
            }
        }
        if let Err(error) = stored {
            tracing::warn!(%error, members = departed.len(), "members could not leave yet");
            let mut state = self.0.lock();
            state.restore(departed, Instant::now() + RETRY);
            self.0.count(&state);
        }
    }

    /// Writes the announced members anew and drops what lies before.
    async fn snapshot(&self) {
        if let Err(error) = self.write_snapshot().await {
            tracing::warn!(%error, "the members could not be written anew");
        }
    }

    async fn write_snapshot(&self) -> Result<(), Error> {
        let inner = &self.0;
        let order = inner.order.lock().await;
        let members = inner.lock().snapshot(&inner.topic);
        let mut pipeline = inner.topics.pipeline();
        let mut first: Option<Sequence> = None;
        if members.is_empty() {
            // Nobody changes anything while the order is held: what the topic has lies before the tail.
            first = Some(inner.topics.tail());
        }
        for batch in members.chunks(BATCH) {
            if !pipeline.has_room() {
                note_first(&mut first, pipeline.next().await?)?;
            }
            pipeline.push(batch.to_vec()).await?;
        }
        drop(order);
        while !pipeline.is_idle() {
            note_first(&mut first, pipeline.next().await?)?;
        }
        match first {
            Some(first) => inner.topics.trim(&inner.topic, first).await,
            None => Ok(()),
        }
    }
}

impl Inner {
    fn tell(&self, happening: Happening, room: &Topic, user: &str, service: &str) {
        super::tell(&self.events, happening, room, user, service);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, state: &State) {
        let members = i64::try_from(state.count).unwrap_or(i64::MAX);
        self.metrics.members.set(members);
    }

    /// The records by which a member comes or goes: the one place where that happens for all to see. Its own state comes
    /// first, so that nobody whose join is in the room is forgotten by a crash between the two.
    fn announced(&self, kind: Kind, room: &Topic, user: &str, service: &str) -> Vec<NewRecord> {
        let mut state = self.lock();
        state.changes += 1;
        let since = match state.member(room, user) {
            Some(member) => member.since,
            None => Timestamp::now(),
        };
        drop(state);
        tracing::debug!(?kind, "membership changed");
        let is_there = kind == Kind::Join;
        vec![
            presence_record(&self.topic, room, user, service, since, is_there),
            announcement(room, user, kind),
        ]
    }

    /// Takes back that the room was told.
    fn retract(&self, room: &Topic, user: &str) {
        if let Some(member) = self.lock().member(room, user) {
            member.is_announced = false;
        }
    }
}

impl Home for Inner {
    fn end(&self, room: &Topic, user: &str, _is_announced: bool, has_left: bool) {
        let mut state = self.lock();
        let lease = if has_left { Duration::ZERO } else { self.lease };
        let is_leased = state.end(room, user.into(), Instant::now() + lease, has_left);
        self.count(&state);
        drop(state);
        if is_leased {
            self.changed.notify_one();
        }
    }
}

/// Remembers the position of the first record of all.
fn note_first(
    first: &mut Option<Sequence>,
    outcomes: Vec<Result<Appended, Error>>,
) -> Result<(), Error> {
    for outcome in outcomes {
        let sequence = outcome?.sequence;
        first.get_or_insert(sequence);
    }
    Ok(())
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
