//! `Chat`: the lobby. The first message names the user; it is not passed on.

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    call::into_status,
    core::{
        Error, Name,
        rooms::{Kind, Post, is_announcement},
    },
    log::{EventTime, Record, Space, Topic},
    proto::streaming::ChatMessage,
    services::{
        Core, Responses,
        check::Check,
        session::{self, Dialect, Said},
    },
};

/// The room.
const LOBBY: &str = "lobby";
/// Who says what the service says.
const SYSTEM_USER: &str = "system";
const NANOS: i64 = 1_000_000_000;

pub(super) fn chat(
    core: &Core,
    request: Request<Streaming<ChatMessage>>,
) -> Result<Response<Responses<ChatMessage>>, Status> {
    let mut check = Check::new(&"");
    let room = check.topic(Space::Room, "room", LOBBY);
    let room = check.finish(room).map_err(into_status)?;
    session::chat(core, request, Lobby { room, user: None })
}

/// The words of `streaming`.
struct Lobby {
    room: Topic,
    /// Set by the first message.
    user: Option<Name>,
}

impl Dialect for Lobby {
    type In = ChatMessage;
    type Out = ChatMessage;

    const SERVICE: &'static str = super::SERVICE;
    const ANNOUNCES: bool = true;

    fn read(&mut self, message: ChatMessage) -> Result<Said, Error> {
        let mut check = Check::new(&"");
        let Some(named) = self.user.clone() else {
            let user = check.name("user_id", message.user_id);
            let user = check.finish(user)?;
            self.user = Some(user.clone());
            return Ok(Said::Entry(self.room.clone(), user));
        };
        let user = match message.user_id.is_empty() {
            true => Some(named),
            false => check.name("user_id", message.user_id),
        };
        let key = check.optional("idempotency_key", message.idempotency_key);
        let user = check.finish(user)?;
        Ok(Said::Message(Post {
            room: self.room.clone(),
            user,
            id: None,
            kind: Kind::Text,
            content: Bytes::from(message.content),
            event_time: (message.timestamp != 0).then(|| event_time(message.timestamp)),
            key,
        }))
    }

    fn message(&self, _: &Topic, record: &Record) -> ChatMessage {
        let user_id = match is_announcement(record) {
            true => SYSTEM_USER.to_owned(),
            false => record.publisher.to_string(),
        };
        ChatMessage {
            user_id,
            content: String::from_utf8_lossy(&record.payload).into_owned(),
            timestamp: unix_nanos(record.shown_time()),
            sequence: record.sequence.0,
            idempotency_key: String::new(),
        }
    }
}

fn event_time(unix_nanos: i64) -> EventTime {
    EventTime {
        seconds: unix_nanos.div_euclid(NANOS),
        nanos: i32::try_from(unix_nanos.rem_euclid(NANOS)).unwrap_or(0),
    }
}

/// What does not fit into the number is shown as the nearest that does.
const fn unix_nanos(time: EventTime) -> i64 {
    time.seconds
        .saturating_mul(NANOS)
        .saturating_add(time.nanos as i64)
}
