//! `kill -9` at random instants: what was acknowledged is there, once and in order, and a subscriber that reconnects
//! neither misses nor repeats anything.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{future::BoxFuture, stream};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use weir::{
    client::{Client, RetryPolicy, SystemTiming, Timing},
    proto::chat::Message,
};

use crate::support::{Settings, TestServer, message, server::lasting_address, soon};

const ROOM: &str = "front";
/// Ends the room.
const END: &str = "end";
const ROUNDS: u64 = 30;
/// How long a life lasts at most after its first acknowledgement.
const LIFE_MILLIS: u64 = 400;
/// Messages of one upload at most.
const UPLOAD: u64 = 100;

/// How a writer publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One keyed message after the other, each repeated until it is acknowledged.
    Send,
    /// Keyed messages in streams, each stream repeated as a whole until it is acknowledged.
    KeyedUpload,
    /// Messages without keys in streams that are never repeated.
    Upload,
}

const WRITERS: [Way; 8] = [
    Way::Send,
    Way::Send,
    Way::Send,
    Way::Send,
    Way::KeyedUpload,
    Way::KeyedUpload,
    Way::Upload,
    Way::Upload,
];

/// Counts the waits before repetitions.
struct Repetitions(AtomicU64);

impl Timing for Repetitions {
    fn now(&self) -> Instant {
        SystemTiming.now()
    }

    fn jitter(&self) -> f64 {
        SystemTiming.jitter()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        SystemTiming.sleep(delay)
    }
}

/// What one writer knows of its messages, numbered from zero.
#[derive(Default)]
struct Written {
    sent: u64,
    /// Acknowledged numbers; with the sequence where the acknowledgement tells it.
    acknowledged: Vec<(u64, Option<u64>)>,
}

struct Writer {
    number: usize,
    way: Way,
    client: Client,
    random: StdRng,
    written: Written,
    acknowledged: Arc<watch::Sender<u64>>,
}

impl Writer {
    /// Publishes until told to stop, then finishes what is under way.
    async fn run(mut self, stop: watch::Receiver<bool>) -> (usize, Written) {
        while !*stop.borrow() {
            match self.way {
                Way::Send => self.send().await,
                Way::KeyedUpload | Way::Upload => self.upload().await,
            }
        }
        (self.number, self.written)
    }

    async fn send(&mut self) {
        let number = self.take(1);
        let message = self.message(number);
        let (user, key) = (&message.user, &message.idempotency_key);
        let sent = self.client.send(user, ROOM, &message.content, key).await;
        let sequence = sent
            .expect("a keyed send is repeated until it is stored")
            .sequence;
        self.acknowledge(vec![(number, Some(sequence))]);
    }

    async fn upload(&mut self) {
        let count = self.random.random_range(1..=UPLOAD);
        let first = self.take(count);
        let messages: Vec<_> = (first..first + count)
            .map(|number| self.message(number))
            .collect();
        let stored = if self.way == Way::KeyedUpload {
            let stored = self.client.upload_all(messages).await;
            stored.expect("a keyed upload is repeated until it is stored")
        } else {
            match self.client.upload(stream::iter(messages)).await {
                Ok(stored) => stored,
                // Whether any of it is stored is unknown; nobody is there to ask for a while.
                Err(_) => return SystemTiming.sleep(Duration::from_millis(10)).await,
            }
        };
        assert_eq!(stored, count, "an upload's answer counts its messages");
        self.acknowledge(
            (first..first + count)
                .map(|number| (number, None))
                .collect(),
        );
    }

    fn take(&mut self, count: u64) -> u64 {
        let first = self.written.sent;
        self.written.sent += count;
        first
    }

    fn acknowledge(&mut self, numbers: Vec<(u64, Option<u64>)>) {
        let count = numbers.len() as u64;
        self.written.acknowledged.extend(numbers);
        self.acknowledged
            .send_modify(|acknowledged| *acknowledged += count);
    }

    fn message(&self, number: u64) -> Message {
        let content = format!("{}:{number}", self.number);
        let idempotency_key = match self.way {
            Way::Send | Way::KeyedUpload => content.clone(),
            Way::Upload => String::new(),
        };
        Message {
            idempotency_key,
            ..message(ROOM, &format!("writer-{}", self.number), &content)
        }
    }
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        base: Duration::from_millis(5),
        cap: Duration::from_millis(50),
        ..RetryPolicy::default()
    }
}

/// Everything of the room from its first message on, up to its end; one subscription, however often it is cut.
async fn read(client: Client) -> Vec<(u64, String)> {
    let mut subscription = client.subscribe(ROOM, "reader", Some(0));
    let mut seen = Vec::new();
    while let Some(message) = soon("the next message", subscription.next()).await {
        let message = message.expect("a subscription outlives the server");
        if message.sequence == 0 {
            continue;
        }
        let last = seen.last().map_or(0, |(sequence, _)| *sequence);
        assert!(
            last < message.sequence,
            "{} came after {last}",
            message.sequence
        );
        let is_end = message.content == END;
        seen.push((message.sequence, message.content));
        if is_end {
            break;
        }
    }
    assert_eq!(
        subscription.duplicates(),
        0,
        "the server repeated what was received"
    );
    seen
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing_acknowledged_and_repeats_nothing() {
    let seed = env("WEIR_KILL_SEED").unwrap_or_else(rand::random);
    let rounds = env("WEIR_KILL_ROUNDS").unwrap_or(ROUNDS);
    println!("kill -9: WEIR_KILL_SEED={seed}, {rounds} rounds");
    let mut random = StdRng::seed_from_u64(seed);
    let started = std::time::Instant::now();

    let settings = Settings::default().set("server.grpc", lasting_address());
    let mut server = TestServer::with(settings).await;
    let repetitions = Arc::new(Repetitions(AtomicU64::new(0)));
    let client = Client::connect_lazy(&server.url())
        .unwrap()
        .with_subscribe_policy(policy())
        .with_publish_policy(policy());
    let reader = tokio::spawn(read(client.clone()));
    let (stop, stopped) = watch::channel(false);
    let acknowledged = Arc::new(watch::Sender::new(0));
    let mut writers = JoinSet::new();
    for (number, way) in WRITERS.into_iter().enumerate() {
        let writer = Writer {
            number,
            way,
            client: Client::connect_lazy(&server.url())
                .unwrap()
                .with_publish_policy(policy())
                .with_timing(repetitions.clone()),
            random: StdRng::seed_from_u64(seed ^ (number as u64 + 1)),
            written: Written::default(),
            acknowledged: Arc::clone(&acknowledged),
        };
        writers.spawn(writer.run(stopped.clone()));
    }

    for round in 0..rounds {
        let mut progress = acknowledged.subscribe();
        progress.mark_unchanged();
        soon("an acknowledgement in this life", progress.changed())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..LIFE_MILLIS))).await;
        server.kill().await;
        if round % 3 == 2 {
            // Killed again while it recovers.
            server
                .start_and_kill(Duration::from_millis(random.random_range(0..80)))
                .await;
        }
        server = server.restart().await;
    }
    stop.send_replace(true);
    let mut written = HashMap::new();
    while let Some(writer) = soon("the writers to finish", writers.join_next()).await {
        let (number, writer) = writer.expect("a writer");
        written.insert(number, writer);
    }
    client.send("judge", ROOM, END, "").await.unwrap();
    let seen = reader.await.expect("the reader");
    let stored = read(client).await;

    assert!(
        seen == stored,
        "what the reader saw across all lives is not what is stored"
    );
    let counts = judge(&written, &stored);
    println!(
        "kill -9: {} acknowledged, {} stored, {} repetitions, {:.1} s",
        counts,
        stored.len(),
        repetitions.0.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
    assert!(
        repetitions.0.load(Ordering::Relaxed) >= rounds.min(1),
        "no publish was ever cut, so nothing was repeated"
    );
}

/// Compares what the writers know with what is stored; returns how many messages were acknowledged.
fn judge(written: &HashMap<usize, Written>, stored: &[(u64, String)]) -> usize {
    let mut places: Vec<HashMap<u64, u64>> = WRITERS.iter().map(|_| HashMap::new()).collect();
    let mut last = [None; WRITERS.len()];
    for (sequence, content) in stored.iter().filter(|(_, content)| content != END) {
        let (writer, number) = content.split_once(':').expect("a writer's content");
        let (writer, number): (usize, u64) = (writer.parse().unwrap(), number.parse().unwrap());
        let repeated = places[writer].insert(number, *sequence);
        assert_eq!(repeated, None, "{content} is stored twice");
        assert!(
            last[writer] < Some(number),
            "{content} came after {:?}",
            last[writer]
        );
        last[writer] = Some(number);
    }
    let mut count = 0;
    for (writer, known) in written {
        for (number, sequence) in &known.acknowledged {
            let place = places[*writer].get(number);
            assert!(
                place.is_some(),
                "{writer}:{number} was acknowledged and is lost"
            );
            assert!(
                sequence.is_none() || place.copied() == *sequence,
                "{writer}:{number} was acknowledged at {sequence:?} and is at {place:?}"
            );
        }
        let most = places[*writer].keys().max().map_or(0, |number| number + 1);
        assert!(
            most <= known.sent,
            "writer {writer} never sent {most} messages"
        );
        count += known.acknowledged.len();
    }
    count
}
