//! An instance that listens: recovery and background tasks. Its end is in `drain`.

mod drain;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, runtime::Handle, sync::OnceCell, task::JoinSet};
use tokio_util::task::TaskTracker;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    App, Error,
    front::{Front, Gate},
    host::Host,
};
use crate::{
    backup::{self, Control},
    call::{CallLayer, Streams},
    config::{Config, EngineKind},
    core::{
        Feedback, Files, Hub, Instances, Presence, Signals, Topics,
        canary::Canary,
        collect::Collect,
        documents::Documents,
        feeds::{
            Feeds, Happening,
            own::{self, OwnFeeds},
        },
        instance::Instance,
        presence,
        readiness::{Condition, Readiness},
        rooms::Rooms,
    },
    log::{self, Engine, Health, Timestamp},
    nats::Nats,
    net::{Acceptor, Capacity, Closing, Descriptors, Settings},
    peers::{Local, Peers},
    registry::jetstream::Bucket,
    services::{self, Core},
    telemetry::{self, Lines, Metrics, Traces},
    web,
};

/// The health name that stays SERVING while the process lives: restarting a draining or waiting instance helps nobody.
const LIVENESS: &str = "liveness";
/// How long counting the stored files may delay the start; later it goes on beside everything else.
const FILES_PATIENCE: Duration = Duration::from_secs(10);

/// An instance whose listeners run.
pub(super) struct Serving {
    config: Config,
    metrics: Metrics,
    traces: Traces,
    readiness: Readiness,
    reporter: HealthReporter,
    instance: Instance,
    gate: Gate,
    calls: CallLayer,
    streams: Streams,
    closing: Closing,
    connections: TaskTracker,
    admin: Closing,
    engine: OnceCell<Arc<dyn Engine>>,
    control: OnceCell<Control>,
    feeds: OnceCell<Arc<OwnFeeds>>,
    lines: Lines,
    http: std::net::SocketAddr,
    files: Arc<OnceLock<Files>>,
    host: Arc<Host>,
    peers: OnceCell<Peers>,
    descriptors: Descriptors,
    started: Instant,
}

impl Serving {
    /// Starts every listener. The gate lets only health and reflection through until the log is open.
    pub(super) async fn start(app: App) -> Result<Self, Error> {
        let App {
            config,
            metrics,
            traces,
            lines,
            grpc,
            http,
            admin,
            descriptors,
            engine,
            started,
        } = app;
        telemetry::register_process(metrics.registry(), &Handle::current())?;
        let broken = |error: &dyn std::fmt::Display| Error::Descriptors(error.to_string());
        let methods = services::methods(&metrics).map_err(|error| broken(&error))?;
        let instance = Instance::new(
            &config.server.instance_id,
            methods
                .all()
                .into_iter()
                .map(|method| method.full_name.as_str()),
        );
        let (reporter, health) = tonic_health::server::health_reporter();
        let base = tonic::service::Routes::default().add_service(health);
        let gate = Gate::new(base, config.server.reflection).map_err(|error| broken(&error))?;
        let streams = Streams::new(config.server.max_stream_age);
        let calls = CallLayer::new(methods, streams.clone(), instance.clone(), traces.clone());
        let front = Front::new(&calls, gate.clone(), &config.cors);
        let readiness = Readiness::new();
        let host = Host {
            instance: instance.clone(),
            readiness: readiness.clone(),
            streams: streams.clone(),
            started: Timestamp::now(),
            grpc: grpc.iter().flat_map(TcpListener::local_addr).collect(),
            signals: OnceLock::new(),
        };
        let serving = Self {
            readiness,
            closing: Closing::default(),
            connections: TaskTracker::new(),
            admin: Closing::default(),
            engine: OnceCell::new_with(engine),
            control: OnceCell::new(),
            feeds: OnceCell::new(),
            lines,
            http: http.local_addr().unwrap_or(config.server.http),
            files: Arc::default(),
            host: Arc::new(host),
            peers: OnceCell::new(),
            descriptors,
            config,
            metrics,
            traces,
            reporter,
            instance,
            gate,
            calls,
            streams,
            started,
        };
        // Before the first connection: the reporter's own beginning is SERVING.
        serving.report(false).await;
        serving
            .reporter
            .set_service_status(LIVENESS, ServingStatus::Serving)
            .await;
        let acceptor =
            serving.acceptor(descriptors.clients, &serving.closing, &serving.connections);
        for listener in grpc {
            tokio::spawn(acceptor.clone().serve(listener, front.clone()));
        }
        tokio::spawn(acceptor.serve(
            http,
            web::http::router(
                front,
                web::files::Files::new(&serving.files, &serving.streams),
            ),
        ));
        let admin_router = web::admin::router(
            serving.metrics.registry().clone(),
            serving.readiness.clone(),
        );
        let admin_acceptor =
            serving.acceptor(descriptors.admin, &serving.admin, &TaskTracker::new());
        tokio::spawn(admin_acceptor.serve(admin, web::service(admin_router)));
        Ok(serving)
    }

    fn acceptor(&self, capacity: Capacity, closing: &Closing, tasks: &TaskTracker) -> Acceptor {
        let server = &self.config.server;
        let bytes = |size: u64| u32::try_from(size).unwrap_or(u32::MAX >> 1);
        let settings = Settings {
            max_streams: server.max_streams_per_connection,
            stream_window: bytes(server.stream_window.as_u64()),
            connection_window: bytes(server.connection_window.as_u64()),
            keepalive_interval: server.keepalive_interval,
            keepalive_timeout: server.keepalive_timeout,
            preface_timeout: server.preface_timeout,
            max_age: server.max_connection_age,
        };
        Acceptor::new(
            settings,
            capacity,
            closing.clone(),
            tasks.clone(),
            self.metrics.clone(),
        )
    }

    /// Recovers the log, opens the gate and starts the tasks that have to run.
    pub(super) async fn open(&self) -> Result<CoreTasks, Error> {
        let nats = match self.config.log.engine {
            EngineKind::Jetstream => Some(Nats::connect(&self.config).await?),
            EngineKind::Embedded | EngineKind::Memory => None,
        };
        let peers = self.open_peers(nats.as_ref()).await?;
        let open = || log::open(&self.config, nats.as_ref(), self.metrics.clone());
        let engine = self.engine.get_or_try_init(open).await?;
        self.open_control(engine).await;
        let hub = Hub::new(
            Arc::clone(engine),
            &self.config.hub,
            self.metrics.clone(),
            self.traces.clone(),
        );
        let topics = Topics::new(Arc::clone(engine), hub.clone(), self.traces.clone());
        let own = self.own_feeds(engine).await;
        let presence = self.open_presence(&topics, own, nats.as_ref()).await?;
        let (files, are_found) = self.open_files(nats.as_ref()).await?;
        self.calls.serves_log(engine.id());
        self.gate
            .open(&self.core(topics, own, presence.clone(), files.clone(), peers)?);
        let mut tasks = self.core_tasks(engine, hub, own);
        tasks.0.spawn(presence.run());
        tasks.0.spawn(files.keep(are_found));
        self.readiness.clear(Condition::Recovering);
        let recovered = self.started.elapsed().as_secs_f64();
        self.metrics.recovery_secs.set(recovered);
        Ok(tasks)
    }

    /// Lets backups be taken. An instance that cannot offer that still serves.
    async fn open_control(&self, engine: &Arc<dyn Engine>) {
        let Some(exporter) = engine.exporter() else {
            return;
        };
        let files = backup::files_dir(&self.config);
        match Control::open(&self.config.log.dir, exporter, files) {
            Ok(control) => {
                self.control.get_or_init(|| async { control }).await;
            }
            Err(error) => tracing::warn!(%error, "no backup can be taken while this runs"),
        }
    }

    /// The other instances, if there can be any, and the signals among all. From here on they know this one.
    async fn open_peers(&self, nats: Option<&Nats>) -> Result<(Peers, Signals), Error> {
        let (peers, task) = match nats {
            Some(nats) => {
                let (id, metrics) = (self.instance.id(), self.metrics.clone());
                let (peers, task) = Peers::connect(nats, id, metrics).await?;
                (peers, Some(task))
            }
            None => (Peers::alone(), None),
        };
        let peers = self.peers.get_or_init(|| async { peers }).await.clone();
        let signals = Signals::new(self.metrics.clone(), peers.clone());
        let signals = self.host.signals.get_or_init(|| signals).clone();
        if let Some(task) = task {
            let local: Arc<dyn Local> = self.host.clone();
            task.serve(&local);
        }
        Ok((peers, signals))
    }

    /// What the service tells of itself, beginning with its start.
    async fn own_feeds(&self, engine: &Arc<dyn Engine>) -> &Arc<OwnFeeds> {
        let own = OwnFeeds::new(
            Arc::clone(engine),
            self.config.feeds.clone(),
            self.instance.clone(),
            self.metrics.clone(),
            self.lines.clone(),
        );
        let own = self.feeds.get_or_init(|| async { Arc::new(own) }).await;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        own.sender().event(Happening::Started, &version);
        own
    }

    /// Of the only instance, or of all replicas.
    async fn open_presence(
        &self,
        topics: &Topics,
        own: &OwnFeeds,
        nats: Option<&Nats>,
    ) -> Result<Presence, Error> {
        let (events, metrics) = (own.sender(), self.metrics.clone());
        let (topics, config) = (topics.clone(), &self.config.presence);
        if let Some(nats) = nats {
            let registry = Arc::new(Bucket::open(nats, &self.config).await?);
            let shared = presence::Shared::new(registry, topics, events, config, metrics);
            return Ok(Presence::Shared(shared));
        }
        let alone = presence::Alone::new(topics, events, config, metrics)
            .map_err(|error| Error::Task(error.to_string()))?;
        alone.recover().await?;
        Ok(Presence::Alone(alone))
    }

    /// What the services stand on.
    fn core(
        &self,
        topics: Topics,
        own: &OwnFeeds,
        presence: Presence,
        files: Files,
        (peers, signals): (Peers, Signals),
    ) -> Result<Core, Error> {
        let config = &self.config;
        let feedback = Feedback::new(topics.clone());
        Ok(Core {
            feeds: Feeds::new(topics.clone(), own.sender()),
            feedback: feedback.map_err(|error| Error::Task(error.to_string()))?,
            rooms: Rooms::new(topics.clone()),
            documents: Documents::new(
                topics.clone(),
                &config.documents,
                services::message_limit(&config.limits),
            ),
            signals,
            collect: Collect::new(&config.collect, &self.metrics)?,
            topics,
            presence,
            files,
            instance: self.instance.clone(),
            instances: Instances::new(self.host.clone(), peers),
            limits: config.limits.clone(),
            processing: config.processing.clone(),
            metrics: self.metrics.clone(),
        })
    }

    /// The files, and whether what is stored was counted: a store that cannot be reached keeps nobody from chatting.
    async fn open_files(&self, nats: Option<&Nats>) -> Result<(Files, bool), Error> {
        let (settings, log) = (self.config.files.clone(), &self.config.log);
        let descriptors = self.descriptors.files;
        let metrics = self.metrics.clone();
        let files = Files::open(settings, log, nats, self.http, descriptors, metrics);
        let files = files.await.map_err(Error::Files)?;
        let found = tokio::time::timeout(FILES_PATIENCE, files.recover()).await;
        if !matches!(found, Ok(Ok(()))) {
            tracing::warn!(?found, "the files are not counted yet");
        }
        let files = self.files.get_or_init(|| files).clone();
        Ok((files, matches!(found, Ok(Ok(())))))
    }

    fn core_tasks(&self, engine: &Arc<dyn Engine>, hub: Hub, own: &Arc<OwnFeeds>) -> CoreTasks {
        let mut tasks = JoinSet::new();
        let canary = Canary::new(
            Arc::clone(engine),
            hub,
            self.config.canary.clone(),
            self.instance.id(),
            self.readiness.clone(),
            self.metrics.clone(),
        );
        tasks.spawn(canary.run());
        tasks.spawn(follow_log(engine.health(), self.readiness.clone()));
        tasks.spawn(follow_readiness(
            self.readiness.clone(),
            self.reporter.clone(),
            own.sender(),
        ));
        let own = Arc::clone(own);
        tasks.spawn(async move { own.run().await });
        let streams = self.streams.clone();
        tasks.spawn(async move { streams.age().await });
        CoreTasks(tasks)
    }

    async fn report(&self, is_ready: bool) {
        report(&self.reporter, is_ready).await;
    }
}

/// Tasks without which the instance does not work.
pub(super) struct CoreTasks(JoinSet<()>);

impl CoreTasks {
    /// Resolves when one of them ended.
    pub(super) async fn failed(&mut self) -> Error {
        match self.0.join_next().await {
            Some(Err(error)) => Error::Task(error.to_string()),
            Some(Ok(())) | None => Error::Task("a task that never ends returned".into()),
        }
    }
}

/// Readiness follows the engine's health.
async fn follow_log(mut health: tokio::sync::watch::Receiver<Health>, readiness: Readiness) {
    loop {
        let now = health.borrow_and_update().clone();
        match now {
            Health::Ready => readiness.clear(Condition::Log),
            Health::Full => readiness.fail(Condition::Log, "the disk is full"),
            Health::Unavailable(why) | Health::Failed(why) => readiness.fail(Condition::Log, why),
            Health::Closed => readiness.fail(Condition::Log, "closed"),
        }
        if health.changed().await.is_err() {
            // The engine is gone: its last word stands.
            std::future::pending::<()>().await;
        }
    }
}

/// grpc.health.v1 follows readiness.
async fn follow_readiness(readiness: Readiness, reporter: HealthReporter, events: own::Sender) {
    let mut ready = readiness.watch();
    // Nobody is ready before recovery: that is no news.
    let mut was_ready = false;
    loop {
        let is_ready = *ready.borrow_and_update();
        // Watchers would hear what they know already.
        if is_ready != was_ready {
            report(&reporter, is_ready).await;
        }
        match (was_ready, is_ready) {
            (false, true) => {
                tracing::info!("ready");
                events.event(Happening::Ready, &[]);
            }
            (true, false) => {
                let reasons = readiness.reasons();
                tracing::warn!(?reasons, "not ready");
                events.event(Happening::NotReady, &[("reasons", &reasons.join("; "))]);
            }
            (true, true) | (false, false) => {}
        }
        was_ready = is_ready;
        if ready.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn report(reporter: &HealthReporter, is_ready: bool) {
    let status = match is_ready {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for name in [""].iter().chain(services::SERVICE_NAMES) {
        reporter.set_service_status(name, status).await;
    }
}
