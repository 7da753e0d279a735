//! Keys and values on disk. Integers are big-endian, so that keys sort by number.
//!
//! ```text
//! topics    space 1 │ name                        →  topic id 8 │ first sequence 8
//! records   topic id 8 │ sequence 8               →  start 8 │ record as log::encode writes it
//! keys      topic id 8 │ key hash 16              →  sequence 8 │ time 8 │ content hash 16
//! expiry    time 8 │ topic id 8 │ key hash 16     →  nothing
//! meta      "format"                              →  format 4
//!           "topics"                              →  next topic id 8
//!           "sequences"                           →  next sequence 8
//!           "reclaimed"                           →  nothing
//! ```
//!
//! One counter numbers the records of all topics, so a topic's sequences have gaps. It is written with every commit of
//! records, as the records alone do not tell it once the newest are trimmed. A topic's first sequence is the one behind
//! the last record that was trimmed.
//!
//! `start` counts the bytes of the topic's record values before this one, so the size of any range of records is known from
//! its two ends. It starts anew when a topic was trimmed empty.

use bytes::{BufMut, Bytes};

use crate::log::{
    Error, NewRecord, Record, Sequence, Space, Timestamp, Topic, decode, dedupe::Known, encode,
};

/// The format this code reads and writes.
pub(super) const FORMAT: u32 = 1;
/// Key of the format in `meta`.
pub(super) const META_FORMAT: &[u8] = b"format";
/// Key of the next topic id in `meta`.
pub(super) const META_TOPICS: &[u8] = b"topics";
/// Key of the next sequence in `meta`.
pub(super) const META_SEQUENCES: &[u8] = b"sequences";
/// Key in `meta` that is written for the sake of writing.
pub(super) const META_RECLAIMED: &[u8] = b"reclaimed";

/// Bytes before the record in a value of `records`.
const START_BYTES: usize = 8;
/// Where the record's time lies in a value of `records`: after the start, version, flags and kind.
const TIME_AT: usize = START_BYTES + 4;

/// A topic's entry in `topics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicEntry {
    pub(super) id: u64,
    pub(super) first: Sequence,
}

impl TopicEntry {
    pub(super) fn encode(self) -> [u8; 16] {
        pair(self.id, self.first.0)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            id: u64_at(bytes, 0)?,
            first: Sequence(u64_at(bytes, 8)?),
        })
    }
}

/// The first byte of a topic's key; never changes meaning.
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

pub(super) fn topic_key(topic: &Topic) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + topic.name().len());
    key.push(space_tag(topic.space()));
    key.extend_from_slice(topic.name().as_bytes());
    key
}

/// The topic that `key` in `topics` stands for.
pub(super) fn topic_of(space: Space, key: &[u8]) -> Result<Topic, Error> {
    key.get(1..)
        .and_then(|name| std::str::from_utf8(name).ok())
        .and_then(|name| Topic::new(space, name).ok())
        .ok_or_else(|| corrupt("a topic's name"))
}

pub(super) fn record_key(topic: u64, sequence: Sequence) -> [u8; 16] {
    pair(topic, sequence.0)
}

pub(super) fn sequence_of(key: &[u8]) -> Result<Sequence, Error> {
    u64_at(key, 8).map(Sequence)
}

/// Replaces `out` with the value of a record.
pub(super) fn encode_record(start: u64, record: &NewRecord, time: Timestamp, out: &mut Vec<u8>) {
    out.clear();
    out.put_u64(start);
    encode(record, time, out);
}

/// Replaces `out` with the value of a record whose stored form is there.
pub(super) fn put_stored(start: u64, stored: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.put_u64(start);
    out.put_slice(stored);
}

/// The record as [`encode`] wrote it.
pub(super) fn stored_of(value: &[u8]) -> Result<&[u8], Error> {
    value.get(START_BYTES..).ok_or_else(|| corrupt("a record"))
}

pub(super) fn start_of(value: &[u8]) -> Result<u64, Error> {
    u64_at(value, 0)
}

/// Where the record after the one with this value starts.
pub(super) fn end_of(value: &[u8]) -> Result<u64, Error> {
    Ok(start_of(value)? + value.len() as u64)
}

pub(super) fn time_of(value: &[u8]) -> Result<Timestamp, Error> {
    u64_at(value, TIME_AT).map(Timestamp)
}

pub(super) fn decode_record(sequence: Sequence, value: &[u8]) -> Result<Record, Error> {
    decode(sequence, Bytes::copy_from_slice(stored_of(value)?))
        .map_err(|error| Error::Corrupt(format!("record {sequence}: {error}")))
}

pub(super) fn dedupe_key(topic: u64, hash: [u8; 16]) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&topic.to_be_bytes());
    key[8..].copy_from_slice(&hash);
    key
}

/// The hash in a key of `keys`.
pub(super) fn hash_of(dedupe_key: &[u8]) -> Result<[u8; 16], Error> {
    let hash = dedupe_key.get(8..24).and_then(|hash| hash.try_into().ok());
    hash.ok_or_else(|| corrupt("an idempotency key"))
}

pub(super) fn encode_known(known: &Known) -> [u8; 32] {
    let mut value = [0; 32];
    value[..16].copy_from_slice(&pair(known.sequence.0, known.time.0));
    value[16..].copy_from_slice(&known.content);
    value
}

pub(super) fn decode_known(value: &[u8]) -> Result<Known, Error> {
    let content = value.get(16..32).and_then(|hash| hash.try_into().ok());
    Ok(Known {
        sequence: Sequence(u64_at(value, 0)?),
        time: Timestamp(u64_at(value, 8)?),
        content: content.ok_or_else(|| corrupt("an idempotency key"))?,
    })
}

pub(super) fn expiry_key(time: Timestamp, dedupe_key: [u8; 24]) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&time.0.to_be_bytes());
    key[8..].copy_from_slice(&dedupe_key);
    key
}

/// The time and the key in `keys` that `key` in `expiry` stands for.
pub(super) fn expiry_of(key: &[u8]) -> Result<(Timestamp, [u8; 24]), Error> {
    let dedupe_key = key.get(8..32).and_then(|key| key.try_into().ok());
    Ok((
        Timestamp(u64_at(key, 0)?),
        dedupe_key.ok_or_else(|| corrupt("a key's expiry"))?,
    ))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Error> {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or_else(|| corrupt("an entry"))
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::Corrupt(format!("{what} is not what was written"))
}

fn pair(high: u64, low: u64) -> [u8; 16] {
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}
