//! What the committer knows of topics: a bounded cache over the database, and who follows.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use super::{
    layout::TopicEntry,
    store::{Last, Store},
};
use crate::log::{Error, Follower, Record, Sequence, Timestamp, Topic};

/// Topics remembered at most, in two halves of which the older is forgotten when the younger is full. About 200 bytes each;
/// a forgotten topic costs two seeks when it is written to again.
const CACHED_TOPICS: usize = 65_536;

/// Where a topic's next record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicState {
    pub(super) id: u64,
    pub(super) first: Sequence,
    pub(super) next: Sequence,
    pub(super) last_time: Timestamp,
    /// Bytes of record values so far; see [`super::layout`].
    pub(super) end: u64,
}

impl TopicState {
    pub(super) const fn new(id: u64) -> Self {
        Self {
            id,
            first: Sequence::FIRST,
            next: Sequence::FIRST,
            last_time: Timestamp(0),
            end: 0,
        }
    }

    /// The topic's state on disk; none when nobody wrote to it.
    fn load(store: &Store, topic: &Topic) -> Result<Option<Self>, Error> {
        let Some(entry) = store.topic(topic)? else {
            return Ok(None);
        };
        let last = store.last(entry)?.unwrap_or(Last {
            sequence: Sequence(entry.first.0 - 1),
            time: Timestamp(0),
            end: 0,
        });
        Ok(Some(Self {
            id: entry.id,
            first: entry.first,
            next: last.sequence.next(),
            last_time: last.time,
            end: last.end,
        }))
    }

    pub(super) const fn entry(&self) -> TopicEntry {
        TopicEntry {
            id: self.id,
            first: self.first,
        }
    }
}

/// Topic states that are as on disk.
#[derive(Debug, Default)]
pub(super) struct Cache {
    young: HashMap<Topic, TopicState>,
    old: HashMap<Topic, TopicState>,
}

impl Cache {
    /// The state of a topic, durable; none when nobody wrote to it.
    pub(super) fn get(
        &mut self,
        store: &Store,
        topic: &Topic,
    ) -> Result<Option<TopicState>, Error> {
        if let Some(state) = self.young.get(topic) {
            return Ok(Some(*state));
        }
        let state = match self.old.remove(topic) {
            Some(state) => Some(state),
            None => TopicState::load(store, topic)?,
        };
        if let Some(state) = state {
            self.put(topic.clone(), state);
        }
        Ok(state)
    }

    /// Notes what is durable now.
    pub(super) fn put(&mut self, topic: Topic, state: TopicState) {
        if self.young.len() >= CACHED_TOPICS / 2 && !self.young.contains_key(&topic) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(topic, state);
    }

    /// Forgets everything: the database was opened anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Who follows which topic; each follower has the token that removes it.
#[derive(Default)]
pub(super) struct Followers(HashMap<Topic, Vec<Entry>>);

type Entry = (Token, Weak<dyn Follower>);

/// Tells followers of one topic apart.
pub(super) type Token = u64;

impl Followers {
    pub(super) fn has(&self, topic: &Topic) -> bool {
        !self.0.is_empty() && self.0.contains_key(topic)
    }

    /// Adds a follower and tells it where its feed begins.
    pub(super) fn add(
        &mut self,
        topic: Topic,
        token: Token,
        follower: Weak<dyn Follower>,
        tail: Sequence,
    ) {
        let Some(strong) = follower.upgrade() else {
            return;
        };
        self.0.entry(topic).or_default().push((token, follower));
        strong.records(tail, tail, &[]);
    }

    pub(super) fn remove(&mut self, topic: &Topic, token: Token) {
        self.retain(topic, |other, _| other != token);
    }

    /// Shows durable records to the topic's followers; forgets those that are gone.
    pub(super) fn show(
        &mut self,
        topic: &Topic,
        from: Sequence,
        next: Sequence,
        records: &[Arc<Record>],
    ) {
        self.retain(topic, |_, follower| {
            let strong = follower.upgrade();
            if let Some(follower) = &strong {
                follower.records(from, next, records);
            }
            strong.is_some()
        });
    }

    fn retain(&mut self, topic: &Topic, keep: impl Fn(Token, &Weak<dyn Follower>) -> bool) {
        let Some(followers) = self.0.get_mut(topic) else {
            return;
        };
        followers.retain(|(token, follower)| keep(*token, follower));
        if followers.is_empty() {
            self.0.remove(topic);
        }
    }
}
