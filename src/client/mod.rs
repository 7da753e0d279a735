//! A client that survives deploys: subscriptions that resume where they were cut, publishes that are repeated without
//! being stored twice.
//!
//! Reading order: [`Client`] (the calls), [`Subscription`] (the resume loop, for any stream of [`Sequenced`] items),
//! [`Retry`] (back-off), [`is_retryable`] (which codes).
//!
//! It owns no task and no queue: a subscription makes progress when it is polled, and dropping it ends the call.

mod chat;
mod code;
mod cursor;
mod documents;
mod feedback;
mod feeds;
mod files;
mod processing;
mod retry;
mod subscription;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tonic::transport::{Channel, Endpoint};

pub use chat::keyed;
pub use code::is_retryable;
pub use cursor::Resume;
pub use documents::TextDocument;
pub use files::{FileUpload, Transfer, TransferError};
pub use retry::{Retry, RetryPolicy, SystemTiming, Timing};
pub use subscription::{Event, Sequenced, Subscription};

/// Largest message in either direction, in bytes; the server's default limit.
pub const MAX_MESSAGE_BYTES: usize = 10 * 1024 * 1024;
/// What a delivered message may have more than it was sent with: id, time and sequence, an echo's prefix.
const ENVELOPE_BYTES: usize = 4 * 1024;

/// Repetitions of a publish before its status is returned, unless [`Client::with_publish_policy`] says otherwise.
const PUBLISH_RETRIES: u32 = 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be understood.
    #[error("`{addr}` is not an address of the form http://host:port")]
    Address {
        /// The address as it was given.
        addr: String,
    },
    /// Nothing answers at the address.
    #[error("cannot reach {addr}")]
    Unreachable {
        /// The address.
        addr: String,
        /// What the attempt ended with.
        source: tonic::transport::Error,
    },
}

/// A handle on a Weir server; cheap to clone, all clones share one connection, which is remade when it breaks.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    subscribe_policy: RetryPolicy,
    publish_policy: RetryPolicy,
    timing: Arc<dyn Timing>,
}

impl Client {
    /// Connects to `addr` (`http://host:port`).
    ///
    /// # Errors
    /// The address is malformed, or nothing answers there within five seconds. Later losses of the connection are not
    /// errors of the client: the calls repair them.
    pub async fn connect(addr: &str) -> Result<Self, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            addr: addr.to_owned(),
            source,
        };
        let channel = endpoint(addr)?.connect().await.map_err(unreachable)?;
        Ok(Self::over(channel))
    }

    /// Like [`Client::connect`], but connects with the first call.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn connect_lazy(addr: &str) -> Result<Self, ConnectError> {
        Ok(Self::over(endpoint(addr)?.connect_lazy()))
    }

    /// A client over an existing channel.
    pub fn over(channel: Channel) -> Self {
        Self {
            channel,
            subscribe_policy: RetryPolicy::default(),
            publish_policy: RetryPolicy {
                max_retries: Some(PUBLISH_RETRIES),
                ..RetryPolicy::default()
            },
            timing: Arc::new(SystemTiming),
        }
    }

    /// Replaces the policy of subscriptions made from now on; by default they never give up.
    #[must_use]
    pub fn with_subscribe_policy(mut self, policy: RetryPolicy) -> Self {
        self.subscribe_policy = policy;
        self
    }

    /// Replaces the policy of publishes; by default a publish is repeated ten times.
    #[must_use]
    pub fn with_publish_policy(mut self, policy: RetryPolicy) -> Self {
        self.publish_policy = policy;
        self
    }

    /// Replaces the source of chance and time.
    #[must_use]
    pub fn with_timing(mut self, timing: Arc<dyn Timing>) -> Self {
        self.timing = timing;
        self
    }

    /// The channel, for services that this client has no call for.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Makes a subscription follow this client's policy and time.
    pub fn resumable<T: Sequenced + 'static>(
        &self,
        subscription: Subscription<T>,
    ) -> Subscription<T> {
        subscription.with_retry(self.subscribe_policy.clone(), self.timing.clone())
    }

    /// The retries of one publish.
    fn publish_retry(&self) -> Retry {
        Retry::new(self.publish_policy.clone(), self.timing.clone())
    }
}

/// How to connect to `addr`: a dead peer is noticed within 30 seconds, also by a silent stream.
fn endpoint(addr: &str) -> Result<Endpoint, ConnectError> {
    let malformed = || ConnectError::Address {
        addr: addr.to_owned(),
    };
    let endpoint = Endpoint::from_shared(addr.to_owned()).map_err(|_| malformed())?;
    if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().authority().is_none() {
        return Err(malformed());
    }
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    endpoint
        .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
        .map_err(|_| malformed())
}
