//! Reading through a file from its start, a large piece at a time.

use std::{io, sync::Arc};

use super::disk::DiskFile;

/// Bytes read at once, and kept.
const PIECE_BYTES: usize = 4 * 1024 * 1024;

/// A part of a file in memory, which moves along as it is asked for.
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    len: u64,
    /// Where `bytes` lie in the file.
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        Ok(Self {
            len: file.size()?,
            file,
            start: 0,
            bytes: Vec::new(),
        })
    }

    /// The file's length.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// `size` bytes at `offset`; fewer where the file ends.
    pub(super) fn get(&mut self, offset: u64, size: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let size = size.min(left);
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + size as u64 > end {
            self.start = offset;
            self.bytes.resize(size.max(PIECE_BYTES).min(left), 0);
            let read = self.file.read_at(&mut self.bytes, offset)?;
            self.bytes.truncate(read);
        }
        let at = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let until = (at + size).min(self.bytes.len());
        Ok(self.bytes.get(at..until).unwrap_or_default())
    }

    /// Whether nothing but zeros follows from `offset` on.
    pub(super) fn is_blank_from(&mut self, offset: u64) -> io::Result<bool> {
        let mut at = offset;
        while at < self.len {
            let bytes = self.get(at, PIECE_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }
}
