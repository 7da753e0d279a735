//! The table of followers, shared by the engines.
//!
//! ```text
//!  engine: lock ─▶ advance the readable tail ─▶ show each topic's new records ─▶ unlock
//!  follow: lock ─▶ ask for the tail ─▶ add, tell the follower where its feed begins ─▶ unlock
//! ```
//!
//! Both sides hold the lock for all of their steps, so a feed begins exactly at the tail: no record before the feed's start is
//! missing from reads, and none after it is missing from the feed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{Error, Follow, Follower, Record, Sequence, Topic};

/// The followers of an engine. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Followers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// Feeds that were dropped and are still in the table. A follower may be dropped while it is called, and with it the
    /// [`Follow`] it holds, so the end of a feed must not wait for the table.
    ended: Mutex<Vec<(Topic, Token)>>,
}

impl Followers {
    /// The table, for showing records. Followers are called while the lock is held, in order and never two at a time.
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        let mut table = lock(&self.0.table);
        self.0.remove_ended(&mut table);
        table
    }

    /// Adds a follower of `topic`, tells it where its feed begins and returns what ends the feed when dropped. The feed
    /// begins at `tail`, which is asked while the table is locked.
    ///
    /// # Errors
    /// The error of `tail`; the follower is not added then.
    pub(super) fn follow(
        &self,
        topic: &Topic,
        follower: Weak<dyn Follower>,
        tail: impl FnOnce() -> Result<Sequence, Error>,
    ) -> Result<Follow, Error> {
        let mut table = self.lock();
        let tail = tail()?;
        let token = table.add(topic.clone(), follower, tail);
        drop(table);
        let inner = Arc::downgrade(&self.0);
        let topic = topic.clone();
        Ok(Follow::new(move || {
            if let Some(inner) = inner.upgrade() {
                inner.end(topic, token);
            }
        }))
    }
}

impl Inner {
    fn end(&self, topic: Topic, token: Token) {
        lock(&self.ended).push((topic, token));
        // While the table is locked elsewhere, the entry stays until the next lock, which removes it before it shows anything.
        if let Ok(mut table) = self.table.try_lock() {
            self.remove_ended(&mut table);
        }
    }

    fn remove_ended(&self, table: &mut Table) {
        let ended = std::mem::take(&mut *lock(&self.ended));
        for (topic, token) in ended {
            table.remove(&topic, token);
        }
    }
}

/// Followers by topic.
#[derive(Default)]
pub(super) struct Table {
    topics: HashMap<Topic, Vec<Entry>>,
    last_token: u64,
}

/// One follower of a topic.
struct Entry {
    token: Token,
    follower: Weak<dyn Follower>,
    /// The start of its next call.
    next: Sequence,
}

/// Tells the followers of one topic apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Table {
    /// Whether the topic has followers, so that its records have to be shown.
    pub(super) fn has(&self, topic: &Topic) -> bool {
        !self.topics.is_empty() && self.topics.contains_key(topic)
    }

    /// Adds a follower and tells it that its feed begins at `tail`.
    pub(super) fn add(
        &mut self,
        topic: Topic,
        follower: Weak<dyn Follower>,
        tail: Sequence,
    ) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        let begun = follower.upgrade();
        self.topics.entry(topic).or_default().push(Entry {
            token,
            follower,
            next: tail,
        });
        if let Some(follower) = begun {
            follower.records(tail, tail, &[]);
        }
        token
    }

    /// Shows `records`, which are all of the topic's new ones before `next`, to each of its followers.
    pub(super) fn show(&mut self, topic: &Topic, next: Sequence, records: &[Arc<Record>]) {
        let Some(entries) = self.topics.get_mut(topic) else {
            return;
        };
        entries.retain_mut(|entry| {
            let from = std::mem::replace(&mut entry.next, next);
            let follower = entry.follower.upgrade();
            if let Some(follower) = &follower {
                follower.records(from, next, records);
            }
            follower.is_some()
        });
        if entries.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// Tells every follower that its feed goes on at `tail` and lost what lies before.
    pub(super) fn skip_to(&mut self, tail: Sequence) {
        for entry in self.topics.values_mut().flatten() {
            entry.next = tail;
            if let Some(follower) = entry.follower.upgrade() {
                follower.records(tail, tail, &[]);
            }
        }
    }

    fn remove(&mut self, topic: &Topic, token: Token) {
        if let Some(entries) = self.topics.get_mut(topic) {
            entries.retain(|entry| entry.token != token);
            if entries.is_empty() {
                self.topics.remove(topic);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Space;

    /// Keeps the ends of its calls, and its own feed, as a subscriber's tail does.
    #[derive(Default)]
    struct Owner {
        calls: Mutex<Vec<(Sequence, Sequence)>>,
        feed: Mutex<Option<Follow>>,
    }

    impl Follower for Owner {
        fn records(&self, from: Sequence, next: Sequence, _records: &[Arc<Record>]) {
            lock(&self.calls).push((from, next));
        }
    }

    fn topic(name: &str) -> Topic {
        Topic::new(Space::Room, name).unwrap()
    }

    fn followed(followers: &Followers, tail: u64) -> Arc<Owner> {
        let owner = Arc::new(Owner::default());
        let follower = Arc::downgrade(&owner) as Weak<dyn Follower>;
        let follow = followers.follow(&topic("a"), follower, || Ok(Sequence(tail)));
        *lock(&owner.feed) = Some(follow.unwrap());
        owner
    }

    #[test]
    fn calls_join_from_the_tail_on() {
        let followers = Followers::default();
        let owner = followed(&followers, 5);
        followers.lock().show(&topic("a"), Sequence(9), &[]);
        followers.lock().show(&topic("b"), Sequence(10), &[]);
        followers.lock().show(&topic("a"), Sequence(12), &[]);
        followers.lock().skip_to(Sequence(20));
        followers.lock().show(&topic("a"), Sequence(21), &[]);
        let calls = lock(&owner.calls).clone();
        let wanted = [(5, 5), (5, 9), (9, 12), (20, 20), (20, 21)];
        let wanted = wanted.map(|(from, next)| (Sequence(from), Sequence(next)));
        assert_eq!(calls, wanted);
    }

    #[test]
    fn a_feed_that_is_dropped_while_the_table_is_locked_ends() {
        let followers = Followers::default();
        let owner = followed(&followers, 1);
        let other = followed(&followers, 1);
        let mut table = followers.lock();
        drop(owner);
        table.show(&topic("a"), Sequence(2), &[]);
        drop(table);
        assert_eq!(lock(&other.calls).len(), 2);
        drop(other);
        assert!(!followers.lock().has(&topic("a")));
    }

    #[test]
    fn without_a_tail_nothing_is_followed() {
        let followers = Followers::default();
        let owner = Arc::new(Owner::default());
        let follower = Arc::downgrade(&owner) as Weak<dyn Follower>;
        let refused = followers.follow(&topic("a"), follower, || Err(Error::Closed));
        assert_eq!(refused.err(), Some(Error::Closed));
        assert!(!followers.lock().has(&topic("a")));
        assert!(lock(&owner.calls).is_empty());
    }
}
