//! Connecting, and the stream: created if there is none, checked otherwise.

use std::{path::PathBuf, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event, ServerAddr,
    jetstream::stream::{
        Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy, StorageType,
    },
};
use percent_encoding::percent_decode_str;
use tokio::{sync::watch, time::Instant};

use super::{
    api::{Api, Failure, Info},
    subject::Subjects,
};
use crate::{
    config::{self, Config},
    log::OpenError,
};

/// The oldest NATS server: the first with atomic batches.
const OLDEST: (i64, i64, i64) = (2, 12, 0);
/// The shortest window in which a stream recognises repetitions.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);
/// What a message takes beside a record's payload, at most.
const OVERHEAD: u64 = 8 * 1024;
/// Messages of one subscription that wait in memory; further ones are dropped and read from the stream.
const WAITING: usize = 16_384;
/// How often a silent connection is pinged; two unanswered pings break it.
const PING: Duration = Duration::from_secs(2);
/// Between two attempts to start.
const RESTART: Duration = Duration::from_millis(250);
/// The longest pause between two attempts to connect again.
const RECONNECT: Duration = Duration::from_secs(1);

/// A connection and a stream that are fit for the log.
pub(super) struct Connected {
    pub(super) api: Api,
    pub(super) info: Info,
    /// Whether the connection stands.
    pub(super) connected: watch::Receiver<bool>,
}

/// Connects, and waits for NATS as long as the configuration says.
pub(super) async fn connect(config: &Config) -> Result<Connected, OpenError> {
    let deadline = Instant::now() + config.jetstream.startup_timeout;
    let mut told = false;
    loop {
        let (tell, connected) = watch::channel(true);
        let failure = match attempt(config, tell).await {
            Ok((api, info)) => {
                return Ok(Connected {
                    api,
                    info,
                    connected,
                });
            }
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

enum Attempt {
    /// It may work in a moment.
    Later(OpenError),
    /// Somebody has to change something.
    Hopeless(OpenError),
}

async fn attempt(config: &Config, tell: watch::Sender<bool>) -> Result<(Api, Info), Attempt> {
    let settings = &config.jetstream;
    let client = client(settings, tell).await?;
    let refuse = |cause: String| Attempt::Hopeless(error(settings, cause));
    let (major, minor, patch) = OLDEST;
    if !client.is_server_compatible(major, minor, patch) {
        let found = client.server_info().version;
        return Err(refuse(format!(
            "the server has version {found}, and version {major}.{minor}.{patch} or later is needed"
        )));
    }
    let (fits, message) = (client.max_payload() as u64, config.limits.message.as_u64());
    if fits < message + OVERHEAD {
        return Err(refuse(format!(
            "the server takes messages of {fits} bytes (max_payload), and limits.message is {message}: set max_payload to \
             {} or more, or limits.message to {} or less",
            message + OVERHEAD,
            fits.saturating_sub(OVERHEAD)
        )));
    }
    let api = Api {
        client,
        subjects: Subjects::new(&settings.prefix),
        stream: settings.stream.clone(),
        timeout: settings.timeout,
        is_single: settings.replicas == 1,
    };
    let info = prepare(&api, config).await?;
    Ok((api, info))
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

/// Creates the stream, or checks the one there.
async fn prepare(api: &Api, config: &Config) -> Result<Info, Attempt> {
    let settings = &config.jetstream;
    let wanted = wanted(config, &api.subjects);
    let failed = |failure: Failure| {
        match failure {
        Failure::Refused(refusal) => Attempt::Hopeless(error(settings, refusal.description)),
        Failure::NoResponders => Attempt::Later(error(
            settings,
            "JetStream does not answer: start the server with JetStream (-js) and allow it for this account".into(),
        )),
        Failure::Unknown(cause) => Attempt::Later(error(settings, cause)),
    }
    };
    let info = match api.info(None).await {
        Err(Failure::Refused(refusal)) if refusal.is_no_stream() => {
            api.configure(&wanted, false).await.map_err(failed)?;
            api.info(None).await.map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let differences = differences(&wanted, &info.config);
    if !differences.is_empty() {
        return Err(Attempt::Hopeless(error(
            settings,
            format!(
                "the stream {} is not set up for this log ({}): change it, or set jetstream.stream and jetstream.prefix to \
                 others",
                settings.stream,
                differences.join("; ")
            ),
        )));
    }
    let is_same = info.config.num_replicas == wanted.num_replicas
        && info.config.duplicate_window == wanted.duplicate_window;
    if !is_same {
        tracing::info!(
            stream = settings.stream,
            "changing replicas or the duplicate window of the stream"
        );
        let changed = StreamConfig {
            num_replicas: wanted.num_replicas,
            duplicate_window: wanted.duplicate_window,
            ..info.config.clone()
        };
        api.configure(&changed, true).await.map_err(failed)?;
    }
    Ok(info)
}

fn wanted(config: &Config, subjects: &Subjects) -> StreamConfig {
    StreamConfig {
        name: config.jetstream.stream.clone(),
        description: Some("The log of Weir".into()),
        subjects: subjects.all(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        // Retention is the engine's: the stream itself drops nothing.
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: config.jetstream.replicas,
        duplicate_window: config.log.dedupe_window.max(SHORTEST_WINDOW),
        allow_rollup: true,
        allow_direct: true,
        allow_atomic_publish: true,
        republish: Some(Republish {
            source: ">".into(),
            destination: subjects.live(),
            headers_only: false,
        }),
        ..StreamConfig::default()
    }
}

/// What of the stream there would break the log, in words.
fn differences(wanted: &StreamConfig, found: &StreamConfig) -> Vec<String> {
    let mut all = Vec::new();
    let mut check = |name: &str, wanted: String, found: String| {
        if wanted != found {
            all.push(format!("{name} is {found} and has to be {wanted}"));
        }
    };
    let sorted = |subjects: &[String]| {
        let mut subjects = subjects.to_vec();
        subjects.sort();
        subjects.join(" ")
    };
    check(
        "subjects",
        sorted(&wanted.subjects),
        sorted(&found.subjects),
    );
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    check("retention", text(&wanted.retention), text(&found.retention));
    check("storage", text(&wanted.storage), text(&found.storage));
    check("max_age", text(&wanted.max_age), text(&found.max_age));
    check(
        "max_msgs",
        text(&wanted.max_messages),
        text(&found.max_messages),
    );
    check(
        "max_msgs_per_subject",
        text(&wanted.max_messages_per_subject),
        text(&found.max_messages_per_subject),
    );
    check(
        "allow_rollup_hdrs",
        text(&wanted.allow_rollup),
        text(&found.allow_rollup),
    );
    check(
        "allow_direct",
        text(&wanted.allow_direct),
        text(&found.allow_direct),
    );
    check(
        "allow_atomic",
        text(&wanted.allow_atomic_publish),
        text(&found.allow_atomic_publish),
    );
    check(
        "deny_purge",
        text(&wanted.deny_purge),
        text(&found.deny_purge),
    );
    let republish = |config: &StreamConfig| {
        config.republish.as_ref().map_or_else(
            || "none".to_owned(),
            |to| {
                let only = if to.headers_only {
                    " (headers only)"
                } else {
                    ""
                };
                format!("{} to {}{only}", to.source, to.destination)
            },
        )
    };
    check("republish", republish(wanted), republish(found));
    if found.max_bytes > 0 && found.discard != DiscardPolicy::New {
        all.push("discard is Old with a limit of bytes, and has to be New".into());
    }
    all
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
