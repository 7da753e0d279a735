//! The messages that are sent, and the check of those that arrive.

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;

use super::frame::PREFIX_BYTES;
use crate::proto::chat::{Message, SendMessageRequest};

/// Hexadecimal digits at the start of every content: the message's index.
pub(super) const STAMP_BYTES: usize = 16;
const FILLER: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const USER: &str = "b";

/// A message encoded and framed once; sending it again only changes its stamp.
#[derive(Debug, Clone)]
pub(super) struct Template {
    frame: Vec<u8>,
    stamp_at: usize,
}

impl Template {
    /// A `chat.Message` for `UploadMessages`. With an eight-byte room its frame is 31 bytes longer than its content.
    pub(super) fn message(room: &str, size: usize) -> Self {
        let timestamp = prost_types::Timestamp {
            seconds: now_secs(),
            nanos: 0,
        };
        Self::framed(&Message {
            id: USER.to_owned(),
            user: USER.to_owned(),
            content: content(0, size),
            room: room.to_owned(),
            timestamp: Some(timestamp),
            ..Message::default()
        })
    }

    /// A request for `SendMessage`.
    pub(super) fn request(room: &str, size: usize) -> Self {
        Self::framed(&SendMessageRequest {
            user: USER.to_owned(),
            content: content(0, size),
            room: room.to_owned(),
            ..SendMessageRequest::default()
        })
    }

    fn framed(message: &impl prost::Message) -> Self {
        let frame = grpc_frame(message);
        let marker = content(0, STAMP_BYTES);
        let stamp_at = frame
            .windows(STAMP_BYTES)
            .position(|window| window == marker.as_bytes())
            .unwrap_or(PREFIX_BYTES);
        Self { frame, stamp_at }
    }

    /// Bytes on the wire, without HTTP/2's own.
    pub(super) fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Appends the message with the given stamp.
    pub(super) fn append(&self, stamp: u64, out: &mut Vec<u8>) {
        let start = out.len() + self.stamp_at;
        out.extend_from_slice(&self.frame);
        write_hex(stamp, &mut out[start..start + STAMP_BYTES]);
    }
}

/// Any message behind its gRPC prefix.
pub(super) fn grpc_frame(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(PREFIX_BYTES + body.len());
    frame.push(0);
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    frame
}

/// The stamp of a delivered message, once its room and content have proved intact.
pub(super) fn verify(body: &[u8], room: &str, size: usize) -> Result<u64> {
    let message = Message::decode(body).context("a delivered message does not decode")?;
    ensure!(
        message.room == room,
        "a message of room {:?} was delivered to room {room:?}",
        message.room
    );
    let content = message.content.as_bytes();
    ensure!(
        content.len() == size,
        "a message of {size} bytes was delivered with {}",
        content.len()
    );
    let (stamp, filler) = content.split_at(STAMP_BYTES.min(size));
    if !filler.iter().eq(FILLER.iter().cycle().take(filler.len())) {
        bail!("a message was delivered with another content than was sent");
    }
    let stamp = std::str::from_utf8(stamp).ok();
    stamp
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .context("a message was delivered without its stamp")
}

fn content(stamp: u64, size: usize) -> String {
    let filler = FILLER.iter().cycle().take(size.saturating_sub(STAMP_BYTES));
    let mut text = format!("{stamp:016x}");
    text.extend(filler.map(|byte| char::from(*byte)));
    text
}

fn write_hex(value: u64, out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (index, digit) in out.iter_mut().rev().enumerate() {
        *digit = DIGITS[(value >> (4 * index)) as usize & 0xf];
    }
}

fn now_secs() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}

/// A room that no other run uses: eight characters.
pub(super) fn fresh_room() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let random: u64 = rand::random();
    let letters = (0..7).map(|n| char::from(ALPHABET[(random >> (5 * n)) as usize & 31]));
    std::iter::once('b').chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_round_trip() {
        let room = fresh_room();
        let template = Template::message(&room, 64);
        for stamp in [0, 1, 0xdead_beef, u64::MAX] {
            let mut out = b"before".to_vec();
            template.append(stamp, &mut out);
            let body = &out[6 + PREFIX_BYTES..];
            assert_eq!(verify(body, &room, 64).unwrap(), stamp);
        }
    }

    #[test]
    fn sixty_four_bytes_travel_in_ninety_five() {
        assert_eq!(Template::message(&fresh_room(), 64).frame_bytes(), 95);
    }

    #[test]
    fn a_damaged_message_is_noticed() {
        let room = fresh_room();
        let mut out = Vec::new();
        Template::message(&room, 64).append(7, &mut out);
        let body = &out[PREFIX_BYTES..];
        assert!(verify(body, "other", 64).is_err());
        assert!(verify(body, &room, 65).is_err());
        assert!(verify(&body[..40], &room, 64).is_err());
        let damaged: Vec<u8> = body
            .iter()
            .map(|byte| if *byte == b'z' { b'!' } else { *byte })
            .collect();
        assert!(verify(&damaged, &room, 64).is_err());
    }

    #[test]
    fn rooms_have_eight_characters() {
        assert_eq!(fresh_room().len(), 8);
    }
}
