//! Counts gRPC messages in a byte stream without decoding them.

use anyhow::{Result, bail};

/// Flag and length in front of every gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// A longer message than this is taken for a broken stream.
const MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Follows the message boundaries of one stream, whatever way it is cut into chunks, and hands out every n-th message.
#[derive(Debug)]
pub(super) struct FrameCounter {
    prefix: [u8; PREFIX_BYTES],
    prefix_have: usize,
    /// Bytes of the current message's body that are still to come; meaningful once its prefix is complete.
    left: usize,
    total: u64,
    sample_every: u64,
    /// The part of a sampled message that arrived in earlier chunks.
    partial: Vec<u8>,
}

impl FrameCounter {
    /// Samples the messages whose index is `phase` modulo `sample_every`.
    pub(super) fn new(sample_every: u64, phase: u64) -> Self {
        let sample_every = sample_every.max(1);
        Self {
            prefix: [0; PREFIX_BYTES],
            prefix_have: 0,
            left: 0,
            total: (sample_every - phase % sample_every) % sample_every,
            sample_every,
            partial: Vec::new(),
        }
    }

    /// Takes the next chunk and answers how many messages it completed.
    pub(super) fn feed(
        &mut self,
        mut chunk: &[u8],
        mut sampled: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<u64> {
        let before = self.total;
        while !chunk.is_empty() {
            if self.prefix_have < PREFIX_BYTES {
                chunk = self.take_prefix(chunk)?;
            }
            if self.prefix_have == PREFIX_BYTES {
                chunk = self.take_body(chunk, &mut sampled)?;
            }
        }
        Ok(self.total - before)
    }

    fn take_prefix<'a>(&mut self, chunk: &'a [u8]) -> Result<&'a [u8]> {
        let wanted = (PREFIX_BYTES - self.prefix_have).min(chunk.len());
        let (head, rest) = chunk.split_at(wanted);
        self.prefix[self.prefix_have..self.prefix_have + wanted].copy_from_slice(head);
        self.prefix_have += wanted;
        if self.prefix_have == PREFIX_BYTES {
            self.left = body_length(self.prefix)?;
        }
        Ok(rest)
    }

    fn take_body<'a>(
        &mut self,
        chunk: &'a [u8],
        sampled: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<&'a [u8]> {
        let (body, rest) = chunk.split_at(self.left.min(chunk.len()));
        self.left -= body.len();
        let is_sampled = self.total.is_multiple_of(self.sample_every);
        if self.left > 0 {
            if is_sampled {
                self.partial.extend_from_slice(body);
            }
            return Ok(rest);
        }
        self.prefix_have = 0;
        self.total += 1;
        if is_sampled && self.partial.is_empty() {
            sampled(body)?;
        } else if is_sampled {
            self.partial.extend_from_slice(body);
            sampled(&std::mem::take(&mut self.partial))?;
        }
        Ok(rest)
    }
}

fn body_length(prefix: [u8; PREFIX_BYTES]) -> Result<usize> {
    let [flag, length @ ..] = prefix;
    if flag != 0 {
        bail!("the server sent a compressed message that nobody asked for");
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_MAX_BYTES {
        bail!("the server announced a message of {length} bytes");
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for body in bodies {
            out.push(0);
            out.extend((body.len() as u32).to_be_bytes());
            out.extend_from_slice(body);
        }
        out
    }

    #[test]
    fn messages_are_counted_and_handed_out_whatever_the_cut() {
        let bodies: [&[u8]; 4] = [b"first", b"", b"the third one", b"4"];
        let stream = framed(&bodies);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut counter = FrameCounter::new(1, 0);
                let mut seen = Vec::new();
                let mut total = 0;
                for chunk in [&stream[..first], &stream[first..second], &stream[second..]] {
                    let keep = |body: &[u8]| {
                        seen.push(body.to_vec());
                        Ok(())
                    };
                    total += counter.feed(chunk, keep).unwrap();
                }
                assert_eq!(total, 4, "cut at {first} and {second}");
                assert_eq!(seen, bodies, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn one_byte_at_a_time_is_enough() {
        let stream = framed(&[b"", b"ab", b"", b"c"]);
        let mut counter = FrameCounter::new(1, 0);
        let total: u64 = stream
            .iter()
            .map(|byte| counter.feed(&[*byte], |_| Ok(())).unwrap())
            .sum();
        assert_eq!(total, 4);
    }

    #[test]
    fn sampling_takes_every_nth_from_the_phase() {
        let bodies: Vec<Vec<u8>> = (0..10_u8).map(|n| vec![n]).collect();
        let stream = framed(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for (phase, expected) in [(0, vec![0, 4, 8]), (1, vec![1, 5, 9]), (7, vec![3, 7])] {
            let mut counter = FrameCounter::new(4, phase);
            let mut seen = Vec::new();
            let keep = |body: &[u8]| {
                seen.push(body[0]);
                Ok(())
            };
            assert_eq!(counter.feed(&stream, keep).unwrap(), 10);
            assert_eq!(seen, expected, "phase {phase}");
        }
    }

    #[test]
    fn compressed_and_absurd_messages_are_refused() {
        for prefix in [[1, 0, 0, 0, 1], [0, 0xff, 0, 0, 0]] {
            assert!(FrameCounter::new(1, 0).feed(&prefix, |_| Ok(())).is_err());
        }
    }
}
