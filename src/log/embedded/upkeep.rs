//! The thread beside the commits: it seals journals, makes the next one, drops what is too old or too much, and gives the disk back
//! what is dropped.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    committer::{Alarm, Command},
    disk,
    files::journal_path,
    index::{File, FileKind, Slot},
    lock, seal, segment,
    shared::{Shared, Work},
    trim::{self, Until},
};
use crate::{
    config::{self, RetentionBySpace},
    log::{Error, Sequence, Space, Timestamp, Topic},
};

/// A segment is written once more when so much of it was dropped, and more than half.
const REWRITE_BYTES: u64 = 256 * 1024;
/// Between two attempts to seal a journal that the disk refused.
const RETRY: Duration = Duration::from_secs(1);

/// What the upkeep is asked for.
#[derive(Debug)]
pub(super) enum Task {
    /// Makes a segment of a journal.
    Seal(Slot),
    /// Gives room back.
    Reclaim,
}

pub(super) struct Upkeep {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    /// Disconnected when the engine goes away.
    tasks: Receiver<Task>,
    data_dir: PathBuf,
    interval: Duration,
    retention: RetentionBySpace,
    /// Journals that the disk did not let be sealed.
    refused: Vec<Slot>,
    /// Whether that was told.
    is_refused: bool,
}

impl Upkeep {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: Sender<Command>,
        tasks: Receiver<Task>,
        config: &config::Log,
    ) -> Self {
        Self {
            shared,
            commands,
            tasks,
            data_dir: config.dir.clone(),
            interval: config.retention_interval,
            retention: config.retention.clone(),
            refused: Vec::new(),
            is_refused: false,
        }
    }

    /// Works until the engine closes.
    pub(super) fn run(mut self, _work: Work) {
        let _alarm = Alarm(self.shared.clone(), "upkeep");
        let mut next_round = Instant::now();
        self.make_spare();
        loop {
            let mut wait = next_round.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.round();
                next_round = Instant::now() + self.interval;
                continue;
            }
            if !self.refused.is_empty() {
                wait = wait.min(RETRY);
            }
            match self.tasks.recv_timeout(wait) {
                Ok(task) => self.serve(task),
                Err(RecvTimeoutError::Timeout) => {
                    for slot in std::mem::take(&mut self.refused) {
                        self.seal(slot);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn serve(&mut self, task: Task) {
        match task {
            Task::Seal(slot) => {
                self.make_spare();
                self.seal(slot);
                self.reclaim();
            }
            Task::Reclaim => self.reclaim(),
        }
    }

    /// Makes the next journal before the committer needs it.
    fn make_spare(&self) {
        let mut spare = lock(&self.shared.spare);
        if spare.is_some() || self.shared.is_closing() {
            return;
        }
        match self.shared.make_journal() {
            Ok(journal) => *spare = Some(journal),
            Err(error) => tracing::debug!(%error, "the next journal is made when it is needed"),
        }
    }

    fn keys_from(&self) -> Timestamp {
        lock(&self.shared.numbering)
            .now()
            .before(self.shared.dedupe_window)
    }

    fn seal(&mut self, slot: Slot) {
        match seal::seal(&self.shared, slot, self.keys_from()) {
            Ok(()) => self.is_refused = false,
            Err(seal::Failure::Io(error)) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::warn!(%error, "journals cannot be sealed now; it is tried again each second");
                }
                self.refused.push(slot);
            }
            Err(seal::Failure::Damaged(error)) => self.damaged(slot, &error),
        }
    }

    /// A file with damage stays as it is: its other records are read, and it goes when all of them are dropped.
    fn damaged(&self, slot: Slot, error: &Error) {
        let mut index = lock(&self.shared.index);
        if let Some(file) = index.files.get_mut(&slot) {
            let is_journal = matches!(file.kind, FileKind::Journal { .. });
            if is_journal && !file.is_damaged {
                // Nothing waits for it any more.
                let unsealed = &self.shared.unsealed;
                unsealed.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
            }
            file.is_damaged = true;
            tracing::error!(
                %error,
                number = file.number,
                "a file of the log is damaged; what can be read of it is served, see `weir log inspect`"
            );
        }
    }

    /// One round of retention, and of what it gives back.
    fn round(&self) {
        for space in Space::ALL {
            self.retain_age(space);
        }
        self.retain_bytes();
        if let Err(error) = self.note(false) {
            tracing::debug!(%error, "what was dropped is noted later");
        }
        let keys_from = self.keys_from();
        let mut index = lock(&self.shared.index);
        index.forget_keys(keys_from);
        let (forgotten, holding) = index.forget_emptied(self.shared.max_topics / 2);
        drop(index);
        for slot in holding {
            self.rewrite(slot, keys_from);
        }
        if forgotten > 0 {
            tracing::debug!(forgotten, "topics without records were forgotten");
        }
        self.reclaim();
        let metrics = &self.shared.meters.metrics;
        let gauges = [
            (&metrics.log_bytes, Some(disk::used_bytes(&self.data_dir))),
            (
                &metrics.log_free_bytes,
                self.shared.disk.free_bytes(&self.data_dir),
            ),
        ];
        for (gauge, bytes) in gauges {
            if let Some(bytes) = bytes {
                gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        }
    }

    /// Drops what is older than it may be. Costs nothing for topics that have nothing so old.
    fn retain_age(&self, space: Space) {
        let Some(now) = lock(&self.shared.numbering).for_expiry() else {
            // The clock cannot be believed: nothing is dropped by its word.
            return;
        };
        let oldest = now.before(self.retention.of(space).age);
        let cut = lock(&self.shared.index).cut_of(oldest);
        let mut after = (Sequence(0), 0);
        loop {
            let overdue = lock(&self.shared.index).overdue(space, after, cut);
            let Some((at, topic)) = overdue else {
                return;
            };
            after = at;
            if !self.trim(&topic, Until::Before(cut)) {
                return;
            }
        }
    }

    /// Drops what is more than it may be.
    fn retain_bytes(&self) {
        let mut failed = Vec::new();
        loop {
            let mut index = lock(&self.shared.index);
            let Some((id, topic)) = index.take_large() else {
                break;
            };
            let most = index.limit_of(topic.space());
            drop(index);
            if !self.trim(&topic, Until::Bytes(most)) {
                failed.push(id);
                break;
            }
        }
        let mut index = lock(&self.shared.index);
        for id in failed {
            index.put_large(id);
        }
    }

    /// Whether to go on with other topics.
    fn trim(&self, topic: &Topic, until: Until) -> bool {
        if self.shared.is_closing() || self.shared.is_held() {
            return false;
        }
        if let Err(error) = trim::trim(&self.shared, topic, until) {
            tracing::warn!(%error, %topic, "what is too old of a topic cannot be dropped now");
        }
        true
    }

    /// Removes files of which nothing is left, and writes those once more of which little is.
    fn reclaim(&self) {
        self.shared.reclaims();
        let keys_from = self.keys_from();
        let index = lock(&self.shared.index);
        let slots = |wanted: fn(&File, Timestamp) -> bool| -> Vec<Slot> {
            let files = index.files.iter();
            files
                .filter(|(_, file)| wanted(file, keys_from))
                .map(|(slot, _)| *slot)
                .collect()
        };
        let dead = slots(is_dead);
        let sparse = slots(is_sparse);
        drop(index);
        if !dead.is_empty()
            && let Err(error) = self.remove(&dead)
        {
            tracing::debug!(%error, "files of which nothing is left stay for now");
        }
        for slot in sparse {
            if self.shared.is_closing() {
                return;
            }
            self.rewrite(slot, keys_from);
        }
    }

    fn rewrite(&self, slot: Slot, keys_from: Timestamp) {
        match seal::rewrite(&self.shared, slot, keys_from) {
            Ok(()) => {}
            Err(seal::Failure::Io(error)) => {
                tracing::debug!(%error, "a segment cannot be written once more now");
            }
            Err(seal::Failure::Damaged(error)) => self.damaged(slot, &error),
        }
    }

    /// Removes segments, after what they alone say of topics stands elsewhere.
    fn remove(&self, slots: &[Slot]) -> Result<(), Error> {
        let unusable = |error: std::io::Error| Error::Unavailable(error.to_string());
        let mut gone: Vec<(Slot, PathBuf, Vec<Topic>)> = Vec::new();
        for slot in slots {
            if let Some((path, topics)) = self.damaged_journal(*slot) {
                gone.push((*slot, path, topics));
                continue;
            }
            let Some(file) = lock(&self.shared.index).segment_file(*slot) else {
                continue;
            };
            let opened = file.open().map_err(unusable)?;
            let groups = match segment::open(&*opened) {
                Ok(opened) => opened.groups,
                Err(segment::Unopened::Io(error)) => return Err(unusable(error)),
                // What it said of topics was read at the start; it holds nothing else.
                Err(_) => Vec::new(),
            };
            let mut index = lock(&self.shared.index);
            for group in &groups {
                index.unnote(&group.topic, *slot);
            }
            drop(index);
            let topics = groups.into_iter().map(|group| group.topic).collect();
            gone.push((*slot, file.path().to_owned(), topics));
        }
        self.note(true)?;
        for (slot, path, topics) in gone {
            lock(&self.shared.index).remove_file(slot, topics);
            self.shared.disk.remove(&path).map_err(unusable)?;
        }
        self.shared
            .disk
            .sync_dir(&self.shared.dir)
            .map_err(unusable)
    }

    /// A journal that could not be sealed because of its damage: where it is, and the topics in it, whose positions it alone may say.
    fn damaged_journal(&self, slot: Slot) -> Option<(PathBuf, Vec<Topic>)> {
        let mut index = lock(&self.shared.index);
        let file = index.files.get(&slot)?;
        let FileKind::Journal { topics, .. } = &file.kind else {
            return None;
        };
        let path = journal_path(&self.shared.dir, file.number);
        let states = topics.iter().filter_map(|(_, id)| index.state(*id));
        let topics: Vec<_> = states.map(|state| state.topic.clone()).collect();
        for topic in &topics {
            index.unnote(topic, slot);
        }
        Some((path, topics))
    }

    /// Has the committer write what is not noted yet, and waits for that.
    fn note(&self, is_due: bool) -> Result<(), Error> {
        if self.shared.is_closing() {
            return Err(Error::Closed);
        }
        let (done, answer) = oneshot::channel();
        self.commands
            .send(Command::Note { is_due, done })
            .map_err(|_| Error::Closed)?;
        answer.blocking_recv().unwrap_or(Err(Error::Closed))
    }
}

/// Whether nothing of a file is of use that is not written any more.
fn is_dead(file: &File, keys_from: Timestamp) -> bool {
    (matches!(file.kind, FileKind::Segment { .. }) || file.is_damaged)
        && file.live_bytes == 0
        && file.newest_key < keys_from.max(Timestamp(1))
}

/// Whether more than half of a segment was dropped.
fn is_sparse(file: &File, keys_from: Timestamp) -> bool {
    let kept = file.live_bytes + file.fixed_bytes;
    let dropped = file.size.saturating_sub(kept);
    matches!(file.kind, FileKind::Segment { .. })
        && !is_dead(file, keys_from)
        && !file.is_damaged
        && dropped > REWRITE_BYTES
        && dropped > file.size / 2
}
