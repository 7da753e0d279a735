//! The files of a log: their names, the headers that journals and segments begin with, and how few of them are open.
//!
//! ```text
//!  <dir>/log/identity                      which log this is
//!            00000000000000000007.journal    what is being written, or waits to be sealed
//!            00000000000000000003-1.segment  a sealed journal, written once more after records of it were dropped
//!            *.new                           not complete: removed at the next start
//! ```
//!
//! A header is 64 bytes: 8 magic │ 4 format │ 16 log id │ 8 number │ 8 salt or first sequence │ 8 last sequence │ 8 zero │ 4 CRC-32C.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};

use super::{
    disk::{Disk, DiskFile},
    lock,
};
use crate::log::LogId;

/// The directory of the log in the data directory.
pub(super) const DIR: &str = "log";
/// The format that this code reads and writes. The first was that of a database.
pub(super) const FORMAT: u32 = 2;
/// Bytes of a file's header.
pub(super) const HEADER_BYTES: usize = 64;
/// Segments held open at most; others are opened for a read.
const OPEN_SEGMENTS: usize = 64;

const IDENTITY: &str = "identity";
const JOURNAL: &str = "journal";
const SEGMENT: &str = "segment";
const NEW: &str = "new";

/// A file in the log's directory, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Identity,
    Journal(u64),
    Segment {
        number: u64,
        generation: u32,
    },
    /// Not complete when the process ended.
    Unfinished,
}

impl Name {
    /// The file with this name; none when no log has such a file.
    pub(super) fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?;
        if name == IDENTITY {
            return Some(Self::Identity);
        }
        let (stem, extension) = name.rsplit_once('.')?;
        match extension {
            JOURNAL => number(stem).map(Self::Journal),
            SEGMENT => {
                let (stem, generation) = match stem.split_once('-') {
                    Some((stem, generation)) => (stem, generation.parse().ok()?),
                    None => (stem, 0),
                };
                let number = number(stem)?;
                Some(Self::Segment { number, generation })
            }
            NEW => Some(Self::Unfinished),
            _ => None,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let is_ours = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_ours.then(|| text.parse().ok()).flatten()
}

pub(super) fn identity_path(dir: &Path) -> PathBuf {
    dir.join(IDENTITY)
}

pub(super) fn journal_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.{JOURNAL}"))
}

pub(super) fn segment_path(dir: &Path, number: u64, generation: u32) -> PathBuf {
    match generation {
        0 => dir.join(format!("{number:020}.{SEGMENT}")),
        _ => dir.join(format!("{number:020}-{generation}.{SEGMENT}")),
    }
}

/// The name a file has until it is complete.
pub(super) fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(NEW);
    path.with_file_name(name)
}

pub(super) fn is_journal(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == JOURNAL)
}

/// What a file of the log begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) id: LogId,
    pub(super) number: u64,
    /// Of a journal its salt, of a segment the first sequence that its journal may hold.
    pub(super) first: u64,
    /// Of a segment the last sequence that its journal may hold.
    pub(super) last: u64,
}

/// Why a file's beginning is not that of a file of this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strange {
    /// It has no header of ours.
    Magic,
    /// It was written by another version.
    Format(u32),
    /// The header is not what was written.
    Damaged,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.magic);
        bytes[8..12].copy_from_slice(&FORMAT.to_be_bytes());
        bytes[12..28].copy_from_slice(&self.id.to_bytes());
        bytes[28..36].copy_from_slice(&self.number.to_be_bytes());
        bytes[36..44].copy_from_slice(&self.first.to_be_bytes());
        bytes[44..52].copy_from_slice(&self.last.to_be_bytes());
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads a header that begins with `magic`.
    pub(super) fn decode(magic: [u8; 8], bytes: &[u8]) -> Result<Self, Strange> {
        let bytes: &[u8; HEADER_BYTES] = bytes
            .get(..HEADER_BYTES)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Strange::Damaged)?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let format = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let checksum = u32::from_be_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        let is_whole = crc32c::crc32c(&bytes[..60]) == checksum;
        let is_ours = bytes[..8] == magic;
        match (is_ours, is_whole) {
            (true, true) if format != FORMAT => return Err(Strange::Format(format)),
            (true, true) => {}
            (true, false) => return Err(Strange::Damaged),
            (false, _) if differing_bits(&bytes[..8], &magic) <= 8 => return Err(Strange::Damaged),
            (false, _) => return Err(Strange::Magic),
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[12..28]);
        Ok(Self {
            magic,
            id: LogId::from_bytes(id),
            number: word(28),
            first: word(36),
            last: word(44),
        })
    }
}

/// How far apart two runs of bytes are. A few bits apart is the same, damaged; more is another.
fn differing_bits(one: &[u8], other: &[u8]) -> u32 {
    one.iter()
        .zip(other)
        .map(|(one, other)| (one ^ other).count_ones())
        .sum()
}

/// A segment's file, opened when it is read.
#[derive(Debug)]
pub(super) struct SegmentFile {
    path: PathBuf,
    files: Arc<OpenFiles>,
    opened: Mutex<Option<Arc<dyn DiskFile>>>,
}

/// The segments that are open: a bounded number, of which the longest open one is closed first.
#[derive(Debug)]
pub(super) struct OpenFiles {
    disk: Arc<dyn Disk>,
    open: Mutex<VecDeque<Weak<SegmentFile>>>,
}

impl OpenFiles {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self {
            disk,
            open: Mutex::default(),
        })
    }

    pub(super) fn segment(self: &Arc<Self>, path: PathBuf) -> Arc<SegmentFile> {
        Arc::new(SegmentFile {
            path,
            files: self.clone(),
            opened: Mutex::default(),
        })
    }

    /// Notes that a segment was opened, and closes another if there are too many.
    fn note(&self, opened: &Arc<SegmentFile>) {
        let mut open = lock(&self.open);
        open.push_back(Arc::downgrade(opened));
        let oldest = if open.len() > OPEN_SEGMENTS {
            open.pop_front()
        } else {
            None
        };
        drop(open);
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            // Whoever reads it now keeps it open until the read ends.
            lock(&oldest.opened).take();
        }
    }
}

impl SegmentFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub(super) fn open(self: &Arc<Self>) -> io::Result<Arc<dyn DiskFile>> {
        let mut opened = lock(&self.opened);
        if let Some(file) = &*opened {
            return Ok(file.clone());
        }
        let file = self.files.disk.open(&self.path, false)?;
        *opened = Some(file.clone());
        drop(opened);
        self.files.note(self);
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        let dir = Path::new("d");
        let of = |path: PathBuf| Name::of(path.file_name().unwrap());
        assert_eq!(of(identity_path(dir)), Some(Name::Identity));
        assert_eq!(of(journal_path(dir, 7)), Some(Name::Journal(7)));
        for generation in [0, 3] {
            let number = 12;
            let path = segment_path(dir, number, generation);
            assert_eq!(of(unfinished_path(&path)), Some(Name::Unfinished));
            assert_eq!(of(path), Some(Name::Segment { number, generation }));
        }
        for strange in [
            "7.journal",
            "notes.txt",
            "00000000000000000007.segment~",
            "x",
        ] {
            assert_eq!(Name::of(OsStr::new(strange)), None, "{strange}");
        }
    }

    #[test]
    fn no_bit_of_a_header_can_change_unnoticed() {
        let magic = *b"WEIRTEST";
        let header = Header {
            magic,
            id: LogId::from_bytes([7; 16]),
            number: 3,
            first: 4,
            last: 9,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(magic, &bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(magic, &damaged), Err(Strange::Damaged));
        }
        let other = Header::decode(magic, &[b'x'; HEADER_BYTES]);
        assert_eq!(other, Err(Strange::Magic));
    }
}
