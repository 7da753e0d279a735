//! The closed loop's meeting point: a round is over when the slowest connection has what was sent.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use tokio::{sync::Notify, time::timeout};

/// Shared by the publisher, which opens rounds, and the connections of subscribers, which complete them.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Messages each subscriber is to have had in total.
    target: AtomicU64,
    waiting: AtomicUsize,
    complete: Notify,
    delivered: AtomicU64,
    checked: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// What became of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every subscriber has everything.
    Complete,
    /// Some subscriber missed something.
    TimedOut,
}

impl Round {
    /// Opens a round. Must happen before its messages are sent.
    pub(super) fn open(&self, target: u64, connections: usize) {
        self.waiting.store(connections, Ordering::Relaxed);
        self.target.store(target, Ordering::Release);
    }

    /// Messages each subscriber is to have had in total.
    pub(super) fn target(&self) -> u64 {
        self.target.load(Ordering::Acquire)
    }

    /// One connection's subscribers all reached the target; called once a round by each connection.
    pub(super) fn connection_complete(&self) {
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.complete.notify_one();
        }
    }

    /// Counts arrivals, and those among them whose content was checked.
    pub(super) fn count(&self, delivered: u64, checked: u64) {
        self.delivered.fetch_add(delivered, Ordering::Relaxed);
        self.checked.fetch_add(checked, Ordering::Relaxed);
    }

    /// Messages that arrived, at all subscribers together.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Messages whose content was checked.
    pub(super) fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// A connection cannot go on; the first reason is kept.
    pub(super) fn fail(&self, reason: &anyhow::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("{reason:#}"));
        drop(failure);
        self.complete.notify_one();
    }

    /// Fails if a connection did.
    pub(super) fn healthy(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure
            .clone()
            .map_or(Ok(()), |reason| Err(anyhow!(reason)))
    }

    /// Waits for the round to be over.
    pub(super) async fn wait(&self, patience: Duration) -> Result<Outcome> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            self.healthy()?;
            if self.waiting.load(Ordering::Acquire) == 0 {
                return Ok(Outcome::Complete);
            }
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if timeout(left, self.complete.notified()).await.is_err() {
                return Ok(Outcome::TimedOut);
            }
        }
    }
}

/// How far one subscriber is, and how far it counts as being.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Progress {
    received: u64,
    /// Losses of rounds that were given up.
    forgiven: u64,
}

impl Progress {
    /// Messages that really arrived.
    pub(super) fn received(self) -> u64 {
        self.received
    }

    /// Whether everything up to the target arrived or was given up.
    pub(super) fn has_reached(self, target: u64) -> bool {
        self.received + self.forgiven >= target
    }

    /// Counts arrivals.
    pub(super) fn advance(&mut self, messages: u64) {
        self.received += messages;
    }

    /// A new round began: what the old target still wants counts as lost.
    pub(super) fn give_up(&mut self, old_target: u64) {
        self.forgiven += old_target.saturating_sub(self.received + self.forgiven);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_round_ends_with_its_slowest_connection() {
        let round = Round::default();
        round.open(10, 2);
        round.connection_complete();
        assert_eq!(round.wait(SOON).await.unwrap(), Outcome::TimedOut);
        round.connection_complete();
        assert_eq!(round.wait(SOON).await.unwrap(), Outcome::Complete);
    }

    #[tokio::test]
    async fn a_failure_ends_the_wait() {
        let round = Round::default();
        round.open(1, 1);
        round.fail(&anyhow!("gone"));
        round.fail(&anyhow!("also gone"));
        assert_eq!(round.wait(SOON).await.unwrap_err().to_string(), "gone");
    }

    #[test]
    fn a_loss_is_forgiven_once() {
        let mut progress = Progress::default();
        progress.advance(6);
        assert!(!progress.has_reached(10));
        progress.give_up(10);
        progress.give_up(10);
        assert!(progress.has_reached(10) && !progress.has_reached(11));
        progress.advance(1);
        assert!(progress.has_reached(11));
        assert_eq!(progress.received(), 7);
    }
}
