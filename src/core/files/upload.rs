//! One upload: the handle a call writes to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::{
    Error, FileInfo, Files, NewFile,
    state::{self, Claim, Key},
    task::{Command, Task},
};
use crate::{blob, core::Name};

/// Bytes handed to the task together. An upload holds one such piece that fills, one that waits and one that is written.
const PIECE_BYTES: usize = 512 * 1024;
/// Chunks below this size are copied together: a slice of its own for each byte would cost more than the byte.
const SMALL_BYTES: usize = 4 * 1024;

/// How an upload begins.
pub enum Begun {
    /// The content is wanted.
    Upload(Upload),
    /// The same upload was completed before: this is its file.
    Done(FileInfo),
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
    /// it ends as [`Error::Superseded`], on another replica with what it writes or ends next.
    ///
    /// # Errors
    /// [`Error::Limit`] without room for it; [`blob::Error::Busy`] while too many files are read and written; [`Error::AlreadyExists`] when the id stands for other metadata;
    /// [`Error::Superseded`] when yet another stream takes over; what the store reports.
    ///
    /// # Cancellation
    /// Dropping the future leaves the upload as it was, or taken over with nobody who writes it.
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
                return Err(state::already_exists(&new));
            }
        }
        let is_named = new.upload_id.is_some();
        // Before anything is taken over or claimed, so that one that is refused leaves no trace.
        let slot = self.0.store.slot()?;
        let mut ticket = self.0.shelf.take(&key, new.size.unwrap_or(0))?;
        let turn = ticket.turn().await?;
        let claimed = match self.claim(&key, new).await? {
            Claim::Done(info) => {
                ticket.forget();
                return Ok(Begun::Done(info));
            }
            Claim::Claimed(claimed) => claimed,
        };
        if is_named {
            ticket.keep(self.0.settings.upload_ttl);
        }
        let task = Task::open(self.clone(), ticket, turn, slot, *claimed).await?;
        self.show();
        Ok(Begun::Upload(task.start()))
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

impl Task {
    /// Runs beside the call; what the call writes to.
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
}
