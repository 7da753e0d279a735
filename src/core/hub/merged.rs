//! Several topics as one: in the order of the log, with one position that resumes them all.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Hub, Records, SLICE_BYTES, Start, Subscription};
use crate::log::{Error, Record, Sequence, Topic};

/// Records of one batch at most.
const BATCH: usize = 1024;

/// A record with its topic.
pub type Found = (Topic, Arc<Record>);

/// A subscription to several topics. All topics share one counter, so merging them by sequence gives one order, and what
/// was delivered last is a position in every one of them. It holds at most one batch of each topic.
///
/// A record is delivered once every other topic is known to have nothing before it. Where the engine
/// does not tell how far it has shown everything, a silent topic is asked in the log: when a read finds a record, reads from
/// then on find every record before it, in any topic.
pub struct Merged {
    hub: Hub,
    parts: Vec<Part>,
    /// Everything before this position was delivered, of every topic.
    cursor: Sequence,
}

struct Part {
    subscription: Subscription<Records>,
    waiting: VecDeque<Arc<Record>>,
}

impl Part {
    /// Everything of this topic before this position was delivered.
    fn delivered(&self) -> Sequence {
        self.waiting
            .front()
            .map_or_else(|| self.subscription.cursor(), |record| record.sequence)
    }

    /// Takes what is new; `Pending` when it has nothing now. An empty batch only moves the cursor.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.waiting.is_empty() {
            match self.subscription.poll_next(cx) {
                Poll::Ready(batch) => self.waiting.extend(batch?.data),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Merged {
    pub(in crate::core) const fn new(hub: Hub) -> Self {
        Self {
            hub,
            parts: Vec::new(),
            cursor: Sequence::FIRST,
        }
    }

    /// Follows a further topic; without effect when it is followed already. Records of it that lie before what was
    /// delivered of others come late, so a topic added later starts where it starts, and order holds from there on.
    ///
    /// # Errors
    /// The start is trimmed or beyond the tail, or what the log reports.
    pub async fn add(&mut self, topic: &Topic, start: Start) -> Result<(), Error> {
        if self.follows(topic) {
            return Ok(());
        }
        let subscription = self.hub.subscribe(topic, start, Records).await?;
        self.cursor = match self.parts.is_empty() {
            true => subscription.cursor(),
            false => self.cursor.min(subscription.cursor()),
        };
        self.parts.push(Part {
            subscription,
            waiting: VecDeque::new(),
        });
        Ok(())
    }

    /// Whether `topic` is followed.
    #[must_use]
    pub fn follows(&self, topic: &Topic) -> bool {
        self.parts
            .iter()
            .any(|part| part.subscription.topic() == topic)
    }

    /// How many topics are followed.
    #[must_use]
    pub fn topics(&self) -> usize {
        self.parts.len()
    }

    /// Ends the subscription to every topic.
    pub fn clear(&mut self) {
        self.parts.clear();
    }

    /// Where the next record of any topic lies at the earliest: everything before it was delivered.
    #[must_use]
    pub const fn cursor(&self) -> Sequence {
        self.cursor
    }

    /// The next records, each with its topic; waits for one, for ever when no topic is followed.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when retention overtook this subscriber; else what the engine reports.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Found>, Error>> {
        loop {
            // Before the topics are looked at: what they had before this position, they have shown by then.
            let shown = self.hub.0.engine.shown();
            for part in &mut self.parts {
                match part.poll(cx) {
                    Poll::Ready(polled) => polled?,
                    Poll::Pending => part.subscription.skip(shown),
                }
            }
            let batch = self.take();
            if !batch.is_empty() {
                return Poll::Ready(Ok(batch));
            }
            let is_asking_anew = self.ask();
            if !is_asking_anew {
                return Poll::Pending;
            }
        }
    }

    /// The next records, as a future; see [`Self::poll_next`]. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::poll_next`].
    pub async fn next(&mut self) -> Result<Vec<Found>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What can be delivered now.
    fn take(&mut self) -> Vec<Found> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH && bytes < SLICE_BYTES {
            // A silent topic that is known up to exactly the next record has nothing before it.
            let next = self
                .parts
                .iter_mut()
                .min_by_key(|part| (part.delivered(), part.waiting.is_empty()));
            let Some((part, record)) =
                next.and_then(|part| part.waiting.pop_front().map(|record| (part, record)))
            else {
                break;
            };
            self.cursor = self.cursor.max(record.sequence.next());
            bytes += record.payload.len();
            batch.push((part.subscription.topic().clone(), record));
        }
        batch
    }

    /// Asks the log about silent topics that may have something before the earliest record that waits; returns whether any
    /// was asked that was not before.
    fn ask(&mut self) -> bool {
        let waiting = self.parts.iter().filter_map(|part| part.waiting.front());
        let Some(earliest) = waiting.map(|record| record.sequence).min() else {
            return false;
        };
        let mut is_asking_anew = false;
        for part in &mut self.parts {
            if part.delivered() < earliest {
                is_asking_anew |= part.subscription.ask_log();
            }
        }
        is_asking_anew
    }
}
