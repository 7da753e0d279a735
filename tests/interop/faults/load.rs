//! Subscribers and publishers of one room, and what they meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use weir::client::{Client, Event, Retry, RetryPolicy, SystemTiming};

use crate::support::{errors::assert_ended, eventually, soon};

pub(super) const ROOM: &str = "hall";
/// Who says the last message.
const JUDGE: &str = "judge";

/// A message as it was stored: position, publisher, number.
type Said = (u64, usize, u32);

/// How much load there is.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) subscribers: usize,
    pub(super) publishers: usize,
    /// Between two messages of a publisher.
    pub(super) pace: Duration,
}

impl Size {
    /// As many times as `WEIR_FAULTS_LOAD` says.
    pub(super) fn scaled(self) -> Self {
        let factor = std::env::var("WEIR_FAULTS_LOAD").map_or(1, |text| text.parse().unwrap());
        Self {
            subscribers: self.subscribers * factor,
            publishers: self.publishers * factor,
            ..self
        }
    }
}

/// The end of a stream, or a failed attempt to open one.
#[derive(Clone)]
pub(super) struct End {
    pub(super) at: Instant,
    pub(super) subscriber: usize,
    pub(super) code: Code,
    /// Why the server ended it; empty when it did not say.
    pub(super) reason: String,
}

/// What subscribers and publishers met so far.
#[derive(Default)]
pub(super) struct Journal {
    greeted: AtomicUsize,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<Said>>,
    pub(super) ends: Mutex<Vec<End>>,
    /// Streams opened again: when and whose.
    pub(super) resumed: Mutex<Vec<(Instant, usize)>>,
    away: Mutex<BTreeSet<usize>>,
    refusals: Mutex<BTreeMap<i32, usize>>,
}

impl Journal {
    fn observe(&self, subscriber: usize, event: Event<'_>) {
        let at = Instant::now();
        match event {
            Event::Connected {
                is_resumed: false, ..
            } => {}
            Event::Connected { .. } => {
                self.away.lock().unwrap().remove(&subscriber);
                self.resumed.lock().unwrap().push((at, subscriber));
            }
            Event::Reconnecting { cause, .. } => {
                self.away.lock().unwrap().insert(subscriber);
                let reason = reason(cause);
                if ["DRAINING", "MAX_AGE"].contains(&&*reason) {
                    assert_ended(cause, &reason);
                }
                self.ends.lock().unwrap().push(End {
                    at,
                    subscriber,
                    code: cause.code(),
                    reason,
                });
            }
        }
    }

    fn refused(&self, status: &Status) {
        // A connection told to go or broken has the client's library name the failure, and keep its cause.
        let is_said = std::error::Error::source(status).is_none();
        let is_passing = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        assert!(
            !is_said || is_passing,
            "the server refuses only for a while: {status:?}"
        );
        let mut refusals = self.refusals.lock().unwrap();
        *refusals.entry(status.code() as i32).or_default() += 1;
    }

    /// How many of these subscribers' streams were opened again after `moment`.
    pub(super) fn back_since(&self, moment: Instant) -> usize {
        let resumed = self.resumed.lock().unwrap();
        let since = resumed.iter().filter(|resumed| resumed.0 > moment);
        since
            .map(|resumed| resumed.1)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Subscribers without a stream now.
    pub(super) fn away(&self) -> usize {
        self.away.lock().unwrap().len()
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// The codes that publishers met, and how often.
    pub(super) fn refusals(&self) -> Vec<(Code, usize)> {
        named(&self.refusals.lock().unwrap())
    }

    /// The codes with which streams ended or did not open, and how often.
    pub(super) fn codes(&self) -> Vec<(Code, usize)> {
        let mut codes = BTreeMap::new();
        for end in self.ends.lock().unwrap().iter() {
            *codes.entry(end.code as i32).or_default() += 1;
        }
        named(&codes)
    }
}

fn named(codes: &BTreeMap<i32, usize>) -> Vec<(Code, usize)> {
    let codes = codes.iter();
    codes
        .map(|(code, count)| (Code::from_i32(*code), *count))
        .collect()
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map_or_else(String::new, |info| info.reason)
}

/// What a subscriber heard.
struct Heard {
    messages: Vec<Said>,
    duplicates: u64,
    /// The longest time between two messages.
    silence: Duration,
}

/// A room under load.
pub(super) struct Load {
    pub(super) journal: Arc<Journal>,
    size: Size,
    url: String,
    subscribers: JoinSet<Heard>,
    publishers: JoinSet<()>,
}

/// What a whole run brought.
pub(super) struct Report {
    pub(super) messages: usize,
    /// The longest time without a delivery: of any subscriber, and of half of them.
    pub(super) silence: Duration,
    pub(super) median_silence: Duration,
}

impl Load {
    /// Starts subscribers, live from now, and when all are welcomed the publishers. Client number n uses the address n of
    /// `urls`, in turn.
    pub(super) async fn start(urls: &[String], size: Size) -> Self {
        let journal = Arc::new(Journal::default());
        let mut load = Self {
            journal: journal.clone(),
            size,
            url: urls[0].clone(),
            subscribers: JoinSet::new(),
            publishers: JoinSet::new(),
        };
        for (number, url) in urls.iter().cycle().take(size.subscribers).enumerate() {
            let client = Client::connect_lazy(url).unwrap();
            load.subscribers
                .spawn(subscribe(number, client, journal.clone()));
        }
        eventually("all to be welcomed", || async {
            (journal.greeted.load(Ordering::Relaxed) == size.subscribers).then_some(())
        })
        .await;
        for (number, url) in urls.iter().cycle().take(size.publishers).enumerate() {
            // Repetitions are this test's, so that it sees their causes.
            let client = Client::connect_lazy(url)
                .unwrap()
                .with_publish_policy(RetryPolicy {
                    max_retries: Some(0),
                    ..RetryPolicy::default()
                });
            load.publishers
                .spawn(publish(number, client, size.pace, journal.clone()));
        }
        load.more(size.publishers).await;
        load
    }

    /// Waits until so many more messages are acknowledged.
    pub(super) async fn more(&self, more: usize) {
        let before = self.journal.acknowledged();
        eventually("messages to be acknowledged", || async {
            (self.journal.acknowledged() >= before + more).then_some(())
        })
        .await;
    }

    /// Ends it and checks: every acknowledged message was heard by every subscriber, once, in the one order, and nothing
    /// else was.
    pub(super) async fn finish(mut self) -> Report {
        self.journal.stop.store(true, Ordering::Relaxed);
        while let Some(done) = soon("the publishers to finish", self.publishers.join_next()).await {
            done.unwrap();
        }
        let judge = Client::connect_lazy(&self.url).unwrap();
        judge.send(JUDGE, ROOM, "end", "").await.unwrap();
        let mut acknowledged = std::mem::take(&mut *self.journal.acknowledged.lock().unwrap());
        acknowledged.sort_unstable();
        for publisher in 0..self.size.publishers {
            let own = acknowledged.iter().filter(|said| said.1 == publisher);
            assert!(
                own.zip(0..).all(|(said, number)| said.2 == number),
                "order of a publisher"
            );
        }
        let mut silences = Vec::new();
        while let Some(heard) =
            soon("the subscribers to finish", self.subscribers.join_next()).await
        {
            let heard = heard.unwrap();
            assert_same(&heard.messages, &acknowledged);
            assert_eq!(heard.duplicates, 0, "the server repeated nothing either");
            silences.push(heard.silence);
        }
        silences.sort_unstable();
        Report {
            messages: acknowledged.len(),
            silence: silences[silences.len() - 1],
            median_silence: silences[silences.len() / 2],
        }
    }
}

/// All of `wanted` and nothing else; says the first difference only.
fn assert_same(heard: &[Said], wanted: &[Said]) {
    let differs = heard
        .iter()
        .zip(wanted)
        .position(|(one, other)| one != other);
    let at = differs.unwrap_or(heard.len().min(wanted.len()));
    assert_eq!(
        heard.get(at),
        wanted.get(at),
        "message {at} of {}",
        wanted.len()
    );
}

async fn subscribe(number: usize, client: Client, journal: Arc<Journal>) -> Heard {
    let observed = journal.clone();
    let mut subscription = client
        .subscribe(ROOM, &format!("reader-{number}"), None)
        .with_observer(move |event| observed.observe(number, event));
    let mut heard = Heard {
        messages: Vec::new(),
        duplicates: 0,
        silence: Duration::ZERO,
    };
    let mut last = None;
    loop {
        let message = subscription
            .next()
            .await
            .expect("it never ends")
            .expect("nothing permanent");
        if message.sequence == 0 {
            journal.greeted.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if message.user == JUDGE {
            heard.duplicates = subscription.duplicates();
            return heard;
        }
        let now = Instant::now();
        let since = last.replace(now).map_or(Duration::ZERO, |last| now - last);
        heard.silence = heard.silence.max(since);
        let (publisher, number) = message.content.split_once(':').unwrap();
        let said = (
            message.sequence,
            publisher.parse().unwrap(),
            number.parse().unwrap(),
        );
        heard.messages.push(said);
    }
}

/// Says one message after the other, each again under its key until it is acknowledged.
async fn publish(publisher: usize, client: Client, pace: Duration, journal: Arc<Journal>) {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let user = format!("writer-{publisher}");
    for number in 0.. {
        ticks.tick().await;
        if journal.stop.load(Ordering::Relaxed) {
            return;
        }
        let text = format!("{publisher}:{number}");
        let mut retry = Retry::new(RetryPolicy::default(), Arc::new(SystemTiming));
        let sequence = loop {
            match client.send(&user, ROOM, &text, &text).await {
                Ok(reply) => break reply.sequence,
                Err(status) => {
                    journal.refused(&status);
                    let delay = retry.next_delay(&status);
                    sleep(delay.unwrap_or_else(|| panic!("not to be repeated: {status:?}"))).await;
                }
            }
        };
        journal
            .acknowledged
            .lock()
            .unwrap()
            .push((sequence, publisher, number));
    }
}
