//! The table of members, and its records in the presence topic.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{BATCH, SNAPSHOT_CHANGES};
use crate::log::{EventTime, NewRecord, Record, Space, Timestamp, Topic};

/// A member's record says that it went. The numbers are stored: never change one.
const WENT: u16 = 0;
/// A member's record says that it is there.
const IS_THERE: u16 = 1;

#[derive(Default)]
pub(super) struct State {
    pub(super) rooms: HashMap<Topic, BTreeMap<Box<str>, Member>>,
    pub(super) count: usize,
    leases: BTreeMap<LeaseKey, (Topic, Box<str>)>,
    last: u64,
    /// Records in the presence topic, roughly.
    pub(super) changes: usize,
}

/// When a lease ends, and a number that tells leases of one instant apart.
type LeaseKey = (Instant, u64);

pub(super) struct Member {
    pub(super) since: Timestamp,
    pub(super) service: Cow<'static, str>,
    streams: usize,
    /// The room was told that it came, and will be told that it went.
    pub(super) is_announced: bool,
    /// Set while it has no stream.
    lease: Option<LeaseKey>,
}

/// A member that went, with all that is needed to bring it back.
pub(super) struct Departed {
    pub(super) room: Topic,
    pub(super) user: Box<str>,
    pub(super) member: Member,
}

impl State {
    pub(super) fn member(&mut self, room: &Topic, user: &str) -> Option<&mut Member> {
        self.rooms.get_mut(room)?.get_mut(user)
    }

    /// Whether the room has to be told; `None` when there is no place for another member.
    pub(super) fn admit(
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
    pub(super) fn end(
        &mut self,
        room: &Topic,
        user: Box<str>,
        due: Instant,
        has_left: bool,
    ) -> bool {
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

    pub(super) fn lease_all(&mut self, due: Instant) {
        let all: Vec<_> = self
            .rooms
            .iter()
            .flat_map(|(room, members)| members.keys().map(|user| (room.clone(), user.clone())))
            .collect();
        for (room, user) in all {
            self.lease(room, user, due);
        }
    }

    pub(super) fn next_lease(&self) -> Option<Instant> {
        self.leases.first_key_value().map(|(key, _)| key.0)
    }

    /// Takes members out whose lease ended, at most a batch of them.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Departed> {
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
    pub(super) fn restore(&mut self, departed: Vec<Departed>, due: Instant) {
        for Departed { room, user, member } in departed {
            if self.member(&room, &user).is_none() {
                self.insert(room.clone(), user.clone(), member);
                self.lease(room, user, due);
            }
        }
    }

    /// Applies one stored change.
    pub(super) fn replay(&mut self, record: &Record, max_members: usize) {
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
    pub(super) fn is_long(&self) -> bool {
        self.changes > SNAPSHOT_CHANGES.max(2 * self.count)
    }

    /// A record of every announced member; the topic's length is counted from here.
    pub(super) fn snapshot(&mut self, topic: &Topic) -> Vec<NewRecord> {
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
pub(super) fn presence_record(
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
