//! `weir publish`: lines from stdin into a room.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use prost_types::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc::Receiver;

use super::{Failure, Persistence, Target, input, input::Batch};
use crate::{
    client::Client,
    proto::chat::{Message, MessageType},
};

/// Messages of one call at most.
const CALL_LINES: usize = 1000;

/// No further batch joins a call that holds this many bytes.
const CALL_BYTES: usize = 2 * 1024 * 1024;

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
    let mut lines = input::stdin()?;
    let mut publisher = Publisher {
        client,
        args,
        stored: 0,
        shows_progress: io::stderr().is_terminal(),
    };
    while let Some(call) = next_call(&mut lines).await {
        publisher.publish(call).await?;
    }
    Ok(writeln!(io::stdout(), "{}", publisher.stored)?)
}

/// What goes into one call: lines, and what is wrong with the line after them.
#[derive(Default)]
struct Call {
    first: u64,
    lines: Vec<String>,
    failure: Option<Failure>,
}

impl Call {
    fn push(&mut self, batch: Result<Batch, Failure>) {
        match batch {
            Ok(batch) => {
                self.first = if self.lines.is_empty() {
                    batch.first
                } else {
                    self.first
                };
                self.lines.extend(batch.lines);
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn is_full(&self) -> bool {
        let bytes: usize = self.lines.iter().map(String::len).sum();
        self.failure.is_some() || self.lines.len() >= CALL_LINES || bytes >= CALL_BYTES
    }
}

/// Waits for lines, then takes all that are there up to the limits; `None` at the end.
async fn next_call(lines: &mut Receiver<Result<Batch, Failure>>) -> Option<Call> {
    let mut call = Call::default();
    call.push(lines.recv().await?);
    while !call.is_full() {
        match lines.try_recv() {
            Ok(batch) => call.push(batch),
            Err(_) => break,
        }
    }
    Some(call)
}

struct Publisher {
    client: Client,
    args: PublishArgs,
    stored: u64,
    shows_progress: bool,
}

impl Publisher {
    /// Stores a call's lines; those before a bad one too.
    async fn publish(&mut self, call: Call) -> Result<(), Failure> {
        let (messages, failure) = self.messages(call.first, call.lines);
        let last = call.first + messages.len() as u64;
        if !messages.is_empty() {
            let outcome = self.client.upload_all(messages).await;
            self.stored += outcome.map_err(|status| {
                let lines = format!(
                    "{} stored, lines {} to {} not acknowledged",
                    self.stored,
                    call.first,
                    last - 1
                );
                Failure::status(&self.args.server.addr, &status).context(&lines)
            })?;
            self.progress();
        }
        let failure = failure.or(call.failure);
        failure.map_or(Ok(()), |failure| {
            Err(failure.context(&format!("{} stored", self.stored)))
        })
    }

    /// The messages up to the first bad line, and what is wrong with it.
    fn messages(&self, first: u64, lines: Vec<String>) -> (Vec<Message>, Option<Failure>) {
        let mut messages = Vec::with_capacity(lines.len());
        for (number, line) in (first..).zip(lines) {
            match message(&self.args, line) {
                Ok(message) => messages.push(message),
                Err(problem) => {
                    return (
                        messages,
                        Some(Failure::failed(format!("line {number}: {problem}"))),
                    );
                }
            }
        }
        (messages, None)
    }

    fn progress(&self) {
        if self.shows_progress {
            // Progress is not worth failing for.
            let _ = write!(io::stderr(), "\r{} stored", self.stored);
        }
    }
}

impl Drop for Publisher {
    /// Leaves the line that the progress is on.
    fn drop(&mut self) {
        if self.shows_progress && self.stored > 0 {
            let _ = writeln!(io::stderr());
        }
    }
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

fn time(text: String) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| format!("timestamp `{text}` is not of the form 2026-01-31T12:00:00Z"))
}

fn kind(name: String) -> Result<MessageType, String> {
    MessageType::from_str_name(&name)
        .ok_or_else(|| format!("type `{name}` is none of CHAT, JOIN, LEAVE, SYSTEM"))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

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

    fn batch(first: u64, lines: usize, length: usize) -> Result<Batch, Failure> {
        Ok(Batch {
            first,
            lines: vec!["x".repeat(length); lines],
        })
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

    #[tokio::test]
    async fn a_call_takes_what_is_there_within_its_limits() {
        let (sender, mut lines) = mpsc::channel(9);
        for call in 0..5 {
            sender.send(batch(1 + call * 250, 250, 1)).await.unwrap();
        }
        let call = next_call(&mut lines).await.unwrap();
        assert_eq!((call.first, call.lines.len()), (1, 1000));
        let call = next_call(&mut lines).await.unwrap();
        assert_eq!((call.first, call.lines.len()), (1001, 250));
        for _ in 0..3 {
            sender.send(batch(1, 1, CALL_BYTES / 2)).await.unwrap();
        }
        assert_eq!(next_call(&mut lines).await.unwrap().lines.len(), 2);
        sender.send(Err(Failure::failed("line 9"))).await.unwrap();
        drop(sender);
        let call = next_call(&mut lines).await.unwrap();
        assert_eq!((call.lines.len(), call.failure.is_some()), (1, true));
        assert!(next_call(&mut lines).await.is_none());
    }
}
