//! `weir serve`: the server.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, config::SettingsArgs, exit};
use crate::{
    app::{Addresses, App, Shutdown},
    config::{self, Loaded},
    net::descriptors::{self, Raised},
    telemetry,
};

/// How long spans may take to leave at the end; not beyond the end of a drain.
const FLUSH: Duration = Duration::from_secs(5);

const AFTER_HELP: &str = "\
Examples:
  weir serve
  weir serve --config weir.toml
  weir serve --set log.dir=/var/lib/weir --set server.grpc=0.0.0.0:50051
  WEIR__LOG__ENGINE=memory weir serve

Every key can be set in the file, as WEIR__SECTION__KEY in the environment, or with --set; later ones win.
`weir config example` explains every key.

SIGTERM or Ctrl-C drains: streams end one by one and say where to resume. A second signal ends at once.";

/// Serve until SIGTERM or Ctrl-C, then drain.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Serves until it is told to stop.
///
/// # Errors
/// The configuration is wrong, a port is taken, or the log failed.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let loaded = config::load(&args.settings.sources())
        .map_err(|problems| Failure::usage(format!("the settings are wrong:\n{problems}")))?;
    let Loaded { config, sources } = loaded;
    let guard = telemetry::init(&config.telemetry, &config.server.instance_id)
        .map_err(|error| Failure::failed(error.to_string()))?;
    raise_descriptors();
    let engine = config.log.engine;
    let app = App::bind(config, guard.traces(), guard.lines()).map_err(failed)?;
    greet(&app.addresses()?, engine, &sources)?;
    let shutdown = Shutdown::default();
    let signals = tokio::spawn(watch(signals()?, shutdown.clone()));
    let outcome = app.run(shutdown.clone()).await;
    signals.abort();
    if shutdown.now.is_cancelled() {
        // Dropping it would wait for the collector.
        std::mem::forget(guard);
        return Err(Failure::silent(exit::INTERRUPTED));
    }
    let patience = shutdown.left().map_or(FLUSH, |left| left.min(FLUSH));
    guard.shutdown(patience).await;
    outcome.map_err(failed)
}

/// Takes as many descriptors as the process may have without asking.
fn raise_descriptors() {
    match descriptors::raise() {
        Ok(Raised { from, to }) => tracing::debug!(from, to, "descriptors"),
        Err(error) => tracing::warn!(%error, "the limit on descriptors cannot be raised"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is used by map_err")]
fn failed(error: crate::app::Error) -> Failure {
    Failure::failed(error.to_string())
}

/// The one start-up line: version, addresses, where the settings came from.
fn greet(addresses: &Addresses, engine: config::EngineKind, sources: &str) -> io::Result<()> {
    let grpc: Vec<_> = addresses.grpc.iter().map(ToString::to_string).collect();
    writeln!(
        io::stdout(),
        "weir {} serves gRPC {}; HTTP {}; admin {}; log {engine}; settings: {sources}",
        env!("CARGO_PKG_VERSION"),
        grpc.join(", "),
        addresses.http,
        addresses.admin,
    )
}

fn signals() -> io::Result<[Signal; 2]> {
    Ok([
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ])
}

/// The first signal drains, the second ends at once.
async fn watch([mut terminate, mut interrupt]: [Signal; 2], shutdown: Shutdown) {
    for token in [shutdown.drain, shutdown.now] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
}
