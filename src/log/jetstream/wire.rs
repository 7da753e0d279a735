//! Messages of the stream as entries of the log.
//!
//! A record's message is its stored form (`log::codec`); sequence and time are those the stream gave it. A trim position's
//! message is the position, eight bytes, big-endian.

use std::{sync::Arc, time::SystemTime};

use async_nats::{HeaderMap, Message, header};
use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::subject::{Subject, Subjects};
use crate::log::{
    Error, NewRecord, Record, Sequence, Timestamp, Topic, codec, dedupe::Fingerprint,
};

/// Headers of an atomic batch.
pub(super) const BATCH_ID: &str = "Nats-Batch-Id";
pub(super) const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
pub(super) const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// A message of the stream.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) sequence: Sequence,
    pub(super) time: Timestamp,
    pub(super) content: Content,
    /// More messages of the same atomic batch follow.
    pub(super) is_continued: bool,
}

/// What a message holds.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A record of the topic.
    Record(Topic, Arc<Record>),
    /// The topic retains nothing before the position.
    Trim(Topic, Sequence),
    /// What does not read back, and why.
    Broken(String),
}

impl Entry {
    /// The entry in `message`, received live or read from the stream.
    ///
    /// # Errors
    /// It is not from the stream.
    pub(super) fn read(subjects: &Subjects, message: Message) -> Result<Self, Error> {
        let headers = message.headers.as_ref();
        let headers = headers.ok_or_else(|| corrupt("a message of the log without headers"))?;
        let text = |name: &str| headers.get(name).map(header::HeaderValue::as_str);
        let sequence = text("Nats-Sequence").and_then(|text| text.parse().ok());
        let time = text("Nats-Time-Stamp").and_then(parse_time);
        let (Some(sequence), Some(time)) = (sequence, time) else {
            return Err(corrupt("a message of the log without sequence or time"));
        };
        let sequence = Sequence(sequence);
        let is_continued = text(BATCH_ID).is_some() && text(BATCH_COMMIT).is_none();
        let subject = text("Nats-Subject").unwrap_or(&message.subject);
        let content = content(subjects, subject, sequence, time, message.payload.clone());
        Ok(Self {
            sequence,
            time,
            content,
            is_continued,
        })
    }

    pub(super) fn into_record(self) -> Option<(Topic, Arc<Record>)> {
        match self.content {
            Content::Record(topic, record) => Some((topic, record)),
            Content::Trim(..) | Content::Broken(_) => None,
        }
    }
}

fn content(
    subjects: &Subjects,
    subject: &str,
    sequence: Sequence,
    time: Timestamp,
    payload: Bytes,
) -> Content {
    match subjects.parse(subject) {
        Some(Subject::Log(topic)) => match codec::decode(sequence, payload) {
            Ok(mut record) => {
                record.time = time;
                Content::Record(topic, Arc::new(record))
            }
            Err(error) => Content::Broken(format!("record {sequence}: {error}")),
        },
        Some(Subject::Trim(topic)) => match <[u8; 8]>::try_from(&*payload) {
            Ok(bytes) => Content::Trim(topic, Sequence(u64::from_be_bytes(bytes))),
            Err(_) => Content::Broken(format!("the trim position of {topic} at {sequence}")),
        },
        None => Content::Broken(format!("{sequence} is no topic's: {subject}")),
    }
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::Corrupt(what.into())
}

/// A time as NATS writes it; none before the Unix epoch, which is how NATS writes none.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    let since = humantime::parse_rfc3339(text)
        .ok()?
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(Timestamp(u64::try_from(since.as_nanos()).ok()?))
}

/// A time as NATS takes it.
pub(super) fn format_time(time: Timestamp) -> String {
    // What the server's own form can hold.
    let nanos = time.0.min(i64::MAX as u64);
    let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(nanos);
    humantime::format_rfc3339_nanos(at).to_string()
}

/// A message to publish.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) subject: String,
    pub(super) payload: Bytes,
    /// `Nats-Msg-Id`, by which the stream tells a repetition.
    pub(super) id: Option<String>,
}

impl Outgoing {
    pub(super) fn new(subjects: &Subjects, record: &NewRecord) -> Self {
        let mut payload = BytesMut::with_capacity(record.size());
        // The stream's own time stands; this one is never read back.
        codec::encode(record, Timestamp::default(), &mut payload);
        let subject = subjects.log(&record.topic);
        let id = Fingerprint::of(record).map(|fingerprint| message_id(&subject, &fingerprint));
        Self {
            subject,
            payload: payload.freeze(),
            id,
        }
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = &self.id {
            headers.insert(header::NATS_MESSAGE_ID, id.as_str());
        }
        headers
    }

    pub(super) fn size(&self) -> usize {
        128 + self.subject.len() + self.payload.len()
    }
}

/// Topic, publisher and key in 32 characters.
fn message_id(subject: &str, fingerprint: &Fingerprint) -> String {
    let mut hasher = Sha256::new();
    hasher.update(fingerprint.key);
    hasher.update(subject.as_bytes());
    let hash: [u8; 32] = hasher.finalize().into();
    hash[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The payload of a trim message.
pub(super) fn trim_payload(first: Sequence) -> Bytes {
    let mut payload = BytesMut::with_capacity(8);
    payload.put_u64(first.0);
    payload.freeze()
}
