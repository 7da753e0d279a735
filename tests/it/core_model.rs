//! The core against a model: rooms and hub over the embedded engine, with tails so small that catching up from the log is
//! the rule, and crashes between the steps.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, future::join_all};
use proptest::prelude::*;
use std::{collections::HashMap, path::PathBuf, sync::Arc};
use tempfile::TempDir;
use weir::{
    config,
    core::{
        Error, Hub, Name, Topics,
        hub::{Encoded, Encoding, Records, Start, Subscription},
        rooms::{Kind, Post, Posted, Rooms},
    },
    log::{self, Engine, Record, Sequence, Topic, embedded::Embedded},
    telemetry::{Metrics, Traces},
};

use super::{
    log_support::{copy_dir, room, settings},
    support::soon,
};

const USERS: u8 = 2;

#[derive(Debug, Clone)]
enum Step {
    /// A post of a user, maybe with a key, of some content.
    Post(Said),
    /// So many posts without keys at once.
    Burst(u8),
    /// A subscription: live, or after a share of the room; in wire form or as records.
    Subscribe(Option<u8>, bool),
    /// A subscription takes at most so many batches of what there is.
    Read(u8, u8),
    /// A subscription reads to the end, waits there, and is woken by a post.
    Wait(u8, Said),
    /// A subscription ends.
    Drop(u8),
    /// Drops what lies before a share of the room.
    Trim(u8),
    /// Closes and opens again.
    Restart,
    /// Goes on with a copy of what is on disk.
    Crash,
}

#[derive(Debug, Clone)]
struct Said {
    user: u8,
    key: Option<u8>,
    content: u8,
}

fn said() -> impl Strategy<Value = Said> {
    (0..USERS, proptest::option::of(0..6_u8), 0..4_u8).prop_map(|(user, key, content)| Said {
        user,
        key,
        content,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => said().prop_map(Step::Post),
        3 => (1..40_u8).prop_map(Step::Burst),
        4 => (proptest::option::of(any::<u8>()), any::<bool>())
            .prop_map(|(share, encoded)| Step::Subscribe(share, encoded)),
        6 => (any::<u8>(), 1..6_u8).prop_map(|(which, batches)| Step::Read(which, batches)),
        3 => (any::<u8>(), said()).prop_map(|(which, said)| Step::Wait(which, said)),
        1 => any::<u8>().prop_map(Step::Drop),
        1 => any::<u8>().prop_map(Step::Trim),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// A wire form simple enough to read back: sequence, length, id, length, content.
struct Framed;

impl Encoding for Framed {
    fn encode(_: &Topic, record: &Record, out: &mut BytesMut) {
        out.put_u64(record.sequence.0);
        for part in [record.id.as_bytes(), &record.payload[..]] {
            out.put_u32(u32::try_from(part.len()).unwrap());
            out.put_slice(part);
        }
    }
}

/// A message as the model knows it and as subscriptions deliver it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    sequence: u64,
    id: String,
    content: Vec<u8>,
}

fn unframed(bytes: &Bytes) -> Vec<Message> {
    let mut rest = &bytes[..];
    let mut messages = Vec::new();
    let take = |rest: &mut &[u8], count: usize| {
        let (taken, left) = rest.split_at(count);
        *rest = left;
        taken.to_vec()
    };
    while !rest.is_empty() {
        let sequence = u64::from_be_bytes(take(&mut rest, 8).try_into().unwrap());
        let mut part = || {
            let length = u32::from_be_bytes(take(&mut rest, 4).try_into().unwrap());
            take(&mut rest, length as usize)
        };
        messages.push(Message {
            sequence,
            id: String::from_utf8(part()).unwrap(),
            content: part(),
        });
    }
    messages
}

/// A subscription in one of the two forms.
enum Reader {
    Records(Subscription<Records>),
    Framed(Subscription<Encoded<Framed>>),
}

impl Reader {
    fn cursor(&self) -> u64 {
        match self {
            Self::Records(subscription) => subscription.cursor().0,
            Self::Framed(subscription) => subscription.cursor().0,
        }
    }

    async fn next(&mut self) -> Result<Vec<Message>, log::Error> {
        match self {
            Self::Records(subscription) => {
                let batch = subscription.next().await?;
                let messages = batch.data.iter().map(|record| Message {
                    sequence: record.sequence.0,
                    id: record.id.to_string(),
                    content: record.payload.to_vec(),
                });
                assert_eq!(batch.records, batch.data.len());
                Ok(messages.collect())
            }
            Self::Framed(subscription) => {
                let batch = subscription.next().await?;
                let messages = unframed(&batch.data);
                assert_eq!(batch.records, messages.len());
                Ok(messages)
            }
        }
    }
}

/// The room as it should be: every message ever stored, and the first one retained.
#[derive(Default)]
struct Model {
    messages: Vec<Message>,
    dropped: usize,
    keys: HashMap<(u8, u8), (usize, u8)>,
}

impl Model {
    fn first(&self) -> u64 {
        self.dropped as u64 + 1
    }

    fn tail(&self) -> u64 {
        self.messages.len() as u64 + 1
    }

    /// A position from the beginning to a little after the end.
    fn at(&self, share: u8) -> u64 {
        u64::from(share) * (self.tail() + 2) / 256
    }

    fn from(&self, sequence: u64) -> &[Message] {
        let skip = usize::try_from(sequence - 1).unwrap();
        &self.messages[skip.min(self.messages.len())..]
    }

    /// Judges what became of a post.
    fn posted(&mut self, said: &Said, posted: Result<Posted, Error>) {
        let key = said.key.map(|key| (said.user, key));
        let used = key.and_then(|key| self.keys.get(&key).copied());
        match (used, posted) {
            (None, Ok(posted)) => {
                assert_eq!(posted.sequence.0, self.tail());
                if let Some(key) = key {
                    self.keys.insert(key, (self.messages.len(), said.content));
                }
                self.messages.push(Message {
                    sequence: posted.sequence.0,
                    id: posted.id.to_string(),
                    content: content(said.content),
                });
            }
            (Some((index, same)), Ok(posted)) => {
                assert_eq!(said.content, same, "a key used again for other content");
                let first = &self.messages[index];
                assert_eq!(posted.sequence.0, first.sequence);
                if index >= self.dropped {
                    assert_eq!(
                        *posted.id, *first.id,
                        "a repeated post has the first one's id"
                    );
                }
            }
            (Some((index, other)), Err(Error::KeyConflict { sequence })) => {
                assert_ne!(said.content, other);
                assert_eq!(sequence.0, self.messages[index].sequence);
            }
            (used, posted) => panic!("{used:?} became {posted:?}"),
        }
    }
}

/// Contents of different lengths, so that tails and pages end anywhere.
fn content(content: u8) -> Vec<u8> {
    vec![content; 1 + usize::from(content) * 100]
}

struct World {
    dir: TempDir,
    lives: usize,
    engine: Arc<dyn Engine>,
    rooms: Rooms,
    topic: Topic,
    model: Model,
    readers: Vec<Reader>,
}

fn open(config: &config::Log) -> (Arc<dyn Engine>, Rooms) {
    let metrics = Metrics::new();
    let engine: Arc<dyn Engine> = Arc::new(Embedded::open(config, metrics.clone()).unwrap());
    let tails = config::Hub {
        tail: bytesize::ByteSize::kib(1),
        total: bytesize::ByteSize::kib(1),
    };
    let hub = Hub::new(Arc::clone(&engine), &tails, metrics, Traces::off());
    let rooms = Rooms::new(Topics::new(Arc::clone(&engine), hub, Traces::off()));
    (engine, rooms)
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (engine, rooms) = open(&settings(&dir.path().join("0")));
        Self {
            dir,
            lives: 0,
            engine,
            rooms,
            topic: room("modelled"),
            model: Model::default(),
            readers: Vec::new(),
        }
    }

    fn life(&self) -> PathBuf {
        self.dir.path().join(self.lives.to_string())
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Post(said) => self.post(&said).await,
            Step::Burst(count) => self.burst(count).await,
            Step::Subscribe(share, is_framed) => self.subscribe(share, is_framed).await,
            Step::Read(which, batches) => self.read(which, batches).await,
            Step::Wait(which, said) => self.wait(which, &said).await,
            Step::Drop(which) => drop(self.reader(which)),
            Step::Trim(share) => self.trim(share).await,
            Step::Restart => {
                self.readers.clear();
                self.engine.close().await;
                (self.engine, self.rooms) = open(&settings(&self.life()));
            }
            Step::Crash => {
                self.readers.clear();
                let from = self.life();
                self.lives += 1;
                copy_dir(&from, &self.life());
                (self.engine, self.rooms) = open(&settings(&self.life()));
            }
        }
    }

    fn make(&self, said: &Said) -> Post {
        Post {
            room: self.topic.clone(),
            user: Name::new(format!("user-{}", said.user)).unwrap(),
            id: None,
            kind: Kind::Text,
            content: content(said.content).into(),
            event_time: None,
            key: said.key.map(|key| Name::new(key.to_string()).unwrap()),
        }
    }

    async fn post(&mut self, said: &Said) {
        let posted = soon("a post", self.rooms.post(self.make(said))).await;
        self.model.posted(said, posted);
    }

    /// Many posts at once: they get their sequences in the order in which they were made.
    async fn burst(&mut self, count: u8) {
        let burst: Vec<_> = (0..count)
            .map(|content| Said {
                user: content % USERS,
                key: None,
                content: content % 4,
            })
            .collect();
        let posts = burst.iter().map(|said| self.rooms.post(self.make(said)));
        let posted = soon("a burst", join_all(posts)).await;
        for (said, posted) in burst.iter().zip(posted) {
            self.model.posted(said, posted);
        }
    }

    async fn subscribe(&mut self, share: Option<u8>, is_framed: bool) {
        let after = share.map(|share| self.model.at(share));
        let start = after.map_or(Start::Live, |after| Start::After(Sequence(after)));
        let (first, tail) = (self.model.first(), self.model.tail());
        let subscribed = if is_framed {
            let view = Encoded::<Framed>::default();
            self.rooms
                .subscribe(&self.topic, start, view)
                .await
                .map(Reader::Framed)
        } else {
            self.rooms
                .subscribe(&self.topic, start, Records)
                .await
                .map(Reader::Records)
        };
        let expected = match after {
            None => Ok(tail),
            Some(0) => Ok(first),
            Some(after) if after + 1 < first => Err(log::Error::Trimmed {
                first: Sequence(first),
            }),
            Some(after) if after + 1 > tail => Err(log::Error::BeyondTail {
                tail: Sequence(tail),
            }),
            Some(after) => Ok(after + 1),
        };
        match (expected, subscribed) {
            (Ok(cursor), Ok(reader)) => {
                assert_eq!(reader.cursor(), cursor);
                self.readers.push(reader);
            }
            (Err(expected), Err(error)) => assert_eq!(error, Error::Log(expected)),
            (expected, subscribed) => panic!("{expected:?}: {:?}", subscribed.err()),
        }
    }

    fn reader(&mut self, which: u8) -> Option<Reader> {
        let count = self.readers.len();
        (count > 0).then(|| self.readers.swap_remove(usize::from(which) % count))
    }

    async fn read(&mut self, which: u8, batches: u8) {
        let Some(mut reader) = self.reader(which) else {
            return;
        };
        for _ in 0..batches {
            if !self.read_batch(&mut reader).await {
                return;
            }
        }
        self.readers.push(reader);
    }

    /// Takes a batch of what there is, or sees that there is nothing; false when retention overtook the reader.
    async fn read_batch(&self, reader: &mut Reader) -> bool {
        let from = reader.cursor();
        if from == self.model.tail() {
            assert!(
                reader.next().now_or_never().is_none(),
                "there is nothing at {from}"
            );
            return true;
        }
        match soon("a batch", reader.next()).await {
            Ok(messages) => {
                let expected = self.model.from(from).iter().take(messages.len());
                assert!(expected.eq(&messages), "other messages from {from} on");
                assert_eq!(reader.cursor(), from + messages.len() as u64);
                true
            }
            Err(error) => {
                let first = Sequence(self.model.first());
                assert_eq!(error, log::Error::Trimmed { first });
                assert!(from < first.0, "{from} is retained");
                false
            }
        }
    }

    async fn wait(&mut self, which: u8, said: &Said) {
        let Some(mut reader) = self.reader(which) else {
            return;
        };
        while reader.cursor() < self.model.tail() {
            if !self.read_batch(&mut reader).await {
                return;
            }
        }
        let tail = self.model.tail();
        let mut next = Box::pin(reader.next());
        assert!(next.as_mut().now_or_never().is_none());
        self.post(said).await;
        if self.model.tail() > tail {
            let woken = soon("a waiting reader to be woken", next).await.unwrap();
            assert_eq!(woken, self.model.from(tail));
        } else {
            assert!(next.now_or_never().is_none(), "nothing was stored");
        }
        self.readers.push(reader);
    }

    async fn trim(&mut self, share: u8) {
        let before = self.model.at(share);
        self.engine
            .trim(&self.topic, Sequence(before))
            .await
            .unwrap();
        let kept = before.clamp(self.model.first(), self.model.tail());
        self.model.dropped = usize::try_from(kept - 1).unwrap();
    }

    /// Every reader reads to the end, and a new one everything that is retained.
    async fn finish(&mut self) {
        self.subscribe(Some(0), true).await;
        self.subscribe(Some(0), false).await;
        while let Some(mut reader) = self.readers.pop() {
            while reader.cursor() < self.model.tail() {
                if !self.read_batch(&mut reader).await {
                    break;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_is_like_its_model(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for step in steps {
                world.take(step).await;
            }
            world.finish().await;
        });
    }
}
