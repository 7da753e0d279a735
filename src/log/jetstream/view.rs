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
use crate::log::{
    Error, Follow, Follower, Limit, Page, Record, Sequence, Timestamp, Topic,
    followers::{Followers, Table},
};

/// Positions whose time is remembered for acknowledgements.
const TIMES: usize = 65_536;

pub(super) struct View {
    /// Locked before `state`, while the view advances and shows what is new.
    followers: Followers,
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
}

/// One message held in memory, in the order of the log.
struct Held {
    sequence: Sequence,
    topic: Option<Topic>,
    bytes: usize,
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
            followers: Followers::default(),
            state: Mutex::new(State {
                next,
                recent: next,
                topics: HashMap::new(),
                trims: HashMap::new(),
                order: VecDeque::new(),
                bytes: 0,
                max_bytes,
                times: VecDeque::new(),
            }),
            shown: watch::Sender::new(next),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut followers = self.followers.lock();
        let mut state = self.lock();
        if next <= state.next {
            return;
        }
        let mut news = News::new();
        for entry in entries {
            if entry.sequence >= state.next {
                state.hold(entry, &mut news, &followers);
            }
        }
        state.next = next;
        state.evict();
        drop(state);
        for (topic, records) in news {
            if let Some(last) = records.last() {
                followers.show(&topic, last.sequence.next(), &records);
            }
        }
        self.shown.send_replace(next);
    }

    /// Goes on at `next` without what lies between; every follower is told that it missed something.
    pub(super) fn jump(&self, next: Sequence) {
        let mut followers = self.followers.lock();
        let mut state = self.lock();
        if next <= state.next {
            return;
        }
        state.next = next;
        state.forget_all();
        drop(state);
        followers.skip_to(next);
        self.shown.send_replace(next);
    }

    /// Adds a follower and tells it where its feed begins.
    ///
    /// # Errors
    /// None of its own.
    pub(super) fn follow(
        &self,
        topic: &Topic,
        follower: Weak<dyn Follower>,
    ) -> Result<Follow, Error> {
        let tail = || Ok(self.next());
        self.followers.follow(topic, follower, tail)
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

    /// The topic's newest records before `before` in memory, up to `limit`, and where memory begins.
    pub(super) fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> (Vec<Arc<Record>>, Sequence) {
        let state = self.lock();
        let newest = state.topics.get(topic).map(|records| {
            let end = records.partition_point(|record| record.sequence < before);
            crate::log::newest_of(records.range(..end), limit)
        });
        (newest.unwrap_or_default(), state.recent)
    }
}

/// New records of topics that are followed.
type News = BTreeMap<Topic, Vec<Arc<Record>>>;

impl State {
    fn hold(&mut self, entry: Entry, news: &mut News, followers: &Table) {
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
                if followers.has(&topic) {
                    news.entry(topic).or_default().push(record);
                }
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
}
