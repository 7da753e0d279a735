//! One upload: the handle a call writes to, and the task that stages, settles and publishes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{OwnedMutexGuard, mpsc, oneshot},
    task::JoinHandle,
};
use uuid::Uuid;

use super::{Error, FileId, FileInfo, Files, NewFile, info, info::nanos, shelf::Ticket};
use crate::{
    blob::{self, Checkpoint, Staging, hex},
    core::Name,
    log::Timestamp,
};

/// Bytes handed to the task together. An upload holds one such piece that fills, one that waits and one that is written.
const PIECE_BYTES: usize = 512 * 1024;
/// Chunks below this size are copied together: a slice of its own for each byte would cost more than the byte.
const SMALL_BYTES: usize = 4 * 1024;

/// Where an upload is kept in the store: made from its id, never from its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Box<str>);

impl Key {
    pub(super) fn named(id: &Name) -> Self {
        Self(format!("id-{}", &hex(&Sha256::digest(id.as_str()))).into())
    }

    fn nameless() -> Self {
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
    pub(super) epoch: u64,
    pub(super) checkpoint: Checkpoint,
    #[serde(with = "nanos")]
    pub(super) saved: Timestamp,
}

impl State {
    pub(super) fn expires(&self, ttl: Duration) -> Timestamp {
        let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(self.saved.0.saturating_add(ttl))
    }
}

/// What became of a named upload.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    new: NewFile,
    id: FileId,
}

/// How an upload begins.
pub enum Begun {
    /// The content is wanted.
    Upload(Upload),
    /// The same upload was completed before: this is its file.
    Done(FileInfo),
}

enum Command {
    Write(Vec<Bytes>),
    Finish,
}

/// An upload whose content is being sent. Dropping it leaves a named upload to go on later and removes any other.
pub struct Upload {
    files: Files,
    key: Key,
    declared: Option<u64>,
    offset: u64,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    small: BytesMut,
    is_left: Arc<AtomicBool>,
    commands: mpsc::Sender<Command>,
    outcome: oneshot::Receiver<Result<FileInfo, Error>>,
}

impl Files {
    /// Begins an upload, or goes on with a broken one of the same id: what is committed stays, and a stream that still writes
    /// it ends as [`Error::Superseded`].
    ///
    /// # Errors
    /// [`Error::Limit`] without room for it; [`Error::AlreadyExists`] when the id stands for other metadata;
    /// [`Error::Superseded`] when yet another stream takes over; what the store reports.
    ///
    /// # Cancellation
    /// Dropping the future leaves the upload as it was.
    pub async fn begin(&self, new: NewFile) -> Result<Begun, Error> {
        let max = self.0.settings.max_file.as_u64();
        if new.size.is_some_and(|size| size > max) {
            return Err(too_large(max));
        }
        let key =
            match &new.upload_id {
                Some(id) => Key::named(&Name::new(id.as_str()).map_err(|_| {
                    Error::invalid("upload_id", "upload_id must not be blank or long")
                })?),
                None => Key::nameless(),
            };
        if new.upload_id.is_some() {
            // A mistake must not end the stream that writes.
            let known = self.state(&key).await?;
            if known.is_some_and(|known| known.new != new) {
                return Err(already_exists(&new));
            }
        }
        let mut ticket = self.0.shelf.take(&key, new.size.unwrap_or(0))?;
        let turn = ticket.turn().await?;
        let mut before = None;
        if new.upload_id.is_some() {
            if let Some(info) = self.done(&key, &new).await? {
                return Ok(Begun::Done(info));
            }
            before = self.state(&key).await?;
        }
        let state = match before {
            Some(before) if before.new != new => return Err(already_exists(&new)),
            Some(before) => State {
                epoch: ticket.epoch(),
                ..before
            },
            None => State {
                new,
                id: FileId::new(),
                epoch: ticket.epoch(),
                checkpoint: Checkpoint::default(),
                saved: Timestamp::now(),
            },
        };
        if state.new.upload_id.is_some() {
            ticket.keep(self.0.settings.upload_ttl);
        }
        let task = Task::open(self.clone(), ticket, turn, state).await?;
        self.show();
        Ok(Begun::Upload(task.start()))
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

fn already_exists(new: &NewFile) -> Error {
    Error::AlreadyExists {
        kind: "Upload",
        name: new.upload_id.clone().unwrap_or_default(),
    }
}

fn too_large(max: u64) -> Error {
    Error::Limit {
        what: "bytes of a file",
        limit: usize::try_from(max).unwrap_or(usize::MAX),
    }
}

impl Upload {
    /// Where the content goes on: what was committed before, and what was written since.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes; waits while the storage is behind.
    ///
    /// # Errors
    /// [`Error::Invalid`] beyond the declared size, [`Error::Limit`], [`Error::Superseded`], or what the store reports. The
    /// upload must not be used further.
    ///
    /// # Cancellation
    /// The upload must not be used after the future was dropped.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        let offset = self.offset.saturating_add(chunk.len() as u64);
        if self.declared.is_some_and(|declared| offset > declared) {
            return Err(Error::invalid(
                "total_size",
                "File size exceeds declared size",
            ));
        }
        let max = self.files.0.settings.max_file.as_u64();
        if offset > max {
            return Err(too_large(max));
        }
        if self.declared.is_none() {
            self.files.0.shelf.grow(&self.key, offset)?;
        }
        self.offset = offset;
        self.pending_bytes += chunk.len();
        if chunk.len() < SMALL_BYTES {
            self.small.extend_from_slice(&chunk);
        } else {
            self.gather();
            self.pending.push(chunk);
        }
        if self.pending_bytes >= PIECE_BYTES {
            self.hand_over().await?;
        }
        Ok(())
    }

    /// Moves the small chunks behind those before them.
    fn gather(&mut self) {
        if !self.small.is_empty() {
            self.pending.push(self.small.split().freeze());
        }
    }

    async fn hand_over(&mut self) -> Result<(), Error> {
        self.gather();
        let bytes = std::mem::take(&mut self.pending_bytes);
        let pieces = std::mem::take(&mut self.pending);
        if pieces.is_empty() {
            return Ok(());
        }
        self.files.0.metrics.file_bytes.up.inc_by(bytes as u64);
        self.tell(Command::Write(pieces)).await
    }

    async fn tell(&mut self, command: Command) -> Result<(), Error> {
        match self.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.ended().await),
        }
    }

    /// Resolves when the upload cannot go on, with the reason. Cancel-safe.
    pub async fn ended(&mut self) -> Error {
        match (&mut self.outcome).await {
            Ok(Err(error)) => error,
            // The task answers unless it panicked.
            Ok(Ok(_)) | Err(_) => blob::Error::Unavailable("the upload's task ended".into()).into(),
        }
    }

    /// Ends the upload and makes it a file, durable and visible at once, whatever becomes of the future.
    ///
    /// # Errors
    /// [`Error::Invalid`] when less than declared came, [`Error::Checksum`], [`Error::Superseded`], or what the store
    /// reports.
    pub async fn finish(mut self) -> Result<FileInfo, Error> {
        if let Some(declared) = self.declared.filter(|declared| self.offset < *declared) {
            let text = format!(
                "File size is less than declared size: {} of {declared} bytes",
                self.offset
            );
            self.hand_over().await?;
            return Err(Error::invalid("total_size", text));
        }
        self.hand_over().await?;
        self.tell(Command::Finish).await?;
        (&mut self.outcome).await.unwrap_or_else(|_| {
            Err(blob::Error::Unavailable("the upload's task ended".into()).into())
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.is_left.store(true, Ordering::Release);
        // What has arrived is worth keeping; without room the task is behind anyway.
        self.gather();
        let pieces = std::mem::take(&mut self.pending);
        if !pieces.is_empty() {
            let _ = self.commands.try_send(Command::Write(pieces));
        }
    }
}

/// How the stream of an upload ends.
enum End {
    Finished,
    Left,
    Superseded,
}

/// Stages what the handle sends. It outlives the call, so that what was begun is settled: committed, published or removed.
/// One for each upload with a stream, which `files.max_uploads` bounds.
struct Task {
    files: Files,
    ticket: Ticket,
    /// Nobody else touches what is staged.
    turn: OwnedMutexGuard<()>,
    state: State,
    staging: Staging,
    /// A checkpoint being made durable and saved, beside the writes.
    saving: Option<JoinHandle<Result<(), blob::Error>>>,
}

impl Task {
    async fn open(
        files: Files,
        ticket: Ticket,
        turn: OwnedMutexGuard<()>,
        mut state: State,
    ) -> Result<Self, Error> {
        let store = &files.0.store;
        let (blob, scratch) = (state.id.blob_key(), ticket.key().scratch());
        let checkpoint = state.checkpoint.clone();
        let staging = match store.resume(&blob, &scratch, checkpoint).await {
            Err(blob::Error::Corrupt(why)) => {
                tracing::warn!(%why, "an upload begins anew");
                state = State {
                    id: FileId::new(),
                    checkpoint: Checkpoint::default(),
                    ..state
                };
                store.stage(&state.id.blob_key(), &scratch).await?
            }
            resumed => resumed?,
        };
        let mut task = Self {
            files,
            ticket,
            turn,
            state,
            staging,
            saving: None,
        };
        // From here on a crash leaves nothing that is not found again.
        if task.is_tracked() {
            let checkpoint = task.staging.checkpoint().await?;
            task.save(checkpoint).await?;
        }
        Ok(task)
    }

    /// Whether its state is stored: without a name only where a crash would leave what nobody finds.
    fn is_tracked(&self) -> bool {
        self.is_named() || self.files.0.store.is_remote()
    }

    const fn is_named(&self) -> bool {
        self.state.new.upload_id.is_some()
    }

    fn start(self) -> Upload {
        let (commands, receiver) = mpsc::channel(1);
        let (answer, outcome) = oneshot::channel();
        let upload = Upload {
            files: self.files.clone(),
            key: self.ticket.key().clone(),
            declared: self.state.new.size,
            offset: self.state.checkpoint.committed,
            pending: Vec::new(),
            pending_bytes: 0,
            small: BytesMut::new(),
            is_left: self.ticket.is_left(),
            commands,
            outcome,
        };
        let tasks = self.files.0.tasks.clone();
        tasks.spawn(async move {
            let result = self.run(receiver).await;
            // Nobody waits for the answer when the call is gone.
            let _ = answer.send(result);
        });
        upload
    }

    async fn run(mut self, commands: mpsc::Receiver<Command>) -> Result<FileInfo, Error> {
        let files = self.files.clone();
        let ended = self.receive(commands).await;
        let saved = self.saved().await;
        let (outcome, result) = match ended.and_then(|end| saved.map(|()| end)) {
            Ok(End::Finished) => match self.finish().await {
                Ok(info) => ("stored", Ok(info)),
                Err(Error::Checksum) => ("refused", Err(Error::Checksum)),
                Err(error) => ("failed", Err(error)),
            },
            Ok(End::Left) => {
                if let Err(error) = self.leave().await {
                    tracing::warn!(%error, "what a broken upload left could not be settled");
                }
                ("broken", Err(Error::Superseded))
            }
            // What was not committed is the successor's to send again.
            Ok(End::Superseded) => ("superseded", Err(Error::Superseded)),
            Err(error) => {
                self.fail(&error).await;
                ("failed", Err(error))
            }
        };
        let ended = &files.0.metrics.uploads_ended;
        ended.with_label_values(&[outcome]).inc();
        files.show();
        result
    }

    async fn receive(&mut self, mut commands: mpsc::Receiver<Command>) -> Result<End, Error> {
        let fence = self.ticket.fence().clone();
        loop {
            let command = tokio::select! {
                biased;
                () = fence.cancelled() => return Ok(End::Superseded),
                command = commands.recv() => command,
            };
            match command {
                Some(Command::Write(pieces)) => {
                    self.staging.write(pieces).await?;
                    self.checkpoint_beside().await?;
                }
                Some(Command::Finish) => return Ok(End::Finished),
                None => return Ok(End::Left),
            }
        }
    }

    /// Makes what was written durable while more is written, one checkpoint at a time.
    async fn checkpoint_beside(&mut self) -> Result<(), Error> {
        if self.saving.as_ref().is_some_and(JoinHandle::is_finished) {
            self.saved().await?;
        }
        if self.saving.is_none()
            && let Some(durable) = self.staging.checkpoint_due()
        {
            let (store, key) = (self.files.0.store.clone(), self.ticket.key().state());
            let tracked = self.is_tracked().then(|| self.state.clone());
            self.saving = Some(tokio::spawn(async move {
                let checkpoint = durable.await?;
                if let Some(state) = tracked {
                    store
                        .put(&key, info::encode(&state.at(checkpoint))?)
                        .await?;
                }
                Ok(())
            }));
        }
        Ok(())
    }

    /// Waits for the checkpoint that is being made.
    async fn saved(&mut self) -> Result<(), Error> {
        match self.saving.take() {
            Some(saving) => match saving.await {
                Ok(saved) => Ok(saved?),
                Err(error) => Err(blob::Error::Unavailable(error.to_string()).into()),
            },
            None => Ok(()),
        }
    }

    async fn save(&self, checkpoint: Checkpoint) -> Result<(), Error> {
        let state = info::encode(&self.state.clone().at(checkpoint))?;
        let key = self.ticket.key().state();
        Ok(self.files.0.store.put(&key, state).await?)
    }

    /// The stream broke: a named upload may go on, any other is gone.
    async fn leave(mut self) -> Result<(), Error> {
        if !self.is_named() {
            return self.remove().await;
        }
        let checkpoint = self.staging.checkpoint().await?;
        self.save(checkpoint).await?;
        self.ticket.keep(self.files.0.settings.upload_ttl);
        Ok(())
    }

    /// The storage failed: a named upload goes on from its last checkpoint, unless that is what is broken.
    async fn fail(self, error: &Error) {
        let is_lost = matches!(error, Error::Blob(blob::Error::Corrupt(_)));
        if (is_lost || !self.is_named())
            && let Err(error) = self.remove().await
        {
            tracing::warn!(%error, "a failed upload could not be removed");
        }
    }

    /// Removes what is staged and every trace of the upload.
    async fn remove(self) -> Result<(), Error> {
        let is_tracked = self.is_tracked();
        let Self {
            files,
            mut ticket,
            turn,
            staging,
            ..
        } = self;
        staging.discard().await?;
        if is_tracked {
            files.0.store.delete(&ticket.key().state()).await?;
        }
        ticket.forget();
        drop(ticket);
        drop(turn);
        Ok(())
    }

    async fn finish(self) -> Result<FileInfo, Error> {
        let new = self.state.new.clone();
        let sha256 = self.staging.digest();
        if new.sha256.as_ref().is_some_and(|wanted| *wanted != sha256) {
            self.remove().await?;
            return Err(Error::Checksum);
        }
        let is_tracked = self.is_tracked();
        let Self {
            files,
            mut ticket,
            turn,
            state,
            staging,
            ..
        } = self;
        let store = &files.0.store;
        let size = staging.written();
        staging.publish().await?;
        let info = FileInfo {
            id: state.id,
            name: new.name.clone(),
            size,
            content_type: new.content_type.clone(),
            sha256,
            created: Timestamp::now(),
            upload_id: new.upload_id.clone(),
        };
        if new.upload_id.is_some() {
            // Before the file is visible: whoever repeats the upload must find the one that is.
            let done = Done { new, id: info.id };
            let key = ticket.key().done();
            store.put(&key, info::encode(&done)?).await?;
        }
        store.put(&info.id.meta_key(), info::encode(&info)?).await?;
        if is_tracked {
            store.delete(&ticket.key().state()).await?;
        }
        ticket.stored(size);
        drop(ticket);
        drop(turn);
        Ok(info)
    }
}

impl State {
    fn at(mut self, checkpoint: Checkpoint) -> Self {
        self.checkpoint = checkpoint;
        self.saved = Timestamp::now();
        self
    }
}
