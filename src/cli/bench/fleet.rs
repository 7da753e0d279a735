//! Many subscribers on a few connections: one task a connection drives it and reads all of its streams.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use tokio::{task::JoinSet, time::timeout};

use super::{
    frame::FrameCounter,
    grpc::{self, Driver, Target},
    latency::Timeline,
    message,
    round::{Progress, Round},
};
use crate::proto::chat::SubscribeRequest;

/// How long all subscriptions of a connection together may take to be opened.
const OPENING: Duration = Duration::from_secs(60);
/// One message in so many is decoded and compared, at every subscriber.
const SAMPLE_EVERY: u64 = 128;
/// Received bytes are given back to the server's window in portions of this size.
const RELEASE_BYTES: usize = 1024 * 1024;

/// Who subscribes to what, and what is done with the messages.
#[derive(Debug, Clone)]
pub(super) struct FleetPlan {
    pub(super) target: Target,
    pub(super) room: String,
    pub(super) subscribers: usize,
    pub(super) connections: usize,
    /// Bytes of content that every message must have.
    pub(super) size: usize,
    /// Decode every message and record how late it is.
    pub(super) timeline: Option<Arc<Timeline>>,
}

/// Open subscriptions. Dropping it closes them.
#[derive(Debug)]
pub(super) struct Fleet {
    round: Arc<Round>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Opens every subscription and waits for every welcome.
    pub(super) async fn open(plan: FleetPlan) -> Result<Self> {
        let round = Arc::new(Round::default());
        let plan = Arc::new(plan);
        let mut opening = JoinSet::new();
        for share in shares(plan.subscribers, plan.connections) {
            opening.spawn(Follower::open(Arc::clone(&plan), Arc::clone(&round), share));
        }
        let mut tasks = JoinSet::new();
        while let Some(opened) = opening.join_next().await {
            let follower = opened.map_err(|_| anyhow!("a connection's task panicked"))??;
            tasks.spawn(follower.run());
        }
        Ok(Self { round, tasks })
    }

    /// Where publisher and subscribers meet.
    pub(super) fn round(&self) -> Arc<Round> {
        Arc::clone(&self.round)
    }

    /// Connections that take part in a round.
    pub(super) fn connections(&self) -> usize {
        self.tasks.len()
    }
}

/// Splits subscribers over connections as evenly as it goes; no connection is left without.
pub(super) fn shares(subscribers: usize, connections: usize) -> impl Iterator<Item = usize> {
    let connections = connections.clamp(1, subscribers.max(1));
    (0..connections)
        .map(move |n| subscribers / connections + usize::from(n < subscribers % connections))
}

/// One connection and its subscribers.
struct Follower {
    driver: Driver,
    /// Keeps the connection open.
    _sender: SendRequest<Bytes>,
    subscribers: Vec<Subscriber>,
    plan: Arc<FleetPlan>,
    round: Arc<Round>,
    /// The target that `behind` was counted for.
    target: u64,
    /// Subscribers that have not reached the target.
    behind: usize,
}

impl Follower {
    async fn open(plan: Arc<FleetPlan>, round: Arc<Round>, share: usize) -> Result<Self> {
        let (sender, mut driver) = plan.target.connect().await?;
        let opening = timeout(OPENING, subscribe(&plan, sender, share));
        let (sender, subscribers) = tokio::select! {
            opened = opening => opened.map_err(|_| anyhow!("the subscriptions were not open in time"))??,
            closed = &mut driver => return Err(closed_early(closed)),
        };
        Ok(Self {
            driver,
            _sender: sender,
            subscribers,
            plan,
            round,
            target: 0,
            behind: 0,
        })
    }

    async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.round.fail(&end.context("a subscription ended"));
    }

    /// Ready only with the reason why this connection cannot go on.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Error> {
        if let Poll::Ready(closed) = Pin::new(&mut self.driver).poll(cx) {
            return Poll::Ready(closed_early(closed));
        }
        match self.read_all() {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    fn read_all(&mut self) -> Result<()> {
        self.follow_target();
        if self.behind == 0 {
            return Ok(());
        }
        let (mut delivered, mut checked) = (0, 0);
        for subscriber in &mut self.subscribers {
            if !subscriber.progress.has_reached(self.target) {
                let before = subscriber.progress.received();
                checked += subscriber.read(self.target, &self.plan)?;
                delivered += subscriber.progress.received() - before;
                self.behind -= usize::from(subscriber.progress.has_reached(self.target));
            }
        }
        self.round.count(delivered, checked);
        if self.behind == 0 {
            self.round.connection_complete();
        }
        Ok(())
    }

    fn follow_target(&mut self) {
        let target = self.round.target();
        if target == self.target {
            return;
        }
        for subscriber in &mut self.subscribers {
            subscriber.progress.give_up(self.target);
        }
        let behind = |subscriber: &&Subscriber| !subscriber.progress.has_reached(target);
        self.behind = self.subscribers.iter().filter(behind).count();
        self.target = target;
        if self.behind == 0 {
            self.round.connection_complete();
        }
    }
}

fn closed_early(closed: Result<(), h2::Error>) -> anyhow::Error {
    match closed {
        Ok(()) => anyhow!("the server closed the connection"),
        Err(error) => anyhow!(error).context("the connection broke"),
    }
}

/// Opens one connection's subscriptions side by side.
async fn subscribe(
    plan: &FleetPlan,
    mut sender: SendRequest<Bytes>,
    share: usize,
) -> Result<(SendRequest<Bytes>, Vec<Subscriber>)> {
    let request = SubscribeRequest {
        room: plan.room.clone(),
        user: "bench".to_owned(),
        after_sequence: None,
    };
    let frame = Bytes::from(message::grpc_frame(&request));
    let mut responses = Vec::with_capacity(share);
    for _ in 0..share {
        let head = plan.target.request("SubscribeMessages")?;
        responses.push(grpc::call(&mut sender, head, frame.clone()).await?);
    }
    let mut subscribers = Vec::with_capacity(share);
    for (index, response) in responses.into_iter().enumerate() {
        let mut stream = grpc::accepted(response, grpc::PATIENCE)
            .await
            .context("SubscribeMessages failed")?;
        welcome(&mut stream)
            .await
            .context("SubscribeMessages began without a welcome")?;
        subscribers.push(Subscriber::new(stream, index as u64, plan));
    }
    Ok((sender, subscribers))
}

/// Takes the message that every subscription starts with.
async fn welcome(stream: &mut RecvStream) -> Result<()> {
    let mut counter = FrameCounter::new(1, 0);
    let mut messages = 0;
    while messages == 0 {
        let chunk = timeout(grpc::PATIENCE, stream.data())
            .await
            .map_err(|_| anyhow!("nothing was delivered"))?;
        let Some(chunk) = chunk else {
            return Err(grpc::ended(stream.trailers().await?));
        };
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        messages = counter.feed(&chunk, |_| Ok(()))?;
    }
    ensure!(messages == 1, "somebody else writes to the room");
    Ok(())
}

/// One stream of messages.
struct Subscriber {
    stream: RecvStream,
    counter: FrameCounter,
    progress: Progress,
    samples: Samples,
    unreleased: usize,
}

impl Subscriber {
    fn new(stream: RecvStream, index: u64, plan: &FleetPlan) -> Self {
        let every = if plan.timeline.is_some() {
            1
        } else {
            SAMPLE_EVERY
        };
        let phase = index % every;
        Self {
            stream,
            counter: FrameCounter::new(every, phase),
            progress: Progress::default(),
            samples: Samples {
                every,
                next: phase,
                taken: 0,
            },
            unreleased: 0,
        }
    }

    /// Takes what has arrived, up to the target; answers how many messages were checked.
    ///
    /// The streams' own wakers stay unused: whatever arrives, arrives by driving the connection, which this task does.
    fn read(&mut self, target: u64, plan: &FleetPlan) -> Result<u64> {
        let before = self.samples.taken;
        let mut cx = Context::from_waker(Waker::noop());
        while !self.progress.has_reached(target) {
            let Poll::Ready(chunk) = self.poll_chunk(&mut cx) else {
                break;
            };
            let samples = &mut self.samples;
            let messages = self
                .counter
                .feed(&chunk?, |body| samples.check(body, plan))?;
            self.progress.advance(messages);
        }
        Ok(self.samples.taken - before)
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes>> {
        let Some(chunk) = ready!(self.stream.poll_data(cx)) else {
            let trailers = ready!(self.stream.poll_trailers(cx));
            return Poll::Ready(Err(grpc::ended(trailers.ok().flatten())));
        };
        let chunk = chunk?;
        self.unreleased += chunk.len();
        if self.unreleased >= RELEASE_BYTES {
            let all = std::mem::take(&mut self.unreleased);
            self.stream.flow_control().release_capacity(all)?;
        }
        Poll::Ready(Ok(chunk))
    }
}

/// The messages of one subscriber that are looked into.
struct Samples {
    every: u64,
    /// Place, among the messages that arrived, of the one to come.
    next: u64,
    taken: u64,
}

impl Samples {
    /// Content must be what was sent, and the stamps must rise: never less than the number of messages before.
    fn check(&mut self, body: &[u8], plan: &FleetPlan) -> Result<()> {
        let stamp = message::verify(body, &plan.room, plan.size)?;
        ensure!(
            stamp >= self.next,
            "message {stamp} was delivered out of order or twice: {} came before it",
            self.next
        );
        if let Some(timeline) = &plan.timeline {
            timeline.arrived(stamp);
        }
        self.next += self.every;
        self.taken += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_are_split_evenly_and_completely() {
        let split = |subscribers, connections| shares(subscribers, connections).collect::<Vec<_>>();
        assert_eq!(split(10, 3), [4, 3, 3]);
        assert_eq!(split(2, 8), [1, 1]);
        assert_eq!(split(1000, 8), [125; 8]);
    }
}
