//! The engine on NATS JetStream: one stream holds the log, any number of replicas serve it.
//!
//! ```text
//!  enqueue ─▶ queue (bounded in bytes) ─▶ committer ─▶ atomic batches ───▶ stream ─┐
//!                                            ▲ acks, once the feed has them        │ republished
//!                 followers ◀─ view (recent records, tail) ◀─ feed ◀───────────────┘
//!  read, seek, bounds ─▶ view, else direct get of the stream
//! ```
//!
//! A node has one subscription, to everything the server republishes, whatever the number of topics and clients. That makes
//! gaps visible (sequences of the whole log are consecutive), lets a node say for every topic up to where it knows it
//! ([`Engine::shown`]), and gives all topics one order on every node. The price: each node receives each record once.
//!
//! Reads, bounds and feeds end where the node's view of the log ends, so a reader never sees a record without those before it,
//! whichever replica of the stream answers. An ack resolves when JetStream has acknowledged and the view has reached it.
//!
//! What JetStream acknowledges is as durable as the server stores it: with one replica it needs `sync_interval: always`.

mod api;
mod committer;
mod connect;
mod feed;
mod history;
mod newest;
mod shared;
mod subject;
mod upkeep;
mod view;
mod wire;

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Instant,
};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use self::{
    committer::{Append, Committer},
    feed::Feed,
    shared::Shared,
    upkeep::Upkeep,
    view::View,
};
use super::{
    Ack, Bounds, Engine, Error, Follow, Follower, Health, Limit, LogId, NewRecord, OpenError,
    Outcome, Page, Record, Sequence, Space, Timestamp, Topic, meters::Meters,
};
use crate::{config::Config, nats::Nats, telemetry::Metrics};

/// The engine on NATS JetStream. Dropping it without [`Engine::close`] ends its tasks; what is queued may be lost, and no ack
/// of it resolves.
pub struct Jetstream {
    shared: Arc<Shared>,
    queue_bytes: usize,
    /// Gone once the engine is closed.
    appends: Mutex<Option<mpsc::UnboundedSender<Append>>>,
    committer: TaskTracker,
}

impl Jetstream {
    /// Creates or checks the stream and starts following it. Waits for JetStream up to `jetstream.startup_timeout`.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed but the stream created where there was none.
    pub async fn open(nats: &Nats, config: &Config, metrics: Metrics) -> Result<Self, OpenError> {
        let (api, info) = connect::connect(nats, config).await?;
        let connected = nats.connected.clone();
        let live = api.stream.client.subscribe(api.subjects.live()).await;
        let live = live.map_err(|error| nats.error(error.to_string()))?;
        let flushed = api.stream.client.flush().await;
        flushed.map_err(|error| nats.error(error.to_string()))?;
        let recent = usize::try_from(config.jetstream.recent.as_u64()).unwrap_or(usize::MAX);
        let queue_bytes = super::queue_bytes(&config.log);
        let view = View::new(info.last.next(), recent);
        let meters = Meters::new(metrics);
        let shared = Shared::new(info.identity(), api, view, meters, queue_bytes, connected);
        let shared = Arc::new(shared);
        let (sender, appends) = mpsc::unbounded_channel();
        let committer = TaskTracker::new();
        let commit = Committer::new(shared.clone(), appends).run();
        committer.spawn(shared.closed.clone().run_until_cancelled_owned(commit));
        tokio::spawn(Feed::new(shared.clone(), live, shared.watch_wanted()).run());
        tokio::spawn(upkeep::look(shared.clone()));
        let interval = config.log.retention_interval;
        let upkeep = Upkeep::new(shared.clone(), interval, config.log.retention.clone());
        tokio::spawn(upkeep.run());
        tokio::spawn(watch_connection(shared.clone()));
        Ok(Self {
            shared,
            queue_bytes,
            appends: Mutex::new(Some(sender)),
            committer,
        })
    }

    async fn queue(&self, batch: Vec<NewRecord>, is_alone: bool) -> Result<Ack, Error> {
        self.check_open()?;
        let queued = Instant::now();
        self.shared.ready().await?;
        let size = batch.iter().map(NewRecord::size).sum::<usize>();
        let permits = size.min(self.queue_bytes);
        let held = self
            .shared
            .queue
            .acquire_many(u32::try_from(permits).unwrap_or(u32::MAX))
            .await
            .map_err(|_| Error::Closed)?;
        let sender = self.sender()?;
        let (resolve, ack) = Ack::pending();
        let append = Append {
            batch,
            is_alone,
            permits,
            queued,
            ack: resolve,
        };
        sender.send(append).map_err(|_| Error::Closed)?;
        // The committer gives them back.
        held.forget();
        Ok(ack)
    }

    fn check_open(&self) -> Result<(), Error> {
        match *self.shared.health.borrow() {
            Health::Closed => Err(Error::Closed),
            _ => Ok(()),
        }
    }

    fn sender(&self) -> Result<mpsc::UnboundedSender<Append>, Error> {
        let appends = self.appends.lock().unwrap_or_else(PoisonError::into_inner);
        appends.clone().ok_or(Error::Closed)
    }
}

/// Health goes off as soon as the connection breaks, not with the next look.
async fn watch_connection(shared: Arc<Shared>) {
    let mut connected = shared.connected.clone();
    loop {
        tokio::select! {
            () = shared.closed.cancelled() => return,
            changed = connected.changed() => if changed.is_err() { return },
        }
        if !*connected.borrow_and_update() {
            shared.report(upkeep::disconnected());
        }
        shared.look.notify_one();
    }
}

#[async_trait]
impl Engine for Jetstream {
    fn id(&self) -> LogId {
        self.shared.id
    }

    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, Error> {
        self.queue(batch, false).await
    }

    async fn append(&self, record: NewRecord) -> Result<Outcome, Error> {
        let outcomes = self.queue(vec![record], true).await?.await?;
        outcomes.first().copied().ok_or(Error::Closed)
    }

    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        self.check_open()?;
        self.shared.read(topic, from, limit).await
    }

    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        self.check_open()?;
        self.shared.seek(topic, time).await
    }

    fn tail(&self) -> Sequence {
        self.shared.view.next()
    }

    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        self.check_open()?;
        self.shared.newest(topic, before, limit).await
    }

    async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        self.check_open()?;
        self.shared.bounds(topic).await
    }

    async fn follow(&self, topic: &Topic, follower: Weak<dyn Follower>) -> Result<Follow, Error> {
        self.check_open()?;
        self.shared.view.follow(topic, follower)
    }

    fn shown(&self) -> Sequence {
        self.shared.view.shown()
    }

    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        self.check_open()?;
        let dropped = self.shared.trim(topic, before).await?;
        self.shared.meters.trimmed(topic.space(), dropped);
        Ok(())
    }

    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        self.check_open()?;
        self.shared.topics(space, after, limit).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    async fn close(&self) {
        let sender = self
            .appends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(sender);
        self.committer.close();
        // All that waits together, no longer than one answer may take: a group may take that long for itself.
        let finished = timeout(self.shared.api.stream.timeout, self.committer.wait()).await;
        if finished.is_err() {
            tracing::warn!("NATS does not answer: what was not acknowledged may not be stored");
        }
        self.shared.queue.close();
        self.shared.report(Health::Closed);
        self.shared.closed.cancel();
    }
}

impl Drop for Jetstream {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}
