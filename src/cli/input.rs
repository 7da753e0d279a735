//! Lines from stdin, read by a thread of its own so that a terminal nobody types at blocks nothing.

use std::{
    io::{self, BufRead as _, BufReader, Read},
    thread,
};

use tokio::sync::mpsc;

use super::Failure;
use crate::client::MAX_MESSAGE_BYTES;

/// A batch is passed on when it holds this many lines.
const BATCH_LINES: usize = 250;

/// ... or this many bytes.
const BATCH_BYTES: usize = 512 * 1024;

/// Batches that may wait for their reader; the thread then waits too.
const WAITING_BATCHES: usize = 4;

/// Consecutive lines, as many as could be read without waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Number of the first line, counted from 1.
    pub(super) first: u64,
    /// The lines, without their ends.
    pub(super) lines: Vec<String>,
}

/// The lines of stdin. The channel closes at the end of the input; an error is its last message.
pub(super) fn stdin() -> Result<mpsc::Receiver<Result<Batch, Failure>>, Failure> {
    let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || read_batches(io::stdin(), |batch| sender.blocking_send(batch).is_ok()))?;
    Ok(receiver)
}

/// Passes the input's lines to `sink` until the input ends or fails, or `sink` returns false.
fn read_batches(input: impl Read, mut sink: impl FnMut(Result<Batch, Failure>) -> bool) {
    let mut reader = BatchReader::new(input);
    loop {
        let batch = reader.batch();
        let is_end = batch.as_ref().is_ok_and(|batch| batch.lines.is_empty());
        let is_failure = batch.is_err();
        if is_end || !sink(batch) || is_failure {
            return;
        }
    }
}

struct BatchReader<R> {
    input: BufReader<R>,
    read: u64,
    failure: Option<Failure>,
}

impl<R: Read> BatchReader<R> {
    fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 * 1024, input),
            read: 0,
            failure: None,
        }
    }

    /// The next lines; empty at the end. A bad line is an error only after the good ones before it were returned.
    fn batch(&mut self) -> Result<Batch, Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let (first, mut lines, mut bytes) = (self.read + 1, Vec::new(), 0);
        while lines.is_empty()
            || (lines.len() < BATCH_LINES && bytes < BATCH_BYTES && self.has_line())
        {
            match self.line() {
                Ok(Some(line)) => {
                    bytes += line.len();
                    lines.push(line);
                }
                Ok(None) => break,
                Err(failure) if lines.is_empty() => return Err(failure),
                Err(failure) => {
                    self.failure = Some(failure);
                    break;
                }
            }
        }
        Ok(Batch { first, lines })
    }

    /// Whether a whole line is there already.
    fn has_line(&self) -> bool {
        self.input.buffer().contains(&b'\n')
    }

    fn line(&mut self) -> Result<Option<String>, Failure> {
        let mut line = Vec::new();
        let limit = MAX_MESSAGE_BYTES as u64 + 2;
        let length = self
            .input
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(None);
        }
        self.read += 1;
        let ends = line.strip_suffix(b"\n").unwrap_or(&line);
        let end = ends.strip_suffix(b"\r").unwrap_or(ends).len();
        line.truncate(end);
        self.checked(line).map(Some)
    }

    fn checked(&self, line: Vec<u8>) -> Result<String, Failure> {
        if line.len() > MAX_MESSAGE_BYTES {
            return Err(Failure::failed(format!(
                "line {} is longer than 10 MiB",
                self.read
            )));
        }
        String::from_utf8(line)
            .map_err(|_| Failure::failed(format!("line {} is not UTF-8", self.read)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<Result<Batch, Failure>> {
        let mut batches = Vec::new();
        read_batches(input, |batch| {
            batches.push(batch);
            true
        });
        batches
    }

    fn lines(input: &[u8]) -> Vec<String> {
        read(input)
            .into_iter()
            .flat_map(|batch| batch.unwrap().lines)
            .collect()
    }

    #[test]
    fn lines_lose_their_ends_and_nothing_else() {
        assert_eq!(lines(b"a\r\n\n  b \nlast"), ["a", "", "  b ", "last"]);
        assert!(read(b"").is_empty());
    }

    #[test]
    fn batches_are_bounded_and_numbered() {
        let batches = read("x\n".repeat(600).as_bytes());
        let shape: Vec<_> = batches
            .iter()
            .map(|batch| batch.as_ref().unwrap())
            .map(|batch| (batch.first, batch.lines.len()))
            .collect();
        assert_eq!(shape, [(1, 250), (251, 250), (501, 100)]);
        let long = format!("{}\n", "y".repeat(40_000));
        assert!(read(long.repeat(40).as_bytes()).len() > 1);
    }

    #[test]
    fn a_bad_line_comes_after_the_good_ones_before_it() {
        let batches = read(b"a\nb\n\xff\nc\n");
        let good = Batch {
            first: 1,
            lines: vec!["a".into(), "b".into()],
        };
        assert_eq!(
            batches,
            [Ok(good), Err(Failure::failed("line 3 is not UTF-8"))]
        );
    }

    #[test]
    fn a_line_that_never_ends_is_refused() {
        let endless = io::repeat(b'z').take(MAX_MESSAGE_BYTES as u64 * 2);
        let mut outcomes = Vec::new();
        read_batches(endless, |batch| {
            outcomes.push(batch);
            true
        });
        assert_eq!(
            outcomes,
            [Err(Failure::failed("line 1 is longer than 10 MiB"))]
        );
    }

    #[test]
    fn reading_stops_with_its_reader() {
        let mut batches = 0;
        read_batches("x\n".repeat(600).as_bytes(), |_| {
            batches += 1;
            false
        });
        assert_eq!(batches, 1);
    }
}
