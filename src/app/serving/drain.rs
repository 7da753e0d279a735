//! The end of an instance: not ready, then gone, then every stream ended one by one, then the log closed. Every step has an end.
//!
//! ```text
//!  SIGTERM              drain.timeout              hard end
//!  ├─ delay ─ spread ─ … ┼─ uploads ── the log ── spans ┤
//!    streams end, or are cut here; then GRACE for the rest
//! ```

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Serving;
use crate::{
    app::Shutdown,
    core::{feeds::Happening, readiness::Condition},
};

/// How long an event of the drain may take to be stored.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long after `drain.timeout` everything that is left may take, all of it together.
const GRACE: Duration = Duration::from_secs(1);
/// The part of it that connections, uploads and backups may use, so that the log has some.
const BEFORE_LOG: Duration = Duration::from_millis(300);
/// The part of it at whose end the log must be closed, so that the last spans have some.
const LOG: Duration = Duration::from_millis(800);

impl Serving {
    /// Stops. Ends at most [`GRACE`] after `drain.timeout`, whatever clients, disks and other servers do; what did not end by then
    /// is said and left as it is.
    pub(in crate::app) async fn drain(&self, shutdown: &Shutdown) {
        let deadline = Instant::now() + self.config.drain.timeout;
        shutdown.ends_at(deadline + GRACE);
        tracing::info!(streams = self.streams.count(), "draining");
        self.metrics.draining.set(1);
        self.readiness.fail(Condition::Draining, "");
        self.report(false).await;
        if timeout_at(deadline, self.end_streams()).await.is_err() {
            let connections = self.connections.len();
            tracing::warn!(
                connections,
                "the drain took too long; dropping what is left"
            );
        }
        let mut late = self.let_go(deadline + BEFORE_LOG).await;
        if !self.close_log(deadline + LOG).await {
            late.push("the log");
        }
        self.admin.accept.cancel();
        self.admin.abort.cancel();
        if late.is_empty() {
            tracing::info!("drained");
        } else {
            let unfinished = late.join(", ");
            tracing::warn!(
                unfinished,
                "the drain is over before everything was closed; what was acknowledged is durable"
            );
        }
    }

    /// Accepts for the delay, then asks every connection to go and ends streams over the spread; waits for the last one.
    async fn end_streams(&self) {
        let drain = &self.config.drain;
        self.tell(Happening::Draining, LAST_WORDS).await;
        sleep(drain.delay).await;
        self.closing.accept.cancel();
        self.closing.goaway.cancel();
        self.streams.drain(drain.spread).await;
        self.connections.close();
        self.connections.wait().await;
    }

    /// Ends what uses the log; names what did not end until then.
    async fn let_go(&self, until: Instant) -> Vec<&'static str> {
        self.closing.accept.cancel();
        self.closing.abort.cancel();
        self.connections.close();
        let connections = timeout_at(until, self.connections.wait()).await;
        let uploads = timeout_at(until, async {
            if let Some(files) = self.files.get() {
                files.close().await;
            }
        });
        let peers = timeout_at(until, async {
            if let Some(peers) = self.peers.get() {
                peers.close().await;
            }
        });
        let backups = timeout_at(until, async {
            if let Some(control) = self.control.get() {
                control.close().await;
            }
        });
        let (uploads, peers, backups) = tokio::join!(uploads, peers, backups);
        [
            (connections, "connections"),
            (uploads, "uploads"),
            (peers, "signals to other instances"),
            (backups, "backups"),
        ]
        .into_iter()
        .filter_map(|(ended, what)| ended.is_err().then_some(what))
        .collect()
    }

    /// Makes what is queued durable and lets go of the log; whether that was done in time.
    async fn close_log(&self, until: Instant) -> bool {
        let Some(engine) = self.engine.get() else {
            return true;
        };
        let left = until.saturating_duration_since(Instant::now());
        self.tell(Happening::Stopped, LAST_WORDS.min(left / 2))
            .await;
        timeout_at(until, engine.close()).await.is_ok()
    }

    /// Tells the topic `events`, and returns when that is durable. A log that does not answer in time holds nothing up.
    async fn tell(&self, happening: Happening, patience: Duration) {
        if let Some(own) = self.feeds.get() {
            own.sender().event(happening, &[]);
            let _ = timeout(patience, own.flush()).await;
        }
    }

    /// Lets go of everything at once. An engine that is dropped waits for its threads, and a thread in a flush waits for the disk,
    /// however long that takes: so the last handle is dropped by a thread that the end of the process does not wait for.
    pub(in crate::app) fn leave(mut self) {
        let engine = self.engine.take();
        drop(self);
        if let Some(engine) = engine {
            let name = "weir-log-leave".to_owned();
            let left = std::thread::Builder::new().name(name);
            if let Err(error) = left.spawn(move || drop(engine)) {
                tracing::debug!(%error, "the log was let go of without a thread");
            }
        }
    }
}
