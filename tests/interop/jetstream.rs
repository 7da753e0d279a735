//! The engine on JetStream beyond the contract every engine keeps: several replicas, faults, start-up; against real servers.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, Weak, mpsc},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
};
use weir::{
    config::{Config, EngineKind},
    log::{
        Engine, Error, Follow, Follower, Health, OpenError, Outcome, Record, Sequence, Space,
        Topic, jetstream::Jetstream,
    },
    proto::chat::SubscribeRequest,
    telemetry::Metrics,
};

use super::{
    link::Link,
    log_support::{
        ALL, Feed, append, append_all, eventually, keyed, payloads, read_all, record, room,
    },
    nats::{Nats, SETTINGS},
    support::{
        self, Settings, TestServer, follow, send,
        server::{http_get, lasting_address},
    },
};

pub(crate) fn config(url: String) -> Config {
    let mut config = Config::default();
    config.log.engine = EngineKind::Jetstream;
    config.jetstream.url = url;
    config.jetstream.timeout = Duration::from_secs(2);
    config
}

pub(crate) async fn open(config: &Config) -> Jetstream {
    try_open(config).await.unwrap()
}

async fn try_open(config: &Config) -> Result<Jetstream, OpenError> {
    let nats = weir::nats::Nats::connect(config).await?;
    Jetstream::open(&nats, config, Metrics::new()).await
}

/// What the start says when it fails.
pub(crate) async fn refusal(config: &Config) -> String {
    match try_open(config).await {
        Ok(_) => panic!("it starts"),
        Err(error) => error.to_string(),
    }
}

async fn healthy(engine: &Jetstream) {
    let mut health = engine.health();
    let ready = health.wait_for(|health| *health == Health::Ready);
    support::soon("health", ready).await.unwrap();
}

async fn unhealthy(engine: &Jetstream) {
    let mut health = engine.health();
    let off = health.wait_for(|health| matches!(health, Health::Unavailable(_)));
    support::soon("bad health", off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_log() {
    const BATCHES: usize = 100;
    let nats = Nats::start();
    let config = config(nats.url());
    let replicas = [open(&config).await, open(&config).await];
    let topic = room("shared");
    let feeds = [Feed::new(), Feed::new()];
    let mut follows = Vec::new();
    for (replica, feed) in replicas.iter().zip(&feeds) {
        follows.push(replica.follow(&topic, feed.weak()).await.unwrap());
    }
    let write = async |replica: &Jetstream, who: &'static str| {
        let mut own = Vec::new();
        for _ in 0..BATCHES {
            own.extend(append_all(replica, &topic, &[who, who, who]).await);
        }
        own
    };
    let (one, two) = tokio::join!(write(&replicas[0], "one"), write(&replicas[1], "two"));
    assert!(one.is_sorted() && two.is_sorted());
    let mut all = [one, two].concat();
    all.sort();
    let last = all[all.len() - 1];
    for (replica, feed) in replicas.iter().zip(&feeds) {
        feed.until(|seen| seen.next > last).await;
        let fed = feed.seen(|seen| seen.records.clone());
        let sequences: Vec<_> = fed.iter().map(|record| record.sequence).collect();
        assert_eq!(sequences, all, "every replica sees the same order");
        assert_eq!(read_all(replica, &topic).await, fed, "and reads the same");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_trims_and_names_are_shared() {
    let nats = Nats::start();
    let config = config(nats.url());
    let (one, two) = (open(&config).await, open(&config).await);
    let topic = room("a.b > * ☂");
    let first = append(&one, vec![keyed(&topic, "k", "a")]).await;
    let Outcome::Stored { sequence, time } = first[0] else {
        panic!("not stored: {first:?}");
    };
    let batch = vec![
        record(&topic, "x"),
        keyed(&topic, "k", "a"),
        keyed(&topic, "k", "b"),
    ];
    let outcomes = append(&two, batch).await;
    assert_eq!(outcomes[1], Outcome::Duplicate { sequence, time });
    assert_eq!(outcomes[2], Outcome::Conflict { sequence });
    assert_eq!(payloads(&read_all(&two, &topic).await), ["a", "x"]);
    two.trim(&topic, sequence.next()).await.unwrap();
    let trimmed = one.read(&topic, Sequence::FIRST, ALL).await;
    let first = sequence.next();
    assert_eq!(trimmed.unwrap_err(), Error::Trimmed { first });
    assert_eq!(one.topics(Space::Room, None, 9).await.unwrap(), [topic]);
    // A replica that starts now knows nothing of it in memory.
    let three = open(&config).await;
    let bounds = three.bounds(&room("a.b > * ☂")).await.unwrap();
    assert_eq!(bounds.first, first);
    assert_eq!(bounds.tail, two.bounds(&room("x")).await.unwrap().tail);
}

/// A follower that does not return from the records it is shown until the sender of `go` is dropped.
struct Stuck {
    shown: Notify,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Follower for Stuck {
    fn records(&self, _: Sequence, _: Sequence, records: &[Arc<Record>]) {
        if !records.is_empty() {
            self.shown.notify_one();
            // What else waits for this thread goes on on another.
            let _ = tokio::task::block_in_place(|| self.go.lock().unwrap().recv());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_knows_of_a_trim_knows_what_came_before_it() {
    let nats = Nats::start();
    let config = config(nats.url());
    let (one, two) = (open(&config).await, open(&config).await);
    let (go, wait) = mpsc::channel();
    let stuck = Arc::new(Stuck {
        shown: Notify::new(),
        go: Mutex::new(wait),
    });
    let follower: Weak<Stuck> = Arc::downgrade(&stuck);
    let _follow = two.follow(&room("stuck"), follower).await.unwrap();
    let topic = room("compacted");
    let parts = append_all(&one, &topic, &["a", "b"]).await;
    append_all(&one, &room("stuck"), &["x"]).await;
    support::soon("the record", stuck.shown.notified()).await;
    // The one replica drops the parts for the whole, which the other cannot know yet.
    append_all(&one, &topic, &["ab"]).await;
    one.trim(&topic, parts[1].next()).await.unwrap();
    let bounds = two.bounds(&topic).await;
    assert!(matches!(bounds, Err(Error::Unavailable(_))), "{bounds:?}");
    drop(go);
    let bounds = two.bounds(&topic).await.unwrap();
    assert_eq!(bounds.first, parts[1].next());
    let page = two.read(&topic, bounds.first, ALL).await.unwrap();
    assert_eq!(payloads(&page.records), ["ab"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_repeats_on_two_replicas_store_once() {
    let nats = Nats::start();
    let config = config(nats.url());
    let replicas = [open(&config).await, open(&config).await];
    let topic = room("keys");
    let batch = || {
        vec![
            keyed(&topic, "j", "b"),
            keyed(&topic, "k", "a"),
            record(&topic, "x"),
        ]
    };
    let repeats = (0..20).map(|turn| append(&replicas[turn % 2], batch()));
    let outcomes = join_all(repeats).await.concat();
    let stored = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Stored { .. }))
        .count();
    assert_eq!(stored, 2 + 20);
    assert_eq!(read_all(&replicas[0], &topic).await.len(), 2 + 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_catches_up_without_a_further_message() {
    let nats = Nats::start();
    let mut link = Link::to(&nats.url()).await;
    let away = open(&config(link.url())).await;
    let here = open(&config(nats.url())).await;
    let (topic, quiet) = (room("busy"), room("quiet"));
    let (feed, silent) = (Feed::new(), Feed::new());
    let _follow = away.follow(&topic, feed.weak()).await.unwrap();
    let _follow_quiet = away.follow(&quiet, silent.weak()).await.unwrap();
    append_all(&here, &topic, &["before"]).await;
    feed.until(|seen| seen.records.len() == 1).await;
    link.cut().await;
    unhealthy(&away).await;
    let missed = append_all(&here, &topic, &["x"; 2500]).await;
    append_all(&here, &room("other"), &["y"]).await;
    for refused in [
        away.read(&topic, Sequence::FIRST, ALL).await.err(),
        away.bounds(&topic).await.err(),
        away.enqueue(vec![record(&topic, "z")]).await.err(),
    ] {
        assert!(
            matches!(refused, Some(Error::Unavailable(_))),
            "never stale: {refused:?}"
        );
    }
    link.mend().await;
    healthy(&away).await;
    feed.until(|seen| seen.records.len() == 2501).await;
    let own = append_all(&away, &topic, &["after"]).await[0];
    feed.until(|seen| seen.next == own.next()).await;
    let texts = feed.seen(|seen| payloads(&seen.records));
    assert_eq!(
        (texts[0].as_str(), texts[2501].as_str()),
        ("before", "after")
    );
    assert!(own > missed[2499]);
    assert!(silent.seen(|seen| seen.records.is_empty()));
}

/// Writers that repeat each record until it is acknowledged, as a client does, and what they know.
struct Writers {
    engine: Arc<Jetstream>,
    topic: Topic,
    feed: Arc<Feed>,
    _follow: Follow,
    acknowledged: Arc<Mutex<Vec<(Sequence, String)>>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Writers {
    async fn start(engine: Jetstream) -> Self {
        let (engine, topic) = (Arc::new(engine), room("faults"));
        let feed = Feed::new();
        let follow = engine.follow(&topic, feed.weak()).await.unwrap();
        let mut writers = Self {
            engine,
            topic,
            feed,
            _follow: follow,
            acknowledged: Arc::default(),
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
        };
        for writer in 0..4 {
            let (engine, topic) = (writers.engine.clone(), writers.topic.clone());
            let (acknowledged, stop) = (writers.acknowledged.clone(), writers.stop.subscribe());
            writers.tasks.spawn(async move {
                let mut number = 0;
                while !*stop.borrow() {
                    let text = format!("{writer}:{number}");
                    if let Some(sequence) = write(&engine, &topic, &text).await {
                        acknowledged.lock().unwrap().push((sequence, text));
                        number += 1;
                    }
                }
            });
        }
        writers
    }

    /// Waits until so many more are acknowledged.
    async fn more(&self, more: usize) {
        let count = || self.acknowledged.lock().unwrap().len();
        let before = count();
        eventually("appends go on", async || count() >= before + more).await;
    }

    /// Each acknowledged record is there, once and in its place, and was fed without a gap.
    async fn check(mut self) {
        self.stop.send_replace(true);
        while let Some(done) = self.tasks.join_next().await {
            done.unwrap();
        }
        let mut acknowledged = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        acknowledged.sort();
        let last = acknowledged[acknowledged.len() - 1].0;
        self.feed.until(|seen| seen.next > last).await;
        let all = read_all(&*self.engine, &self.topic).await;
        let texts = payloads(&all);
        let sequences = all.iter().map(|record| record.sequence);
        let found: Vec<_> = sequences.zip(texts).collect();
        assert_eq!(found, acknowledged, "each once, in its place");
        assert_eq!(
            self.feed.seen(|seen| seen.records.clone()),
            all,
            "live without a gap"
        );
    }
}

/// Appends a keyed record; none when it has to be repeated.
async fn write(engine: &Jetstream, topic: &Topic, text: &str) -> Option<Sequence> {
    let mut new = record(topic, text.to_owned());
    new.key = Some(text.into());
    let outcome = match engine.enqueue(vec![new]).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match outcome.as_deref() {
        Ok([Outcome::Stored { sequence, .. } | Outcome::Duplicate { sequence, .. }]) => {
            Some(*sequence)
        }
        Err(Error::Unavailable(_)) => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_while_nats_is_away() {
    let mut nats = Nats::start();
    let writers = Writers::start(open(&config(nats.url())).await).await;
    let engine = writers.engine.clone();
    for _ in 0..2 {
        writers.more(100).await;
        nats.kill(0);
        unhealthy(&engine).await;
        let refused = engine.read(&writers.topic, Sequence::FIRST, ALL).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))));
        nats.resume(0);
        healthy(&engine).await;
    }
    writers.more(100).await;
    writers.check().await;
}

/// Every server of a cluster in turn, the leader of the stream among them, is killed and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_loses_each_server_in_turn_and_no_record() {
    let mut nats = Nats::cluster();
    let mut config = config(nats.url());
    config.jetstream.replicas = 3;
    let writers = Writers::start(open(&config).await).await;
    for node in 0..3 {
        writers.more(100).await;
        nats.kill(node);
        writers.more(100).await;
        nats.resume(node);
        eventually("every copy is complete", async || {
            nats.leader().await.is_some()
        })
        .await;
    }
    writers.more(100).await;
    writers.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_replica_goes_on() {
    let nats = Nats::start();
    let config = config(nats.url());
    let topic = room("kept");
    let first = open(&config).await;
    let sequences = append_all(&first, &topic, &["a", "b"]).await;
    first.close().await;
    let second = open(&config).await;
    assert_eq!(payloads(&read_all(&second, &topic).await), ["a", "b"]);
    assert_eq!(
        append_all(&second, &topic, &["c"]).await,
        [sequences[1].next()]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_has_one_subscription_whatever_it_follows() {
    let nats = Nats::with("max_payload: 16MB\njetstream { store_dir: \"DIR\" }\n");
    let engine = open(&config(nats.url())).await;
    let mut kept = Vec::new();
    for topic in (0..200).map(|at| room(&format!("topic {at}"))) {
        for _ in 0..10 {
            let feed = Feed::new();
            kept.push((engine.follow(&topic, feed.weak()).await.unwrap(), feed));
        }
    }
    append_all(&engine, &room("topic 7"), &["x"]).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("weir").await;
    assert_eq!(stream.unwrap().cached_info().state.consumer_count, 0);
    let fed = kept
        .iter()
        .filter(|(_, feed)| feed.seen(|seen| seen.records.len() == 1));
    assert_eq!(fed.count(), 10);
}

/// What the server says is open: subscriptions of all its clients, and JetStream's consumers.
async fn opened(monitor: SocketAddr) -> [u64; 2] {
    let number = async |path: &str, name: &str| -> u64 {
        let answer = http_get(monitor, path).await;
        let name = format!("\"{name}\": ");
        let (_, rest) = answer.split_once(&name).unwrap_or_else(|| {
            panic!("no {name} in {answer}");
        });
        let digits = rest.split(|byte: char| !byte.is_ascii_digit()).next();
        digits.unwrap().parse().unwrap()
    };
    [
        number("/varz", "subscriptions").await,
        number("/jsz", "consumers").await,
    ]
}

/// Waits until the server has no more open than that: a question under way has a subscription too.
async fn opens_at_most(monitor: SocketAddr, most: [u64; 2]) {
    support::eventually("what was open before", || async {
        let now = opened(monitor).await;
        (now[0] <= most[0] && now[1] <= most[1]).then_some(())
    })
    .await;
}

/// Consumers and subscriptions grow with replicas, not with clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_subscribers_of_a_room_open_what_one_opens() {
    const CONNECTIONS: usize = 4;
    const EACH: usize = 500;
    let monitor = lasting_address();
    let nats = Nats::with(&format!("{SETTINGS}http: \"{monitor}\"\n"));
    let server = TestServer::with(serve(&nats, "one")).await;
    let subscribe = async |chat: &mut support::Chat, user: usize| {
        let request = SubscribeRequest {
            user: format!("reader-{user}"),
            ..follow("hall", None)
        };
        let stream = chat.subscribe_messages(request).await;
        let mut stream = stream.unwrap().into_inner();
        assert_eq!(support::next(&mut stream).await.sequence, 0, "welcome");
        stream
    };
    let first = subscribe(&mut server.chat().await, 0).await;
    let by_one = opened(monitor).await;
    let mut members = vec![first];
    for connection in 0..CONNECTIONS {
        let chat = server.chat().await;
        let opening = (0..EACH).map(|user| {
            let mut chat = chat.clone();
            async move { subscribe(&mut chat, 1 + connection * EACH + user).await }
        });
        members.extend(join_all(opening).await);
    }
    opens_at_most(monitor, by_one).await;
    let sent = server
        .chat()
        .await
        .send_message(send("hall", "ann", "to all"))
        .await;
    let sequence = sent.unwrap().into_inner().sequence;
    let heard = join_all(members.iter_mut().map(support::next)).await;
    assert_eq!(heard.len(), 1 + CONNECTIONS * EACH);
    assert!(heard.iter().all(|message| message.sequence == sequence));
    opens_at_most(monitor, by_one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_at_the_start_is_said() {
    let nats = Nats::start();
    let mut unreachable = config("nats://127.0.0.1:1".into());
    unreachable.jetstream.startup_timeout = Duration::ZERO;
    let text = refusal(&unreachable).await;
    assert!(
        text.contains("cannot use NATS at nats://127.0.0.1:1: cannot connect"),
        "{text}"
    );
    drop(open(&config(nats.url())).await);
    let mut other = config(nats.url());
    other.jetstream.prefix = "other".into();
    let text = refusal(&other).await;
    assert!(
        text.contains("the stream weir is not set up for this log (subjects is"),
        "{text}"
    );
    let mut larger = config(nats.url());
    larger.limits.message = bytesize::ByteSize::mib(20);
    let text = refusal(&larger).await;
    assert!(
        text.contains("max_payload") && text.contains("limits.message"),
        "{text}"
    );
    let plain = Nats::with("max_payload: 16MB\n");
    let mut without = config(plain.url());
    without.jetstream.startup_timeout = Duration::ZERO;
    let text = refusal(&without).await;
    assert!(text.contains("start the server with JetStream"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_and_password_of_the_address_are_used_and_never_shown() {
    let nats = Nats::with(&format!(
        "{SETTINGS}authorization {{ user: ada, password: secret }}\n"
    ));
    let with = |user: &str| config(nats.url().replace("//", &format!("//{user}@")));
    append_all(&open(&with("ada:secret")).await, &room("a"), &["x"]).await;
    let text = refusal(&with("ada:mistake")).await;
    assert!(
        text.contains("authorization violation") && !text.contains("mistake"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_is_named() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    // As much of an old server as a client looks at before it is refused.
    let old = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut socket = BufReader::new(socket);
            let hello = "INFO {\"server_id\":\"x\",\"version\":\"2.9.10\",\"headers\":true,\"max_payload\":1048576}\r\n";
            socket.write_all(hello.as_bytes()).await.unwrap();
            let mut line = String::new();
            while socket
                .read_line(&mut line)
                .await
                .is_ok_and(|bytes| bytes > 0)
            {
                if line.starts_with("PING") {
                    socket.write_all(b"PONG\r\n").await.unwrap();
                }
                line.clear();
            }
        }
    });
    let text = refusal(&config(url)).await;
    assert!(
        text.contains("version 2.9.10") && text.contains("2.12.0 or later"),
        "{text}"
    );
    old.abort();
}

pub(crate) fn serve(nats: &Nats, name: &str) -> Settings {
    Settings::default()
        .set("server.instance_id", name)
        .set("log.engine", "jetstream")
        .set("jetstream.url", nats.url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_room_on_two_servers_hear_the_same() {
    const EACH: usize = 100;
    let nats = Nats::start();
    let servers = [
        TestServer::with(serve(&nats, "one")).await,
        TestServer::with(serve(&nats, "two")).await,
    ];
    let mut members = Vec::new();
    for server in servers.iter().cycle().take(6) {
        let mut chat = server.chat().await;
        let stream = chat.subscribe_messages(follow("hall", Some(0))).await;
        members.push(stream.unwrap().into_inner());
    }
    let publish = async |server: &TestServer, user: &str| {
        let mut chat = server.chat().await;
        for number in 0..EACH {
            let sent = chat.send_message(send("hall", user, &format!("{user} {number}")));
            sent.await.unwrap();
        }
    };
    tokio::join!(publish(&servers[0], "ann"), publish(&servers[1], "ben"));
    let mut heard = Vec::new();
    for member in &mut members {
        let mut own = Vec::new();
        while own.len() < 2 * EACH {
            let message = support::next(member).await;
            if message.sequence > 0 {
                own.push((message.sequence, message.user, message.content));
            }
        }
        heard.push(own);
    }
    assert!(heard[0].is_sorted_by(|one, next| one.0 < next.0));
    assert!(
        heard.iter().all(|own| *own == heard[0]),
        "one order everywhere"
    );
    for user in ["ann", "ben"] {
        let own = heard[0].iter().filter(|(_, by, _)| by == user);
        let expected = (0..EACH).map(|number| format!("{user} {number}"));
        assert!(own.map(|(.., text)| text.clone()).eq(expected));
    }
    // A position of one server resumes on the other.
    let at = heard[0][EACH].0;
    let mut chat = servers[1].chat().await;
    let resumed = chat.subscribe_messages(follow("hall", Some(at))).await;
    let mut resumed = resumed.unwrap().into_inner();
    loop {
        let message = support::next(&mut resumed).await;
        if message.sequence > 0 {
            assert_eq!(message.sequence, heard[0][EACH + 1].0);
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_nats() {
    let mut nats = Nats::start();
    let settings = serve(&nats, "one").set("jetstream.timeout", "1s");
    let server = TestServer::with(settings).await;
    nats.kill(0);
    support::eventually("readiness goes off", || async {
        let answer = server.admin_get("/readyz").await;
        answer.starts_with("HTTP/1.1 503").then_some(())
    })
    .await;
    let refused = server
        .chat()
        .await
        .send_message(send("hall", "ann", "x"))
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unavailable);
    nats.resume(0);
    server.ready().await;
    let sent = server
        .chat()
        .await
        .send_message(send("hall", "ann", "x"))
        .await;
    assert!(sent.is_ok(), "it recovers without a restart: {sent:?}");
}
