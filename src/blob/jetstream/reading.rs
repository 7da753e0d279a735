//! The bytes of a blob, chunk by chunk: one in memory, the next when it is asked for.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};

use super::{CHUNK_BYTES, Run, persist, run};
use crate::{blob::Error, nats::stream::Stream};

/// The bytes `range` of a blob of `size` bytes whose chunks have subjects that begin with `chunks`.
pub(super) fn bytes(
    stream: Stream,
    chunks: String,
    runs: Vec<Run>,
    size: u64,
    range: Range<u64>,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let until = range.end;
    futures::stream::try_unfold(range.start, move |at| {
        let place = (at < until).then(|| Place::of(at, until, size));
        let subject = place.as_ref().and_then(|place| {
            let ending = run::find(&runs, place.index)?;
            Some(format!("{chunks}{ending}"))
        });
        let stream = stream.clone();
        async move {
            let Some(place) = place else {
                return Ok(None);
            };
            let missing = || Error::Corrupt(format!("a chunk of a file is gone at {at}"));
            let subject = subject.ok_or_else(missing)?;
            let chunk = persist(&stream, || stream.only(&subject)).await?;
            let bytes = place.cut(&chunk.ok_or_else(missing)?)?;
            let next = at + bytes.len() as u64;
            Ok(Some((bytes, next)))
        }
    })
    .boxed()
}

/// Where in a blob a position is.
struct Place {
    /// The number of the chunk.
    index: u64,
    /// What is wanted of the chunk.
    within: Range<usize>,
    /// The size the chunk must have.
    length: usize,
}

impl Place {
    fn of(at: u64, until: u64, size: u64) -> Self {
        let index = at / CHUNK_BYTES as u64;
        let start = index * CHUNK_BYTES as u64;
        // At most a chunk.
        let short = |bytes: u64| bytes.min(CHUNK_BYTES as u64) as usize;
        Self {
            index,
            within: short(at - start)..short(until.saturating_sub(start)),
            length: short(size.saturating_sub(start)),
        }
    }

    fn cut(&self, chunk: &Bytes) -> Result<Bytes, Error> {
        let is_fit = chunk.len() == self.length && self.within.end <= chunk.len();
        match is_fit && !self.within.is_empty() {
            true => Ok(chunk.slice(self.within.clone())),
            false => Err(Error::Corrupt(format!(
                "chunk {} of a file has {} bytes and not {}",
                self.index,
                chunk.len(),
                self.length
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    #[test]
    fn a_range_is_cut_from_its_chunks() {
        let size = 2 * CHUNK + 10;
        for (at, until, index, within, length) in [
            (0, size, 0, 0..CHUNK, CHUNK),
            (5, 7, 0, 5..7, CHUNK),
            (CHUNK - 1, CHUNK, 0, CHUNK - 1..CHUNK, CHUNK),
            (CHUNK, CHUNK + 1, 1, 0..1, CHUNK),
            (2 * CHUNK, size, 2, 0..10, 10),
            (2 * CHUNK + 9, size, 2, 9..10, 10),
        ] {
            let place = Place::of(at, until, size);
            assert_eq!(place.index, index, "{at}");
            let found = place.within.start as u64..place.within.end as u64;
            assert_eq!((found, place.length as u64), (within, length), "{at}");
        }
    }

    #[test]
    fn a_chunk_of_another_size_is_corrupt() {
        let size = CHUNK + 10;
        let whole = Bytes::from(vec![0; CHUNK_BYTES]);
        assert!(Place::of(0, size, size).cut(&whole).is_ok());
        assert!(Place::of(0, size, size).cut(&whole.slice(1..)).is_err());
        assert!(Place::of(CHUNK, size, size).cut(&whole).is_err());
        // A range beyond the blob's end would never end.
        assert!(
            Place::of(CHUNK, size + 1, size)
                .cut(&whole.slice(..10))
                .is_err()
        );
    }
}
