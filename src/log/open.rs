//! Opening the engine that the configuration names.

use std::{io, path::PathBuf, sync::Arc};

use super::{Engine, embedded::Embedded, memory};
use crate::{
    config::{self, EngineKind},
    telemetry::Metrics,
};

/// Opens the engine `config` names. Blocks while the embedded engine replays its journal.
///
/// # Errors
/// See [`OpenError`]; nothing on disk was changed for the worse.
pub fn open(config: &config::Log, metrics: Metrics) -> Result<Arc<dyn Engine>, OpenError> {
    Ok(match config.engine {
        EngineKind::Memory => Arc::new(memory::Memory::new(memory::Options::new(config, metrics))),
        EngineKind::Embedded => Arc::new(Embedded::open(config, metrics)?),
    })
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
        "the data in {path} has format {found}, which this version does not know: run the version that wrote it, or set log.dir to another directory"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: String,
    },
    /// The data does not open; it was left as it is.
    #[error("cannot open the log in {path}: {cause}")]
    Storage {
        /// The directory.
        path: PathBuf,
        /// What the storage said.
        cause: String,
    },
}
