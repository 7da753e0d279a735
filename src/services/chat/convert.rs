//! Between the messages of `chat.proto` and the core.

use std::fmt::Display;

use bytes::{Bytes, BytesMut};
use prost_types::Timestamp;

use super::super::live::frame;
use crate::{
    core::{
        Error, Name, Violation,
        hub::{Encoding, Start},
        instance::Measurement,
        rooms::{Kind, Post, Posted, Rooms},
    },
    log::{self, EventTime, Record, Sequence, Topic, TopicError},
    proto::chat::{
        Message, MessageType, Metric, SendMessageRequest, SendMessageResponse, SubscribeRequest,
    },
};

/// The user that the service itself speaks as.
const SYSTEM_USER: &str = "System";
/// The id of what is no record.
const SYSTEM_ID: &str = "system";

/// Records of a room as `chat.Message`.
pub(super) struct ChatMessages;

impl Encoding for ChatMessages {
    fn encode(topic: &Topic, record: &Record, out: &mut BytesMut) {
        frame(&message(topic, record), out);
    }
}

/// A record as it is delivered.
pub(super) fn message(room: &Topic, record: &Record) -> Message {
    Message {
        id: record.id.to_string(),
        user: record.publisher.to_string(),
        // Content came in as a proto string, so it is UTF-8; another service's bytes would show as replacement characters.
        content: String::from_utf8_lossy(&record.payload).into_owned(),
        room: room.name().to_owned(),
        timestamp: Some(timestamp(record.shown_time())),
        r#type: message_type(Kind::of(record)).into(),
        sequence: record.sequence.0,
        idempotency_key: String::new(),
    }
}

/// The first message of a subscription.
pub(super) fn welcome(request: &SubscribeRequest) -> Message {
    Message {
        id: SYSTEM_ID.into(),
        user: SYSTEM_USER.into(),
        content: format!("Welcome to room {}, {}!", request.room, request.user),
        room: request.room.clone(),
        timestamp: Some(now()),
        r#type: MessageType::System.into(),
        ..Message::default()
    }
}

pub(super) fn now() -> Timestamp {
    timestamp(log::Timestamp::now().into())
}

fn timestamp(time: EventTime) -> Timestamp {
    Timestamp {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}

const fn message_type(kind: Kind) -> MessageType {
    match kind {
        Kind::Text => MessageType::Chat,
        Kind::Join => MessageType::Join,
        Kind::Leave => MessageType::Leave,
        Kind::System => MessageType::System,
    }
}

/// Where a subscription goes and begins.
pub(super) struct Subscribe {
    pub(super) room: Topic,
    pub(super) start: Start,
}

impl TryFrom<SubscribeRequest> for Subscribe {
    type Error = Error;

    fn try_from(request: SubscribeRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let room = check.room(&request.room);
        check.name("user", request.user);
        let start = match request.after_sequence {
            None => Start::Live,
            Some(after) => Start::After(Sequence(after)),
        };
        match room.filter(|_| check.violations.is_empty()) {
            Some(room) => Ok(Self { room, start }),
            None => Err(Error::Invalid(check.violations)),
        }
    }
}

impl TryFrom<SendMessageRequest> for Post {
    type Error = Error;

    fn try_from(request: SendMessageRequest) -> Result<Self, Error> {
        let message = Message {
            user: request.user,
            content: request.content,
            room: request.room,
            idempotency_key: request.idempotency_key,
            ..Message::default()
        };
        post(message, &"")
    }
}

/// A message as something to post; `path` is where it stands in the call, for what is wrong with it.
pub(super) fn post(message: Message, path: &dyn Display) -> Result<Post, Error> {
    let mut check = Check::new(path);
    let user = check.name("user", message.user);
    let room = check.room(&message.room);
    let id = check.optional("id", message.id);
    let key = check.optional("idempotency_key", message.idempotency_key);
    let kind = check.kind(message.r#type);
    match (user, room, kind) {
        (Some(user), Some(room), Some(kind)) if check.violations.is_empty() => Ok(Post {
            room,
            user,
            id,
            kind,
            content: Bytes::from(message.content),
            event_time: message.timestamp.map(|time| EventTime {
                seconds: time.seconds,
                nanos: time.nanos,
            }),
            key,
        }),
        _ => Err(Error::Invalid(check.violations)),
    }
}

/// Collects every violation of a message.
struct Check<'a> {
    path: &'a dyn Display,
    violations: Vec<Violation>,
}

impl<'a> Check<'a> {
    const fn new(path: &'a dyn Display) -> Self {
        Self {
            path,
            violations: Vec::new(),
        }
    }

    fn violated(&mut self, field: &str, error: TopicError) {
        let description = match error {
            TopicError::Blank => format!("{field} is required"),
            error => format!("{field} {error}"),
        };
        let violation = Violation::new(format!("{}{field}", self.path), description);
        self.violations.push(violation);
    }

    fn name(&mut self, field: &str, text: String) -> Option<Name> {
        Name::new(text)
            .map_err(|error| self.violated(field, error))
            .ok()
    }

    /// A name that may be absent: empty. Blank but not empty is as wrong as elsewhere.
    fn optional(&mut self, field: &str, text: String) -> Option<Name> {
        if text.is_empty() {
            return None;
        }
        match Name::new(text) {
            Ok(name) => Some(name),
            Err(error) => {
                let violation =
                    Violation::new(format!("{}{field}", self.path), format!("{field} {error}"));
                self.violations.push(violation);
                None
            }
        }
    }

    fn room(&mut self, text: &str) -> Option<Topic> {
        Rooms::room(text)
            .map_err(|error| self.violated("room", error))
            .ok()
    }

    fn kind(&mut self, number: i32) -> Option<Kind> {
        let kind = match MessageType::try_from(number) {
            Ok(MessageType::Chat) => Kind::Text,
            Ok(MessageType::Join) => Kind::Join,
            Ok(MessageType::Leave) => Kind::Leave,
            Ok(MessageType::System) => Kind::System,
            Err(_) => {
                let text = format!("type {number} is not known");
                let violation = Violation::new(format!("{}type", self.path), text);
                self.violations.push(violation);
                return None;
            }
        };
        Some(kind)
    }
}

impl From<Posted> for SendMessageResponse {
    fn from(posted: Posted) -> Self {
        Self {
            message_id: posted.id.into(),
            timestamp: Some(timestamp(posted.time.into())),
            sequence: posted.sequence.0,
        }
    }
}

impl From<Measurement> for Metric {
    fn from(measured: Measurement) -> Self {
        let labels = measured.labels.into_iter();
        Self {
            name: measured.name.to_owned(),
            value: measured.value,
            timestamp: Some(timestamp(measured.time.into())),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
        }
    }
}
