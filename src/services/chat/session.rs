//! `Chat`: every message is echoed once it is stored, and the server says that it is alive.

use std::time::Duration;

use super::convert;
use crate::{
    core::Error,
    log::{Record, Topic},
    proto::chat::{Message, MessageType},
    services::{
        check::now,
        session::{Dialect, Said, Stored},
    },
};

/// How often the stream hears that the server is alive.
const ALIVE: Duration = Duration::from_secs(5);

/// The words of `chat.ChatService`.
pub(super) struct Echoes;

impl Dialect for Echoes {
    type In = Message;
    type Out = Message;

    const SERVICE: &'static str = super::SERVICE;
    const ANNOUNCES: bool = false;
    const ALIVE: Option<Duration> = Some(ALIVE);

    fn read(&mut self, message: Message) -> Result<Said, Error> {
        convert::post(message, &"").map(Said::Message)
    }

    fn message(&self, room: &Topic, record: &Record) -> Message {
        convert::message(room, record)
    }

    fn stored(&self, stored: Stored) -> Option<Message> {
        let id = stored.id.as_ref().map_or("", |id| id.as_str());
        Some(Message {
            id: format!("echo_{id}"),
            content: format!("Echo: {}", String::from_utf8_lossy(&stored.content)),
            room: stored.room.name().to_owned(),
            ..server_message()
        })
    }

    fn alive(&self) -> Option<Message> {
        let now = now();
        Some(Message {
            id: format!("server_{}", now.seconds),
            content: "Server is alive!".into(),
            ..server_message()
        })
    }
}

fn server_message() -> Message {
    Message {
        user: "Server".into(),
        timestamp: Some(now()),
        r#type: MessageType::System.into(),
        ..Message::default()
    }
}
