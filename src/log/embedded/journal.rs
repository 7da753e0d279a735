//! Journals: what is being written. A commit is one batch: one write, one flush.
//!
//! ```text
//!  header 64 │ batch │ batch │ … │ zeros that were set aside
//!
//!  batch    4 magic │ 4 bytes of entries │ 4 entries │ 4 records │ 8 first sequence │ 4 blank sectors │ 4 CRC-32C
//!           entries │ zeros │ 8 end mark                                  a multiple of 32 bytes altogether
//! ```
//!
//! A batch begins at a multiple of 32 bytes, so its header lies in one sector and is there whole or not at all. The checksum of a
//! header covers the journal's salt and the batch's place too: nothing that a client sends can look like one.
//!
//! # An end or damage
//! Only the last batch can be unfinished, since each is flushed before the next is written. What a power cut left out of it reads as
//! zeros, sector by sector, because the room was set aside as zeros. So a batch that does not read back is the end of the log if
//! nothing valid lies behind it and *more of its sectors are blank than were written blank*; the header says how many those were,
//! and the mark at the end shows whether its last sector was written. Anything else is damage: a bit that changed leaves no blank
//! sector, and valid batches lie only behind durable ones.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::BufMut as _;

use super::{
    disk::{Disk, DiskFile},
    entry::{self, Broken, Entry},
    files::{HEADER_BYTES, Header, Strange, journal_path},
    window::Window,
};
use crate::log::{LogId, Sequence};

pub(super) const MAGIC: [u8; 8] = *b"WEIRJRNL";
const BATCH_MAGIC: u32 = 0x5745_4952;
/// Bytes of a batch's header, and what batches are aligned to.
const BATCH_BYTES: usize = 32;
const END_MARK: [u8; 8] = *b"WEIR.END";
/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// Room is set aside in steps of this size.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Room that only notes of what was dropped may use, so that a full disk can be emptied.
const NOTES_BYTES: u64 = 512 * 1024;
/// A buffer larger than this is not kept for the next batch.
const KEPT_BYTES: usize = 16 * 1024 * 1024;

/// Entries on their way into one batch.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    entries: u32,
    records: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH_BYTES],
            entries: 0,
            records: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.bytes.resize(BATCH_BYTES, 0);
        self.entries = 0;
        self.records = 0;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Adds a record's entry, which `put` writes; returns where it lies in the batch, and its size.
    pub(super) fn record(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> (usize, usize) {
        self.records += 1;
        self.entry(put)
    }

    /// Adds an entry, which `put` writes; returns where it lies in the batch, and its size.
    pub(super) fn entry(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> (usize, usize) {
        let at = self.bytes.len();
        put(&mut self.bytes);
        self.entries += 1;
        (at, self.bytes.len() - at)
    }

    /// Bytes it takes in a journal.
    pub(super) fn size(&self) -> u64 {
        batch_size(self.bytes.len() - BATCH_BYTES)
    }

    /// The bytes to write at `offset` of the journal with this salt.
    fn finish(&mut self, salt: u64, offset: u64, first: Sequence) -> &[u8] {
        let body = self.bytes.len() - BATCH_BYTES;
        let size = usize::try_from(batch_size(body)).unwrap_or(usize::MAX);
        self.bytes.resize(size - END_MARK.len(), 0);
        self.bytes.put_slice(&END_MARK);
        let head = BatchHead {
            // A commit is bounded far below 4 GiB.
            body: u32::try_from(body).unwrap_or(u32::MAX),
            entries: self.entries,
            records: self.records,
            first,
            blank: 0,
        };
        self.bytes[..BATCH_BYTES].copy_from_slice(&head.encode(salt, offset));
        let head = BatchHead {
            blank: blank_sectors(&self.bytes, offset),
            ..head
        };
        self.bytes[..BATCH_BYTES].copy_from_slice(&head.encode(salt, offset));
        &self.bytes
    }
}

/// Bytes of a batch with so many bytes of entries.
const fn batch_size(body: usize) -> u64 {
    (BATCH_BYTES + body + END_MARK.len()).next_multiple_of(BATCH_BYTES) as u64
}

/// Sectors that lie wholly in a batch at `offset` and hold nothing but zeros.
fn blank_sectors(batch: &[u8], offset: u64) -> u32 {
    let into = usize::try_from(offset % SECTOR_BYTES as u64).unwrap_or(0);
    let skip = (SECTOR_BYTES - into) % SECTOR_BYTES;
    let sectors = batch
        .get(skip..)
        .unwrap_or_default()
        .chunks_exact(SECTOR_BYTES);
    let blank = sectors.filter(|sector| is_blank(sector)).count();
    u32::try_from(blank).unwrap_or(u32::MAX)
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchHead {
    body: u32,
    entries: u32,
    records: u32,
    first: Sequence,
    blank: u32,
}

impl BatchHead {
    fn encode(&self, salt: u64, offset: u64) -> [u8; BATCH_BYTES] {
        let mut bytes = [0; BATCH_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32(BATCH_MAGIC);
        out.put_u32(self.body);
        out.put_u32(self.entries);
        out.put_u32(self.records);
        out.put_u64(self.first.0);
        out.put_u32(self.blank);
        let checksum = Self::checksum(&bytes[..28], salt, offset);
        bytes[28..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8], salt: u64, offset: u64) -> Option<Self> {
        let bytes: &[u8; BATCH_BYTES] = bytes.get(..BATCH_BYTES)?.try_into().ok()?;
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(0) != BATCH_MAGIC || word(28) != Self::checksum(&bytes[..28], salt, offset) {
            return None;
        }
        Some(Self {
            body: word(4),
            entries: word(8),
            records: word(12),
            first: Sequence((u64::from(word(16)) << 32) | u64::from(word(20))),
            blank: word(24),
        })
    }

    fn checksum(head: &[u8], salt: u64, offset: u64) -> u32 {
        let mut place = [0; 16];
        place[..8].copy_from_slice(&salt.to_be_bytes());
        place[8..].copy_from_slice(&offset.to_be_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&place), head)
    }

    /// The sequence behind its last record.
    fn next(&self) -> Sequence {
        Sequence(self.first.0.saturating_add(u64::from(self.records)))
    }
}

/// The journal that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    salt: u64,
    /// Where the next batch goes.
    pub(super) end: u64,
    allocated: u64,
}

impl Journal {
    /// Makes an empty journal, durably.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, id: LogId, number: u64) -> io::Result<Self> {
        let path = journal_path(dir, number);
        let file = disk.create(&path)?;
        let made = Self::begin(disk, dir, id, number, &file);
        match made {
            Ok(salt) => Ok(Self {
                number,
                path,
                file,
                salt,
                end: HEADER_BYTES as u64,
                allocated: STEP_BYTES,
            }),
            Err(error) => {
                // It holds nothing; a start removes it as well.
                let _ = disk.remove(&path);
                Err(error)
            }
        }
    }

    fn begin(
        disk: &dyn Disk,
        dir: &Path,
        id: LogId,
        number: u64,
        file: &Arc<dyn DiskFile>,
    ) -> io::Result<u64> {
        let salt = rand::random();
        file.allocate(STEP_BYTES)?;
        let header = Header {
            magic: MAGIC,
            id,
            number,
            first: salt,
            last: 0,
        };
        file.write_at(&header.encode(), 0)?;
        file.sync()?;
        disk.sync_dir(dir)?;
        Ok(salt)
    }

    /// A journal that is only read.
    pub(super) fn opened(path: PathBuf, file: Arc<dyn DiskFile>, header: &Header) -> Self {
        Self {
            number: header.number,
            path,
            file,
            salt: header.first,
            end: HEADER_BYTES as u64,
            allocated: 0,
        }
    }

    /// Goes on behind the last batch of a journal that was scanned. What lies behind is cleared.
    pub(super) fn resume(
        disk: &dyn Disk,
        path: PathBuf,
        header: Header,
        end: u64,
    ) -> io::Result<Self> {
        let file = disk.open(&path, true)?;
        file.set_len(end)?;
        file.allocate(end.next_multiple_of(STEP_BYTES))?;
        // What the scan found in memory only has to be durable before anybody reads it.
        file.sync()?;
        Ok(Self {
            number: header.number,
            path,
            file,
            salt: header.first,
            end,
            allocated: end.next_multiple_of(STEP_BYTES),
        })
    }

    /// Makes what a scan found of a journal durable that is written no more, and clears what lies behind.
    pub(super) fn settle(disk: &dyn Disk, path: &Path, end: u64) -> io::Result<()> {
        let file = disk.open(path, true)?;
        file.set_len(end)?;
        file.sync()
    }

    /// Sets room aside for `bytes` more. Notes of what was dropped may use the last of it.
    pub(super) fn reserve(&mut self, bytes: u64, is_note: bool) -> io::Result<()> {
        let spare = if is_note { 0 } else { NOTES_BYTES };
        let wanted = self.end + bytes + spare;
        if wanted > self.allocated {
            let len = wanted.next_multiple_of(STEP_BYTES);
            self.file.allocate(len)?;
            self.allocated = len;
        }
        Ok(())
    }

    /// Writes a batch and makes it durable; returns where it lies. The room has to be reserved.
    pub(super) fn write(&mut self, batch: &mut Batch, first: Sequence) -> io::Result<u64> {
        let at = self.end;
        let bytes = batch.finish(self.salt, at, first);
        self.file.write_at(bytes, at)?;
        self.file.sync()?;
        self.end += bytes.len() as u64;
        Ok(at)
    }

    /// Clears what a write that failed may have left behind the end.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.allocated = self.end;
        self.file.sync()
    }
}

/// What a journal holds that does not read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// The first sequence in doubt.
    pub(super) first: Sequence,
    /// The last one, where it is known.
    pub(super) last: Option<Sequence>,
}

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Behind the last whole batch.
    pub(super) end: u64,
    /// The sequence behind its last record.
    pub(super) next: Sequence,
    /// An unfinished batch was left out: bytes of it.
    pub(super) cut_bytes: u64,
    /// Whole batches.
    pub(super) batches: u64,
    pub(super) damage: Option<Damage>,
}

/// Reads the header of a journal; none when it was never finished, so that the journal holds nothing.
pub(super) fn header(file: &Arc<dyn DiskFile>) -> io::Result<Result<Option<Header>, Strange>> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_at(&mut bytes, 0)?;
    if is_blank(&bytes) {
        // A journal gets its header before anything else.
        let is_unfinished = Window::new(file.clone())?.is_blank_from(0)?;
        return Ok(if is_unfinished {
            Ok(None)
        } else {
            Err(Strange::Damaged)
        });
    }
    Ok(Header::decode(MAGIC, &bytes).map(Some))
}

/// A batch that reads back whole.
pub(super) struct Whole<'a> {
    /// Its first sequence.
    pub(super) first: Sequence,
    /// Its entries, each with where it lies in the file and as it is stored.
    pub(super) entries: Vec<(u64, Entry<'a>, &'a [u8])>,
}

/// Shows every whole batch of a journal to `show`, in order, up to the end or to the first damage. `expected` is the sequence behind
/// the last record of the files before. The first batch may lie behind it where `may_jump`: files between were removed, or a restore
/// left numbers out.
pub(super) fn scan(
    file: &Arc<dyn DiskFile>,
    header: &Header,
    expected: Sequence,
    may_jump: bool,
    mut show: impl FnMut(Whole<'_>),
) -> io::Result<Scanned> {
    let mut window = Window::new(file.clone())?;
    let mut scanned = Scanned {
        end: HEADER_BYTES as u64,
        next: expected,
        cut_bytes: 0,
        batches: 0,
        damage: None,
    };
    loop {
        let found = batch(&mut window, header.first, scanned.end)?;
        match found {
            Found::Whole(whole, head) => {
                let is_next = head.first == scanned.next
                    || (may_jump && scanned.batches == 0 && head.first > scanned.next);
                if !is_next {
                    let last = Sequence(head.first.0.saturating_sub(1));
                    scanned.damage = Some(Damage {
                        offset: scanned.end,
                        first: scanned.next,
                        last: (last >= scanned.next).then_some(last),
                    });
                    return Ok(scanned);
                }
                scanned.end += batch_size(head.body as usize);
                scanned.next = head.next();
                scanned.batches += 1;
                show(whole);
            }
            Found::Nothing { cut_bytes } => {
                let behind = next_head(&mut window, header.first, scanned.end + 1)?;
                if let Some((_, head)) = behind {
                    scanned.damage = Some(doubt(&scanned, scanned.next, Some(head)));
                }
                scanned.cut_bytes = cut_bytes;
                return Ok(scanned);
            }
            Found::Damaged { first } => {
                let behind = next_head(&mut window, header.first, scanned.end + 1)?;
                let behind = behind.map(|(_, head)| head);
                let first = first.unwrap_or(scanned.next);
                scanned.damage = Some(doubt(&scanned, first, behind));
                return Ok(scanned);
            }
        }
    }
}

fn doubt(scanned: &Scanned, first: Sequence, behind: Option<BatchHead>) -> Damage {
    let last = behind.map(|head| Sequence(head.first.0.saturating_sub(1).max(first.0)));
    Damage {
        offset: scanned.end,
        first,
        last,
    }
}

/// What lies where a batch may begin.
enum Found<'a> {
    Whole(Whole<'a>, BatchHead),
    /// The end, maybe with an unfinished batch.
    Nothing {
        cut_bytes: u64,
    },
    /// Something that was whole once. Its first sequence, where that can be read.
    Damaged {
        first: Option<Sequence>,
    },
}

fn batch<'a>(window: &'a mut Window, salt: u64, offset: u64) -> io::Result<Found<'a>> {
    let bytes = window.get(offset, BATCH_BYTES)?;
    if is_blank(bytes) {
        let len = window.len().saturating_sub(offset);
        let rest = if window.is_blank_from(offset)? {
            0
        } else {
            len
        };
        return Ok(Found::Nothing { cut_bytes: rest });
    }
    let Some(head) = BatchHead::decode(bytes, salt, offset) else {
        // A file that ends within a header was cut there. Stray bits in what was never written harm nothing.
        let is_cut = bytes.len() < BATCH_BYTES;
        let is_end = is_cut || window.is_blank_from(offset + BATCH_BYTES as u64)?;
        return Ok(if is_end {
            Found::Nothing {
                cut_bytes: BATCH_BYTES as u64,
            }
        } else {
            Found::Damaged { first: None }
        });
    };
    let size = batch_size(head.body as usize);
    // Looked at before it is read: the window keeps no more than it has to.
    let is_cut = offset + size > window.len();
    let bytes = window.get(offset, usize::try_from(size).unwrap_or(usize::MAX))?;
    let whole = (!is_cut).then(|| entries(bytes, &head, offset)).flatten();
    if let Some(entries) = whole {
        let first = head.first;
        let whole = Whole { first, entries };
        return Ok(Found::Whole(whole, head));
    }
    let mark = bytes.get(bytes.len().saturating_sub(END_MARK.len())..);
    let is_unmarked = mark.is_none_or(is_blank);
    if is_cut || is_unmarked || blank_sectors(bytes, offset) > head.blank {
        return Ok(Found::Nothing { cut_bytes: size });
    }
    Ok(Found::Damaged {
        first: Some(head.first),
    })
}

/// The entries of a batch, if all of them are whole.
fn entries<'a>(
    batch: &'a [u8],
    head: &BatchHead,
    offset: u64,
) -> Option<Vec<(u64, Entry<'a>, &'a [u8])>> {
    let end = BATCH_BYTES + head.body as usize;
    let mut at = BATCH_BYTES;
    let mut all = Vec::with_capacity(head.entries.min(1 << 20) as usize);
    while at < end {
        let (entry, size) = entry::read(batch.get(at..end)?).ok()?;
        all.push((offset + at as u64, entry, &batch[at..at + size]));
        at += size;
    }
    (all.len() == head.entries as usize).then_some(all)
}

/// The first valid header of a batch at or behind `from`.
fn next_head(window: &mut Window, salt: u64, from: u64) -> io::Result<Option<(u64, BatchHead)>> {
    let mut at = from.next_multiple_of(BATCH_BYTES as u64);
    while at < window.len() {
        let bytes = window.get(at, BATCH_BYTES)?;
        if let Some(head) = BatchHead::decode(bytes, salt, at) {
            return Ok(Some((at, head)));
        }
        at += BATCH_BYTES as u64;
    }
    Ok(None)
}

/// The first sequence of a journal's first batch; none when it has no batch that reads back.
pub(super) fn first(file: &Arc<dyn DiskFile>, header: &Header) -> io::Result<Option<Sequence>> {
    let mut window = Window::new(file.clone())?;
    let head = next_head(&mut window, header.first, HEADER_BYTES as u64)?;
    Ok(head.map(|(_, head)| head.first))
}

/// A stretch of a journal, for a repair.
pub(super) enum Piece<'a> {
    /// An entry that reads back, as it is stored.
    Entry(Entry<'a>, &'a [u8]),
    /// A stretch of which some does not read back.
    Lost(Damage),
}

/// Shows every entry of a journal that reads back to `show`, and every stretch that does not do so whole. Returns the sequence behind
/// everything that may have been given out. Without a salt, because the header does not read back, all of it is one such stretch.
pub(super) fn salvage(
    file: &Arc<dyn DiskFile>,
    salt: Option<u64>,
    expected: Sequence,
    mut show: impl FnMut(Piece<'_>),
) -> io::Result<Sequence> {
    let mut window = Window::new(file.clone())?;
    let mut at = HEADER_BYTES as u64;
    let mut next = expected;
    while at < window.len() {
        let is_damaged = match salt.map(|salt| batch(&mut window, salt, at)).transpose()? {
            Some(Found::Whole(whole, head)) => {
                for (_, entry, bytes) in whole.entries {
                    show(Piece::Entry(entry, bytes));
                }
                next = next.max(head.next());
                at += batch_size(head.body as usize);
                continue;
            }
            Some(Found::Nothing { .. }) => false,
            Some(Found::Damaged { .. }) | None => true,
        };
        let behind = match salt {
            Some(salt) => next_head(&mut window, salt, at + 1)?,
            None => None,
        };
        if behind.is_none() && !is_damaged {
            return Ok(next);
        }
        let until = behind.map_or(window.len(), |(until, _)| until);
        let last = match behind {
            Some((_, head)) => Sequence(head.first.0.saturating_sub(1)),
            None => last_of(&mut window, salt, at, next)?,
        };
        salvage_entries(&mut window, at, until, &mut show)?;
        show(Piece::Lost(Damage {
            offset: at,
            first: next,
            last: Some(last.max(next)),
        }));
        next = next.max(last.next());
        at = until;
    }
    Ok(next)
}

/// The last sequence that the damaged end of a journal can have given out.
fn last_of(
    window: &mut Window,
    salt: Option<u64>,
    offset: u64,
    next: Sequence,
) -> io::Result<Sequence> {
    let bytes = window.get(offset, BATCH_BYTES)?;
    let head = salt.and_then(|salt| BatchHead::decode(bytes, salt, offset));
    if let Some(head) = head {
        return Ok(Sequence(head.next().0.saturating_sub(1)));
    }
    // Not more records than fit there.
    let most = window.len().saturating_sub(offset) / entry::MIN_BYTES as u64;
    Ok(Sequence(next.0.saturating_add(most)))
}

/// Shows the entries in a stretch that read back. They are looked for at every byte, since a length may be wrong.
fn salvage_entries(
    window: &mut Window,
    offset: u64,
    until: u64,
    show: &mut impl FnMut(Piece<'_>),
) -> io::Result<()> {
    let size = usize::try_from(until - offset).unwrap_or(usize::MAX);
    let bytes = window.get(offset, size)?;
    let mut at = 0;
    while at + entry::MIN_BYTES <= bytes.len() {
        if !entry::is_like_entry(&bytes[at..]) {
            at += 1;
            continue;
        }
        match entry::read(&bytes[at..]) {
            Ok((entry, size)) => {
                show(Piece::Entry(entry, &bytes[at..at + size]));
                at += size;
            }
            Err(Broken::Short(_) | Broken::Damaged) => at += 1,
        }
    }
    Ok(())
}
