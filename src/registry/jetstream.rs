//! The registry in a key-value bucket of NATS JetStream, `{jetstream.stream}-presence`.
//!
//! ```text
//!   i.{instance}        a running instance, with a time to live; its name, for people
//!   m.{room}.{user}     a member
//! ```
//!
//! The bucket keeps the last value of each key, on as many servers as the log. The server's clock ends an instance's key and
//! says so to whoever watches. The trace of a removed key stays for `TRACES`.

use std::time::Duration;

use async_nats::{
    HeaderMap, header,
    jetstream::{
        self, Context, ErrorCode,
        context::{PublishError, PublishErrorKind},
        kv::{self, Operation, Store},
        message::PublishMessage,
        stream::{LastRawMessageErrorKind, StorageType},
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use super::{Change, Changes, Error, Key, Member, Registry, Revision};
use crate::{
    config::Config,
    log::{OpenError, Space, Topic},
    nats::{
        Attempt, Nats,
        token::{escape, unescape},
    },
};

/// How long the trace of a removed key stays: far longer than a watch that goes on may miss.
const TRACES: Duration = Duration::from_secs(300);
/// The shortest time to live a server knows, and its unit.
const SECOND: Duration = Duration::from_secs(1);
/// The shortest time between two beats.
const FASTEST: Duration = Duration::from_millis(300);
/// How long others may take to connect and beat again when NATS is back, at least.
const RECOVERY: Duration = Duration::from_secs(5);
/// Bytes of a value: far more than the instances of one member take.
const MAX_VALUE: i32 = 64 * 1024;
/// Begins an escaped byte of a key.
const MARK: char = '=';
/// A removal that stays removed, as key-value buckets write it.
const OPERATION: &str = "KV-Operation";

/// A bucket of NATS.
pub struct Bucket {
    nats: Nats,
    context: Context,
    store: Store,
    /// Before every key.
    prefix: String,
    me: Box<str>,
    /// For people who look into the bucket.
    instance: Bytes,
    lease: Duration,
}

impl Bucket {
    /// Creates the bucket, or adapts the one there. Waits for JetStream as long as an instance may start.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(nats: &Nats, config: &Config) -> Result<Self, OpenError> {
        let name = format!("{}-presence", nats.settings.stream);
        let mut context = jetstream::new(nats.client.clone());
        context.set_timeout(nats.settings.timeout);
        let wanted = kv::Config {
            bucket: name.clone(),
            description: "The members of Weir's rooms".into(),
            history: 1,
            max_value_size: MAX_VALUE,
            storage: StorageType::File,
            num_replicas: nats.settings.replicas,
            limit_markers: Some(TRACES),
            ..kv::Config::default()
        };
        let store = nats
            .prepare(async || {
                let there = context.create_or_update_key_value(wanted.clone()).await;
                there.map_err(|error| Attempt::Later(nats.error(error.to_string())))
            })
            .await?;
        Ok(Self {
            nats: nats.clone(),
            context,
            store,
            prefix: format!("$KV.{name}."),
            me: Uuid::now_v7().simple().to_string().into(),
            instance: config.server.instance_id.clone().into(),
            lease: config.presence.lease,
        })
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let mut connected = self.nats.connected.clone();
        let work = async {
            // A change that waits for the connection would be made long after it was given up.
            if connected.wait_for(|connected| *connected).await.is_err() {
                return Err(Error("the connection is closed".into()));
            }
            work.await
        };
        let time = self.nats.settings.timeout;
        timeout(time, work).await.unwrap_or_else(|_| {
            let time = humantime::format_duration(time);
            Err(Error(format!("NATS did not answer within {time}")))
        })
    }

    /// None when another change came first.
    async fn publish(
        &self,
        key: &str,
        payload: Bytes,
        headers: HeaderMap,
    ) -> Result<Option<Revision>, Error> {
        let message = PublishMessage::build().payload(payload).headers(headers);
        let subject = format!("{}{key}", self.prefix);
        self.within(async {
            let sent = self.context.send_publish(subject, message).await;
            let stored = match sent {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(ack) => Ok(Some(Revision(ack.sequence))),
                Err(error) if is_outdated(&error) => Ok(None),
                Err(error) => Err(Error(format!("NATS: {error}"))),
            }
        })
        .await
    }
}

#[async_trait]
impl Registry for Bucket {
    fn me(&self) -> &str {
        &self.me
    }

    fn patience(&self) -> Duration {
        self.nats.settings.timeout
    }

    fn recovery(&self) -> Duration {
        self.lease.max(RECOVERY)
    }

    fn pace(&self) -> Duration {
        (self.lease / 3).max(FASTEST)
    }

    fn connected(&self) -> watch::Receiver<bool> {
        self.nats.connected.clone()
    }

    async fn beat(&self) -> Result<Revision, Error> {
        let mut headers = HeaderMap::new();
        let seconds = time_to_live(self.lease + self.pace()).as_secs();
        headers.insert(header::NATS_MESSAGE_TTL, seconds.to_string().as_str());
        let key = format!("i.{}", self.me);
        let beat = self.publish(&key, self.instance.clone(), headers).await?;
        beat.ok_or_else(|| Error("NATS refuses the instance's key".into()))
    }

    async fn read(&self, member: &Member) -> Result<(Option<Bytes>, Revision), Error> {
        let subject = format!("{}{}", self.prefix, key(member));
        self.within(async {
            // Of the leader: another server may not have the newest.
            let last = self.store.stream.get_last_raw_message_by_subject(&subject);
            match last.await {
                Ok(message) => {
                    let headers = &message.headers;
                    let is_gone = headers.get(OPERATION).is_some()
                        || headers.get(header::NATS_MARKER_REASON).is_some();
                    let value = (!is_gone).then_some(message.payload);
                    Ok((value, Revision(message.sequence)))
                }
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    Ok((None, Revision::default()))
                }
                Err(error) => Err(Error(format!("NATS: {error}"))),
            }
        })
        .await
    }

    async fn write(
        &self,
        member: &Member,
        value: Option<Bytes>,
        last: Revision,
    ) -> Result<Option<Revision>, Error> {
        let mut headers = HeaderMap::new();
        let expected = last.0.to_string();
        headers.insert(
            header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            expected.as_str(),
        );
        if value.is_none() {
            headers.insert(OPERATION, "PURGE");
            headers.insert("Nats-Rollup", "sub");
            let seconds = TRACES.as_secs().to_string();
            headers.insert(header::NATS_MESSAGE_TTL, seconds.as_str());
        }
        let value = value.unwrap_or_default();
        self.publish(&key(member), value, headers).await
    }

    async fn watch(&self) -> Result<Changes, Error> {
        let watch = self.within(async {
            let watch = self.store.watch_with_history(">").await;
            watch.map_err(|error| Error(format!("NATS: {error}")))
        });
        let changes = watch.await?.filter_map(async |entry| match entry {
            Ok(entry) => change(entry).map(Ok),
            Err(error) => Some(Err(Error(format!("NATS: {error}")))),
        });
        Ok(changes.boxed())
    }
}

/// Whether another change came first, or is on its way through a cluster.
fn is_outdated(error: &PublishError) -> bool {
    let source = std::error::Error::source(error);
    let refusal = source.and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::WrongLastSequence
        || refusal.is_some_and(|refusal| {
            refusal.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        })
}

fn change(entry: kv::Entry) -> Option<Change> {
    Some(Change {
        key: parse(&entry.key)?,
        value: (entry.operation == Operation::Put).then_some(entry.value),
        revision: Revision(entry.revision),
    })
}

/// Whole seconds, not less than asked for.
fn time_to_live(time: Duration) -> Duration {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(seconds).max(SECOND)
}

fn key(member: &Member) -> String {
    let mut key = "m.".to_owned();
    escape(member.room.name(), MARK, &mut key);
    key.push('.');
    escape(&member.user, MARK, &mut key);
    key
}

/// What a key stands for; none when it is not the registry's.
fn parse(key: &str) -> Option<Key> {
    let (kind, rest) = key.split_once('.')?;
    match kind {
        "i" => Some(Key::Instance(rest.into())),
        "m" => {
            let (room, user) = rest.split_once('.')?;
            let room = Topic::new(Space::Room, &unescape(room, MARK)?).ok()?;
            let user = unescape(user, MARK)?.into();
            Some(Key::Member(Member { room, user }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_member_comes_back_from_its_key(room in "\\PC{1,64}|[.*> =%]{1,80}", user in "\\PC{1,64}|[.*> =%]{1,80}") {
            let Ok(room) = Topic::new(Space::Room, &room) else { return Ok(()) };
            let member = Member { room, user: user.into() };
            let key = key(&member);
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
            prop_assert!(key.bytes().all(fits), "{key}");
            prop_assert!(key.split('.').all(|token| !token.is_empty()));
            prop_assert_eq!(parse(&key), Some(Key::Member(member)));
        }

        #[test]
        fn foreign_keys_stand_for_nothing_or_come_back(text in "[im]?\\.?([a=4.]{0,12})") {
            if let Some(Key::Member(member)) = parse(&text) {
                prop_assert_eq!(parse(&key(&member)), Some(Key::Member(member)));
            }
        }
    }

    #[test]
    fn times_to_live_are_whole_seconds_and_never_shorter() {
        let of = |millis| time_to_live(Duration::from_millis(millis)).as_secs();
        assert_eq!([0, 1, 1000, 1001, 20_000].map(of), [1, 1, 1, 2, 20]);
    }
}
