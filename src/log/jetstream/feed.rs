//! The feed: every message of the log, once, in order, as the server republishes it. One for the node.
//!
//! Sequences of the log leave no gap, so whatever was lost on the way (a broken connection, a slow node, a change of the
//! stream's leader) shows with the next message of any topic, or when somebody wants a position the feed has not reached
//! ([`Shared::want`]): it is then read from the stream.

use std::{collections::VecDeque, sync::Arc};

use async_nats::{Message, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use tokio::{sync::watch, time::sleep};

use super::{
    api::{PAGE, PAGE_BYTES, RETRY},
    shared::Shared,
    wire::Entry,
};
use crate::log::{Error, Sequence};

/// Messages taken in at once.
const BURST: usize = 1000;
/// A longer gap is not filled: followers are told of it and their readers read the log, each as far as it needs.
const FILL: u64 = 100_000;

pub(super) struct Feed {
    shared: Arc<Shared>,
    live: Subscriber,
    wanted: watch::Receiver<Sequence>,
    /// Contiguous messages from the view's position on that were not shown yet.
    held: VecDeque<Entry>,
}

impl Feed {
    pub(super) fn new(
        shared: Arc<Shared>,
        live: Subscriber,
        wanted: watch::Receiver<Sequence>,
    ) -> Self {
        Self {
            shared,
            live,
            wanted,
            held: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let closed = self.shared.closed.clone();
        loop {
            tokio::select! {
                biased;
                () = closed.cancelled() => return,
                message = self.live.next() => {
                    // The subscription outlives every connection; it ends with the client.
                    let Some(message) = message else { return };
                    self.take(message).await;
                    self.take_waiting().await;
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_waiting().await;
                    let wanted = *self.wanted.borrow_and_update();
                    if self.shared.view.next() < wanted {
                        self.fill(wanted).await;
                    }
                }
            }
        }
    }

    /// Takes what has arrived already, and shows it.
    async fn take_waiting(&mut self) {
        for _ in 0..BURST {
            match self.live.next().now_or_never() {
                Some(Some(message)) => self.take(message).await,
                Some(None) | None => break,
            }
        }
        self.show();
    }

    async fn take(&mut self, message: Message) {
        let entry = match Entry::read(&self.shared.api.subjects, message) {
            Ok(entry) => entry,
            Err(error) => {
                // Not a message of the log, or one that reading the log will report too.
                tracing::error!(%error, "a live message does not read back");
                return;
            }
        };
        let next = self.next();
        if entry.sequence < next {
            return;
        }
        if entry.sequence > next {
            self.fill(entry.sequence).await;
            if entry.sequence != self.next() {
                return;
            }
        }
        self.held.push_back(entry);
    }

    /// The position of the message that comes next.
    fn next(&self) -> Sequence {
        let held = self.held.back().map(|entry| entry.sequence.next());
        held.unwrap_or_else(|| self.shared.view.next())
    }

    /// Shows what is held, up to the last message that ends a batch.
    fn show(&mut self) {
        let Some(last) = self.held.iter().rposition(|entry| !entry.is_continued) else {
            return;
        };
        let shown: Vec<_> = self.held.drain(..=last).collect();
        if let Some(last) = shown.last() {
            let next = last.sequence.next();
            self.shared.view.advance(shown, next);
        }
    }

    /// Reads what lies before `to` from the stream; tries until it has it or the engine is closed.
    async fn fill(&mut self, to: Sequence) {
        self.show();
        // What is held of an unfinished batch is read again with the rest of it.
        self.held.clear();
        let closed = self.shared.closed.clone();
        let from = self.shared.view.next();
        tracing::debug!(%from, %to, "reading what the feed missed");
        self.shared.meters.metrics.feed_gaps.inc();
        if to.0 - from.0 > FILL {
            self.shared.view.jump(to);
            return;
        }
        while self.shared.view.next() < to && !closed.is_cancelled() {
            if let Err(error) = self.fill_page(to).await {
                tracing::debug!(%error, "reading what the feed missed failed");
                tokio::select! {
                    () = closed.cancelled() => {}
                    () = sleep(RETRY) => {}
                }
            }
        }
    }

    async fn fill_page(&self, to: Sequence) -> Result<(), Error> {
        let Shared { view, api, .. } = &*self.shared;
        let from = view.next();
        let entries = api.read(None, from, PAGE, PAGE_BYTES).await?;
        if let Some(last) = entries.last() {
            let next = last.sequence.next();
            view.advance(entries, next);
            return Ok(());
        }
        // Dropped meanwhile, or a replica that lags answered.
        match api.next_after(">", from).await? {
            Some(next) if next < to => Err(Error::Unavailable(
                "the replica that answers does not have it yet".into(),
            )),
            _ => {
                view.advance(Vec::new(), to);
                Ok(())
            }
        }
    }
}
