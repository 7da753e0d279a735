//! A document's copy and its place in the log.

use std::{collections::HashSet, sync::Arc, task::Poll};

use bytes::Bytes;

use super::{
    Change, Inner, Joined, Kind, Saved,
    replica::{Refused, Replica},
};
use crate::{
    core::{
        Error,
        appender::Appended,
        hub::{Records, Start, Subscription},
    },
    log::{self, Limit, NewRecord, Record, Sequence, Topic},
    telemetry::trace,
};

/// Who publishes snapshots, and under which id.
const SNAPSHOT: (&str, &str) = ("weir", "snapshot");

/// What is read from the log at once.
const PAGE: Limit = Limit {
    records: 1024,
    bytes: 1 << 20,
};

/// What became of a client's updates on the copy: whether each brought anything, and what refused the next.
type Tried = (Vec<bool>, Option<Refused>);

/// A document's copy and where it is in the topic.
pub(super) struct Live {
    /// Absent once it may differ from the log.
    replica: Option<Replica>,
    records: Subscription<Records>,
    count: Count,
}

/// What a topic holds.
#[derive(Default)]
struct Count {
    /// The last record.
    last: Sequence,
    /// Updates beside the last snapshot, and their bytes; of a document just read, all updates.
    updates: usize,
    bytes: usize,
}

impl Count {
    fn add(&mut self, records: &[Arc<Record>]) {
        for record in records {
            self.last = self.last.max(record.sequence);
            if Kind::of(record) == Kind::Update {
                self.updates += 1;
                self.bytes += record.payload.len();
            }
        }
    }
}

impl Live {
    /// Reads a document from the log, page by page, and follows it from there.
    pub(super) async fn load(documents: &Inner, topic: &Topic) -> Result<Self, Error> {
        let mut replica = Replica::new(documents.max_size);
        let mut count = Count::default();
        let mut from = documents.topics.bounds(topic).await?.first;
        loop {
            let page = documents.topics.read(topic, from, PAGE).await?;
            count.add(&page.records);
            replica = documents
                .workshop
                .run(move || replay(&mut replica, &page.records).map(|()| replica))
                .await??;
            from = page.next;
            if from == page.tail {
                break;
            }
        }
        Ok(Self {
            records: follow(documents, topic, from).await?,
            replica: Some(replica),
            count,
        })
    }

    /// It, unless the copy is spoilt.
    pub(super) fn sound(self) -> Option<Self> {
        self.replica.is_some().then_some(self)
    }

    /// The position of the last record; zero when there is none.
    pub(super) const fn last(&self) -> Sequence {
        self.count.last
    }

    /// Applies what the log has, and at least everything before `until`.
    pub(super) async fn catch_up(
        &mut self,
        documents: &Inner,
        until: Sequence,
    ) -> Result<(), Error> {
        while let Some(records) = self.next_before(until).await? {
            self.count(&records);
            self.replay(documents, records).await?;
        }
        Ok(())
    }

    /// Counts records that came after the copy was read. A snapshot among them is another replica's: it has what was before
    /// it, and drops that.
    fn count(&mut self, records: &[Arc<Record>]) {
        let snapshot = |record: &Arc<Record>| Kind::of(record) == Kind::Snapshot;
        let after = records.iter().rposition(snapshot);
        if after.is_some() {
            (self.count.updates, self.count.bytes) = (0, 0);
        }
        self.count.add(&records[after.unwrap_or(0)..]);
    }

    /// Further records; `None` when there are none now and everything before `until` was given. `until` lies behind a record
    /// of this topic: a position that only other topics reached would be waited for in vain.
    async fn next_before(&mut self, until: Sequence) -> Result<Option<Vec<Arc<Record>>>, Error> {
        let records = &mut self.records;
        let next = std::future::poll_fn(|cx| match records.poll_next(cx) {
            Poll::Ready(batch) => Poll::Ready(batch.map(|batch| Some(batch.data))),
            Poll::Pending if records.cursor() >= until => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        });
        Ok(next.await?)
    }

    async fn replay(&mut self, documents: &Inner, records: Vec<Arc<Record>>) -> Result<(), Error> {
        // A copy that is given up need not follow.
        if records.is_empty() || self.replica.is_none() {
            return Ok(());
        }
        let replayed = self.with_replica(documents, move |replica| replay(replica, &records));
        let replayed = replayed.await?;
        if replayed.is_err() {
            self.replica = None;
        }
        replayed
    }

    /// Works with the copy, on a thread for it. When the caller is cancelled meanwhile, the copy is gone.
    async fn with_replica<T: Send + 'static>(
        &mut self,
        documents: &Inner,
        work: impl FnOnce(&mut Replica) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let spoilt = || Error::Log(log::Error::Corrupt("a document's copy is spoilt".into()));
        let mut replica = self.replica.take().ok_or_else(spoilt)?;
        let (replica, result) = documents
            .workshop
            .run(move || {
                let result = work(&mut replica);
                (replica, result)
            })
            .await?;
        self.replica = Some(replica);
        Ok(result)
    }

    /// What someone with this state vector lacks, and what the server has.
    pub(super) async fn missing(
        &mut self,
        documents: &Inner,
        state_vector: Bytes,
    ) -> Result<(Bytes, Bytes), Error> {
        let told = self.with_replica(documents, move |replica| {
            replica.missing(&state_vector).zip(replica.state_vector())
        });
        told.await?.ok_or_else(|| {
            Error::invalid(
                "state_vector",
                "state_vector is no state vector of this document",
            )
        })
    }

    pub(super) async fn join(
        &mut self,
        documents: &Inner,
        topic: &Topic,
        state_vector: Bytes,
    ) -> Result<Joined, Error> {
        let (missing, state_vector) = self.missing(documents, state_vector).await?;
        Ok(Joined {
            missing,
            state_vector,
            records: follow(documents, topic, self.records.cursor()).await?,
        })
    }

    /// Stores updates; see [`super::Document::apply`].
    pub(super) async fn apply(
        &mut self,
        documents: &Inner,
        topic: &Topic,
        changes: Vec<Change>,
    ) -> (Vec<Saved>, Option<Error>) {
        let (tried, refused) = match self.try_out(documents, &changes).await {
            Ok(tried) => tried,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let refusal = refused.map(|refused| refusal(refused, documents.max_size));
        if refused.is_some_and(Refused::is_spoiling) {
            self.replica = None;
        }
        let (saved, failed) = self.store(documents, topic, changes, &tried).await;
        if failed.is_some() {
            self.replica = None;
        }
        self.compact_when_due(documents, topic).await;
        (saved, failed.or(refusal))
    }

    async fn try_out(&mut self, documents: &Inner, changes: &[Change]) -> Result<Tried, Error> {
        let updates: Vec<_> = changes.iter().map(|change| change.update.clone()).collect();
        let trying = self.with_replica(documents, move |replica| {
            let mut tried = Vec::with_capacity(updates.len());
            for update in updates {
                match replica.apply(&update) {
                    Ok(is_new) => tried.push(is_new),
                    Err(refused) => return (tried, Some(refused)),
                }
            }
            (tried, None)
        });
        trying.await
    }

    /// Appends those that brought something, or have a key, in one batch. On an error the copy has more than the log.
    async fn store(
        &mut self,
        documents: &Inner,
        topic: &Topic,
        changes: Vec<Change>,
        tried: &[bool],
    ) -> (Vec<Saved>, Option<Error>) {
        let before = self.count.last;
        let is_stored: Vec<_> = tried
            .iter()
            .zip(&changes)
            .map(|(is_new, change)| *is_new || change.key.is_some())
            .collect();
        let records: Vec<_> = changes
            .into_iter()
            .zip(&is_stored)
            .filter(|(_, is_stored)| **is_stored)
            .map(|(change, _)| change.into_record(topic))
            .collect();
        let appended = match self.append(documents, records).await {
            Ok(appended) => appended,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut appended = appended.into_iter();
        let mut saved: Vec<Saved> = Vec::with_capacity(tried.len());
        for (is_new, is_stored) in tried.iter().zip(is_stored) {
            let sequence = match is_stored.then(|| appended.next()).flatten() {
                // What brought nothing is in what was there before it, in this batch too.
                None => saved
                    .last()
                    .map_or(before, |saved| saved.sequence.max(before)),
                Some(Ok(one)) => {
                    if one.is_duplicate && *is_new {
                        // The log has what the copy did not: it is read anew.
                        self.replica = None;
                    }
                    one.sequence
                }
                Some(Err(error)) => return (saved, Some(error)),
            };
            saved.push(Saved {
                sequence,
                is_stored,
            });
        }
        (saved, None)
    }

    /// Appends records whose content the copy has, and takes them from the feed.
    async fn append(
        &mut self,
        documents: &Inner,
        records: Vec<NewRecord>,
    ) -> Result<Vec<Result<Appended, Error>>, Error> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = documents.topics.pipeline();
        pipeline.push(records).await?;
        let appended = pipeline.next().await?;
        let own: HashSet<Sequence> = appended
            .iter()
            .flatten()
            .filter(|one| !one.is_duplicate)
            .map(|one| one.sequence)
            .collect();
        let until = own
            .iter()
            .max()
            .map_or(Sequence::default(), |last| last.next());
        // They are stored, whatever becomes of the copy.
        if self.pass(documents, until, &own).await.is_err() {
            self.replica = None;
        }
        Ok(appended)
    }

    /// Takes what the feed has before `until`; the copy has `own` already.
    async fn pass(
        &mut self,
        documents: &Inner,
        until: Sequence,
        own: &HashSet<Sequence>,
    ) -> Result<(), Error> {
        while let Some(mut records) = self.next_before(until).await? {
            self.count(&records);
            records.retain(|record| !own.contains(&record.sequence));
            self.replay(documents, records).await?;
        }
        Ok(())
    }

    /// Stores the document as one and drops what that makes superfluous. A failure is logged: the document is whole without.
    async fn compact_when_due(&mut self, documents: &Inner, topic: &Topic) {
        let is_due =
            self.count.updates >= documents.compact_after || self.count.bytes > documents.max_size;
        if !is_due || self.replica.is_none() {
            return;
        }
        if let Err(error) = self.compact(documents, topic).await {
            tracing::warn!(%error, "a document was not compacted");
            self.replica = None;
        }
    }

    async fn compact(&mut self, documents: &Inner, topic: &Topic) -> Result<(), Error> {
        // Everything before this position is in the snapshot; what others append meanwhile is not, and is kept.
        let covered = self.records.cursor();
        let state = self.with_replica(documents, Replica::state).await?;
        let failed = || Error::Log(log::Error::Corrupt("a document cannot be encoded".into()));
        let snapshot = NewRecord {
            topic: topic.clone(),
            publisher: SNAPSHOT.0.into(),
            id: SNAPSHOT.1.into(),
            kind: Kind::Snapshot as u16,
            event_time: None,
            key: None,
            trace: trace::current(),
            payload: state.ok_or_else(failed)?,
        };
        for outcome in self.append(documents, vec![snapshot]).await? {
            outcome?;
        }
        documents.topics.trim(topic, covered).await?;
        (self.count.updates, self.count.bytes) = (0, 0);
        Ok(())
    }
}

/// The records from `from` on.
///
/// # Errors
/// [`log::Error::Trimmed`] also where a subscription would begin with the first retained record instead.
async fn follow(
    documents: &Inner,
    topic: &Topic,
    from: Sequence,
) -> Result<Subscription<Records>, Error> {
    let start = Start::After(Sequence(from.0.saturating_sub(1)));
    let records = documents.topics.subscribe(topic, start, Records).await?;
    let first = records.cursor();
    match first > from {
        true => Err(Error::Log(log::Error::Trimmed { first })),
        false => Ok(records),
    }
}

/// Applies stored records.
fn replay(replica: &mut Replica, records: &[Arc<Record>]) -> Result<(), Error> {
    let failed = records
        .iter()
        .find(|record| replica.replay(&record.payload).is_err());
    failed.map_or(Ok(()), |record| {
        let sequence = record.sequence;
        let what = format!("the update at {sequence} of a document cannot be applied");
        Err(Error::Log(log::Error::Corrupt(what)))
    })
}

fn refusal(refused: Refused, max_size: usize) -> Error {
    match refused {
        Refused::Malformed => Error::invalid("update", "the update is malformed"),
        Refused::Senseless => {
            Error::invalid("update", "the update makes no sense in this document")
        }
        Refused::TooLarge => Error::Limit {
            what: "bytes of a document",
            limit: max_size,
        },
    }
}
