//! Rooms: what is said where, by whom. One room is one topic, whichever service it is entered through.

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Error, Name, Pipeline, Topics,
    hub::{Start, Subscription, View},
};
use crate::{
    log::{EventTime, Limit, NewRecord, Page, Record, Sequence, Space, Timestamp, Topic},
    telemetry::trace,
};

/// Bytes of a page of history after which it takes no further message.
const HISTORY_BYTES: usize = 1024 * 1024;

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
    /// An image of a user; the content says where.
    Image = 4,
    /// A file of a user; the content says which.
    File = 5,
}

impl Kind {
    /// The kind of a stored record; what a newer version wrote counts as text.
    #[must_use]
    pub const fn of(record: &Record) -> Self {
        match record.kind {
            1 => Self::Join,
            2 => Self::Leave,
            3 => Self::System,
            4 => Self::Image,
            5 => Self::File,
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

/// A room as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomInfo {
    /// The room.
    pub room: Topic,
    /// Its first retained position.
    pub first: Sequence,
    /// The position of its last message.
    pub last: Sequence,
}

/// All rooms. Cheap to clone.
#[derive(Clone)]
pub struct Rooms {
    topics: Topics,
}

impl Rooms {
    /// The rooms among `topics`.
    #[must_use]
    pub const fn new(topics: Topics) -> Self {
        Self { topics }
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
        let (id, appended) = self.topics.publish(self.record(post)).await?;
        Ok(Posted {
            id,
            sequence: appended.sequence,
            time: appended.time,
        })
    }

    /// A pipeline for many messages; feed it with [`Self::record`].
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        self.topics.pipeline()
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

    /// Rooms that were ever written to, in name order, at most `limit`, after `after`.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn list(&self, after: Option<&Topic>, limit: usize) -> Result<Vec<RoomInfo>, Error> {
        let rooms = self.topics.list(Space::Room, after, limit).await?;
        let mut infos = Vec::with_capacity(rooms.len());
        for room in rooms {
            infos.push(RoomInfo {
                first: self.topics.bounds(&room).await?.first,
                last: self.topics.last(&room).await?,
                room,
            });
        }
        Ok(infos)
    }

    /// A page of a room's messages after `after`, at most `messages`; zero begins with the first retained one.
    ///
    /// # Errors
    /// The position is trimmed or beyond the tail, or what the log reports.
    pub async fn history(
        &self,
        room: &Topic,
        after: Sequence,
        messages: usize,
    ) -> Result<Page, Error> {
        let from = match after {
            Sequence(0) => self.topics.bounds(room).await?.first,
            after => after.next(),
        };
        let limit = Limit {
            records: messages,
            bytes: HISTORY_BYTES,
        };
        self.topics.read(room, from, limit).await
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
        self.topics.subscribe(room, start, view).await
    }
}

/// The record by which a room is told that a user came ([`Kind::Join`]) or went: by the user, in words, so that every
/// service can show it as it is. [`is_announcement`] knows it again.
#[must_use]
pub fn announcement(room: &Topic, user: &str, kind: Kind) -> NewRecord {
    NewRecord {
        topic: room.clone(),
        publisher: user.into(),
        id: new_id(),
        kind: kind as u16,
        event_time: None,
        key: None,
        trace: trace::current(),
        payload: Bytes::from(announced(user, kind)),
    }
}

/// Whether a record says in the service's words that a user came or went; users may post such kinds with words of their own.
#[must_use]
pub fn is_announcement(record: &Record) -> bool {
    let kind = Kind::of(record);
    matches!(kind, Kind::Join | Kind::Leave)
        && record.payload == announced(&record.publisher, kind).as_bytes()
}

fn announced(user: &str, kind: Kind) -> String {
    match kind {
        Kind::Leave => format!("{user} left the chat"),
        _ => format!("{user} joined the chat"),
    }
}

/// A fresh message id, sortable by time.
#[must_use]
pub fn new_id() -> Box<str> {
    format!("msg_{}", Uuid::now_v7().simple()).into()
}
