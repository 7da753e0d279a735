//! Between the messages of `chat.proto` and the core.

use std::fmt::Display;

use super::super::{
    check::{Check, event_time, now, start, timestamp},
    live::frame,
};
use crate::{
    core::{
        Error, Name,
        hub::{Encoding, Start},
        instance::Measurement,
        rooms::{Kind, Post, Posted},
    },
    log::{Record, Space, Topic},
    proto::chat::{
        Message, MessageType, Metric, SendMessageRequest, SendMessageResponse, SubscribeRequest,
    },
};
use bytes::{Bytes, BytesMut};

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

const fn message_type(kind: Kind) -> MessageType {
    match kind {
        Kind::Text | Kind::Image | Kind::File => MessageType::Chat,
        Kind::Join => MessageType::Join,
        Kind::Leave => MessageType::Leave,
        Kind::System => MessageType::System,
    }
}

/// Where a subscription goes and begins.
pub(super) struct Subscribe {
    pub(super) room: Topic,
    pub(super) user: Name,
    pub(super) start: Start,
}

impl TryFrom<SubscribeRequest> for Subscribe {
    type Error = Error;

    fn try_from(request: SubscribeRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let room = check.topic(Space::Room, "room", &request.room);
        let user = check.name("user", request.user);
        let start = start(request.after_sequence);
        let whole = room.zip(user);
        check.finish(whole.map(|(room, user)| Self { room, user, start }))
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
    let room = check.topic(Space::Room, "room", &message.room);
    let id = check.optional("id", message.id);
    let key = check.optional("idempotency_key", message.idempotency_key);
    let kind = kind(&mut check, message.r#type);
    let whole = user.zip(room).zip(kind);
    check.finish(whole.map(|((user, room), kind)| Post {
        room,
        user,
        id,
        kind,
        content: Bytes::from(message.content),
        event_time: message.timestamp.map(event_time),
        key,
    }))
}

fn kind(check: &mut Check<'_>, number: i32) -> Option<Kind> {
    match MessageType::try_from(number) {
        Ok(MessageType::Chat) => Some(Kind::Text),
        Ok(MessageType::Join) => Some(Kind::Join),
        Ok(MessageType::Leave) => Some(Kind::Leave),
        Ok(MessageType::System) => Some(Kind::System),
        Err(_) => {
            check.refuse("type", format!("type {number} is not known"));
            None
        }
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
