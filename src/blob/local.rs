//! A directory. Blobs are staged in a file beside them and renamed when they are whole and flushed.

use std::{
    fs::{self, File, OpenOptions},
    io::{IoSlice, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use object_store::{ObjectStore, local::LocalFileSystem};
use sha2::{Digest as _, Sha256};

use super::{
    Checkpoint, Error, Staging, blocking,
    reader::{self, Source},
    staging::saved,
};
use crate::dirs;

/// Bytes after which a flush begins beside further writes, so that the last one has little left to do.
const FLUSH_BYTES: u64 = 16 * 1024 * 1024;

/// A directory on this machine.
pub(super) struct Local {
    root: PathBuf,
    min_free: u64,
    objects: OnceLock<LocalFileSystem>,
}

impl Local {
    pub(super) fn new(root: &Path, min_free: u64) -> Self {
        Self {
            root: root.to_owned(),
            min_free,
            objects: OnceLock::new(),
        }
    }

    /// The directory as an object store; made on first use, so that a server that stores no file needs none.
    pub(super) fn objects(&self) -> Result<&dyn ObjectStore, Error> {
        if let Some(objects) = self.objects.get() {
            return Ok(objects);
        }
        dirs::make_private(&self.root)?;
        let objects = LocalFileSystem::new_with_prefix(&self.root)?.with_fsync(true);
        Ok(self.objects.get_or_init(|| objects))
    }

    pub(super) async fn read(&self, key: &str, from: u64) -> Result<Option<Source>, Error> {
        reader::open(self.root.join(key), from).await
    }

    pub(super) async fn stage(
        &self,
        key: &str,
        scratch: &str,
        from: Checkpoint,
    ) -> Result<Staging, Error> {
        let (target, path) = (self.root.join(key), self.root.join(scratch));
        let hasher = from.hasher()?;
        let committed = from.committed;
        let opened = {
            let path = path.clone();
            move || open(&path, &target, committed)
        };
        let file = blocking(opened).await?;
        Ok(Staging::from(LocalStaging {
            path,
            file: Arc::new(file),
            min_free: self.min_free,
            hasher,
            written: committed,
            flushed: committed,
        }))
    }

    pub(super) async fn publish(&self, key: &str, scratch: &str, size: u64) -> Result<(), Error> {
        let (target, path) = (self.root.join(key), self.root.join(scratch));
        blocking(move || {
            let is_whole = |path: &Path| fs::metadata(path).is_ok_and(|found| found.len() == size);
            if is_whole(&path) {
                fs::rename(&path, &target)?;
            } else if !is_whole(&target) {
                return Err(Error::Corrupt("a staged file is not whole".into()));
            }
            if let Some(directory) = target.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        })
        .await
    }
}

/// The staging file, cut to what is committed and ready to append.
fn open(path: &Path, target: &Path, committed: u64) -> Result<File, Error> {
    for directory in [path.parent(), target.parent()].into_iter().flatten() {
        dirs::make_private(directory)?;
    }
    // Append mode: what is written goes behind what was cut.
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    if file.metadata()?.len() < committed {
        return Err(Error::Corrupt(
            "a staged file is shorter than what was acknowledged".into(),
        ));
    }
    file.set_len(committed)?;
    Ok(file)
}

/// A blob being written to a file.
pub(super) struct LocalStaging {
    path: PathBuf,
    file: Arc<File>,
    min_free: u64,
    hasher: Sha256,
    written: u64,
    /// Up to where a flush was begun.
    flushed: u64,
}

impl LocalStaging {
    pub(super) const fn hasher(&self) -> &Sha256 {
        &self.hasher
    }

    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    pub(super) async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        let (file, min_free) = (Arc::clone(&self.file), self.min_free);
        let mut hasher = self.hasher.clone();
        let (hasher, length) = blocking(move || {
            if free_bytes(&file)? < min_free {
                return Err(Error::Full);
            }
            let mut length = 0;
            for piece in &pieces {
                hasher.update(piece);
                length += piece.len() as u64;
            }
            write_all(&file, &pieces)?;
            Ok((hasher, length))
        })
        .await?;
        self.hasher = hasher;
        self.written += length;
        Ok(())
    }

    pub(super) fn checkpoint_due(
        &mut self,
    ) -> Option<BoxFuture<'static, Result<Checkpoint, Error>>> {
        (self.written - self.flushed >= FLUSH_BYTES).then(|| {
            self.flushed = self.written;
            self.flush().boxed()
        })
    }

    pub(super) async fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        self.flushed = self.written;
        self.flush().await
    }

    fn flush(&self) -> impl Future<Output = Result<Checkpoint, Error>> + Send + use<> {
        let file = Arc::clone(&self.file);
        let checkpoint = Checkpoint {
            committed: self.written,
            hash: saved(&self.hasher),
            ..Checkpoint::default()
        };
        blocking(move || {
            file.sync_data()?;
            Ok(checkpoint)
        })
    }

    pub(super) async fn seal(self) -> Result<Checkpoint, Error> {
        self.flush().await
    }

    pub(super) async fn discard(self) -> Result<(), Error> {
        blocking(move || match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        })
        .await
    }
}

fn free_bytes(file: &File) -> Result<u64, Error> {
    let stat = rustix::fs::fstatvfs(file).map_err(std::io::Error::from)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Writes all pieces with as few system calls as they allow.
fn write_all(mut file: &File, pieces: &[Bytes]) -> Result<(), Error> {
    let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = &mut slices[..];
    // Empty pieces in front would look like a write that wrote nothing.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = match file.write_vectored(rest) {
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
            Ok(written) => written,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
