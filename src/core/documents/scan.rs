//! A look at what clients send before the CRDT gets it.
//!
//! yrs decodes by recursion, reserves what counts promise and computes with clocks as they come. A client must not be able
//! to overflow a stack, a number or the memory with a few bytes, so everything is walked through here first: counts against
//! the bytes that are left, clocks against their range, nesting against [`MAX_DEPTH`].

use super::lib0::Reader;

/// How deep a value may be nested.
const MAX_DEPTH: usize = 64;
/// Editors (Yjs client ids) in one update or state vector. Each session of an editor is one, and yrs compares those that
/// wait for each other pair by pair.
const MAX_CLIENTS: usize = 65_536;
/// Yjs client ids have 53 bits.
const CLIENT_ID_END: u64 = 1 << 53;
/// Clocks are computed with as signed 32-bit numbers.
const CLOCK_END: u64 = 1 << 31;

/// Kinds of struct that are no item.
const GC: u8 = 0;
const SKIP: u8 = 10;
/// What an item's first byte says beside its kind.
const HAS_ORIGIN: u8 = 0x80;
const HAS_RIGHT_ORIGIN: u8 = 0x40;
const HAS_PARENT_SUB: u8 = 0x20;

/// Whether `bytes` have the form of one Yjs update (v1), to the last byte.
pub(super) fn is_update(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    structs(&mut reader).and_then(|()| deletions(&mut reader)) == Some(()) && reader.left() == 0
}

/// Whether `bytes` have the form of a Yjs state vector.
pub(super) fn is_state_vector(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let mut walk = || {
        for _ in 0..clients(&mut reader, 2)? {
            id(&mut reader)?;
        }
        Some(())
    };
    walk() == Some(()) && reader.left() == 0
}

/// Whether `bytes` have the form of a y-protocols awareness update: of each editor its id, its clock and its state as JSON.
#[must_use]
pub fn is_awareness(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let mut walk = || {
        for _ in 0..clients(&mut reader, 3)? {
            client(&mut reader)?;
            reader.uint()?;
            json(&mut reader)?;
        }
        Some(())
    };
    walk() == Some(()) && reader.left() == 0
}

fn clients(reader: &mut Reader<'_>, least: usize) -> Option<usize> {
    reader.count(least).filter(|count| *count <= MAX_CLIENTS)
}

fn client(reader: &mut Reader<'_>) -> Option<()> {
    (reader.uint()? < CLIENT_ID_END).then_some(())
}

fn clock(reader: &mut Reader<'_>) -> Option<u64> {
    reader.uint().filter(|clock| *clock < CLOCK_END)
}

fn id(reader: &mut Reader<'_>) -> Option<()> {
    client(reader)?;
    clock(reader)?;
    Some(())
}

fn json(reader: &mut Reader<'_>) -> Option<()> {
    // serde_json limits the nesting itself.
    serde_json::from_str::<serde_json::Value>(reader.text()?).ok()?;
    Some(())
}

fn structs(reader: &mut Reader<'_>) -> Option<()> {
    for _ in 0..clients(reader, 4)? {
        // One that has no structs, or gaps beside each other or at its end, says nothing; yrs goes one call deeper for each.
        let count = reader.count(2).filter(|count| *count > 0)?;
        client(reader)?;
        let mut clock = clock(reader)?;
        let mut is_gap = false;
        for _ in 0..count {
            let kind = reader.byte()?;
            if is_gap && kind == SKIP {
                return None;
            }
            is_gap = kind == SKIP;
            clock += block(reader, kind)?;
            if clock >= CLOCK_END {
                return None;
            }
        }
        if is_gap {
            return None;
        }
    }
    Some(())
}

/// Walks through one struct; returns its length in clock ticks, or more.
fn block(reader: &mut Reader<'_>, info: u8) -> Option<u64> {
    if info == GC || info == SKIP {
        return clock(reader).filter(|length| *length > 0);
    }
    if info & HAS_ORIGIN != 0 {
        id(reader)?;
    }
    if info & HAS_RIGHT_ORIGIN != 0 {
        id(reader)?;
    }
    if info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN) == 0 {
        match reader.uint()? {
            1 => drop(reader.text()?),
            0 => id(reader)?,
            _ => return None,
        }
        if info & HAS_PARENT_SUB != 0 {
            reader.text()?;
        }
    }
    content(reader, info & 0x1f)
}

fn content(reader: &mut Reader<'_>, kind: u8) -> Option<u64> {
    match kind {
        // Deleted.
        1 => return clock(reader),
        // Binary.
        3 => drop(reader.bytes()?),
        // Text; it has no more UTF-16 units than bytes.
        4 => return Some(reader.text()?.len() as u64),
        // An embedded value.
        5 => json(reader)?,
        // A format.
        6 => {
            reader.text()?;
            json(reader)?;
        }
        // A nested type; elements have a name.
        7 => match reader.byte()? {
            3 => drop(reader.text()?),
            0..=6 => {}
            _ => return None,
        },
        // Values.
        8 => {
            let count = reader.count(1)?;
            for _ in 0..count {
                any(reader, 0)?;
            }
            return Some(count as u64);
        }
        // A document within the document.
        9 => {
            reader.text()?;
            any(reader, 0)?;
        }
        // JSON values in a form that no Yjs since version 13 writes, and anything unknown.
        _ => return None,
    }
    Some(1)
}

/// Walks through one value of any type.
fn any(reader: &mut Reader<'_>, depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    match reader.byte()? {
        // Undefined, null, false, true.
        127 | 126 | 121 | 120 => {}
        // A number of variable length; its first byte has a sign and six bits.
        125 => drop(reader.uint()?),
        124 => drop(reader.take(4)?),
        123 | 122 => drop(reader.take(8)?),
        119 => drop(reader.text()?),
        118 => {
            for _ in 0..reader.count(2)? {
                reader.text()?;
                any(reader, depth + 1)?;
            }
        }
        117 => {
            for _ in 0..reader.count(1)? {
                any(reader, depth + 1)?;
            }
        }
        116 => drop(reader.bytes()?),
        _ => return None,
    }
    Some(())
}

fn deletions(reader: &mut Reader<'_>) -> Option<()> {
    for _ in 0..clients(reader, 2)? {
        client(reader)?;
        for _ in 0..reader.count(2)? {
            let start = clock(reader)?;
            let length = clock(reader)?;
            if start + length >= CLOCK_END {
                return None;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_updates_and_state_vectors_pass() {
        assert!(is_update(&[0, 0]));
        assert!(is_state_vector(&[0]));
        assert!(is_awareness(&[0]));
        assert!(is_awareness(&[1, 5, 1, 4, b'n', b'u', b'l', b'l']));
    }

    #[test]
    fn what_is_cut_off_or_goes_on_is_refused() {
        for bytes in [&[][..], &[0], &[0, 0, 0], &[1, 1, 1, 0]] {
            assert!(!is_update(bytes), "{bytes:?}");
        }
        assert!(!is_state_vector(&[]));
        assert!(!is_state_vector(&[1, 1]));
        assert!(!is_awareness(&[1, 5, 1, 2, b'{', b'{']));
    }

    #[test]
    fn counts_that_promise_more_than_there_is_are_refused() {
        let many = [0xff, 0xff, 0xff, 0x7a];
        assert!(!is_update(&many));
        assert!(!is_state_vector(&many));
        assert!(!is_awareness(&many));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut update = vec![1, 1, 1, 0, 8, 1, 1, b't', 1];
        update.extend(std::iter::repeat_n([117, 1], 100_000).flatten());
        update.extend([126, 0]);
        assert!(!is_update(&update));
        let mut flat = vec![1, 1, 1, 0, 8, 1, 1, b't', 1];
        flat.extend([117, 1].repeat(MAX_DEPTH));
        flat.extend([126, 0]);
        assert!(is_update(&flat));
    }

    #[test]
    fn clocks_beyond_their_range_are_refused() {
        let end = [0xff, 0xff, 0xff, 0xff, 0x07];
        let mut update = vec![0, 1, 1, 1];
        update.extend(end);
        update.push(1);
        assert!(!is_update(&update));
    }
}
