//! One commit in the making: which records get which sequence, and the batch that stores them.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard},
};

use super::{
    entry::{self, First},
    index::{FileKind, Index, Place, TopicId},
    journal::Batch,
    keys, lock,
    read::entry_at,
    seal::known_of,
    shared::Shared,
};
use crate::log::{
    Error, NewRecord, Numbering, Outcome, Record, Sequence, Timestamp, Topic,
    dedupe::{Fingerprint, Known as KnownKey},
};

/// A topic of the journal that is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) tag: u32,
    /// None before its first commit.
    pub(super) id: Option<TopicId>,
}

/// What one commit will store. Nothing of it is visible or durable.
pub(super) struct Plan<'a> {
    shared: &'a Shared,
    batch: &'a mut Batch,
    known: &'a mut HashMap<Topic, Known>,
    next_tag: &'a mut u32,
    /// Locked while the commit is planned, which takes no disk but for keys.
    numbering: MutexGuard<'a, Numbering>,
    /// The present, one for all records of the commit.
    now: Timestamp,
    /// The age from which a key no longer counts.
    keys_from: Timestamp,
    touched: Vec<Touched>,
    /// Places in `touched`, by tag.
    places: HashMap<u32, usize>,
    keys: HashMap<(u32, [u8; 16]), KnownKey>,
    repeated: u64,
    records: u64,
}

/// What a finished plan adds up to.
pub(super) struct Planned {
    pub(super) touched: Vec<Touched>,
    pub(super) records: u64,
    pub(super) repeated: u64,
    /// When its records were appended.
    pub(super) time: Timestamp,
}

/// A topic that the commit appends to.
pub(super) struct Touched {
    pub(super) topic: Topic,
    pub(super) tag: u32,
    pub(super) id: Option<TopicId>,
    pub(super) first: First,
    /// Its entry is in this batch.
    pub(super) is_defined: bool,
    pub(super) records: Vec<Placed>,
}

/// A record in the batch.
pub(super) struct Placed {
    pub(super) sequence: Sequence,
    time: Timestamp,
    /// Where its entry lies in the batch.
    pub(super) at: usize,
    pub(super) bytes: u32,
    pub(super) key: Option<[u8; 16]>,
    record: NewRecord,
}

impl Touched {
    pub(super) fn has_keys(&self) -> bool {
        self.records.iter().any(|record| record.key.is_some())
    }

    /// The records as followers see them, and the position behind them.
    pub(super) fn into_shown(self) -> (Sequence, Vec<Arc<Record>>) {
        let next = self.records.last().map(|last| last.sequence.next());
        let shown = self.records.into_iter().map(|placed| {
            let record = placed.record.into_record(placed.sequence, placed.time);
            Arc::new(record)
        });
        (next.unwrap_or_default(), shown.collect())
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        batch: &'a mut Batch,
        known: &'a mut HashMap<Topic, Known>,
        next_tag: &'a mut u32,
    ) -> Self {
        let mut numbering = lock(&shared.numbering);
        let now = numbering.now();
        Self {
            shared,
            batch,
            known,
            next_tag,
            numbering,
            now,
            keys_from: now.before(shared.dedupe_window),
            touched: Vec::new(),
            places: HashMap::new(),
            keys: HashMap::new(),
            repeated: 0,
            records: 0,
        }
    }

    /// Adds the records of one append; what becomes of each. After an error nothing of it is in the plan.
    pub(super) fn add(
        &mut self,
        batch: Vec<NewRecord>,
        fingerprints: &[Option<Fingerprint>],
    ) -> Result<Vec<Outcome>, Error> {
        // Everything that can fail comes first.
        self.check_topics(&batch)?;
        let mut slots = Vec::with_capacity(batch.len());
        for (at, record) in batch.iter().enumerate() {
            let fingerprint = fingerprints.get(at).copied().flatten();
            let stored = match &fingerprint {
                Some(fingerprint) => self.stored(&record.topic, fingerprint.key)?,
                None => None,
            };
            slots.push((fingerprint, stored));
        }
        Ok(batch
            .into_iter()
            .zip(slots)
            .map(|(record, (fingerprint, stored))| self.place(record, fingerprint, stored))
            .collect())
    }

    /// Refuses records that would begin more topics than there may be.
    fn check_topics(&self, batch: &[NewRecord]) -> Result<(), Error> {
        let mut new: Vec<_> = batch
            .iter()
            .map(|record| &record.topic)
            .filter(|topic| !self.known.contains_key(topic))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        new.sort_unstable();
        new.dedup();
        let index = lock(&self.shared.index);
        let limit = self.shared.max_topics;
        let planned = self
            .touched
            .iter()
            .filter(|touched| touched.is_defined && index.id_of(&touched.topic).is_none());
        let room = limit.saturating_sub(index.len() + planned.count());
        // Those that the log has already need none.
        let wanted = new.into_iter().filter(|topic| index.id_of(topic).is_none());
        if wanted.take(room + 1).count() > room {
            return Err(Error::Topics { limit });
        }
        Ok(())
    }

    /// What a key was used for in the topic, within the window.
    fn stored(&self, topic: &Topic, key: [u8; 16]) -> Result<Option<KnownKey>, Error> {
        let known = look_up(self.shared, topic, key, self.keys_from)?;
        Ok(known.filter(|known| known.time >= self.keys_from))
    }

    fn place(
        &mut self,
        record: NewRecord,
        fingerprint: Option<Fingerprint>,
        stored: Option<KnownKey>,
    ) -> Outcome {
        if let Some(fingerprint) = &fingerprint
            && let Some(known) = self.planned(&record.topic, fingerprint.key).or(stored)
        {
            self.repeated += 1;
            return known.repeated_by(fingerprint);
        }
        let touched = self.touch(&record.topic);
        let tag = self.touched[touched].tag;
        let sequence = self.numbering.number();
        let time = self.now;
        let (at, bytes) = self.batch.record(|out| {
            entry::put_record(out, tag, sequence, time, &record, fingerprint.as_ref());
        });
        if let Some(fingerprint) = fingerprint {
            let known = KnownKey {
                sequence,
                time,
                content: fingerprint.content,
            };
            self.keys.insert((tag, fingerprint.key), known);
        }
        self.records += 1;
        self.touched[touched].records.push(Placed {
            sequence,
            time,
            at,
            // Messages are limited far below 4 GiB.
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            key: fingerprint.map(|fingerprint| fingerprint.key),
            record,
        });
        Outcome::Stored { sequence, time }
    }

    /// What a key was used for earlier in this commit.
    fn planned(&self, topic: &Topic, key: [u8; 16]) -> Option<KnownKey> {
        let known = self.known.get(topic)?;
        self.keys.get(&(known.tag, key)).copied()
    }

    /// The topic's place in `touched`. A topic that is new to the journal is written to it.
    fn touch(&mut self, topic: &Topic) -> usize {
        if let Some(last) = self.touched.last()
            && last.topic == *topic
        {
            return self.touched.len() - 1;
        }
        let known = self.known.get(topic).copied();
        if let Some(known) = known
            && let Some(at) = self.places.get(&known.tag)
        {
            return *at;
        }
        let (known, first) = match known {
            Some(known) => (known, First::NONE),
            None => self.define(topic),
        };
        let at = self.touched.len();
        self.places.insert(known.tag, at);
        self.touched.push(Touched {
            topic: topic.clone(),
            tag: known.tag,
            id: known.id,
            first,
            is_defined: known.id.is_none(),
            records: Vec::new(),
        });
        at
    }

    fn define(&mut self, topic: &Topic) -> (Known, First) {
        let first = lock(&self.shared.index).first_of(topic);
        let known = Known {
            tag: *self.next_tag,
            id: None,
        };
        *self.next_tag += 1;
        self.known.insert(topic.clone(), known);
        self.batch
            .entry(|out| entry::put_topic(out, known.tag, topic, first));
        (known, first)
    }

    pub(super) fn finish(self) -> Planned {
        Planned {
            touched: self.touched,
            records: self.records,
            repeated: self.repeated,
            time: self.now,
        }
    }
}

/// What a key was used for in the topic, newest use first, where it may still count.
fn look_up(
    shared: &Shared,
    topic: &Topic,
    key: [u8; 16],
    from: Timestamp,
) -> Result<Option<KnownKey>, Error> {
    let unreadable = |error: std::io::Error| Error::Unavailable(error.to_string());
    let index = lock(&shared.index);
    let uses = uses(&index, topic, key, from);
    drop(index);
    for found in uses {
        let known = match found {
            Use::Journal(file, offset) => {
                let bytes = entry_at(&*file, offset).map_err(unreadable)?;
                known_of(&bytes)
            }
            Use::Segment(file, place) => {
                let file = file.open().map_err(unreadable)?;
                keys::search(&*file, &place, key).map_err(unreadable)?
            }
        };
        if known.is_some() {
            return Ok(known);
        }
    }
    Ok(None)
}

/// A place where a key may have been used.
enum Use {
    Journal(Arc<dyn super::disk::DiskFile>, u64),
    Segment(Arc<super::files::SegmentFile>, super::segment::Place),
}

fn uses(index: &Index, topic: &Topic, key: [u8; 16], from: Timestamp) -> Vec<Use> {
    let Some(state) = index.find(topic) else {
        return Vec::new();
    };
    let mut uses = Vec::new();
    for place in state.places.iter().rev() {
        let Some(file) = index.files.get(&place.slot()) else {
            continue;
        };
        if file.newest_key < from || file.newest_key == Timestamp(0) {
            continue;
        }
        match (&file.kind, place) {
            (FileKind::Journal { file, keys, .. }, Place::Journal { tag, .. }) => {
                if let Some(offset) = keys.get(*tag, key) {
                    uses.push(Use::Journal(file.clone(), u64::from(offset)));
                }
            }
            (FileKind::Segment { file, filter, .. }, Place::Segment { place, .. }) => {
                let may_have = filter.as_ref().is_none_or(|filter| filter.may_have(key));
                if place.keys > 0 && may_have {
                    uses.push(Use::Segment(file.clone(), *place));
                }
            }
            _ => {}
        }
    }
    uses
}
