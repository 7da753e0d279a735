//! Who is in which room: members by leases.
//!
//! A member is a user with at least one stream in a room. When its last stream was closed by the client it goes at once.
//! When the stream broke or the server ended it, a lease keeps the member for a while: whoever comes back within it never
//! left, so neither a leave nor a join is posted.
//!
//! Members whose coming was posted are also kept in the log ([`Space::Presence`]), so that after a restart they hold a lease
//! from the start: one that comes back has not left, one that does not gets its leave. Members that came silently are
//! known by their streams alone.
//!
//! Bounds: `presence.max_members` members, whoever comes beyond it is not listed; the presence topic is written anew and
//! trimmed every `SNAPSHOT_CHANGES` changes or twice its members, whichever is more, and every `SNAPSHOT_AGE`.

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    Error, Topics,
    appender::Appended,
    feeds::{Happening, own},
    rooms::{Kind, announcement},
};
use crate::{
    config,
    log::{EventTime, Limit, NewRecord, Record, Sequence, Space, Timestamp, Topic, TopicError},
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

/// A member's record says that it went. The numbers are stored: never change one.
const WENT: u16 = 0;
/// A member's record says that it is there.
const IS_THERE: u16 = 1;

/// All members of all rooms. Cheap to clone.
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

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

#[derive(Default)]
struct State {
    rooms: HashMap<Topic, BTreeMap<Box<str>, Member>>,
    count: usize,
    leases: BTreeMap<LeaseKey, (Topic, Box<str>)>,
    last: u64,
    /// Records in the presence topic, roughly.
    changes: usize,
}

/// When a lease ends, and a number that tells leases of one instant apart.
type LeaseKey = (Instant, u64);

struct Member {
    since: Timestamp,
    service: Cow<'static, str>,
    streams: usize,
    /// The room was told that it came, and will be told that it went.
    is_announced: bool,
    /// Set while it has no stream.
    lease: Option<LeaseKey>,
}

/// A member that went, with all that is needed to bring it back.
struct Departed {
    room: Topic,
    user: Box<str>,
    member: Member,
}

/// A member as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The user.
    pub user: Box<str>,
    /// Since when it is there without a break.
    pub since: Timestamp,
    /// The service through which it came first.
    pub service: Cow<'static, str>,
}

/// What entering a room brought.
pub struct Entered {
    /// Keeps the user in the room.
    pub stay: Stay,
    /// The message that tells the room, if it had to be told.
    pub joined: Option<Appended>,
}

/// Keeps a user in a room. Dropping it begins the lease; [`Stay::leave`] ends it at once.
#[must_use]
pub struct Stay {
    /// None when the user is not listed.
    place: Option<(Presence, Topic, Box<str>)>,
}

impl Stay {
    /// The user left: no lease.
    pub fn leave(mut self) {
        self.end(true);
    }

    fn end(&mut self, has_left: bool) {
        if let Some((presence, room, user)) = self.place.take() {
            presence.0.end(&room, user, has_left);
        }
    }

    /// Takes back that the room was told.
    fn retract(self) {
        if let Some((presence, room, user)) = &self.place
            && let Some(member) = presence.0.lock().member(room, user)
        {
            member.is_announced = false;
        }
        self.leave();
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl Presence {
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
                stay.retract();
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
            return (Stay { place: None }, false);
        };
        self.0.count(&state);
        let place = Some((self.clone(), room.clone(), user.into()));
        (Stay { place }, is_news)
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
            first = Some(inner.topics.bounds(&inner.topic).await?.tail);
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
    /// Tells the topic `events`.
    fn tell(&self, happening: Happening, room: &Topic, user: &str, service: &str) {
        let labels = [("room", room.name()), ("user", user), ("service", service)];
        self.events.event(happening, &labels);
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

    /// A stream of a member ended.
    fn end(&self, room: &Topic, user: Box<str>, has_left: bool) {
        let mut state = self.lock();
        let lease = if has_left { Duration::ZERO } else { self.lease };
        let is_leased = state.end(room, user, Instant::now() + lease, has_left);
        self.count(&state);
        drop(state);
        if is_leased {
            self.changed.notify_one();
        }
    }
}

impl State {
    fn member(&mut self, room: &Topic, user: &str) -> Option<&mut Member> {
        self.rooms.get_mut(room)?.get_mut(user)
    }

    /// Whether the room has to be told; `None` when there is no place for another member.
    fn admit(
        &mut self,
        room: &Topic,
        user: &str,
        service: &'static str,
        announces: bool,
        max_members: usize,
    ) -> Option<bool> {
        if self.member(room, user).is_none() {
            if self.count >= max_members {
                return None;
            }
            self.insert(
                room.clone(),
                user.into(),
                Member {
                    since: Timestamp::now(),
                    service: Cow::Borrowed(service),
                    streams: 0,
                    is_announced: false,
                    lease: None,
                },
            );
        }
        let member = self.member(room, user)?;
        member.streams += 1;
        let is_news = announces && !member.is_announced;
        member.is_announced |= announces;
        if let Some(lease) = member.lease.take() {
            self.leases.remove(&lease);
        }
        Some(is_news)
    }

    fn insert(&mut self, room: Topic, user: Box<str>, member: Member) {
        let members = self.rooms.entry(room).or_default();
        if members.insert(user, member).is_none() {
            self.count += 1;
        }
    }

    fn remove(&mut self, room: &Topic, user: &str) -> Option<Member> {
        let members = self.rooms.get_mut(room)?;
        let member = members.remove(user)?;
        if members.is_empty() {
            self.rooms.remove(room);
        }
        self.count -= 1;
        if let Some(lease) = member.lease {
            self.leases.remove(&lease);
        }
        Some(member)
    }

    /// Returns whether a lease began.
    fn end(&mut self, room: &Topic, user: Box<str>, due: Instant, has_left: bool) -> bool {
        let Some(member) = self.member(room, &user) else {
            return false;
        };
        member.streams = member.streams.saturating_sub(1);
        if member.streams > 0 {
            return false;
        }
        if has_left && !member.is_announced {
            self.remove(room, &user);
            return false;
        }
        self.lease(room.clone(), user, due);
        true
    }

    fn lease(&mut self, room: Topic, user: Box<str>, due: Instant) {
        self.last += 1;
        let key = (due, self.last);
        if let Some(member) = self.member(&room, &user) {
            member.lease = Some(key);
            self.leases.insert(key, (room, user));
        }
    }

    fn lease_all(&mut self, due: Instant) {
        let all: Vec<_> = self
            .rooms
            .iter()
            .flat_map(|(room, members)| members.keys().map(|user| (room.clone(), user.clone())))
            .collect();
        for (room, user) in all {
            self.lease(room, user, due);
        }
    }

    fn next_lease(&self) -> Option<Instant> {
        self.leases.first_key_value().map(|(key, _)| key.0)
    }

    /// Takes members out whose lease ended, at most a batch of them.
    fn take_due(&mut self, now: Instant) -> Vec<Departed> {
        let mut departed = Vec::new();
        while departed.len() < BATCH
            && let Some(lease) = self.leases.first_entry()
            && lease.key().0 <= now
        {
            let (room, user) = lease.remove();
            if let Some(member) = self.remove(&room, &user) {
                departed.push(Departed { room, user, member });
            }
        }
        departed
    }

    /// Brings members back who did not come back themselves.
    fn restore(&mut self, departed: Vec<Departed>, due: Instant) {
        for Departed { room, user, member } in departed {
            if self.member(&room, &user).is_none() {
                self.insert(room.clone(), user.clone(), member);
                self.lease(room, user, due);
            }
        }
    }

    /// Applies one stored change.
    fn replay(&mut self, record: &Record, max_members: usize) {
        self.changes += 1;
        let Ok(room) = Topic::new(Space::Room, &record.id) else {
            return;
        };
        if record.kind == WENT {
            self.remove(&room, &record.publisher);
        } else if self.count < max_members {
            let service = String::from_utf8_lossy(&record.payload).into_owned();
            self.insert(
                room,
                record.publisher.clone(),
                Member {
                    since: since(record.shown_time()),
                    service: Cow::Owned(service),
                    streams: 0,
                    is_announced: true,
                    lease: None,
                },
            );
        }
    }

    /// Whether the presence topic has far more records than members.
    fn is_long(&self) -> bool {
        self.changes > SNAPSHOT_CHANGES.max(2 * self.count)
    }

    /// A record of every announced member; the topic's length is counted from here.
    fn snapshot(&mut self, topic: &Topic) -> Vec<NewRecord> {
        let mut records = Vec::new();
        for (room, members) in &self.rooms {
            for (user, member) in members.iter().filter(|(_, member)| member.is_announced) {
                let (service, since) = (&member.service, member.since);
                records.push(presence_record(topic, room, user, service, since, true));
            }
        }
        self.changes = records.len();
        records
    }
}

/// A member's state as a record: the room's name is its id, since when is its time, through which service its content.
fn presence_record(
    topic: &Topic,
    room: &Topic,
    user: &str,
    service: &str,
    since: Timestamp,
    is_there: bool,
) -> NewRecord {
    NewRecord {
        topic: topic.clone(),
        publisher: user.into(),
        id: room.name().into(),
        kind: if is_there { IS_THERE } else { WENT },
        event_time: Some(since.into()),
        key: None,
        trace: None,
        payload: Bytes::copy_from_slice(service.as_bytes()),
    }
}

fn since(time: EventTime) -> Timestamp {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let nanos = u64::try_from(time.nanos).unwrap_or(0);
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
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
