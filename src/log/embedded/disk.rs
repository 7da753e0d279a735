//! The disk below the engine: the seam by which it is reached, the directory's lock, its free space, what its errors mean.
//!
//! The engine touches files through [`Disk`] and [`DiskFile`] only, so that tests put a disk below it that fails, is full, is slow
//! or forgets; [`System`] is the real one.

use std::{
    fmt, fs, io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs},
    io::Errno,
};

use crate::{dirs, log::OpenError};

/// How long a look at the free space stays good.
const FRESH: Duration = Duration::from_millis(100);
/// The least room worth trying again with when no other bound is set.
const LEAST_ROOM_BYTES: u64 = 1024 * 1024;

/// What the engine asks of a file system. All calls block.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes a file that is not there yet, for its owner only.
    ///
    /// # Errors
    /// As the operating system reports.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and, where `writes`, writing.
    ///
    /// # Errors
    /// As the operating system reports.
    fn open(&self, path: &Path, writes: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// As the operating system reports.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// As the operating system reports.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the operating system reports.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that may still be written below `dir`; none when the disk does not say.
    fn free_bytes(&self, dir: &Path) -> Option<u64>;
}

/// An open file. Positions and lengths are bytes.
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Reads until `buf` is full or the file ends; returns how much that was.
    ///
    /// # Errors
    /// As the operating system reports.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// As the operating system reports; some of it may be written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As the operating system reports; what is durable is unknown then.
    fn sync(&self) -> io::Result<()>;

    /// Sets room aside up to `len`, so that writing there needs no further room. The file reads as zeros there.
    ///
    /// # Errors
    /// As the operating system reports; nothing changed for what is written already.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts or lengthens the file; what is added reads as zeros.
    ///
    /// # Errors
    /// As the operating system reports.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The file's size.
    ///
    /// # Errors
    /// As the operating system reports.
    fn size(&self) -> io::Result<u64>;
}

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Disk for System {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Arc::new(SystemFile(options.open(path)?)))
    }

    fn open(&self, path: &Path, writes: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(writes);
        Ok(Arc::new(SystemFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let stat = statvfs(dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct SystemFile(fs::File);

impl DiskFile for SystemFile {
    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<usize> {
        let wanted = buf.len();
        while !buf.is_empty() {
            match self.0.read_at(buf, offset) {
                Ok(0) => break,
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(wanted - buf.len())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let now = self.0.metadata()?.len();
        if len <= now {
            return Ok(());
        }
        match fallocate(&self.0, FallocateFlags::empty(), now, len - now) {
            // A file system that cannot: room is taken as it is written.
            Err(Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// The data directory, held for this process until dropped.
#[derive(Debug)]
pub(super) struct DirLock {
    file: fs::File,
}

impl DirLock {
    /// Creates `dir` if needed, for its owner only, and takes it.
    pub(super) fn acquire(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |cause| OpenError::Directory {
            path: dir.into(),
            cause,
        };
        make_dir(dir).map_err(unusable)?;
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

/// Makes a directory, and those above it, for their owner only; one that is there stays as it is.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    dirs::make_private(dir)
}

/// Watches the free space of the data directory.
#[derive(Debug)]
pub(super) struct Room {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    min_free_bytes: u64,
    /// When the disk was last looked at, and how much may be written before it is looked at again.
    looked: Option<(Instant, u64)>,
}

impl Room {
    pub(super) const fn new(disk: Arc<dyn Disk>, dir: PathBuf, min_free_bytes: u64) -> Self {
        Self {
            disk,
            dir,
            min_free_bytes,
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
        // What is set aside already takes no further room, so a disk without a bound may be full to its last byte.
        spare >= bytes || self.min_free_bytes == 0
    }

    /// Whether there is enough room to start again after the disk was full. More than [`Room::has`] asks for, so that the
    /// state does not flap.
    pub(super) fn is_back(&mut self) -> bool {
        self.looked = None;
        let wanted = self.min_free_bytes + self.min_free_bytes / 8;
        self.free_bytes() >= wanted.max(LEAST_ROOM_BYTES)
    }

    /// Free bytes of the disk; all there can be when the disk does not say.
    fn free_bytes(&self) -> u64 {
        self.disk.free_bytes(&self.dir).unwrap_or(u64::MAX)
    }
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
