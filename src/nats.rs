//! The connection to NATS that an instance has when its log is on JetStream: one, shared by the log, the files and the registry.

pub(crate) mod stream;
pub(crate) mod token;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::{sync::watch, time::Instant};

use self::stream::{Failure, Stream};
use crate::{
    config::{self, Config},
    log::OpenError,
};

/// The oldest NATS server: the first with atomic batches.
const OLDEST: (i64, i64, i64) = (2, 12, 0);
/// Messages of one subscription that wait in memory; further ones are dropped and read from the stream.
const WAITING: usize = 16_384;
/// How often a silent connection is pinged; two unanswered pings break it.
const PING: Duration = Duration::from_secs(2);
/// Between two attempts to start.
const RESTART: Duration = Duration::from_millis(250);
/// The longest pause between two attempts to connect again.
const RECONNECT: Duration = Duration::from_secs(1);

/// A connection to NATS that mends itself. Cheap to clone; the last clone closes it.
#[derive(Debug, Clone)]
pub struct Nats {
    /// The connection.
    pub(crate) client: Client,
    /// How NATS is to be used.
    pub(crate) settings: Arc<config::Jetstream>,
    /// Whether the connection stands.
    pub(crate) connected: watch::Receiver<bool>,
    /// When a starting instance gives up.
    deadline: Instant,
}

/// Why something did not work while the instance starts.
pub(crate) enum Attempt {
    /// It may work in a moment.
    Later(OpenError),
    /// Somebody has to change something.
    Hopeless(OpenError),
}

impl Nats {
    /// Connects, and waits for NATS up to `jetstream.startup_timeout`.
    ///
    /// # Errors
    /// [`OpenError::Nats`]: it cannot be reached, refuses, or is too old.
    pub async fn connect(config: &Config) -> Result<Self, OpenError> {
        let settings = Arc::new(config.jetstream.clone());
        let deadline = Instant::now() + settings.startup_timeout;
        retry(deadline, async || {
            let (tell, connected) = watch::channel(true);
            let client = client(&settings, tell).await?;
            let (major, minor, patch) = OLDEST;
            if !client.is_server_compatible(major, minor, patch) {
                let found = client.server_info().version;
                let why = format!(
                    "the server has version {found}, and version {major}.{minor}.{patch} or later is needed"
                );
                return Err(Attempt::Hopeless(error(&settings, why)));
            }
            Ok(Self {
                client,
                settings: settings.clone(),
                connected,
                deadline,
            })
        })
        .await
    }

    /// Repeats what an instance needs to start until it works, somebody has to change something, or the start took too
    /// long.
    pub(crate) async fn prepare<T>(
        &self,
        attempt: impl AsyncFnMut() -> Result<T, Attempt>,
    ) -> Result<T, OpenError> {
        retry(self.deadline, attempt).await
    }

    /// The way to the stream of this name.
    pub(crate) fn stream(&self, name: String) -> Stream {
        Stream {
            client: self.client.clone(),
            name,
            timeout: self.settings.timeout,
            is_single: self.settings.replicas == 1,
        }
    }

    /// What a failed request means for the start.
    pub(crate) fn attempt(&self, failure: Failure) -> Attempt {
        match failure {
            Failure::Refused(refusal) => Attempt::Hopeless(self.error(refusal.description)),
            Failure::NoResponders => Attempt::Later(self.error(
                "JetStream does not answer: start the server with JetStream (-js) and allow it for this account".into(),
            )),
            Failure::Unknown(cause) => Attempt::Later(self.error(cause)),
        }
    }

    /// What is wrong with NATS, for the person who starts the service.
    pub(crate) fn error(&self, cause: String) -> OpenError {
        error(&self.settings, cause)
    }
}

async fn retry<T>(
    deadline: Instant,
    mut attempt: impl AsyncFnMut() -> Result<T, Attempt>,
) -> Result<T, OpenError> {
    let mut told = false;
    loop {
        let failure = match attempt().await {
            Ok(done) => return Ok(done),
            Err(Attempt::Hopeless(error)) => return Err(error),
            Err(Attempt::Later(error)) => error,
        };
        if Instant::now() + RESTART > deadline {
            return Err(failure);
        }
        if !told {
            tracing::warn!(%failure, "waiting for NATS");
            told = true;
        }
        tokio::time::sleep(RESTART).await;
    }
}

async fn client(
    settings: &config::Jetstream,
    tell: watch::Sender<bool>,
) -> Result<Client, Attempt> {
    let refuse = |cause: String| Attempt::Hopeless(error(settings, cause));
    let addresses = settings.url.split(',').map(|url| url.trim().parse());
    let addresses: Vec<ServerAddr> = addresses
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(format!("jetstream.url is no address of NATS: {error}")))?;
    let mut options = ConnectOptions::new()
        .name("weir")
        .subscription_capacity(WAITING)
        .ping_interval(PING)
        .connection_timeout(settings.timeout)
        .reconnect_delay_callback(|attempts| {
            let doubled = Duration::from_millis(10) * 2_u32.saturating_pow(attempts.min(10) as u32);
            doubled.min(RECONNECT)
        })
        .event_callback(move |event| {
            match event {
                Event::Connected => drop(tell.send_replace(true)),
                Event::Disconnected | Event::Closed => drop(tell.send_replace(false)),
                _ => {}
            }
            std::future::ready(())
        });
    // The library itself takes no notice of them.
    let named = addresses.iter().find(|address| address.has_user_pass());
    if let Some((user, password)) = named.and_then(|named| named.username().zip(named.password())) {
        let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        options = options.user_and_password(plain(user), plain(password));
    }
    if !settings.ca.is_empty() {
        options = options.add_root_certificates(PathBuf::from(&settings.ca));
    }
    if !settings.cert.is_empty() {
        options = options
            .add_client_certificate(PathBuf::from(&settings.cert), PathBuf::from(&settings.key));
    }
    if !settings.credentials.is_empty() {
        let with = options.credentials_file(&settings.credentials).await;
        options = with.map_err(|error| {
            let file = &settings.credentials;
            refuse(format!("the credentials in {file} cannot be used: {error}"))
        })?;
    }
    options.connect(addresses).await.map_err(|cause| {
        use async_nats::ConnectErrorKind as Kind;
        let hopeless = matches!(
            cause.kind(),
            Kind::Authentication | Kind::AuthorizationViolation | Kind::Tls | Kind::ServerParse
        );
        let error = error(settings, format!("cannot connect: {cause}"));
        match hopeless {
            true => Attempt::Hopeless(error),
            false => Attempt::Later(error),
        }
    })
}

fn error(settings: &config::Jetstream, cause: String) -> OpenError {
    let url = settings
        .url
        .split(',')
        .map(|url| config::redact(url.trim()));
    OpenError::Nats {
        url: url.collect::<Vec<_>>().join(","),
        cause,
    }
}
