//! Reading: pages, the newest records, the first of a time. Everything blocks, and nothing waits for a commit.
//!
//! The index says where the next records lie; they are read without its lock. A file that is replaced meanwhile stays readable
//! while it is open, and is looked up anew where it is not.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    disk::DiskFile,
    entry::{self, Broken, Entry, INDEX_BYTES},
    index::{Spot, Step},
    lock,
    segment::Place,
    shared::Shared,
};
use crate::log::{Error, Limit, Page, Record, Sequence, Timestamp, Topic};

/// Bytes read at once, beyond a single record.
const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes read at least, where fewer are asked for.
const LEAST_BYTES: usize = 16 * 1024;
/// Bytes between two records of a journal that are read along rather than read around.
const GAP_BYTES: u64 = 4096;
/// Attempts to find a file that was replaced meanwhile.
const ATTEMPTS: usize = 8;
/// Records looked at at once for the first of a time.
const SEEK_RECORDS: usize = 64;
/// Records of a journal that are looked up at once for an export.
const STORED_RECORDS: usize = 4096;
/// Bytes read of an entry whose size is not known.
const LEAST_ENTRY_BYTES: usize = 512;
/// Bytes searched at once for the next record behind damage; more than the largest message.
const RESYNC_BYTES: usize = 32 * 1024 * 1024;

/// Why reading stopped.
pub(super) enum Failure {
    /// The file was replaced and is gone.
    Replaced,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Records that are taken one by one until they are enough.
struct Taking<'a> {
    records: &'a mut Vec<Arc<Record>>,
    limit: Limit,
    bytes: usize,
}

impl Taking<'_> {
    fn take(&mut self, record: Record) {
        self.bytes = self.bytes.saturating_add(record.payload.len());
        self.records.push(Arc::new(record));
    }

    fn is_full(&self) -> bool {
        let is_started = !self.records.is_empty();
        is_started && (self.records.len() >= self.limit.records || self.bytes >= self.limit.bytes)
    }

    fn left(&self) -> usize {
        self.limit.records.saturating_sub(self.records.len()).max(1)
    }

    /// Bytes worth reading at once.
    fn chunk(&self) -> usize {
        let left = self.limit.bytes.saturating_sub(self.bytes);
        left.clamp(LEAST_BYTES, CHUNK_BYTES)
    }
}

/// See [`crate::log::Engine::read`].
pub(super) fn page(
    shared: &Shared,
    topic: &Topic,
    from: Sequence,
    limit: Limit,
) -> Result<Page, Error> {
    shared.check_reads()?;
    let mut page = Page {
        records: Vec::new(),
        next: from,
        tail: shared.tail(),
    };
    let mut taking = Taking {
        records: &mut page.records,
        limit,
        bytes: 0,
    };
    let mut at = None;
    let mut attempts = 0;
    loop {
        let index = lock(&shared.index);
        let next = match at {
            None => {
                page.tail = index.tail;
                index.start_of_read(topic, from)?
            }
            Some(next) => {
                let first = index.bounds(topic).first;
                if next < first {
                    // Retention overtook the page: what it has joins, and the next one is told.
                    page.next = next;
                    return if taking.records.is_empty() {
                        Err(Error::Trimmed { first })
                    } else {
                        Ok(page)
                    };
                }
                next
            }
        };
        at = Some(next);
        let step = index.step(topic, next, taking.left());
        drop(index);
        let tail = page.tail;
        let took = match step {
            Step::End => {
                page.next = tail.max(next);
                return Ok(page);
            }
            Step::Spots { file, spots } => read_spots(&*file, topic, &spots, tail, &mut taking),
            Step::Group { file, place } => {
                file.open()
                    .map_err(|error| replaced(&error))
                    .and_then(|opened| {
                        let mut group = Group::new(&*opened, file.path(), topic, place);
                        group.seek(next)?;
                        group.take(next, tail, &mut taking)
                    })
            }
        };
        let done = match took {
            Ok(done) => done,
            Err(Failure::Replaced) if attempts < ATTEMPTS => {
                attempts += 1;
                continue;
            }
            Err(Failure::Replaced) => {
                return Err(Error::Unavailable("the log's files change too fast".into()));
            }
            // What was read before is given out; the next page begins with what does not read back.
            Err(Failure::Error(_)) if !taking.records.is_empty() => {
                page.next = after_last(&page.records, next);
                return Ok(page);
            }
            Err(Failure::Error(error)) => return Err(error),
        };
        match done {
            Took::All(last) => at = Some(last.next().max(next.next())),
            Took::Enough => {
                page.next = after_last(&page.records, next);
                return Ok(page);
            }
            Took::Tail => {
                page.next = tail;
                return Ok(page);
            }
        }
    }
}

fn after_last(records: &[Arc<Record>], else_at: Sequence) -> Sequence {
    records.last().map_or(else_at, |last| last.sequence.next())
}

fn replaced(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        return Failure::Replaced;
    }
    Failure::Error(unreadable(error))
}

fn unreadable(error: &io::Error) -> Error {
    Error::Unavailable(error.to_string())
}

/// How far a step went.
enum Took {
    /// Everything of its place, up to this record.
    All(Sequence),
    /// The limit was reached.
    Enough,
    /// The tail was reached.
    Tail,
}

/// Reads records of a journal, neighbours together.
fn read_spots(
    file: &dyn DiskFile,
    topic: &Topic,
    spots: &[Spot],
    tail: Sequence,
    taking: &mut Taking<'_>,
) -> Result<Took, Failure> {
    let mut rest = spots;
    while let [first, ..] = rest {
        let run = run_of(rest, taking.chunk() as u64);
        let start = u64::from(first.offset);
        let last = rest[run - 1];
        let size = u64::from(last.offset) + u64::from(last.bytes) - start;
        let bytes = read_at(file, start, usize::try_from(size).unwrap_or(usize::MAX))?;
        for spot in &rest[..run] {
            if spot.sequence >= tail {
                return Ok(Took::Tail);
            }
            let at = usize::try_from(u64::from(spot.offset) - start).unwrap_or(usize::MAX);
            let found = entry::read(bytes.get(at..).unwrap_or_default());
            let Ok((
                Entry::Record {
                    sequence, stored, ..
                },
                _,
            )) = found
            else {
                return Err(damaged(topic, spot.sequence, u64::from(spot.offset)).into());
            };
            if sequence != spot.sequence {
                return Err(damaged(topic, spot.sequence, u64::from(spot.offset)).into());
            }
            taking.take(entry::record_of(&bytes, sequence, stored)?);
            if taking.is_full() {
                return Ok(Took::Enough);
            }
        }
        rest = &rest[run..];
    }
    Ok(Took::All(
        spots.last().map_or(Sequence(0), |last| last.sequence),
    ))
}

/// How many of the first spots are worth one read of about `chunk` bytes.
fn run_of(spots: &[Spot], chunk: u64) -> usize {
    let start = u64::from(spots[0].offset);
    let mut end = start + u64::from(spots[0].bytes);
    let mut run = 1;
    for spot in &spots[1..] {
        let offset = u64::from(spot.offset);
        let until = offset + u64::from(spot.bytes);
        if offset > end + GAP_BYTES || until - start > chunk {
            break;
        }
        end = until;
        run += 1;
    }
    run
}

fn read_at(file: &dyn DiskFile, offset: u64, size: usize) -> Result<Bytes, Failure> {
    let mut bytes = vec![0; size];
    let read = file.read_at(&mut bytes, offset);
    bytes.truncate(read.map_err(|error| unreadable(&error))?);
    Ok(Bytes::from(bytes))
}

fn damaged(topic: &Topic, sequence: Sequence, offset: u64) -> Error {
    Error::Corrupt(format!(
        "record {sequence} of {topic} (byte {offset} of its file) does not read back; what follows it can be read after {sequence}"
    ))
}

/// A group of a segment, read forward.
pub(super) struct Group<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    topic: &'a Topic,
    place: Place,
    /// Where the next entry begins.
    at: u64,
    /// Where reading ends.
    end: u64,
}

/// A record of a group, as it is stored.
pub(super) struct Stored<'a> {
    pub(super) sequence: Sequence,
    pub(super) stored: &'a [u8],
    /// Its whole entry.
    pub(super) entry: &'a [u8],
}

impl<'a> Group<'a> {
    pub(super) fn new(
        file: &'a dyn DiskFile,
        path: &'a Path,
        topic: &'a Topic,
        place: Place,
    ) -> Self {
        Self {
            file,
            path,
            topic,
            place,
            at: u64::from(place.at),
            end: place.end(),
        }
    }

    /// Moves to a place at or before the first record that is not before `sequence`.
    pub(super) fn seek(&mut self, sequence: Sequence) -> Result<(), Error> {
        let before = self.index_before(sequence)?;
        self.at = match before {
            Some(before) => self.index(before)?.1,
            None => u64::from(self.place.at),
        };
        Ok(())
    }

    /// The last place of the index whose record lies at or before `sequence`.
    fn index_before(&self, sequence: Sequence) -> Result<Option<u32>, Error> {
        let mut low = 0;
        let mut high = self.place.index;
        while low < high {
            let middle = low + (high - low) / 2;
            if self.index(middle)?.0 <= sequence {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        // What an index says is checked against the record it points to: it is not read as a whole.
        while low > 0 {
            let (sequence, offset) = self.index(low - 1)?;
            if self.is_at(sequence, offset) {
                return Ok(Some(low - 1));
            }
            low -= 1;
        }
        Ok(None)
    }

    fn index(&self, at: u32) -> Result<(Sequence, u64), Error> {
        let mut bytes = [0; INDEX_BYTES];
        let offset = self.place.index_at() + u64::from(at) * INDEX_BYTES as u64;
        let read = self.file.read_at(&mut bytes, offset);
        read.map_err(|error| unreadable(&error))?;
        let (sequence, offset) = bytes.split_at(8);
        let sequence = u64::from_be_bytes(sequence.try_into().unwrap_or_default());
        let offset = u32::from_be_bytes(offset.try_into().unwrap_or_default());
        Ok((Sequence(sequence), u64::from(offset)))
    }

    /// Whether the record with this sequence lies there, by its entry's head.
    fn is_at(&self, sequence: Sequence, offset: u64) -> bool {
        if !(u64::from(self.place.at)..self.place.end()).contains(&offset) {
            return false;
        }
        let mut bytes = [0; 8];
        let read = self.file.read_at(&mut bytes, offset + entry::SEQUENCE_AT);
        read.is_ok() && u64::from_be_bytes(bytes) == sequence.0
    }

    /// Shows each record to `show` until that returns false; returns whether it never did. Records that do not read back and lie
    /// before `from` are left out.
    pub(super) fn each(
        &mut self,
        from: Sequence,
        chunk: usize,
        mut show: impl FnMut(&Bytes, Stored<'_>) -> Result<bool, Error>,
    ) -> Result<bool, Failure> {
        let mut wanted = chunk;
        while self.at < self.end {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            let bytes = read_at(self.file, self.at, wanted.min(left))?;
            let mut at = 0;
            let mut is_broken = bytes.is_empty();
            while at < bytes.len() && !is_broken {
                match entry::read(&bytes[at..]) {
                    Ok((
                        Entry::Record {
                            sequence, stored, ..
                        },
                        size,
                    )) => {
                        let stored = Stored {
                            sequence,
                            stored,
                            entry: &bytes[at..at + size],
                        };
                        at += size;
                        if !show(&bytes, stored)? {
                            self.at += at as u64;
                            return Ok(false);
                        }
                    }
                    Err(Broken::Short(size)) if bytes.len() < left && at + size <= left => {
                        wanted = if at == 0 { size } else { chunk };
                        break;
                    }
                    Ok(_) | Err(_) => is_broken = true,
                }
            }
            self.at += at as u64;
            if is_broken {
                self.skip_damage(from)?;
                wanted = chunk;
            }
        }
        Ok(true)
    }

    /// Moves behind what does not read back, if that lies before `from`.
    fn skip_damage(&mut self, from: Sequence) -> Result<(), Failure> {
        let next = self.next_record()?;
        if let Some((offset, sequence)) = next
            && sequence <= from
        {
            self.at = offset;
            return Ok(());
        }
        let before = next.map_or(self.place.last, |(_, next)| {
            Sequence(next.0.saturating_sub(1))
        });
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        Err(Failure::Error(Error::Corrupt(format!(
            "records of {} up to {before} (byte {} of {file}) do not read back; what follows can be read after {before}",
            self.topic, self.at
        ))))
    }

    /// The first record behind here that reads back, found byte by byte: the length of the damaged one may be wrong.
    fn next_record(&self) -> Result<Option<(u64, Sequence)>, Failure> {
        let mut start = self.at + 1;
        while start < self.end {
            let left = usize::try_from(self.end - start).unwrap_or(usize::MAX);
            let bytes = read_at(self.file, start, left.min(RESYNC_BYTES))?;
            for at in 0..bytes.len() {
                let rest = &bytes[at..];
                if entry::is_like_record(rest)
                    && let Ok((Entry::Record { sequence, .. }, _)) = entry::read(rest)
                    && sequence <= self.place.last
                {
                    return Ok(Some((start + at as u64, sequence)));
                }
            }
            if bytes.len() < RESYNC_BYTES {
                break;
            }
            // A record may begin in this piece and end in the next.
            start += (RESYNC_BYTES / 2) as u64;
        }
        Ok(None)
    }

    fn take(
        &mut self,
        from: Sequence,
        tail: Sequence,
        taking: &mut Taking<'_>,
    ) -> Result<Took, Failure> {
        let last = self.place.last;
        let chunk = taking.chunk();
        let mut is_tail = false;
        let is_all = self.each(from, chunk, |bytes, record| {
            if record.sequence < from {
                return Ok(true);
            }
            is_tail = record.sequence >= tail;
            if is_tail {
                return Ok(false);
            }
            taking.take(entry::record_of(bytes, record.sequence, record.stored)?);
            Ok(!taking.is_full())
        })?;
        Ok(match (is_all, is_tail) {
            (true, _) => Took::All(last),
            (false, true) => Took::Tail,
            (false, false) => Took::Enough,
        })
    }

    /// The records before `before`, newest first, block by block, until `is_enough`.
    fn back(
        &mut self,
        before: Sequence,
        mut take: impl FnMut(Vec<Record>) -> bool,
    ) -> Result<(), Failure> {
        let least = self.place.first;
        let mut block = self.index_before(Sequence(before.0.saturating_sub(1)))?;
        self.end = self.place.end();
        loop {
            let start = match block {
                Some(at) => self.index(at)?.1,
                None => u64::from(self.place.at),
            };
            self.at = start;
            let mut records = Vec::new();
            self.each(Sequence(0), CHUNK_BYTES, |bytes, record| {
                if record.sequence >= before {
                    return Ok(false);
                }
                if record.sequence >= least {
                    records.push(entry::record_of(bytes, record.sequence, record.stored)?);
                }
                Ok(true)
            })?;
            records.reverse();
            self.end = start;
            let is_enough = take(records);
            match block {
                Some(at) if !is_enough => block = at.checked_sub(1),
                _ => return Ok(()),
            }
        }
    }
}

/// See [`crate::log::Engine::newest`].
pub(super) fn newest(
    shared: &Shared,
    topic: &Topic,
    before: Sequence,
    limit: Limit,
) -> Result<Vec<Arc<Record>>, Error> {
    shared.check_reads()?;
    let mut newest = Newest {
        records: Vec::new(),
        limit,
        bytes: 0,
    };
    let mut before = before.min(shared.tail());
    let mut attempts = 0;
    while !newest.is_full() {
        let step = lock(&shared.index).step_back(topic, before, newest.left());
        let went = match step {
            Step::End => break,
            Step::Spots { file, spots } => back_spots(&*file, topic, &spots, &mut newest)
                .map(|()| spots.first().map_or(Sequence(0), |first| first.sequence)),
            Step::Group { file, place } => {
                file.open()
                    .map_err(|error| replaced(&error))
                    .and_then(|opened| {
                        let mut group = Group::new(&*opened, file.path(), topic, place);
                        group.back(before, |records| newest.take_all(records))?;
                        Ok(place.first)
                    })
            }
        };
        match went {
            Ok(first) => before = first,
            Err(Failure::Replaced) if attempts < ATTEMPTS => {
                attempts += 1;
                newest.records.retain(|record| record.sequence >= before);
                newest.bytes = newest
                    .records
                    .iter()
                    .map(|record| record.payload.len())
                    .sum();
            }
            Err(Failure::Replaced) => {
                return Err(Error::Unavailable("the log's files change too fast".into()));
            }
            Err(Failure::Error(error)) => return Err(error),
        }
    }
    newest.records.reverse();
    Ok(newest.records)
}

/// Shows the stored form of the topic's records in `from..tail`, as many as lie together, to `show` until that returns false. Returns
/// where to go on; none when there are no more.
pub(super) fn stored(
    shared: &Shared,
    topic: &Topic,
    from: Sequence,
    tail: Sequence,
    mut show: impl FnMut(Sequence, &[u8]) -> bool,
) -> Result<Option<Sequence>, Error> {
    let mut at = from;
    for _ in 0..ATTEMPTS {
        let step = lock(&shared.index).step(topic, at, STORED_RECORDS);
        match step {
            Step::End => return Ok(None),
            Step::Spots { file, spots } => {
                for spot in &spots {
                    if spot.sequence >= tail {
                        return Ok(None);
                    }
                    let bytes = entry_at(&*file, u64::from(spot.offset));
                    let bytes = bytes.map_err(|error| unreadable(&error))?;
                    match entry::read(&bytes) {
                        Ok((
                            Entry::Record {
                                sequence, stored, ..
                            },
                            _,
                        )) if sequence == spot.sequence => {
                            if !show(sequence, stored) {
                                return Ok(None);
                            }
                        }
                        _ => return Err(damaged(topic, spot.sequence, u64::from(spot.offset))),
                    }
                }
                return Ok(spots.last().map(|last| last.sequence.next()));
            }
            Step::Group { file, place } => {
                let mut is_end = false;
                let went = file
                    .open()
                    .map_err(|error| replaced(&error))
                    .and_then(|opened| {
                        let mut group = Group::new(&*opened, file.path(), topic, place);
                        group.seek(at)?;
                        group.each(at, CHUNK_BYTES, |_, record| {
                            if record.sequence < at {
                                return Ok(true);
                            }
                            is_end =
                                record.sequence >= tail || !show(record.sequence, record.stored);
                            at = record.sequence.next();
                            Ok(!is_end)
                        })
                    });
                match went {
                    Ok(_) if is_end => return Ok(None),
                    Ok(_) => return Ok(Some(at)),
                    Err(Failure::Replaced) => {}
                    Err(Failure::Error(error)) => return Err(error),
                }
            }
        }
    }
    Err(Error::Unavailable("the log's files change too fast".into()))
}

/// The bytes of the entry at `offset`.
pub(super) fn entry_at(file: &dyn DiskFile, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LEAST_ENTRY_BYTES];
    let read = file.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    let size = entry::size(&bytes).unwrap_or(0);
    // A length that does not read back right must not take memory.
    let left = file.size()?.saturating_sub(offset);
    let size = size.min(usize::try_from(left).unwrap_or(usize::MAX));
    if size > bytes.len() {
        bytes.resize(size, 0);
        let read = file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
    }
    bytes.truncate(size);
    Ok(bytes)
}

/// Records taken from the newest on.
struct Newest {
    records: Vec<Arc<Record>>,
    limit: Limit,
    bytes: usize,
}

impl Newest {
    fn is_full(&self) -> bool {
        let is_started = !self.records.is_empty();
        is_started && (self.records.len() >= self.limit.records || self.bytes >= self.limit.bytes)
    }

    fn left(&self) -> usize {
        self.limit.records.saturating_sub(self.records.len()).max(1)
    }

    /// Takes records, newest first; returns whether they are enough.
    fn take_all(&mut self, records: Vec<Record>) -> bool {
        for record in records {
            if self.is_full() {
                break;
            }
            self.bytes = self.bytes.saturating_add(record.payload.len());
            self.records.push(Arc::new(record));
        }
        self.is_full()
    }
}

/// Reads records of a journal from the last one back.
fn back_spots(
    file: &dyn DiskFile,
    topic: &Topic,
    spots: &[Spot],
    newest: &mut Newest,
) -> Result<(), Failure> {
    for spot in spots.iter().rev() {
        let mut records = Vec::new();
        let mut taking = Taking {
            records: &mut records,
            limit: Limit {
                records: 1,
                bytes: usize::MAX,
            },
            bytes: 0,
        };
        let one = std::slice::from_ref(spot);
        read_spots(file, topic, one, Sequence(u64::MAX), &mut taking)?;
        let records = records.into_iter().filter_map(Arc::into_inner).collect();
        if newest.take_all(records) {
            break;
        }
    }
    Ok(())
}

/// See [`crate::log::Engine::seek`].
pub(super) fn seek(shared: &Shared, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
    shared.check_reads()?;
    let index = lock(&shared.index);
    let tail = index.tail;
    let from = index.start_of_time(topic, time);
    drop(index);
    let Some(mut at) = from else {
        return Ok(tail);
    };
    let limit = Limit {
        records: SEEK_RECORDS,
        bytes: CHUNK_BYTES,
    };
    while at < tail {
        let page = match page(shared, topic, at, limit) {
            Ok(page) => page,
            Err(Error::Trimmed { first }) if first > at => {
                at = first;
                continue;
            }
            Err(error) => return Err(error),
        };
        let found = page.records.iter().find(|record| record.time >= time);
        if let Some(record) = found {
            return Ok(record.sequence);
        }
        at = page.next;
    }
    Ok(tail)
}
