//! Records in wire form, shared by all subscribers of one wire type.

use std::{any::TypeId, collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::SLICE_BYTES;
use crate::log::{Record, Sequence, Timestamp, Topic};

/// A wire type: how one record looks on the wire. Implemented by services; the hub only lays the results end to end.
pub trait Encoding: Send + Sync + 'static {
    /// Appends the complete framed form of `record` to `out`.
    fn encode(topic: &Topic, record: &Record, out: &mut BytesMut);
}

/// All that is new for a subscriber, as one slice.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    pub(super) bytes: Bytes,
    pub(super) records: usize,
    pub(super) next: Sequence,
    pub(super) newest: Timestamp,
}

/// One wire type's share of a tail.
pub(super) struct EncodedTail {
    encoding: TypeId,
    chunks: VecDeque<Chunk>,
    /// Records before this position have been encoded.
    next: Sequence,
}

/// Framed records laid end to end.
struct Chunk {
    /// The first and the last record's sequence, beside what is behind a pointer: most readers need no more.
    first: Sequence,
    last: Sequence,
    bytes: Bytes,
    /// Of each record: its sequence, and where it ends in `bytes`.
    ends: Vec<(Sequence, usize)>,
    /// When the last record was appended.
    newest: Timestamp,
}

impl EncodedTail {
    pub(super) fn new<E: Encoding>(start: Sequence) -> Self {
        Self {
            encoding: TypeId::of::<E>(),
            chunks: VecDeque::new(),
            next: start,
        }
    }

    pub(super) fn is<E: Encoding>(&self) -> bool {
        self.encoding == TypeId::of::<E>()
    }

    pub(super) const fn next(&self) -> Sequence {
        self.next
    }

    /// Encodes `records`, which continue where the last call ended; returns the bytes added.
    pub(super) fn extend<'a, E: Encoding>(
        &mut self,
        topic: &Topic,
        records: impl Iterator<Item = &'a Arc<Record>>,
        next: Sequence,
    ) -> usize {
        let mut added = 0;
        let mut buffer = BytesMut::new();
        let mut ends = Vec::new();
        let mut newest = Timestamp::default();
        for record in records {
            E::encode(topic, record, &mut buffer);
            ends.push((record.sequence, buffer.len()));
            newest = record.time;
            if buffer.len() >= SLICE_BYTES {
                added += self.push(buffer.split().freeze(), std::mem::take(&mut ends), newest);
            }
        }
        if !ends.is_empty() {
            added += self.push(buffer.freeze(), ends, newest);
        }
        self.next = next;
        added
    }

    fn push(&mut self, bytes: Bytes, ends: Vec<(Sequence, usize)>, newest: Timestamp) -> usize {
        let size = bytes.len();
        self.chunks.push_back(Chunk::new(bytes, ends, newest));
        size
    }

    /// Everything from `from` on that fits a slice; `None` when there is nothing.
    pub(super) fn slice(&mut self, from: Sequence) -> Option<Slice> {
        let index = self.index(from);
        if index + 1 < self.chunks.len() {
            self.merge(index);
        }
        let chunk = self.chunks.get(index)?;
        let (skipped, offset) = chunk.skip(from);
        Some(Slice {
            bytes: chunk.bytes.slice(offset..),
            records: chunk.ends.len() - skipped,
            next: chunk.last.next(),
            newest: chunk.newest,
        })
    }

    /// The first chunk with something at or after `from`; most readers want the last one.
    fn index(&self, from: Sequence) -> usize {
        let before_last = self.chunks.len().saturating_sub(1);
        match self.chunks.get(before_last.wrapping_sub(1)) {
            Some(chunk) if chunk.last >= from => {
                self.chunks.partition_point(|chunk| chunk.last < from)
            }
            _ if self.chunks.back().is_some_and(|chunk| chunk.last < from) => self.chunks.len(),
            _ => before_last,
        }
    }

    /// Joins chunks from `index` on into one of at most a slice: many subscribers lag alike, so one copy serves them all.
    fn merge(&mut self, index: usize) {
        let mut size = 0;
        let count = self
            .chunks
            .iter()
            .skip(index)
            .take_while(|chunk| {
                size += chunk.bytes.len();
                size <= SLICE_BYTES
            })
            .count();
        if count < 2 {
            return;
        }
        let parts: Vec<_> = self.chunks.drain(index..index + count).collect();
        let mut bytes = BytesMut::with_capacity(parts.iter().map(|part| part.bytes.len()).sum());
        let mut ends = Vec::with_capacity(parts.iter().map(|part| part.ends.len()).sum());
        let mut newest = Timestamp::default();
        for part in parts {
            newest = part.newest;
            let base = bytes.len();
            ends.extend(
                part.ends
                    .iter()
                    .map(|(sequence, end)| (*sequence, base + end)),
            );
            bytes.extend_from_slice(&part.bytes);
        }
        let bytes = bytes.freeze();
        self.chunks.insert(index, Chunk::new(bytes, ends, newest));
    }

    /// Drops the chunks that end before `start`; returns the bytes freed.
    pub(super) fn evict(&mut self, start: Sequence) -> usize {
        let mut freed = 0;
        while self.chunks.front().is_some_and(|chunk| chunk.last < start) {
            freed += self.chunks.pop_front().map_or(0, |chunk| chunk.bytes.len());
        }
        self.next = self.next.max(start);
        freed
    }
}

impl Chunk {
    /// A chunk of at least one record.
    fn new(bytes: Bytes, ends: Vec<(Sequence, usize)>, newest: Timestamp) -> Self {
        let sequence =
            |end: Option<&(Sequence, usize)>| end.map_or_else(Sequence::default, |end| end.0);
        Self {
            first: sequence(ends.first()),
            last: sequence(ends.last()),
            bytes,
            ends,
            newest,
        }
    }

    /// How many records lie before `from`, and where they end.
    fn skip(&self, from: Sequence) -> (usize, usize) {
        if from <= self.first {
            return (0, 0);
        }
        let skipped = self.ends.partition_point(|(sequence, _)| *sequence < from);
        let end = skipped
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        (skipped, end.map_or(0, |end| end.1))
    }
}
