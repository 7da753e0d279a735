//! Where the bytes of files are: a directory, S3 or JetStream.
//!
//! Owns small objects (written whole, replaced atomically), blobs (written once through a [`Staging`], visible only when
//! published) and ranged reads. Knows nothing of what is stored. Keys are `directory/name`, made by the caller from its own
//! ids, never from a client's text.
//!
//! ```text
//! stage ─▶ write … write ─▶ seal ─▶ publish ─▶ the blob can be read
//!              │ checkpoint: what is durable, and how to go on from there
//!              └─ process ends ─▶ resume(checkpoint) ─▶ write …
//! ```
//!
//! Several processes may share a store that [is shared](Store::is_shared). Who changes an object there names the version it
//! knows, and is refused when another process was faster: that is what keeps two from going on with one blob.

mod jetstream;
mod local;
mod reader;
mod remote;
mod slots;
mod staging;
mod version;

use std::{io, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, path::Path as Key};

pub use reader::Reader;
pub use slots::Slot;
pub(crate) use staging::hex;
pub use staging::{Checkpoint, Staging};
pub use version::Version;

use self::{jetstream::Jetstream, local::Local, remote::Remote, slots::Slots};
use crate::nats::Nats;

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
    /// The object has another version than the one named: somebody else changed it.
    #[error("another process changed what is stored")]
    Conflict,
    /// As many files are read and written as there are descriptors for.
    #[error("too many files are read and written at this moment; try again later")]
    Busy,
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
pub struct Store(Arc<Inner>);

struct Inner {
    kind: Kind,
    slots: Slots,
}

enum Kind {
    Local(Local),
    Remote(Remote),
    Jetstream(Box<Jetstream>),
}

/// Where objects are that a library reads and writes.
struct Objects<'a> {
    store: &'a dyn ObjectStore,
    /// S3, if it is there.
    remote: Option<&'a Remote>,
    /// Held as long as this is used.
    slot: Slot,
}

impl Objects<'_> {
    fn key(&self, key: &str) -> Key {
        self.remote
            .map_or_else(|| Key::from(key), |remote| remote.key(key))
    }
}

/// The store's own way to objects.
enum Access<'a> {
    Objects(Objects<'a>),
    Jetstream(&'a Jetstream),
}

impl Store {
    /// The store at `location`: `s3://bucket/prefix` or a directory; empty: JetStream where there is `nats`, else the
    /// directory `default`. On a directory, writes are refused while less than `min_free` bytes of its disk are free. A
    /// directory is made with the first use, buckets of JetStream now. It has at most `descriptors` files and connections to S3
    /// open.
    ///
    /// # Errors
    /// The location is malformed, the environment's `AWS_` variables do not fit together, or JetStream has no fit buckets.
    pub async fn open(
        location: &str,
        default: &Path,
        min_free: u64,
        nats: Option<&Nats>,
        descriptors: usize,
    ) -> Result<Self, String> {
        let kind = match (location, nats) {
            ("", Some(nats)) => {
                let opened = Jetstream::open(nats).await;
                Kind::Jetstream(Box::new(opened.map_err(|error| error.to_string())?))
            }
            ("", None) => Kind::Local(Local::new(default, min_free)),
            (remote, _) if remote.starts_with("s3://") => Kind::Remote(Remote::new(remote)?),
            (directory, _) => Kind::Local(Local::new(Path::new(directory), min_free)),
        };
        let slots = Slots::new(descriptors);
        Ok(Self(Arc::new(Inner { kind, slots })))
    }

    /// Whether other processes may use it at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !matches!(self.0.kind, Kind::Local(_))
    }

    /// Whether a version is deleted in one step: [`Self::delete_version`] alone decides between two processes.
    #[must_use]
    pub fn deletes_versions(&self) -> bool {
        matches!(self.0.kind, Kind::Jetstream(_))
    }

    /// The way to objects for one operation; waits for its turn.
    async fn access(&self) -> Result<Access<'_>, Error> {
        Ok(match &self.0.kind {
            Kind::Local(local) => Access::Objects(Objects {
                store: local.objects()?,
                remote: None,
                slot: self.0.slots.operation().await?,
            }),
            Kind::Remote(remote) => Access::Objects(Objects {
                store: remote.objects(),
                remote: Some(remote),
                slot: self.0.slots.operation().await?,
            }),
            Kind::Jetstream(jetstream) => Access::Jetstream(jetstream),
        })
    }

    /// The right to read or write one content, to be held as long as that lasts.
    ///
    /// # Errors
    /// [`Error::Busy`]: as many are read and written as there are descriptors for.
    pub fn slot(&self) -> Result<Slot, Error> {
        if matches!(self.0.kind, Kind::Jetstream(_)) {
            return Ok(Slot::free());
        }
        self.0.slots.content()
    }

    /// Writes an object; durable and whole when this returns, the old one before.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), Error> {
        match self.access().await? {
            Access::Objects(objects) => {
                let payload = PutPayload::from(bytes);
                objects.store.put(&objects.key(key), payload).await?;
            }
            Access::Jetstream(jetstream) => {
                jetstream.put(key, bytes.into(), None).await?;
            }
        }
        Ok(())
    }

    /// Reads a small object; `None` when there is none.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.get_version(key).await?.map(|(bytes, _)| bytes))
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        match self.access().await? {
            Access::Objects(objects) => {
                present(objects.store.delete(&objects.key(key)).await)?;
                Ok(())
            }
            Access::Jetstream(jetstream) => {
                jetstream.delete(key, None).await?;
                Ok(())
            }
        }
    }

    /// Deletes a blob; one that is not there is fine.
    ///
    /// # Errors
    /// What the storage reports; the blob may be deleted in part then.
    pub async fn delete_blob(&self, key: &str) -> Result<(), Error> {
        match &self.0.kind {
            Kind::Local(_) | Kind::Remote(_) => self.delete(key).await,
            Kind::Jetstream(jetstream) => jetstream.delete_blob(key).await,
        }
    }

    /// Names of the objects in the directory `dir` that come after `after`, in order.
    ///
    /// # Errors
    /// What the storage reports, as an item.
    pub fn names(&self, dir: &str, after: Option<&str>) -> BoxStream<'_, Result<String, Error>> {
        let dir = dir.to_owned();
        let after = after.map(str::to_owned);
        futures::stream::once(async move {
            let objects = match self.access().await? {
                Access::Objects(objects) => objects,
                Access::Jetstream(jetstream) => return Ok(in_order(jetstream.names(dir), after)),
            };
            let prefix = objects.key(&dir);
            let listed = match &after {
                Some(after) => {
                    let after = objects.key(&format!("{dir}/{after}"));
                    objects.store.list_with_offset(Some(&prefix), &after)
                }
                None => objects.store.list(Some(&prefix)),
            };
            let name = |meta: object_store::ObjectMeta| meta.location.filename().map(str::to_owned);
            let names = held(listed, objects.slot)
                .try_filter_map(move |meta| futures::future::ready(Ok(name(meta))));
            Ok::<_, Error>(match objects.remote {
                // A directory lists in no order.
                None => in_order(names.try_collect(), after),
                Some(_) => names.boxed(),
            })
        })
        .try_flatten()
        .boxed()
    }

    /// The objects of the directory `dir`, in no order. Another process's newest may be missing.
    ///
    /// # Errors
    /// What the storage reports, as an item.
    pub fn list(&self, dir: &str) -> BoxStream<'static, Result<Listed, Error>> {
        let store = self.clone();
        let dir = dir.to_owned();
        futures::stream::once(async move {
            Ok::<_, Error>(match store.access().await? {
                Access::Objects(objects) => {
                    let listed = objects.store.list(Some(&objects.key(&dir)));
                    let listed = held(listed, objects.slot).map_ok(|meta| Listed {
                        name: meta.location.filename().unwrap_or_default().to_owned(),
                        size: meta.size,
                        modified: meta.last_modified.into(),
                    });
                    listed.boxed()
                }
                Access::Jetstream(jetstream) => jetstream.list(&dir),
            })
        })
        .try_flatten()
        .boxed()
    }

    /// The published blobs of the directory `dir`, as [`Self::list`] has objects.
    pub fn blobs(&self, dir: &str) -> BoxStream<'static, Result<Listed, Error>> {
        match &self.0.kind {
            Kind::Local(_) | Kind::Remote(_) => self.list(dir),
            Kind::Jetstream(jetstream) => jetstream.blobs(),
        }
    }

    /// What of blobs lies around, published or not: the names of scratches of the directory `dir` that are files of their
    /// own, of blobs where their chunks can be listed. What lies on S3 is known by its checkpoint only.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn staged(&self, dir: &str) -> Result<Vec<String>, Error> {
        match &self.0.kind {
            Kind::Local(_) => self.names(dir, None).try_collect().await,
            Kind::Remote(_) => Ok(Vec::new()),
            Kind::Jetstream(jetstream) => jetstream.staged().await,
        }
    }

    /// Drops what [`Self::staged`] named.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn drop_staged(&self, key: &str) -> Result<(), Error> {
        match &self.0.kind {
            Kind::Local(_) | Kind::Remote(_) => self.delete(key).await,
            Kind::Jetstream(jetstream) => jetstream.delete_chunks(key).await,
        }
    }

    /// Reads the bytes `from..until` of a blob; `None` when there is none. The reader holds a [slot](Self::slot).
    ///
    /// # Errors
    /// [`Error::Busy`], or what the storage reports.
    pub async fn read(&self, key: &str, from: u64, until: u64) -> Result<Option<Reader>, Error> {
        let slot = self.slot()?;
        let source = match &self.0.kind {
            Kind::Local(local) => local.read(key, from).await,
            Kind::Remote(remote) => remote.read(key, from, until).await,
            Kind::Jetstream(jetstream) => jetstream.read(key, from, until).await,
        };
        Ok(source?.map(|source| Reader::new(source, slot)))
    }

    /// Begins a blob that will be published at `key`; `scratch` names what is staged. The caller holds a [slot](Self::slot).
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
        match &self.0.kind {
            Kind::Local(local) => local.stage(key, scratch, from).await,
            Kind::Remote(remote) => remote.stage(key, from).await,
            Kind::Jetstream(jetstream) => jetstream.stage(key, from).await,
        }
    }

    /// Makes readable, in one step, the blob whose sealed checkpoint this is. May be repeated, by another process too.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when what the checkpoint says is not there, or what the storage reports.
    pub async fn publish(&self, key: &str, scratch: &str, whole: &Checkpoint) -> Result<(), Error> {
        let _slot = match &self.0.kind {
            Kind::Local(_) | Kind::Remote(_) => self.0.slots.operation().await?,
            Kind::Jetstream(_) => Slot::free(),
        };
        match &self.0.kind {
            Kind::Local(local) => local.publish(key, scratch, whole.committed).await,
            Kind::Remote(remote) => remote.publish(key, whole).await,
            Kind::Jetstream(jetstream) => jetstream.publish(key, whole).await,
        }
    }
}

/// The names after `after`, sorted.
fn in_order<'a>(
    names: impl Future<Output = Result<Vec<String>, Error>> + Send + 'a,
    after: Option<String>,
) -> BoxStream<'a, Result<String, Error>> {
    futures::stream::once(async move {
        let mut names = names.await?;
        names.retain(|name| after.as_ref().is_none_or(|after| name > after));
        names.sort();
        Ok::<_, Error>(futures::stream::iter(names.into_iter().map(Ok)))
    })
    .try_flatten()
    .boxed()
}

/// A listing that holds its slot to its end.
fn held<T: 'static>(
    listed: BoxStream<'static, object_store::Result<T>>,
    slot: Slot,
) -> BoxStream<'static, Result<T, Error>> {
    let item = move |item: object_store::Result<T>| {
        let _held = &slot;
        item.map_err(Error::from)
    };
    listed.map(item).boxed()
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
