//! Topics as the domain uses them: append, follow and read, of one log by one hub.

use std::sync::Arc;

use super::{
    Appender, Error, Hub, Pipeline,
    appender::Appended,
    hub::{Merged, Start, Subscription, View},
};
use crate::{
    log::{
        self, Bounds, Engine, Limit, NewRecord, Page, Record, Sequence, Space, Timestamp, Topic,
    },
    telemetry::Traces,
};

/// All topics of the log. Cheap to clone.
#[derive(Clone)]
pub struct Topics {
    engine: Arc<dyn Engine>,
    appender: Appender,
    hub: Hub,
}

impl Topics {
    /// The topics of the log behind `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, hub: Hub, traces: Traces) -> Self {
        Self {
            appender: Appender::new(Arc::clone(&engine), traces),
            engine,
            hub,
        }
    }

    /// Appends one record; returns when it is durable. Dropping the future does not take the record back.
    ///
    /// # Errors
    /// [`Error::KeyConflict`], or what the log reports.
    pub async fn append(&self, record: NewRecord) -> Result<Appended, Error> {
        self.appender.append(record).await
    }

    /// Appends one record and returns its id beside what it became: with a key that repeats an earlier record, that one's.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn publish(&self, record: NewRecord) -> Result<(Box<str>, Appended), Error> {
        let (topic, id) = (record.topic.clone(), record.id.clone());
        let appended = self.append(record).await?;
        let first = match appended.is_duplicate {
            true => self.record(&topic, appended.sequence).await?,
            false => None,
        };
        Ok((first.map_or(id, |first| first.id.clone()), appended))
    }

    /// A pipeline for many records of one stream.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        self.appender.pipeline()
    }

    /// Follows a topic.
    ///
    /// # Errors
    /// The start is trimmed or beyond the tail, or what the log reports.
    pub async fn subscribe<V: View>(
        &self,
        topic: &Topic,
        start: Start,
        view: V,
    ) -> Result<Subscription<V>, Error> {
        Ok(self.hub.subscribe(topic, start, view).await?)
    }

    /// Follows no topic yet, and any number as one once they are added.
    #[must_use]
    pub fn merged(&self) -> Merged {
        Merged::new(self.hub.clone())
    }

    /// Follows several topics as one, in the order of the log. More can be added later. A live start is one position for
    /// all, the log's tail, so that resuming from there brings nothing that was before it in any topic.
    ///
    /// # Errors
    /// The start is trimmed or beyond the tail, or what the log reports. Of several topics that are trimmed there, the error
    /// names the position from which all can be followed.
    pub async fn merge(&self, topics: &[Topic], start: Start) -> Result<Merged, Error> {
        let start = match (start, topics) {
            (Start::Live, [_, _, ..]) => Start::After(Sequence(self.tail().0.saturating_sub(1))),
            _ => start,
        };
        let mut merged = self.merged();
        let mut trimmed = None;
        for topic in topics {
            match merged.add(topic, start).await {
                Err(log::Error::Trimmed { first }) => trimmed = trimmed.max(Some(first)),
                added => added?,
            }
        }
        match trimmed {
            Some(first) => Err(log::Error::Trimmed { first }.into()),
            None => Ok(merged),
        }
    }

    /// A page of retained records; see [`Engine::read`].
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, Error> {
        Ok(self.engine.read(topic, from, limit).await?)
    }

    /// The record at exactly `sequence`; `None` when there is none, or retention dropped it.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn record(
        &self,
        topic: &Topic,
        sequence: Sequence,
    ) -> Result<Option<Arc<Record>>, Error> {
        let limit = Limit {
            records: 1,
            bytes: 1,
        };
        match self.engine.read(topic, sequence, limit).await {
            Ok(page) => Ok(page
                .records
                .into_iter()
                .find(|record| record.sequence == sequence)),
            Err(
                log::Error::Trimmed { .. }
                | log::Error::BeyondTail { .. }
                | log::Error::Replaced { .. },
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The position of the topic's last retained record; the one before [`Bounds::first`] when none is retained.
    ///
    /// # Errors
    /// As [`Engine::last`].
    pub async fn last(&self, topic: &Topic) -> Result<Sequence, Error> {
        if let Some(last) = self.engine.last(topic).await? {
            return Ok(last.sequence);
        }
        let first = self.engine.bounds(topic).await?.first;
        Ok(Sequence(first.0.saturating_sub(1)))
    }

    /// The newest records of a topic that lie before `before`; see [`Engine::newest`].
    ///
    /// # Errors
    /// As [`Engine::newest`].
    pub async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, Error> {
        Ok(self.engine.newest(topic, before, limit).await?)
    }

    /// The log's tail as this node knows it; see [`Engine::tail`].
    #[must_use]
    pub fn tail(&self) -> Sequence {
        self.engine.tail()
    }

    /// The retained range of a topic.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        Ok(self.engine.bounds(topic).await?)
    }

    /// The position of the first retained record appended at or after `time`.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        Ok(self.engine.seek(topic, time).await?)
    }

    /// Drops a topic's records before `before`.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        Ok(self.engine.trim(topic, before).await?)
    }

    /// Topics of `space` that were ever written to, in name order, at most `limit`, after `after`.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn list(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        Ok(self.engine.topics(space, after, limit).await?)
    }
}
