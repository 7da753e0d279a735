//! `weir events`: what happens to a user.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use prost_types::{Any, Timestamp};
use serde::Serialize;

use super::{
    Failure, Persistence, Target,
    follow::FollowArgs,
    format::{hex, plain, to_seconds},
};
use crate::{
    log,
    proto::{
        streaming::v1::{StreamUserEventsRequest, UserEvent, UserEventType},
        weir::v1::PublishUserEventRequest,
    },
};

const AFTER_HELP: &str = "\
Examples:
  weir events ann                            what happens to ann from now on
  weir events ann --type login,logout        only these types
  weir events ann --since 1h                 the last hour, then live
  weir events ann --after 0 --json | jq .type
  weir events ann --publish login            say that ann came in

Types: login, logout, profile-update, password-change. Columns: sequence, time (UTC), type, id. A broken connection is
repaired and continues after the last event. --publish prints the event's sequence.";

/// The types as they are written here.
const TYPES: [(&str, UserEventType); 5] = [
    ("unspecified", UserEventType::Unspecified),
    ("login", UserEventType::Login),
    ("logout", UserEventType::Logout),
    ("profile-update", UserEventType::ProfileUpdate),
    ("password-change", UserEventType::PasswordChange),
];

/// Follow a user's events, or publish one.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct EventsArgs {
    /// The user.
    user: String,
    /// Only events of these types.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = kind)]
    types: Vec<UserEventType>,
    /// Start this long ago, as in 90s or 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "after")]
    since: Option<Duration>,
    /// Publish an event of this type instead.
    #[arg(long, value_name = "TYPE", value_parser = kind,
        conflicts_with_all = ["types", "since", "after", "count", "json"])]
    publish: Option<UserEventType>,
    /// With --publish: a key under which repeating the command is harmless.
    #[arg(long, value_name = "KEY", requires = "publish")]
    key: Option<String>,
    #[command(flatten)]
    follow: FollowArgs,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: EventsArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let addr = &args.server.addr;
    if let Some(kind) = args.publish {
        let request = PublishUserEventRequest {
            user_id: args.user,
            r#type: kind.into(),
            idempotency_key: args.key.unwrap_or_default(),
            ..PublishUserEventRequest::default()
        };
        let published = client.publish_user_event(request).await;
        let published = published.map_err(|status| Failure::status(addr, &status))?;
        return Ok(writeln!(io::stdout(), "{}", published.sequence)?);
    }
    let events = client.user_events(StreamUserEventsRequest {
        user_id: args.user,
        event_types: args.types.into_iter().map(Into::into).collect(),
        start_time: args.since.map(ago),
        after_sequence: args.follow.after,
    });
    let columns = |event: &UserEvent| vec![columns(event)];
    let json = |event: &UserEvent| Ok(vec![json(event)?]);
    args.follow.print(events, addr, columns, json).await
}

fn ago(age: Duration) -> Timestamp {
    let time = log::EventTime::from(log::Timestamp::now().before(age));
    Timestamp {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}

fn kind(text: &str) -> Result<UserEventType, String> {
    let wanted = text.to_lowercase().replace('_', "-");
    let found = TYPES.into_iter().find(|(name, _)| *name == wanted);
    found.map(|(_, kind)| kind).ok_or_else(|| {
        let names: Vec<_> = TYPES.iter().skip(1).map(|(name, _)| *name).collect();
        format!("none of {}", names.join(", "))
    })
}

/// The type's name, or its number when this program does not know it.
fn kind_name(number: i32) -> String {
    let known = TYPES.iter().find(|(_, kind)| i32::from(*kind) == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

fn columns(event: &UserEvent) -> String {
    let time = to_seconds(event.timestamp);
    let (kind, id) = (kind_name(event.r#type), plain(&event.id));
    format!("{}\t{time}\t{kind}\t{id}", event.sequence)
}

/// An event as one line of JSON.
#[derive(Serialize)]
struct JsonEvent<'a> {
    sequence: u64,
    id: &'a str,
    user: &'a str,
    r#type: String,
    /// RFC 3339, UTC.
    timestamp: Option<String>,
    data: Option<JsonAny<'a>>,
}

/// A packed message: its type and its bytes in hexadecimal.
#[derive(Serialize)]
pub(super) struct JsonAny<'a> {
    type_url: &'a str,
    value: String,
}

impl<'a> From<&'a Any> for JsonAny<'a> {
    fn from(any: &'a Any) -> Self {
        Self {
            type_url: &any.type_url,
            value: hex(&any.value),
        }
    }
}

fn json(event: &UserEvent) -> serde_json::Result<String> {
    serde_json::to_string(&JsonEvent {
        sequence: event.sequence,
        id: &event.id,
        user: &event.user_id,
        r#type: kind_name(event.r#type),
        timestamp: event.timestamp.map(|time| time.to_string()),
        data: event.data.as_ref().map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_written() {
        for (name, of) in TYPES {
            assert_eq!(kind(name), Ok(of));
            assert_eq!(kind_name(of.into()), name);
        }
        assert_eq!(kind("PROFILE_UPDATE"), Ok(UserEventType::ProfileUpdate));
        assert!(kind("shout").unwrap_err().starts_with("none of login, "));
        assert_eq!(kind_name(77), "77");
    }

    #[test]
    fn an_event_is_one_line() {
        let event = UserEvent {
            id: "a\tb".into(),
            user_id: "ann".into(),
            r#type: 1,
            timestamp: Some(Timestamp {
                seconds: 0,
                nanos: 5,
            }),
            data: Some(Any {
                type_url: "t".into(),
                value: vec![0, 255],
            }),
            sequence: 7,
        };
        assert_eq!(columns(&event), "7\t1970-01-01T00:00:00Z\tlogin\ta\\tb");
        let line: serde_json::Value = serde_json::from_str(&json(&event).unwrap()).unwrap();
        assert_eq!(line["data"]["value"], "00ff");
        assert_eq!(
            (&line["user"], &line["type"]),
            (&"ann".into(), &"login".into())
        );
    }
}
