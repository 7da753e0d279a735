//! Rooms: what is said where, by whom. One room is one topic, whichever service it is entered through.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Appender, Error, Hub, Name, Pipeline,
    hub::{Start, Subscription, View},
};
use crate::{
    log::{Engine, EventTime, Limit, NewRecord, Record, Sequence, Space, Timestamp, Topic},
    telemetry::{Traces, trace},
};

/// What kind of thing was said. The numbers are stored: never change one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Text of a user.
    Text = 0,
    /// A user came.
    Join = 1,
    /// A user went.
    Leave = 2,
    /// Said by the service.
    System = 3,
}

impl Kind {
    /// The kind of a stored record; what a newer version wrote counts as text.
    #[must_use]
    pub const fn of(record: &Record) -> Self {
        match record.kind {
            1 => Self::Join,
            2 => Self::Leave,
            3 => Self::System,
            _ => Self::Text,
        }
    }
}

/// A message for a room.
#[derive(Debug, Clone)]
pub struct Post {
    /// The room.
    pub room: Topic,
    /// Who says it.
    pub user: Name,
    /// The user's own id for it; made when absent.
    pub id: Option<Name>,
    /// What kind it is.
    pub kind: Kind,
    /// What is said.
    pub content: Bytes,
    /// When the user says it was said.
    pub event_time: Option<EventTime>,
    /// Its idempotency key.
    pub key: Option<Name>,
}

/// A message that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// Its id.
    pub id: Box<str>,
    /// Its position in the room.
    pub sequence: Sequence,
    /// When it was stored.
    pub time: Timestamp,
}

/// All rooms. Cheap to clone.
#[derive(Clone)]
pub struct Rooms {
    engine: Arc<dyn Engine>,
    appender: Appender,
    hub: Hub,
}

impl Rooms {
    /// The rooms of the log behind `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, hub: Hub, traces: Traces) -> Self {
        Self {
            appender: Appender::new(Arc::clone(&engine), traces),
            engine,
            hub,
        }
    }

    /// The room called `name`.
    ///
    /// # Errors
    /// The name is blank or too long.
    pub fn room(name: &str) -> Result<Topic, crate::log::TopicError> {
        Topic::new(Space::Room, name)
    }

    /// Stores a message; returns when it is durable. With a key that repeats an earlier message it returns that one.
    ///
    /// # Errors
    /// [`Error::KeyConflict`], or what the log reports.
    pub async fn post(&self, post: Post) -> Result<Posted, Error> {
        let room = post.room.clone();
        let record = self.record(post);
        let id = record.id.clone();
        let appended = self.appender.append(record).await?;
        let first = match appended.is_duplicate {
            true => self.first_id(&room, appended.sequence).await?,
            false => None,
        };
        Ok(Posted {
            id: first.unwrap_or(id),
            sequence: appended.sequence,
            time: appended.time,
        })
    }

    /// A pipeline for many messages; feed it with [`Self::record`].
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        self.appender.pipeline()
    }

    /// The record of a message, under the current trace.
    #[must_use]
    pub fn record(&self, post: Post) -> NewRecord {
        let id = post.id.map_or_else(new_id, Into::into);
        NewRecord {
            topic: post.room,
            publisher: post.user.into(),
            id,
            kind: post.kind as u16,
            event_time: post.event_time,
            key: post.key.map(Into::into),
            trace: trace::current(),
            payload: post.content,
        }
    }

    /// Follows a room.
    ///
    /// # Errors
    /// The start is trimmed or beyond the tail, or what the log reports.
    pub async fn subscribe<V: View>(
        &self,
        room: &Topic,
        start: Start,
        view: V,
    ) -> Result<Subscription<V>, Error> {
        Ok(self.hub.subscribe(room, start, view).await?)
    }

    /// The id of the record that a repeated key stands for; `None` when retention dropped it meanwhile.
    async fn first_id(&self, room: &Topic, sequence: Sequence) -> Result<Option<Box<str>>, Error> {
        let limit = Limit {
            records: 1,
            bytes: 1,
        };
        match self.engine.read(room, sequence, limit).await {
            Ok(page) => Ok(page
                .records
                .first()
                .filter(|record| record.sequence == sequence)
                .map(|record| record.id.clone())),
            Err(crate::log::Error::Trimmed { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A fresh message id, sortable by time.
#[must_use]
pub fn new_id() -> Box<str> {
    format!("msg_{}", Uuid::now_v7().simple()).into()
}
