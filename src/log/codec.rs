//! The stored form of a record, shared by every engine that keeps bytes.
//!
//! ```text
//!   1 version │ 1 flags │ 2 kind │ 8 time │ [12 event time] │ [25 trace] │ 2 len, publisher │ 2 len, id │ payload
//! ```
//!
//! Integers are big-endian. The sequence is the engine's key and not part of the value.

use bytes::{Buf, BufMut, Bytes};

use super::{EventTime, NewRecord, Record, Sequence, Timestamp, TraceContext};

const VERSION: u8 = 1;
const HAS_EVENT_TIME: u8 = 1;
const HAS_TRACE: u8 = 2;

/// Appends the stored form of `record`, appended at `time`, to `out`.
pub fn encode(record: &NewRecord, time: Timestamp, out: &mut impl BufMut) {
    let mut flags = 0;
    if record.event_time.is_some() {
        flags |= HAS_EVENT_TIME;
    }
    if record.trace.is_some() {
        flags |= HAS_TRACE;
    }
    out.put_u8(VERSION);
    out.put_u8(flags);
    out.put_u16(record.kind);
    out.put_u64(time.0);
    if let Some(event_time) = record.event_time {
        out.put_i64(event_time.seconds);
        out.put_i32(event_time.nanos);
    }
    if let Some(trace) = record.trace {
        out.put_slice(&trace.trace_id);
        out.put_slice(&trace.span_id);
        out.put_u8(trace.flags);
    }
    put_text(&record.publisher, out);
    put_text(&record.id, out);
    out.put_slice(&record.payload);
}

fn put_text(text: &str, out: &mut impl BufMut) {
    // Names are limited to 256 bytes long before they come here.
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(&text.as_bytes()[..text.len().min(usize::from(u16::MAX))]);
}

/// Reads a stored record back; the payload is a slice of `bytes`, not a copy.
///
/// # Errors
/// The bytes are not what [`encode`] writes.
pub fn decode(sequence: Sequence, mut bytes: Bytes) -> Result<Record, CodecError> {
    let version = bytes.try_get_u8()?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let flags = bytes.try_get_u8()?;
    let kind = bytes.try_get_u16()?;
    let time = Timestamp(bytes.try_get_u64()?);
    let event_time = if flags & HAS_EVENT_TIME == 0 {
        None
    } else {
        Some(EventTime {
            seconds: bytes.try_get_i64()?,
            nanos: bytes.try_get_i32()?,
        })
    };
    let trace = if flags & HAS_TRACE == 0 {
        None
    } else {
        let mut trace = TraceContext {
            trace_id: [0; 16],
            span_id: [0; 8],
            flags: 0,
        };
        bytes.try_copy_to_slice(&mut trace.trace_id)?;
        bytes.try_copy_to_slice(&mut trace.span_id)?;
        trace.flags = bytes.try_get_u8()?;
        Some(trace)
    };
    Ok(Record {
        sequence,
        time,
        kind,
        event_time,
        trace,
        publisher: get_text(&mut bytes)?,
        id: get_text(&mut bytes)?,
        payload: bytes,
    })
}

fn get_text(bytes: &mut Bytes) -> Result<Box<str>, CodecError> {
    let len = usize::from(bytes.try_get_u16()?);
    if bytes.len() < len {
        return Err(CodecError::Short);
    }
    let text = bytes.split_to(len);
    Ok(std::str::from_utf8(&text)
        .map_err(|_| CodecError::Text)?
        .into())
}

/// Why bytes are not a stored record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a version of Weir that this one does not know.
    #[error("unknown record version {0}")]
    Version(u8),
    /// The bytes end early.
    #[error("the record is cut short")]
    Short,
    /// A name is not UTF-8.
    #[error("a name in the record is not UTF-8")]
    Text,
}

impl From<bytes::TryGetError> for CodecError {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Short
    }
}
