//! Backups: the embedded log and its files as one archive, and back.
//!
//! ```text
//!  weir serve ── control.sock ──▶ weir backup ──▶ archive ──▶ weir restore ──▶ an empty directory
//!  a stopped directory ─────────▶
//! ```
//!
//! An archive is a tar of these entries, in this order, written and read as a stream:
//!
//! ```text
//! manifest.json        Manifest: the archive's format, the log's tail, how much to expect
//! log/00000000 …       the log's pieces, some MiB each; see `item`
//! files/meta/*.json    a file's description, then its content
//! files/blobs/*
//! summary.json         512 bytes: how much it was, and the SHA-256 of every byte before this entry
//! ```
//!
//! The log is that of one moment: everything acknowledged before, nothing after. Files are those that are there when it is
//! their turn; what is deleted meanwhile may be left out. Memory is bounded by a few pieces on both sides.

mod archive;
mod control;
mod digest;
mod files;
mod item;
mod restore;

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use archive::{Contents, write};
pub use control::{Control, Fetched, fetch};
pub use restore::{Restored, restore};

use crate::{config::Config, log};

/// The archive's format that this code reads and writes.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const SUMMARY: &str = "summary.json";
/// Size of the summary: one block of the archive, so that nothing pads it.
const SUMMARY_BYTES: usize = 512;

/// What an archive begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The archive's format.
    pub format: u32,
    /// The version of Weir that wrote it.
    pub weir: String,
    /// When it was begun, as RFC 3339 says it.
    pub time: String,
    /// The log's tail: the position before which the archive holds everything.
    pub tail: u64,
    /// Topics in it.
    pub topics: u64,
    /// Bytes of its records.
    pub log_bytes: u64,
    /// Bytes of the files that were there; those stored on S3 or elsewhere do not count and are not in it.
    pub file_bytes: u64,
}

/// What an archive holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Topics.
    pub topics: u64,
    /// Records.
    pub records: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Files.
    pub files: u64,
    /// The log's tail.
    pub tail: u64,
    /// Bytes of the archive, up to its summary.
    pub bytes: u64,
}

/// The directory of the files, if they are in the data directory.
#[must_use]
pub fn files_dir(config: &Config) -> Option<PathBuf> {
    let own = config.log.dir.join("files");
    let store = Path::new(&config.files.store);
    (store.as_os_str().is_empty() || store == own).then_some(own)
}

impl Summary {
    fn count(&mut self, item: &log::export::Item<'_>) {
        match item {
            log::export::Item::Topic { .. } => self.topics += 1,
            log::export::Item::Record { .. } => self.records += 1,
            log::export::Item::Key { .. } => self.keys += 1,
        }
    }

    /// The last entry of an archive with this digest. Both sides make it, and they compare.
    fn seal(&self, sha256: &str) -> [u8; SUMMARY_BYTES] {
        let Self {
            topics,
            records,
            keys,
            files,
            tail,
            bytes,
        } = self;
        let text = format!(
            "{{\"topics\":{topics},\"records\":{records},\"keys\":{keys},\"files\":{files},\"tail\":{tail},\
             \"bytes\":{bytes},\"sha256\":\"{sha256}\"}}"
        );
        let mut sealed = [b' '; SUMMARY_BYTES];
        let length = text.len().min(SUMMARY_BYTES - 1);
        sealed[..length].copy_from_slice(&text.as_bytes()[..length]);
        sealed[SUMMARY_BYTES - 1] = b'\n';
        sealed
    }
}

/// Why a backup or a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The directory cannot be opened or filled.
    #[error(transparent)]
    Open(#[from] log::OpenError),
    /// The archive cannot be written or read.
    #[error("{0}")]
    Archive(io::Error),
    /// A stored file cannot be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The archive is not what a backup writes, or not whole.
    #[error("the archive is damaged or incomplete: {0}")]
    Damaged(String),
    /// The archive was written by a version this one does not know.
    #[error(
        "the archive has format {0}, which this version does not know: use the version that wrote it"
    )]
    Format(u32),
    /// The server told why.
    #[error("the server cannot give a backup: {0}")]
    Refused(String),
    /// The server is gone, in the middle of it.
    #[error("the server went away during the backup")]
    Gone,
}

impl Error {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { path, cause }
    }

    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}
