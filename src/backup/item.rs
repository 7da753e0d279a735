//! The pieces of a log as bytes. Integers are big-endian; an entry of the archive holds whole pieces only.
//!
//! ```text
//! 1 'T' │ 4 length │ 8 first │ 1 length, space │ name
//! 1 'R' │ 4 length │ 8 sequence │ record as log::encode writes it
//! 1 'K' │ 4 length │ 16 hash │ 8 sequence │ 8 time │ 16 content hash
//! ```

use bytes::{Buf as _, BufMut as _};

use super::Error;
use crate::log::{Sequence, Timestamp, export::Item};

const TOPIC: u8 = b'T';
const RECORD: u8 = b'R';
const KEY: u8 = b'K';

/// Appends a piece to `out`.
pub(super) fn encode(item: &Item<'_>, out: &mut Vec<u8>) {
    let at = out.len();
    out.put_u8(0);
    out.put_u32(0);
    let tag = match *item {
        Item::Topic { space, name, first } => {
            out.put_u64(first.0);
            // Names of spaces are short and our own.
            let space = space.as_str().as_bytes();
            out.put_u8(u8::try_from(space.len()).unwrap_or(u8::MAX));
            out.put_slice(space);
            out.put_slice(name.as_bytes());
            TOPIC
        }
        Item::Record { sequence, stored } => {
            out.put_u64(sequence.0);
            out.put_slice(stored);
            RECORD
        }
        Item::Key {
            hash,
            sequence,
            time,
            content,
        } => {
            out.put_slice(&hash);
            out.put_u64(sequence.0);
            out.put_u64(time.0);
            out.put_slice(&content);
            KEY
        }
    };
    // A record is far smaller than that: messages are limited.
    let length = u32::try_from(out.len() - at - 5).unwrap_or(u32::MAX);
    out[at] = tag;
    out[at + 1..at + 5].copy_from_slice(&length.to_be_bytes());
}

/// Takes the next piece from `bytes`; none at the end.
pub(super) fn decode<'a>(bytes: &mut &'a [u8]) -> Result<Option<Item<'a>>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    read(bytes)
        .map(Some)
        .ok_or_else(|| Error::damaged("a piece of the log is not what was written"))
}

fn read<'a>(bytes: &mut &'a [u8]) -> Option<Item<'a>> {
    let tag = bytes.try_get_u8().ok()?;
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    let (mut body, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    match tag {
        TOPIC => {
            let first = Sequence(body.try_get_u64().ok()?);
            let length = usize::from(body.try_get_u8().ok()?);
            let (space, name) = body.split_at_checked(length)?;
            Some(Item::Topic {
                space: std::str::from_utf8(space).ok()?.parse().ok()?,
                name: std::str::from_utf8(name).ok()?,
                first,
            })
        }
        RECORD => Some(Item::Record {
            sequence: Sequence(body.try_get_u64().ok()?),
            stored: body,
        }),
        KEY => {
            let mut hash = [0; 16];
            let mut content = [0; 16];
            body.try_copy_to_slice(&mut hash).ok()?;
            let sequence = Sequence(body.try_get_u64().ok()?);
            let time = Timestamp(body.try_get_u64().ok()?);
            body.try_copy_to_slice(&mut content).ok()?;
            body.is_empty().then_some(Item::Key {
                hash,
                sequence,
                time,
                content,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Space;

    #[test]
    fn pieces_read_back_and_cut_ones_do_not() {
        let items = [
            Item::Topic {
                space: Space::Room,
                name: "grün",
                first: Sequence(7),
            },
            Item::Record {
                sequence: Sequence(9),
                stored: b"stored",
            },
            Item::Key {
                hash: [1; 16],
                sequence: Sequence(9),
                time: Timestamp(3),
                content: [2; 16],
            },
        ];
        let mut bytes = Vec::new();
        for item in &items {
            encode(item, &mut bytes);
        }
        let mut rest = bytes.as_slice();
        for item in items {
            assert_eq!(decode(&mut rest).unwrap(), Some(item));
        }
        assert_eq!(decode(&mut rest).unwrap(), None);
        for item in &items {
            let mut bytes = Vec::new();
            encode(item, &mut bytes);
            for cut in 1..bytes.len() {
                assert!(decode(&mut &bytes[..cut]).is_err(), "{item:?} cut at {cut}");
            }
        }
    }
}
