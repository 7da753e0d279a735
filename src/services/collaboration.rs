//! What the two ways into a shared document have in common: `streaming.v1.StreamingService/Collaborate` and
//! `weir.v1.Documents`.
//!
//! The `sync` bytes of an event are one y-protocols sync message as `y-protocols/sync` writes it, without the message type
//! that y-websocket puts before it: a number (0 step 1, 1 step 2, 2 update), then bytes with their length before them.
//!
//! A stream needs no position to resume: the state vector in the client's step 1 says what it has, and what the client has
//! and the server lacks comes as its answer to the server's step 1.

use std::{fmt::Display, sync::Arc};

use bytes::Bytes;
use futures::stream::{self, BoxStream};

use super::{
    Core,
    check::{Check, event_time, now, timestamp},
};
use crate::{
    core::{
        Error, Name, Signals,
        documents::{
            Change, Document, Joined, Kind, is_awareness,
            lib0::{Reader, write_bytes, write_uint},
        },
        hub::{Records, Subscription},
        rooms::new_id,
        signals::{Listener, Sender, Signal, SignalKind},
    },
    log::{self, EventTime, Record, Space, Topic},
    proto::streaming::v1::{CollaborationEvent, Presence, Saved, collaboration_event::Event},
};

/// The largest awareness update; it is held for every listener that is behind.
const MAX_AWARENESS_BYTES: usize = 64 * 1024;

/// A y-protocols sync message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sync {
    /// A state vector: what the sender has.
    Step1(Bytes),
    /// What the receiver lacks, as an update.
    Step2(Bytes),
    /// An update.
    Update(Bytes),
}

impl Sync {
    /// The message in `bytes`; `None` when there is none.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let kind = reader.uint()?;
        let content = bytes.slice_ref(reader.bytes()?);
        if reader.left() > 0 {
            return None;
        }
        match kind {
            0 => Some(Self::Step1(content)),
            1 => Some(Self::Step2(content)),
            2 => Some(Self::Update(content)),
            _ => None,
        }
    }

    /// As it goes over the wire.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, content) = match self {
            Self::Step1(content) => (0, content),
            Self::Step2(content) => (1, content),
            Self::Update(content) => (2, content),
        };
        let mut out = Vec::with_capacity(content.len() + 11);
        write_uint(kind, &mut out);
        write_bytes(content, &mut out);
        out
    }
}

/// An event of a client.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) document: Topic,
    pub(super) user: Name,
    /// The client's id for it; may be empty.
    pub(super) id: String,
    pub(super) event_time: Option<EventTime>,
    pub(super) key: Option<Name>,
    pub(super) content: Content,
}

/// What a client's event brings.
#[derive(Debug)]
pub(super) enum Content {
    /// Its state vector: it asks for what it lacks.
    Asks(Bytes),
    /// An update.
    Updates(Bytes),
    /// Its awareness, for the others.
    Awareness(Bytes),
}

impl Incoming {
    /// Takes an event; `path` is where it stands in the call.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn new(event: CollaborationEvent, path: &dyn Display) -> Result<Self, Error> {
        if let Some(Event::Awareness(awareness)) = &event.event
            && awareness.len() > MAX_AWARENESS_BYTES
        {
            return Err(Error::Limit {
                what: "bytes of an awareness update",
                limit: MAX_AWARENESS_BYTES,
            });
        }
        let mut check = Check::new(path);
        let document = check.topic(Space::Document, "document_id", &event.document_id);
        let user = check.name("user_id", event.user_id);
        if !event.id.is_empty() {
            check.name("id", event.id.as_str());
        }
        let key = check.optional("idempotency_key", event.idempotency_key);
        let content = content(&mut check, event.event);
        let whole = document.zip(user).zip(content);
        check.finish(whole.map(|((document, user), content)| Self {
            document,
            user,
            id: event.id,
            event_time: event.timestamp.map(event_time),
            key,
            content,
        }))
    }

    /// The event as a change by `update`.
    pub(super) fn change(self, update: Bytes) -> Change {
        Change {
            user: self.user,
            id: match self.id.is_empty() {
                true => new_id(),
                false => self.id.into(),
            },
            event_time: self.event_time,
            key: self.key,
            update,
        }
    }
}

fn content(check: &mut Check<'_>, event: Option<Event>) -> Option<Content> {
    match event {
        Some(Event::Sync(sync)) => match Sync::decode(&sync) {
            Some(Sync::Step1(state_vector)) => return Some(Content::Asks(state_vector)),
            Some(Sync::Step2(update) | Sync::Update(update)) => {
                return Some(Content::Updates(update));
            }
            None => check.refuse("sync", "sync is no y-protocols sync message"),
        },
        Some(Event::Awareness(awareness)) if is_awareness(&awareness) => {
            return Some(Content::Awareness(awareness));
        }
        Some(Event::Awareness(_)) => {
            check.refuse("awareness", "awareness is no y-protocols awareness update");
        }
        Some(Event::Presence(_) | Event::Saved(_)) => {
            check.refuse("event", "presence and saved are sent by the server only");
        }
        None => check.refuse("event", "event is required"),
    }
    None
}

/// A document that a stream follows. While it lives, its user is present; dropping it tells the others.
pub(super) struct Followed {
    document: Document,
    records: Subscription<Records>,
    listener: Listener,
    _present: Present,
}

/// What a follower hears.
pub(super) enum Heard {
    /// Updates, as records.
    Records(Vec<Arc<Record>>),
    /// The whole document, instead of records that are gone; and where it goes on.
    Whole(Bytes, log::Sequence),
    /// Something that happens now.
    Signal(Arc<Signal>),
}

impl Followed {
    /// Joins a document as `user`; returns what a client with this state vector lacks, and what the server has.
    ///
    /// # Errors
    /// As [`Document::join`], and [`Error::Limit`] when too many documents are open.
    pub(super) async fn join(
        core: &Core,
        topic: &Topic,
        (sender, user): (Sender, &Name),
        state_vector: Bytes,
    ) -> Result<(Self, Bytes, Bytes), Error> {
        let document = core.documents.open(topic)?;
        // Before anything is read, so that nothing happens in between.
        let listener = core.signals.listen(topic, sender);
        let Joined {
            missing,
            state_vector,
            records,
        } = document.join(state_vector).await?;
        let followed = Self {
            document,
            records,
            listener,
            _present: Present::new(&core.signals, topic, sender, user),
        };
        Ok((followed, missing, state_vector))
    }

    /// The document.
    pub(super) fn document(&self) -> Document {
        self.document.clone()
    }

    /// What is heard from here on, without end save by an error.
    pub(super) fn heard(self) -> BoxStream<'static, Result<Heard, Error>> {
        Box::pin(stream::unfold(Some(self), |followed| async {
            let mut followed = followed?;
            match followed.next().await {
                Ok(heard) => Some((Ok(heard), Some(followed))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn next(&mut self) -> Result<Heard, Error> {
        tokio::select! {
            signal = self.listener.next() => Ok(Heard::Signal(signal)),
            batch = self.records.next() => match batch {
                Ok(batch) => Ok(Heard::Records(batch.data)),
                // Compaction overtook this reader. What it missed is in the document.
                Err(log::Error::Trimmed { .. }) => {
                    let joined = self.document.join(Bytes::new()).await?;
                    self.records = joined.records;
                    Ok(Heard::Whole(joined.missing, self.records.cursor()))
                }
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl Heard {
    /// Everything before this position was heard; `None` when it says nothing about positions.
    pub(super) fn position(&self) -> Option<log::Sequence> {
        match self {
            Self::Records(records) => records.last().map(|record| record.sequence.next()),
            Self::Whole(_, position) => Some(*position),
            Self::Signal(_) => None,
        }
    }
}

/// Tells the others that a user came, and when it is dropped that they went.
struct Present {
    signals: Signals,
    topic: Topic,
    sender: Sender,
    user: Box<str>,
}

impl Present {
    fn new(signals: &Signals, topic: &Topic, sender: Sender, user: &Name) -> Self {
        let present = Self {
            signals: signals.clone(),
            topic: topic.clone(),
            sender,
            user: user.as_str().into(),
        };
        present.tell(SignalKind::Joined);
        present
    }

    fn tell(&self, kind: SignalKind) {
        signal(
            &self.signals,
            &self.topic,
            (self.sender, &self.user),
            kind,
            Bytes::new(),
        );
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.tell(SignalKind::Left);
    }
}

/// Passes something on to everyone in the document.
pub(super) fn signal(
    signals: &Signals,
    topic: &Topic,
    (sender, user): (Sender, &str),
    kind: SignalKind,
    payload: Bytes,
) {
    let signal = Signal {
        sender,
        user: user.into(),
        kind,
        payload,
    };
    signals.send(topic, signal);
}

/// What is heard, as events. `is_wanted` says which records.
pub(super) fn events(
    topic: &Topic,
    heard: Heard,
    is_wanted: impl Fn(&Record) -> bool,
) -> Vec<CollaborationEvent> {
    match heard {
        // What a snapshot has was heard before.
        Heard::Records(records) => records
            .iter()
            .filter(|record| Kind::of(record) == Kind::Update && is_wanted(record))
            .map(|record| update(topic, record))
            .collect(),
        Heard::Whole(missing, _) => vec![sync(topic, &Sync::Step2(missing))],
        Heard::Signal(signal) => signalled(topic, &signal).into_iter().collect(),
    }
}

/// A sync message of the server.
pub(super) fn sync(topic: &Topic, sync: &Sync) -> CollaborationEvent {
    by_server(topic, Event::Sync(sync.encode().into()))
}

/// An acknowledgement.
pub(super) fn saved(
    topic: &Topic,
    event_id: String,
    sequence: log::Sequence,
) -> CollaborationEvent {
    let saved = Saved {
        event_id,
        sequence: sequence.0,
    };
    by_server(topic, Event::Saved(saved))
}

fn by_server(topic: &Topic, event: Event) -> CollaborationEvent {
    CollaborationEvent {
        document_id: topic.name().to_owned(),
        timestamp: Some(now()),
        event: Some(event),
        ..CollaborationEvent::default()
    }
}

/// An editor's update, as the others get it.
fn update(topic: &Topic, record: &Record) -> CollaborationEvent {
    CollaborationEvent {
        id: record.id.to_string(),
        user_id: record.publisher.to_string(),
        timestamp: Some(timestamp(record.shown_time())),
        ..sync(topic, &Sync::Update(record.payload.clone()))
    }
}

fn signalled(topic: &Topic, signal: &Signal) -> Option<CollaborationEvent> {
    let user_id = signal.user.to_string();
    let event = match signal.kind {
        SignalKind::Awareness => Event::Awareness(signal.payload.clone()),
        SignalKind::Joined | SignalKind::Left => Event::Presence(Presence {
            user_id: user_id.clone(),
            joined: signal.kind == SignalKind::Joined,
        }),
        SignalKind::Typing => return None,
    };
    Some(CollaborationEvent {
        user_id,
        ..by_server(topic, event)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sync_messages_read_back(kind in 0..3u8, content: Vec<u8>) {
            let content = Bytes::from(content);
            let sync = match kind {
                0 => Sync::Step1(content),
                1 => Sync::Step2(content),
                _ => Sync::Update(content),
            };
            prop_assert_eq!(Sync::decode(&sync.encode().into()), Some(sync));
        }

        #[test]
        fn no_bytes_are_a_sync_message_by_halves(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            if let Some(sync) = Sync::decode(&bytes) {
                // A length may be written longer than it has to be.
                prop_assert!(sync.encode().len() <= bytes.len());
            }
        }
    }
}
