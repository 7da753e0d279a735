//! One stream of JetStream: what it is asked, and its answers.
//!
//! Any replica of the stream answers a **direct** request, also one that lags; only the stream's leader answers the others.
//! No request takes longer than `jetstream.timeout`.

use std::{collections::HashMap, time::Duration};

use async_nats::{
    Client, HeaderMap, Message, Subscriber, client::Request, header,
    jetstream::stream::Config as StreamConfig,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Subjects that one answer of the server names at most.
pub(crate) const SUBJECTS: usize = 100_000;

/// Error codes of JetStream.
mod code {
    /// The stream, or a message, is not there.
    pub(super) const NO_STREAM: u64 = 10059;
    pub(super) const NO_MESSAGE: u64 = 10037;
    /// Too few servers for so many copies.
    pub(super) const NO_PEERS: u64 = 10005;
    /// The last sequence of the subject is another.
    pub(super) const WRONG_LAST: [u64; 2] = [10071, 10164];
    /// No room: resources, account, memory, storage, stream.
    pub(super) const FULL: [u64; 5] = [10002, 10023, 10028, 10047, 10077];
}

/// One connection's way to a stream. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) client: Client,
    pub(crate) name: String,
    /// How long a request may take.
    pub(crate) timeout: Duration,
    /// One copy of the stream: whoever answers is the leader.
    pub(crate) is_single: bool,
}

/// JetStream's answer where it is an error.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default)]
    pub(crate) code: u64,
    #[serde(default)]
    pub(crate) err_code: u64,
    #[serde(default)]
    pub(crate) description: String,
}

impl Refusal {
    pub(crate) const fn is_no_stream(&self) -> bool {
        self.err_code == code::NO_STREAM
    }

    pub(crate) const fn is_no_message(&self) -> bool {
        self.err_code == code::NO_MESSAGE
    }

    pub(crate) fn is_full(&self) -> bool {
        code::FULL.contains(&self.err_code)
    }

    /// Whether the same may work in a moment: nobody leads, or there are not enough servers yet.
    pub(crate) fn may_pass(&self) -> bool {
        (self.code == 503 && !self.is_full()) || self.err_code == code::NO_PEERS
    }
}

/// Why a request brought nothing.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// JetStream said no.
    Refused(Refusal),
    /// Nobody took it: nothing was changed.
    NoResponders,
    /// No answer, or an unreadable one: whether it was done is unknown.
    Unknown(String),
}

impl Failure {
    /// Whether nothing was done and the same may work in a moment.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.may_pass(),
            Self::NoResponders => true,
            Self::Unknown(_) => false,
        }
    }
}

/// The stream has stored a message.
#[derive(Debug, Deserialize)]
pub(crate) struct PubAck {
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
}

/// What is known of a stream.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    /// When it was created; the same on all servers, and another one when it was created again.
    pub(crate) created: String,
    pub(crate) config: StreamConfig,
    pub(crate) state: State,
    /// The server's clock, in RFC 3339; empty from servers before 2.10.
    #[serde(default)]
    pub(crate) ts: String,
}

/// What a stream holds.
#[derive(Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) last_seq: u64,
    /// The time of the last message, in RFC 3339.
    #[serde(default)]
    pub(crate) last_ts: String,
    pub(crate) bytes: u64,
    /// Messages of each subject that was asked for.
    #[serde(default)]
    pub(crate) subjects: HashMap<String, u64>,
}

/// A message that is stored.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) payload: Bytes,
}

#[derive(Deserialize)]
struct Found {
    message: FoundMessage,
}

#[derive(Deserialize)]
struct FoundMessage {
    seq: u64,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Purged {
    #[serde(default)]
    purged: u64,
}

impl Stream {
    async fn send(&self, subject: String, request: Request) -> Result<Message, Failure> {
        let request = request.timeout(Some(self.timeout));
        let answer = timeout(self.timeout, self.client.send_request(subject, request)).await;
        match answer {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                Err(Failure::NoResponders)
            }
            Ok(Err(error)) => Err(lost(error)),
            Err(_) => Err(self.silence()),
        }
    }

    /// A request to any subject, with an answer in JSON.
    pub(crate) async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        subject: String,
        request: Request,
    ) -> Result<T, Failure> {
        answer(&self.send(subject, request).await?.payload)
    }

    /// A request to the leader of the stream.
    pub(crate) async fn ask_stream<T: for<'a> Deserialize<'a>>(
        &self,
        verb: &str,
        request: &Value,
    ) -> Result<T, Failure> {
        let subject = format!("$JS.API.STREAM.{verb}.{}", self.name);
        let request = Request::new().payload(request.to_string().into());
        self.ask(subject, request).await
    }

    /// The stream as its leader knows it, and those of its subjects that match, 100,000 at most from `offset` on.
    pub(crate) async fn info(&self, subjects: Option<(&str, usize)>) -> Result<Info, Failure> {
        let request = subjects.map_or_else(
            || json!({}),
            |(filter, offset)| json!({ "subjects_filter": filter, "offset": offset }),
        );
        self.ask_stream("INFO", &request).await
    }

    /// Calls `each` with every subject that matches and has a message, as the leader knows it.
    pub(crate) async fn subjects(
        &self,
        filter: &str,
        mut each: impl FnMut(&str),
    ) -> Result<(), Failure> {
        let mut offset = 0;
        loop {
            let found = self.info(Some((filter, offset))).await?.state.subjects;
            found.keys().for_each(|subject| each(subject));
            offset += found.len();
            if found.len() < SUBJECTS {
                return Ok(());
            }
        }
    }

    /// Creates the stream, or changes it where `is_there`.
    pub(crate) async fn configure(
        &self,
        config: &StreamConfig,
        is_there: bool,
    ) -> Result<(), Failure> {
        let verb = if is_there { "UPDATE" } else { "CREATE" };
        let config = serde_json::to_value(config)
            .map_err(|error| Failure::Unknown(format!("the stream's settings: {error}")))?;
        let _: Value = self.ask_stream(verb, &config).await?;
        Ok(())
    }

    /// Drops the messages of `subject` (wildcards allowed), or those before `before`; how many there were.
    pub(crate) async fn purge(&self, subject: &str, before: Option<u64>) -> Result<u64, Failure> {
        let mut request = json!({ "filter": subject });
        if let Some(before) = before {
            request["seq"] = before.into();
        }
        let purged: Purged = self.ask_stream("PURGE", &request).await?;
        Ok(purged.purged)
    }

    /// Replaces the only message of `subject`; with `last`, unless it is no longer the one there (0: none): nothing then.
    pub(crate) async fn replace(
        &self,
        subject: String,
        payload: Bytes,
        last: Option<u64>,
    ) -> Result<Option<u64>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        if let Some(last) = last {
            let name = header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
            headers.insert(name, last.to_string().as_str());
        }
        let request = Request::new().payload(payload).headers(headers);
        match self.ask::<PubAck>(subject, request).await {
            Ok(ack) => Ok(Some(ack.seq)),
            Err(Failure::Refused(refusal)) if code::WRONG_LAST.contains(&refusal.err_code) => {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The last message of `subject`, as the leader knows it.
    pub(crate) async fn last(&self, subject: &str) -> Result<Option<Stored>, Failure> {
        let request = json!({ "last_by_subj": subject });
        match self.ask_stream::<Found>("MSG.GET", &request).await {
            Ok(Found { message }) => Ok(Some(Stored {
                sequence: message.seq,
                payload: STANDARD.decode(message.data).map_err(unreadable)?.into(),
            })),
            Err(Failure::Refused(refusal)) if refusal.is_no_message() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The content of the only message that `subject` ever has.
    pub(crate) async fn only(&self, subject: &str) -> Result<Option<Bytes>, Failure> {
        let api = format!("$JS.API.DIRECT.GET.{}", self.name);
        let request = json!({ "last_by_subj": subject }).to_string();
        let found = self
            .send(api, Request::new().payload(request.into()))
            .await?;
        match status(&found) {
            200 => Ok(Some(found.payload)),
            // A replica that lags does not have it yet.
            404 if !self.is_single => Ok(self.last(subject).await?.map(|found| found.payload)),
            404 => Ok(None),
            _ => Err(refused(&found)),
        }
    }

    /// Stores messages one behind the other; returns when all of them are. After an error that may pass none is, after any
    /// other some may be.
    pub(crate) async fn store(&self, messages: Vec<(String, Bytes)>) -> Result<(), Failure> {
        let inbox = self.client.new_inbox();
        let mut acks = self.subscribe(inbox.clone()).await?;
        let waiting = messages.len();
        let sent = timeout(self.timeout, async {
            for (subject, payload) in messages {
                let published = self
                    .client
                    .publish_with_reply(subject, inbox.clone(), payload);
                published.await.map_err(lost)?;
            }
            Ok(())
        });
        sent.await.unwrap_or_else(|_| Err(self.silence()))?;
        let (mut stored, mut failed) = (0, None);
        for _ in 0..waiting {
            let ack = timeout(self.timeout, acks.next()).await;
            let ack = ack.map_err(|_| self.silence())?.ok_or_else(closed)?;
            let ack = match status(&ack) {
                503 => Err(Failure::NoResponders),
                _ => answer::<PubAck>(&ack.payload),
            };
            match ack {
                Ok(_) => stored += 1,
                Err(failure) => failed = Some(failure),
            }
        }
        match failed {
            None => Ok(()),
            Some(failure) if stored > 0 && failure.may_pass() => Err(Failure::Unknown(format!(
                "{stored} of {waiting} messages are stored"
            ))),
            Some(failure) => Err(failure),
        }
    }

    /// The messages that a direct request for several asks for.
    pub(crate) async fn page(&self, request: &Value) -> Result<Vec<Message>, Failure> {
        let page = timeout(self.timeout, self.exchange(request)).await;
        page.unwrap_or_else(|_| Err(self.silence()))
    }

    async fn exchange(&self, request: &Value) -> Result<Vec<Message>, Failure> {
        let inbox = self.client.new_inbox();
        let mut answers = self.subscribe(inbox.clone()).await?;
        let subject = format!("$JS.API.DIRECT.GET.{}", self.name);
        let payload = request.to_string().into();
        let sent = self.client.publish_with_reply(subject, inbox, payload);
        sent.await.map_err(lost)?;
        let mut messages = Vec::new();
        while let Some(message) = answers.next().await {
            match status(&message) {
                204 | 404 => return Ok(messages),
                200 => messages.push(message),
                503 => return Err(Failure::NoResponders),
                _ => return Err(refused(&message)),
            }
        }
        Err(closed())
    }

    async fn subscribe(&self, inbox: String) -> Result<Subscriber, Failure> {
        let subscribed = timeout(self.timeout, self.client.subscribe(inbox)).await;
        subscribed.map_err(|_| self.silence())?.map_err(lost)
    }

    /// No answer in time.
    pub(crate) fn silence(&self) -> Failure {
        let time = humantime::format_duration(self.timeout);
        Failure::Unknown(format!("NATS did not answer within {time}"))
    }
}

fn answer<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Result<T, Failure> {
    let mut answer: Value = serde_json::from_slice(payload).map_err(unreadable)?;
    if let Some(refusal) = answer.get_mut("error").map(Value::take) {
        let refusal = serde_json::from_value(refusal).map_err(unreadable)?;
        return Err(Failure::Refused(refusal));
    }
    serde_json::from_value(answer).map_err(unreadable)
}

fn status(message: &Message) -> u16 {
    message.status.map_or(200, |status| status.as_u16())
}

fn refused(message: &Message) -> Failure {
    let what = message.description.as_deref().unwrap_or("no reason given");
    Failure::Unknown(format!("JetStream refused to read: {what}"))
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::Unknown(format!("JetStream's answer: {error}"))
}

fn lost(error: impl std::fmt::Display) -> Failure {
    Failure::Unknown(format!("NATS: {error}"))
}

fn closed() -> Failure {
    Failure::Unknown("the connection to NATS closed".into())
}
