//! Segments: sealed journals. A segment holds each topic's records beside each other, so that a topic's history is read in few and
//! long pieces; it never changes, and another generation of it replaces it when much of it was dropped.
//!
//! ```text
//!  header 64 │ group │ group │ … │ footer │ trailer 32
//!
//!  group     topic │ record … │ index, if the records are many │ keys, if there are some       entries, see `entry`
//!  footer    4 groups │ 4 times │ 8 time of the newest key │ 8 floor of the log
//!            group:  4 tag │ 4 at │ 4 bytes │ 4 places in the index │ 4 keys │ 4 records │ 8 first │ 8 last
//!                    1 flags │ 8 first position │ 1 space │ 2 length │ name
//!            times:  8 sequence │ 8 time            sorted; no record from `sequence` up to the next one is younger than `time`
//!  trailer   8 footer at │ 4 footer bytes │ 4 CRC-32C of the footer │ 8 zero │ 8 magic
//! ```
//!
//! `at` is where the group's records begin, `bytes` how long they are. A group without records keeps the topic's first position, or
//! idempotency keys whose records were dropped.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf as _, BufMut as _};

use super::{
    disk::{Disk, DiskFile},
    entry::{self, First, INDEX_BYTES, KEY_BYTES, LIST_AT},
    files::{HEADER_BYTES, Header, Strange, unfinished_path},
};
use crate::log::{LogId, Sequence, Timestamp, Topic, dedupe::Known};

pub(super) const MAGIC: [u8; 8] = *b"WEIRSGMT";
const TRAILER_MAGIC: [u8; 8] = *b"WEIR.SEG";
const TRAILER_BYTES: usize = 32;
/// Bytes of records between two places in a group's index.
const INDEX_STEP: u32 = 16 * 1024;
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1024 * 1024;
/// Bytes after which what was written is flushed, so that sealing does not fill the disk's queue before a commit.
const FLUSH_BYTES: u64 = 4 * 1024 * 1024;
/// Times of a segment at most.
const TIMES: usize = 4096;

/// A topic's part of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) topic: Topic,
    pub(super) first_position: First,
    pub(super) place: Place,
}

/// A group's place in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tag: u32,
    /// Where the records begin.
    pub(super) at: u32,
    /// Bytes of records.
    pub(super) bytes: u32,
    /// Places in the index, which lies behind the records.
    pub(super) index: u32,
    /// Idempotency keys, which lie behind the index.
    pub(super) keys: u32,
    pub(super) records: u32,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
}

impl Place {
    pub(super) const fn end(&self) -> u64 {
        self.at as u64 + self.bytes as u64
    }

    /// Where the list of the index begins.
    pub(super) const fn index_at(&self) -> u64 {
        self.end() + LIST_AT as u64
    }

    /// Where the entry of keys begins.
    pub(super) const fn keys_at(&self) -> u64 {
        if self.index == 0 {
            self.end()
        } else {
            self.index_at() + self.index as u64 * INDEX_BYTES as u64
        }
    }

    /// Where the group ends.
    pub(super) const fn keys_end(&self) -> u64 {
        self.keys_at() + self.keys_bytes() as u64
    }

    /// Bytes of the entry of keys.
    pub(super) const fn keys_bytes(&self) -> usize {
        if self.keys == 0 {
            0
        } else {
            LIST_AT + self.keys as usize * KEY_BYTES
        }
    }
}

/// A segment as it was opened or written.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) header: Header,
    pub(super) groups: Vec<Group>,
    pub(super) times: Vec<(Sequence, Timestamp)>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// When the newest keyed record was appended whose key it has; zero when it has none.
    pub(super) newest_key: Timestamp,
    /// The log's floor when it was written.
    pub(super) floor: Sequence,
}

/// Why a segment does not open.
#[derive(Debug)]
pub(super) enum Unopened {
    Strange(Strange),
    /// Its footer is not what was written: where that begins.
    Damaged(u64),
    Io(io::Error),
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads what a segment says of itself: its header and its footer.
pub(super) fn open(file: &dyn DiskFile) -> Result<Opened, Unopened> {
    let size = file.size()?;
    let mut bytes = [0; HEADER_BYTES];
    file.read_at(&mut bytes, 0)?;
    let header = Header::decode(MAGIC, &bytes).map_err(Unopened::Strange)?;
    let trailer_at = size.saturating_sub(TRAILER_BYTES as u64);
    let mut trailer = [0; TRAILER_BYTES];
    file.read_at(&mut trailer, trailer_at)?;
    let mut rest = trailer.as_slice();
    let at = rest.get_u64();
    let len = rest.get_u32();
    let checksum = rest.get_u32();
    let is_ours = rest.get_u64() == 0 && rest == TRAILER_MAGIC;
    if !is_ours || at.saturating_add(u64::from(len)) != trailer_at {
        return Err(Unopened::Damaged(trailer_at));
    }
    let mut footer = vec![0; len as usize];
    let read = file.read_at(&mut footer, at)?;
    if read < footer.len() || crc32c::crc32c(&footer) != checksum {
        return Err(Unopened::Damaged(at));
    }
    parse_footer(&footer, header, size).ok_or(Unopened::Damaged(at))
}

fn parse_footer(mut bytes: &[u8], header: Header, size: u64) -> Option<Opened> {
    let groups = bytes.try_get_u32().ok()?;
    let times = bytes.try_get_u32().ok()?;
    let newest_key = Timestamp(bytes.try_get_u64().ok()?);
    let floor = Sequence(bytes.try_get_u64().ok()?);
    let groups: Option<Vec<_>> = (0..groups).map(|_| parse_group(&mut bytes)).collect();
    let times: Option<Vec<_>> = (0..times)
        .map(|_| {
            let sequence = Sequence(bytes.try_get_u64().ok()?);
            Some((sequence, Timestamp(bytes.try_get_u64().ok()?)))
        })
        .collect();
    Some(Opened {
        header,
        groups: groups?,
        times: times?,
        size,
        newest_key,
        floor,
    })
}

fn parse_group(bytes: &mut &[u8]) -> Option<Group> {
    let place = Place {
        tag: bytes.try_get_u32().ok()?,
        at: bytes.try_get_u32().ok()?,
        bytes: bytes.try_get_u32().ok()?,
        index: bytes.try_get_u32().ok()?,
        keys: bytes.try_get_u32().ok()?,
        records: bytes.try_get_u32().ok()?,
        first: Sequence(bytes.try_get_u64().ok()?),
        last: Sequence(bytes.try_get_u64().ok()?),
    };
    let is_inherited = bytes.try_get_u8().ok()? != 0;
    let first_position = First {
        sequence: Sequence(bytes.try_get_u64().ok()?),
        is_inherited,
    };
    let space = entry::space_of(bytes.try_get_u8().ok()?)?;
    let length = usize::from(bytes.try_get_u16().ok()?);
    let (name, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(Group {
        topic: Topic::new(space, std::str::from_utf8(name).ok()?).ok()?,
        first_position,
        place,
    })
}

/// A segment on its way to the disk.
pub(super) struct Builder {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    dir: PathBuf,
    path: PathBuf,
    unfinished: PathBuf,
    header: Header,
    bytes: Vec<u8>,
    /// Where `bytes` go.
    at: u64,
    flushed: u64,
    group: Option<Open>,
    groups: Vec<Group>,
    times: Times,
    newest_key: Timestamp,
    floor: Sequence,
}

/// What a segment is of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) id: LogId,
    pub(super) number: u64,
    /// The first and the last sequence that its journal may hold.
    pub(super) span: (Sequence, Sequence),
    /// The log's floor.
    pub(super) floor: Sequence,
}

/// The group that is being written.
struct Open {
    topic: Topic,
    first_position: First,
    place: Place,
    index: Vec<(Sequence, u32)>,
}

impl Builder {
    /// Begins a segment that will have this path. What an attempt before left there is removed.
    pub(super) fn create(disk: &Arc<dyn Disk>, path: &Path, origin: Origin) -> io::Result<Self> {
        let unfinished = unfinished_path(path);
        if unfinished.exists() {
            disk.remove(&unfinished)?;
        }
        let header = Header {
            magic: MAGIC,
            id: origin.id,
            number: origin.number,
            first: origin.span.0.0,
            last: origin.span.1.0,
        };
        Ok(Self {
            file: disk.create(&unfinished)?,
            disk: disk.clone(),
            dir: path.parent().unwrap_or(Path::new(".")).into(),
            path: path.into(),
            unfinished,
            bytes: header.encode().to_vec(),
            header,
            at: 0,
            flushed: 0,
            group: None,
            groups: Vec::new(),
            times: Times::default(),
            newest_key: Timestamp(0),
            floor: origin.floor,
        })
    }

    /// Bytes so far.
    pub(super) const fn size(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// Begins the group of a topic. Records of it have this tag.
    pub(super) fn begin(
        &mut self,
        tag: u32,
        topic: &Topic,
        first_position: First,
    ) -> io::Result<()> {
        self.end_group()?;
        entry::put_topic(&mut self.bytes, tag, topic, first_position);
        let place = Place {
            tag,
            at: u32::try_from(self.size()).map_err(|_| too_large())?,
            bytes: 0,
            index: 0,
            keys: 0,
            records: 0,
            first: Sequence(0),
            last: Sequence(0),
        };
        self.group = Some(Open {
            topic: topic.clone(),
            first_position,
            place,
            index: Vec::new(),
        });
        Ok(())
    }

    /// Adds a record of the topic, as its entry is.
    pub(super) fn record(
        &mut self,
        sequence: Sequence,
        time: Timestamp,
        entry: &[u8],
    ) -> io::Result<()> {
        let offset = self.size();
        let Some(group) = &mut self.group else {
            return Ok(());
        };
        let place = &mut group.place;
        if place.records == 0 {
            place.first = sequence;
        }
        let since = group.index.last().map_or(place.at, |(_, offset)| *offset);
        let offset = u32::try_from(offset).map_err(|_| too_large())?;
        if offset - since >= INDEX_STEP {
            group.index.push((sequence, offset));
        }
        place.last = sequence;
        place.records += 1;
        place.bytes += u32::try_from(entry.len()).map_err(|_| too_large())?;
        self.times.add(sequence, time);
        self.bytes.extend_from_slice(entry);
        self.spill()
    }

    /// Adds the topic's idempotency keys, sorted by their hashes. Records do not follow.
    pub(super) fn keys(&mut self, keys: &[([u8; 16], Known)]) -> io::Result<()> {
        self.end_records()?;
        if let Some(group) = &mut self.group
            && !keys.is_empty()
        {
            group.place.keys = u32::try_from(keys.len()).map_err(|_| too_large())?;
            entry::put_keys(&mut self.bytes, group.place.tag, keys);
            let newest = keys.iter().map(|(_, known)| known.time).max();
            self.newest_key = self.newest_key.max(newest.unwrap_or_default());
        }
        self.spill()
    }

    /// Writes the group's index, once.
    fn end_records(&mut self) -> io::Result<()> {
        if let Some(group) = &mut self.group
            && !group.index.is_empty()
        {
            group.place.index = u32::try_from(group.index.len()).map_err(|_| too_large())?;
            entry::put_index(&mut self.bytes, group.place.tag, &group.index);
            group.index = Vec::new();
        }
        self.spill()
    }

    fn end_group(&mut self) -> io::Result<()> {
        self.end_records()?;
        if let Some(group) = self.group.take() {
            self.groups.push(Group {
                topic: group.topic,
                first_position: group.first_position,
                place: group.place,
            });
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.bytes.len() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_at(&self.bytes, self.at)?;
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
        if self.at - self.flushed >= FLUSH_BYTES {
            self.file.sync()?;
            self.flushed = self.at;
        }
        Ok(())
    }

    /// Makes the segment durable under its name.
    pub(super) fn finish(mut self) -> io::Result<Opened> {
        self.end_group()?;
        let at = self.size();
        let times = std::mem::take(&mut self.times).finish();
        let footer = self.footer(&times);
        let mut trailer = [0; TRAILER_BYTES];
        let mut out = trailer.as_mut_slice();
        out.put_u64(at);
        out.put_u32(u32::try_from(footer.len()).map_err(|_| too_large())?);
        out.put_u32(crc32c::crc32c(&footer));
        out.put_u64(0);
        out.put_slice(&TRAILER_MAGIC);
        self.bytes.extend_from_slice(&footer);
        self.bytes.extend_from_slice(&trailer);
        self.write()?;
        self.file.sync()?;
        self.disk.rename(&self.unfinished, &self.path)?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Opened {
            header: self.header,
            groups: std::mem::take(&mut self.groups),
            times,
            size: self.at,
            newest_key: self.newest_key,
            floor: self.floor,
        })
    }

    fn footer(&self, times: &[(Sequence, Timestamp)]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(u32::try_from(self.groups.len()).unwrap_or(u32::MAX));
        out.put_u32(u32::try_from(times.len()).unwrap_or(u32::MAX));
        out.put_u64(self.newest_key.0);
        out.put_u64(self.floor.0);
        put_groups(&mut out, &self.groups);
        for (sequence, time) in times {
            out.put_u64(sequence.0);
            out.put_u64(time.0);
        }
        out
    }
}

fn put_groups(out: &mut Vec<u8>, groups: &[Group]) {
    for group in groups {
        let place = &group.place;
        for number in [
            place.tag,
            place.at,
            place.bytes,
            place.index,
            place.keys,
            place.records,
        ] {
            out.put_u32(number);
        }
        out.put_u64(place.first.0);
        out.put_u64(place.last.0);
        out.put_u8(u8::from(group.first_position.is_inherited));
        out.put_u64(group.first_position.sequence.0);
        out.put_u8(entry::space_tag(group.topic.space()));
        let name = group.topic.name().as_bytes();
        // Names are limited to 256 bytes.
        out.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
        out.put_slice(name);
    }
}

fn too_large() -> io::Error {
    io::Error::other("a segment is limited to 4 GiB")
}

/// Gathers when the records of a segment were appended: for some sequences, the newest time of what lies at or before them.
#[derive(Debug, Default)]
struct Times(Vec<(Sequence, Timestamp)>);

impl Times {
    fn add(&mut self, sequence: Sequence, time: Timestamp) {
        match self.0.last() {
            // Records of one commit have one time.
            Some((last, same)) if *same == time && *last < sequence => {}
            _ => self.0.push((sequence, time)),
        }
        if self.0.len() >= 64 * TIMES {
            self.thin();
        }
    }

    fn thin(&mut self) {
        self.0 = thinned(std::mem::take(&mut self.0));
    }

    fn finish(mut self) -> Vec<(Sequence, Timestamp)> {
        self.thin();
        self.0
    }
}

/// Sorts times by sequence, makes them grow, and leaves at most [`TIMES`] of them, the newest always among them. The time of one that
/// is left out is taken by the one before it, so that nothing seems older than it is.
pub(super) fn thinned(mut times: Vec<(Sequence, Timestamp)>) -> Vec<(Sequence, Timestamp)> {
    times.sort_unstable();
    let mut newest = Timestamp(0);
    for (_, time) in &mut times {
        newest = newest.max(*time);
        *time = newest;
    }
    times.dedup_by_key(|(_, time)| *time);
    let step = times.len().div_ceil(TIMES).max(1);
    times
        .chunks(step)
        .filter_map(|chunk| Some((chunk.first()?.0, chunk.last()?.1)))
        .collect()
}

impl Drop for Builder {
    fn drop(&mut self) {
        // Gone when it was finished.
        let _ = self.disk.remove(&self.unfinished);
    }
}
