//! Idempotency keys: of journals in memory, of segments on disk behind a filter in memory.
//!
//! A key of a journal takes about 40 bytes, one of a segment within the window 9 bits.

use std::{collections::HashMap, io};

use xorf::{BinaryFuse8, Filter as _};

use super::{
    disk::DiskFile,
    entry::{self, Entry, KEY_BYTES, LIST_AT},
    segment::Place,
};
use crate::log::{Error, dedupe::Known};

/// The keys of a journal's records: where the record of each lies.
#[derive(Debug, Default)]
pub(super) struct JournalKeys(HashMap<(u32, [u8; 16]), u32>);

impl JournalKeys {
    pub(super) fn add(&mut self, tag: u32, keys: Vec<([u8; 16], u32)>) {
        for (key, offset) in keys {
            self.0.insert((tag, key), offset);
        }
    }

    pub(super) fn get(&self, tag: u32, key: [u8; 16]) -> Option<u32> {
        self.0.get(&(tag, key)).copied()
    }

    /// All of a topic: where their records lie.
    pub(super) fn of_tag(&self, tag: u32) -> Vec<([u8; 16], u32)> {
        let keys = self.0.iter();
        keys.filter(|((other, _), _)| *other == tag)
            .map(|((_, key), offset)| (*key, *offset))
            .collect()
    }

    /// All of them by tag and key: where their records lie.
    pub(super) fn sorted(&self) -> Vec<(u32, [u8; 16], u32)> {
        let keys = self.0.iter();
        let mut all: Vec<_> = keys
            .map(|((tag, key), offset)| (*tag, *key, *offset))
            .collect();
        all.sort_unstable();
        all
    }
}

/// Tells most keys that a segment does not have, without a look at the disk.
pub(super) struct Filter(BinaryFuse8);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} bytes)", self.0.fingerprints.len())
    }
}

impl Filter {
    /// A filter of these keys; none when there are none, or when it cannot be made: then every key is looked for on the disk.
    pub(super) fn of(mut keys: Vec<u64>) -> Option<Self> {
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return None;
        }
        BinaryFuse8::try_from(keys.as_slice()).ok().map(Self)
    }

    pub(super) fn may_have(&self, key: [u8; 16]) -> bool {
        self.0.contains(&word(key))
    }
}

/// What of a key a filter holds: keys are hashes already.
pub(super) fn word(key: [u8; 16]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&key[..8]);
    u64::from_be_bytes(word)
}

/// Looks a key up among those of a group on the disk.
pub(super) fn search(
    file: &dyn DiskFile,
    place: &Place,
    key: [u8; 16],
) -> io::Result<Option<Known>> {
    let list = place.keys_at() + LIST_AT as u64;
    let mut low = 0;
    let mut high = place.keys;
    let mut bytes = [0; KEY_BYTES];
    while low < high {
        let middle = low + (high - low) / 2;
        file.read_at(&mut bytes, list + u64::from(middle) * KEY_BYTES as u64)?;
        let Some((found, known)) = entry::key_at(&bytes, 0) else {
            return Ok(None);
        };
        match found.cmp(&key) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Ok(Some(known)),
        }
    }
    Ok(None)
}

/// Every key of a group, sorted by key.
///
/// # Errors
/// [`Error::Corrupt`] when they are not what was written; what reading reports.
pub(super) fn read(file: &dyn DiskFile, place: &Place) -> Result<Vec<([u8; 16], Known)>, Error> {
    if place.keys == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; place.keys_bytes()];
    let unreadable = |error: io::Error| Error::Unavailable(error.to_string());
    let read = file.read_at(&mut bytes, place.keys_at());
    bytes.truncate(read.map_err(unreadable)?);
    match entry::read(&bytes) {
        Ok((Entry::Keys { list, .. }, _)) => Ok((0..place.keys as usize)
            .filter_map(|at| entry::key_at(list, at))
            .collect()),
        _ => Err(Error::Corrupt(
            "idempotency keys of a segment do not read back".into(),
        )),
    }
}
