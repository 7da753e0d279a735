//! Requests to JetStream: what it is asked, and its answers in the log's words.
//!
//! Any replica of the stream answers a **direct** request, also one that lags; only the stream's leader answers the others.
//! So a direct request finds nothing but committed messages and may miss the newest: who has to know that there is nothing
//! more asks the leader ([`Api::next_after`]).

use std::time::Duration;

use async_nats::{
    Client, HeaderMap, Message, Subscriber, client::Request, header,
    jetstream::stream::Config as StreamConfig,
};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    subject::Subjects,
    wire::{BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, Entry, Outgoing, format_time},
};
use crate::log::{Error, Sequence, Timestamp};

/// Messages asked for at once.
pub(super) const PAGE: usize = 1000;
/// Bytes after which an answer takes no further message.
pub(super) const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Between two attempts.
pub(super) const RETRY: Duration = Duration::from_millis(50);

/// Error codes of JetStream.
mod code {
    /// The stream, or a message, is not there.
    pub(super) const NO_STREAM: u64 = 10059;
    /// Too few servers for so many copies.
    pub(super) const NO_PEERS: u64 = 10005;
    pub(super) const NO_MESSAGE: u64 = 10037;
    /// The last sequence of the subject is another.
    pub(super) const WRONG_LAST: [u64; 2] = [10071, 10164];
    /// An identifier was used before: by a batch being stored, or by a stored message.
    pub(super) const DUPLICATE_PENDING: u64 = 10158;
    pub(super) const DUPLICATE_IN_BATCH: u64 = 10201;
    /// Nothing of the batch was stored.
    pub(super) const INCOMPLETE: u64 = 10176;
    pub(super) const TOO_LARGE_BATCH: u64 = 10199;
    /// No room: resources, account, memory, storage, stream.
    pub(super) const FULL: [u64; 5] = [10002, 10023, 10028, 10047, 10077];
}

/// One connection's way to the stream.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) subjects: Subjects,
    pub(super) stream: String,
    pub(super) timeout: Duration,
    /// One copy of the stream: whoever answers is the leader.
    pub(super) is_single: bool,
}

/// JetStream's answer where it is an error.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl Refusal {
    pub(super) fn is_no_stream(&self) -> bool {
        self.err_code == code::NO_STREAM
    }

    /// Whether the same may work in a moment: nobody leads, or there are not enough servers yet.
    pub(super) fn may_pass(&self) -> bool {
        (self.code == 503 && !code::FULL.contains(&self.err_code))
            || self.err_code == code::NO_PEERS
    }
}

/// Why a request brought nothing.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// JetStream said no.
    Refused(Refusal),
    /// Nobody took it: nothing was changed.
    NoResponders,
    /// No answer, or an unreadable one: whether it was done is unknown.
    Unknown(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) if code::FULL.contains(&refusal.err_code) => Self::Full,
            Failure::Refused(refusal) => Self::Unavailable(refusal.description),
            Failure::NoResponders => Self::Unavailable("JetStream has no leader now".into()),
            Failure::Unknown(what) => Self::Unavailable(what),
        }
    }
}

/// What became of an attempt to publish.
pub(super) enum Published {
    /// Stored at consecutive positions that end with this one.
    Stored(Sequence),
    /// The only message repeats the one there.
    Duplicate(Sequence),
    /// Nothing was stored: publish fewer at once, some repeat others or they are too many.
    Split,
    /// Nothing was stored: the same may work in a moment.
    Retry(Failure),
}

/// What is known of the stream.
#[derive(Debug, Clone)]
pub(super) struct Info {
    pub(super) config: StreamConfig,
    pub(super) last: Sequence,
    pub(super) bytes: u64,
    pub(super) subjects: Vec<String>,
}

#[derive(Deserialize)]
struct PubAck {
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct StreamInfo {
    config: StreamConfig,
    state: StreamState,
}

#[derive(Deserialize)]
struct StreamState {
    last_seq: u64,
    bytes: u64,
    #[serde(default)]
    subjects: std::collections::HashMap<String, u64>,
}

#[derive(Deserialize)]
struct Found {
    message: FoundMessage,
}

#[derive(Deserialize)]
struct FoundMessage {
    seq: u64,
}

#[derive(Deserialize)]
struct Purged {
    #[serde(default)]
    purged: u64,
}

impl Api {
    async fn send(&self, subject: String, request: Request) -> Result<Bytes, Failure> {
        let request = request.timeout(Some(self.timeout));
        let answer = timeout(self.timeout, self.client.send_request(subject, request)).await;
        match answer {
            Ok(Ok(message)) => Ok(message.payload),
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                Err(Failure::NoResponders)
            }
            Ok(Err(error)) => Err(Failure::Unknown(format!("NATS: {error}"))),
            Err(_) => Err(Failure::Unknown(self.silence())),
        }
    }

    async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        subject: String,
        request: Request,
    ) -> Result<T, Failure> {
        let answer = self.send(subject, request).await?;
        let unreadable = |error: String| Failure::Unknown(format!("JetStream's answer: {error}"));
        let mut answer: Value =
            serde_json::from_slice(&answer).map_err(|error| unreadable(error.to_string()))?;
        if let Some(refusal) = answer.get_mut("error").map(Value::take) {
            let refusal = serde_json::from_value(refusal);
            return Err(Failure::Refused(
                refusal.map_err(|error| unreadable(error.to_string()))?,
            ));
        }
        serde_json::from_value(answer).map_err(|error| unreadable(error.to_string()))
    }

    async fn ask_stream<T: for<'a> Deserialize<'a>>(
        &self,
        verb: &str,
        request: &Value,
    ) -> Result<T, Failure> {
        let subject = format!("$JS.API.STREAM.{verb}.{}", self.stream);
        let request = Request::new().payload(request.to_string().into());
        self.ask(subject, request).await
    }

    /// The stream as its leader knows it, and those of its subjects that match, 100,000 at most from `offset` on.
    pub(super) async fn info(&self, subjects: Option<(&str, usize)>) -> Result<Info, Failure> {
        let request = subjects.map_or_else(
            || json!({}),
            |(filter, offset)| json!({ "subjects_filter": filter, "offset": offset }),
        );
        let info: StreamInfo = self.ask_stream("INFO", &request).await?;
        Ok(Info {
            config: info.config,
            last: Sequence(info.state.last_seq),
            bytes: info.state.bytes,
            subjects: info.state.subjects.into_keys().collect(),
        })
    }

    /// Creates the stream, or changes it where `is_there`.
    pub(super) async fn configure(
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

    /// The first message of `subject` (wildcards allowed) at or after `from`, as the leader knows it.
    pub(super) async fn next_after(
        &self,
        subject: &str,
        from: Sequence,
    ) -> Result<Option<Sequence>, Failure> {
        self.find(&json!({ "seq": from.0.max(1), "next_by_subj": subject }))
            .await
    }

    /// The last message of `subject`, as the leader knows it.
    pub(super) async fn last_of(&self, subject: &str) -> Result<Option<Sequence>, Failure> {
        self.find(&json!({ "last_by_subj": subject })).await
    }

    /// The first message of `subject` stored at `time` or later, as the leader knows it.
    pub(super) async fn since(
        &self,
        subject: &str,
        time: Timestamp,
    ) -> Result<Option<Sequence>, Failure> {
        self.find(&json!({ "start_time": format_time(time), "next_by_subj": subject }))
            .await
    }

    async fn find(&self, request: &Value) -> Result<Option<Sequence>, Failure> {
        match self.ask_stream::<Found>("MSG.GET", request).await {
            Ok(found) => Ok(Some(Sequence(found.message.seq))),
            Err(Failure::Refused(refusal)) if refusal.err_code == code::NO_MESSAGE => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The message at `sequence`; none when it is gone. Asks again while the replica that answers lags.
    pub(super) async fn at(&self, sequence: Sequence) -> Result<Option<Entry>, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let found = self.page(&json!({ "seq": sequence.0, "batch": 1 })).await?;
            if let Some(entry) = found.into_iter().next() {
                return Ok((entry.sequence == sequence).then_some(entry));
            }
            if self.is_single || self.next_after(">", sequence).await? != Some(sequence) {
                return Ok(None);
            }
            self.pause(deadline).await?;
        }
    }

    /// Waits a little before another attempt.
    ///
    /// # Errors
    /// The time is up.
    pub(super) async fn pause(&self, deadline: Instant) -> Result<(), Error> {
        if Instant::now() + RETRY > deadline {
            return Err(Error::Unavailable(
                "the replicas of the stream do not catch up".into(),
            ));
        }
        sleep(RETRY).await;
        Ok(())
    }

    /// The last message of `subject`; none when it has none.
    pub(super) async fn latest(&self, subject: &str) -> Result<Option<Entry>, Error> {
        if self.is_single {
            let found = self.last_of_each(&[subject], UpTo::Now).await?;
            return Ok(found.into_iter().next());
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            let Some(sequence) = self.last_of(subject).await? else {
                return Ok(None);
            };
            if let Some(entry) = self.at(sequence).await? {
                return Ok(Some(entry));
            }
            // A later one took its place meanwhile.
            self.pause(deadline).await?;
        }
    }

    /// Messages from `from` on in order, of `subject` or of all: at most `count`, at most a page, none beyond so many bytes.
    /// The replica that answers may not have the newest.
    pub(super) async fn read(
        &self,
        subject: Option<&str>,
        from: Sequence,
        count: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut request = json!({
            "seq": from.0.max(1),
            "batch": count.clamp(1, PAGE),
            "max_bytes": bytes.clamp(1, PAGE_BYTES),
        });
        if let Some(subject) = subject {
            request["next_by_subj"] = subject.into();
        }
        self.page(&request).await
    }

    /// The last message of each subject that matches, of those up to a position or time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also when more than 1,024 subjects match.
    pub(super) async fn last_of_each(
        &self,
        subjects: &[&str],
        up_to: UpTo,
    ) -> Result<Vec<Entry>, Error> {
        let mut request = json!({ "multi_last": subjects });
        match up_to {
            UpTo::Sequence(sequence) => request["up_to_seq"] = sequence.0.into(),
            UpTo::Time(time) => request["up_to_time"] = format_time(time).into(),
            UpTo::Now => {}
        }
        self.page(&request).await
    }

    async fn page(&self, request: &Value) -> Result<Vec<Entry>, Error> {
        let page = timeout(self.timeout, self.exchange(request)).await;
        page.unwrap_or_else(|_| Err(Failure::Unknown(self.silence()).into()))
    }

    async fn exchange(&self, request: &Value) -> Result<Vec<Entry>, Error> {
        let inbox = self.client.new_inbox();
        let lost = |error: &dyn std::fmt::Display| Error::Unavailable(format!("NATS: {error}"));
        let mut answers = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| lost(&error))?;
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let payload = request.to_string().into();
        self.client
            .publish_with_reply(subject, inbox, payload)
            .await
            .map_err(|error| lost(&error))?;
        self.collect(&mut answers).await
    }

    fn silence(&self) -> String {
        let time = humantime::format_duration(self.timeout);
        format!("NATS did not answer within {time}")
    }

    async fn collect(&self, answers: &mut Subscriber) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        while let Some(message) = answers.next().await {
            match message.status.map_or(200, |status| status.as_u16()) {
                204 | 404 => return Ok(entries),
                503 => return Err(Failure::NoResponders.into()),
                200 => entries.push(Entry::read(&self.subjects, message)?),
                _ => return Err(Error::Unavailable(refused(&message))),
            }
        }
        Err(Error::Unavailable("the connection to NATS closed".into()))
    }

    /// Drops the subject's messages before `before`; how many there were.
    pub(super) async fn purge(&self, subject: &str, before: Sequence) -> Result<u64, Failure> {
        let request = json!({ "filter": subject, "seq": before.0 });
        let purged: Purged = self.ask_stream("PURGE", &request).await?;
        Ok(purged.purged)
    }

    /// Replaces the only message of `subject`, unless it is no longer the one at `last`; false then.
    pub(super) async fn replace(
        &self,
        subject: String,
        payload: Bytes,
        last: Option<Sequence>,
    ) -> Result<Option<Sequence>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        let last = last.unwrap_or_default();
        headers.insert(
            header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            last.0.to_string().as_str(),
        );
        let request = Request::new().payload(payload).headers(headers);
        match self.ask::<PubAck>(subject, request).await {
            Ok(ack) => Ok(Some(Sequence(ack.seq))),
            Err(Failure::Refused(refusal)) if code::WRONG_LAST.contains(&refusal.err_code) => {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Publishes messages: all of them are stored, next to each other, or none. `batch` is an id never used before.
    ///
    /// # Errors
    /// Refused for good, or unknown.
    pub(super) async fn publish(
        &self,
        batch: &str,
        messages: &[Outgoing],
    ) -> Result<Published, Failure> {
        let Some((last, others)) = messages.split_last() else {
            return Err(Failure::Unknown("nothing to publish".into()));
        };
        let mut commit = last.headers();
        if !others.is_empty() {
            let sent = timeout(self.timeout, self.send_uncommitted(batch, others)).await;
            sent.unwrap_or_else(|_| Err(Failure::Unknown(self.silence())))?;
            commit = in_batch(commit, batch, messages.len());
            commit.insert(BATCH_COMMIT, "1");
        }
        let request = Request::new().payload(last.payload.clone()).headers(commit);
        match self.ask::<PubAck>(last.subject.clone(), request).await {
            Ok(ack) if ack.duplicate => Ok(Published::Duplicate(Sequence(ack.seq))),
            Ok(ack) => Ok(Published::Stored(Sequence(ack.seq))),
            Err(Failure::Refused(refusal)) => refused_publish(refusal),
            Err(failure @ Failure::NoResponders) => Ok(Published::Retry(failure)),
            Err(failure @ Failure::Unknown(_)) => Err(failure),
        }
    }
}

// The client waits while its connection takes nothing, so this needs a time limit too.
impl Api {
    async fn send_uncommitted(&self, batch: &str, messages: &[Outgoing]) -> Result<(), Failure> {
        for (index, message) in messages.iter().enumerate() {
            let headers = in_batch(message.headers(), batch, index + 1);
            let (subject, payload) = (message.subject.clone(), message.payload.clone());
            self.client
                .publish_with_headers(subject, headers, payload)
                .await
                .map_err(|error| Failure::Unknown(format!("NATS: {error}")))?;
        }
        Ok(())
    }
}

/// Where a search for last messages ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum UpTo {
    Sequence(Sequence),
    Time(Timestamp),
    Now,
}

fn in_batch(mut headers: HeaderMap, batch: &str, sequence: usize) -> HeaderMap {
    headers.insert(BATCH_ID, batch);
    headers.insert(BATCH_SEQUENCE, sequence.to_string().as_str());
    headers
}

fn refused_publish(refusal: Refusal) -> Result<Published, Failure> {
    match refusal.err_code {
        code::DUPLICATE_IN_BATCH | code::TOO_LARGE_BATCH => Ok(Published::Split),
        code::DUPLICATE_PENDING | code::INCOMPLETE => {
            Ok(Published::Retry(Failure::Refused(refusal)))
        }
        _ if refusal.may_pass() => Ok(Published::Retry(Failure::Refused(refusal))),
        _ => Err(Failure::Refused(refusal)),
    }
}

fn refused(message: &Message) -> String {
    let what = message.description.as_deref().unwrap_or("no reason given");
    format!("JetStream refused to read: {what}")
}
