//! One group commit in the making: which records get which sequence, and the batch that stores them.

use std::{collections::HashMap, sync::Arc};

use fjall::{OwnedWriteBatch, UserKey, UserValue};

use super::{
    layout,
    state::{Cache, Followers, TopicState},
    store::Store,
};
use crate::log::{
    Error, NewRecord, Outcome, Record, Sequence, Timestamp, Topic,
    dedupe::{Fingerprint, Known},
};

/// What one commit will store. Nothing of it is visible or durable, and dropping it undoes all of it.
pub(super) struct Plan<'a> {
    store: &'a Store,
    cache: &'a mut Cache,
    followers: &'a Followers,
    next: Next,
    /// The present, and the age from which a key no longer counts.
    now: Timestamp,
    keys_from: Timestamp,
    batch: OwnedWriteBatch,
    touched: Vec<Touched>,
    index: HashMap<Topic, usize>,
    keys: HashMap<[u8; 24], Known>,
    value: Vec<u8>,
    planned: Planned,
}

/// The numbers given out next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    /// To a new topic.
    pub(super) topic_id: u64,
    /// To a record, of whichever topic.
    pub(super) sequence: Sequence,
}

/// What a finished plan adds up to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Planned {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) repeated: u64,
}

/// A topic that the commit appends to.
pub(super) struct Touched {
    pub(super) topic: Topic,
    /// The position behind its last new record.
    pub(super) next: Sequence,
    pub(super) state: TopicState,
    /// What followers will see; empty when nobody follows.
    pub(super) shown: Vec<Arc<Record>>,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// A record on its way through the plan: its topic's place in `touched`, and its key with what that was used for.
struct Slot {
    touched: usize,
    key: Option<(Fingerprint, [u8; 24], Option<Known>)>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        store: &'a Store,
        cache: &'a mut Cache,
        followers: &'a Followers,
        next: Next,
        dedupe_window: std::time::Duration,
    ) -> Self {
        let now = Timestamp::now();
        Self {
            store,
            cache,
            followers,
            next,
            now,
            keys_from: now.before(dedupe_window),
            batch: store.batch(),
            touched: Vec::new(),
            index: HashMap::new(),
            keys: HashMap::new(),
            value: Vec::new(),
            planned: Planned::default(),
        }
    }

    /// Adds a batch and says what will become of each record once the plan is durable. After an error nothing of the batch
    /// is in the plan.
    pub(super) fn add(
        &mut self,
        batch: Vec<NewRecord>,
        fingerprints: &[Option<Fingerprint>],
    ) -> Result<Vec<Outcome>, Error> {
        // Everything that may fail comes first.
        let slots = self.slots(&batch, fingerprints)?;
        Ok(batch
            .into_iter()
            .zip(slots)
            .map(|(record, slot)| self.place(record, slot))
            .collect())
    }

    fn slots(
        &mut self,
        batch: &[NewRecord],
        fingerprints: &[Option<Fingerprint>],
    ) -> Result<Vec<Slot>, Error> {
        let mut slots = Vec::<Slot>::with_capacity(batch.len());
        for (at, record) in batch.iter().enumerate() {
            let same = slots
                .last()
                .filter(|last| self.touched[last.touched].topic == record.topic)
                .map(|last| last.touched);
            let touched = match same {
                Some(touched) => touched,
                None => self.touch(&record.topic)?,
            };
            let fingerprint = fingerprints.get(at).copied().flatten();
            let key = fingerprint
                .map(|key| self.look_up(touched, key))
                .transpose()?;
            slots.push(Slot { touched, key });
        }
        Ok(slots)
    }

    fn touch(&mut self, topic: &Topic) -> Result<usize, Error> {
        if let Some(at) = self.index.get(topic) {
            return Ok(*at);
        }
        let state = match self.cache.get(self.store, topic)? {
            Some(state) => state,
            None => self.new_topic(topic),
        };
        let at = self.touched.len();
        self.touched.push(Touched {
            topic: topic.clone(),
            next: self.next.sequence,
            state,
            shown: Vec::new(),
            records: 0,
            bytes: 0,
        });
        self.index.insert(topic.clone(), at);
        Ok(at)
    }

    fn new_topic(&mut self, topic: &Topic) -> TopicState {
        let state = TopicState::new(self.next.topic_id);
        self.next.topic_id += 1;
        let (topics, meta) = (&self.store.topics, &self.store.meta);
        self.batch
            .insert(topics, layout::topic_key(topic), state.entry().encode());
        let next = self.next.topic_id.to_be_bytes();
        self.batch.insert(meta, layout::META_TOPICS, next);
        state
    }

    fn look_up(
        &self,
        touched: usize,
        fingerprint: Fingerprint,
    ) -> Result<(Fingerprint, [u8; 24], Option<Known>), Error> {
        let key = layout::dedupe_key(self.touched[touched].state.id, fingerprint.key);
        let known = self.store.known(key)?;
        Ok((
            fingerprint,
            key,
            known.filter(|known| known.time >= self.keys_from),
        ))
    }

    fn place(&mut self, record: NewRecord, slot: Slot) -> Outcome {
        let Some((fingerprint, key, stored)) = slot.key else {
            let (sequence, time) = self.append(record, slot.touched);
            return Outcome::Stored { sequence, time };
        };
        if let Some(known) = self.keys.get(&key).copied().or(stored) {
            self.planned.repeated += 1;
            return known.repeated_by(&fingerprint);
        }
        let (sequence, time) = self.append(record, slot.touched);
        let known = Known {
            sequence,
            time,
            content: fingerprint.content,
        };
        self.remember(key, known);
        Outcome::Stored { sequence, time }
    }

    fn append(&mut self, record: NewRecord, touched: usize) -> (Sequence, Timestamp) {
        let touched = &mut self.touched[touched];
        let state = &mut touched.state;
        let (sequence, time) = (self.next.sequence, self.now.max(state.last_time));
        layout::encode_record(state.end, &record, time, &mut self.value);
        let key = layout::record_key(state.id, sequence);
        self.batch.insert(
            &self.store.records,
            UserKey::from(key),
            UserValue::from(self.value.as_slice()),
        );
        let bytes = self.value.len() as u64;
        self.next.sequence = sequence.next();
        touched.next = self.next.sequence;
        state.last_time = time;
        state.end += bytes;
        touched.records += 1;
        touched.bytes += bytes;
        self.planned.records += 1;
        self.planned.bytes += bytes;
        if self.followers.has(&touched.topic) {
            touched
                .shown
                .push(Arc::new(record.into_record(sequence, time)));
        }
        (sequence, time)
    }

    fn remember(&mut self, key: [u8; 24], known: Known) {
        let (keys, expiry) = (&self.store.keys, &self.store.expiry);
        self.batch.insert(keys, key, layout::encode_known(&known));
        let expires = layout::expiry_key(known.time, key);
        self.batch.insert(expiry, expires, UserValue::from([]));
        self.keys.insert(key, known);
    }

    /// The batch to commit, the topics it appends to, its sums, and what is given out next after it.
    pub(super) fn finish(mut self) -> (OwnedWriteBatch, Vec<Touched>, Planned, Next) {
        if self.planned.records > 0 {
            let (meta, next) = (&self.store.meta, self.next.sequence.0.to_be_bytes());
            self.batch.insert(meta, layout::META_SEQUENCES, next);
        }
        (self.batch, self.touched, self.planned, self.next)
    }
}
