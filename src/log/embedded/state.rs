//! What the committer knows of topics: a bounded cache over the database, and who follows.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use super::{layout::TopicEntry, store::Store};
use crate::log::{Error, Follower, Record, Sequence, Timestamp, Topic};

/// Topics remembered at most, in two halves of which the older is forgotten when the younger is full. About 200 bytes each;
/// a forgotten topic costs two seeks when it is written to again.
const CACHED_TOPICS: usize = 65_536;

/// Where a topic's next record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicState {
    pub(super) id: u64,
    pub(super) first: Sequence,
    pub(super) last_time: Timestamp,
    /// Bytes of record values so far; see [`super::layout`].
    pub(super) end: u64,
}

impl TopicState {
    pub(super) const fn new(id: u64) -> Self {
        Self {
            id,
            first: Sequence::FIRST,
            last_time: Timestamp(0),
            end: 0,
        }
    }

    /// The topic's state on disk; none when nobody wrote to it.
    fn load(store: &Store, topic: &Topic) -> Result<Option<Self>, Error> {
        let Some(entry) = store.topic(topic)? else {
            return Ok(None);
        };
        let last = store.last(entry)?;
        Ok(Some(Self {
            id: entry.id,
            first: entry.first,
            last_time: last.map_or(Timestamp(0), |last| last.time),
            end: last.map_or(0, |last| last.end),
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

/// Who follows which topic.
#[derive(Default)]
pub(super) struct Followers(HashMap<Topic, Vec<Following>>);

/// One follower of a topic.
struct Following {
    /// What removes it.
    token: Token,
    follower: Weak<dyn Follower>,
    /// Where its next call begins.
    next: Sequence,
}

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
        let next = tail;
        self.0.entry(topic).or_default().push(Following {
            token,
            follower,
            next,
        });
        strong.records(tail, tail, &[]);
    }

    pub(super) fn remove(&mut self, topic: &Topic, token: Token) {
        self.retain(topic, |following| following.token != token);
    }

    /// Shows durable records to the topic's followers; forgets those that are gone.
    pub(super) fn show(&mut self, topic: &Topic, next: Sequence, records: &[Arc<Record>]) {
        self.retain(topic, |following| following.show(next, records));
    }

    /// Tells every follower that its feed goes on at `tail`, and that what lies before it has to be read.
    pub(super) fn skip_to(&mut self, tail: Sequence) {
        for following in self.0.values_mut().flatten() {
            following.next = tail;
            following.show(tail, &[]);
        }
    }

    fn retain(&mut self, topic: &Topic, keep: impl FnMut(&mut Following) -> bool) {
        let Some(followers) = self.0.get_mut(topic) else {
            return;
        };
        followers.retain_mut(keep);
        if followers.is_empty() {
            self.0.remove(topic);
        }
    }
}

impl Following {
    /// Shows records to the follower; false when it is gone.
    fn show(&mut self, next: Sequence, records: &[Arc<Record>]) -> bool {
        let Some(follower) = self.follower.upgrade() else {
            return false;
        };
        follower.records(self.next, next, records);
        self.next = next;
        true
    }
}
