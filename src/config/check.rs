//! Rules that a key's type and range do not express.

use std::{net::SocketAddr, time::Duration};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    Config, EngineKind,
    section::{Node as _, Violation},
};

/// How long writing out the log may take at the end of a drain.
const FLUSH: Duration = Duration::from_secs(5);
/// Windows that lateness may keep open, of each series.
const OPEN_WINDOWS: u32 = 1000;

/// Every value that is not allowed.
pub(super) fn all(config: &Config) -> Vec<Violation> {
    let mut found = Vec::new();
    config.check("", &mut found);
    let rules = [
        instance_id,
        addresses,
        windows,
        origins,
        queue,
        jetstream,
        lease,
        hub,
        drain,
        lateness,
        log_level,
        endpoint,
        file_store,
        file_url,
    ];
    let out_of_range = found.clone();
    let fresh = |violation: &Violation| {
        !out_of_range
            .iter()
            .any(|known| known.keys.iter().any(|key| violation.keys.contains(key)))
    };
    found.extend(rules.iter().filter_map(|rule| rule(config)).filter(fresh));
    found
}

fn instance_id(config: &Config) -> Option<Violation> {
    let id = &config.server.instance_id;
    (id.trim().is_empty() || id.len() > 256).then(|| {
        Violation::new(
            &["server.instance_id"],
            "a text that is not blank, at most 256 bytes",
        )
    })
}

fn addresses(config: &Config) -> Option<Violation> {
    let server = &config.server;
    if server.grpc.is_empty() {
        return Some(Violation::new(
            &["server.grpc"],
            "a list of at least one address",
        ));
    }
    let mut all: Vec<(&str, SocketAddr)> = server
        .grpc
        .iter()
        .map(|&address| ("server.grpc", address))
        .collect();
    all.extend([("server.http", server.http), ("server.admin", server.admin)]);
    let clash = |(at, (first, one)): (usize, &(&'static str, SocketAddr))| {
        let (second, other) = all[at + 1..]
            .iter()
            .find(|(_, other)| collide(*one, *other))?;
        let mut keys = vec![*second, *first];
        keys.dedup();
        Some(Violation::new(
            &keys,
            format!("different from every other address: {other} is taken by {one} of {first}"),
        ))
    };
    all.iter().enumerate().find_map(clash)
}

/// Whether the second address cannot be bound once the first is.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let overlap =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && overlap
}

fn windows(config: &Config) -> Option<Violation> {
    let server = &config.server;
    (server.connection_window < server.stream_window).then(|| {
        Violation::new(
            &["server.connection_window", "server.stream_window"],
            "such that server.connection_window is at least server.stream_window",
        )
    })
}

fn origins(config: &Config) -> Option<Violation> {
    let bad = config
        .cors
        .allowed_origins
        .iter()
        .any(|origin| !is_origin(origin));
    bad.then(|| {
        Violation::new(
            &["cors.allowed_origins"],
            "a list of `*` or origins: scheme://host or scheme://host:port, no path",
        )
    })
}

fn is_origin(text: &str) -> bool {
    let host = text.split_once("://").map(|(_, host)| host);
    text == "*"
        || host.is_some_and(|host| !host.contains(['/', '@', '?', '#']))
            && text
                .parse::<http::Uri>()
                .is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

fn queue(config: &Config) -> Option<Violation> {
    (config.log.queue < config.limits.message).then(|| {
        Violation::new(
            &["log.queue", "limits.message"],
            "such that log.queue is at least limits.message",
        )
    })
}

fn jetstream(config: &Config) -> Option<Violation> {
    let settings = &config.jetstream;
    let is_token = |text: &str| {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        !text.is_empty() && text.len() <= 64 && text.bytes().all(is_fit)
    };
    for (key, text) in [
        ("jetstream.stream", &settings.stream),
        ("jetstream.prefix", &settings.prefix),
    ] {
        if !is_token(text) {
            let allowed = "1 to 64 ASCII letters, digits, - or _";
            return Some(Violation::new(&[key], allowed));
        }
    }
    (settings.cert.is_empty() != settings.key.is_empty()).then(|| {
        Violation::new(
            &["jetstream.cert", "jetstream.key"],
            "such that jetstream.cert and jetstream.key are both set or both empty",
        )
    })
}

/// A replica that dies while it tells a room that somebody went is found out after its lease: the room is then told again,
/// and the key must still be known.
fn lease(config: &Config) -> Option<Violation> {
    let is_long = config.presence.lease.saturating_mul(3) > config.log.dedupe_window;
    (config.log.engine == EngineKind::Jetstream && is_long).then(|| {
        Violation::new(
            &["presence.lease", "log.dedupe_window"],
            "such that presence.lease is at most a third of log.dedupe_window with log.engine = \"jetstream\"",
        )
    })
}

fn hub(config: &Config) -> Option<Violation> {
    (config.hub.total < config.hub.tail).then(|| {
        Violation::new(
            &["hub.total", "hub.tail"],
            "such that hub.total is at least hub.tail",
        )
    })
}

fn drain(config: &Config) -> Option<Violation> {
    let drain = &config.drain;
    let planned = drain.delay.saturating_add(drain.spread);
    (!planned.is_zero() && planned.saturating_add(FLUSH) > drain.timeout).then(|| {
        Violation::new(
            &["drain.timeout", "drain.delay", "drain.spread"],
            "such that drain.delay, drain.spread and 5s for the log together are at most drain.timeout",
        )
    })
}

fn lateness(config: &Config) -> Option<Violation> {
    let processing = &config.processing;
    (processing.lateness > processing.window.saturating_mul(OPEN_WINDOWS)).then(|| {
        Violation::new(
            &["processing.lateness", "processing.window"],
            "such that processing.lateness is at most 1000 times processing.window",
        )
    })
}

fn log_level(config: &Config) -> Option<Violation> {
    let filter = &config.telemetry.log_level;
    // The filter itself takes a mistyped level for the name of a target.
    let misspelled = |directive: &str| {
        !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err()
    };
    let bad = filter
        .split(',')
        .any(|directive| misspelled(directive.trim()))
        || EnvFilter::builder().parse(filter).is_err();
    bad.then(|| {
        Violation::new(
            &["telemetry.log_level"],
            "off, error, warn, info, debug, trace, or a filter such as info,weir=debug,h2=warn",
        )
    })
}

fn endpoint(config: &Config) -> Option<Violation> {
    let endpoint = &config.telemetry.otlp_endpoint;
    (!endpoint.is_empty() && !is_http(endpoint)).then(|| {
        Violation::new(
            &["telemetry.otlp_endpoint"],
            "empty or a URL such as http://collector:4317",
        )
    })
}

fn file_store(config: &Config) -> Option<Violation> {
    let store = &config.files.store;
    let is_bad = match store.split_once("://") {
        Some(("s3", bucket)) => bucket.trim_matches('/').is_empty() || bucket.starts_with('/'),
        Some(_) => true,
        None => store.contains('\0'),
    };
    is_bad.then(|| {
        Violation::new(
            &["files.store"],
            "empty, a directory, or s3://bucket/prefix",
        )
    })
}

fn file_url(config: &Config) -> Option<Violation> {
    let url = &config.files.url;
    (!url.is_empty() && (!is_http(url) || url.contains(['?', '#']))).then(|| {
        Violation::new(
            &["files.url"],
            "empty or a URL such as https://files.example.org",
        )
    })
}

fn is_http(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    })
}
