//! The index: which topics there are, where their records lie, and up to where the log is readable.
//!
//! It is derived state, in memory. A topic takes about 550 bytes, a record of a journal 16, a topic in a segment 48; the records of
//! segments take nothing.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use slab::Slab;

use super::{
    disk::DiskFile,
    entry::First,
    files::SegmentFile,
    keys::{Filter, JournalKeys},
    segment,
};
use crate::{
    config::RetentionBySpace,
    log::{Bounds, Error, LogId, Sequence, Space, Timestamp, Topic},
};

/// Topics without records whose first positions are remembered; the oldest beyond it are forgotten for the log's floor.
const EMPTIED: usize = 65_536;
/// Files that one round has written once more so that topics can be forgotten.
const REWRITES: usize = 4;

/// A topic in the index.
pub(super) type TopicId = u32;
/// A file in the index. A segment that was written once more has another slot, so readers of the former go on with that.
pub(super) type Slot = u64;

/// Where a record of a journal lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) sequence: Sequence,
    pub(super) offset: u32,
    /// Bytes of its entry.
    pub(super) bytes: u32,
}

/// Where records of a topic lie, in one file.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Journal {
        slot: Slot,
        tag: u32,
        spots: VecDeque<Spot>,
    },
    Segment {
        slot: Slot,
        /// `place.first` is the first record that is retained; `place.records` counts those.
        place: segment::Place,
        /// Bytes of the records that are retained.
        live_bytes: u32,
    },
}

impl Place {
    pub(super) const fn slot(&self) -> Slot {
        match self {
            Self::Journal { slot, .. } | Self::Segment { slot, .. } => *slot,
        }
    }

    pub(super) fn records(&self) -> u64 {
        match self {
            Self::Journal { spots, .. } => spots.len() as u64,
            Self::Segment { place, .. } => u64::from(place.records),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Journal { spots, .. } => spots.iter().map(|spot| u64::from(spot.bytes)).sum(),
            Self::Segment { live_bytes, .. } => u64::from(*live_bytes),
        }
    }

    /// The first and the last retained record; none when there is none.
    pub(super) fn span(&self) -> Option<(Sequence, Sequence)> {
        match self {
            Self::Journal { spots, .. } => Some((spots.front()?.sequence, spots.back()?.sequence)),
            Self::Segment { place, .. } => (place.records > 0).then_some((place.first, place.last)),
        }
    }

    /// Whether it is only there for the idempotency keys of records that are gone.
    fn is_of_use(&self, files: &HashMap<Slot, File>) -> bool {
        if self.records() > 0 {
            return true;
        }
        match self {
            Self::Journal { slot, .. } => files
                .get(slot)
                .is_some_and(|file| file.newest_key > Timestamp(0)),
            Self::Segment { slot, place, .. } => {
                let file = files.get(slot);
                place.keys > 0 && file.is_some_and(|file| file.newest_key > Timestamp(0))
            }
        }
    }
}

/// A topic that holds records, or held some lately.
#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) topic: Topic,
    pub(super) first: First,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// In the order of the log.
    pub(super) places: VecDeque<Place>,
    /// The file that says `first`; zero when none has to.
    pub(super) noted: Slot,
    /// Segments that still hold records of it that were dropped.
    ghosts: Vec<Slot>,
}

impl TopicState {
    fn new(topic: Topic, first: First) -> Self {
        Self {
            topic,
            first,
            records: 0,
            bytes: 0,
            places: VecDeque::new(),
            noted: 0,
            ghosts: Vec::new(),
        }
    }

    /// The first record that is retained.
    pub(super) fn oldest(&self) -> Option<Sequence> {
        let mut spans = self.places.iter().filter_map(Place::span);
        spans.next().map(|(first, _)| first)
    }
}

/// A file of the log.
#[derive(Debug)]
pub(super) struct File {
    pub(super) number: u64,
    pub(super) kind: FileKind,
    /// The highest sequence that it holds or held.
    pub(super) last: Sequence,
    /// Bytes on disk.
    pub(super) size: u64,
    /// Bytes of records that are retained.
    pub(super) live_bytes: u64,
    /// Bytes of idempotency keys, headers and topics, which stay when it is written once more.
    pub(super) fixed_bytes: u64,
    /// Those of the idempotency keys.
    pub(super) key_bytes: u64,
    /// See [`segment::Opened::times`].
    pub(super) times: Vec<(Sequence, Timestamp)>,
    /// When the newest keyed record was appended; zero when there is none.
    pub(super) newest_key: Timestamp,
    /// A record of it did not read back.
    pub(super) is_damaged: bool,
}

#[derive(Debug)]
pub(super) enum FileKind {
    Journal {
        file: Arc<dyn DiskFile>,
        keys: JournalKeys,
        /// With their tags.
        topics: Vec<(u32, TopicId)>,
    },
    Segment {
        file: Arc<SegmentFile>,
        generation: u32,
        filter: Option<Filter>,
    },
}

impl File {
    /// When its newest record was appended.
    pub(super) fn newest(&self) -> Timestamp {
        self.times.last().map_or(Timestamp(0), |(_, time)| *time)
    }

    /// The position before which it holds nothing of `time` or later; none when it holds nothing of then at all.
    pub(super) fn from(&self, time: Timestamp) -> Option<Sequence> {
        let before = self.times.partition_point(|(_, newest)| *newest < time);
        self.times.get(before).map(|(sequence, _)| *sequence)
    }

    /// Adds when a record was appended; later records come later.
    pub(super) fn note_time(&mut self, sequence: Sequence, time: Timestamp) {
        if self.times.last().is_none_or(|(_, last)| *last < time) {
            self.times.push((sequence, time));
        }
    }
}

/// Where to read a topic's next records.
#[derive(Debug)]
pub(super) enum Step {
    /// In a journal.
    Spots {
        file: Arc<dyn DiskFile>,
        spots: Vec<Spot>,
    },
    /// In a segment.
    Group {
        file: Arc<SegmentFile>,
        place: segment::Place,
    },
    /// There are no more.
    End,
}

/// A record that was committed, for the index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Committed {
    pub(super) spot: Spot,
    pub(super) key: Option<[u8; 16]>,
}

/// Everything the engine knows of what it stores.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) id: LogId,
    /// See [`super::identity::Identity::gaps`].
    pub(super) gaps: Vec<Range<Sequence>>,
    /// The first position not written yet. What lies before it is durable.
    pub(super) tail: Sequence,
    /// Whatever a topic that is not here may have had lay before this position.
    pub(super) floor: Sequence,
    pub(super) files: HashMap<Slot, File>,
    ids: HashMap<Topic, TopicId>,
    names: BTreeSet<Topic>,
    states: Slab<TopicState>,
    /// By the oldest record of each topic that has one.
    oldest: BTreeSet<(Space, Sequence, TopicId)>,
    /// Topics without records, by their first position.
    emptied: BTreeSet<(Sequence, TopicId)>,
    /// Topics that may hold more bytes than they should.
    large: BTreeSet<TopicId>,
    /// Topics whose first position no file says yet.
    unnoted: BTreeSet<TopicId>,
    /// Topics forgotten so far: whoever remembers numbers of topics looks whether it changed.
    pub(super) forgotten: u64,
    limits: [u64; Space::ALL.len()],
}

impl Index {
    pub(super) fn new(id: LogId, gaps: Vec<Range<Sequence>>, retention: &RetentionBySpace) -> Self {
        Self {
            id,
            gaps,
            tail: Sequence::FIRST,
            floor: Sequence::FIRST,
            files: HashMap::new(),
            ids: HashMap::new(),
            names: BTreeSet::new(),
            states: Slab::new(),
            oldest: BTreeSet::new(),
            emptied: BTreeSet::new(),
            large: BTreeSet::new(),
            unnoted: BTreeSet::new(),
            forgotten: 0,
            limits: Space::ALL.map(|space| retention.of(space).bytes.as_u64()),
        }
    }

    /// How many topics there are.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    pub(super) fn id_of(&self, topic: &Topic) -> Option<TopicId> {
        self.ids.get(topic).copied()
    }

    pub(super) fn state(&self, id: TopicId) -> Option<&TopicState> {
        self.states.get(id as usize)
    }

    /// The state of `topic`, whether it is known as `id` or not.
    pub(super) fn find(&self, topic: &Topic) -> Option<&TopicState> {
        self.state(self.id_of(topic)?)
    }

    fn state_mut(&mut self, id: TopicId) -> Option<&mut TopicState> {
        self.states.get_mut(id as usize)
    }

    /// The first position of a topic that may be new.
    pub(super) fn first_of(&self, topic: &Topic) -> First {
        match self.find(topic) {
            Some(state) => state.first,
            None if self.floor <= Sequence::FIRST => First::NONE,
            None => First {
                sequence: self.floor,
                is_inherited: true,
            },
        }
    }

    /// The file of a segment.
    pub(super) fn segment_file(&self, slot: Slot) -> Option<Arc<SegmentFile>> {
        match &self.files.get(&slot)?.kind {
            FileKind::Segment { file, .. } => Some(file.clone()),
            FileKind::Journal { .. } => None,
        }
    }

    /// The topic's id, which a new one gets.
    pub(super) fn enter(&mut self, topic: &Topic, first: First) -> TopicId {
        if let Some(id) = self.id_of(topic) {
            return id;
        }
        let id = self.states.insert(TopicState::new(topic.clone(), first));
        // More topics than that do not fit into memory.
        let id = TopicId::try_from(id).unwrap_or(TopicId::MAX);
        self.ids.insert(topic.clone(), id);
        self.names.insert(topic.clone());
        self.emptied.insert((first.sequence, id));
        id
    }

    /// Raises a topic's first position to what file `slot` says.
    pub(super) fn note(&mut self, id: TopicId, first: First, slot: Slot) {
        let Some(state) = self.states.get_mut(id as usize) else {
            return;
        };
        if first.sequence >= state.first.sequence {
            if state.records == 0 {
                self.emptied.remove(&(state.first.sequence, id));
                self.emptied.insert((first.sequence, id));
            }
            state.first = first;
            state.noted = slot;
            self.unnoted.remove(&id);
        }
    }

    /// Notes that a journal says a topic's first position, unless that has moved since.
    pub(super) fn noted(&mut self, id: TopicId, first: First, slot: Slot) {
        if let Some(state) = self.states.get_mut(id as usize)
            && state.first == first
        {
            state.noted = slot;
            self.unnoted.remove(&id);
        }
    }

    /// Notes that a topic has this tag in a journal.
    pub(super) fn define(&mut self, slot: Slot, tag: u32, id: TopicId) {
        if let Some(file) = self.files.get_mut(&slot)
            && let FileKind::Journal { topics, .. } = &mut file.kind
        {
            topics.push((tag, id));
        }
    }

    /// Adds records at the end of a topic, in file `slot` where its tag is `tag`. Its keys are kept under the first tag that it had
    /// there.
    pub(super) fn append(
        &mut self,
        id: TopicId,
        slot: Slot,
        tag: u32,
        records: impl Iterator<Item = Committed>,
    ) {
        let Some(state) = self.states.get_mut(id as usize) else {
            return;
        };
        let is_same =
            matches!(state.places.back(), Some(Place::Journal { slot: last, .. }) if *last == slot);
        if !is_same {
            state.places.push_back(Place::Journal {
                slot,
                tag,
                spots: VecDeque::new(),
            });
        }
        let was_empty = state.records == 0;
        let file = self.files.get_mut(&slot);
        let Some(Place::Journal { spots, tag, .. }) = state.places.back_mut() else {
            return;
        };
        let mut bytes = 0;
        let before = spots.len();
        let mut keys = Vec::new();
        for record in records {
            spots.push_back(record.spot);
            bytes += u64::from(record.spot.bytes);
            if let Some(key) = record.key {
                keys.push((key, record.spot.offset));
            }
        }
        state.records += (spots.len() - before) as u64;
        state.bytes += bytes;
        if let Some(file) = file {
            file.live_bytes += bytes;
            if let FileKind::Journal { keys: known, .. } = &mut file.kind {
                known.add(*tag, keys);
            }
        }
        let limit = self.limits[space_index(state.topic.space())];
        if state.bytes > limit {
            self.large.insert(id);
        }
        let oldest = spots.get(before).map(|spot| spot.sequence);
        if was_empty && let Some(oldest) = oldest {
            self.emptied.remove(&(state.first.sequence, id));
            self.oldest.insert((state.topic.space(), oldest, id));
        }
    }

    /// Adds a group of a segment at the end of a topic, at the start.
    pub(super) fn add_group(&mut self, id: TopicId, slot: Slot, place: segment::Place) {
        let Some(state) = self.states.get_mut(id as usize) else {
            return;
        };
        state.places.push_back(Place::Segment {
            slot,
            place,
            live_bytes: place.bytes,
        });
        let was_empty = state.records == 0;
        state.records += u64::from(place.records);
        state.bytes += u64::from(place.bytes);
        if let Some(file) = self.files.get_mut(&slot) {
            file.live_bytes += u64::from(place.bytes);
        }
        if state.bytes > self.limits[space_index(state.topic.space())] {
            self.large.insert(id);
        }
        if was_empty && place.records > 0 {
            self.emptied.remove(&(state.first.sequence, id));
            let entry = (state.topic.space(), place.first, id);
            self.oldest.insert(entry);
        }
    }

    /// Puts a group where a file had records of the topic before: the file was sealed or written once more. What was dropped
    /// meanwhile stays dropped.
    pub(super) fn replace(
        &mut self,
        topic: &Topic,
        old: Slot,
        slot: Slot,
        place: segment::Place,
    ) -> u64 {
        let Some(id) = self.id_of(topic) else {
            return 0;
        };
        let Some(state) = self.states.get_mut(id as usize) else {
            return 0;
        };
        let Some(at) = state.places.iter().position(|place| place.slot() == old) else {
            return 0;
        };
        let records = state.places[at].records();
        let bytes = state.places[at].bytes();
        let span = state.places[at].span();
        let first = span.map_or(place.first, |(first, _)| first);
        state.places[at] = Place::Segment {
            slot,
            place: segment::Place {
                records: u32::try_from(records).unwrap_or(u32::MAX),
                first,
                ..place
            },
            live_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        };
        if !state.places[at].is_of_use(&self.files) {
            state.places.remove(at);
        }
        if state.noted == old {
            state.noted = slot;
        }
        bytes
    }

    /// Forgets a file. Topics have nothing there any more.
    pub(super) fn remove_file(&mut self, slot: Slot, topics: Vec<Topic>) {
        for topic in topics {
            if let Some(id) = self.id_of(&topic)
                && let Some(state) = self.states.get_mut(id as usize)
            {
                state.places.retain(|place| place.slot() != slot);
            }
        }
        self.files.remove(&slot);
    }

    /// What remains of a topic that was read before: how much, where it begins.
    pub(super) fn bounds(&self, topic: &Topic) -> Bounds {
        Bounds {
            first: self.first_of(topic).sequence,
            tail: self.tail,
        }
    }

    /// Where a read from `from` starts.
    pub(super) fn start_of_read(&self, topic: &Topic, from: Sequence) -> Result<Sequence, Error> {
        let first = self.first_of(topic);
        // Whoever begins at the beginning has missed nothing of a topic that has only just come.
        if first.is_inherited && from <= Sequence::FIRST {
            return Ok(first.sequence.min(self.tail));
        }
        let is_elsewhere = |gap: &Range<Sequence>| gap.start < from && from < gap.end;
        if let Some(gap) = self.gaps.iter().find(|gap| is_elsewhere(gap)) {
            return Err(Error::Replaced { tail: gap.start });
        }
        crate::log::start_of_read(from, first.sequence, self.tail)
    }

    /// Where the topic's records at or behind `at` lie, at most `limit` of them.
    pub(super) fn step(&self, topic: &Topic, at: Sequence, limit: usize) -> Step {
        let Some(state) = self.find(topic) else {
            return Step::End;
        };
        let mut places = state.places.iter();
        match places.find(|place| place.span().is_some_and(|(_, last)| last >= at)) {
            Some(Place::Journal { slot, spots, .. }) => {
                let skip = spots.partition_point(|spot| spot.sequence < at);
                let until = spots.len().min(skip.saturating_add(limit.max(1)));
                self.spots_step(*slot, spots.range(skip..until).copied().collect())
            }
            Some(Place::Segment { slot, place, .. }) => self.group_step(*slot, *place),
            None => Step::End,
        }
    }

    /// Where the topic's newest records before `before` lie, at most `limit` of them.
    pub(super) fn step_back(&self, topic: &Topic, before: Sequence, limit: usize) -> Step {
        let Some(state) = self.find(topic) else {
            return Step::End;
        };
        let mut places = state.places.iter().rev();
        let found = places.find(|place| place.span().is_some_and(|(first, _)| first < before));
        match found {
            Some(Place::Journal { slot, spots, .. }) => {
                let until = spots.partition_point(|spot| spot.sequence < before);
                let skip = until.saturating_sub(limit.max(1));
                self.spots_step(*slot, spots.range(skip..until).copied().collect())
            }
            Some(Place::Segment { slot, place, .. }) => self.group_step(*slot, *place),
            None => Step::End,
        }
    }

    fn spots_step(&self, slot: Slot, spots: Vec<Spot>) -> Step {
        match self.files.get(&slot).map(|file| &file.kind) {
            Some(FileKind::Journal { file, .. }) => Step::Spots {
                file: file.clone(),
                spots,
            },
            _ => Step::End,
        }
    }

    fn group_step(&self, slot: Slot, place: segment::Place) -> Step {
        match self.files.get(&slot).map(|file| &file.kind) {
            Some(FileKind::Segment { file, .. }) => Step::Group {
                file: file.clone(),
                place,
            },
            _ => Step::End,
        }
    }

    /// The position before which the topic has nothing of `time` or later: a place to look from.
    pub(super) fn start_of_time(&self, topic: &Topic, time: Timestamp) -> Option<Sequence> {
        let state = self.find(topic)?;
        state.places.iter().find_map(|place| {
            let (first, last) = place.span()?;
            let from = self.files.get(&place.slot())?.from(time)?;
            (from <= last).then_some(from.max(first))
        })
    }

    /// The position before which the log has nothing of `time` or later.
    pub(super) fn cut_of(&self, time: Timestamp) -> Sequence {
        let cuts = self.files.values().filter_map(|file| file.from(time));
        cuts.min().unwrap_or(self.tail)
    }

    /// A topic of the space whose oldest record lies before `before`, and where it is among those: the next is looked for behind it.
    pub(super) fn overdue(
        &self,
        space: Space,
        after: (Sequence, TopicId),
        before: Sequence,
    ) -> Option<((Sequence, TopicId), Topic)> {
        use std::ops::Bound::Excluded;

        let end = (space, before, 0);
        let start = (space, after.0, after.1);
        if start >= end {
            return None;
        }
        let mut overdue = self.oldest.range((Excluded(start), Excluded(end)));
        let (_, sequence, id) = *overdue.next()?;
        Some(((sequence, id), self.state(id)?.topic.clone()))
    }

    /// A topic that may hold more bytes than it should; it is looked at once.
    pub(super) fn take_large(&mut self) -> Option<(TopicId, Topic)> {
        let id = self.large.pop_first()?;
        self.state(id).map(|state| (id, state.topic.clone()))
    }

    /// Has a topic looked at again.
    pub(super) fn put_large(&mut self, id: TopicId) {
        self.large.insert(id);
    }

    pub(super) fn limit_of(&self, space: Space) -> u64 {
        self.limits[space_index(space)]
    }

    /// Drops the beginning of a topic; how many records that were. None when the topic begins elsewhere by now, because some of it
    /// was dropped meanwhile.
    pub(super) fn dropped(&mut self, topic: &Topic, drop: &Drop) -> Option<u64> {
        let id = self.id_of(topic)?;
        let state = self.states.get_mut(id as usize)?;
        if state.oldest() != drop.oldest {
            return None;
        }
        let had = state.records;
        let space = state.topic.space();
        if let Some(oldest) = drop.oldest {
            self.oldest.remove(&(space, oldest, id));
        }
        for place in &mut state.places {
            let Some((_, last)) = place.span() else {
                continue;
            };
            // A journal holds, or is followed by, the note that they were dropped, and is sealed without them.
            if let Place::Segment { slot, .. } = place
                && !state.ghosts.contains(slot)
            {
                state.ghosts.push(*slot);
            }
            let (records, bytes) = if last < drop.first {
                let whole = (place.records(), place.bytes());
                match place {
                    Place::Journal { spots, .. } => spots.clear(),
                    Place::Segment {
                        place, live_bytes, ..
                    } => {
                        place.records = 0;
                        *live_bytes = 0;
                    }
                }
                whole
            } else {
                match place {
                    Place::Journal { spots, .. } => {
                        let before = spots.partition_point(|spot| spot.sequence < drop.first);
                        let bytes = spots
                            .drain(..before)
                            .map(|spot| u64::from(spot.bytes))
                            .sum();
                        (before as u64, bytes)
                    }
                    Place::Segment {
                        place, live_bytes, ..
                    } => match drop.part {
                        Some(part) if place.first < drop.first => {
                            place.first = part.next;
                            place.records -= part.records.min(place.records);
                            *live_bytes -= part.bytes.min(*live_bytes);
                            (u64::from(part.records), u64::from(part.bytes))
                        }
                        _ => (0, 0),
                    },
                }
            };
            state.records -= records.min(state.records);
            state.bytes -= bytes.min(state.bytes);
            if let Some(file) = self.files.get_mut(&place.slot()) {
                file.live_bytes -= bytes.min(file.live_bytes);
            }
            if last >= drop.first {
                break;
            }
        }
        let files = &self.files;
        state.places.retain(|place| place.is_of_use(files));
        state.ghosts.retain(|slot| files.contains_key(slot));
        if drop.first > state.first.sequence {
            state.first = First {
                sequence: drop.first,
                is_inherited: false,
            };
            self.unnoted.insert(id);
        }
        match state.oldest() {
            Some(oldest) => {
                self.oldest.insert((space, oldest, id));
            }
            None => {
                self.emptied.insert((state.first.sequence, id));
            }
        }
        Some(had - state.records)
    }

    /// Topics without records beyond those that are remembered are forgotten, the oldest first; how many that were. A topic of which
    /// a file still holds dropped records is not: nothing would say that they were dropped. Those files are returned too, a few, so
    /// that they are written once more.
    pub(super) fn forget_emptied(&mut self, most: usize) -> (usize, Vec<Slot>) {
        let most = most.min(EMPTIED);
        let excess = self.emptied.len().saturating_sub(most);
        let oldest: Vec<_> = self.emptied.iter().take(excess).copied().collect();
        let mut forgotten = 0;
        let mut holding = BTreeSet::new();
        for (first, id) in oldest {
            if self.unnoted.contains(&id) {
                continue;
            }
            let files = &self.files;
            let Some(state) = self.states.get_mut(id as usize) else {
                continue;
            };
            state.places.retain(|place| place.is_of_use(files));
            state.ghosts.retain(|slot| files.contains_key(slot));
            if !state.ghosts.is_empty() || !state.places.is_empty() {
                holding.extend(state.ghosts.iter().take(1));
                continue;
            }
            self.emptied.remove(&(first, id));
            let state = self.states.remove(id as usize);
            self.ids.remove(&state.topic);
            self.names.remove(&state.topic);
            self.unnoted.remove(&id);
            self.large.remove(&id);
            self.floor = self.floor.max(first);
            forgotten += 1;
        }
        self.forgotten += forgotten as u64;
        (forgotten, holding.into_iter().take(REWRITES).collect())
    }

    /// Lets go of keys that were last used before `from`: their filters, and what they keep of files.
    pub(super) fn forget_keys(&mut self, from: Timestamp) {
        for file in self.files.values_mut() {
            if let FileKind::Segment { filter, .. } = &mut file.kind
                && file.newest_key < from
            {
                *filter = None;
                file.newest_key = Timestamp(0);
                file.fixed_bytes = file.fixed_bytes.saturating_sub(file.key_bytes);
                file.key_bytes = 0;
            }
        }
    }

    /// Forgets a topic's place in a file that is replaced by one in which it has none.
    pub(super) fn leave(&mut self, topic: &Topic, slot: Slot) {
        if let Some(id) = self.id_of(topic)
            && let Some(state) = self.states.get_mut(id as usize)
        {
            state.places.retain(|place| place.slot() != slot);
        }
    }

    /// Up to `limit` topics whose first position no file says yet.
    pub(super) fn unnoted(&self, limit: usize) -> Vec<(TopicId, Topic, First)> {
        let ids = self.unnoted.iter().take(limit);
        ids.filter_map(|id| {
            let state = self.state(*id)?;
            Some((*id, state.topic.clone(), state.first))
        })
        .collect()
    }

    /// Notes that the file that says a topic's first position goes.
    pub(super) fn unnote(&mut self, topic: &Topic, slot: Slot) {
        if let Some(id) = self.id_of(topic)
            && let Some(state) = self.state_mut(id)
            && state.noted == slot
            && state.first != First::NONE
        {
            state.noted = 0;
            self.unnoted.insert(id);
        }
    }

    /// Topics of a space in name order, behind `after`.
    pub(super) fn topics(&self, space: Space, after: Option<&Topic>, limit: usize) -> Vec<Topic> {
        use std::ops::Bound::{Excluded, Unbounded};

        let least = Topic::least(space);
        let from = match after {
            Some(after) if after.space() == space => Excluded(after),
            Some(after) if after.space() > space => return Vec::new(),
            _ => Excluded(&least),
        };
        self.names
            .range((from, Unbounded))
            .take_while(|topic| topic.space() == space)
            .take(limit)
            .cloned()
            .collect()
    }
}

/// What a trim drops of a topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drop {
    /// The oldest record when it was decided.
    pub(super) oldest: Option<Sequence>,
    /// The position behind the last record that goes.
    pub(super) first: Sequence,
    /// What goes of the segment that is dropped in part.
    pub(super) part: Option<Part>,
}

/// The beginning of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) records: u32,
    pub(super) bytes: u32,
    /// The first record that stays.
    pub(super) next: Sequence,
}

/// The place of a space in lists that have one entry for each.
fn space_index(space: Space) -> usize {
    Space::ALL
        .iter()
        .position(|other| *other == space)
        .unwrap_or(0)
}
