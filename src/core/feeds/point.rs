//! A data point as it is stored.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const FORMAT: u8 = 1;

/// A value and what its publisher says about it. Any value is allowed, NaN and the infinities included: what they mean is
/// between publisher and reader.
///
/// Stored as one byte for the format, the value's 8 bytes, then each name and text behind its length in 4 bytes. Names are
/// sorted, so equal points have equal bytes, which is what an idempotency key compares.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Point {
    /// The value.
    pub value: f64,
    /// What is said about it, by name.
    pub metadata: BTreeMap<Box<str>, Box<str>>,
}

/// Stored bytes that are no point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes are no data point")]
pub struct PointError;

impl Point {
    /// A point; of several texts of one name the last stays.
    pub fn new<N: Into<Box<str>>, T: Into<Box<str>>>(
        value: f64,
        metadata: impl IntoIterator<Item = (N, T)>,
    ) -> Self {
        let metadata = metadata.into_iter();
        Self {
            value,
            metadata: metadata
                .map(|(name, text)| (name.into(), text.into()))
                .collect(),
        }
    }

    /// Its stored bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let texts = self.metadata.iter().flat_map(|(name, text)| [name, text]);
        let size: usize = texts.clone().map(|text| 4 + text.len()).sum();
        let mut bytes = BytesMut::with_capacity(9 + size);
        bytes.put_u8(FORMAT);
        bytes.put_f64(self.value);
        for text in texts {
            // Messages are limited to far less than 4 GiB on their way in.
            bytes.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
            bytes.put_slice(text.as_bytes());
        }
        bytes.freeze()
    }

    /// The point that `bytes` stand for.
    ///
    /// # Errors
    /// They were not made by [`Self::encode`].
    pub fn decode(mut bytes: Bytes) -> Result<Self, PointError> {
        if bytes.try_get_u8() != Ok(FORMAT) {
            return Err(PointError);
        }
        let value = bytes.try_get_f64().map_err(|_| PointError)?;
        let mut metadata = BTreeMap::new();
        while bytes.has_remaining() {
            let name = take_text(&mut bytes)?;
            metadata.insert(name, take_text(&mut bytes)?);
        }
        Ok(Self { value, metadata })
    }
}

fn take_text(bytes: &mut Bytes) -> Result<Box<str>, PointError> {
    let length = bytes.try_get_u32().map_err(|_| PointError)? as usize;
    if length > bytes.len() {
        return Err(PointError);
    }
    let text = bytes.split_to(length);
    std::str::from_utf8(&text)
        .map(Into::into)
        .map_err(|_| PointError)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_point_reads_back(value: f64, metadata in vec((".*", ".*"), 0..5)) {
            let point = Point::new(value, metadata);
            let read = Point::decode(point.encode()).unwrap();
            prop_assert_eq!(read.value.to_bits(), value.to_bits());
            prop_assert_eq!(read.metadata, point.metadata);
        }

        #[test]
        fn any_bytes_are_a_point_or_refused(bytes in vec(any::<u8>(), 0..64)) {
            let _ = Point::decode(bytes.into());
        }

        #[test]
        fn a_cut_point_is_refused_or_shorter(cut in 0usize..40) {
            let whole = Point::new(1.5, [("name", "text"), ("other", "text")]);
            let bytes = whole.encode();
            let read = Point::decode(bytes.slice(..cut.min(bytes.len() - 1)));
            prop_assert_ne!(read, Ok(whole));
        }
    }

    #[test]
    fn equal_points_have_equal_bytes() {
        let one = Point::new(1.0, [("a", "1"), ("b", "2")]);
        let other = Point::new(1.0, [("b", "2"), ("a", "0"), ("a", "1")]);
        assert_eq!(one.encode(), other.encode());
    }
}
