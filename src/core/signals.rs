//! Signals: what happens now and is no record (typing, awareness, presence). Best effort and never stored.
//!
//! Bounds: one channel for each topic that somebody listens to, with [`CHANNEL`] signals. A listener that falls behind
//! loses the oldest, and the loss is counted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{log::Topic, telemetry::Metrics};

/// Signals a listener may be behind.
pub const CHANNEL: usize = 64;

/// Who sends signals: one stream, so that it does not hear itself. Zero is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sender(u64);

impl Sender {
    /// A sender no other equals, in this process.
    #[must_use]
    pub fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Something that happens now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// Who sends it.
    pub sender: Sender,
    /// The user it is about.
    pub user: Box<str>,
    /// What it is.
    pub kind: SignalKind,
    /// What comes with it.
    pub payload: Bytes,
}

/// Kinds of signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalKind {
    /// The user is typing.
    Typing,
    /// The user's awareness of a document: cursor, name, colour.
    Awareness,
    /// The user came.
    Joined,
    /// The user went.
    Left,
}

/// The signals of one node. Cheap to clone.
#[derive(Clone)]
pub struct Signals(Arc<Inner>);

struct Inner {
    channels: Mutex<HashMap<Topic, broadcast::Sender<Arc<Signal>>>>,
    metrics: Metrics,
}

impl Signals {
    /// Nobody listens yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            channels: Mutex::default(),
            metrics,
        }))
    }

    /// Sends a signal to whoever listens to `topic` now.
    pub fn send(&self, topic: &Topic, signal: Signal) {
        if let Some(channel) = self.0.lock().get(topic) {
            // Nobody left to hear it: as good as sent.
            let _ = channel.send(Arc::new(signal));
        }
    }

    /// Hears the signals of `topic` from now on, but not those of `own`.
    #[must_use]
    pub fn listen(&self, topic: &Topic, own: Sender) -> Listener {
        let mut channels = self.0.lock();
        let channel = channels
            .entry(topic.clone())
            .or_insert_with(|| broadcast::channel(CHANNEL).0);
        Listener {
            receiver: Some(channel.subscribe()),
            topic: topic.clone(),
            own,
            signals: Arc::clone(&self.0),
        }
    }
}

impl Inner {
    /// Counts signals a listener lost; what they were, nobody knows any more, so the label is their carrier.
    fn dropped(&self, lost: u64) {
        self.metrics
            .signals_dropped
            .with_label_values(&["channel"])
            .inc_by(lost);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, broadcast::Sender<Arc<Signal>>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears the signals of one topic until it is dropped.
pub struct Listener {
    receiver: Option<broadcast::Receiver<Arc<Signal>>>,
    topic: Topic,
    own: Sender,
    signals: Arc<Inner>,
}

impl Listener {
    /// The topic.
    #[must_use]
    pub const fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The next signal of others. Cancel-safe.
    pub async fn next(&mut self) -> Arc<Signal> {
        loop {
            let Some(receiver) = &mut self.receiver else {
                return std::future::pending().await;
            };
            match receiver.recv().await {
                Ok(signal) if signal.sender == self.own => {}
                Ok(signal) => return signal,
                Err(RecvError::Lagged(lost)) => self.signals.dropped(lost),
                Err(RecvError::Closed) => self.receiver = None,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.receiver = None;
        let mut channels = self.signals.lock();
        if channels
            .get(&self.topic)
            .is_some_and(|channel| channel.receiver_count() == 0)
        {
            channels.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Space;

    fn signal(sender: Sender, user: &str) -> Signal {
        Signal {
            sender,
            user: user.into(),
            kind: SignalKind::Typing,
            payload: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_listener_hears_others_and_not_itself() {
        let signals = Signals::new(Metrics::new());
        let room = Topic::new(Space::Room, "a").unwrap();
        let (me, you) = (Sender::new(), Sender::new());
        let mut listener = signals.listen(&room, me);
        signals.send(&room, signal(me, "me"));
        signals.send(&room, signal(you, "you"));
        assert_eq!(listener.next().await.user.as_ref(), "you");
    }

    #[tokio::test]
    async fn what_a_slow_listener_loses_is_counted_and_the_newest_stays() {
        let metrics = Metrics::new();
        let signals = Signals::new(metrics.clone());
        let room = Topic::new(Space::Room, "a").unwrap();
        let mut listener = signals.listen(&room, Sender::new());
        let other = Sender::new();
        for number in 0..CHANNEL + 10 {
            signals.send(&room, signal(other, &number.to_string()));
        }
        assert_eq!(listener.next().await.user.as_ref(), "10");
        let dropped = metrics.signals_dropped.with_label_values(&["channel"]);
        assert_eq!(dropped.get(), 10);
    }

    #[tokio::test]
    async fn nothing_stays_behind_the_last_listener() {
        let signals = Signals::new(Metrics::new());
        let room = Topic::new(Space::Room, "a").unwrap();
        let first = signals.listen(&room, Sender::new());
        let second = signals.listen(&room, Sender::new());
        drop(first);
        assert_eq!(signals.0.lock().len(), 1);
        drop(second);
        assert!(signals.0.lock().is_empty());
    }
}
