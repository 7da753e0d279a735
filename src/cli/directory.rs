//! The data directory that a command works on, beside the server or without one.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, config::SettingsArgs};
use crate::config::{self, Config, EngineKind};

/// Which directory.
#[derive(Debug, Args)]
pub(super) struct Directory {
    /// The data directory [default: `log.dir` of the settings].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Directory {
    /// The settings, with the directory in its place.
    pub(super) fn resolve(self) -> Result<Config, Failure> {
        let loaded = config::load(&self.settings.sources())
            .map_err(|problems| Failure::usage(format!("the settings are wrong:\n{problems}")))?;
        let mut config = loaded.config;
        match self.dir {
            // A directory that is named is that of an embedded log.
            Some(dir) => config.log.dir = dir,
            None => check_engine(config.log.engine)?,
        }
        Ok(config)
    }
}

fn check_engine(engine: EngineKind) -> Result<(), Failure> {
    match engine {
        EngineKind::Embedded => Ok(()),
        EngineKind::Jetstream => Err(Failure::usage(
            "the log is on NATS JetStream: use `nats stream backup` and `nats stream restore` for its stream",
        )),
        EngineKind::Memory => Err(Failure::usage(
            "the log is in memory: there is nothing to back up; use the embedded engine",
        )),
    }
}

/// Runs what blocks beside the signals.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}
