//! The application: binds every port, recovers the log, serves, drains.
//!
//! [`App::bind`] takes the ports and returns their real addresses; [`App::run`] opens the log, serves until told to stop and
//! drains. Tests and `main` share this path.

mod front;
mod host;
mod serving;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::serving::Serving;
use crate::{
    config::Config,
    log::{Engine, OpenError},
    net::{self, Descriptors},
    telemetry::{Lines, Metrics, Traces},
};

/// An instance with its ports taken.
pub struct App {
    config: Config,
    metrics: Metrics,
    traces: Traces,
    lines: Lines,
    grpc: Vec<TcpListener>,
    http: TcpListener,
    admin: TcpListener,
    descriptors: Descriptors,
    engine: Option<Arc<dyn Engine>>,
    started: Instant,
}

/// Where an instance listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// gRPC and gRPC-Web.
    pub grpc: Vec<SocketAddr>,
    /// HTTP.
    pub http: SocketAddr,
    /// Metrics, liveness and readiness.
    pub admin: SocketAddr,
}

/// How to stop an instance.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Drain, then end.
    pub drain: CancellationToken,
    /// End at once.
    pub now: CancellationToken,
    /// When everything has to be over; known once a drain has begun.
    end: Arc<OnceLock<tokio::time::Instant>>,
}

impl Shutdown {
    /// How long the process may still take; `None` before a drain has begun.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let end = self.end.get()?;
        Some(end.saturating_duration_since(tokio::time::Instant::now()))
    }

    fn ends_at(&self, end: tokio::time::Instant) {
        // A drain begins once.
        let _ = self.end.set(end);
    }
}

/// Why an instance does not start or ends badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be taken.
    #[error("cannot listen on {address} ({key}): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The configuration key it comes from.
        key: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the log holds cannot be read back.
    #[error("recovery failed: {0}")]
    Recovery(#[from] crate::core::Error),
    /// The place for files makes no sense.
    #[error("the files' store (files.store) cannot be used: {0}")]
    Files(String),
    /// A task that has to run panicked: a defect; the instance drained.
    #[error("a core task failed: {0}")]
    Task(String),
    /// The descriptors do not fit together: a defect of the build.
    #[error("the descriptors are broken: {0}")]
    Descriptors(String),
    /// Metrics of the process that do not register: a programming error.
    #[error("the process's metrics do not register: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl App {
    /// Takes every port, and shares out the descriptors that the process may have now. `lines` are the process's log lines, for
    /// the topic `logs`.
    ///
    /// # Errors
    /// [`Error::Bind`] names the first address that cannot be taken.
    pub fn bind(config: Config, traces: Traces, lines: Lines) -> Result<Self, Error> {
        let listen = |address, key| {
            net::bind(address).map_err(|source| Error::Bind {
                address,
                key,
                source,
            })
        };
        let server = &config.server;
        let descriptors = Descriptors::of_process(server.max_connections);
        warn_of_shortage(&descriptors, server.max_connections);
        Ok(Self {
            grpc: server
                .grpc
                .iter()
                .map(|address| listen(*address, "server.grpc"))
                .collect::<Result<_, _>>()?,
            http: listen(server.http, "server.http")?,
            admin: listen(server.admin, "server.admin")?,
            metrics: Metrics::new(),
            traces,
            lines,
            descriptors,
            engine: None,
            started: Instant::now(),
            config,
        })
    }

    /// Serves the log of `engine`, which is open, in place of the one that the settings name; for tests.
    #[must_use]
    pub fn over(mut self, engine: Arc<dyn Engine>) -> Self {
        self.engine = Some(engine);
        self
    }

    /// The real addresses.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            grpc: self
                .grpc
                .iter()
                .map(TcpListener::local_addr)
                .collect::<Result<_, _>>()?,
            http: self.http.local_addr()?,
            admin: self.admin.local_addr()?,
        })
    }

    /// Serves until `shutdown` says to stop, then drains. Health and metrics answer from the start, everything else once
    /// the log is recovered.
    ///
    /// # Errors
    /// The log does not open, or a task that has to run ended.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let serving = Serving::start(self).await?;
        let stopped = shutdown.now.clone();
        let life = async {
            let outcome = tokio::select! {
                opened = serving.open() => {
                    let mut core_tasks = opened?;
                    tokio::select! {
                        () = shutdown.drain.cancelled() => Ok(()),
                        failed = core_tasks.failed() => Err(failed),
                    }
                }
                // Recovery is left where it is, as a crash would leave it.
                () = shutdown.drain.cancelled() => Ok(()),
            };
            serving.drain(&shutdown).await;
            outcome
        };
        let outcome = tokio::select! {
            outcome = life => outcome,
            () = stopped.cancelled() => Ok(()),
        };
        serving.leave();
        outcome
    }
}

/// Says once how many connections fit, when the setting asks for more.
fn warn_of_shortage(descriptors: &Descriptors, max_connections: usize) {
    let connections = descriptors.clients.connections;
    if connections < max_connections {
        tracing::warn!(
            connections,
            descriptors = descriptors.limit,
            needed = Descriptors::needed(max_connections),
            "server.max_connections does not fit into the descriptors that the process may have; further connections are refused. \
             Raise the hard limit to what is needed (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of a container), or \
             lower server.max_connections"
        );
    }
}
