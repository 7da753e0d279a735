//! Opening the engine that the configuration names.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Engine, embedded::Embedded, jetstream::Jetstream, memory};
use crate::{
    config::{self, Config, EngineKind},
    nats::Nats,
    telemetry::Metrics,
};

/// Between two looks at a directory that another process has open.
const LOOK: Duration = Duration::from_millis(100);

/// Opens the engine that `config.log` names. The embedded engine replays its journal on the blocking pool, and waits for another
/// process to leave its directory up to `log.lock_timeout`; that of JetStream uses `nats`, or a connection of its own, and waits
/// for it up to `jetstream.startup_timeout`. Dropping the future leaves nothing open.
///
/// # Errors
/// See [`OpenError`]; nothing that is stored was changed for the worse.
pub async fn open(
    config: &Config,
    nats: Option<&Nats>,
    metrics: Metrics,
) -> Result<Arc<dyn Engine>, OpenError> {
    let log = &config.log;
    Ok(match log.engine {
        EngineKind::Memory => Arc::new(memory::Memory::new(memory::Options::new(log, metrics))),
        EngineKind::Embedded => Arc::new(embedded(log, metrics).await?),
        EngineKind::Jetstream => {
            let nats = match nats {
                Some(nats) => nats.clone(),
                None => Nats::connect(config).await?,
            };
            Arc::new(Jetstream::open(&nats, config, metrics).await?)
        }
    })
}

async fn embedded(log: &config::Log, metrics: Metrics) -> Result<Embedded, OpenError> {
    let deadline = Instant::now() + log.lock_timeout;
    let mut is_told = false;
    loop {
        let (settings, metrics) = (log.clone(), metrics.clone());
        let opened = tokio::task::spawn_blocking(move || Embedded::open(&settings, metrics)).await;
        let opened = opened.map_err(|cause| OpenError::Storage {
            path: log.dir.clone(),
            cause: cause.to_string(),
        })?;
        let is_in_use = matches!(opened, Err(OpenError::InUse { .. }));
        if !is_in_use || Instant::now() >= deadline {
            return opened;
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(dir = %log.dir.display(), "waiting for another process to leave the data directory");
        }
        sleep(LOOK).await;
    }
}

/// Why an engine could not be opened; each is worded for the person who starts the service.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be created, read or written.
    #[error("cannot use the data directory {path}: {cause}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Another process has the data directory open.
    #[error(
        "the data directory {path} is in use by another process: stop that one, or set log.dir to another directory"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory was written by a version this one does not know; it was left as it is.
    #[error(
        "the data in {path} has format {found}, which this version does not know: move it by `weir backup` of the version that wrote it and `weir restore` of this one, or set log.dir to another directory"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: String,
    },
    /// A file of the log is not what was written; everything was left as it is.
    #[error(
        "the log is damaged at byte {offset} of {file}: {what}; `weir repair` keeps what can be read and lists what is lost"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where the damage begins, in bytes.
        offset: u64,
        /// The sequences in doubt, in words.
        what: String,
    },
    /// A file lies in the log's directory that is none of this log; everything was left as it is.
    #[error(
        "{path} is no file of this log: move it elsewhere, or set log.dir to another directory"
    )]
    Strange {
        /// The file.
        path: PathBuf,
    },
    /// There is no log.
    #[error("there is no log in {path}")]
    Missing {
        /// The data directory.
        path: PathBuf,
    },
    /// A restore into the directory was cut short.
    #[error(
        "the restore into {path} was not finished: run `weir restore` again, or remove what is in the directory"
    )]
    Unfinished {
        /// The directory.
        path: PathBuf,
    },
    /// Something is where a log should be made.
    #[error("the directory {path} is not empty: restore into a new one, or empty it")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The data does not open; it was left as it is.
    #[error("cannot open the log in {path}: {cause}")]
    Storage {
        /// The directory.
        path: PathBuf,
        /// What the storage said.
        cause: String,
    },
    /// NATS cannot be reached, refuses, or is not what the log needs.
    #[error("cannot use NATS at {url}: {cause}")]
    Nats {
        /// Its address.
        url: String,
        /// What is wrong, and what helps.
        cause: String,
    },
}
