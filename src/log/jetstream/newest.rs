//! The newest records of a topic: from memory, and behind that from the stream.
//!
//! JetStream reads forward only, save for the last message of a subject up to a position. So the newest record is asked for,
//! and from there a range that holds enough is searched: back in growing steps, and by halves where a step holds too much.
//! Each step reads one page at most, and their number grows with the logarithm of the distance.

use std::sync::Arc;

use tokio::time::Instant;

use super::{api::UpTo, shared::Shared, wire::Content};
use crate::log::{Error, Limit, Record, Sequence, Topic};

/// How often a search that a trim overtook begins again.
const TRIES: usize = 10;

impl Shared {
    pub(super) async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        let limit = Limit {
            records: limit.records.max(1),
            // No record at all is never enough.
            bytes: limit.bytes.max(1),
        };
        self.ready().await?;
        let (newest, _) = self.view.newest(topic, before, limit);
        if is_enough(&newest, limit) {
            return Ok(newest);
        }
        for _ in 0..TRIES {
            // Another replica may have dropped records for the sake of one that this node has not seen.
            let first = self.bounds(topic).await?.first;
            let (newest, recent) = self.view.newest(topic, before, limit);
            if is_enough(&newest, limit) {
                return Ok(newest);
            }
            let older = first..before.min(recent);
            match self.newest_older(topic, older, newest, limit).await {
                Err(Error::Trimmed { .. }) => {}
                found => return found,
            }
        }
        Err(Error::Unavailable(format!(
            "others trim {topic} at the same time"
        )))
    }

    /// Adds to `newer` what lies before it, `within` the stream.
    ///
    /// # Errors
    /// [`Error::Trimmed`]: a trim came between.
    async fn newest_older(
        &self,
        topic: &Topic,
        within: std::ops::Range<Sequence>,
        newer: Vec<Arc<Record>>,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        let mut search = Search {
            found: vec![newer],
            limit,
            first: within.start,
            high: within.end,
            step: (limit.records as u64).saturating_mul(4),
            is_crossed: false,
        };
        while !search.is_done() {
            // Nothing lies between the last record and the end, so that no step is taken in vain.
            let Some(last) = self.last_in_stream(topic, search.high).await? else {
                break;
            };
            if last.sequence < search.first {
                break;
            }
            search.high = last.sequence;
            search.found.push(vec![last]);
            while !search.is_done() {
                let from = search.from();
                let page = Limit {
                    records: search.limit.records.saturating_mul(2).saturating_add(1),
                    bytes: search.limit.bytes.saturating_mul(4),
                };
                let page = self.read_older(topic, from, search.high, page).await?;
                if page.next < search.high {
                    search.halve();
                } else if !search.add(from, page.records) {
                    break;
                }
            }
        }
        Ok(search.finish())
    }

    /// The topic's last record before `before`, in memory or in the stream.
    pub(super) async fn last_before(
        &self,
        topic: &Topic,
        before: Sequence,
    ) -> Result<Option<Arc<Record>>, Error> {
        let (mut in_memory, recent) = self.view.newest(topic, before, Limit::ONE);
        match in_memory.pop() {
            Some(record) => Ok(Some(record)),
            None => self.last_in_stream(topic, before.min(recent)).await,
        }
    }

    async fn last_in_stream(
        &self,
        topic: &Topic,
        before: Sequence,
    ) -> Result<Option<Arc<Record>>, Error> {
        let older = Sequence(before.0.saturating_sub(1));
        if older == Sequence::default() {
            return Ok(None);
        }
        let subject = self.api.subjects.log(topic);
        let deadline = Instant::now() + self.api.stream.timeout;
        loop {
            let up_to = UpTo::Sequence(older);
            let mut found = self.api.last_of_each(&[&subject], up_to).await?;
            let last = found.pop();
            let after = last.as_ref().map(|entry| entry.sequence);
            if !self.api.stream.is_single {
                let after = after.unwrap_or_default().next();
                let missed = self.api.next_after(&subject, after).await?;
                if missed.is_some_and(|missed| missed <= older) {
                    self.api.pause(deadline).await?;
                    continue;
                }
            }
            return match last.map(|entry| entry.content) {
                None => Ok(None),
                Some(Content::Record(_, record)) => Ok(Some(record)),
                Some(Content::Broken(what)) => Err(Error::Corrupt(what)),
                Some(Content::Trim(..)) => Err(Error::Corrupt(format!("a record of {topic}"))),
            };
        }
    }
}

fn is_enough(records: &[Arc<Record>], limit: Limit) -> bool {
    let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
    records.len() >= limit.records || bytes >= limit.bytes
}

/// A search back through the stream.
struct Search {
    /// Runs of records, the newest first; each is in order.
    found: Vec<Vec<Arc<Record>>>,
    limit: Limit,
    /// Nothing before it is retained.
    first: Sequence,
    /// Everything from here on is found.
    high: Sequence,
    step: u64,
    /// A step held too much: steps grow more slowly since.
    is_crossed: bool,
}

impl Search {
    fn is_done(&self) -> bool {
        if self.high <= self.first {
            return true;
        }
        let records = self.found.iter().flatten();
        let (count, bytes) = records.fold((0, 0), |(count, bytes), record| {
            (count + 1, bytes + record.payload.len())
        });
        count >= self.limit.records || bytes >= self.limit.bytes
    }

    /// The start of the next step.
    fn from(&self) -> Sequence {
        Sequence(self.high.0.saturating_sub(self.step)).max(self.first)
    }

    fn halve(&mut self) {
        self.is_crossed = true;
        // A step of one position is never too much.
        self.step = ((self.high.0 - self.from().0) / 2).max(1);
    }

    /// Takes the records from `from` on; false when there are none.
    fn add(&mut self, from: Sequence, records: Vec<Arc<Record>>) -> bool {
        let has_some = !records.is_empty();
        self.high = from;
        self.found.push(records);
        let growth = if self.is_crossed { 2 } else { 4 };
        self.step = self.step.saturating_mul(growth);
        has_some
    }

    fn finish(self) -> Vec<Arc<Record>> {
        let records: Vec<_> = self.found.into_iter().rev().flatten().collect();
        crate::log::newest_of(records.iter(), self.limit)
    }
}
