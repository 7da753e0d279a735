//! The disk below the engine: its lock, its free space, what the log takes on it, and what its errors mean.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock, statvfs},
    io::Errno,
};

use super::Faults;
use crate::log::OpenError;

/// How long a look at the free space stays good.
const FRESH: Duration = Duration::from_millis(100);
/// The least room worth trying again with when no other bound is set.
const LEAST_ROOM_BYTES: u64 = 1024 * 1024;

/// The data directory, held for this process until dropped.
#[derive(Debug)]
pub(super) struct DirLock {
    file: fs::File,
}

impl DirLock {
    /// Creates `dir` if needed and takes it.
    pub(super) fn acquire(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |cause| OpenError::Directory {
            path: dir.into(),
            cause,
        };
        fs::create_dir_all(dir).map_err(unusable)?;
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file }),
            Err(Errno::WOULDBLOCK) => Err(OpenError::InUse { path: dir.into() }),
            Err(errno) => Err(unusable(errno.into())),
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child process that is between its fork and its exec.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Watches the free space of the data directory.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    min_free_bytes: u64,
    faults: Option<Faults>,
    /// When the disk was last looked at, and how much may be written before it is looked at again.
    looked: Option<(Instant, u64)>,
}

impl Room {
    pub(super) const fn new(dir: PathBuf, min_free_bytes: u64, faults: Option<Faults>) -> Self {
        Self {
            dir,
            min_free_bytes,
            faults,
            looked: None,
        }
    }

    /// Whether `bytes` more may be written. Looks at the disk at most every tenth of a second, or when half of what was spare
    /// has been written.
    pub(super) fn has(&mut self, bytes: u64) -> bool {
        if let Some((at, left)) = &mut self.looked
            && *left > bytes
            && at.elapsed() < FRESH
        {
            *left -= bytes;
            return true;
        }
        let spare = self.free_bytes().saturating_sub(self.min_free_bytes);
        self.looked = Some((Instant::now(), spare / 2));
        spare >= bytes
    }

    /// Whether there is enough room to start again after the disk was full. More than [`Room::has`] asks for, so that the
    /// state does not flap.
    pub(super) fn is_back(&mut self) -> bool {
        self.looked = None;
        let wanted = self.min_free_bytes + self.min_free_bytes / 8;
        self.free_bytes() >= wanted.max(LEAST_ROOM_BYTES)
    }

    /// Whether the disk is as full as a write that failed would find it.
    pub(super) fn is_short(&self) -> bool {
        self.free_bytes() < self.min_free_bytes.max(LEAST_ROOM_BYTES)
    }

    /// Free bytes of the disk; all there can be when the disk does not say.
    fn free_bytes(&self) -> u64 {
        if let Some(faults) = &self.faults
            && let Some(free_bytes) = faults.free_bytes()
        {
            return free_bytes;
        }
        free_bytes(&self.dir).unwrap_or(u64::MAX)
    }
}

/// Bytes that may still be written to the disk of `dir`; `None` when it does not say.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether `error` says that the disk, or the quota on it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Bytes that files below `dir` take on the disk. Files that vanish meanwhile do not count.
pub(super) fn used_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => used_bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_directory_let_go_of_is_free_though_a_child_still_has_its_file() {
        let dir = TempDir::new().unwrap();
        let held = DirLock::acquire(dir.path()).unwrap();
        assert!(matches!(
            DirLock::acquire(dir.path()),
            Err(OpenError::InUse { .. })
        ));
        let child = held.file.try_clone().unwrap();
        drop(held);
        DirLock::acquire(dir.path()).unwrap();
        drop(child);
    }
}
