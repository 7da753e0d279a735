//! Sealing: a journal becomes a segment, off the commit path; and a segment of which much was dropped is written once more.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use super::{
    disk::DiskFile,
    entry::{self, Entry, First},
    files::{SegmentFile, journal_path, segment_path},
    index::{File, FileKind, Index, Place, Slot, TopicId},
    keys::{self, Filter},
    lock,
    read::Group,
    segment::{self, Builder, Origin},
    shared::Shared,
};
use crate::log::{Error, Sequence, Timestamp, Topic, dedupe::Known};

/// Bytes of a journal that are read at once; a larger one is read record by record.
const WHOLE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of a segment read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Topics that are put in their new places before others get a turn at the index.
const TURN: usize = 1024;

/// Why a file was not sealed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Some of it does not read back: it stays as it is.
    Damaged(Error),
    /// The disk refused; it is tried again.
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A topic's part of a journal.
struct Part {
    tag: u32,
    topic: Topic,
    first: First,
    spots: Vec<super::index::Spot>,
    /// Whether this file is the only one that says the topic's first position.
    is_noted: bool,
}

/// Makes a segment of a journal that is written no more.
pub(super) fn seal(shared: &Shared, slot: Slot, keys_from: Timestamp) -> Result<(), Failure> {
    let index = lock(&shared.index);
    let Some(File {
        number,
        size,
        last,
        kind: FileKind::Journal { file, topics, keys },
        ..
    }) = index.files.get(&slot)
    else {
        return Ok(());
    };
    let number = *number;
    let file = file.clone();
    let size = *size;
    let last = *last;
    let parts = parts(&index, slot, topics);
    let sorted = keys.sorted();
    let floor = index.floor;
    drop(index);

    let source = Source::new(file, size)?;
    let mut keys = known_by_tag(&source, sorted, keys_from)?;
    let origin = Origin {
        id: shared.id,
        number,
        span: (first_of(&parts), last),
        floor,
    };
    let path = segment_path(&shared.dir, number, 0);
    let mut builder = Builder::create(&shared.disk, &path, origin)?;
    for part in &parts {
        let known = keys.remove(&part.tag).unwrap_or_default();
        if part.spots.is_empty() && known.is_empty() && !part.is_noted {
            continue;
        }
        builder.begin(part.tag, &part.topic, part.first)?;
        for spot in &part.spots {
            let bytes = source.read(u64::from(spot.offset), spot.bytes as usize)?;
            let Ok((
                Entry::Record {
                    sequence, stored, ..
                },
                _,
            )) = entry::read(&bytes)
            else {
                return Err(damaged(&part.topic, spot.sequence));
            };
            let time = entry::time_of(stored).unwrap_or_default();
            builder.record(sequence, time, &bytes)?;
        }
        builder.keys(&known)?;
    }
    let opened = builder.finish()?;
    let topics = parts.into_iter().map(|part| part.topic).collect();
    install(shared, (slot, topics), path, 0, &opened)?;
    shared.disk.remove(&journal_path(&shared.dir, number))?;
    shared.disk.sync_dir(&shared.dir)?;
    shared.unsealed.fetch_sub(1, Ordering::AcqRel);
    Ok(())
}

/// What a journal holds of each topic, in the order of their names.
fn parts(index: &Index, slot: Slot, topics: &[(u32, TopicId)]) -> Vec<Part> {
    let mut parts: Vec<_> = topics
        .iter()
        .filter_map(|(defined, id)| {
            let state = index.state(*id)?;
            // A topic may have several tags; its records and keys are kept under the first that it had with a record.
            let place = state.places.iter().find_map(|place| match place {
                Place::Journal {
                    slot: other,
                    tag,
                    spots,
                } if *other == slot => Some((*tag, spots.iter().copied().collect())),
                _ => None,
            });
            let (tag, spots) = place.unwrap_or_else(|| (*defined, Vec::new()));
            Some(Part {
                tag,
                topic: state.topic.clone(),
                first: state.first,
                spots,
                is_noted: state.noted == slot && state.first != First::NONE,
            })
        })
        .collect();
    parts.sort_by(|one, other| one.topic.cmp(&other.topic));
    parts.dedup_by(|one, other| one.topic == other.topic);
    parts
}

fn first_of(parts: &[Part]) -> Sequence {
    let firsts = parts.iter().filter_map(|part| part.spots.first());
    let first = firsts.map(|spot| spot.sequence).min();
    first.unwrap_or_default()
}

fn damaged(topic: &Topic, sequence: Sequence) -> Failure {
    Failure::Damaged(Error::Corrupt(format!(
        "record {sequence} of {topic} does not read back"
    )))
}

type Keys = Vec<([u8; 16], Known)>;

/// The keys of a journal that were used at `from` or later.
fn known_by_tag(
    source: &Source,
    sorted: Vec<(u32, [u8; 16], u32)>,
    from: Timestamp,
) -> Result<HashMap<u32, Keys>, Failure> {
    let mut known: HashMap<u32, Keys> = HashMap::new();
    for (tag, key, offset) in sorted {
        let head = source.read(u64::from(offset), entry::HEAD_BYTES)?;
        let size = entry::size(&head).unwrap_or(0);
        let bytes = source.read(u64::from(offset), size)?;
        if let Some(found) = known_of(&bytes)
            && found.time >= from
        {
            known.entry(tag).or_default().push((key, found));
        }
    }
    Ok(known)
}

/// What the key of a record's entry was used for.
pub(super) fn known_of(bytes: &[u8]) -> Option<Known> {
    let Ok((
        Entry::Record {
            sequence,
            key,
            stored,
            ..
        },
        _,
    )) = entry::read(bytes)
    else {
        return None;
    };
    Some(Known {
        sequence,
        time: entry::time_of(stored)?,
        content: key?.content,
    })
}

/// A journal that is read in any order.
struct Source {
    file: Arc<dyn DiskFile>,
    whole: Vec<u8>,
}

impl Source {
    fn new(file: Arc<dyn DiskFile>, size: u64) -> io::Result<Self> {
        let mut whole = Vec::new();
        if size <= WHOLE_BYTES {
            whole.resize(usize::try_from(size).unwrap_or(0), 0);
            let read = file.read_at(&mut whole, 0)?;
            whole.truncate(read);
        }
        Ok(Self { file, whole })
    }

    fn read(&self, offset: u64, size: usize) -> io::Result<std::borrow::Cow<'_, [u8]>> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(bytes) = self.whole.get(at..at.saturating_add(size)) {
            return Ok(bytes.into());
        }
        // A length that does not read back right must not take memory.
        let left = self.file.size()?.saturating_sub(offset);
        let mut bytes = vec![0; size.min(usize::try_from(left).unwrap_or(usize::MAX))];
        let read = self.file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes.into())
    }
}

/// Puts a segment in the place of the file that it was made of.
fn install(
    shared: &Shared,
    (old, topics): (Slot, Vec<Topic>),
    path: PathBuf,
    generation: u32,
    opened: &segment::Opened,
) -> Result<(), Failure> {
    let slot = shared.take_slot();
    let file = shared.open_files.segment(path);
    let file = file_of(file, generation, opened, Timestamp(0)).map_err(Failure::Damaged)?;
    lock(&shared.index).files.insert(slot, file);
    for groups in opened.groups.chunks(TURN) {
        let mut index = lock(&shared.index);
        for group in groups {
            let bytes = index.replace(&group.topic, old, slot, group.place);
            if let Some(file) = index.files.get_mut(&slot) {
                file.live_bytes += bytes;
            }
        }
    }
    // Topics of which nothing is in the new file.
    for topics in topics.chunks(TURN) {
        let mut index = lock(&shared.index);
        for topic in topics {
            index.leave(topic, old);
        }
    }
    lock(&shared.index).files.remove(&old);
    Ok(())
}

/// A segment for the index, without its records. Keys that were last used before `keys_from` are not looked at.
pub(super) fn file_of(
    file: Arc<SegmentFile>,
    generation: u32,
    opened: &segment::Opened,
    keys_from: Timestamp,
) -> Result<File, Error> {
    let has_keys = opened.newest_key > Timestamp(0) && opened.newest_key >= keys_from;
    let mut words = Vec::new();
    if has_keys {
        let reading = file
            .open()
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        for group in &opened.groups {
            let keys = keys::read(&*reading, &group.place)?;
            words.extend(keys.iter().map(|(key, _)| keys::word(*key)));
        }
    }
    let groups = opened.groups.iter();
    let key_bytes = groups.map(|group| group.place.keys_bytes() as u64);
    let records = opened
        .groups
        .iter()
        .map(|group| u64::from(group.place.bytes));
    Ok(File {
        number: opened.header.number,
        kind: FileKind::Segment {
            file,
            generation,
            filter: Filter::of(words),
        },
        last: Sequence(opened.header.last),
        size: opened.size,
        live_bytes: 0,
        fixed_bytes: opened.size.saturating_sub(records.sum()),
        key_bytes: key_bytes.sum(),
        times: opened.times.clone(),
        newest_key: opened.newest_key,
        is_damaged: false,
    })
}

/// Writes a segment once more, without what was dropped of it.
pub(super) fn rewrite(shared: &Shared, slot: Slot, keys_from: Timestamp) -> Result<(), Failure> {
    let index = lock(&shared.index);
    let Some(File {
        number,
        kind: FileKind::Segment {
            file, generation, ..
        },
        ..
    }) = index.files.get(&slot)
    else {
        return Ok(());
    };
    let number = *number;
    let generation = *generation + 1;
    let file = file.clone();
    let floor = index.floor;
    drop(index);
    let source = file.open()?;
    let before = segment::open(&*source).map_err(unopened)?;
    let path = segment_path(&shared.dir, number, generation);
    let origin = Origin {
        id: shared.id,
        number,
        span: (Sequence(before.header.first), Sequence(before.header.last)),
        floor,
    };
    let mut builder = Builder::create(&shared.disk, &path, origin)?;
    for group in &before.groups {
        copy(
            shared,
            slot,
            &*source,
            &file,
            group,
            keys_from,
            &mut builder,
        )?;
    }
    let opened = builder.finish()?;
    let topics = before.groups.into_iter().map(|group| group.topic).collect();
    install(shared, (slot, topics), path, generation, &opened)?;
    shared.disk.remove(file.path())?;
    shared.disk.sync_dir(&shared.dir)?;
    Ok(())
}

fn unopened(error: segment::Unopened) -> Failure {
    match error {
        segment::Unopened::Io(error) => Failure::Io(error),
        _ => Failure::Damaged(Error::Corrupt(
            "a segment's footer does not read back".into(),
        )),
    }
}

/// Copies what is left of a group.
fn copy(
    shared: &Shared,
    slot: Slot,
    source: &dyn DiskFile,
    file: &SegmentFile,
    group: &segment::Group,
    keys_from: Timestamp,
    builder: &mut Builder,
) -> Result<(), Failure> {
    let index = lock(&shared.index);
    let Some(state) = index.find(&group.topic) else {
        return Ok(());
    };
    let live = state.places.iter().find_map(|place| match place {
        Place::Segment {
            slot: other, place, ..
        } if *other == slot => Some(*place),
        _ => None,
    });
    let is_noted = state.noted == slot && state.first != First::NONE;
    let first = state.first;
    drop(index);
    let known = keys::read(source, &group.place).map_err(Failure::Damaged)?;
    let known: Vec<_> = known
        .into_iter()
        .filter(|(_, known)| known.time >= keys_from)
        .collect();
    let live = live.filter(|place| place.records > 0);
    if live.is_none() && known.is_empty() && !is_noted {
        return Ok(());
    }
    builder.begin(group.place.tag, &group.topic, first)?;
    if let Some(live) = live {
        let mut reader = Group::new(source, file.path(), &group.topic, group.place);
        let io = |failure| match failure {
            super::read::Failure::Error(Error::Corrupt(cause)) => {
                Failure::Damaged(Error::Corrupt(cause))
            }
            super::read::Failure::Error(error) => Failure::Io(io::Error::other(error)),
            super::read::Failure::Replaced => Failure::Io(io::ErrorKind::NotFound.into()),
        };
        reader.seek(live.first).map_err(|error| io(error.into()))?;
        let mut failed = None;
        reader
            .each(live.first, CHUNK_BYTES, |_, record| {
                if record.sequence < live.first {
                    return Ok(true);
                }
                let time = entry::time_of(record.stored).unwrap_or_default();
                failed = builder.record(record.sequence, time, record.entry).err();
                Ok(failed.is_none())
            })
            .map_err(io)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    builder.keys(&known)?;
    Ok(())
}
