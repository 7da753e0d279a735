//! The only publisher of this node: group commit.
//!
//! Whatever waits is published as one atomic batch of the stream, and the next one only when JetStream has answered. So batches
//! keep their order, a group is stored as a whole or not at all, and one answer of the server acknowledges up to 1,000 records.
//! Behind it the [`Settler`] waits until the node's view has them and resolves the acks, in order, while the next batch is
//! under way; at most [`UNSETTLED`] groups wait for it.
//!
//! A group of single records whose appenders all wait for them ([`Engine::append`](crate::log::Engine::append)) needs no such
//! order: its messages are published beside each other, and each is answered for itself. That spares the server the batch.
//!
//! The server refuses a whole batch when a message in it repeats an earlier one. The batch is then published in halves, in
//! order, until the repetition stands alone and the server tells what it repeats.
//!
//! Where the stream has one copy, the server makes a store on disk for each batch, which takes milliseconds. There a few batches
//! of one record are published one after the other instead, each when the one before is answered.
//!
//! A server that flushes each message (`sync_interval: always`) takes long for a large group. So groups get smaller while they
//! take long and larger while they do not.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant as Deadline,
};
use uuid::Uuid;

use super::{
    api::{PAGE, PAGE_BYTES, Published},
    shared::Shared,
    wire::Outgoing,
};
use crate::log::{
    Error, NewRecord, Outcome, Record, Sequence, Space, Timestamp,
    dedupe::{Fingerprint, Known, content},
};

/// Records that are published together, at least; at most a page.
const GROUP: usize = 128;
/// So few appends of one record are published one by one where the stream has one copy.
const FEW: usize = 16;
/// A group that takes longer is too large.
const SLOW: Duration = Duration::from_millis(200);

/// Groups that JetStream has answered and whose acks are not resolved yet.
const UNSETTLED: usize = 4;

/// A batch that waits.
pub(super) struct Append {
    pub(super) batch: Vec<NewRecord>,
    /// Its appender has nothing else under way, so it needs no order.
    pub(super) is_alone: bool,
    /// Of the queue.
    pub(super) permits: usize,
    pub(super) queued: Instant,
    pub(super) ack: oneshot::Sender<Result<Vec<Outcome>, Error>>,
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    appends: mpsc::UnboundedReceiver<Append>,
    /// Taken from the queue already, for the next group.
    ahead: Option<Append>,
    /// Records of a group, for now.
    group: usize,
}

/// Batches that are published together.
struct Group {
    appends: Vec<Append>,
    /// Of each record, where its message is; several records may share one.
    of_record: Vec<usize>,
    messages: Vec<Outgoing>,
    /// Space and size of each message's record.
    sizes: Vec<(Space, u64)>,
}

/// A group that JetStream has answered.
struct Answered {
    group: Group,
    /// What became of each message.
    settled: Vec<Result<Settled, Error>>,
}

/// Resolves the acks of answered groups, in order.
struct Settler {
    shared: Arc<Shared>,
    answered: mpsc::Receiver<Answered>,
}

/// What became of one message.
#[derive(Clone, Copy)]
enum Settled {
    Stored(Sequence),
    Repeats(Sequence),
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, appends: mpsc::UnboundedReceiver<Append>) -> Self {
        Self {
            shared,
            appends,
            ahead: None,
            group: GROUP,
        }
    }

    /// Publishes until every sender is gone, the queue is empty and every ack resolved.
    pub(super) async fn run(mut self) {
        let (answered, receiver) = mpsc::channel(UNSETTLED);
        let settler = Settler {
            shared: self.shared.clone(),
            answered: receiver,
        };
        let publish = async move {
            while let Some(group) = self.next_group().await {
                let settled = self.publish(&group).await;
                let group = Answered { group, settled };
                // The settler goes on as long as this does.
                let _ = answered.send(group).await;
            }
        };
        tokio::join!(publish, settler.run());
    }

    /// What waits, as long as it fits into one batch of the stream; a larger one goes alone.
    async fn next_group(&mut self) -> Option<Group> {
        let first = match self.ahead.take() {
            Some(append) => append,
            None => self.appends.recv().await?,
        };
        let mut records = first.batch.len();
        let mut bytes = first.permits;
        let mut appends = vec![first];
        while let Ok(append) = self.appends.try_recv() {
            records += append.batch.len();
            bytes += append.permits;
            if records > self.group || bytes > PAGE_BYTES {
                self.ahead = Some(append);
                break;
            }
            appends.push(append);
        }
        Some(Group::new(appends, &self.shared))
    }

    /// Publishes the messages; what became of each.
    async fn publish(&mut self, group: &Group) -> Vec<Result<Settled, Error>> {
        let messages = &group.messages;
        if group.appends.iter().all(|append| append.is_alone) {
            let began = Instant::now();
            let settled = join_all(messages.iter().map(|message| self.publish_one(message))).await;
            self.adapt(messages.len(), began.elapsed());
            return settled;
        }
        let (settled, failed) = self.publish_in_order(group).await;
        let error = failed.unwrap_or(Error::Closed);
        let mut settled: Vec<_> = settled.into_iter().map(Ok).collect();
        settled.resize_with(messages.len(), || Err(error.clone()));
        settled
    }

    async fn publish_one(&self, message: &Outgoing) -> Result<Settled, Error> {
        match self.attempt(std::slice::from_ref(message)).await? {
            Published::Stored(at) => Ok(Settled::Stored(at)),
            Published::Duplicate(at) => Ok(Settled::Repeats(at)),
            Published::Split | Published::Retry(_) => Err(refused_alone()),
        }
    }

    /// What became of the messages before the first failure, and that failure.
    async fn publish_in_order(&mut self, group: &Group) -> (Vec<Settled>, Option<Error>) {
        let messages = &group.messages;
        let mut settled = Vec::with_capacity(messages.len());
        let is_few = self.shared.api.stream.is_single
            && messages.len() <= FEW
            && group.appends.iter().all(|append| append.batch.len() == 1);
        let mut ranges = chunks(messages, if is_few { 1 } else { self.group });
        while let Some(range) = ranges.pop() {
            let (start, end) = range;
            let began = Instant::now();
            let done = self.attempt(&messages[start..end]).await;
            self.adapt(end - start, began.elapsed());
            match done {
                Ok(Published::Stored(last)) => {
                    let first = last.0.saturating_sub((end - start) as u64 - 1);
                    settled.extend((first..=last.0).map(|at| Settled::Stored(Sequence(at))));
                }
                Ok(Published::Duplicate(at)) => settled.push(Settled::Repeats(at)),
                Ok(Published::Split | Published::Retry(_)) if end - start > 1 => {
                    let middle = start + (end - start) / 2;
                    ranges.extend([(middle, end), (start, middle)]);
                }
                Ok(Published::Split | Published::Retry(_)) => {
                    return (settled, Some(refused_alone()));
                }
                Err(error) => return (settled, Some(error)),
            }
        }
        (settled, None)
    }

    fn adapt(&mut self, records: usize, took: Duration) {
        if took > SLOW {
            self.group = (self.group / 2).max(GROUP);
        } else if records >= self.group / 2 && took < SLOW / 4 {
            self.group = (self.group * 2).min(PAGE);
        }
    }

    /// Publishes one batch; again where it is certain that nothing was stored and the cause may pass.
    async fn attempt(&self, messages: &[Outgoing]) -> Result<Published, Error> {
        let api = &self.shared.api;
        let deadline = Deadline::now() + api.stream.timeout;
        loop {
            self.shared.ready().await?;
            let id = Uuid::now_v7().simple().to_string();
            match api.publish(&id, messages).await? {
                Published::Retry(failure) => {
                    if api.pause(deadline).await.is_err() {
                        return Err(failure.into());
                    }
                }
                done => return Ok(done),
            }
        }
    }
}

impl Settler {
    async fn run(mut self) {
        while let Some(answered) = self.answered.recv().await {
            self.resolve(answered).await;
        }
    }

    async fn resolve(&self, answered: Answered) {
        let Answered { group, settled } = answered;
        let shared = &self.shared;
        let stored = settled.iter().map(|settled| match settled {
            Ok(Settled::Stored(at) | Settled::Repeats(at)) => Some(*at),
            Err(_) => None,
        });
        let reached = match stored.max().flatten() {
            Some(last) => shared.reached(last.next()).await,
            None => Ok(()),
        };
        for (settled, (space, bytes)) in settled.iter().zip(&group.sizes) {
            if matches!(settled, Ok(Settled::Stored(_))) {
                shared.meters.appended(*space, 1, *bytes);
            }
        }
        let mut seen = vec![false; settled.len()];
        let mut messages = group.of_record.iter();
        for append in group.appends {
            let of_records = messages.by_ref().take(append.batch.len());
            let mut result = reached
                .clone()
                .map(|()| Vec::with_capacity(append.batch.len()));
            for (record, message) in append.batch.iter().zip(of_records) {
                let Ok(outcomes) = &mut result else {
                    continue;
                };
                let is_first = !std::mem::replace(&mut seen[*message], true);
                match self.outcome(record, &settled[*message], is_first).await {
                    Ok(outcome) => outcomes.push(outcome),
                    Err(error) => result = Err(error),
                }
            }
            if result.is_ok() {
                let append_secs = &shared.meters.metrics.append_secs;
                append_secs.observe(append.queued.elapsed().as_secs_f64());
            }
            shared.queue.add_permits(append.permits);
            // A dropped ack means that nobody asks.
            let _ = append.ack.send(result);
        }
    }

    /// What became of a record; `is_first` of those that share its message.
    async fn outcome(
        &self,
        record: &NewRecord,
        settled: &Result<Settled, Error>,
        is_first: bool,
    ) -> Result<Outcome, Error> {
        match settled {
            Ok(Settled::Stored(at)) if is_first => Ok(Outcome::Stored {
                sequence: *at,
                time: self.time(*at).await?,
            }),
            Ok(Settled::Stored(at) | Settled::Repeats(at)) => self.repeats(record, *at).await,
            Err(error) => Err(error.clone()),
        }
    }

    async fn time(&self, at: Sequence) -> Result<Timestamp, Error> {
        if let Some(time) = self.shared.view.time(at) {
            return Ok(time);
        }
        let entry = self.shared.api.at(at).await?;
        // Dropped already: it was stored a moment ago.
        Ok(entry.map_or_else(Timestamp::now, |entry| entry.time))
    }

    /// What becomes of `record`, whose key was used for the record at `at`.
    async fn repeats(&self, record: &NewRecord, at: Sequence) -> Result<Outcome, Error> {
        self.shared.meters.metrics.deduplicated.inc();
        let entry = self.shared.api.at(at).await?;
        let first = entry.and_then(super::wire::Entry::into_record);
        let Some(fingerprint) = Fingerprint::of(record) else {
            return Err(Error::Corrupt(
                "a record without a key repeats another".into(),
            ));
        };
        Ok(first.map_or(
            // The first is no longer retained, so what it held is not known.
            Outcome::Duplicate {
                sequence: at,
                time: Timestamp::now(),
            },
            |(_, first)| known(&first).repeated_by(&fingerprint),
        ))
    }
}

fn known(first: &Record) -> Known {
    Known {
        sequence: first.sequence,
        time: first.time,
        content: content(first.kind, &first.payload),
    }
}

impl Group {
    fn new(appends: Vec<Append>, shared: &Shared) -> Self {
        let mut group = Self {
            appends,
            of_record: Vec::new(),
            messages: Vec::new(),
            sizes: Vec::new(),
        };
        let mut ids = HashMap::<String, usize>::new();
        for record in group.appends.iter().flat_map(|append| &append.batch) {
            let message = Outgoing::new(&shared.api.subjects, record);
            if let Some(id) = &message.id {
                if let Some(same) = ids.get(id) {
                    group.of_record.push(*same);
                    continue;
                }
                ids.insert(id.clone(), group.messages.len());
            }
            group.of_record.push(group.messages.len());
            let space = record.topic.space();
            group.sizes.push((space, record.size() as u64));
            group.messages.push(message);
        }
        group
    }
}

fn refused_alone() -> Error {
    Error::Unavailable("JetStream refuses a single message as a batch".into())
}

/// Ranges of messages that fit into one batch, the first one last.
fn chunks(messages: &[Outgoing], most: usize) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, message) in messages.iter().enumerate() {
        if index > start && (index - start == most || bytes + message.size() > PAGE_BYTES) {
            ranges.push((start, index));
            (start, bytes) = (index, 0);
        }
        bytes += message.size();
    }
    if start < messages.len() {
        ranges.push((start, messages.len()));
    }
    ranges.reverse();
    ranges
}
