//! The encoding beneath Yjs: little-endian base-128 integers, and bytes and text with their length before them.

/// Reads from the front of a slice. Every method answers `None` when the bytes do not hold what is asked for.
#[derive(Debug, Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// So many bytes.
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// An unsigned integer of variable length, at most 64 bits.
    pub fn uint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// A count of things that take at least `least` bytes each, so that no count promises more than the bytes can hold.
    pub fn count(&mut self, least: usize) -> Option<usize> {
        let count = usize::try_from(self.uint()?).ok()?;
        (count.checked_mul(least)? <= self.left()).then_some(count)
    }

    /// Bytes with their length before them.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.count(1)?;
        self.take(length)
    }

    /// Text with its length in bytes before it.
    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Appends an unsigned integer of variable length.
pub fn write_uint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        #[allow(clippy::cast_possible_truncation, reason = "seven bits")]
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    #[allow(clippy::cast_possible_truncation, reason = "seven bits")]
    out.push(number as u8);
}

/// Appends bytes with their length before them.
pub fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_uint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(number: u64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            write_uint(number, &mut out);
            write_bytes(&bytes, &mut out);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.uint(), Some(number));
            prop_assert_eq!(reader.bytes(), Some(bytes.as_slice()));
            prop_assert_eq!(reader.left(), 0);
        }
    }

    #[test]
    fn what_the_bytes_do_not_hold_is_not_read() {
        assert_eq!(Reader::new(&[]).uint(), None);
        assert_eq!(Reader::new(&[0x80]).uint(), None);
        assert_eq!(Reader::new(&[0xff; 10]).uint(), None);
        assert_eq!(Reader::new(&[5, 1, 2]).bytes(), None);
        assert_eq!(Reader::new(&[1, 0xff]).text(), None);
        assert_eq!(Reader::new(&[3, 0, 0]).count(1), None);
    }
}
