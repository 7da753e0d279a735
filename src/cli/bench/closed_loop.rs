//! The closed loop: send a burst, wait until the slowest connection has it, repeat.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    nats::NatsPublisher,
    process::{CpuTime, Process},
    publisher::Upload,
    round::{Outcome, Round},
};

/// A round that takes longer has lost what is missing.
const ROUND_PATIENCE: Duration = Duration::from_secs(2);
/// The first one may wait for a server that is still settling.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);

/// Whatever can send to all subscribers.
pub(super) enum Publisher {
    /// An upload of `chat.ChatService`.
    Chat(Box<Upload>),
    /// A core NATS connection.
    Nats(NatsPublisher),
}

impl Publisher {
    async fn send(&mut self, messages: u64) -> Result<()> {
        match self {
            Self::Chat(upload) => upload.send(messages).await,
            Self::Nats(publisher) => publisher.send(messages).await,
        }
    }

    /// Ends the publishing and lets the server confirm it, where it can.
    pub(super) async fn finish(self) -> Result<()> {
        match self {
            Self::Chat(upload) => upload.finish().await,
            Self::Nats(_) => Ok(()),
        }
    }
}

/// How long, and how much at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) subscribers: usize,
    pub(super) burst: u64,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
}

/// What a closed loop measured, without its warm-up.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    pub(super) seconds: f64,
    pub(super) rounds: u64,
    pub(super) published: u64,
    pub(super) delivered: u64,
    /// Published to everybody but never delivered.
    pub(super) lost: u64,
    /// Deliveries whose content was compared with what was sent; warm-up included.
    pub(super) checked: u64,
    pub(super) publishes_per_sec: f64,
    pub(super) deliveries_per_sec: f64,
    /// The server's processor time, user and kernel.
    pub(super) server_cpu_secs: Option<f64>,
    pub(super) server_cpu_us_per_delivery: Option<f64>,
}

/// A reading of everything that is counted, taken between two rounds.
struct Reading {
    at: Instant,
    rounds: u64,
    published: u64,
    delivered: u64,
    cpu: Option<CpuTime>,
}

/// One loop in progress.
pub(super) struct ClosedLoop<'a> {
    pub(super) round: Arc<Round>,
    pub(super) connections: usize,
    pub(super) publisher: &'a mut Publisher,
    pub(super) process: Option<&'a Process>,
    pub(super) pace: Pace,
    pub(super) rounds: u64,
}

impl ClosedLoop<'_> {
    /// Warms up, then measures.
    pub(super) async fn run(mut self) -> Result<Figures> {
        self.first_round().await?;
        self.rounds_until(Instant::now() + self.pace.warmup).await?;
        let start = self.reading()?;
        self.rounds_until(Instant::now() + self.pace.duration)
            .await?;
        let end = self.reading()?;
        Ok(self.figures(&start, &end))
    }

    /// Tells a server that does not deliver apart from one that is slow.
    async fn first_round(&mut self) -> Result<()> {
        self.step(FIRST_PATIENCE).await?;
        if self.round.delivered() == 0 {
            bail!(
                "no subscriber got the first message: does this server deliver what is published?"
            );
        }
        Ok(())
    }

    async fn rounds_until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.step(ROUND_PATIENCE).await?;
        }
        Ok(())
    }

    async fn step(&mut self, patience: Duration) -> Result<Outcome> {
        self.rounds += 1;
        self.round
            .open(self.rounds * self.pace.burst, self.connections);
        self.publisher.send(self.pace.burst).await?;
        self.round.wait(patience).await
    }

    fn reading(&self) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            rounds: self.rounds,
            published: self.rounds * self.pace.burst,
            delivered: self.round.delivered(),
            cpu: self.process.map(Process::cpu_time).transpose()?,
        })
    }

    fn figures(&self, start: &Reading, end: &Reading) -> Figures {
        let seconds = (end.at - start.at).as_secs_f64();
        let published = end.published - start.published;
        let delivered = end.delivered - start.delivered;
        let cpu = start.cpu.zip(end.cpu);
        let cpu_secs = cpu.map(|(start, end)| end.since(start).as_secs_f64());
        Figures {
            seconds,
            rounds: end.rounds - start.rounds,
            published,
            delivered,
            lost: (published * self.pace.subscribers as u64).saturating_sub(delivered),
            checked: self.round.checked(),
            publishes_per_sec: published as f64 / seconds,
            deliveries_per_sec: delivered as f64 / seconds,
            server_cpu_secs: cpu_secs,
            server_cpu_us_per_delivery: cpu_secs.map(|secs| secs * 1e6 / delivered.max(1) as f64),
        }
    }
}
