//! The task that stages what an upload's call sends, and settles and publishes it.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    task::JoinHandle,
    time::{Instant, interval_at},
};

use super::{
    Error, FileInfo, Files,
    shelf::Ticket,
    state::{Claimed, State},
};
use crate::{
    blob::{self, Checkpoint, Slot, Staging, Version},
    log::Timestamp,
};

/// What the call sends.
pub(super) enum Command {
    Write(Vec<Bytes>),
    Finish,
}

/// How often a writer says at least that it is there; where uploads expire soon, four times before.
const BEAT: Duration = Duration::from_secs(15);

/// How the stream of an upload ends.
enum End {
    Finished,
    Left,
    Superseded,
}

/// Stages what the handle sends. It outlives the call, so that what was begun is settled: committed, published or removed.
/// One for each upload with a stream, which `files.max_uploads` bounds.
pub(super) struct Task {
    pub(super) files: Files,
    pub(super) ticket: Ticket,
    /// Nobody else in this process touches what is staged.
    turn: OwnedMutexGuard<()>,
    /// The state that is stored, if it is.
    pub(super) state: State,
    /// Its version, where the store has it.
    version: Option<Version>,
    staging: Staging,
    /// A checkpoint being made durable and saved, beside the writes.
    saving: Option<JoinHandle<Result<Saved, blob::Error>>>,
    /// For what the staging has open.
    _slot: Slot,
}

/// What a checkpoint made durable.
struct Saved {
    state: State,
    version: Option<Version>,
}

impl Task {
    pub(super) async fn open(
        files: Files,
        ticket: Ticket,
        turn: OwnedMutexGuard<()>,
        slot: Slot,
        claimed: Claimed,
    ) -> Result<Self, Error> {
        let Claimed { mut state, version } = claimed;
        let store = &files.0.store;
        let scratch = ticket.key().scratch();
        let checkpoint = state.checkpoint.clone();
        let mut is_saved = version.is_some() && store.is_shared();
        let staging = match store
            .resume(&state.id.blob_key(), &scratch, checkpoint)
            .await
        {
            Err(blob::Error::Corrupt(why)) => {
                tracing::warn!(%why, "an upload begins anew");
                state = state.anew();
                is_saved = false;
                store.stage(&state.id.blob_key(), &scratch).await?
            }
            resumed => resumed?,
        };
        let mut task = Self {
            files,
            ticket,
            turn,
            state,
            version,
            staging,
            saving: None,
            _slot: slot,
        };
        // From here on a crash leaves nothing that is not found again.
        if task.is_tracked() {
            let checkpoint = task.staging.checkpoint().await?;
            if !is_saved || checkpoint != task.state.checkpoint {
                task.save(checkpoint).await?;
            }
        }
        Ok(task)
    }

    /// Whether its state is stored: without a name only where a crash would leave what nobody finds.
    fn is_tracked(&self) -> bool {
        self.is_named() || self.files.0.store.is_shared()
    }

    const fn is_named(&self) -> bool {
        self.state.new.upload_id.is_some()
    }

    pub(super) async fn run(
        mut self,
        commands: mpsc::Receiver<Command>,
    ) -> Result<FileInfo, Error> {
        let files = self.files.clone();
        let ended = self.receive(commands).await;
        let saved = self.saved().await;
        let mut ended = ended.and_then(|end| saved.map(|()| end));
        if let Err(Error::Blob(error)) = &ended
            && self.is_tracked()
            && files.is_taken(self.ticket.key(), &self.state).await
        {
            // Whoever took it over took its parts away too.
            tracing::debug!(%error, "an upload that was taken over failed");
            ended = Err(Error::Superseded);
        }
        let (outcome, result) = match ended {
            Ok(End::Finished) => match self.finish().await {
                Ok(info) => ("stored", Ok(info)),
                Err(Error::Checksum) => ("refused", Err(Error::Checksum)),
                Err(Error::Superseded) => ("superseded", Err(Error::Superseded)),
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
            Err(Error::Superseded) => {
                // On another replica: here it is over.
                self.ticket.forget();
                ("superseded", Err(Error::Superseded))
            }
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
        let pause = BEAT.min(self.files.0.settings.upload_ttl / 4);
        let mut beat = interval_at(Instant::now() + pause, pause);
        let is_shared = self.files.0.store.is_shared();
        loop {
            let command = tokio::select! {
                biased;
                () = fence.cancelled() => return Ok(End::Superseded),
                command = commands.recv() => command,
                _ = beat.tick(), if is_shared => {
                    // Nobody may think it over, and whom another replica took over has to hear it.
                    self.save_beside(Some).await?;
                    continue;
                }
            };
            match command {
                Some(Command::Write(pieces)) => {
                    self.staging.write(pieces).await?;
                    self.save_beside(|_| None).await?;
                }
                Some(Command::Finish) => return Ok(End::Finished),
                None => return Ok(End::Left),
            }
        }
    }

    /// Makes what was written durable while more is written, one checkpoint at a time; without news `or_else` says what is
    /// saved instead, given the checkpoint before.
    async fn save_beside(
        &mut self,
        or_else: impl FnOnce(Checkpoint) -> Option<Checkpoint>,
    ) -> Result<(), Error> {
        if self.saving.as_ref().is_some_and(JoinHandle::is_finished) {
            self.saved().await?;
        }
        if self.saving.is_some() {
            return Ok(());
        }
        let same = |checkpoint| futures::future::ready(Ok(checkpoint)).boxed();
        let due = self.staging.checkpoint_due();
        let due = due.or_else(|| or_else(self.state.checkpoint.clone()).map(same));
        let Some(due) = due else {
            return Ok(());
        };
        let (store, key) = (self.files.0.store.clone(), self.ticket.key().clone());
        let (state, mut version) = (self.state.clone(), self.version.clone());
        let is_tracked = self.is_tracked();
        self.saving = Some(tokio::spawn(async move {
            let state = state.at(due.await?);
            if is_tracked {
                version = Some(state.save(&store, &key, version.as_ref()).await?);
            }
            Ok(Saved { state, version })
        }));
        Ok(())
    }

    /// Waits for the checkpoint that is being made.
    async fn saved(&mut self) -> Result<(), Error> {
        if let Some(saving) = self.saving.take() {
            let failed =
                |error: tokio::task::JoinError| blob::Error::Unavailable(error.to_string());
            let Saved { state, version } = saving.await.map_err(failed)??;
            (self.state, self.version) = (state, version);
        }
        Ok(())
    }

    async fn save(&mut self, checkpoint: Checkpoint) -> Result<(), Error> {
        let state = self.state.clone().at(checkpoint);
        let (store, key) = (&self.files.0.store, self.ticket.key());
        self.version = Some(state.save(store, key, self.version.as_ref()).await?);
        self.state = state;
        Ok(())
    }

    /// The stream broke: a named upload may go on, any other is gone.
    async fn leave(mut self) -> Result<(), Error> {
        if !self.is_named() {
            return self.remove().await;
        }
        let checkpoint = self.staging.checkpoint().await?;
        match self.save(checkpoint).await {
            Ok(()) => self.ticket.keep(self.files.0.settings.upload_ttl),
            // On another replica: here it is over.
            Err(Error::Superseded) => self.ticket.forget(),
            Err(error) => return Err(error),
        }
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
        let Self {
            files,
            mut ticket,
            turn,
            state,
            version,
            staging,
            ..
        } = self;
        match version {
            Some(version) => {
                let left = files.give_up(ticket.key(), &state, version).await?;
                staging.discard().await?;
                files.given_up(ticket.key(), left).await?;
            }
            None => staging.discard().await?,
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
            mut version,
            staging,
            ..
        } = self;
        let info = FileInfo {
            id: state.id,
            name: new.name,
            size: staging.written(),
            content_type: new.content_type,
            sha256,
            created: Timestamp::now(),
            upload_id: new.upload_id,
        };
        let mut state = state.at(staging.seal().await?);
        if is_tracked {
            state.file = Some(info.clone());
            let saved = state.save(&files.0.store, ticket.key(), version.as_ref());
            version = Some(saved.await?);
        }
        let key = ticket.key().clone();
        files
            .complete(&key, &state, &info, version.as_ref())
            .await?;
        ticket.stored(info.size);
        drop(ticket);
        drop(turn);
        Ok(info)
    }
}
