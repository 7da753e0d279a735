//! A NATS server without Weir: what its JetStream does by itself with the same work.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use async_nats::{
    Client,
    jetstream::{
        self, Context,
        consumer::{DeliverPolicy, pull::OrderedConfig},
        stream::{Config, Republish},
    },
};
use bytes::Bytes;
use futures::StreamExt as _;
use hdrhistogram::Histogram;
use tokio::{task::JoinSet, time::timeout};

use super::{
    grpc::PATIENCE,
    ingest::total,
    latency::{Timeline, record},
    message,
};

/// Publishes under way at the same time where nobody waits for a single one.
const UNDER_WAY: usize = 1000;

/// A stream of its own on the server, deleted again by [`Self::delete`].
pub(super) struct Bare {
    client: Client,
    context: Context,
    name: String,
    size: usize,
}

impl Bare {
    /// Creates the stream: in files, with so many replicas, republished as Weir's is.
    pub(super) async fn create(url: &str, replicas: usize, size: usize) -> Result<Self> {
        let connecting = async_nats::connect(url);
        let client = timeout(PATIENCE, connecting)
            .await
            .map_err(|_| anyhow!("NATS at {url} does not answer"))?
            .with_context(|| format!("cannot connect to NATS at {url}"))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(PATIENCE);
        let name = format!("weir-bench-{}", message::fresh_room());
        let config = Config {
            name: name.clone(),
            subjects: vec![format!("{name}.log")],
            num_replicas: replicas,
            allow_direct: true,
            republish: Some(Republish {
                source: ">".into(),
                destination: format!("{name}.live.>"),
                headers_only: false,
            }),
            ..Config::default()
        };
        let created = context.create_stream(config).await;
        created.context("JetStream does not take the stream")?;
        Ok(Self {
            client,
            context,
            name,
            size,
        })
    }

    fn subject(&self) -> String {
        format!("{}.log", self.name)
    }

    /// Publishers that each wait for the acknowledgement before they publish again.
    pub(super) async fn publish_each(
        &self,
        publishers: usize,
        duration: Duration,
        latencies: &Arc<Mutex<Histogram<u64>>>,
    ) -> Result<u64> {
        let end = Instant::now() + duration;
        let mut tasks = JoinSet::new();
        for _ in 0..publishers {
            let (context, subject) = (self.context.clone(), self.subject());
            let (payload, latencies) = (self.payload(0), Arc::clone(latencies));
            tasks.spawn(async move {
                let mut published = 0;
                while Instant::now() < end {
                    let start = Instant::now();
                    let sent = context.publish(subject.clone(), payload.clone()).await?;
                    sent.await?;
                    record(&latencies, start.elapsed());
                    published += 1;
                }
                Ok(published)
            });
        }
        total(tasks).await.context("JetStream refused a message")
    }

    /// Publishes so many messages, many of them under way at the same time.
    pub(super) async fn publish_all(&self, count: u64) -> Result<()> {
        let acks = futures::stream::iter(0..count)
            .map(|stamp| async move {
                let payload = self.payload(stamp);
                let sent = self.context.publish(self.subject(), payload).await?;
                anyhow::Ok(sent.await?)
            })
            .buffered(UNDER_WAY);
        let mut acks = std::pin::pin!(acks);
        while let Some(ack) = acks.next().await {
            ack.context("JetStream refused a message")?;
        }
        Ok(())
    }

    /// Publishes at the timeline's times and records when each message comes back republished.
    pub(super) async fn deliver(&self, timeline: &Arc<Timeline>, end: u64) -> Result<()> {
        let live = format!("{0}.live.{0}.log", self.name);
        let mut arrivals = self.client.subscribe(live).await?;
        self.client.flush().await?;
        let counting = Arc::clone(timeline);
        let arriving = tokio::spawn(async move {
            while let Some(message) = arrivals.next().await {
                let stamp = message.payload.first_chunk().copied();
                counting.arrived(u64::from_be_bytes(stamp.unwrap_or_default()));
            }
        });
        for stamp in 0..end {
            timeline.wait_for_turn(stamp).await;
            let sent = self.context.publish(self.subject(), self.payload(stamp));
            // Whether it was stored shows by its arrival.
            drop(sent.await?);
        }
        let wanted = timeline.counted(end);
        let all_there = timeline.wait_for(wanted, || Ok(())).await;
        arriving.abort();
        all_there?;
        let arrived = timeline.arrived.load(Ordering::Relaxed);
        ensure!(
            arrived == wanted,
            "{arrived} of {wanted} messages came back from NATS"
        );
        Ok(())
    }

    /// Reads so many messages from the beginning.
    pub(super) async fn read_all(&self, count: u64) -> Result<()> {
        let stream = self.context.get_stream(&self.name).await?;
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.messages().await?;
        for read in 0..count {
            let next = timeout(PATIENCE, messages.next()).await;
            let next = next.map_err(|_| anyhow!("NATS stopped after {read} messages"))?;
            next.context("NATS ended the reading")??;
        }
        Ok(())
    }

    /// Deletes the stream.
    pub(super) async fn delete(self) -> Result<()> {
        self.context.delete_stream(&self.name).await?;
        Ok(())
    }

    fn payload(&self, stamp: u64) -> Bytes {
        let mut payload = stamp.to_be_bytes().to_vec();
        payload.resize(self.size.max(payload.len()), b'x');
        payload.into()
    }
}
