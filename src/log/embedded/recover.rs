//! Opening a log: every file is looked at, and the index is made of what they say. Segments tell by their footers, journals are read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    committer::journal_file,
    disk::{self, Disk},
    entry::{Entry, First},
    files::{DIR, Header, Name, OpenFiles, Strange, identity_path},
    identity::{Identity, Unreadable},
    index::{Committed, Index, Slot, Spot, TopicId},
    journal::{self, Damage, Journal},
    seal, segment, trim,
};
use crate::{
    config,
    log::{OpenError, Sequence, Timestamp, Topic},
};

/// The database of the first format.
const FORMER: &str = "db";

/// A log that was opened.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) journal: Journal,
    pub(super) slot: Slot,
    /// The lowest tag that the journal has not used.
    pub(super) next_tag: u32,
    /// Journals that wait to be sealed.
    pub(super) unsealed: Vec<Slot>,
    pub(super) next_number: u64,
    pub(super) next_slot: Slot,
    /// When the newest record was appended.
    pub(super) newest: Timestamp,
}

/// The files of a directory, by number.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) journals: BTreeMap<u64, PathBuf>,
    pub(super) segments: BTreeMap<u64, (u32, PathBuf)>,
    /// Replaced or never finished.
    pub(super) leftovers: Vec<PathBuf>,
    /// None of the log's.
    pub(super) strange: Vec<PathBuf>,
}

impl Listing {
    /// Lists the log in `dir`, which holds nothing else.
    pub(super) fn read(dir: &Path) -> Result<Self, OpenError> {
        let mut listing = Self::lenient(dir)?;
        match listing.strange.pop() {
            Some(path) => Err(OpenError::Strange { path }),
            None => Ok(listing),
        }
    }

    /// The numbers of its files.
    pub(super) fn numbers(&self) -> BTreeSet<u64> {
        let segments = self.segments.keys();
        segments.chain(self.journals.keys()).copied().collect()
    }

    /// Lists the log in `dir`, and what else is there.
    pub(super) fn lenient(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |cause| OpenError::Directory {
            path: dir.into(),
            cause,
        };
        let mut listing = Self::default();
        for entry in fs::read_dir(dir).map_err(unusable)? {
            let path = entry.map_err(unusable)?.path();
            match path.file_name().and_then(Name::of) {
                Some(Name::Identity) => {}
                Some(Name::Journal(number)) => {
                    listing.journals.insert(number, path);
                }
                Some(Name::Segment { number, generation }) => {
                    listing.add_segment(number, generation, path);
                }
                Some(Name::Unfinished) => listing.leftovers.push(path),
                None => listing.strange.push(path),
            }
        }
        // A journal that was sealed is a segment by now.
        let sealed = listing.journals.keys().copied();
        let sealed: Vec<_> = sealed
            .filter(|number| listing.segments.contains_key(number))
            .collect();
        for number in sealed {
            listing.leftovers.extend(listing.journals.remove(&number));
        }
        Ok(listing)
    }

    /// Of two generations the later counts: it has its name only when it is complete.
    fn add_segment(&mut self, number: u64, generation: u32, path: PathBuf) {
        let former = self.segments.insert(number, (generation, path));
        if let Some((former, path)) = former {
            if former > generation {
                let replaced = self.segments.insert(number, (former, path));
                self.leftovers.extend(replaced.map(|(_, path)| path));
            } else {
                self.leftovers.push(path);
            }
        }
    }
}

/// Opens the log in the data directory `dir`, making one where there is none. The caller holds the directory's lock.
pub(super) fn open(
    disk: &Arc<dyn Disk>,
    open_files: &Arc<OpenFiles>,
    config: &config::Log,
    now: Timestamp,
) -> Result<Recovered, OpenError> {
    let dir = config.dir.join(DIR);
    let identity = identify(&**disk, &config.dir, &dir)?;
    let listing = Listing::read(&dir)?;
    let keys_from = now.before(config.dedupe_window);
    let mut recovery = Recovery {
        disk: disk.clone(),
        open_files: open_files.clone(),
        dir: dir.clone(),
        index: Index::new(identity.id, identity.gaps, &config.retention),
        next: Sequence::FIRST,
        next_slot: 1,
        journals: Vec::new(),
        keys_from,
        firsts: Vec::new(),
        leftovers: Vec::new(),
    };
    // In the order of the log, so that each topic's places are.
    let numbers = listing.numbers();
    let next_number = numbers.last().map_or(1, |last| last + 1);
    for number in numbers {
        if let Some((generation, path)) = listing.segments.get(&number) {
            recovery.segment(number, *generation, path)?;
        } else if let Some(path) = listing.journals.get(&number) {
            recovery.journal(number, path)?;
        }
    }
    // Nothing was changed before everything was read.
    recovery.leftovers.extend(listing.leftovers);
    recovery.finish(next_number, config)
}

/// The identity of the log in `dir`, which is made where there is nothing.
fn identify(disk: &dyn Disk, data_dir: &Path, dir: &Path) -> Result<Identity, OpenError> {
    let unusable = |cause| OpenError::Directory {
        path: dir.into(),
        cause,
    };
    match Identity::read(dir) {
        Ok(identity) => return Ok(identity),
        Err(Unreadable::Missing) => {}
        Err(Unreadable::Format(found)) => {
            return Err(OpenError::Format {
                path: data_dir.into(),
                found,
            });
        }
        Err(Unreadable::Damaged) => {
            return Err(OpenError::Damaged {
                file: identity_path(dir),
                offset: 0,
                what: "it does not say any more which log this is; no record is in doubt".into(),
            });
        }
        Err(Unreadable::Io(cause)) => return Err(unusable(cause)),
    }
    check_former(data_dir)?;
    let has_files = dir.exists() && {
        let listing = Listing::read(dir)?;
        !listing.journals.is_empty() || !listing.segments.is_empty()
    };
    if has_files {
        return Err(OpenError::Damaged {
            file: identity_path(dir),
            offset: 0,
            what: "it is missing, so it is unknown which log this is; no record is in doubt".into(),
        });
    }
    disk::make_dir(dir).map_err(unusable)?;
    disk.sync_dir(data_dir).map_err(unusable)?;
    let identity = Identity::new(Vec::new());
    identity.write(disk, dir).map_err(unusable)?;
    Ok(identity)
}

/// Refuses a directory that holds a log of the first format.
pub(super) fn check_former(data_dir: &Path) -> Result<(), OpenError> {
    if data_dir.join(FORMER).exists() {
        return Err(OpenError::Format {
            path: data_dir.into(),
            found: "1".into(),
        });
    }
    Ok(())
}

struct Recovery {
    disk: Arc<dyn Disk>,
    open_files: Arc<OpenFiles>,
    dir: PathBuf,
    index: Index,
    next: Sequence,
    next_slot: Slot,
    journals: Vec<Found>,
    keys_from: Timestamp,
    /// Topics whose first position may lie within a segment.
    firsts: Vec<(Topic, Sequence)>,
    /// Files that hold nothing.
    leftovers: Vec<PathBuf>,
}

/// A journal that was read.
struct Found {
    number: u64,
    slot: Slot,
    path: PathBuf,
    header: Header,
    end: u64,
    batches: u64,
    next_tag: u32,
}

impl Recovery {
    fn take_slot(&mut self) -> Slot {
        let slot = self.next_slot;
        self.next_slot += 1;
        slot
    }

    fn segment(&mut self, number: u64, generation: u32, path: &Path) -> Result<(), OpenError> {
        let file = self.open_files.segment(path.into());
        let reading = file.open().map_err(|cause| OpenError::Directory {
            path: path.into(),
            cause,
        })?;
        let opened = match segment::open(&*reading) {
            Ok(opened) => opened,
            Err(error) => return Err(self.unopened(path, number, &*reading, error)),
        };
        self.check(path, number, &opened.header)?;
        let entry = seal::file_of(file, generation, &opened, self.keys_from);
        let entry = entry.map_err(|error| OpenError::Damaged {
            file: path.into(),
            offset: 0,
            what: format!("{error}; no record is in doubt"),
        })?;
        let slot = self.take_slot();
        self.index.files.insert(slot, entry);
        for group in opened.groups {
            let id = self.index.enter(&group.topic, First::NONE);
            self.note(id, &group.topic, group.first_position, slot);
            self.index.add_group(id, slot, group.place);
        }
        self.next = self.next.max(Sequence(opened.header.last).next());
        self.index.floor = self.index.floor.max(opened.floor);
        Ok(())
    }

    fn note(&mut self, id: TopicId, topic: &Topic, first: First, slot: Slot) {
        if first != First::NONE {
            self.index.note(id, first, slot);
            self.firsts.push((topic.clone(), first.sequence));
        }
    }

    fn unopened(
        &self,
        path: &Path,
        number: u64,
        file: &dyn disk::DiskFile,
        error: segment::Unopened,
    ) -> OpenError {
        let mut bytes = [0; super::files::HEADER_BYTES];
        let header = file
            .read_at(&mut bytes, 0)
            .ok()
            .and_then(|_| Header::decode(segment::MAGIC, &bytes).ok());
        let what = match header {
            Some(header) if header.number == number => {
                format!("records {} to {} are in doubt", header.first, header.last)
            }
            _ => "which records are in doubt is unknown".into(),
        };
        match error {
            segment::Unopened::Io(cause) => OpenError::Directory {
                path: path.into(),
                cause,
            },
            segment::Unopened::Strange(strange) => self.strange(path, strange),
            segment::Unopened::Damaged(offset) => OpenError::Damaged {
                file: path.into(),
                offset,
                what,
            },
        }
    }

    fn strange(&self, path: &Path, strange: Strange) -> OpenError {
        match strange {
            Strange::Magic => OpenError::Strange { path: path.into() },
            Strange::Format(found) => OpenError::Format {
                path: path.into(),
                found: found.to_string(),
            },
            Strange::Damaged => OpenError::Damaged {
                file: path.into(),
                offset: 0,
                what: "which records are in doubt is unknown".into(),
            },
        }
    }

    fn check(&self, path: &Path, number: u64, header: &Header) -> Result<(), OpenError> {
        if header.id != self.index.id || header.number != number {
            return Err(OpenError::Strange { path: path.into() });
        }
        Ok(())
    }

    fn journal(&mut self, number: u64, path: &Path) -> Result<(), OpenError> {
        let unusable = |cause| OpenError::Directory {
            path: path.into(),
            cause,
        };
        let file = self.disk.open(path, true).map_err(unusable)?;
        let header = match journal::header(&file).map_err(unusable)? {
            Ok(Some(header)) => header,
            Ok(None) => {
                // It was being made when the process ended.
                self.leftovers.push(path.into());
                return Ok(());
            }
            Err(strange) => return Err(self.strange(path, strange)),
        };
        self.check(path, number, &header)?;
        let slot = self.take_slot();
        let empty = Journal::opened(path.into(), file.clone(), &header);
        self.index.files.insert(slot, journal_file(&empty));
        let mut reading = Reading {
            slot,
            topics: BTreeMap::new(),
            noted: Vec::new(),
            next_tag: 0,
        };
        let index = &mut self.index;
        // The journal before it ends where this one begins, if it is still there.
        let before = self
            .journals
            .last()
            .filter(|before| before.number + 1 == number && before.batches > 0);
        let before = before.map(|before| (before.path.clone(), before.end));
        let may_jump = before.is_none();
        let scanned = journal::scan(&file, &header, self.next, may_jump, |whole| {
            reading.take(index, &whole);
        });
        let scanned = scanned.map_err(unusable)?;
        if let Some(damage) = scanned.damage {
            return Err(match before {
                // The end of that one is missing.
                Some((before, end)) if scanned.batches == 0 && damage.last.is_some() => {
                    let offset = end;
                    damaged(&before, Damage { offset, ..damage })
                }
                _ => damaged(path, damage),
            });
        }
        if scanned.cut_bytes > 0 {
            tracing::warn!(
                file = %path.display(),
                offset = scanned.end,
                bytes = scanned.cut_bytes,
                "an unfinished write at the end of the log was left out; nothing of it was acknowledged"
            );
        }
        let noted = std::mem::take(&mut reading.noted);
        for (topic, first) in noted {
            self.firsts.push((topic, first));
        }
        if let Some(entry) = self.index.files.get_mut(&slot) {
            entry.size = scanned.end;
            entry.last = Sequence(scanned.next.0.saturating_sub(1));
        }
        self.next = scanned.next;
        self.journals.push(Found {
            number,
            slot,
            path: path.into(),
            header,
            end: scanned.end,
            batches: scanned.batches,
            next_tag: reading.next_tag,
        });
        Ok(())
    }

    fn finish(mut self, next_number: u64, config: &config::Log) -> Result<Recovered, OpenError> {
        let dir = self.dir.clone();
        let unusable = |cause: io::Error| OpenError::Directory {
            path: dir.clone(),
            cause,
        };
        self.index.tail = self.next;
        let firsts = std::mem::take(&mut self.firsts);
        for (topic, first) in firsts {
            trim::forget(&mut self.index, &topic, first);
        }
        // The last journal with something in it goes on; those without are not needed.
        let active = self
            .journals
            .iter()
            .rposition(|found| found.batches > 0)
            .filter(|at| self.journals[*at].end < config.segment.as_u64());
        let mut next_number = next_number;
        let mut unsealed = Vec::new();
        let mut resumed = None;
        for (at, found) in std::mem::take(&mut self.journals).into_iter().enumerate() {
            if Some(at) == active {
                let journal = Journal::resume(&*self.disk, found.path, found.header, found.end);
                resumed = Some((journal.map_err(unusable)?, found.slot, found.next_tag));
            } else if found.batches == 0 {
                self.index.files.remove(&found.slot);
                self.leftovers.push(found.path);
            } else {
                Journal::settle(&*self.disk, &found.path, found.end).map_err(unusable)?;
                unsealed.push(found.slot);
            }
        }
        let (journal, slot, next_tag) = match resumed {
            Some(resumed) => resumed,
            None => {
                let id = self.index.id;
                let journal = Journal::create(&*self.disk, &self.dir, id, next_number);
                next_number += 1;
                let slot = self.take_slot();
                let journal = journal.map_err(unusable)?;
                self.index.files.insert(slot, journal_file(&journal));
                (journal, slot, 0)
            }
        };
        for path in &self.leftovers {
            self.disk.remove(path).map_err(unusable)?;
        }
        let newest = self.index.files.values().map(super::index::File::newest);
        Ok(Recovered {
            newest: newest.max().unwrap_or_default(),
            index: self.index,
            journal,
            slot,
            next_tag,
            unsealed,
            next_number,
            next_slot: self.next_slot,
        })
    }
}

/// A journal that is being read.
struct Reading {
    slot: Slot,
    topics: BTreeMap<u32, (TopicId, Topic)>,
    noted: Vec<(Topic, Sequence)>,
    next_tag: u32,
}

impl Reading {
    fn take(&mut self, index: &mut Index, whole: &journal::Whole<'_>) {
        let mut time = None;
        let mut newest_key = None;
        for (offset, entry, bytes) in &whole.entries {
            match entry {
                Entry::Topic {
                    tag,
                    first,
                    space,
                    name,
                } => {
                    let Ok(topic) = Topic::new(*space, name) else {
                        continue;
                    };
                    self.next_tag = self.next_tag.max(tag + 1);
                    let id = index.enter(&topic, First::NONE);
                    if *first != First::NONE {
                        index.note(id, *first, self.slot);
                        self.noted.push((topic.clone(), first.sequence));
                    }
                    index.define(self.slot, *tag, id);
                    self.topics.insert(*tag, (id, topic));
                }
                Entry::Record {
                    tag,
                    sequence,
                    key,
                    stored,
                } => {
                    let Some((id, _)) = self.topics.get(tag) else {
                        continue;
                    };
                    time = super::entry::time_of(stored);
                    if key.is_some() {
                        newest_key = time;
                    }
                    let committed = Committed {
                        spot: Spot {
                            sequence: *sequence,
                            offset: u32::try_from(*offset).unwrap_or(u32::MAX),
                            bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                        },
                        key: key.map(|key| key.key),
                    };
                    index.append(*id, self.slot, *tag, std::iter::once(committed));
                }
                Entry::Floor(floor) => index.floor = index.floor.max(*floor),
                Entry::Keys { .. } | Entry::Index { .. } => {}
            }
        }
        if let Some(file) = index.files.get_mut(&self.slot) {
            if let Some(time) = time {
                file.note_time(whole.first, time);
            }
            file.newest_key = file.newest_key.max(newest_key.unwrap_or_default());
        }
    }
}

fn damaged(path: &Path, damage: Damage) -> OpenError {
    let what = match damage.last {
        Some(last) => format!("records {} to {last} are in doubt", damage.first),
        None => format!("records from {} on are in doubt", damage.first),
    };
    OpenError::Damaged {
        file: path.into(),
        offset: damage.offset,
        what,
    }
}
