//! Counting gRPC messages in a byte stream, whatever way it is cut into frames.

/// A gRPC message's prefix: compression flag and length.
const PREFIX_BYTES: usize = 5;

/// Counts messages by their prefixes; keeps nothing of their content.
#[derive(Debug, Default)]
pub(super) struct FrameCounter {
    prefix: [u8; PREFIX_BYTES],
    filled: usize,
    left: usize,
}

impl FrameCounter {
    /// Takes the next bytes of the stream; returns how many messages began in them.
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut messages = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (PREFIX_BYTES - self.filled).min(bytes.len());
            self.prefix[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                self.filled = 0;
                messages += 1;
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_messages_however_they_are_cut() {
        let mut stream = Vec::new();
        for size in [0_usize, 1, 300, 0, 7] {
            stream.push(0);
            stream.extend(u32::try_from(size).unwrap().to_be_bytes());
            stream.extend(vec![9; size]);
        }
        for cut in 1..stream.len() {
            let mut counter = FrameCounter::default();
            let counted: u64 = stream.chunks(cut).map(|part| counter.count(part)).sum();
            assert_eq!(counted, 5, "cut every {cut} bytes");
        }
    }
}
