//! What runs beside the calls: a look at the connection each second, and retention.
//!
//! Every replica applies retention. What one has dropped the others find dropped: a trim notes its position under the
//! condition that nobody else did, and dropping twice drops nothing. The age of records is told by the server's clock, which
//! stamped them, so the clocks of the replicas do not matter.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    api::{Info, UpTo},
    shared::Shared,
};
use crate::{
    config::RetentionBySpace,
    log::{Clock, Error, Health, Limit, Sequence, Space, Timestamp, Topic, clock::ForeignTime},
};

/// Between two looks at the stream.
const LOOK: Duration = Duration::from_secs(1);
/// Topics looked at before the list is asked for again.
const TOPICS_PAGE: usize = 1000;
/// Parts of a topic's allowed bytes of which the size is known one by one, so that no more than one too many is dropped.
const PARTS: u64 = 64;

/// Looks whether NATS answers and the feed is complete; health follows.
pub(super) async fn look(shared: Arc<Shared>) {
    loop {
        let health = match look_once(&shared).await {
            Ok(()) => Health::Ready,
            Err(Error::Closed) => return,
            Err(Error::Unavailable(why)) => Health::Unavailable(why),
            Err(other) => Health::Unavailable(other.to_string()),
        };
        shared.report(health);
        if !*shared.connected.borrow() {
            // It broke since the answer.
            shared.report(disconnected());
        }
        tokio::select! {
            () = shared.closed.cancelled() => return,
            () = shared.look.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}

/// The health while there is no connection.
pub(super) fn disconnected() -> Health {
    Health::Unavailable("the connection to NATS broke".into())
}

async fn look_once(shared: &Shared) -> Result<(), Error> {
    // Before asking: the feed goes on meanwhile.
    let seen = shared.view.next();
    let info = shared.api.info(None).await?;
    if info.identity() != shared.id {
        return Err(Error::Unavailable(
            "the stream is another one than at the start: restart the instance".into(),
        ));
    }
    let bytes = i64::try_from(info.bytes).unwrap_or(i64::MAX);
    shared.meters.metrics.log_bytes.set(bytes);
    if info.last.next() < seen {
        return Err(Error::Unavailable(
            "the stream ends before what this node has seen: it was replaced or lost data; restart the instance".into(),
        ));
    }
    shared.reached(info.last.next()).await
}

pub(super) struct Upkeep {
    shared: Arc<Shared>,
    interval: Duration,
    retention: RetentionBySpace,
    server_time: Arc<ForeignTime>,
    /// The log's clock by the server's; none before the first round.
    clock: Option<Clock>,
    /// What is known of topics that may be too large.
    sizes: HashMap<Topic, Sizes>,
}

/// Bytes of a topic's records, in parts that end before a position.
#[derive(Default)]
struct Sizes {
    parts: Vec<(Sequence, u64)>,
    next: Sequence,
    total: u64,
}

impl Upkeep {
    pub(super) fn new(
        shared: Arc<Shared>,
        interval: Duration,
        retention: RetentionBySpace,
    ) -> Self {
        Self {
            shared,
            interval,
            retention,
            server_time: Arc::default(),
            clock: None,
            sizes: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let closed = self.shared.closed.clone();
        loop {
            let next = Instant::now() + self.interval;
            tokio::select! {
                () = closed.cancelled() => return,
                done = self.round() => if let Err(error) = done {
                    // It shows in the engine's health; the next round tries again.
                    tracing::debug!(%error, "the log's upkeep was cut short");
                },
            }
            tokio::select! {
                () = closed.cancelled() => return,
                () = sleep_until(next) => {}
            }
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        let info = self.shared.api.info(None).await?;
        let now = self.for_expiry(&info);
        for space in Space::ALL {
            let mut after: Option<Topic> = None;
            loop {
                let topics = self
                    .shared
                    .topics(space, after.as_ref(), TOPICS_PAGE)
                    .await?;
                let Some(last) = topics.last().cloned() else {
                    break;
                };
                for topic in topics {
                    self.retain(topic, info.bytes, now).await?;
                }
                after = Some(last);
            }
        }
        Ok(())
    }

    /// The present that retention by age goes by, if the server's clock is plausible.
    fn for_expiry(&mut self, info: &Info) -> Option<Timestamp> {
        self.server_time.set(info.now);
        let clock = self.clock.get_or_insert_with(|| {
            let is_suspect = self.shared.meters.metrics.log_clock_suspect.clone();
            Clock::open(self.server_time.clone(), info.last_time, is_suspect)
        });
        clock.for_expiry()
    }

    async fn retain(
        &mut self,
        topic: Topic,
        stream_bytes: u64,
        now: Option<Timestamp>,
    ) -> Result<(), Error> {
        let retention = self.retention.of(topic.space());
        let mut cut = match now {
            Some(now) => self.too_old(&topic, now.before(retention.age)).await?,
            None => None,
        };
        // No topic is larger than all of them.
        if stream_bytes > retention.bytes.as_u64() {
            cut = cut.max(self.too_large(&topic, retention.bytes.as_u64()).await?);
        } else {
            self.sizes.remove(&topic);
        }
        if let Some(cut) = cut {
            let dropped = self.shared.trim(&topic, cut).await?;
            self.shared.meters.trimmed(topic.space(), dropped);
        }
        Ok(())
    }

    /// Where the topic has to begin so that it holds nothing older than `oldest`; none when it does not.
    async fn too_old(&self, topic: &Topic, oldest: Timestamp) -> Result<Option<Sequence>, Error> {
        let subject = self.shared.api.subjects.log(topic);
        let api = &self.shared.api;
        let old = api.last_of_each(&[&subject], UpTo::Time(oldest)).await?;
        Ok(old.first().map(|entry| entry.sequence.next()))
    }

    /// Where the topic has to begin so that it is not larger than `most`; none when it is not. Reads what was added since the
    /// last time, the whole topic at first.
    async fn too_large(&mut self, topic: &Topic, most: u64) -> Result<Option<Sequence>, Error> {
        let sizes = self.sizes.entry(topic.clone()).or_default();
        let limit = Limit {
            records: 1000,
            bytes: 1024 * 1024,
        };
        loop {
            let page = match self.shared.read(topic, sizes.next, limit).await {
                Ok(page) => page,
                Err(Error::Trimmed { first }) => {
                    sizes.drop_before(first);
                    sizes.next = sizes.next.max(first);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for record in &page.records {
                sizes.add(record.sequence.next(), record.size() as u64, most / PARTS);
            }
            sizes.next = page.next;
            if page.next == page.tail {
                break;
            }
        }
        Ok(sizes.cut(most))
    }
}

impl Sizes {
    fn add(&mut self, end: Sequence, bytes: u64, part: u64) {
        self.total += bytes;
        match self.parts.last_mut() {
            Some(last) if last.1 + bytes <= part => *last = (end, last.1 + bytes),
            _ => self.parts.push((end, bytes)),
        }
    }

    fn drop_before(&mut self, first: Sequence) {
        let dropped = self.parts.partition_point(|(end, _)| *end <= first);
        self.total -= self
            .parts
            .drain(..dropped)
            .map(|(_, bytes)| bytes)
            .sum::<u64>();
    }

    /// Where to cut, noting that it was cut there.
    fn cut(&mut self, most: u64) -> Option<Sequence> {
        let mut total = self.total;
        let mut cut = None;
        for (end, bytes) in &self.parts {
            if total <= most {
                break;
            }
            total -= bytes;
            cut = Some(*end);
        }
        if let Some(cut) = cut {
            self.drop_before(cut);
        }
        cut
    }
}
