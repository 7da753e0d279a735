//! Where the bytes of files are: a directory or S3.
//!
//! Owns small objects (written whole, replaced atomically), blobs (written once through a [`Staging`], visible only when
//! published) and ranged reads. Knows nothing of what is stored. Keys are made by the caller from its own ids, never from a
//! client's text.
//!
//! ```text
//! stage ─▶ write … write ─▶ publish ─▶ the blob can be read
//!              │ checkpoint: what is durable, and how to go on from there
//!              └─ process ends ─▶ resume(checkpoint) ─▶ write …
//! ```

mod local;
mod reader;
mod remote;
mod staging;

use std::{io, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, path::Path as Key};

pub use reader::Reader;
pub(crate) use staging::hex;
pub use staging::{Checkpoint, Staging};

use self::{local::Local, remote::Remote};

/// Why the store refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no room.
    #[error("the file storage is full")]
    Full,
    /// It cannot be reached or failed; a later try may succeed.
    #[error("the file storage failed: {0}")]
    Unavailable(String),
    /// What is stored does not read back.
    #[error("a stored file does not read back: {0}")]
    Corrupt(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::UnexpectedEof => Self::Corrupt(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>()
                && io.kind() == io::ErrorKind::StorageFull
            {
                return Self::Full;
            }
            cause = inner.source();
        }
        Self::Unavailable(error.to_string())
    }
}

/// What a listing says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the listed directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
}

/// A store of objects and blobs. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Kind>);

enum Kind {
    Local(Local),
    Remote(Remote),
}

impl Store {
    /// The store at `location`: `s3://bucket/prefix` or a directory; empty: the directory `default`. On a directory, writes
    /// are refused while less than `min_free` bytes of its disk are free. A directory is made with the first use.
    ///
    /// # Errors
    /// The location is malformed, or the environment's `AWS_` variables do not fit together.
    pub fn open(location: &str, default: &Path, min_free: u64) -> Result<Self, String> {
        let kind = match location {
            "" => Kind::Local(Local::new(default, min_free)),
            remote if remote.starts_with("s3://") => Kind::Remote(Remote::new(remote)?),
            directory => Kind::Local(Local::new(Path::new(directory), min_free)),
        };
        Ok(Self(Arc::new(kind)))
    }

    /// Whether what a crash leaves of a staging can only be found by its checkpoint.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(*self.0, Kind::Remote(_))
    }

    fn objects(&self) -> Result<&dyn ObjectStore, Error> {
        match &*self.0 {
            Kind::Local(local) => local.objects(),
            Kind::Remote(remote) => Ok(remote.objects()),
        }
    }

    fn key(&self, key: &str) -> Key {
        match &*self.0 {
            Kind::Local(_) => Key::from(key),
            Kind::Remote(remote) => remote.key(key),
        }
    }

    /// Writes an object; durable and whole when this returns, the old one before.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let payload = PutPayload::from(bytes);
        self.objects()?.put(&self.key(key), payload).await?;
        Ok(())
    }

    /// Reads a small object; `None` when there is none.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let objects = self.objects()?;
        let key = self.key(key);
        let found = async { objects.get(&key).await?.bytes().await };
        Ok(present(found.await)?)
    }

    /// Deletes an object or a blob; one that is not there is fine.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        present(self.objects()?.delete(&self.key(key)).await)?;
        Ok(())
    }

    /// Objects of the directory `dir` whose names come after `after`, in name order.
    ///
    /// # Errors
    /// What the storage reports, as an item.
    pub fn list(
        &self,
        dir: &str,
        after: Option<&str>,
    ) -> BoxStream<'static, Result<Listed, Error>> {
        let objects = match self.objects() {
            Ok(objects) => objects,
            Err(error) => return futures::stream::iter([Err(error)]).boxed(),
        };
        let prefix = self.key(dir);
        let listed = match after {
            Some(after) => {
                objects.list_with_offset(Some(&prefix), &self.key(&format!("{dir}/{after}")))
            }
            None => objects.list(Some(&prefix)),
        };
        let listed = listed.map_err(Error::from).map_ok(|meta| Listed {
            name: meta.location.filename().unwrap_or_default().to_owned(),
            size: meta.size,
            modified: meta.last_modified.into(),
        });
        match &*self.0 {
            // A directory lists in no order.
            Kind::Local(_) => futures::stream::once(async move {
                let mut all: Vec<Listed> = listed.try_collect().await?;
                all.sort_by(|a, b| a.name.cmp(&b.name));
                Ok::<_, Error>(futures::stream::iter(all.into_iter().map(Ok)))
            })
            .try_flatten()
            .boxed(),
            Kind::Remote(_) => listed.boxed(),
        }
    }

    /// Reads the bytes `from..until` of a blob; `None` when there is none.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn read(&self, key: &str, from: u64, until: u64) -> Result<Option<Reader>, Error> {
        match &*self.0 {
            Kind::Local(local) => local.read(key, from).await,
            Kind::Remote(remote) => remote.read(key, from, until).await,
        }
    }

    /// Begins a blob that will be published at `key`; `scratch` names what is staged.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn stage(&self, key: &str, scratch: &str) -> Result<Staging, Error> {
        self.resume(key, scratch, Checkpoint::default()).await
    }

    /// Goes on with a staged blob from a checkpoint of it; what was written later is dropped.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when less than the checkpoint says is there, or what the storage reports.
    pub async fn resume(
        &self,
        key: &str,
        scratch: &str,
        from: Checkpoint,
    ) -> Result<Staging, Error> {
        match &*self.0 {
            Kind::Local(local) => local.stage(key, scratch, from).await,
            Kind::Remote(remote) => remote.stage(key, from).await,
        }
    }
}

/// `None` for what is not there.
fn present<T>(result: Result<T, object_store::Error>) -> Result<Option<T>, object_store::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs blocking work on the threads made for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::Unavailable(error.to_string())),
    }
}
