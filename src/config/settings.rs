//! Every setting: its meaning, its default and its range.
//!
//! The text of a key is its doc comment, in the API documentation as in `weir.example.toml`: write it for the operator.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;

use super::{
    section::{choice, section},
    size,
};
use crate::log::Space;

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

section! {
    /// Everything that can be set. Durations are written `10s`, `30m`; sizes `64KiB`, `10GiB`.
    pub struct Config {
        /// Where and how the instance serves.
        pub server: Server = Server::default();
        /// Browsers.
        pub cors: Cors = Cors::default();
        /// The log.
        pub log: Log = Log::default();
        /// NATS JetStream, for many replicas.
        pub jetstream: Jetstream = Jetstream::default();
        /// Live fan-out.
        pub hub: Hub = Hub::default();
        /// What a call may ask for.
        pub limits: Limits = Limits::default();
        /// Files.
        pub files: Files = Files::default();
        /// Who is in rooms.
        pub presence: Presence = Presence::default();
        /// Windows and scores of live data.
        pub processing: Processing = Processing::default();
        /// Telemetry that clients send.
        pub collect: Collect = Collect::default();
        /// Shared documents.
        pub documents: Documents = Documents::default();
        /// What the service tells of itself.
        pub feeds: Feeds = Feeds::default();
        /// How the instance stops.
        pub drain: Drain = Drain::default();
        /// The end-to-end probe.
        pub canary: Canary = Canary::default();
        /// Logs and traces.
        pub telemetry: Telemetry = Telemetry::default();
    }
}

section! {
    /// Where and how the instance serves.
    pub struct Server {
        /// Addresses of gRPC and gRPC-Web; port 0 takes a free one.
        pub grpc: Vec<SocketAddr> = vec![local(50051), local(50053), local(50054), local(50055)];
        /// Address of HTTP: gRPC-Web for browsers.
        pub http: SocketAddr = local(8080);
        /// Address of `/metrics`, `/livez` and `/readyz`; it outlives the drain.
        pub admin: SocketAddr = local(9464);
        /// This instance's name in measurements and logs; at most 256 bytes.
        pub instance_id: String = "server-01".into();
        /// Serve gRPC reflection.
        pub reflection: bool = true;
        /// Connections at most; further ones are closed at once. Fewer where the process may not have as many file descriptors,
        /// which is said at the start.
        pub max_connections: usize = 10_000, in 1..=10_000_000;
        /// Concurrent streams of one connection at most.
        pub max_streams_per_connection: u32 = 1000, in 1..=1_000_000;
        /// How long a new connection may take to speak.
        #[serde(with = "humantime_serde")]
        pub preface_timeout: Duration = secs(5), in millis(100)..=minutes(10);
        /// How often a silent connection is pinged.
        #[serde(with = "humantime_serde")]
        pub keepalive_interval: Duration = secs(30), in secs(1)..=minutes(24 * 60);
        /// How long a ping may stay unanswered.
        #[serde(with = "humantime_serde")]
        pub keepalive_timeout: Duration = secs(10), in millis(100)..=minutes(60);
        /// Age at which a connection is asked to go (GOAWAY); its streams go on.
        #[serde(with = "humantime_serde")]
        pub max_connection_age: Duration = minutes(30), in secs(1)..;
        /// Age at which a stream is ended with `UNAVAILABLE` and a resume position, and its connection asked to go, so that load
        /// evens out after a scale-up.
        #[serde(with = "humantime_serde")]
        pub max_stream_age: Duration = minutes(30), in secs(1)..;
        /// HTTP/2 flow-control window of one stream's upload.
        #[serde(with = "size")]
        pub stream_window: ByteSize = ByteSize::kib(256), in ByteSize::kib(16)..=ByteSize::gib(1);
        /// HTTP/2 flow-control window of one connection's uploads; not below `stream_window`.
        #[serde(with = "size")]
        pub connection_window: ByteSize = ByteSize::mib(32), in ByteSize::kib(64)..=ByteSize::gib(1);
    }
}

section! {
    /// Browsers.
    pub struct Cors {
        /// Origins that may call by gRPC-Web, as `https://chat.example.org`: `*` for any, none for no browser at all.
        pub allowed_origins: Vec<String> = vec!["*".into()];
    }
}

choice! {
    /// Which storage holds the log.
    pub enum EngineKind {
        /// On this machine's disk.
        Embedded = "embedded",
        /// On NATS JetStream, shared by any number of replicas.
        Jetstream = "jetstream",
        /// In memory; gone with the process. For tests.
        Memory = "memory",
    }
}

section! {
    /// The log.
    pub struct Log {
        /// The storage: `embedded` on this machine's disk, `jetstream` on NATS for many replicas, `memory` for tests (gone
        /// with the process).
        pub engine: EngineKind = EngineKind::Embedded;
        /// Directory of the embedded engine; made with access for its owner only.
        pub dir: PathBuf = "./data".into();
        /// How long a starting instance waits, not ready, for another process to leave `log.dir` before it gives up.
        #[serde(with = "humantime_serde")]
        pub lock_timeout: Duration = Duration::ZERO, in Duration::ZERO..=minutes(60);
        /// How long an idempotency key is remembered.
        #[serde(with = "humantime_serde")]
        pub dedupe_window: Duration = minutes(10), in secs(1)..;
        /// Appends waiting for the disk at most; publishers wait beyond it. Not below `limits.message`.
        #[serde(with = "size")]
        pub queue: ByteSize = ByteSize::mib(64), in ByteSize::kib(1)..;
        /// Free disk space below which appends are refused.
        #[serde(with = "size")]
        pub min_free: ByteSize = ByteSize::mib(64);
        /// How often retention runs.
        #[serde(with = "humantime_serde")]
        pub retention_interval: Duration = secs(60), in millis(100)..=minutes(24 * 60);
        /// Size of a file of the embedded engine. A larger one makes fewer files; a smaller one gives room back sooner and needs less
        /// memory while it is sealed, which takes about as much.
        #[serde(with = "size")]
        pub segment: ByteSize = ByteSize::mib(16), in ByteSize::mib(1)..=ByteSize::gib(1);
        /// Topics of the embedded engine at most; records of further ones are refused. Each takes about 550 bytes of memory. A topic
        /// without records is forgotten when there are many of those.
        pub max_topics: usize = 1_000_000, in 1..=100_000_000;
        /// How long and how much of each topic is kept, by its space.
        pub retention: RetentionBySpace = RetentionBySpace::default();
    }
}

section! {
    /// NATS JetStream, for many replicas. All replicas of one service have the same values here.
    pub struct Jetstream {
        /// Where NATS is: `nats://host:4222`, `tls://host:4222` for TLS, `nats://user:password@host:4222`; several of one
        /// cluster with commas between.
        pub url: String = "nats://127.0.0.1:4222".into();
        /// Credentials file (`.creds`); empty: none.
        pub credentials: String = String::new();
        /// File with the certificates that the server's is checked against (PEM); empty: those of the system.
        pub ca: String = String::new();
        /// File with this client's certificate (PEM), where the server asks for one; empty: none.
        pub cert: String = String::new();
        /// File with the key of `jetstream.cert` (PEM).
        pub key: String = String::new();
        /// The stream that holds the log; it is created if there is none.
        pub stream: String = "weir".into();
        /// First part of every subject. Two services of one NATS account have different streams and different prefixes.
        pub prefix: String = "weir".into();
        /// Servers that keep a copy of the stream and of the members: 1, or 3 or 5 of a cluster.
        pub replicas: usize = 1, in 1..=5;
        /// How long NATS may take to answer; then appends and reads fail with `UNAVAILABLE`.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration = secs(5), in millis(100)..=minutes(1);
        /// How long a starting instance waits for NATS, not ready, before it gives up.
        #[serde(with = "humantime_serde")]
        pub startup_timeout: Duration = secs(60), in Duration::ZERO..=minutes(60);
        /// Recent records of the whole log held in memory; a reader further behind asks NATS.
        #[serde(with = "size")]
        pub recent: ByteSize = ByteSize::mib(32), in ByteSize::kib(1)..=ByteSize::gib(16);
    }
}

section! {
    /// Retention of every space.
    pub struct RetentionBySpace {
        /// Chat rooms.
        pub room: Retention = Retention::default();
        /// What happened to each user.
        pub event: Retention = Retention::default();
        /// Notifications of each user.
        pub notification: Retention = Retention::default();
        /// Notifications for all users.
        pub broadcast: Retention = Retention::default();
        /// Points that clients publish.
        pub data: Retention = Retention { age: days(7), bytes: ByteSize::gib(10) };
        /// The service's own measurements, events and log lines, and telemetry it collected.
        pub telemetry: Retention = Retention { age: days(1), bytes: ByteSize::mib(64) };
        /// Consumers' feedback.
        pub feedback: Retention = Retention { age: days(3650), bytes: ByteSize::gib(10) };
        /// The staff's replies to each consumer.
        pub reply: Retention = Retention { age: days(3650), bytes: ByteSize::gib(10) };
        /// Shared documents; what compaction made superfluous is dropped at once, so this limits documents nobody edits.
        pub document: Retention = Retention { age: days(3650), bytes: ByteSize::gib(10) };
        /// Who came to rooms and went.
        pub presence: Retention = Retention { age: days(1), bytes: ByteSize::mib(16) };
        /// The end-to-end probe.
        pub canary: Retention = Retention { age: secs(60), bytes: ByteSize::mib(1) };
    }
}

impl RetentionBySpace {
    /// The retention of `space`.
    #[must_use]
    pub const fn of(&self, space: Space) -> Retention {
        match space {
            Space::Room => self.room,
            Space::Event => self.event,
            Space::Notification => self.notification,
            Space::Broadcast => self.broadcast,
            Space::Data => self.data,
            Space::Telemetry => self.telemetry,
            Space::Feedback => self.feedback,
            Space::Reply => self.reply,
            Space::Document => self.document,
            Space::Presence => self.presence,
            Space::Canary => self.canary,
        }
    }
}

section! {
    /// How long and how much of each topic is kept; whichever is reached first.
    #[derive(Copy)]
    pub struct Retention {
        /// Records older than this are dropped.
        #[serde(with = "humantime_serde")]
        pub age: Duration = days(30), in secs(1)..;
        /// The oldest records beyond this size of a topic are dropped.
        #[serde(with = "size")]
        pub bytes: ByteSize = ByteSize::gib(10), in ByteSize::kib(1)..;
    }
}

section! {
    /// Live fan-out.
    pub struct Hub {
        /// Recent records of one followed topic held in memory; a subscriber further behind reads the log.
        #[serde(with = "size")]
        pub tail: ByteSize = ByteSize::mib(1), in ByteSize::kib(1)..;
        /// The same for all topics together; not below `tail`.
        #[serde(with = "size")]
        pub total: ByteSize = ByteSize::mib(256), in ByteSize::kib(1)..;
    }
}

section! {
    /// What a call may ask for.
    pub struct Limits {
        /// The largest message, each way.
        #[serde(with = "size")]
        pub message: ByteSize = ByteSize::mib(10), in ByteSize::kib(1)..=ByteSize::gib(1);
        /// Rooms one bidirectional stream may follow.
        pub rooms_per_stream: usize = 64, in 1..=10_000;
    }
}

section! {
    /// Files.
    pub struct Files {
        /// Where files are kept: a directory, or `s3://bucket/prefix` with the usual `AWS_` variables for credentials, region
        /// and endpoint. Empty: the object store of JetStream with that engine, else `files` below `log.dir`. Several
        /// replicas need one of the two that they share.
        pub store: String = String::new();
        /// Address that download URLs begin with, `https://files.example.org`; empty: `http://` and the address of
        /// `server.http`.
        pub url: String = String::new();
        /// The largest file.
        #[serde(with = "size")]
        pub max_file: ByteSize = ByteSize::gib(10), in ByteSize::kib(1)..;
        /// All files together, those being uploaded included.
        #[serde(with = "size")]
        pub max_total: ByteSize = ByteSize::gib(100), in ByteSize::kib(1)..;
        /// How long a broken upload may be continued before it is swept.
        #[serde(with = "humantime_serde")]
        pub upload_ttl: Duration = minutes(24 * 60), in secs(1)..;
        /// Uploads under way at most.
        pub max_uploads: usize = 1000, in 1..=1_000_000;
    }
}

section! {
    /// Who is in rooms.
    pub struct Presence {
        /// How long a member whose stream broke stays listed and may come back without leaving; on a replica that died, from
        /// its last sign of life, a third more and up to whole seconds. With engine `jetstream` at most a third of
        /// `log.dedupe_window`.
        #[serde(with = "humantime_serde")]
        pub lease: Duration = secs(15), in millis(10)..=minutes(60);
        /// Members of all rooms at most, on all replicas; further ones chat unlisted.
        pub max_members: usize = 100_000, in 1..=100_000_000;
    }
}

section! {
    /// Windows and scores of live data.
    pub struct Processing {
        /// Length of an event-time window.
        #[serde(with = "humantime_serde")]
        pub window: Duration = secs(60), in millis(1)..=minutes(24 * 60);
        /// How late a value may come behind the newest of its series; at most 1000 windows.
        #[serde(with = "humantime_serde")]
        pub lateness: Duration = secs(60), in Duration::ZERO..=minutes(24 * 60);
        /// Robust z-score from which a value is an anomaly.
        pub anomaly_threshold: f64 = 3.5, in 0.1..=1000.0;
        /// Series of one stream or batch at most; each takes up to 33 KiB.
        pub max_series: usize = 10_000, in 1..=10_000_000;
    }
}

section! {
    /// Telemetry that clients send.
    pub struct Collect {
        /// Series shown at `/metrics` at most; samples of further ones are rejected.
        pub max_series: usize = 10_000, in 1..=10_000_000;
        /// Series that got no sample for so long are forgotten.
        #[serde(with = "humantime_serde")]
        pub series_ttl: Duration = minutes(60), in secs(1)..;
    }
}

section! {
    /// Shared documents.
    pub struct Documents {
        /// Documents held in memory at most; those nobody has open are dropped first.
        pub max_open: usize = 1000, in 1..=1_000_000;
        /// The largest document.
        #[serde(with = "size")]
        pub max_size: ByteSize = ByteSize::mib(8), in ByteSize::kib(1)..;
        /// Updates after which a document is stored as one.
        pub compact_after: usize = 500, in 1..=1_000_000;
    }
}

section! {
    /// What the service tells of itself: the data topics `metrics`, `events` and `logs`.
    pub struct Feeds {
        /// How often it is measured and stored.
        #[serde(with = "humantime_serde")]
        pub interval: Duration = millis(500), in millis(10)..=secs(1);
    }
}

section! {
    /// How the instance stops.
    pub struct Drain {
        /// How long it still accepts after readiness went off.
        #[serde(with = "humantime_serde")]
        pub delay: Duration = Duration::ZERO;
        /// Over how long streams are ended one by one.
        #[serde(with = "humantime_serde")]
        pub spread: Duration = Duration::ZERO;
        /// When the rest is cut; uploads and the log get at most 1s more, then the process ends, whatever is left. Where `delay` or
        /// `spread` is set, not below their sum and 5s for the log.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration = secs(10), in millis(100)..;
    }
}

section! {
    /// The end-to-end probe: a record published to a private topic has to be delivered.
    pub struct Canary {
        /// How often it publishes.
        #[serde(with = "humantime_serde")]
        pub interval: Duration = secs(1), in millis(10)..=minutes(60);
        /// How late a delivery may be before readiness goes off.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration = secs(5), in millis(10)..=minutes(60);
    }
}

choice! {
    /// How log lines look.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// Logs and traces.
    pub struct Telemetry {
        /// How log lines look: `text` for people, `json` for one object a line.
        pub log_format: LogFormat = LogFormat::Text;
        /// What is logged: a level (off, error, warn, info, debug, trace) or a filter such as `info,weir=debug,h2=warn`.
        pub log_level: String = "info".into();
        /// OTLP/gRPC endpoint that traces go to, `http://collector:4317`; empty: no traces leave the process.
        pub otlp_endpoint: String = String::new();
        /// The share of traces without a caller's decision that is sampled.
        pub trace_ratio: f64 = 1.0, in 0.0..=1.0;
    }
}
