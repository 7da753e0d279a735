//! What instances say to each other, and its encoding.
//!
//! A message is two bytes, [`MARK`], and a protobuf message: instances of two versions talk to each other, since a field that
//! one does not know is skipped and one that is absent is zero. A change that is more than an addition gets another mark.
//! Bytes that are no such message stand for nothing: whoever may publish to the subjects cannot do harm by it.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

use crate::log::Topic;

/// What every message begins with: the service, and the version of the encoding.
const MARK: [u8; 2] = [b'W', 1];

/// One run of an instance: a number drawn at its start, which tells two of one name apart, and an instance from itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run(pub(super) u64);

impl Run {
    pub(crate) fn new() -> Self {
        Self(rand::random_range(1..=u64::MAX))
    }
}

/// Something that happens now, for the listeners of another instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// Where.
    pub topic: Topic,
    /// The user it is about.
    pub user: Box<str>,
    /// What it is; the core gives the number its meaning.
    pub kind: u16,
    /// What comes with it.
    pub payload: Bytes,
}

/// What an instance says of itself.
#[derive(Clone, PartialEq, Message)]
pub struct Description {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// When it started, in nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "3")]
    pub started: u64,
    /// Whether it is asked to stop.
    #[prost(bool, tag = "4")]
    pub is_draining: bool,
    /// What keeps it from serving; empty: it is ready.
    #[prost(string, repeated, tag = "5")]
    pub reasons: Vec<String>,
    /// Streams that run.
    #[prost(uint64, tag = "6")]
    pub streams: u64,
    /// Where it listens for gRPC.
    #[prost(string, repeated, tag = "7")]
    pub grpc: Vec<String>,
}

/// What an instance counted since its start, and what it is like now. Whoever asks computes rates from two of these, so the
/// one that answers keeps nothing for it.
#[derive(Clone, PartialEq, Message)]
pub struct Counters {
    /// Which process counted; another one counts from zero again.
    #[prost(fixed64, tag = "1")]
    pub run: u64,
    /// Nanoseconds since its start.
    #[prost(uint64, tag = "2")]
    pub uptime: u64,
    /// The time, in nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "3")]
    pub time: u64,
    /// Time of each core since the machine's start.
    #[prost(message, repeated, tag = "4")]
    pub ticks: Vec<Ticks>,
    /// Usage of each core in percent, where the machine offers nothing better.
    #[prost(double, repeated, tag = "5")]
    pub percents: Vec<f64>,
    /// Memory of the process.
    #[prost(uint64, tag = "6")]
    pub resident_bytes: u64,
    /// Requests of every endpoint.
    #[prost(message, repeated, tag = "7")]
    pub requests: Vec<Requests>,
}

/// Time of one core, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ticks {
    /// Not idle.
    #[prost(uint64, tag = "1")]
    pub busy: u64,
    /// All of it.
    #[prost(uint64, tag = "2")]
    pub all: u64,
}

/// Requests of one endpoint.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Requests {
    /// The method, written like `chat.ChatService/SendMessage`.
    #[prost(string, tag = "1")]
    pub method: String,
    /// How many.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// A signal on its way.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Told {
    /// Who tells it.
    #[prost(fixed64, tag = "1")]
    pub(super) from: u64,
    /// Whom; zero: all.
    #[prost(fixed64, tag = "2")]
    pub(super) to: u64,
    #[prost(string, tag = "3")]
    space: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    user: String,
    #[prost(uint32, tag = "6")]
    kind: u32,
    #[prost(bytes = "bytes", tag = "7")]
    payload: Bytes,
}

impl Told {
    pub(super) fn new(from: Run, to: Option<Run>, signal: Signal) -> Self {
        Self {
            from: from.0,
            to: to.map_or(0, |to| to.0),
            space: signal.topic.space().as_str().into(),
            name: signal.topic.name().into(),
            user: signal.user.into(),
            kind: signal.kind.into(),
            payload: signal.payload,
        }
    }

    /// The signal, if it makes sense here.
    pub(super) fn signal(self) -> Option<Signal> {
        Some(Signal {
            topic: Topic::new(self.space.parse().ok()?, &self.name).ok()?,
            user: self.user.into(),
            kind: self.kind.try_into().ok()?,
            payload: self.payload,
        })
    }
}

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Asked {
    /// Who asks.
    #[prost(fixed64, tag = "1")]
    pub(super) from: u64,
    #[prost(enumeration = "What", tag = "2")]
    pub(super) what: i32,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum What {
    /// Nothing that this version knows.
    Unknown = 0,
    /// A [`Description`].
    Description = 1,
    /// [`Counters`].
    Counters = 2,
}

/// An answer: one of its parts, as it was asked for.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    /// Who answers.
    #[prost(fixed64, tag = "1")]
    pub(super) from: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) description: Option<Description>,
    #[prost(message, optional, tag = "3")]
    pub(super) counters: Option<Counters>,
}

pub(super) fn encode(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(MARK.len() + message.encoded_len());
    out.put_slice(&MARK);
    message.encode_raw(&mut out);
    out.freeze()
}

/// The message in `bytes`; none where there is no such message.
pub(super) fn decode<M: Message + Default>(bytes: &Bytes) -> Option<M> {
    bytes.strip_prefix(&MARK)?;
    M::decode(bytes.slice(MARK.len()..)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::Space;

    fn signal(name: &str, user: &str, kind: u16, payload: &[u8]) -> Signal {
        Signal {
            topic: Topic::new(Space::Document, name).unwrap(),
            user: user.into(),
            kind,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    proptest! {
        #[test]
        fn signals_read_back(name in "[a-zé.*> ]{1,40}[a-z]", user in ".{0,40}", kind: u16, payload: Vec<u8>) {
            let signal = signal(&name, &user, kind, &payload);
            let told = Told::new(Run(7), Some(Run(8)), signal.clone());
            let read: Told = decode(&encode(&told)).unwrap();
            prop_assert_eq!((read.from, read.to), (7, 8));
            prop_assert_eq!(read.signal(), Some(signal));
        }

        #[test]
        fn foreign_bytes_stand_for_nothing_and_break_nothing(bytes: Vec<u8>, at: prop::sample::Index, byte: u8) {
            prop_assert_eq!(decode::<Told>(&Bytes::from(bytes.clone())).is_some(), bytes.starts_with(&MARK)
                && Told::decode(&bytes[2..]).is_ok());
            let mut mutated = encode(&Told::new(Run(7), None, signal("a", "ann", 1, b"x"))).to_vec();
            let at = at.index(mutated.len());
            mutated[at] = byte;
            let _ = decode::<Told>(&mutated.clone().into()).and_then(Told::signal);
            let _ = decode::<Asked>(&mutated.clone().into());
            let _ = decode::<Answer>(&mutated.into());
        }
    }

    #[test]
    fn what_makes_no_sense_here_is_no_signal() {
        let told = Told::new(Run(7), None, signal("a", "ann", 1, b""));
        for wrong in [
            Told {
                space: "planet".into(),
                ..told.clone()
            },
            Told {
                name: " ".into(),
                ..told.clone()
            },
            Told {
                kind: 70_000,
                ..told
            },
        ] {
            assert_eq!(wrong.signal(), None);
        }
    }

    #[test]
    fn a_message_of_another_version_is_none() {
        let mut bytes = encode(&Asked::default()).to_vec();
        assert!(decode::<Asked>(&bytes.clone().into()).is_some());
        bytes[1] += 1;
        assert!(decode::<Asked>(&bytes.into()).is_none());
    }

    #[test]
    fn a_newer_instance_may_say_more() {
        let mut bytes = encode(&Asked { from: 3, what: 9 }).to_vec();
        // A field of a number that this version does not have.
        bytes.extend([15 << 3, 1]);
        let asked: Asked = decode(&bytes.into()).unwrap();
        assert_eq!((asked.from, asked.what()), (3, What::Unknown));
    }
}
