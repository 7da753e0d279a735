//! Which log a directory holds: a small text file beside the segments.
//!
//! ```text
//!  weir log
//!  format 2
//!  id 00112233445566778899aabbccddeeff
//!  gap 120 4294967416                       numbers that a log which was replaced by a backup may have given out
//!  checksum 1a2b3c4d                        CRC-32C of every byte before this line
//! ```

use std::{fs, io, ops::Range, path::Path};

use super::{
    disk::Disk,
    files::{self, FORMAT, unfinished_path},
};
use crate::log::{LogId, Sequence};

/// A log's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: LogId,
    /// Numbers that were left out by restores: whoever has a position in one of these has it from another log.
    pub(super) gaps: Vec<Range<Sequence>>,
}

/// Why the identity cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// There is none.
    Missing,
    /// Of a format that this code does not know.
    Format(String),
    /// Not what was written.
    Damaged,
    Io(io::Error),
}

impl Identity {
    pub(super) fn new(gaps: Vec<Range<Sequence>>) -> Self {
        Self {
            id: LogId::random(),
            gaps,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("weir log\nformat {FORMAT}\nid {}\n", self.id);
        for gap in &self.gaps {
            text.push_str(&format!("gap {} {}\n", gap.start, gap.end));
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("checksum {checksum:08x}\n"));
        text
    }

    /// Reads the identity of the log in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, Unreadable> {
        match fs::read(files::identity_path(dir)) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unreadable::Missing),
            Err(error) => Err(Unreadable::Io(error)),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::Damaged)?;
        let at = text.rfind("checksum ").ok_or(Unreadable::Damaged)?;
        let (body, sum) = text.split_at(at);
        let checksum = crc32c::crc32c(body.as_bytes());
        if sum != format!("checksum {checksum:08x}\n") {
            return Err(Unreadable::Damaged);
        }
        let mut identity = Self {
            id: LogId::from_bytes([0; 16]),
            gaps: Vec::new(),
        };
        for line in body.lines().skip(1) {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["format", format] if format == FORMAT.to_string() => {}
                ["format", format] => return Err(Unreadable::Format(format.into())),
                ["id", id] => identity.id = id.parse().map_err(|_| Unreadable::Damaged)?,
                ["gap", start, end] => {
                    let number = |text: &str| text.parse().map_err(|_| Unreadable::Damaged);
                    let gap = Sequence(number(start)?)..Sequence(number(end)?);
                    identity.gaps.push(gap);
                }
                // A later version may say more in the same format.
                _ => {}
            }
        }
        Ok(identity)
    }

    /// Writes the identity into `dir`, durably; one that is there is replaced.
    pub(super) fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let path = files::identity_path(dir);
        let unfinished = unfinished_path(&path);
        if unfinished.exists() {
            disk.remove(&unfinished)?;
        }
        let file = disk.create(&unfinished)?;
        file.write_at(self.text().as_bytes(), 0)?;
        file.sync()?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(dir)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::log::embedded::disk::System;

    #[test]
    fn an_identity_reads_back_and_no_bit_of_it_changes_unnoticed() {
        let dir = TempDir::new().unwrap();
        assert!(matches!(
            Identity::read(dir.path()),
            Err(Unreadable::Missing)
        ));
        let identity = Identity::new(vec![Sequence(5)..Sequence(900)]);
        identity.write(&System, dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), identity);
        let path = files::identity_path(dir.path());
        let bytes = fs::read(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::parse(&damaged).is_err(), "bit {bit}");
        }
    }
}
