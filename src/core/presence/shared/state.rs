//! What an instance knows: the registry as it was last seen, its own streams and leases, and what it has to look at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::entry::{Entry, Looker, Step, Wish, plan};
use crate::{
    core::presence::Seen,
    log::{Timestamp, Topic},
    registry::{Change, Key, Member, Revision},
};

pub(super) struct State {
    me: Box<str>,
    max_members: usize,
    lease: Duration,
    /// The members as the registry has them.
    rooms: HashMap<Topic, BTreeMap<Box<str>, Known>>,
    count: usize,
    /// The instances that run.
    instances: BTreeSet<Box<str>>,
    /// Grows with each watch that begins.
    watch: u64,
    /// From when on an instance without a key counts as gone; none while the registry is away.
    settled: Option<Instant>,
    /// Where this instance has streams or leases.
    own: HashMap<Member, Own>,
    leases: BTreeMap<LeaseKey, Member>,
    last_lease: u64,
    /// Members to look at: at most those of `own` and `rooms`.
    waiting: BTreeSet<Member>,
}

/// When a lease ends, and a number that tells leases of one instant apart.
type LeaseKey = (Instant, u64);

struct Known {
    entry: Entry,
    revision: Revision,
    /// The watch that told of it last.
    watch: u64,
}

struct Own {
    service: &'static str,
    streams: usize,
    /// Of these, those that announce the member.
    announcing: usize,
    /// Set while it has no stream.
    lease: Option<LeaseKey>,
}

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing.
    Nothing,
    /// There is something to do.
    Waiting,
    /// The registry took this instance for gone.
    Forgotten,
}

impl State {
    pub(super) fn new(me: &str, max_members: usize, lease: Duration) -> Self {
        Self {
            me: me.into(),
            max_members,
            lease,
            rooms: HashMap::new(),
            count: 0,
            instances: BTreeSet::new(),
            watch: 0,
            settled: None,
            own: HashMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            waiting: BTreeSet::new(),
        }
    }

    /// How many members there are, in all rooms.
    pub(super) const fn total(&self) -> usize {
        self.count
    }

    pub(super) fn members(&self, room: &Topic) -> Vec<Seen> {
        let members = self.rooms.get(room).into_iter().flatten();
        members
            .filter(|(_, known)| known.entry.is_there())
            .map(|(user, known)| Seen {
                user: user.clone(),
                since: Timestamp(known.entry.since),
                service: String::from(known.entry.service.clone()).into(),
            })
            .collect()
    }

    pub(super) fn count(&self, room: &Topic) -> usize {
        let members = self.rooms.get(room);
        members.map_or(0, |members| {
            members
                .values()
                .filter(|known| known.entry.is_there())
                .count()
        })
    }

    /// A stream of a member begins; false when there is no place for another member.
    pub(super) fn admit(
        &mut self,
        member: &Member,
        service: &'static str,
        announces: bool,
    ) -> bool {
        let is_full = self.count.max(self.own.len()) >= self.max_members;
        if is_full && !self.own.contains_key(member) && self.known(member).is_none() {
            return false;
        }
        let own = self.own.entry(member.clone()).or_insert(Own {
            service,
            streams: 0,
            announcing: 0,
            lease: None,
        });
        own.streams += 1;
        own.announcing += usize::from(announces);
        if let Some(lease) = own.lease.take() {
            self.leases.remove(&lease);
        }
        true
    }

    /// A stream of a member ended.
    pub(super) fn end(&mut self, member: &Member, is_announced: bool, has_left: bool) {
        let Some(own) = self.own.get_mut(member) else {
            return;
        };
        own.streams = own.streams.saturating_sub(1);
        own.announcing = own.announcing.saturating_sub(usize::from(is_announced));
        if own.streams > 0 {
            return;
        }
        if has_left {
            self.own.remove(member);
        } else {
            self.last_lease += 1;
            let lease = (Instant::now() + self.lease, self.last_lease);
            own.lease = Some(lease);
            self.leases.insert(lease, member.clone());
        }
        self.waiting.insert(member.clone());
    }

    /// When the next lease ends. None ends while the registry is away, nor before others had the time to come back to it.
    pub(super) fn next_lease(&self) -> Option<Instant> {
        let (lease, _) = self.leases.first_key_value()?;
        Some(lease.0.max(self.settled?))
    }

    /// Has the members go whose lease ended.
    pub(super) fn end_leases(&mut self) {
        let now = Instant::now();
        while self.next_lease().is_some_and(|end| end <= now)
            && let Some((_, member)) = self.leases.pop_first()
        {
            self.own.remove(&member);
            self.waiting.insert(member);
        }
    }

    pub(super) fn look_at(&mut self, member: Member) {
        self.waiting.insert(member);
    }

    pub(super) fn next_waiting(&mut self) -> Option<Member> {
        self.waiting.pop_first()
    }

    /// The registry was away, or is looked at anew: nobody is known to be gone.
    pub(super) fn begin_watch(&mut self) {
        self.watch += 1;
        self.settled = None;
        self.instances.clear();
    }

    /// The watch has told of everything up to `revision`. Members it did not tell of are gone.
    pub(super) fn complete_watch(&mut self, revision: Revision, settled: Instant) {
        let watch = self.watch;
        let is_old = |known: &Known| known.watch < watch && known.revision <= revision;
        let gone: Vec<_> = self
            .all()
            .filter(|(.., known)| is_old(known))
            .map(|(room, user, known)| (member(room, user), known.revision))
            .collect();
        for (member, revision) in gone {
            self.put(&member, None, revision);
        }
        self.settled = Some(settled);
        self.look_at_all();
    }

    /// From when on others count as gone.
    pub(super) const fn settled(&self) -> Option<Instant> {
        self.settled
    }

    /// Takes in a change that the watch tells of.
    pub(super) fn change(&mut self, change: Change) -> News {
        match change.key {
            Key::Instance(instance) => match change.value {
                Some(_) => {
                    self.instances.insert(instance);
                    News::Nothing
                }
                None if instance == self.me => News::Forgotten,
                None => {
                    self.instances.remove(&instance);
                    match self.is_settled() {
                        true => self.look_at_all(),
                        false => News::Nothing,
                    }
                }
            },
            Key::Member(member) => {
                self.learn(&member, change.value.as_ref(), change.revision);
                self.look(&member)
            }
        }
    }

    /// Takes in what a member's key is known to be.
    pub(super) fn learn(&mut self, member: &Member, value: Option<&Bytes>, revision: Revision) {
        let entry = value.and_then(|value| decode(member, value));
        self.put(member, entry, revision);
    }

    /// Looks at every member: some may need this instance.
    pub(super) fn look_at_all(&mut self) -> News {
        let mut members: BTreeSet<_> = self.own.keys().cloned().collect();
        members.extend(self.all().map(|(room, user, _)| member(room, user)));
        let news = members.iter().map(|member| self.look(member));
        match news.filter(|news| *news == News::Waiting).count() {
            0 => News::Nothing,
            _ => News::Waiting,
        }
    }

    fn look(&mut self, member: &Member) -> News {
        let (entry, _) = self.newest(member);
        if self.step(member, entry.as_ref()) == Step::Done {
            return News::Nothing;
        }
        self.waiting.insert(member.clone());
        News::Waiting
    }

    /// What the registry has of a member as far as is known, and since when.
    pub(super) fn newest(&self, member: &Member) -> (Option<Entry>, Revision) {
        match self.known(member) {
            Some(known) => (Some(known.entry.clone()), known.revision),
            None => (None, Revision::default()),
        }
    }

    /// What to do about a member of which the registry has `entry`.
    pub(super) fn step(&self, member: &Member, entry: Option<&Entry>) -> Step {
        let wish = match self.own.get(member) {
            None => Wish::Nothing,
            Some(own) if own.streams == 0 => Wish::Keep,
            Some(own) => Wish::Hold {
                announces: own.announcing > 0,
                service: own.service,
            },
        };
        let is_settled = self.is_settled();
        let looker = Looker {
            me: &self.me,
            is_live: &|instance| !is_settled || self.instances.contains(instance),
            // The eldest; who takes over does so when the eldest's own key is gone.
            sweeps: is_settled
                && self
                    .instances
                    .first()
                    .is_some_and(|first| *first == self.me),
        };
        plan(entry, wish, &looker)
    }

    fn is_settled(&self) -> bool {
        self.settled.is_some_and(|at| at <= Instant::now())
    }

    fn known(&self, member: &Member) -> Option<&Known> {
        self.rooms.get(&member.room)?.get(&member.user)
    }

    fn all(&self) -> impl Iterator<Item = (&Topic, &str, &Known)> {
        self.rooms.iter().flat_map(|(room, members)| {
            let all = members.iter();
            all.map(move |(user, known)| (room, &**user, known))
        })
    }

    /// Notes a member's newest state, unless a newer one is known.
    fn put(&mut self, member: &Member, entry: Option<Entry>, revision: Revision) {
        let watch = self.watch;
        let members = self.rooms.entry(member.room.clone()).or_default();
        let before = members.len();
        match (members.get_mut(&member.user), entry) {
            (Some(known), _) if known.revision > revision => known.watch = watch,
            (_, Some(entry)) => {
                let known = Known {
                    entry,
                    revision,
                    watch,
                };
                members.insert(member.user.clone(), known);
            }
            (_, None) => drop(members.remove(&member.user)),
        }
        self.count = self.count + members.len() - before;
        if members.is_empty() {
            self.rooms.remove(&member.room);
        }
    }
}

fn member(room: &Topic, user: &str) -> Member {
    Member {
        room: room.clone(),
        user: user.into(),
    }
}

/// A value that does not read back counts as none; the next change replaces it.
fn decode(member: &Member, value: &Bytes) -> Option<Entry> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::warn!(%error, room = member.room.name(), "a member's entry"))
        .ok()
}
