//! How messages look: lines for people, JSON for programs.

use std::{borrow::Cow, env, ffi::OsString, io, io::IsTerminal as _};

use prost_types::Timestamp;
use serde::Serialize;

use crate::proto::chat::{Message, MessageType};

/// A message as one line of JSON.
#[derive(Debug, Serialize)]
struct JsonMessage<'a> {
    sequence: u64,
    id: &'a str,
    user: &'a str,
    content: &'a str,
    room: &'a str,
    /// RFC 3339, UTC.
    timestamp: Option<String>,
    r#type: &'a str,
}

/// All fields of `message` as a JSON object, without a line break.
pub(super) fn json(message: &Message) -> serde_json::Result<String> {
    serde_json::to_string(&JsonMessage {
        sequence: message.sequence,
        id: &message.id,
        user: &message.user,
        content: &message.content,
        room: &message.room,
        timestamp: message.timestamp.map(|time| time.to_string()),
        r#type: message.r#type().as_str_name(),
    })
}

/// Sequence, time, user and content, separated by tabs.
pub(super) fn columns(message: &Message) -> String {
    let time = to_seconds(message.timestamp);
    let (user, content) = (plain(&message.user), plain(&message.content));
    format!("{}\t{time}\t{user}\t{content}", message.sequence)
}

/// Time of day (UTC), user and content.
pub(super) fn spoken(message: &Message, paint: Paint) -> String {
    let time = seconds_of(message)
        .map(|time| time.to_string())
        .unwrap_or_default();
    let time = time.split_once('T').map_or("--:--:--Z", |(_, time)| time);
    let (user, content) = (plain(&message.user), plain(&message.content));
    match message.r#type() {
        MessageType::Chat => format!("{} {}: {content}", paint.dim(time), paint.bold(&user)),
        MessageType::Join | MessageType::Leave | MessageType::System => {
            paint.dim(&format!("{time} * {content}"))
        }
    }
}

/// A time to the second, as columns show it.
pub(super) fn to_seconds(time: Option<Timestamp>) -> String {
    let Some(time) = time else {
        return "-".into();
    };
    let seconds = time.normalized().seconds;
    Timestamp { seconds, nanos: 0 }.to_string()
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When the message was said, to the second.
fn seconds_of(message: &Message) -> Option<Timestamp> {
    let seconds = message.timestamp?.normalized().seconds;
    Some(Timestamp { seconds, nanos: 0 })
}

/// The text as one line that cannot control a terminal: control and direction-changing characters are written out.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_unsafe(c) {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain.into()
}

/// Whether the character controls a terminal or the direction of text.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paint {
    is_coloured: bool,
}

impl Paint {
    /// Colours if stdout is a terminal and `NO_COLOR` is not set.
    pub(super) fn for_stdout() -> Self {
        Self::new(io::stdout().is_terminal(), env::var_os("NO_COLOR"))
    }

    fn new(is_terminal: bool, no_color: Option<OsString>) -> Self {
        Self {
            is_coloured: is_terminal && no_color.is_none_or(|value| value.is_empty()),
        }
    }

    fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, style: &str, text: &str) -> String {
        match self.is_coloured {
            true => format!("\u{1b}[{style}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content: &str) -> Message {
        Message {
            id: "m1".into(),
            user: "ann".into(),
            content: content.into(),
            room: "general".into(),
            timestamp: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 250_000_000,
            }),
            sequence: 7,
            ..Message::default()
        }
    }

    fn colourless() -> Paint {
        Paint::new(false, None)
    }

    #[test]
    fn json_has_every_field_and_stays_on_one_line() {
        let expected = r#"{"sequence":7,"id":"m1","user":"ann","content":"a\n\"b\"","room":"general","timestamp":"2023-11-14T22:13:20.250Z","type":"CHAT"}"#;
        assert_eq!(json(&message("a\n\"b\"")).unwrap(), expected);
        assert!(
            json(&Message::default())
                .unwrap()
                .contains(r#""timestamp":null"#)
        );
    }

    #[test]
    fn columns_are_four_whatever_the_content() {
        assert_eq!(
            columns(&message("a\tb\nc")),
            "7\t2023-11-14T22:13:20Z\tann\ta\\tb\\nc"
        );
        assert_eq!(columns(&Message::default()), "0\t-\t\t");
    }

    #[test]
    fn speech_shows_time_and_user() {
        assert_eq!(spoken(&message("hi"), colourless()), "22:13:20Z ann: hi");
        let mut system = message("ann joined");
        system.r#type = MessageType::System.into();
        assert_eq!(spoken(&system, colourless()), "22:13:20Z * ann joined");
    }

    #[test]
    fn others_cannot_control_the_terminal() {
        let mut hostile = message("\u{1b}]0;x\u{7}\u{202e}ok é");
        hostile.user = "\u{9b}m".into();
        assert_eq!(
            spoken(&hostile, colourless()),
            "22:13:20Z \\u{9b}m: \\u{1b}]0;x\\u{7}\\u{202e}ok é"
        );
    }

    #[test]
    fn colours_need_a_terminal_and_consent() {
        let cases = [
            (true, None, true),
            (true, Some(""), true),
            (true, Some("1"), false),
            (false, None, false),
        ];
        for (is_terminal, no_color, is_coloured) in cases {
            assert_eq!(
                Paint::new(is_terminal, no_color.map(Into::into)),
                Paint { is_coloured }
            );
        }
        let paint = Paint::new(true, None);
        assert_eq!(paint.bold("x"), "\u{1b}[1mx\u{1b}[0m");
    }
}
