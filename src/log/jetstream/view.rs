//! What this node has seen of the log: a position before which it knows everything, the most recent records, and who follows
//! which topic.
//!
//! ```text
//!        in JetStream only     in memory too      not seen yet
//!  ───────────────────────┬────────────────────┬───────────────▶ sequence
//!                       recent                next
//! ```
//!
//! `next` is the log's tail as far as this node goes: reads, bounds and feeds all end there, so whatever order messages reach
//! the node in, its readers see a growing prefix of the log.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch;

use super::wire::{Content, Entry};
use crate::log::{Error, Follower, Limit, Page, Record, Sequence, Timestamp, Topic};

/// Positions whose time is remembered for acknowledgements.
const TIMES: usize = 65_536;

pub(super) struct View {
    /// Held while followers are called, so that they see one topic's calls in order. Taken before `state`.
    turn: Mutex<()>,
    state: Mutex<State>,
    /// The position before which every record was shown to its topic's followers.
    shown: watch::Sender<Sequence>,
}

struct State {
    next: Sequence,
    recent: Sequence,
    topics: HashMap<Topic, VecDeque<Arc<Record>>>,
    /// Trim positions written since `recent`.
    trims: HashMap<Topic, Sequence>,
    order: VecDeque<Held>,
    bytes: usize,
    max_bytes: usize,
    times: VecDeque<(Sequence, Timestamp)>,
    followers: HashMap<Topic, Vec<Following>>,
}

/// One message held in memory, in the order of the log.
struct Held {
    sequence: Sequence,
    topic: Option<Topic>,
    bytes: usize,
}

/// One follower of a topic.
struct Following {
    token: u64,
    follower: Weak<dyn Follower>,
    /// Where its next call begins.
    next: Sequence,
}

/// What memory has for a reader.
pub(super) enum Found {
    /// Everything wanted.
    Page(Page),
    /// The reader is further behind; the log is known up to this position.
    Older(Sequence),
    /// The reader is ahead of what this node knows.
    Ahead(Sequence),
}

impl View {
    /// A view that begins at `next`.
    pub(super) fn new(next: Sequence, max_bytes: usize) -> Self {
        Self {
            turn: Mutex::default(),
            state: Mutex::new(State {
                next,
                recent: next,
                topics: HashMap::new(),
                trims: HashMap::new(),
                order: VecDeque::new(),
                bytes: 0,
                max_bytes,
                times: VecDeque::new(),
                followers: HashMap::new(),
            }),
            shown: watch::Sender::new(next),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next(&self) -> Sequence {
        self.lock().next
    }

    pub(super) fn shown(&self) -> Sequence {
        *self.shown.borrow()
    }

    pub(super) fn watch_shown(&self) -> watch::Receiver<Sequence> {
        self.shown.subscribe()
    }

    /// When the message at `sequence` was stored, if that was lately.
    pub(super) fn time(&self, sequence: Sequence) -> Option<Timestamp> {
        let state = self.lock();
        let index = state.times.partition_point(|(at, _)| *at < sequence);
        let (at, time) = state.times.get(index)?;
        (*at == sequence).then_some(*time)
    }

    /// Takes in `entries`, which are all there is up to `next`, and shows them to followers.
    pub(super) fn advance(&self, entries: Vec<Entry>, next: Sequence) {
        let _turn = self.turn();
        let mut state = self.lock();
        if next <= state.next {
            return;
        }
        let mut news = BTreeMap::<Topic, Vec<Arc<Record>>>::new();
        for entry in entries {
            if entry.sequence >= state.next {
                state.hold(entry, &mut news);
            }
        }
        state.next = next;
        state.evict();
        let calls = state.calls(&news);
        drop(state);
        for (follower, from, topic_next, records) in calls {
            follower.records(from, topic_next, &records);
        }
        self.shown.send_replace(next);
    }

    /// Goes on at `next` without what lies between; every follower is told that it missed something.
    pub(super) fn jump(&self, next: Sequence) {
        let _turn = self.turn();
        let mut state = self.lock();
        if next <= state.next {
            return;
        }
        state.next = next;
        state.forget_all();
        let followers = state.followers.values_mut().flatten();
        let told: Vec<_> = followers
            .filter_map(|following| {
                following.next = next;
                following.follower.upgrade()
            })
            .collect();
        drop(state);
        for follower in told {
            follower.records(next, next, &[]);
        }
        self.shown.send_replace(next);
    }

    /// Adds a follower and tells it where its feed begins.
    pub(super) fn follow(&self, topic: &Topic, token: u64, follower: Weak<dyn Follower>) {
        let _turn = self.turn();
        let mut state = self.lock();
        let next = state.next;
        let begun = follower.upgrade();
        let of_topic = state.followers.entry(topic.clone()).or_default();
        of_topic.push(Following {
            token,
            follower,
            next,
        });
        drop(state);
        if let Some(follower) = begun {
            follower.records(next, next, &[]);
        }
    }

    pub(super) fn unfollow(&self, topic: &Topic, token: u64) {
        let mut state = self.lock();
        if let Some(of_topic) = state.followers.get_mut(topic) {
            of_topic.retain(|following| following.token != token);
            if of_topic.is_empty() {
                state.followers.remove(topic);
            }
        }
    }

    /// Reads from memory, where it holds everything from `from` on.
    pub(super) fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Found, Error> {
        let state = self.lock();
        let tail = state.next;
        if from > tail {
            return Ok(Found::Ahead(tail));
        }
        if from.max(Sequence::FIRST) < state.recent {
            return Ok(Found::Older(tail));
        }
        let first = state.trims.get(topic).copied().unwrap_or_default();
        let start = crate::log::start_of_read(from, first, tail)?;
        let mut page = Page {
            records: Vec::new(),
            next: tail,
            tail,
        };
        let Some(records) = state.topics.get(topic) else {
            return Ok(Found::Page(page));
        };
        let skip = records.partition_point(|record| record.sequence < start);
        let mut bytes = 0;
        for record in records.iter().skip(skip) {
            bytes += record.payload.len();
            page.records.push(record.clone());
            if page.records.len() >= limit.records || bytes >= limit.bytes {
                page.next = record.sequence.next();
                break;
            }
        }
        Ok(Found::Page(page))
    }

    /// The topic's last record before `before` in memory, and where memory begins.
    pub(super) fn last_before(
        &self,
        topic: &Topic,
        before: Sequence,
    ) -> (Option<Sequence>, Sequence) {
        let state = self.lock();
        let found = state.topics.get(topic).and_then(|records| {
            let index = records.partition_point(|record| record.sequence < before);
            records.get(index.checked_sub(1)?)
        });
        (found.map(|record| record.sequence), state.recent)
    }
}

/// One call of a follower: itself, from, next, records.
type Call = (Arc<dyn Follower>, Sequence, Sequence, Vec<Arc<Record>>);

impl State {
    fn hold(&mut self, entry: Entry, news: &mut BTreeMap<Topic, Vec<Arc<Record>>>) {
        let Entry {
            sequence,
            time,
            content,
            ..
        } = entry;
        self.times.push_back((sequence, time));
        if self.times.len() > TIMES {
            self.times.pop_front();
        }
        let mut held = Held {
            sequence,
            topic: None,
            bytes: 64,
        };
        match content {
            Content::Record(topic, record) => {
                held.bytes += record.size();
                held.topic = Some(topic.clone());
                let of_topic = self.topics.entry(topic.clone()).or_default();
                of_topic.push_back(record.clone());
                news.entry(topic).or_default().push(record);
            }
            Content::Trim(topic, first) => {
                if let Some(records) = self.topics.get_mut(&topic) {
                    let dropped = records.partition_point(|record| record.sequence < first);
                    records.drain(..dropped);
                }
                held.topic = Some(topic.clone());
                let trim = self.trims.entry(topic).or_default();
                *trim = first.max(*trim);
            }
            // A reader of the stream gets an error there.
            Content::Broken(what) => tracing::error!(what, "the log does not read back"),
        }
        self.bytes += held.bytes;
        self.order.push_back(held);
    }

    /// Forgets the oldest while there is too much.
    fn evict(&mut self) {
        while self.bytes > self.max_bytes
            && let Some(held) = self.order.pop_front()
        {
            self.bytes -= held.bytes;
            self.recent = held.sequence.next();
            if let Some(topic) = held.topic {
                self.forget(&topic);
            }
        }
        if self.order.is_empty() {
            self.recent = self.next;
        }
    }

    /// Forgets what of `topic` lies before `recent`.
    fn forget(&mut self, topic: &Topic) {
        let recent = self.recent;
        if let Some(records) = self.topics.get_mut(topic) {
            while records
                .front()
                .is_some_and(|record| record.sequence < recent)
            {
                records.pop_front();
            }
            if records.is_empty() {
                self.topics.remove(topic);
            }
        }
        if self.trims.get(topic).is_some_and(|first| *first <= recent) {
            // Whoever reads from `recent` on reads nothing that it dropped.
            self.trims.remove(topic);
        }
    }

    fn forget_all(&mut self) {
        self.topics.clear();
        self.trims.clear();
        self.order.clear();
        self.bytes = 0;
        self.recent = self.next;
    }

    /// Whom to call with what; each is noted to have seen it.
    fn calls(&mut self, news: &BTreeMap<Topic, Vec<Arc<Record>>>) -> Vec<Call> {
        let mut calls = Vec::new();
        for (topic, records) in news {
            let (Some(of_topic), Some(last)) = (self.followers.get_mut(topic), records.last())
            else {
                continue;
            };
            of_topic.retain(|following| following.follower.strong_count() > 0);
            for following in of_topic {
                let next = last.sequence.next();
                let from = std::mem::replace(&mut following.next, next);
                if let Some(follower) = following.follower.upgrade() {
                    calls.push((follower, from, next, records.clone()));
                }
            }
        }
        calls
    }
}
