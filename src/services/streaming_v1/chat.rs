//! `Chat`: rooms that are told who comes and goes, and who is typing.

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::{
    core::{
        Error,
        appender::Appended,
        rooms::{Kind, Post, is_announcement},
    },
    log::{Record, Space, Topic},
    proto::streaming::v1::{ChatMessage, ChatMessageType},
    services::{
        Core, Responses,
        check::{Check, event_time, now, timestamp},
        session::{self, Dialect, Said},
    },
};

/// Who says what the service says.
const SYSTEM_USER: &str = "system";

pub(super) fn chat(
    core: &Core,
    request: Request<Streaming<ChatMessage>>,
) -> Result<Response<Responses<ChatMessage>>, Status> {
    session::chat(core, request, Rooms)
}

/// The words of `streaming.v1`.
struct Rooms;

impl Dialect for Rooms {
    type In = ChatMessage;
    type Out = ChatMessage;

    const SERVICE: &'static str = super::SERVICE;
    const ANNOUNCES: bool = true;
    const HEARS_TYPING: bool = true;

    fn read(&mut self, message: ChatMessage) -> Result<Said, Error> {
        read(message)
    }

    /// A first message without content only joins.
    fn says(&self, entering: &Post) -> bool {
        !entering.content.is_empty()
    }

    fn message(&self, room: &Topic, record: &Record) -> ChatMessage {
        let user = record.publisher.to_string();
        let (user_id, content) = match is_announcement(record) {
            true => (SYSTEM_USER.to_owned(), announcement(record)),
            false => (user, String::from_utf8_lossy(&record.payload).into_owned()),
        };
        ChatMessage {
            id: record.id.to_string(),
            user_id,
            room_id: room.name().to_owned(),
            content,
            timestamp: Some(timestamp(record.shown_time())),
            r#type: message_type(Kind::of(record)).into(),
            sequence: record.sequence.0,
            idempotency_key: String::new(),
        }
    }

    fn welcome(&self, room: &Topic, user: &str, joined: Option<Appended>) -> Option<ChatMessage> {
        let time = joined.map_or_else(now, |joined| timestamp(joined.time.into()));
        Some(ChatMessage {
            id: Uuid::now_v7().to_string(),
            user_id: SYSTEM_USER.into(),
            room_id: room.name().to_owned(),
            content: joined_text(user),
            timestamp: Some(time),
            r#type: ChatMessageType::System.into(),
            sequence: joined.map_or(0, |joined| joined.sequence.0),
            idempotency_key: String::new(),
        })
    }

    fn typing(&self, room: &Topic, user: &str) -> Option<ChatMessage> {
        Some(ChatMessage {
            user_id: user.to_owned(),
            room_id: room.name().to_owned(),
            timestamp: Some(now()),
            r#type: ChatMessageType::Typing.into(),
            ..ChatMessage::default()
        })
    }
}

fn joined_text(user: &str) -> String {
    format!("User {user} joined the chat")
}

fn announcement(record: &Record) -> String {
    match Kind::of(record) {
        Kind::Leave => format!("User {} left the chat", record.publisher),
        _ => joined_text(&record.publisher),
    }
}

const fn message_type(kind: Kind) -> ChatMessageType {
    match kind {
        Kind::Text => ChatMessageType::Text,
        Kind::Image => ChatMessageType::Image,
        Kind::File => ChatMessageType::File,
        Kind::Join | Kind::Leave | Kind::System => ChatMessageType::System,
    }
}

fn read(message: ChatMessage) -> Result<Said, Error> {
    let mut check = Check::new(&"");
    let user = check.name("user_id", message.user_id);
    let room = check.topic(Space::Room, "room_id", &message.room_id);
    let id = check.optional("id", message.id);
    let key = check.optional("idempotency_key", message.idempotency_key);
    let kind = match ChatMessageType::try_from(message.r#type) {
        Ok(ChatMessageType::Unspecified | ChatMessageType::Text) => Some(Some(Kind::Text)),
        Ok(ChatMessageType::Image) => Some(Some(Kind::Image)),
        Ok(ChatMessageType::File) => Some(Some(Kind::File)),
        Ok(ChatMessageType::Typing) => Some(None),
        Ok(ChatMessageType::System) => {
            check.refuse("type", "type SYSTEM is what the service says");
            None
        }
        Err(_) => {
            check.refuse("type", format!("type {} is not known", message.r#type));
            None
        }
    };
    let whole = user.zip(room).zip(kind);
    let ((user, room), kind) = check.finish(whole)?;
    let Some(kind) = kind else {
        return Ok(Said::Typing(room, user));
    };
    Ok(Said::Message(Post {
        room,
        user,
        id,
        kind,
        content: Bytes::from(message.content),
        event_time: message.timestamp.map(event_time),
        key,
    }))
}
