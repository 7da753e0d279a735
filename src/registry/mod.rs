//! What the replicas of one service know of each other: which instances run, and who is a member of which room.
//!
//! A registry is a small table of keys. Every change of a key has a [`Revision`], higher than all before it in the whole
//! registry, and a change names the one it follows, so that of two at the same time one is refused. A key of an instance
//! goes by itself when the instance stops beating; the registry's own clock decides that. What the members' values mean is
//! the core's; where they are kept is a backend's: [`jetstream`] for replicas.
//!
//! Bounds: a key for each member and each instance, and a removed key's trace for a time; the core bounds the members.

pub mod jetstream;
#[cfg(test)]
pub(crate) mod memory;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::log::Topic;

/// The position of a change. Zero stands for a key that nothing is known of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// A user in a room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The room.
    pub room: Topic,
    /// The user.
    pub user: Box<str>,
}

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A running instance: the name of one run of it.
    Instance(Box<str>),
    /// A member.
    Member(Member),
}

/// A key's state after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// Its value; none once it is gone.
    pub value: Option<Bytes>,
    /// The change's position.
    pub revision: Revision,
}

/// The changes of all keys.
pub type Changes = BoxStream<'static, Result<Change, Error>>;

/// The registry cannot be reached or did not answer in time; whether a change was made is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registry is unavailable: {0}")]
pub struct Error(pub String);

/// A table that the replicas share. Dropping a future returned here is safe; what it was to change may be changed.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The name of this run of this instance; no other has it, before or after.
    fn me(&self) -> &str;

    /// How long a call may wait for the registry.
    fn patience(&self) -> Duration;

    /// How long others may need until they beat again after the registry was away.
    fn recovery(&self) -> Duration;

    /// How often to beat.
    fn pace(&self) -> Duration;

    /// Whether it can be reached, as far as anybody knows.
    fn connected(&self) -> watch::Receiver<bool>;

    /// Says that this instance runs: its key stays until it has not beaten for the lease and a pace.
    ///
    /// # Errors
    /// [`Error`].
    async fn beat(&self) -> Result<Revision, Error>;

    /// The newest value and revision of a member. A key that is not there has a revision too where its trace is left.
    ///
    /// # Errors
    /// [`Error`].
    async fn read(&self, member: &Member) -> Result<(Option<Bytes>, Revision), Error>;

    /// Changes a member's value, or removes the key, if `last` is its newest revision; none when it is not. Durable when
    /// it returns.
    ///
    /// # Errors
    /// [`Error`].
    async fn write(
        &self,
        member: &Member,
        value: Option<Bytes>,
        last: Revision,
    ) -> Result<Option<Revision>, Error>;

    /// The newest change of every key, then every further one, in the order of revisions; of changes of one key in quick
    /// succession only the last may come. It ends with an error, or when the registry was away.
    ///
    /// # Errors
    /// [`Error`].
    async fn watch(&self) -> Result<Changes, Error>;
}
