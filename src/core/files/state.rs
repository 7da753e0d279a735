//! An upload as the store knows it: who may change it, and how it becomes a file.
//!
//! On a shared store several processes may want the same upload. Its state is changed by whoever names the version it has, so
//! a writer that was taken over is refused at its next checkpoint. The last change names the file it becomes: from then on
//! nothing else can come of the upload, and whoever finds it so takes the same last steps.
//!
//! ```text
//! claim ─▶ checkpoint … checkpoint ─▶ commit (State::file) ─▶ publish, outcome, description ─▶ state deleted
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Error, FileId, FileInfo, Files, NewFile, info, info::nanos};
use crate::{
    blob::{self, Checkpoint, Store, Version, hex},
    core::Name,
    log::Timestamp,
};

/// How often a claim is repeated because the one who writes was faster.
const CLAIMS: usize = 16;

/// Where an upload is kept in the store: made from its id, never from its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Box<str>);

impl Key {
    pub(super) fn named(id: &Name) -> Self {
        Self(format!("id-{}", &hex(&Sha256::digest(id.as_str()))).into())
    }

    pub(super) fn nameless() -> Self {
        Self(format!("tmp-{}", Uuid::now_v7().simple()).into())
    }

    /// The key that an object's name holds.
    pub(super) fn of_name(name: &str) -> Self {
        Self(name.strip_suffix(".json").unwrap_or(name).into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn state(&self) -> String {
        format!("uploads/{}.json", self.0)
    }

    pub(super) fn done(&self) -> String {
        format!("done/{}.json", self.0)
    }

    pub(super) fn scratch(&self) -> String {
        format!("staging/{}", self.0)
    }
}

/// An upload under way as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) new: NewFile,
    pub(super) id: FileId,
    /// Who writes it: no two have the same, so no two states of different writers are equal.
    #[serde(default)]
    writer: String,
    pub(super) checkpoint: Checkpoint,
    #[serde(with = "nanos")]
    pub(super) saved: Timestamp,
    /// The file it becomes, once it holds all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<FileInfo>,
}

impl State {
    fn begin(new: NewFile) -> Self {
        Self {
            new,
            id: FileId::new(),
            writer: writer(),
            checkpoint: Checkpoint::default(),
            saved: Timestamp::now(),
            file: None,
        }
    }

    /// The same upload with another content: of what was written nothing is left.
    pub(super) fn anew(&self) -> Self {
        Self::begin(self.new.clone())
    }

    pub(super) fn at(mut self, checkpoint: Checkpoint) -> Self {
        self.checkpoint = checkpoint;
        self.saved = Timestamp::now();
        self
    }

    pub(super) fn expires(&self, ttl: Duration) -> Timestamp {
        let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(self.saved.0.saturating_add(ttl))
    }

    /// Writes it over the `version` it replaces.
    ///
    /// # Errors
    /// [`blob::Error::Conflict`] when another process was faster, or what the store reports.
    pub(super) async fn save(
        &self,
        store: &Store,
        key: &Key,
        version: Option<&Version>,
    ) -> Result<Version, blob::Error> {
        let state = info::encode(self)?;
        store.put_version(&key.state(), state, version).await
    }
}

fn writer() -> String {
    Uuid::now_v7().simple().to_string()
}

/// What became of a named upload.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    new: NewFile,
    id: FileId,
}

/// What a stream found that wants to write an upload.
pub(super) enum Claim {
    /// It may.
    Claimed(Box<Claimed>),
    /// It is a file already.
    Done(FileInfo),
}

/// An upload and the right to write it.
pub(super) struct Claimed {
    pub(super) state: State,
    /// What the store has of it; none: nothing yet.
    pub(super) version: Option<Version>,
}

impl Files {
    /// Makes the caller the writer of the upload. On a directory its turn does, and nothing is stored yet.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Superseded`] when others claim it at the same time, or what the store reports.
    pub(super) async fn claim(&self, key: &Key, new: NewFile) -> Result<Claim, Error> {
        for _ in 0..CLAIMS {
            match self.try_claim(key, &new).await {
                Err(Error::Superseded) => {}
                done => return done,
            }
        }
        Err(Error::Superseded)
    }

    async fn try_claim(&self, key: &Key, new: &NewFile) -> Result<Claim, Error> {
        let mut known = None;
        if new.upload_id.is_some() {
            if let Some(info) = self.done(key, new).await? {
                return Ok(Claim::Done(info));
            }
            known = self.stored(key).await?;
        }
        let ttl = self.0.settings.upload_ttl;
        let (mut state, mut version, mut over) = (State::begin(new.clone()), None, None);
        if let Some((before, found)) = known {
            if let Some(info) = self.complete_found(key, &before, &found).await? {
                return match before.new == *new {
                    true => Ok(Claim::Done(info)),
                    false => Err(already_exists(new)),
                };
            }
            if before.file.is_some() || before.expires(ttl) <= Timestamp::now() {
                over = Some(before);
            } else if before.new != *new {
                return Err(already_exists(new));
            } else {
                let writer = state.writer;
                state = State { writer, ..before };
            }
            version = Some(found);
        }
        if self.0.store.is_shared() {
            version = Some(state.save(&self.0.store, key, version.as_ref()).await?);
            if let Some(over) = over {
                self.discard(key, over).await;
            }
        }
        Ok(Claim::Claimed(Box::new(Claimed { state, version })))
    }

    /// Takes the last steps of an upload that was committed; none when it was not, or when its content is gone since.
    async fn complete_found(
        &self,
        key: &Key,
        state: &State,
        version: &Version,
    ) -> Result<Option<FileInfo>, Error> {
        let Some(info) = &state.file else {
            return Ok(None);
        };
        match self.complete(key, state, info, Some(version)).await {
            Ok(()) => {
                self.0.shelf.stored(info.size);
                Ok(Some(info.clone()))
            }
            Err(Error::Blob(blob::Error::Corrupt(why))) => {
                tracing::warn!(%why, "the content of an upload is gone");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The last steps of an upload, of whose state nobody can make anything else. May be repeated, also by several at once.
    pub(super) async fn complete(
        &self,
        key: &Key,
        state: &State,
        info: &FileInfo,
        version: Option<&Version>,
    ) -> Result<(), Error> {
        let store = &self.0.store;
        let (blob, scratch) = (state.id.blob_key(), key.scratch());
        store.publish(&blob, &scratch, &state.checkpoint).await?;
        if state.new.upload_id.is_some() {
            // Before the file is visible: whoever repeats the upload must find the one that is.
            let (new, id) = (state.new.clone(), info.id);
            let done = info::encode(&Done { new, id })?;
            store.put(&key.done(), done).await?;
        }
        store.put(&info.id.meta_key(), info::encode(info)?).await?;
        if let Some(version) = version {
            match store.delete_version(&key.state(), version).await {
                // Another process took the same steps.
                Ok(()) | Err(blob::Error::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ends an upload whose time is over. None: it was gone, or another process went on with it until then.
    ///
    /// # Errors
    /// [`Error::Superseded`] when somebody takes it at the same time, or what the store reports.
    pub(super) async fn end(&self, key: &Key) -> Result<Ended, Error> {
        let Some((state, version)) = self.stored(key).await? else {
            return Ok(Ended::Gone);
        };
        let expires = state.expires(self.0.settings.upload_ttl);
        if expires > Timestamp::now() && self.0.store.is_shared() {
            return Ok(Ended::Alive(expires));
        }
        if self.complete_found(key, &state, &version).await?.is_some() {
            return Ok(Ended::Stored);
        }
        let left = self.give_up(key, &state, version).await?;
        self.discard(key, state).await;
        self.given_up(key, left).await?;
        Ok(Ended::Expired)
    }

    /// Takes the content from an upload: what is staged is the caller's to drop, and nobody goes on with it. What is left of
    /// the state is to be handed to [`Self::given_up`] then.
    ///
    /// # Errors
    /// [`Error::Superseded`] when another process was faster, or what the store reports.
    pub(super) async fn give_up(
        &self,
        key: &Key,
        state: &State,
        version: Version,
    ) -> Result<Option<Version>, Error> {
        let store = &self.0.store;
        if store.deletes_versions() {
            // Takes no room: it has to work on a full store too.
            store.delete_version(&key.state(), &version).await?;
            return Ok(None);
        }
        if !store.is_shared() {
            return Ok(Some(version));
        }
        let anew = state.anew();
        Ok(Some(anew.save(store, key, Some(&version)).await?))
    }

    /// The content is dropped: so is what was left.
    pub(super) async fn given_up(&self, key: &Key, left: Option<Version>) -> Result<(), Error> {
        if let Some(left) = left {
            self.0.store.delete_version(&key.state(), &left).await?;
        }
        Ok(())
    }

    /// Whether another process writes the upload by now, or has finished it.
    pub(super) async fn is_taken(&self, key: &Key, state: &State) -> bool {
        let stored = self.stored(key).await;
        let is_other = |stored: &State| stored.writer != state.writer;
        self.0.store.is_shared()
            && stored.is_ok_and(|stored| stored.is_none_or(|(stored, _)| is_other(&stored)))
    }

    /// Drops what is staged of an upload that was given up.
    async fn discard(&self, key: &Key, state: State) {
        let (blob, scratch) = (state.id.blob_key(), key.scratch());
        let dropped = async {
            let staging = self.0.store.resume(&blob, &scratch, state.checkpoint);
            staging.await?.discard().await
        };
        // What does not open any more is not there any more.
        if let Err(error) = dropped.await {
            tracing::debug!(%error, "what an upload left is gone already");
        }
    }

    /// The stored state of an upload and its version; also one that expired.
    pub(super) async fn stored(&self, key: &Key) -> Result<Option<(State, Version)>, Error> {
        match self.0.store.get_version(&key.state()).await? {
            Some((object, version)) => Ok(Some((info::decode(&object)?, version))),
            None => Ok(None),
        }
    }

    /// The file a named upload has become.
    async fn done(&self, key: &Key, new: &NewFile) -> Result<Option<FileInfo>, Error> {
        let Some(object) = self.0.store.get(&key.done()).await? else {
            return Ok(None);
        };
        let done: Done = info::decode(&object)?;
        match self.find(done.id).await? {
            Some(_) if done.new != *new => Err(already_exists(new)),
            // A file that was deleted may be uploaded again.
            found => Ok(found),
        }
    }
}

/// What became of an upload whose time was thought to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing was there.
    Gone,
    /// Another process went on with it; it expires then.
    Alive(Timestamp),
    /// It was committed, and is a file now.
    Stored,
    /// It was dropped.
    Expired,
}

pub(super) fn already_exists(new: &NewFile) -> Error {
    Error::AlreadyExists {
        kind: "Upload",
        name: new.upload_id.clone().unwrap_or_default(),
    }
}
