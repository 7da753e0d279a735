//! Entries: what the files of the log hold, each with a checksum of its own. Journals and segments share them, so that sealing
//! a journal copies bytes and a checksum guards a record from its append to its last read.
//!
//! ```text
//!  4 length of what follows the checksum │ 4 CRC-32C of that │ 1 type │ 4 tag │ …
//!    1 topic     1 flags │ 8 first │ 1 space │ name
//!    2 record    8 sequence │ record as log::encode writes it
//!    3 keyed     8 sequence │ 16 key hash │ 16 content hash │ record as log::encode writes it
//!    4 floor     8 floor
//!    5 keys      n × (16 key hash │ 16 content hash │ 8 sequence │ 8 time)       in segments only, sorted by key hash
//!    6 index     n × (8 sequence │ 4 offset)                                     in segments only
//! ```
//!
//! Integers are big-endian. A tag stands for a topic within one file; the topic's entry comes before the first use of its tag. A
//! later topic entry of the same tag raises `first`. The floor's tag is zero.

use bytes::{Buf as _, BufMut as _, Bytes};

use crate::log::{
    Error, NewRecord, Record, Sequence, Space, Timestamp, Topic, decode,
    dedupe::{Fingerprint, Known},
    encode,
};

/// Bytes before what the checksum covers.
pub(super) const HEAD_BYTES: usize = 8;
/// Bytes of the shortest entry.
pub(super) const MIN_BYTES: usize = HEAD_BYTES + 5;
/// Bytes of one idempotency key in an entry of keys.
pub(super) const KEY_BYTES: usize = 48;
/// Bytes of one place in an index.
pub(super) const INDEX_BYTES: usize = 12;
/// Where the list of an entry of keys or of an index begins.
pub(super) const LIST_AT: usize = MIN_BYTES;
/// Where the sequence of a record lies in its entry.
pub(super) const SEQUENCE_AT: u64 = MIN_BYTES as u64;
/// What an entry may be at most: far beyond the largest message.
const MAX_BYTES: usize = 1 << 30;

const TOPIC: u8 = 1;
const RECORD: u8 = 2;
const KEYED: u8 = 3;
const FLOOR: u8 = 4;
const KEYS: u8 = 5;
const INDEX: u8 = 6;

/// The topic's first position was taken from the log's floor: records of it may have been dropped before it was forgotten.
const INHERITED: u8 = 1;

/// A topic's first position, as files keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    /// No record of the topic before it is retained.
    pub(super) sequence: Sequence,
    /// It is the log's floor of the time when the topic came, not a trim of its own.
    pub(super) is_inherited: bool,
}

impl First {
    /// Of a topic of which nothing was dropped.
    pub(super) const NONE: Self = Self {
        sequence: Sequence::FIRST,
        is_inherited: false,
    };
}

/// An entry whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    Topic {
        tag: u32,
        first: First,
        space: Space,
        name: &'a str,
    },
    Record {
        tag: u32,
        sequence: Sequence,
        key: Option<Fingerprint>,
        /// As [`crate::log::encode`] wrote it.
        stored: &'a [u8],
    },
    Floor(Sequence),
    Keys {
        tag: u32,
        list: &'a [u8],
    },
    Index {
        tag: u32,
    },
}

/// Why bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// More bytes are needed: this many altogether.
    Short(usize),
    /// They are not what was written.
    Damaged,
}

/// Appends an entry whose body `put` writes.
fn seal(out: &mut Vec<u8>, kind: u8, tag: u32, put: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.put_u64(0);
    out.put_u8(kind);
    out.put_u32(tag);
    put(out);
    let body = at + HEAD_BYTES;
    // Messages are limited far below 4 GiB.
    let length = u32::try_from(out.len() - body).unwrap_or(u32::MAX);
    let checksum = crc32c::crc32c(&out[body..]);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    out[at + 4..body].copy_from_slice(&checksum.to_be_bytes());
}

pub(super) fn put_topic(out: &mut Vec<u8>, tag: u32, topic: &Topic, first: First) {
    seal(out, TOPIC, tag, |out| {
        out.put_u8(if first.is_inherited { INHERITED } else { 0 });
        out.put_u64(first.sequence.0);
        out.put_u8(space_tag(topic.space()));
        out.put_slice(topic.name().as_bytes());
    });
}

pub(super) fn put_record(
    out: &mut Vec<u8>,
    tag: u32,
    sequence: Sequence,
    time: Timestamp,
    record: &NewRecord,
    key: Option<&Fingerprint>,
) {
    let kind = if key.is_some() { KEYED } else { RECORD };
    seal(out, kind, tag, |out| {
        out.put_u64(sequence.0);
        if let Some(key) = key {
            out.put_slice(&key.key);
            out.put_slice(&key.content);
        }
        encode(record, time, out);
    });
}

/// Appends a record that is stored already.
pub(super) fn put_stored(out: &mut Vec<u8>, tag: u32, sequence: Sequence, stored: &[u8]) {
    seal(out, RECORD, tag, |out| {
        out.put_u64(sequence.0);
        out.put_slice(stored);
    });
}

pub(super) fn put_floor(out: &mut Vec<u8>, floor: Sequence) {
    seal(out, FLOOR, 0, |out| out.put_u64(floor.0));
}

/// Appends idempotency keys, which are sorted by their hashes.
pub(super) fn put_keys(out: &mut Vec<u8>, tag: u32, keys: &[([u8; 16], Known)]) {
    seal(out, KEYS, tag, |out| {
        for (hash, known) in keys {
            out.put_slice(hash);
            out.put_slice(&known.content);
            out.put_u64(known.sequence.0);
            out.put_u64(known.time.0);
        }
    });
}

/// Appends an index: where in a run of records each of these sequences lies.
pub(super) fn put_index(out: &mut Vec<u8>, tag: u32, places: &[(Sequence, u32)]) {
    seal(out, INDEX, tag, |out| {
        for (sequence, offset) in places {
            out.put_u64(sequence.0);
            out.put_u32(*offset);
        }
    });
}

/// One key of a list of keys.
pub(super) fn key_at(list: &[u8], at: usize) -> Option<([u8; 16], Known)> {
    let mut bytes = list.get(at * KEY_BYTES..(at + 1) * KEY_BYTES)?;
    let mut hash = [0; 16];
    let mut content = [0; 16];
    bytes.copy_to_slice(&mut hash);
    bytes.copy_to_slice(&mut content);
    let sequence = Sequence(bytes.get_u64());
    let time = Timestamp(bytes.get_u64());
    let known = Known {
        sequence,
        time,
        content,
    };
    Some((hash, known))
}

/// Bytes of the entry that begins with these, its head included; none when the head is cut.
pub(super) fn size(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..4)?;
    let length = u32::from_be_bytes(head.try_into().ok()?);
    Some(HEAD_BYTES + length as usize)
}

/// Whether these bytes may begin a record's entry: a cheap look before its checksum is compared.
pub(super) fn is_like_record(bytes: &[u8]) -> bool {
    matches!(bytes.get(HEAD_BYTES), Some(&(RECORD | KEYED)))
}

/// Whether these bytes may begin an entry: a cheap look before its checksum is compared.
pub(super) fn is_like_entry(bytes: &[u8]) -> bool {
    let is_kind = matches!(bytes.get(HEAD_BYTES), Some(&(TOPIC..=INDEX)));
    is_kind && size(bytes).is_some_and(|size| size <= bytes.len())
}

/// Reads the entry at the start of `bytes` after comparing its checksum; returns its size too.
pub(super) fn read(bytes: &[u8]) -> Result<(Entry<'_>, usize), Broken> {
    let size = size(bytes).ok_or(Broken::Short(MIN_BYTES))?;
    if !(MIN_BYTES..=MAX_BYTES).contains(&size) {
        return Err(Broken::Damaged);
    }
    let Some(bytes) = bytes.get(..size) else {
        return Err(Broken::Short(size));
    };
    let checksum = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let body = &bytes[HEAD_BYTES..];
    if crc32c::crc32c(body) != checksum {
        return Err(Broken::Damaged);
    }
    let entry = parse(body).ok_or(Broken::Damaged)?;
    Ok((entry, size))
}

/// Reads the body of an entry whose checksum is right.
fn parse(body: &[u8]) -> Option<Entry<'_>> {
    let (head, mut rest) = body.split_at_checked(5)?;
    let tag = u32::from_be_bytes(head[1..].try_into().ok()?);
    Some(match head[0] {
        TOPIC => {
            let flags = rest.try_get_u8().ok()?;
            let sequence = Sequence(rest.try_get_u64().ok()?);
            Entry::Topic {
                tag,
                first: First {
                    sequence,
                    is_inherited: flags & INHERITED != 0,
                },
                space: space_of(rest.try_get_u8().ok()?)?,
                name: std::str::from_utf8(rest).ok()?,
            }
        }
        RECORD => Entry::Record {
            tag,
            sequence: Sequence(rest.try_get_u64().ok()?),
            key: None,
            stored: rest,
        },
        KEYED => {
            let sequence = Sequence(rest.try_get_u64().ok()?);
            let mut key = [0; 16];
            let mut content = [0; 16];
            rest.try_copy_to_slice(&mut key).ok()?;
            rest.try_copy_to_slice(&mut content).ok()?;
            Entry::Record {
                tag,
                sequence,
                key: Some(Fingerprint { key, content }),
                stored: rest,
            }
        }
        FLOOR => Entry::Floor(Sequence(rest.try_get_u64().ok()?)),
        KEYS if rest.len().is_multiple_of(KEY_BYTES) => Entry::Keys { tag, list: rest },
        INDEX if rest.len().is_multiple_of(INDEX_BYTES) => Entry::Index { tag },
        _ => return None,
    })
}

/// The record in `stored`, which is a part of `bytes`: its payload is a slice of them, not a copy.
pub(super) fn record_of(bytes: &Bytes, sequence: Sequence, stored: &[u8]) -> Result<Record, Error> {
    decode(sequence, bytes.slice_ref(stored))
        .map_err(|error| Error::Corrupt(format!("record {sequence}: {error}")))
}

/// When the record with this stored form was appended.
pub(super) fn time_of(stored: &[u8]) -> Option<Timestamp> {
    // After the version, the flags and the kind.
    let bytes = stored.get(4..12)?;
    Some(Timestamp(u64::from_be_bytes(bytes.try_into().ok()?)))
}

/// The number of a space in files; never changes meaning.
pub(super) const fn space_tag(space: Space) -> u8 {
    match space {
        Space::Room => 1,
        Space::Canary => 2,
        Space::Event => 3,
        Space::Notification => 4,
        Space::Broadcast => 5,
        Space::Data => 6,
        Space::Telemetry => 7,
        Space::Feedback => 8,
        Space::Reply => 9,
        Space::Document => 10,
        Space::Presence => 11,
    }
}

pub(super) fn space_of(tag: u8) -> Option<Space> {
    Space::ALL
        .into_iter()
        .find(|space| space_tag(*space) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic() -> Topic {
        Topic::new(Space::Room, "a").unwrap()
    }

    fn record() -> NewRecord {
        NewRecord {
            topic: topic(),
            publisher: "ann".into(),
            id: "1".into(),
            kind: 7,
            event_time: None,
            key: Some("k".into()),
            trace: None,
            payload: Bytes::from_static(b"hello"),
        }
    }

    #[test]
    fn entries_read_back_as_they_were_written() {
        let record = record();
        let key = Fingerprint::of(&record).unwrap();
        let known = Known {
            sequence: Sequence(9),
            time: Timestamp(5),
            content: key.content,
        };
        let first = First {
            sequence: Sequence(4),
            is_inherited: true,
        };
        let mut out = Vec::new();
        put_topic(&mut out, 3, &topic(), first);
        put_record(&mut out, 3, Sequence(9), Timestamp(5), &record, Some(&key));
        put_floor(&mut out, Sequence(2));
        put_keys(&mut out, 3, &[(key.key, known)]);
        put_index(&mut out, 3, &[(Sequence(9), 40)]);
        let mut rest = out.as_slice();
        let mut next = || {
            let (entry, size) = read(rest).unwrap();
            rest = &rest[size..];
            entry
        };
        let Entry::Topic {
            tag: 3,
            name: "a",
            first: found,
            ..
        } = next()
        else {
            panic!("no topic");
        };
        assert_eq!(found, first);
        let Entry::Record {
            tag: 3,
            sequence,
            key: found,
            stored,
        } = next()
        else {
            panic!("no record");
        };
        assert_eq!((sequence, found), (Sequence(9), Some(key)));
        assert_eq!(time_of(stored), Some(Timestamp(5)));
        let bytes = Bytes::copy_from_slice(stored);
        let read_back = record_of(&bytes, sequence, &bytes).unwrap();
        assert_eq!(&read_back.payload[..], b"hello");
        assert_eq!(next(), Entry::Floor(Sequence(2)));
        let Entry::Keys { tag: 3, list } = next() else {
            panic!("no keys");
        };
        assert_eq!(key_at(list, 0), Some((key.key, known)));
        assert_eq!(key_at(list, 1), None);
        assert_eq!(next(), Entry::Index { tag: 3 });
        assert!(rest.is_empty());
    }

    #[test]
    fn no_bit_of_an_entry_can_change_unnoticed() {
        let mut out = Vec::new();
        put_record(&mut out, 1, Sequence(1), Timestamp(1), &record(), None);
        for bit in 0..out.len() * 8 {
            let mut damaged = out.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
    }
}
