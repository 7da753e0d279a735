//! `weir publish`: lines from stdin into a room.

use clap::Args;
use prost_types::Timestamp;
use serde::Deserialize;

use super::{Failure, Persistence, Target, bulk};
use crate::proto::chat::{Message, MessageType};

const AFTER_HELP: &str = "\
Examples:
  echo hello | weir publish general --user ann
  tail -f app.log | weir publish logs --user app
  weir subscribe general --after 0 --json | weir publish copy --user ann --json

With --json a line is an object with any of id, user, content, timestamp (RFC 3339), type and idempotency_key; user
defaults to --user. These are the lines that `weir subscribe --json` writes: their room and sequence are accepted, but
everything goes to the room named on the command line.

Every line gets an idempotency key: when the server is away, unacknowledged lines are sent again and stored once. The
number of messages stored is printed at the end.";

/// Store the lines of stdin as messages.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PublishArgs {
    /// The room to publish to.
    room: String,
    /// Who says it.
    #[arg(long, value_name = "NAME")]
    user: String,
    /// Lines are JSON objects.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: PublishArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let send = |messages| {
        let client = client.clone();
        async move { client.upload_all(messages).await }
    };
    bulk::store(&args.server.addr, |line| message(&args, line), send).await
}

/// A line of JSON input; room and sequence, as `weir subscribe --json` writes them, are accepted and mean nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct JsonLine {
    id: String,
    user: Option<String>,
    content: String,
    timestamp: Option<String>,
    r#type: Option<String>,
    idempotency_key: String,
    #[serde(rename = "room")]
    _room: String,
    #[serde(rename = "sequence")]
    _sequence: u64,
}

/// The message that a line stands for, or what is wrong with the line.
fn message(args: &PublishArgs, line: String) -> Result<Message, String> {
    let line = match args.json {
        true => serde_json::from_str(&line).map_err(|error| error.to_string())?,
        false => JsonLine {
            content: line,
            ..JsonLine::default()
        },
    };
    Ok(Message {
        id: line.id,
        user: line.user.unwrap_or_else(|| args.user.clone()),
        content: line.content,
        room: args.room.clone(),
        timestamp: line.timestamp.map(time).transpose()?,
        r#type: line.r#type.map_or(Ok(MessageType::Chat), kind)?.into(),
        sequence: 0,
        idempotency_key: line.idempotency_key,
    })
}

pub(super) fn time(text: String) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| format!("timestamp `{text}` is not of the form 2026-01-31T12:00:00Z"))
}

fn kind(name: String) -> Result<MessageType, String> {
    MessageType::from_str_name(&name)
        .ok_or_else(|| format!("type `{name}` is none of CHAT, JOIN, LEAVE, SYSTEM"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, format};

    fn args(extra: &[&str]) -> PublishArgs {
        use clap::Parser as _;
        let args = ["weir", "publish", "general", "--user", "ann"]
            .iter()
            .chain(extra);
        match Cli::try_parse_from(args).unwrap().command {
            Command::Publish(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_line_is_content_as_it_is() {
        let message = message(&args(&[]), " {} ".into()).unwrap();
        let fields = (
            message.user.as_str(),
            message.room.as_str(),
            message.content.as_str(),
        );
        assert_eq!(fields, ("ann", "general", " {} "));
    }

    #[test]
    fn json_fields_override_the_user_but_not_the_room() {
        let line = r#"{"user":"bob","room":"other","content":"hi","type":"JOIN","timestamp":"2023-11-14T22:13:20Z","idempotency_key":"k"}"#;
        let message = message(&args(&["--json"]), line.into()).unwrap();
        assert_eq!(
            (message.user.as_str(), message.room.as_str()),
            ("bob", "general")
        );
        assert_eq!(
            (message.r#type(), message.timestamp.unwrap().seconds),
            (MessageType::Join, 1_700_000_000)
        );
        assert_eq!(message.idempotency_key, "k");
    }

    #[test]
    fn what_subscribe_prints_publish_copies_into_its_room() {
        let original = Message {
            id: "m1".into(),
            user: "ann".into(),
            content: "a\nb".into(),
            room: "lobby".into(),
            timestamp: Some(Timestamp {
                seconds: 5,
                nanos: 1_000_000,
            }),
            ..Message::default()
        };
        let line = format::json(&Message {
            sequence: 9,
            ..original.clone()
        })
        .unwrap();
        let copy = Message {
            room: "general".into(),
            ..original
        };
        assert_eq!(message(&args(&["--json"]), line).unwrap(), copy);
    }

    #[test]
    fn a_bad_json_line_says_what_is_wrong() {
        for (line, problem) in [
            ("hi", "expected value"),
            (r#"{"contents":"x"}"#, "unknown field `contents`"),
            (r#"{"type":"SHOUT"}"#, "none of CHAT"),
            (r#"{"timestamp":"now"}"#, "not of the form"),
        ] {
            let error = message(&args(&["--json"]), line.into()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
