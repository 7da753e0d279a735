//! What goes by is counted and hashed.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    rc::Rc,
};

use sha2::{Digest as _, Sha256};

use crate::blob::hex;

/// Size of a header in the archive.
const HEADER_BYTES: usize = 512;

/// Hashes what is written.
pub(super) struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Bytes so far, and their SHA-256 in hexadecimal.
    pub(super) fn state(&self) -> (u64, String) {
        (self.bytes, hex(&self.hasher.clone().finalize()))
    }

    pub(super) fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hasher.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what is read, save the last header's worth: at the archive's last header, everything before it.
pub(super) struct Lagging<R> {
    inner: R,
    state: Lag,
}

/// Tells what a [`Lagging`] saw, while the archive has it.
#[derive(Clone, Default)]
pub(super) struct Lag(Rc<RefCell<Behind>>);

#[derive(Default)]
struct Behind {
    hasher: Sha256,
    bytes: u64,
    held: Vec<u8>,
}

impl<R: Read> Lagging<R> {
    pub(super) fn new(inner: R) -> (Self, Lag) {
        let state = Lag::default();
        let lag = state.clone();
        (Self { inner, state }, lag)
    }
}

impl Lag {
    /// Bytes before the last header's worth, and their SHA-256 in hexadecimal.
    pub(super) fn state(&self) -> (u64, String) {
        let behind = self.0.borrow();
        (behind.bytes, hex(&behind.hasher.clone().finalize()))
    }

    fn saw(&self, bytes: &[u8]) {
        let mut behind = self.0.borrow_mut();
        let Behind {
            hasher,
            bytes: count,
            held,
        } = &mut *behind;
        // What the new bytes push out of what is held, then what of them is not held itself.
        let out = (held.len() + bytes.len()).saturating_sub(HEADER_BYTES);
        let old = out.min(held.len());
        hasher.update(&held[..old]);
        held.drain(..old);
        let new = out - old;
        hasher.update(&bytes[..new]);
        held.extend_from_slice(&bytes[new..]);
        *count += out as u64;
    }
}

impl<R: Read> Read for Lagging<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.state.saw(&buf[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lagging_hash_is_that_of_everything_before_the_last_header() {
        let all: Vec<u8> = (0..5000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for step in [1, 7, 511, 512, 513, 5000] {
            let (mut reader, lag) = Lagging::new(all.as_slice());
            let (mut seen, mut buf) = (0, vec![0; step]);
            while seen < all.len() {
                seen += reader.read(&mut buf).unwrap();
                let before = &all[..seen.saturating_sub(HEADER_BYTES)];
                let expected = (before.len() as u64, hex(&Sha256::digest(before)));
                assert_eq!(lag.state(), expected, "{seen} in steps of {step}");
            }
        }
    }
}
