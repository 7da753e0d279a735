//! The thread that keeps the log small: retention, expired keys, and how much the log takes on its disk. It only looks; what
//! is to be dropped it asks of the committer, step by step, so that appends go on in between.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{committer::Command, disk, shared::Shared};
use crate::{
    config::{self, RetentionBySpace},
    log::{Error, Sequence, Space, Timestamp, Topic},
};

/// Topics looked at before others get a turn at the database.
const TOPICS_PAGE: usize = 256;
/// What retention has to drop from one topic so that looking for files to delete is worth it.
const RECLAIM_BYTES: u64 = 4 * 1024 * 1024;

pub(super) struct Upkeep {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    /// Disconnected when the engine goes away.
    stop: Receiver<()>,
    dir: PathBuf,
    interval: Duration,
    dedupe_window: Duration,
    retention: RetentionBySpace,
}

impl Upkeep {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: Sender<Command>,
        stop: Receiver<()>,
        config: &config::Log,
    ) -> Self {
        Self {
            shared,
            commands,
            stop,
            dir: config.dir.clone(),
            interval: config.retention_interval,
            dedupe_window: config.dedupe_window,
            retention: config.retention.clone(),
        }
    }

    pub(super) fn run(self) {
        loop {
            // A failure shows in the engine's health; the next round tries again.
            if let Err(error) = self.round() {
                tracing::debug!(%error, "the log's upkeep was cut short");
            }
            match self.stop.recv_timeout(self.interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn round(&self) -> Result<(), Error> {
        for space in Space::ALL {
            // The next round does what an export holds back.
            if !self.shared.is_held() {
                self.retain_space(space)?;
            }
        }
        let before = Timestamp::now().before(self.dedupe_window);
        while self.ask(|done| Command::ForgetKeys { before, done })? {}
        let metrics = &self.shared.meters.metrics;
        let gauges = [
            (&metrics.log_bytes, Some(disk::used_bytes(&self.dir))),
            (&metrics.log_free_bytes, disk::free_bytes(&self.dir)),
        ];
        for (gauge, bytes) in gauges {
            if let Some(bytes) = bytes {
                gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        }
        Ok(())
    }

    fn retain_space(&self, space: Space) -> Result<(), Error> {
        let mut after: Option<Topic> = None;
        loop {
            let store = self.shared.store()?;
            let topics = store.topics(space, after.as_ref(), TOPICS_PAGE)?;
            // Not held on to: the database may have to be opened anew.
            drop(store);
            let Some(last) = topics.last().cloned() else {
                return Ok(());
            };
            for topic in topics {
                self.retain(topic)?;
            }
            after = Some(last);
        }
    }

    fn retain(&self, topic: Topic) -> Result<(), Error> {
        let retention = self.retention.of(topic.space());
        let oldest = Timestamp::now().before(retention.age);
        let bytes = retention.bytes.as_u64();
        let cut = self.shared.store()?.retained_from(&topic, oldest, bytes)?;
        let Some(cut) = cut else {
            return Ok(());
        };
        self.trim(&topic, cut.before)?;
        if cut.bytes >= RECLAIM_BYTES {
            self.shared.store()?.reclaim(&topic)?;
        }
        Ok(())
    }

    fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), Error> {
        loop {
            let oldest = self.shared.store()?.oldest(topic, before)?;
            if oldest.is_empty() {
                return Ok(());
            }
            let topic = topic.clone();
            let trim = |done| Command::Trim {
                topic,
                oldest,
                done,
            };
            if !self.ask(trim)? {
                return Ok(());
            }
        }
    }

    /// Sends a command and waits for its answer. [`Error::Closed`] once the engine goes away, so that closing does not wait
    /// for a long trim.
    fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        if self.shared.is_closing() {
            return Err(Error::Closed);
        }
        let (done, answer) = oneshot::channel();
        self.commands
            .send(command(done))
            .map_err(|_| Error::Closed)?;
        answer.blocking_recv().unwrap_or(Err(Error::Closed))
    }
}
