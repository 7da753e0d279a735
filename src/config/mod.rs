//! The settings, their meaning and their defaults.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Everything that can be set. Durations are written `10s`, `30m`; sizes `64KiB`, `10GiB`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where and how the instance serves.
    pub server: Server,
    /// Browsers.
    pub cors: Cors,
    /// The log.
    pub log: Log,
    /// Live fan-out.
    pub hub: Hub,
    /// What a call may ask for.
    pub limits: Limits,
    /// How the instance stops.
    pub drain: Drain,
    /// The end-to-end probe.
    pub canary: Canary,
    /// Logs and traces.
    pub telemetry: Telemetry,
}

/// Where and how the instance serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Addresses of gRPC and gRPC-Web.
    pub grpc: Vec<SocketAddr>,
    /// Address of HTTP: gRPC-Web for browsers.
    pub http: SocketAddr,
    /// Address of `/metrics`, `/livez` and `/readyz`; it outlives the drain.
    pub admin: SocketAddr,
    /// This instance's name in measurements and logs.
    pub instance_id: String,
    /// Serve gRPC reflection.
    pub reflection: bool,
    /// Connections at most; further ones are closed at once.
    pub max_connections: usize,
    /// Concurrent streams of one connection at most.
    pub max_streams_per_connection: u32,
    /// How long a new connection may take to speak.
    #[serde(with = "humantime_serde")]
    pub preface_timeout: Duration,
    /// How often a silent connection is pinged.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
    /// Age at which a connection is asked to go (GOAWAY); its streams go on.
    #[serde(with = "humantime_serde")]
    pub max_connection_age: Duration,
    /// Age at which a stream is ended with `UNAVAILABLE` and a resume position, so that load evens out after a scale-up.
    #[serde(with = "humantime_serde")]
    pub max_stream_age: Duration,
    /// HTTP/2 flow-control window of one stream's upload.
    pub stream_window: ByteSize,
    /// HTTP/2 flow-control window of one connection's uploads.
    pub connection_window: ByteSize,
}

impl Default for Server {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            grpc: vec![local(50051), local(50053), local(50054), local(50055)],
            http: local(8080),
            admin: local(9464),
            instance_id: "server-01".into(),
            reflection: true,
            max_connections: 10_000,
            max_streams_per_connection: 1000,
            preface_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(30 * 60),
            max_stream_age: Duration::from_secs(30 * 60),
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::mib(32),
        }
    }
}

/// Browsers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// Origins that may call by gRPC-Web: `*` for any, none for no browser at all.
    pub allowed_origins: Vec<String>,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            allowed_origins: vec!["*".into()],
        }
    }
}

/// Which storage holds the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// On this machine's disk.
    Embedded,
    /// In memory; gone with the process. For tests.
    Memory,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The storage.
    pub engine: EngineKind,
    /// Directory of the embedded engine.
    pub dir: PathBuf,
    /// How long an idempotency key is remembered.
    #[serde(with = "humantime_serde")]
    pub dedupe_window: Duration,
    /// Appends waiting for the disk at most; publishers wait beyond it.
    pub queue: ByteSize,
    /// Free disk space below which appends are refused.
    pub min_free: ByteSize,
    /// How often retention runs.
    #[serde(with = "humantime_serde")]
    pub retention_interval: Duration,
    /// Block cache of the embedded engine.
    pub cache: ByteSize,
    /// How long and how much of a room is kept.
    pub retention: RetentionBySpace,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            engine: EngineKind::Embedded,
            dir: "./data".into(),
            dedupe_window: Duration::from_secs(600),
            queue: ByteSize::mib(64),
            min_free: ByteSize::mib(64),
            retention_interval: Duration::from_secs(60),
            cache: ByteSize::mib(32),
            retention: RetentionBySpace::default(),
        }
    }
}

/// Retention of every space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionBySpace {
    /// Chat rooms.
    pub room: Retention,
    /// The end-to-end probe.
    pub canary: Retention,
}

impl Default for RetentionBySpace {
    fn default() -> Self {
        Self {
            room: Retention::default(),
            canary: Retention {
                age: Duration::from_secs(60),
                bytes: ByteSize::mib(1),
            },
        }
    }
}

impl RetentionBySpace {
    /// The retention of `space`.
    #[must_use]
    pub const fn of(&self, space: crate::log::Space) -> Retention {
        match space {
            crate::log::Space::Room => self.room,
            crate::log::Space::Canary => self.canary,
        }
    }
}

/// How long and how much of each topic is kept; whichever is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Records older than this are dropped.
    #[serde(with = "humantime_serde")]
    pub age: Duration,
    /// The oldest records beyond this size of a topic are dropped.
    pub bytes: ByteSize,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(30 * 24 * 3600),
            bytes: ByteSize::gib(10),
        }
    }
}

/// Live fan-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hub {
    /// Recent records of one followed topic held in memory; a subscriber further behind reads the log.
    pub tail: ByteSize,
    /// The same for all topics together.
    pub total: ByteSize,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            tail: ByteSize::mib(4),
            total: ByteSize::mib(256),
        }
    }
}

/// What a call may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest message, each way.
    pub message: ByteSize,
    /// Rooms one bidirectional stream may follow.
    pub rooms_per_stream: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: ByteSize::mib(10),
            rooms_per_stream: 64,
        }
    }
}

/// How the instance stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long it still accepts after readiness went off.
    #[serde(with = "humantime_serde")]
    pub delay: Duration,
    /// Over how long streams are ended one by one.
    #[serde(with = "humantime_serde")]
    pub spread: Duration,
    /// When the process ends at the latest.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            spread: Duration::ZERO,
            timeout: Duration::from_secs(10),
        }
    }
}

/// The end-to-end probe: a record published to a private topic has to be delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Canary {
    /// How often it publishes.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How late a delivery may be before readiness goes off.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged: `info`, or a filter such as `weir=debug,h2=warn`.
    pub log_level: String,
    /// OTLP/gRPC endpoint that traces go to, `http://collector:4317`; empty: no traces leave the process.
    pub otlp_endpoint: String,
    /// The share of traces without a caller's decision that is sampled, 0 to 1.
    pub trace_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log_level: "info".into(),
            otlp_endpoint: String::new(),
            trace_ratio: 1.0,
        }
    }
}
