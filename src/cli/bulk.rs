//! From stdin to the server: lines in calls of bounded size, each acknowledged before it counts.

use std::{
    future::Future,
    io::{self, IsTerminal as _, Write as _},
};

use tokio::sync::mpsc::Receiver;
use tonic::Status;

use super::{Failure, input, input::Batch};

/// Lines of one call at most.
const CALL_LINES: usize = 1000;

/// No further batch joins a call that holds this many bytes.
const CALL_BYTES: usize = 2 * 1024 * 1024;

/// Makes a message of every line of stdin with `parse` and stores them with `send`, call by call; those before a bad line
/// too. Prints the number stored at the end.
pub(super) async fn store<M, F>(
    addr: &str,
    parse: impl Fn(String) -> Result<M, String>,
    send: impl Fn(Vec<M>) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<u64, Status>>,
{
    let mut lines = input::stdin()?;
    let mut progress = Progress {
        stored: 0,
        is_shown: io::stderr().is_terminal(),
    };
    while let Some(call) = next_call(&mut lines).await {
        let (messages, failure) = messages(call.first, call.lines, &parse);
        let last = call.first + messages.len() as u64;
        if !messages.is_empty() {
            let stored = send(messages).await.map_err(|status| {
                let lines = format!(
                    "{} stored, lines {} to {} not acknowledged",
                    progress.stored,
                    call.first,
                    last - 1
                );
                Failure::status(addr, &status).context(&lines)
            })?;
            progress.add(stored);
        }
        if let Some(failure) = failure.or(call.failure) {
            return Err(failure.context(&format!("{} stored", progress.stored)));
        }
    }
    Ok(writeln!(io::stdout(), "{}", progress.stored)?)
}

/// The messages up to the first bad line, and what is wrong with it.
fn messages<M>(
    first: u64,
    lines: Vec<String>,
    parse: impl Fn(String) -> Result<M, String>,
) -> (Vec<M>, Option<Failure>) {
    let mut messages = Vec::with_capacity(lines.len());
    for (number, line) in (first..).zip(lines) {
        match parse(line) {
            Ok(message) => messages.push(message),
            Err(problem) => {
                let failure = Failure::failed(format!("line {number}: {problem}"));
                return (messages, Some(failure));
            }
        }
    }
    (messages, None)
}

/// What goes into one call: lines, and what is wrong with the line after them.
#[derive(Default)]
pub(super) struct Call {
    pub(super) first: u64,
    pub(super) lines: Vec<String>,
    pub(super) failure: Option<Failure>,
}

impl Call {
    fn push(&mut self, batch: Result<Batch, Failure>) {
        match batch {
            Ok(batch) => {
                self.first = if self.lines.is_empty() {
                    batch.first
                } else {
                    self.first
                };
                self.lines.extend(batch.lines);
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn is_full(&self) -> bool {
        let bytes: usize = self.lines.iter().map(String::len).sum();
        self.failure.is_some() || self.lines.len() >= CALL_LINES || bytes >= CALL_BYTES
    }
}

/// Waits for lines, then takes all that are there up to the limits; `None` at the end.
pub(super) async fn next_call(lines: &mut Receiver<Result<Batch, Failure>>) -> Option<Call> {
    let mut call = Call::default();
    call.push(lines.recv().await?);
    while !call.is_full() {
        match lines.try_recv() {
            Ok(batch) => call.push(batch),
            Err(_) => break,
        }
    }
    Some(call)
}

/// What is stored so far, shown on a terminal.
struct Progress {
    stored: u64,
    is_shown: bool,
}

impl Progress {
    fn add(&mut self, stored: u64) {
        self.stored += stored;
        if self.is_shown {
            // Progress is not worth failing for.
            let _ = write!(io::stderr(), "\r{} stored", self.stored);
        }
    }
}

impl Drop for Progress {
    /// Leaves the line that the progress is on.
    fn drop(&mut self) {
        if self.is_shown && self.stored > 0 {
            let _ = writeln!(io::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn batch(first: u64, lines: usize, length: usize) -> Result<Batch, Failure> {
        Ok(Batch {
            first,
            lines: vec!["x".repeat(length); lines],
        })
    }

    #[tokio::test]
    async fn a_call_takes_what_is_there_within_its_limits() {
        let (sender, mut lines) = mpsc::channel(9);
        for call in 0..5 {
            sender.send(batch(1 + call * 250, 250, 1)).await.unwrap();
        }
        let call = next_call(&mut lines).await.unwrap();
        assert_eq!((call.first, call.lines.len()), (1, 1000));
        let call = next_call(&mut lines).await.unwrap();
        assert_eq!((call.first, call.lines.len()), (1001, 250));
        for _ in 0..3 {
            sender.send(batch(1, 1, CALL_BYTES / 2)).await.unwrap();
        }
        assert_eq!(next_call(&mut lines).await.unwrap().lines.len(), 2);
        sender.send(Err(Failure::failed("line 9"))).await.unwrap();
        drop(sender);
        let call = next_call(&mut lines).await.unwrap();
        assert_eq!((call.lines.len(), call.failure.is_some()), (1, true));
        assert!(next_call(&mut lines).await.is_none());
    }
}
