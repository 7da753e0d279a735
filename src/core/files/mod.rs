//! Files: one space behind every door, over the blob seam.
//!
//! A file is a blob and a small description beside it; it exists when its description does. An upload is staged by a task of
//! its own (`task`), so that what a broken stream leaves is settled whatever became of its call. What is under way here is
//! claimed in the `shelf`, which counts and limits; on a store that several replicas share also in the store itself (`state`).
//! The store is the only truth about files and survives the process.
//!
//! ```text
//! meta/{id, newest first}.json   a file's description
//! blobs/{id}                     its content
//! uploads/{key}.json             a named upload under way: its metadata and its checkpoint
//! staging/{key}                  its bytes, on a directory
//! done/{key}.json                a named upload's outcome, kept for `files.upload_ttl`
//! ```

mod info;
mod shelf;
mod state;
mod sweep;
mod task;
mod upload;

use std::{ops::Range, path::Path, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::task::TaskTracker;

pub use self::{
    info::{FileId, FileInfo, NewFile},
    upload::{Begun, Upload},
};
use self::{
    shelf::Shelf,
    state::{Key, State},
};
use super::{Error, Name};
use crate::{
    blob::{Reader, Store},
    config,
    log::Timestamp,
    nats::Nats,
    telemetry::Metrics,
};

/// Files of one page at most, and when the client does not say.
const PAGE_FILES: usize = 1000;
const DEFAULT_PAGE_FILES: usize = 100;
/// Descriptions of a page that are read at the same time.
const READS: usize = 16;

/// All files. Cheap to clone.
#[derive(Clone)]
pub struct Files(Arc<Inner>);

struct Inner {
    store: Store,
    settings: config::Files,
    /// What download URLs begin with.
    url: String,
    shelf: Shelf,
    tasks: TaskTracker,
    metrics: Metrics,
}

/// A page of files, newest first.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The files.
    pub files: Vec<FileInfo>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<String>,
}

/// A named upload under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are durable.
    pub committed: u64,
    /// The size it declared.
    pub size: Option<u64>,
    /// When it is forgotten unless it goes on.
    pub expires: Timestamp,
}

/// A file to read, or a range of it.
pub struct Content {
    /// The file.
    pub info: FileInfo,
    /// The bytes `reader` gives.
    pub range: Range<u64>,
    /// Reads them in order.
    pub reader: Reader,
}

impl Files {
    /// The files of the store that `settings` name; by default of JetStream where there is `nats`, else of the directory
    /// `files` in the log's, which is made with the first upload. `http` is the address files are served at. At most
    /// `descriptors` files and connections of the store are open at once; uploads and downloads beyond are refused.
    ///
    /// # Errors
    /// The store's location is malformed, or JetStream has no place for files.
    pub async fn open(
        settings: config::Files,
        log: &config::Log,
        nats: Option<&Nats>,
        http: std::net::SocketAddr,
        descriptors: usize,
        metrics: Metrics,
    ) -> Result<Self, String> {
        let directory = Path::new(&log.dir).join("files");
        let min_free = log.min_free.as_u64();
        let store = Store::open(&settings.store, &directory, min_free, nats, descriptors).await?;
        let url = match settings.url.trim_end_matches('/') {
            "" => format!("http://{http}"),
            url => url.to_owned(),
        };
        Ok(Self(Arc::new(Inner {
            store,
            shelf: Shelf::new(&settings),
            settings,
            url,
            tasks: TaskTracker::new(),
            metrics,
        })))
    }

    /// Where HTTP serves a file.
    #[must_use]
    pub fn url(&self, id: FileId) -> String {
        format!("{}/files/{id}", self.0.url)
    }

    /// The file with this id.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what the store reports.
    pub async fn get(&self, id: &str) -> Result<FileInfo, Error> {
        let found = match FileId::parse(id) {
            Some(id) => self.find(id).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id))
    }

    async fn find(&self, id: FileId) -> Result<Option<FileInfo>, Error> {
        let object = self.0.store.get(&id.meta_key()).await?;
        object.map(|object| info::decode(&object)).transpose()
    }

    /// Files after the page token `after`, newest first; `size` 0 stands for a hundred, and a thousand is the most. The
    /// store's names are listed for each page, which a directory of very many files makes slow.
    ///
    /// # Errors
    /// The token is not one of ours, or what the store reports.
    pub async fn list(&self, after: &str, size: usize) -> Result<Page, Error> {
        let size = match size {
            0 => DEFAULT_PAGE_FILES,
            size => size.min(PAGE_FILES),
        };
        if !(after.is_empty() || FileId::of_meta_name(after).is_some()) {
            return Err(Error::invalid(
                "page_token",
                "page_token is not one that was given out",
            ));
        }
        let after = (!after.is_empty()).then_some(after);
        let names: Vec<_> = self
            .0
            .store
            .names("meta", after)
            .take(size + 1)
            .try_collect()
            .await?;
        let next = (names.len() > size).then(|| names[size - 1].clone());
        let ids = names.iter().take(size);
        let ids: Vec<_> = ids.filter_map(|name| FileId::of_meta_name(name)).collect();
        let found: Vec<Option<FileInfo>> = futures::stream::iter(ids)
            .map(|id| self.find(id))
            .buffered(READS)
            .try_collect()
            .await?;
        // A file deleted meanwhile is left out.
        let files = found.into_iter().flatten().collect();
        Ok(Page { files, next })
    }

    /// Deletes a file. Downloads under way may still get it.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what the store reports.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let info = self.get(id).await?;
        // Without its description the file is gone, whatever happens to its content.
        self.0.store.delete(&info.id.meta_key()).await?;
        self.0.store.delete_blob(&info.id.blob_key()).await?;
        self.0.shelf.removed(info.size);
        self.show();
        Ok(())
    }

    /// The content of the file `id` from byte `from` on, `length` bytes or up to its end. A range that reaches beyond the
    /// end is cut there.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OutOfRange`], or what the store reports.
    pub async fn read(&self, id: &str, from: u64, length: Option<u64>) -> Result<Content, Error> {
        let info = self.get(id).await?;
        if from > info.size {
            return Err(Error::OutOfRange { size: info.size });
        }
        let until = length.map_or(info.size, |length| {
            from.saturating_add(length).min(info.size)
        });
        self.content(info, from..until).await
    }

    /// The bytes `range` of a file that was just looked up.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn content(&self, info: FileInfo, range: Range<u64>) -> Result<Content, Error> {
        let key = info.id.blob_key();
        let reader = self.0.store.read(&key, range.start, range.end).await?;
        let reader = reader.ok_or_else(|| not_found(&info.id.to_string()))?;
        Ok(Content {
            info,
            range,
            reader,
        })
    }

    /// Counts bytes that were sent to a client.
    pub fn sent(&self, bytes: usize) {
        self.0.metrics.file_bytes.down.inc_by(bytes as u64);
    }

    /// How far the upload `id` got. One whose stream has just ended is settled first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not under way, or what the store reports.
    pub async fn progress(&self, id: &Name) -> Result<Progress, Error> {
        let key = Key::named(id);
        self.0.shelf.settled(&key).await;
        let state = self.state(&key).await?.ok_or_else(|| Error::NotFound {
            kind: "Upload",
            name: id.as_str().to_owned(),
        })?;
        Ok(Progress {
            committed: state.checkpoint.committed,
            size: state.new.size,
            expires: state.expires(self.0.settings.upload_ttl),
        })
    }

    /// The stored state of an upload; one that expired is none.
    async fn state(&self, key: &Key) -> Result<Option<State>, Error> {
        let ttl = self.0.settings.upload_ttl;
        let stored = self.stored(key).await?.map(|(state, _)| state);
        Ok(stored.filter(|state| state.expires(ttl) > Timestamp::now()))
    }

    /// Waits until every upload is settled; to be called when no call is left.
    pub async fn close(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Shows what is stored and under way.
    fn show(&self) {
        let (stored, under_way) = self.0.shelf.counts();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.0.metrics.files_bytes.set(gauge(stored));
        self.0.metrics.uploads.set(gauge(under_way as u64));
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound {
        kind: "File",
        name: id.to_owned(),
    }
}
