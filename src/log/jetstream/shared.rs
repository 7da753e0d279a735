//! What the engine's tasks share.

use std::time::Duration;

use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{api::Api, view::View};
use crate::log::{Error, Health, LogId, Sequence, meters::Meters};

/// After this long without a live message the stream is asked for what an acknowledgement waits for.
const LATE: Duration = Duration::from_millis(100);

pub(super) struct Shared {
    /// Of the stream as it was at the start.
    pub(super) id: LogId,
    pub(super) api: Api,
    pub(super) view: View,
    pub(super) meters: Meters,
    pub(super) health: watch::Sender<Health>,
    /// Permits of the queue: one a byte.
    pub(super) queue: Semaphore,
    /// The position the feed is to reach.
    wanted: watch::Sender<Sequence>,
    /// Whether the connection stands.
    pub(super) connected: watch::Receiver<bool>,
    /// The connection came back: look whether all is well.
    pub(super) look: Notify,
    /// Every task ends.
    pub(super) closed: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        id: LogId,
        api: Api,
        view: View,
        meters: Meters,
        queue_bytes: usize,
        connected: watch::Receiver<bool>,
    ) -> Self {
        meters.health(&Health::Ready);
        Self {
            id,
            wanted: watch::Sender::new(view.next()),
            api,
            view,
            connected,
            meters,
            health: watch::Sender::new(Health::Ready),
            queue: Semaphore::new(queue_bytes),
            look: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    pub(super) fn watch_wanted(&self) -> watch::Receiver<Sequence> {
        self.wanted.subscribe()
    }

    /// Makes the feed reach `next`, by reading the log where nothing arrives.
    pub(super) fn want(&self, next: Sequence) {
        self.wanted.send_if_modified(|wanted| {
            // Also when it was wanted before: the feed looks again.
            *wanted = next.max(*wanted);
            true
        });
    }

    /// Notes what the engine can do; closed stays closed.
    pub(super) fn report(&self, health: Health) {
        self.health.send_if_modified(|now| {
            if *now == health || *now == Health::Closed {
                return false;
            }
            match &health {
                Health::Unavailable(why) => tracing::warn!(why, "the log is unavailable"),
                health => tracing::info!(?health, "the log's health"),
            }
            self.meters.health(&health);
            *now = health;
            true
        });
    }

    /// Waits until NATS can be reached, not for long.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Closed`].
    pub(super) async fn ready(&self) -> Result<(), Error> {
        if *self.health.borrow() == Health::Ready {
            return Ok(());
        }
        let deadline = Instant::now() + self.api.stream.timeout;
        let mut health = self.health.subscribe();
        let settled = health.wait_for(|health| !matches!(health, Health::Unavailable(_)));
        let settled = timeout_at(deadline, settled).await.is_ok();
        match &*self.health.borrow() {
            Health::Closed => Err(Error::Closed),
            Health::Unavailable(why) if !settled => Err(Error::Unavailable(why.clone())),
            _ => Ok(()),
        }
    }

    /// Waits until everything before `next` was shown to followers.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it did not come in time. [`Error::Closed`].
    pub(super) async fn reached(&self, next: Sequence) -> Result<(), Error> {
        let mut shown = self.view.watch_shown();
        let start = Instant::now();
        let there = |shown: &Sequence| *shown >= next;
        if timeout_at(start + LATE, shown.wait_for(there))
            .await
            .is_ok()
        {
            return Ok(());
        }
        self.want(next);
        tokio::select! {
            () = self.closed.cancelled() => Err(Error::Closed),
            there = timeout_at(start + self.api.stream.timeout, shown.wait_for(there)) => match there {
                Ok(_) => Ok(()),
                Err(_) => Err(Error::Unavailable(
                    "what was appended did not come back from NATS in time".into(),
                )),
            },
        }
    }
}
