//! The thread that writes: it owns every sequence, groups what waits into commits, and is the only writer of journals.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    disk::{self, Room},
    entry::{self, First},
    index::{Committed, File, FileKind, Slot, Spot, TopicId},
    journal::{Batch, Journal},
    keys::JournalKeys,
    lock,
    plan::{Known as KnownTopic, Plan, Touched},
    shared::{Shared, Work},
};
use crate::log::{
    Error, Health, NewRecord, Outcome, Sequence, Timestamp, Topic, dedupe::Fingerprint,
};

/// What one commit holds at most, beyond the first batch.
const COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// Records of one commit at most, beyond the first batch.
const COMMIT_RECORDS: usize = 16 * 1024;
/// Positions noted along with one commit at most.
const NOTES: usize = 256;
/// Positions noted at once when room waits for it.
const NOTES_AT_ONCE: usize = 16 * 1024;
/// How often a full disk is looked at again.
const FULL_RETRY: Duration = Duration::from_millis(200);
/// Journals that may wait to be sealed; then the one that is written grows.
const UNSEALED: usize = 3;
/// A journal never grows beyond this.
const JOURNAL_BYTES: u64 = 3 << 30;

/// What the committer is asked for.
pub(super) enum Command {
    Append(Append),
    /// Notes where topics begin, durably.
    Note {
        /// Also when there is nothing to note: files go, and the log's tail and floor have to stand elsewhere.
        is_due: bool,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Close,
}

/// A batch on its way to the disk.
pub(super) struct Append {
    pub(super) batch: Vec<NewRecord>,
    /// One for each record; empty when none has a key.
    pub(super) fingerprints: Vec<Option<Fingerprint>>,
    pub(super) size: usize,
    /// What it holds of the queue's bound.
    pub(super) permits: usize,
    pub(super) queued: Instant,
    pub(super) ack: oneshot::Sender<Result<Vec<Outcome>, Error>>,
}

impl Append {
    fn fail(self, error: Error) {
        // A dropped ack means that nobody asks.
        let _ = self.ack.send(Err(error));
    }
}

/// A batch whose outcome is known once the commit is durable.
struct Pending {
    outcomes: Vec<Outcome>,
    queued: Instant,
    ack: oneshot::Sender<Result<Vec<Outcome>, Error>>,
}

/// Where a topic begins, on its way into the journal.
struct Note {
    id: TopicId,
    tag: u32,
    first: First,
}

/// Whether appends can be written.
enum Mode {
    Ready,
    Full,
    Failed(String),
}

/// The committer's side of an open engine.
pub(super) struct Committer {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    journal: Journal,
    slot: Slot,
    batch: Batch,
    /// The topics of the journal.
    known: HashMap<Topic, KnownTopic>,
    next_tag: u32,
    /// What the index said of [`super::index::Index::forgotten`] when `known` was right.
    forgotten: u64,
    /// Where the last batch lies in the journal.
    base: u64,
    journal_bytes: u64,
    room: Room,
    mode: Mode,
    /// When a full disk is looked at again.
    look_at: Instant,
    is_closing: bool,
}

/// What a committer starts with.
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Receiver<Command>,
    pub(super) journal: Journal,
    pub(super) slot: Slot,
    pub(super) next_tag: u32,
}

impl Committer {
    pub(super) fn new(start: Start, config: &crate::config::Log) -> Self {
        let disk = start.shared.disk.clone();
        let dir = start.shared.dir.clone();
        Self {
            shared: start.shared,
            commands: start.commands,
            journal: start.journal,
            slot: start.slot,
            batch: Batch::new(),
            known: HashMap::new(),
            next_tag: start.next_tag,
            forgotten: 0,
            base: 0,
            journal_bytes: config.segment.as_u64(),
            room: Room::new(disk, dir, config.min_free.as_u64()),
            mode: Mode::Ready,
            look_at: Instant::now(),
            is_closing: false,
        }
    }

    /// Serves commands until it is told to close or every sender is gone.
    pub(super) fn run(mut self, _work: Work) {
        let _alarm = Alarm(self.shared.clone(), "committer");
        while !self.is_closing {
            if let Some(command) = self.wait() {
                self.serve(command);
            }
        }
        self.close();
    }

    /// Waits for a command; none when a full disk was looked at. That comes first when it is due: commands that a full disk
    /// does not keep from coming must not put it off.
    fn wait(&mut self) -> Option<Command> {
        if !matches!(self.mode, Mode::Full) {
            let command = self.commands.recv().ok();
            self.is_closing = command.is_none();
            return command;
        }
        let wait = self.look_at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            self.look_at = Instant::now() + FULL_RETRY;
            if self.room.is_back() {
                self.set_mode(Mode::Ready);
            }
            return None;
        }
        match self.commands.recv_timeout(wait) {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.is_closing = true;
                None
            }
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Append(append) => self.serve_appends(append),
            Command::Note { is_due, done } => {
                // A dropped answer means that nobody asks.
                let _ = done.send(self.note(is_due));
            }
            Command::Close => self.is_closing = true,
        }
    }

    /// Commits `first` together with what waits behind it.
    fn serve_appends(&mut self, first: Append) {
        let mut bytes = first.size;
        let mut records = first.batch.len();
        let mut appends = vec![first];
        while bytes < COMMIT_BYTES && records < COMMIT_RECORDS && !self.is_closing {
            match self.commands.try_recv() {
                Ok(Command::Append(append)) => {
                    bytes += append.size;
                    records += append.batch.len();
                    appends.push(append);
                }
                // Durable state is the same before and after what is gathered here.
                Ok(other) => self.serve(other),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let permits = appends.iter().map(|append| append.permits).sum();
        self.commit(appends, bytes as u64);
        self.shared.queue.add_permits(permits);
    }

    fn commit(&mut self, appends: Vec<Append>, bytes: u64) {
        if let Err(error) = self.admit(bytes) {
            return fail_all(appends, &error);
        }
        self.begin();
        let first = self.next();
        let mut plan = self.plan();
        let mut pending = Vec::with_capacity(appends.len());
        for mut append in appends {
            match plan.add(std::mem::take(&mut append.batch), &append.fingerprints) {
                Ok(outcomes) => pending.push(Pending {
                    outcomes,
                    queued: append.queued,
                    ack: append.ack,
                }),
                Err(error) => append.fail(error),
            }
        }
        let planned = plan.finish();
        let noted = self.add_notes(NOTES);
        if !self.batch.is_empty()
            && let Err(error) = self.write(first, false)
        {
            // Nobody saw them, and what may be on the disk is taken back.
            lock(&self.shared.numbering).resume_at(first);
            for Pending { ack, .. } in pending {
                let _ = ack.send(Err(error.clone()));
            }
            return;
        }
        let metrics = &self.shared.meters.metrics;
        metrics.deduplicated.inc_by(planned.repeated);
        if planned.records > 0 {
            #[allow(clippy::cast_precision_loss, reason = "a count for a histogram")]
            metrics.commit_records.observe(planned.records as f64);
        }
        self.publish(planned.touched, planned.time, &noted);
        self.acknowledge(pending);
        self.roll();
    }

    /// The sequence that is given out next.
    fn next(&self) -> Sequence {
        lock(&self.shared.numbering).next()
    }

    /// An empty batch, and numbers of topics that are still right.
    fn begin(&mut self) {
        self.batch.clear();
        let index = lock(&self.shared.index);
        if index.forgotten != self.forgotten {
            self.forgotten = index.forgotten;
            self.known.clear();
        }
    }

    fn plan(&mut self) -> Plan<'_> {
        Plan::new(
            &self.shared,
            &mut self.batch,
            &mut self.known,
            &mut self.next_tag,
        )
    }

    /// Whether `bytes` may be written now.
    fn admit(&mut self, bytes: u64) -> Result<(), Error> {
        match &self.mode {
            Mode::Ready => {}
            Mode::Full => return Err(Error::Full),
            Mode::Failed(cause) => return Err(Error::Failed(cause.clone())),
        }
        if self.journal.end + bytes > JOURNAL_BYTES {
            return Err(Error::Unavailable(
                "the log waits for its journals to be sealed".into(),
            ));
        }
        if !self.room.has(bytes) {
            self.set_mode(Mode::Full);
            return Err(Error::Full);
        }
        Ok(())
    }

    /// Makes the batch durable.
    fn write(&mut self, first: Sequence, is_note: bool) -> Result<(), Error> {
        if let Err(error) = self.journal.reserve(self.batch.size(), is_note) {
            // Nothing was written.
            self.known.clear();
            return Err(self.refused(error));
        }
        let started = Instant::now();
        let written = self.journal.write(&mut self.batch, first);
        let fsync_secs = &self.shared.meters.metrics.fsync_secs;
        fsync_secs.observe(started.elapsed().as_secs_f64());
        match written {
            Ok(at) => {
                self.base = at;
                Ok(())
            }
            Err(error) => {
                self.known.clear();
                Err(self.broken(error))
            }
        }
    }

    /// No room could be set aside.
    fn refused(&mut self, error: io::Error) -> Error {
        if disk::is_full(&error) {
            self.set_mode(Mode::Full);
            return Error::Full;
        }
        self.fail(error.to_string())
    }

    /// A write or a flush failed. What of it is on the disk is unknown; it is not shown to anybody.
    fn broken(&mut self, error: io::Error) -> Error {
        if !disk::is_full(&error) {
            return self.fail(error.to_string());
        }
        match self.journal.clear() {
            Ok(()) => {
                self.set_mode(Mode::Full);
                Error::Unavailable("the disk ran full during the write".into())
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, cause: String) -> Error {
        self.set_mode(Mode::Failed(cause.clone()));
        Error::Failed(cause)
    }

    fn set_mode(&mut self, mode: Mode) {
        let health = match &mode {
            Mode::Ready => Health::Ready,
            Mode::Full => Health::Full,
            Mode::Failed(cause) => Health::Failed(cause.clone()),
        };
        self.mode = mode;
        self.look_at = Instant::now() + FULL_RETRY;
        self.shared.set_health(health);
    }

    /// Adds where topics begin to the batch, of up to `limit` topics of which no file says it.
    fn add_notes(&mut self, limit: usize) -> Vec<Note> {
        let index = lock(&self.shared.index);
        let unnoted = index.unnoted(limit);
        let floor = index.floor;
        drop(index);
        if unnoted.is_empty() {
            return Vec::new();
        }
        self.batch.entry(|out| entry::put_floor(out, floor));
        unnoted
            .into_iter()
            .map(|(id, topic, first)| {
                let tag = self.tag_of(&topic, id);
                self.batch
                    .entry(|out| entry::put_topic(out, tag, &topic, first));
                Note { id, tag, first }
            })
            .collect()
    }

    /// The topic's tag in this journal, which a topic that is new to it gets.
    fn tag_of(&mut self, topic: &Topic, id: TopicId) -> u32 {
        if let Some(known) = self.known.get(topic) {
            return known.tag;
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        let known = KnownTopic { tag, id: Some(id) };
        self.known.insert(topic.clone(), known);
        tag
    }

    /// Writes where topics begin, as many as fit, and the log's tail; works on a full disk, as it is what makes room.
    fn note(&mut self, is_due: bool) -> Result<(), Error> {
        if let Mode::Failed(cause) = &self.mode {
            return Err(Error::Failed(cause.clone()));
        }
        loop {
            self.begin();
            let noted = self.add_notes(NOTES_AT_ONCE);
            let is_last = noted.len() < NOTES_AT_ONCE;
            if self.batch.is_empty() && !is_due {
                return Ok(());
            }
            if self.batch.is_empty() {
                let floor = lock(&self.shared.index).floor;
                self.batch.entry(|out| entry::put_floor(out, floor));
            }
            self.write(self.next(), true)?;
            self.publish(Vec::new(), Timestamp(0), &noted);
            self.roll();
            if is_last {
                return Ok(());
            }
        }
    }

    /// Makes what is durable now readable, and shows it to followers. A feed that begins meanwhile begins before or behind it.
    fn publish(&mut self, touched: Vec<Touched>, time: Timestamp, noted: &[Note]) {
        let tail = self.next();
        let mut followers = self.shared.followers.lock();
        let mut index = lock(&self.shared.index);
        let mut first = None;
        for touched in &touched {
            let id = match touched.id {
                Some(id) => id,
                None => index.enter(&touched.topic, touched.first),
            };
            if touched.is_defined {
                index.define(self.slot, touched.tag, id);
                index.note(id, touched.first, self.slot);
            }
            if let Some(known) = self.known.get_mut(&touched.topic) {
                known.id = Some(id);
            }
            let base = self.base;
            let records = touched.records.iter().map(|record| Committed {
                spot: Spot {
                    sequence: record.sequence,
                    offset: u32::try_from(base + record.at as u64).unwrap_or(u32::MAX),
                    bytes: record.bytes,
                },
                key: record.key,
            });
            let start = touched.records.first().map(|record| record.sequence);
            first = [first, start].into_iter().flatten().min();
            index.append(id, self.slot, touched.tag, records);
        }
        for note in noted {
            index.define(self.slot, note.tag, note.id);
            index.noted(note.id, note.first, self.slot);
        }
        if let Some(file) = index.files.get_mut(&self.slot) {
            file.size = self.journal.end;
            file.last = Sequence(tail.0.saturating_sub(1));
            if let Some(first) = first {
                file.note_time(first, time);
            }
            if touched.iter().any(|touched| touched.has_keys()) {
                file.newest_key = time;
            }
        }
        index.tail = tail;
        drop(index);
        self.shared.set_tail(tail);
        for touched in touched {
            let meters = &self.shared.meters;
            let records = touched.records.len() as u64;
            let bytes = touched.records.iter().map(|record| u64::from(record.bytes));
            meters.appended(touched.topic.space(), records, bytes.sum());
            if followers.has(&touched.topic) && records > 0 {
                let topic = touched.topic.clone();
                let (next, shown) = touched.into_shown();
                followers.show(&topic, next, &shown);
            }
        }
        self.shared.showed(tail);
    }

    fn acknowledge(&self, pending: Vec<Pending>) {
        let append_secs = &self.shared.meters.metrics.append_secs;
        for Pending {
            outcomes,
            queued,
            ack,
        } in pending
        {
            append_secs.observe(queued.elapsed().as_secs_f64());
            let _ = ack.send(Ok(outcomes));
        }
    }

    /// Goes on in another journal when this one is large enough; it is sealed beside the commits. While many wait for that, or no
    /// file can be made, this one grows.
    fn roll(&mut self) {
        let is_due = self.journal.end >= self.journal_bytes;
        if !is_due || self.shared.unsealed.load(Ordering::Acquire) >= UNSEALED {
            return;
        }
        // Locked until there is one, so that journals are numbered in the order in which they are written.
        let mut spare = lock(&self.shared.spare);
        let next = match spare.take() {
            Some(spare) => Ok(spare),
            None => self.shared.make_journal(),
        };
        drop(spare);
        match next {
            Ok(next) => self.switch(next),
            Err(error) => {
                tracing::warn!(%error, "no further journal can be made now; the log goes on in the last one")
            }
        }
    }

    fn switch(&mut self, next: Journal) {
        let slot = self.shared.take_slot();
        let file = journal_file(&next);
        lock(&self.shared.index).files.insert(slot, file);
        self.journal = next;
        let sealed = std::mem::replace(&mut self.slot, slot);
        self.known.clear();
        self.next_tag = 0;
        self.shared.seal_later(sealed);
    }

    /// Puts the journal away. Everything that was acknowledged is durable already.
    fn close(mut self) {
        // It is noted again after a start that does not find it.
        let _ = self.note(false);
        // Room that was set aside is given back; a start sets aside its own.
        let _ = self.journal.file.set_len(self.journal.end);
    }
}

/// A journal's entry in the index.
pub(super) fn journal_file(journal: &Journal) -> File {
    File {
        number: journal.number,
        kind: FileKind::Journal {
            file: journal.file.clone(),
            keys: JournalKeys::default(),
            topics: Vec::new(),
        },
        last: Sequence(0),
        size: journal.end,
        live_bytes: 0,
        fixed_bytes: 0,
        key_bytes: 0,
        times: Vec::new(),
        newest_key: Timestamp(0),
        is_damaged: false,
    }
}

fn fail_all(appends: Vec<Append>, error: &Error) {
    for append in appends {
        append.fail(error.clone());
    }
}

/// Tells that a thread of the engine panicked: nothing will be appended any more.
pub(super) struct Alarm(pub(super) Arc<Shared>, pub(super) &'static str);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked(self.1);
        }
    }
}
