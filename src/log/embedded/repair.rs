//! Looking at a log without opening it, and repairing one that does not open.
//!
//! A look reads every byte. A repair writes each damaged file once more as a segment of what reads back, and moves the damaged one
//! aside; it never gives a number out again that may have been given out.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    disk::{self, DirLock, Disk, DiskFile, System},
    entry::{self, Entry, First},
    files::{DIR, HEADER_BYTES, Header, Strange, segment_path},
    identity::{Identity, Unreadable},
    journal::{self, Piece},
    keys,
    recover::{Listing, check_former},
    segment::{self, Builder, Origin},
};
use crate::log::{LogId, OpenError, Sequence, Timestamp, Topic, dedupe::Known};

/// Where damaged files are moved to, in the data directory.
const ASIDE: &str = "damaged";
/// Where a repair writes down what it did, in that directory.
const REPORT: &str = "report.txt";

/// Something of a log that does not read back.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Loss {
    /// The file's name.
    pub file: String,
    /// Where in it the damage begins, in bytes.
    pub offset: u64,
    /// The first and the last sequence in doubt; zeros when no record is.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// The topic, as `space/name`, where it is known.
    pub topic: Option<String>,
}

/// One file of a log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileReport {
    /// Its name.
    pub file: String,
    /// `journal` or `segment`.
    pub kind: &'static str,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Records in it, dropped ones that are still there included.
    pub records: u64,
    /// Topics in it.
    pub topics: u64,
    /// The first and the last sequence in it; zeros when it holds no record.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// When its newest record was appended, in nanoseconds since the Unix epoch.
    pub newest: u64,
    /// Bytes of an unfinished write at its end, which a start leaves out.
    pub unfinished_bytes: u64,
}

/// A topic's share of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TopicReport {
    /// Records.
    pub records: u64,
    /// Bytes of them, as stored.
    pub bytes: u64,
    /// The first sequence.
    pub first: u64,
    /// The last sequence.
    pub last: u64,
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// The log's identity; empty when that does not read back.
    pub id: String,
    /// The files, in the order of the log.
    pub files: Vec<FileReport>,
    /// The topics, by name. Records that were dropped and are still in a file count too.
    pub topics: BTreeMap<String, TopicReport>,
    /// What does not read back; nothing in a sound log.
    pub damage: Vec<Loss>,
    /// Files that are none of the log.
    pub strange: Vec<String>,
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Repair {
    /// What is lost.
    pub lost: Vec<Loss>,
    /// Files that were written once more or made again.
    pub repaired: Vec<String>,
    /// Records that were kept of those files.
    pub kept: u64,
    /// Where the damaged files are now; none when nothing was damaged.
    pub aside: Option<PathBuf>,
}

/// Everything of a file that reads back.
#[derive(Default)]
struct Content {
    topics: BTreeMap<Topic, Found>,
    lost: Vec<Loss>,
    /// The highest sequence that may have been given out.
    last: Sequence,
    unfinished_bytes: u64,
    floor: Sequence,
}

/// What was found of a topic.
struct Found {
    first: First,
    records: BTreeMap<Sequence, (Timestamp, Vec<u8>)>,
    keys: BTreeMap<[u8; 16], Known>,
}

impl Content {
    fn topic(&mut self, topic: &Topic, first: First) -> &mut Found {
        let found = self.topics.entry(topic.clone()).or_insert_with(|| Found {
            first,
            records: BTreeMap::new(),
            keys: BTreeMap::new(),
        });
        if first.sequence > found.first.sequence {
            found.first = first;
        }
        found
    }

    /// Notes that a later file begins with `next`: nothing of that number or later was in this one.
    fn end_before(&mut self, next: Sequence) {
        let last = Sequence(next.0.saturating_sub(1));
        let found = self
            .topics
            .values()
            .filter_map(|found| found.records.keys().next_back());
        // Files that a restore wrote hold topics one after the other, not times.
        if found.max().is_some_and(|found| *found > last) {
            return;
        }
        self.last = self.last.min(last);
        for loss in &mut self.lost {
            loss.last = loss.last.min(last.0).max(loss.first.min(last.0));
        }
    }

    /// Notes that the next journal begins with `next`, so that this one ended there: what it lacks of that is lost.
    fn reach(&mut self, next: Sequence, file: &str) {
        let first = self.last.next();
        if self.lost.is_empty() && first < next {
            self.last = Sequence(next.0 - 1);
            self.lost.push(Loss {
                file: file.into(),
                offset: 0,
                first: first.0,
                last: self.last.0,
                topic: None,
            });
        }
    }

    fn records(&self) -> u64 {
        let topics = self.topics.values();
        topics.map(|found| found.records.len() as u64).sum()
    }
}

/// The group of a segment in which an entry lies.
#[derive(Clone, Copy)]
enum Group<'a> {
    /// It lies in a journal.
    None,
    Of(&'a Topic),
    /// Its beginning does not read back.
    Unknown,
}

/// Takes entries one after the other.
struct Taking<'a> {
    content: &'a mut Content,
    tags: BTreeMap<u32, Topic>,
    file: &'a str,
    /// Records of topics that are not known, because their names were lost.
    nameless: Vec<Sequence>,
}

impl Taking<'_> {
    /// Takes an entry. In a journal its tag says which topic it is of, in a segment the group in which it lies.
    fn take(&mut self, entry: &Entry<'_>, bytes: &[u8], group: Group<'_>) {
        match entry {
            Entry::Topic {
                tag,
                first,
                space,
                name,
            } => {
                if let Ok(topic) = Topic::new(*space, name) {
                    self.content.topic(&topic, *first);
                    self.tags.insert(*tag, topic);
                }
            }
            Entry::Record {
                tag,
                sequence,
                key,
                stored,
            } => {
                self.content.last = self.content.last.max(*sequence);
                let Some(topic) = self.topic_of(*tag, group) else {
                    self.nameless.push(*sequence);
                    return;
                };
                let time = entry::time_of(stored).unwrap_or_default();
                let found = self.content.topic(&topic, First::NONE);
                found.records.insert(*sequence, (time, bytes.to_vec()));
                if let Some(key) = key {
                    let known = Known {
                        sequence: *sequence,
                        time,
                        content: key.content,
                    };
                    found.keys.insert(key.key, known);
                }
            }
            Entry::Floor(floor) => self.content.floor = self.content.floor.max(*floor),
            Entry::Keys { tag, list } => {
                if let Some(topic) = self.topic_of(*tag, group) {
                    let found = self.content.topic(&topic, First::NONE);
                    let keys =
                        (0..list.len() / entry::KEY_BYTES).filter_map(|at| entry::key_at(list, at));
                    found.keys.extend(keys);
                }
            }
            Entry::Index { .. } => {}
        }
    }

    fn topic_of(&self, tag: u32, group: Group<'_>) -> Option<Topic> {
        match group {
            Group::None => self.tags.get(&tag).cloned(),
            Group::Of(topic) => Some(topic.clone()),
            Group::Unknown => None,
        }
    }

    /// Notes records whose topics are not known.
    fn finish(self) {
        if let (Some(first), Some(last)) = (self.nameless.first(), self.nameless.last()) {
            self.content.lost.push(Loss {
                file: self.file.into(),
                offset: 0,
                first: first.0,
                last: last.0,
                topic: None,
            });
        }
    }
}

/// Reads all of a journal. `expected` is the sequence behind what lies before it.
fn read_journal(
    path: &Path,
    number: u64,
    id: Option<LogId>,
    expected: Sequence,
) -> Result<Content, OpenError> {
    let unusable = |cause| unusable(path, cause);
    let file = System.open(path, false).map_err(unusable)?;
    let name = name_of(path);
    let mut content = Content {
        last: Sequence(expected.0.saturating_sub(1)),
        floor: Sequence::FIRST,
        ..Content::default()
    };
    let header = journal::header(&file).map_err(unusable)?;
    let header = match header {
        Ok(None) => return Ok(content),
        Ok(Some(header)) => Some(header),
        Err(Strange::Magic | Strange::Format(_)) => {
            return Err(OpenError::Strange { path: path.into() });
        }
        Err(Strange::Damaged) => None,
    };
    let is_ours =
        header.is_none_or(|header| header.number == number && id.is_none_or(|id| header.id == id));
    if !is_ours {
        return Err(OpenError::Strange { path: path.into() });
    }
    let mut lost = Vec::new();
    if let Some(header) = &header {
        let scanned = journal::scan(&file, header, expected, true, |_| {}).map_err(unusable)?;
        content.unfinished_bytes = scanned.cut_bytes;
    }
    let mut taking = Taking {
        content: &mut content,
        tags: BTreeMap::new(),
        file: &name,
        nameless: Vec::new(),
    };
    let salt = header.map(|header| header.first);
    let next = journal::salvage(&file, salt, expected, |piece| match piece {
        Piece::Entry(entry, bytes) => taking.take(&entry, bytes, Group::None),
        Piece::Lost(damage) => lost.push(damage),
    });
    taking.finish();
    for damage in lost {
        content.lost.push(Loss {
            file: name.clone(),
            offset: damage.offset,
            first: damage.first.0,
            last: damage.last.unwrap_or(damage.first).0,
            topic: None,
        });
    }
    let next = next.map_err(unusable)?;
    content.last = content.last.max(Sequence(next.0.saturating_sub(1)));
    Ok(content)
}

/// Reads all of a segment.
fn read_segment(path: &Path, number: u64, id: Option<LogId>) -> Result<Content, OpenError> {
    let unusable = |cause| unusable(path, cause);
    let file = System.open(path, false).map_err(unusable)?;
    let name = name_of(path);
    let mut content = Content {
        floor: Sequence::FIRST,
        ..Content::default()
    };
    let opened = match segment::open(&*file) {
        Ok(opened) => Some(opened),
        Err(segment::Unopened::Io(cause)) => return Err(unusable(cause)),
        Err(segment::Unopened::Strange(Strange::Magic | Strange::Format(_))) => {
            return Err(OpenError::Strange { path: path.into() });
        }
        Err(_) => None,
    };
    let mut head = [0; HEADER_BYTES];
    file.read_at(&mut head, 0).map_err(unusable)?;
    let header = Header::decode(segment::MAGIC, &head).ok();
    if let Some(header) = header {
        if header.number != number || id.is_some_and(|id| header.id != id) {
            return Err(OpenError::Strange { path: path.into() });
        }
        content.last = Sequence(header.last);
    }
    let end = match &opened {
        Some(opened) => opened
            .groups
            .iter()
            .map(|group| group.place.keys_end())
            .max()
            .unwrap_or(HEADER_BYTES as u64),
        None => file.size().map_err(unusable)?,
    };
    let mut bytes = vec![0; usize::try_from(end).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0).map_err(unusable)?;
    bytes.truncate(read);
    let stretches = take_entries(&mut content, &name, &bytes, opened.as_ref());
    if let Some(opened) = &opened {
        content.floor = opened.floor;
        compare(&mut content, &name, &*file, opened, &stretches);
    } else {
        let first = header.map_or(0, |header| header.first);
        content.lost.push(Loss {
            file: name,
            offset: stretches.first().copied().unwrap_or(0),
            first,
            last: content.last.0,
            topic: None,
        });
    }
    Ok(content)
}

/// Takes every entry of a segment that reads back; where others begin.
fn take_entries(
    content: &mut Content,
    name: &str,
    bytes: &[u8],
    opened: Option<&segment::Opened>,
) -> Vec<u64> {
    let mut taking = Taking {
        content,
        tags: BTreeMap::new(),
        file: name,
        nameless: Vec::new(),
    };
    // A name that does not read back where it stands may do so in the footer.
    let groups = opened
        .map(|opened| opened.groups.as_slice())
        .unwrap_or_default();
    for group in groups {
        taking.content.topic(&group.topic, group.first_position);
    }
    let in_footer = |at: u64| {
        let mut groups = groups.iter();
        groups.find(|group| (u64::from(group.place.at)..group.place.keys_end()).contains(&at))
    };
    let mut broken = Vec::new();
    let mut at = HEADER_BYTES;
    let mut is_whole = true;
    // Without a footer: the topic whose group begun last.
    let mut current = None;
    while at < bytes.len() {
        match entry::read(&bytes[at..]) {
            Ok((entry, size)) => {
                if let Entry::Topic { space, name, .. } = &entry {
                    current = Topic::new(*space, name).ok();
                }
                let group = match (in_footer(at as u64), &current) {
                    (Some(group), _) => Group::Of(&group.topic),
                    (None, Some(topic)) => Group::Of(topic),
                    (None, None) => Group::Unknown,
                };
                taking.take(&entry, &bytes[at..at + size], group);
                at += size;
                is_whole = true;
            }
            Err(_) => {
                if is_whole {
                    broken.push(at as u64);
                }
                // The next group may have begun in what does not read back.
                current = None;
                is_whole = false;
                at += 1;
            }
        }
    }
    taking.finish();
    broken
}

/// Notes what a segment's footer says and its records do not.
fn compare(
    content: &mut Content,
    name: &str,
    file: &dyn DiskFile,
    opened: &segment::Opened,
    broken: &[u64],
) {
    for group in &opened.groups {
        let place = &group.place;
        let found = content.topic(&group.topic, group.first_position);
        let records = found.records.len() as u64;
        let are_keys_lost = keys::read(file, place).is_err();
        let start = u64::from(place.at);
        let within = |offset: &&u64| (start..place.keys_end()).contains(*offset);
        if records < u64::from(place.records) || are_keys_lost {
            let offset = broken.iter().find(within).copied().unwrap_or(start);
            let missing = missing(&found.records, place);
            content.lost.push(Loss {
                file: name.into(),
                offset,
                first: missing.0.0,
                last: missing.1.0,
                topic: Some(group.topic.to_string()),
            });
        }
    }
    if content.lost.is_empty() && !broken.is_empty() {
        content.lost.push(Loss {
            file: name.into(),
            offset: broken[0],
            first: 0,
            last: 0,
            topic: None,
        });
    }
}

/// Between which sequences records of a group may be missing.
fn missing(
    records: &BTreeMap<Sequence, (Timestamp, Vec<u8>)>,
    place: &segment::Place,
) -> (Sequence, Sequence) {
    if records.len() as u64 >= u64::from(place.records) {
        return (Sequence(0), Sequence(0));
    }
    if records.is_empty() {
        return (place.first, place.last);
    }
    // The footer says the ends only; what lies between two neighbours is unknown, so the widest stretch is told.
    let has_first = records.contains_key(&place.first);
    let has_last = records.contains_key(&place.last);
    let first = if has_first {
        place.first.next()
    } else {
        place.first
    };
    let last = if has_last {
        Sequence(place.last.0.saturating_sub(1))
    } else {
        place.last
    };
    (first, last)
}

/// Looks at the log in `dir`, which may be in use. Reads every byte of it; blocks.
///
/// # Errors
/// [`OpenError`] when there is no log, or when the disk does not answer.
pub fn inspect(dir: &Path) -> Result<Inspection, OpenError> {
    let log = dir.join(DIR);
    check_former(dir)?;
    let identity = Identity::read(&log);
    if matches!(identity, Err(Unreadable::Missing)) && !log.exists() {
        return Err(OpenError::Missing { path: dir.into() });
    }
    let id = identity.as_ref().ok().map(|identity| identity.id);
    let mut inspection = Inspection {
        id: id.map_or_else(String::new, |id| id.to_string()),
        ..Inspection::default()
    };
    if let Err(Unreadable::Format(found)) = identity {
        return Err(OpenError::Format {
            path: dir.into(),
            found,
        });
    }
    if id.is_none() {
        inspection.damage.push(identity_loss());
    }
    let mut failed = None;
    each_file(&log, id, |path, file| match file {
        Ok((kind, content)) => inspection.add(path, kind, content),
        Err(OpenError::Strange { .. }) => inspection.strange.push(name_of(path)),
        // It was sealed or removed meanwhile.
        Err(_) if !path.exists() => {}
        Err(error) => failed = failed.take().or(Some(error)),
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    inspection.drop_trimmed();
    Ok(inspection)
}

fn identity_loss() -> Loss {
    Loss {
        file: "identity".into(),
        offset: 0,
        first: 0,
        last: 0,
        topic: None,
    }
}

/// The first sequence that a file may hold; none when it holds none, or does not say.
fn first_in(listing: &Listing, number: u64) -> Option<Sequence> {
    let header = |magic, path: &Path| {
        let mut bytes = [0; HEADER_BYTES];
        let file = System.open(path, false).ok()?;
        file.read_at(&mut bytes, 0).ok()?;
        Some((Header::decode(magic, &bytes).ok()?, file))
    };
    let first = match (listing.segments.get(&number), listing.journals.get(&number)) {
        (Some((_, path)), _) => Sequence(header(segment::MAGIC, path)?.0.first),
        (None, Some(path)) => {
            let (header, file) = header(journal::MAGIC, path)?;
            journal::first(&file, &header).ok()??
        }
        (None, None) => return None,
    };
    (first > Sequence(0)).then_some(first)
}

/// Shows every file of the log in `log` to `show`, in order.
fn each_file(
    log: &Path,
    id: Option<LogId>,
    mut show: impl FnMut(&Path, Result<(&'static str, Content), OpenError>),
) -> Result<(), OpenError> {
    let listing = Listing::lenient(log)?;
    for path in &listing.strange {
        show(path, Err(OpenError::Strange { path: path.clone() }));
    }
    let mut expected = Sequence::FIRST;
    let numbers: Vec<_> = listing.numbers().into_iter().collect();
    for (at, number) in numbers.iter().enumerate() {
        let number = *number;
        let (path, content) = match (listing.segments.get(&number), listing.journals.get(&number)) {
            (Some((_, path)), _) => (
                path,
                read_segment(path, number, id).map(|content| ("segment", content)),
            ),
            (None, Some(path)) => {
                let content = read_journal(path, number, id, expected);
                (path, content.map(|content| ("journal", content)))
            }
            (None, None) => continue,
        };
        let behind = numbers[at + 1..]
            .iter()
            .find_map(|number| first_in(&listing, *number));
        let is_followed = numbers.get(at + 1) == Some(&(number + 1));
        let content = content.map(|(kind, mut content)| {
            if let Some(behind) = behind {
                content.end_before(behind);
                if kind == "journal" && is_followed {
                    content.reach(behind, &name_of(path));
                }
            }
            expected = expected.max(content.last.next());
            (kind, content)
        });
        show(path, content);
    }
    Ok(())
}

impl Inspection {
    fn add(&mut self, path: &Path, kind: &'static str, content: Content) {
        let sequences = || {
            content
                .topics
                .values()
                .flat_map(|found| found.records.keys())
        };
        let times = content
            .topics
            .values()
            .flat_map(|found| found.records.values());
        self.files.push(FileReport {
            file: name_of(path),
            kind,
            bytes: fs::metadata(path).map_or(0, |meta| meta.len()),
            records: content.records(),
            topics: content.topics.len() as u64,
            first: sequences().min().map_or(0, |first| first.0),
            last: sequences().max().map_or(0, |last| last.0),
            newest: times.map(|(time, _)| time.0).max().unwrap_or(0),
            unfinished_bytes: content.unfinished_bytes,
        });
        for (topic, found) in &content.topics {
            let report = self.topics.entry(topic.to_string()).or_default();
            // Held in `last` until everything is read: where the topic begins.
            for (sequence, (_, bytes)) in &found.records {
                if report.records == 0 {
                    report.first = sequence.0;
                }
                report.records += 1;
                report.bytes += bytes.len() as u64;
                report.last = report.last.max(sequence.0);
            }
        }
        self.damage.extend(content.lost);
    }

    /// Leaves out topics of which nothing is there.
    fn drop_trimmed(&mut self) {
        self.topics.retain(|_, report| report.records > 0);
    }
}

/// Repairs the log in `dir`, which no process has open. A sound log is left as it is. Blocks.
///
/// # Errors
/// See [`OpenError`]; a repair that is cut short may be run again.
pub fn repair(dir: &Path) -> Result<Repair, OpenError> {
    let log = dir.join(DIR);
    check_former(dir)?;
    if !log.exists() {
        return Err(OpenError::Missing { path: dir.into() });
    }
    let _lock = DirLock::acquire(dir)?;
    let disk: Arc<dyn Disk> = Arc::new(System);
    let mut repair = Repair::default();
    let mut aside = Aside::new(dir);
    let id = repair_identity(&disk, &log, &mut repair)?;
    let mut failed = None;
    each_file(&log, Some(id), |path, file| {
        let done = match file {
            Ok((_, content)) if content.lost.is_empty() => Ok(()),
            Ok((_, content)) => rewrite(&disk, &log, id, path, content, &mut repair, &mut aside),
            Err(OpenError::Strange { .. }) => {
                repair.repaired.push(name_of(path));
                aside.take(path)
            }
            Err(error) => Err(error),
        };
        failed = failed.take().or(done.err());
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    aside.report(&repair)?;
    repair.aside = aside.made;
    Ok(repair)
}

/// Makes sure that the log says which one it is.
fn repair_identity(
    disk: &Arc<dyn Disk>,
    log: &Path,
    repair: &mut Repair,
) -> Result<LogId, OpenError> {
    match Identity::read(log) {
        Ok(identity) => return Ok(identity.id),
        Err(Unreadable::Format(found)) => {
            return Err(OpenError::Format {
                path: log.into(),
                found,
            });
        }
        Err(Unreadable::Io(cause)) => return Err(unusable(log, cause)),
        Err(Unreadable::Missing | Unreadable::Damaged) => {}
    }
    let listing = Listing::lenient(log)?;
    let segments = listing
        .segments
        .values()
        .map(|(_, path)| (segment::MAGIC, path));
    let journals = listing.journals.values().map(|path| (journal::MAGIC, path));
    let found = segments.chain(journals).find_map(|(magic, path)| {
        let mut bytes = [0; HEADER_BYTES];
        System.open(path, false).ok()?.read_at(&mut bytes, 0).ok()?;
        Header::decode(magic, &bytes).ok()
    });
    let id = found.map_or_else(LogId::random, |header| header.id);
    let identity = Identity {
        id,
        gaps: Vec::new(),
    };
    identity
        .write(&**disk, log)
        .map_err(|cause| unusable(log, cause))?;
    repair.lost.push(identity_loss());
    repair.repaired.push("identity".into());
    Ok(id)
}

/// Writes a segment of what a damaged file still holds, and moves the file aside.
fn rewrite(
    disk: &Arc<dyn Disk>,
    log: &Path,
    id: LogId,
    path: &Path,
    content: Content,
    repair: &mut Repair,
    aside: &mut Aside,
) -> Result<(), OpenError> {
    let listing = Listing::lenient(log)?;
    let segment = listing
        .segments
        .iter()
        .find(|(_, (_, other))| other == path);
    let journal = listing.journals.iter().find(|(_, other)| *other == path);
    let (number, generation) = match (segment, journal) {
        (Some((number, (generation, _))), _) => (*number, generation + 1),
        (None, Some((number, _))) => (*number, 0),
        (None, None) => return Ok(()),
    };
    let first = content
        .topics
        .values()
        .flat_map(|found| found.records.keys())
        .min();
    let origin = Origin {
        id,
        number,
        span: (first.copied().unwrap_or(content.last), content.last),
        floor: content.floor,
    };
    let target = segment_path(log, number, generation);
    build(disk, &target, origin, &content).map_err(|cause| unusable(&target, cause))?;
    aside.take(path)?;
    repair.kept += content.records();
    repair.repaired.push(name_of(path));
    repair.lost.extend(content.lost);
    Ok(())
}

fn build(disk: &Arc<dyn Disk>, path: &Path, origin: Origin, content: &Content) -> io::Result<()> {
    let mut builder = Builder::create(disk, path, origin)?;
    for (tag, (topic, found)) in (0_u32..).zip(&content.topics) {
        builder.begin(tag, topic, found.first)?;
        for (sequence, (time, bytes)) in &found.records {
            builder.record(*sequence, *time, bytes)?;
        }
        let keys: Vec<_> = found
            .keys
            .iter()
            .map(|(key, known)| (*key, *known))
            .collect();
        builder.keys(&keys)?;
    }
    builder.finish()?;
    Ok(())
}

/// The directory that damaged files are moved to, made when it is needed.
struct Aside {
    data_dir: PathBuf,
    made: Option<PathBuf>,
}

impl Aside {
    fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.into(),
            made: None,
        }
    }

    fn dir(&mut self) -> Result<PathBuf, OpenError> {
        if let Some(made) = &self.made {
            return Ok(made.clone());
        }
        let base = self.data_dir.join(ASIDE);
        disk::make_dir(&base).map_err(|cause| unusable(&base, cause))?;
        let mut number = 1;
        let dir = loop {
            let dir = base.join(number.to_string());
            if !dir.exists() {
                break dir;
            }
            number += 1;
        };
        disk::make_dir(&dir).map_err(|cause| unusable(&dir, cause))?;
        self.made = Some(dir.clone());
        Ok(dir)
    }

    fn take(&mut self, path: &Path) -> Result<(), OpenError> {
        let dir = self.dir()?;
        let target = dir.join(path.file_name().unwrap_or_default());
        let moved = fs::rename(path, &target)
            .and_then(|()| System.sync_dir(&dir))
            .and_then(|()| System.sync_dir(path.parent().unwrap_or(Path::new("."))));
        moved.map_err(|cause| unusable(path, cause))
    }

    /// Writes down what was lost, beside the damaged files.
    fn report(&mut self, repair: &Repair) -> Result<(), OpenError> {
        if repair.repaired.is_empty() {
            return Ok(());
        }
        let path = self.dir()?.join(REPORT);
        let mut text = String::new();
        for loss in &repair.lost {
            text.push_str(&format!("{loss}\n"));
        }
        fs::write(&path, text).map_err(|cause| unusable(&path, cause))
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}: ", self.file, self.offset)?;
        match (self.last, &self.topic) {
            (0, None) => write!(f, "no record is lost"),
            (0, Some(topic)) => write!(f, "idempotency keys of {topic} are lost"),
            (last, Some(topic)) => write!(
                f,
                "records of {topic} between {} and {last} are lost",
                self.first
            ),
            (last, None) => write!(f, "records between {} and {last} are lost", self.first),
        }
    }
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn unusable(path: &Path, cause: io::Error) -> OpenError {
    OpenError::Directory {
        path: path.into(),
        cause,
    }
}
