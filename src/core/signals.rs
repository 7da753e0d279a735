//! Signals: what happens now and is no record (typing, awareness, presence). Best effort and never stored.
//!
//! A signal reaches the listeners of this node at once, and those of the other instances by [`Peers`], each of which passes it
//! on to its own listeners only.
//!
//! **Awareness** of documents has a memory as long as its sender listens: a y-protocols awareness update says what is so
//! from now on, and a newcomer would else wait for the next one. So a new listener begins with the last awareness of each
//! sender of its node; and when somebody comes to a document ([`SignalKind::Joined`]) on another instance, that instance is
//! told the same of this one. To hear an awareness twice is to hear it once, as each carries its editor's clock.
//!
//! Bounds: one channel for each topic that somebody listens to, with [`CHANNEL`] signals. A listener that falls behind
//! loses the oldest, and the loss is counted. Of a sender one awareness of at most `REMEMBERED_BYTES` is remembered, and a
//! newcomer gets those of [`CHANNEL`] senders.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    log::{Space, Topic},
    peers::{self, Peers, Run},
    telemetry::Metrics,
};

/// Signals a listener may be behind.
pub const CHANNEL: usize = 64;
/// A larger awareness is passed on and not remembered.
const REMEMBERED_BYTES: usize = 4 * 1024;

/// Who sends signals: one stream of this node, so that it does not hear itself. Zero is nobody's: whoever is on another node
/// is nobody here.
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

/// Kinds of signal. Instances of several versions tell each other the numbers: never change one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum SignalKind {
    /// The user is typing.
    Typing = 1,
    /// The user's awareness of a document: cursor, name, colour.
    Awareness = 2,
    /// The user came.
    Joined = 3,
    /// The user went.
    Left = 4,
}

impl SignalKind {
    const fn of(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Typing),
            2 => Some(Self::Awareness),
            3 => Some(Self::Joined),
            4 => Some(Self::Left),
            _ => None,
        }
    }
}

impl Signal {
    /// As the other instances are told it.
    fn outgoing(&self, topic: &Topic) -> peers::Signal {
        peers::Signal {
            topic: topic.clone(),
            user: self.user.clone(),
            kind: self.kind as u16,
            payload: self.payload.clone(),
        }
    }
}

/// The signals of one node. Cheap to clone.
#[derive(Clone)]
pub struct Signals(Arc<Inner>);

struct Inner {
    channels: Mutex<HashMap<Topic, Channel>>,
    peers: Peers,
    metrics: Metrics,
}

/// One topic that somebody listens to.
struct Channel {
    signals: broadcast::Sender<Arc<Signal>>,
    /// The last awareness of each sender that listens to a document.
    awareness: HashMap<Sender, Option<Arc<Signal>>>,
}

impl Channel {
    fn new() -> Self {
        Self {
            signals: broadcast::channel(CHANNEL).0,
            awareness: HashMap::new(),
        }
    }

    fn send(&mut self, signal: &Arc<Signal>) {
        if signal.kind == SignalKind::Awareness
            && let Some(last) = self.awareness.get_mut(&signal.sender)
        {
            let is_small = signal.payload.len() <= REMEMBERED_BYTES;
            *last = is_small.then(|| Arc::clone(signal));
        }
        // Nobody left to hear it: as good as sent.
        let _ = self.signals.send(Arc::clone(signal));
    }

    /// What a newcomer is told of those who are there.
    fn remembered(&self) -> impl Iterator<Item = &Arc<Signal>> {
        self.awareness.values().flatten().take(CHANNEL)
    }
}

impl Signals {
    /// Nobody listens yet.
    #[must_use]
    pub fn new(metrics: Metrics, peers: Peers) -> Self {
        Self(Arc::new(Inner {
            channels: Mutex::default(),
            peers,
            metrics,
        }))
    }

    /// Sends a signal to whoever listens to `topic` now, here and on the other instances.
    pub fn send(&self, topic: &Topic, signal: Signal) {
        self.0.peers.tell(None, || signal.outgoing(topic));
        self.deliver(topic, signal);
    }

    fn deliver(&self, topic: &Topic, signal: Signal) {
        if let Some(channel) = self.0.lock().get_mut(topic) {
            channel.send(&Arc::new(signal));
        }
    }

    /// Passes a signal of another instance on to the listeners here. One of a kind that this version does not know is
    /// nothing.
    pub fn hear(&self, from: Run, signal: peers::Signal) {
        let peers::Signal {
            topic,
            user,
            kind,
            payload,
        } = signal;
        let Some(kind) = SignalKind::of(kind) else {
            return;
        };
        if kind == SignalKind::Joined {
            self.greet(from, &topic);
        }
        let signal = Signal {
            sender: Sender::default(),
            user,
            kind,
            payload,
        };
        self.deliver(&topic, signal);
    }

    /// Tells an instance, to which somebody came, the awareness of those who are here.
    fn greet(&self, newcomer: Run, topic: &Topic) {
        let remembered: Vec<_> = match self.0.lock().get(topic) {
            Some(channel) => channel.remembered().cloned().collect(),
            None => return,
        };
        for signal in remembered {
            self.0.peers.tell(Some(newcomer), || signal.outgoing(topic));
        }
    }

    /// Hears the signals of `topic` from now on, but not those of `own`; the awareness of those who are here comes first.
    #[must_use]
    pub fn listen(&self, topic: &Topic, own: Sender) -> Listener {
        let mut channels = self.0.lock();
        let channel = channels.entry(topic.clone()).or_insert_with(Channel::new);
        let first = channel.remembered().cloned().collect();
        if topic.space() == Space::Document {
            channel.awareness.insert(own, None);
        }
        Listener {
            first,
            receiver: Some(channel.signals.subscribe()),
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears the signals of one topic until it is dropped.
pub struct Listener {
    /// What is told before anything else.
    first: VecDeque<Arc<Signal>>,
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
        if let Some(signal) = self.first.pop_front() {
            return signal;
        }
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
        if let Some(channel) = channels.get_mut(&self.topic) {
            channel.awareness.remove(&self.own);
            if channel.signals.receiver_count() == 0 {
                channels.remove(&self.topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let signals = Signals::new(Metrics::new(), Peers::alone());
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
        let signals = Signals::new(metrics.clone(), Peers::alone());
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
        let signals = Signals::new(Metrics::new(), Peers::alone());
        let room = Topic::new(Space::Room, "a").unwrap();
        let first = signals.listen(&room, Sender::new());
        let second = signals.listen(&room, Sender::new());
        drop(first);
        assert_eq!(signals.0.lock().len(), 1);
        drop(second);
        assert!(signals.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_newcomer_is_told_the_last_awareness_of_those_who_are_there() {
        let signals = Signals::new(Metrics::new(), Peers::alone());
        let document = Topic::new(Space::Document, "a").unwrap();
        let aware = |sender, payload: &[u8]| Signal {
            kind: SignalKind::Awareness,
            payload: Bytes::copy_from_slice(payload),
            ..signal(sender, "ann")
        };
        let (ann, bob, gone, passing) =
            (Sender::new(), Sender::new(), Sender::new(), Sender::new());
        let _ann = signals.listen(&document, ann);
        let _bob = signals.listen(&document, bob);
        let left = signals.listen(&document, gone);
        signals.send(&document, aware(ann, b"1"));
        signals.send(&document, aware(ann, b"2"));
        signals.send(&document, aware(bob, &[0; REMEMBERED_BYTES + 1]));
        signals.send(&document, aware(gone, b"x"));
        // Who does not listen leaves nothing behind.
        signals.send(&document, aware(passing, b"y"));
        drop(left);
        let mut carol = signals.listen(&document, Sender::new());
        signals.send(&document, signal(bob, "bob"));
        assert_eq!(*carol.next().await.payload, *b"2");
        assert_eq!(carol.next().await.user.as_ref(), "bob");
    }

    #[tokio::test]
    async fn what_others_tell_reaches_every_listener_here() {
        let signals = Signals::new(Metrics::new(), Peers::alone());
        let room = Topic::new(Space::Room, "a").unwrap();
        let mut listener = signals.listen(&room, Sender::new());
        let told = |kind| peers::Signal {
            topic: room.clone(),
            user: "ann".into(),
            kind,
            payload: Bytes::new(),
        };
        // A later version's kind.
        signals.hear(Run::new(), told(99));
        signals.hear(Run::new(), told(SignalKind::Typing as u16));
        let heard = listener.next().await;
        assert_eq!(
            (heard.kind, heard.sender),
            (SignalKind::Typing, Sender::default())
        );
        for kind in [
            SignalKind::Typing,
            SignalKind::Awareness,
            SignalKind::Joined,
            SignalKind::Left,
        ] {
            assert_eq!(SignalKind::of(kind as u16), Some(kind));
        }
    }
}
