//! Fingerprints of idempotency keys.

use sha2::{Digest, Sha256};

use super::{NewRecord, Outcome, Sequence, Timestamp};

/// What identifies a keyed record: who used which key, and for what content. Sixteen bytes of SHA-256 each, so a
/// fingerprint has one size and is the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub(super) key: [u8; 16],
    pub(super) content: [u8; 16],
}

impl Fingerprint {
    /// The fingerprint of a record; none when it has no key.
    pub(super) fn of(record: &NewRecord) -> Option<Self> {
        let key = record.key.as_deref()?;
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        let publisher_bytes = (record.publisher.len() as u64).to_be_bytes();
        let publisher = record.publisher.as_bytes();
        Some(Self {
            key: short_hash(&[&publisher_bytes, publisher, key.as_bytes()]),
            content: content(record.kind, &record.payload),
        })
    }
}

/// The fingerprint of a record's content.
pub(super) fn content(kind: u16, payload: &[u8]) -> [u8; 16] {
    short_hash(&[&kind.to_be_bytes(), payload])
}

fn short_hash(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    let hash: [u8; 32] = hasher.finalize().into();
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

/// The record a key was first used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) sequence: Sequence,
    pub(super) time: Timestamp,
    pub(super) content: [u8; 16],
}

impl Known {
    /// What becomes of a record that uses the key again.
    pub(super) fn repeated_by(&self, fingerprint: &Fingerprint) -> Outcome {
        if self.content == fingerprint.content {
            Outcome::Duplicate {
                sequence: self.sequence,
                time: self.time,
            }
        } else {
            Outcome::Conflict {
                sequence: self.sequence,
            }
        }
    }
}
