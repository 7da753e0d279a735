//! The thread that writes: it owns every sequence, groups what waits into commits, and is the only writer.

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Faults,
    disk::{self, Room},
    export::Hold,
    layout,
    plan::{Next, Plan, Touched},
    shared::{Shared, reopening},
    state::{Cache, Followers},
    store::Store,
};
use crate::log::{
    Error, Follower, Health, NewRecord, Outcome, Sequence, Timestamp, Topic, dedupe::Fingerprint,
};

/// What one commit holds at most, beyond the first batch.
const COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// Records of one commit at most, beyond the first batch.
const COMMIT_RECORDS: usize = 16 * 1024;
/// Keys that one step of forgetting looks at.
const STEP: usize = 1024;
/// How often a full disk is looked at again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// What the committer is asked for.
pub(super) enum Command {
    Append(Append),
    Follow {
        topic: Topic,
        token: u64,
        follower: Weak<dyn Follower>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Unfollow {
        topic: Topic,
        token: u64,
    },
    /// Drops the topic's oldest records, as [`Store::oldest`] found them.
    /// Answers whether it did: while an export runs nothing is dropped.
    Trim {
        topic: Topic,
        oldest: Vec<Sequence>,
        done: oneshot::Sender<Result<bool, Error>>,
    },
    /// Holds trims back for an export; answers what is given out next, so everything before is durable.
    Hold {
        done: oneshot::Sender<Result<(Hold, Next), Error>>,
    },
    /// Forgets some keys used before `before`; answers whether there is more to forget.
    ForgetKeys {
        before: Timestamp,
        done: oneshot::Sender<Result<bool, Error>>,
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

/// Whether appends can be written.
enum Mode {
    Ready,
    /// The disk is full; the database is fine.
    Full,
    /// The disk ran full during a write, so the database has to be opened anew when there is room.
    Broken,
    Failed(String),
}

/// The committer's side of an open engine.
pub(super) struct Committer {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    store: Option<Arc<Store>>,
    cache: Cache,
    followers: Followers,
    next: Next,
    dedupe_window: Duration,
    cache_bytes: u64,
    dir: PathBuf,
    room: Room,
    faults: Option<Faults>,
    mode: Mode,
    /// When a full disk is looked at again.
    look_at: Instant,
    /// Keys up to here were forgotten; saves walking over what they leave behind in the database.
    forgotten: Vec<u8>,
    is_closing: bool,
}

/// What a committer starts with.
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Receiver<Command>,
    pub(super) store: Arc<Store>,
    pub(super) next: Next,
    pub(super) faults: Option<Faults>,
}

impl Committer {
    pub(super) fn new(start: Start, config: &crate::config::Log) -> Self {
        let min_free_bytes = config.min_free.as_u64();
        Self {
            shared: start.shared,
            commands: start.commands,
            store: Some(start.store),
            cache: Cache::default(),
            followers: Followers::default(),
            next: start.next,
            dedupe_window: config.dedupe_window,
            cache_bytes: config.cache.as_u64(),
            dir: config.dir.clone(),
            room: Room::new(config.dir.clone(), min_free_bytes, start.faults.clone()),
            faults: start.faults,
            mode: Mode::Ready,
            look_at: Instant::now(),
            forgotten: Vec::new(),
            is_closing: false,
        }
    }

    /// Serves commands until it is told to close or every sender is gone.
    pub(super) fn run(mut self) {
        let _alarm = Alarm(self.shared.clone());
        while !self.is_closing {
            if let Some(command) = self.next() {
                self.serve(command);
            }
        }
        self.close();
    }

    /// Waits for a command; none when a full disk was looked at. That comes first when it is due: commands that a full disk
    /// does not keep from coming must not put it off.
    fn next(&mut self) -> Option<Command> {
        if !matches!(self.mode, Mode::Full | Mode::Broken) {
            let command = self.commands.recv().ok();
            self.is_closing = command.is_none();
            return command;
        }
        let wait = self.look_at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            self.look_at = Instant::now() + FULL_RETRY;
            self.recover();
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
            other => self.serve_other(other),
        }
    }

    /// Commits `first` together with what waits behind it.
    fn serve_appends(&mut self, first: Append) {
        let (mut bytes, mut records) = (first.size, first.batch.len());
        let mut appends = vec![first];
        while bytes < COMMIT_BYTES && records < COMMIT_RECORDS && !self.is_closing {
            match self.commands.try_recv() {
                Ok(Command::Append(append)) => {
                    bytes += append.size;
                    records += append.batch.len();
                    appends.push(append);
                }
                // Durable state is the same before and after what is gathered here.
                Ok(other) => self.serve_other(other),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let permits = appends.iter().map(|append| append.permits).sum();
        self.commit(appends, bytes as u64);
        self.shared.queue.add_permits(permits);
    }

    fn serve_other(&mut self, command: Command) {
        // A dropped answer means that nobody asks.
        match command {
            Command::Append(append) => self.serve_appends(append),
            Command::Follow {
                topic,
                token,
                follower,
                done,
            } => {
                let _ = done.send(self.follow(topic, token, follower));
            }
            Command::Unfollow { topic, token } => self.followers.remove(&topic, token),
            Command::Trim {
                topic,
                oldest,
                done,
            } => {
                let _ = done.send(self.trim(topic, &oldest));
            }
            Command::Hold { done } => {
                let _ = done.send(self.hold());
            }
            Command::ForgetKeys { before, done } => {
                let _ = done.send(self.forget_keys(before));
            }
            Command::Close => self.is_closing = true,
        }
    }

    fn commit(&mut self, appends: Vec<Append>, bytes: u64) {
        let store = match self.admit(bytes) {
            Ok(store) => store,
            Err(error) => return fail_all(appends, &error),
        };
        let window = self.dedupe_window;
        let (cache, followers) = (&mut self.cache, &self.followers);
        let mut plan = Plan::new(&store, cache, followers, self.next, window);
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
        let (batch, touched, planned, next) = plan.finish();
        if !batch.is_empty()
            && let Err(error) = self.write(batch)
        {
            for Pending { ack, .. } in pending {
                let _ = ack.send(Err(error.clone()));
            }
            return;
        }
        self.next = next;
        self.shared.reached(next.sequence);
        let metrics = &self.shared.meters.metrics;
        metrics.deduplicated.inc_by(planned.repeated);
        if planned.records > 0 {
            #[allow(clippy::cast_precision_loss, reason = "a count for a histogram")]
            metrics.commit_records.observe(planned.records as f64);
        }
        for touched in touched {
            self.publish(touched);
        }
        self.shared.showed(self.next.sequence);
        self.acknowledge(pending);
    }

    /// Whether `bytes` may be written now, and to what.
    fn admit(&mut self, bytes: u64) -> Result<Arc<Store>, Error> {
        match &self.mode {
            Mode::Ready => {}
            Mode::Full | Mode::Broken => return Err(Error::Full),
            Mode::Failed(cause) => return Err(Error::Failed(cause.clone())),
        }
        if !self.room.has(bytes) {
            self.set_mode(Mode::Full);
            return Err(Error::Full);
        }
        self.writable()
    }

    /// The database, once it keeps up with what was written before.
    fn writable(&mut self) -> Result<Arc<Store>, Error> {
        let Some(store) = self.store.clone() else {
            return Err(Error::Full);
        };
        loop {
            match store.is_behind() {
                Ok(false) => return Ok(store),
                Ok(true) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// Makes a batch durable.
    fn write(&mut self, batch: fjall::OwnedWriteBatch) -> Result<(), Error> {
        let started = Instant::now();
        let fault = self.faults.as_ref().map(Faults::before_commit);
        let written = match fault {
            Some(Err(error)) => Err(fjall::Error::Io(error)),
            _ => batch.commit().and_then(|()| self.answer()),
        };
        let fsync_secs = &self.shared.meters.metrics.fsync_secs;
        fsync_secs.observe(started.elapsed().as_secs_f64());
        written.map_err(|error| self.broken(error))
    }

    /// What the disk answers to a write that it has done.
    fn answer(&self) -> fjall::Result<()> {
        let fault = self.faults.as_ref().map(Faults::after_commit);
        fault.unwrap_or(Ok(())).map_err(fjall::Error::Io)
    }

    /// Notes that a write failed. Fjall takes no further write then; what failed may or may not be stored.
    fn broken(&mut self, error: fjall::Error) -> Error {
        let is_full = match &error {
            fjall::Error::Io(error) => disk::is_full(error),
            // Its worker failed, and it does not say why.
            fjall::Error::Poisoned => self.room.is_short(),
            _ => false,
        };
        if is_full {
            self.set_mode(Mode::Broken);
            return Error::Unavailable("the disk ran full during the write".into());
        }
        let cause = error.to_string();
        self.set_mode(Mode::Failed(cause.clone()));
        Error::Failed(cause)
    }

    fn set_mode(&mut self, mode: Mode) {
        let health = match &mode {
            Mode::Ready => Health::Ready,
            Mode::Full | Mode::Broken => Health::Full,
            Mode::Failed(cause) => Health::Failed(cause.clone()),
        };
        self.mode = mode;
        self.look_at = Instant::now() + FULL_RETRY;
        self.shared.set_health(health);
    }

    /// Shows a topic's new records, durable now, to its followers.
    fn publish(&mut self, touched: Touched) {
        if touched.records > 0 {
            let meters = &self.shared.meters;
            meters.appended(touched.topic.space(), touched.records, touched.bytes);
            self.followers
                .show(&touched.topic, touched.next, &touched.shown);
        }
        self.cache.put(touched.topic, touched.state);
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

    fn follow(
        &mut self,
        topic: Topic,
        token: u64,
        follower: Weak<dyn Follower>,
    ) -> Result<(), Error> {
        // The tail is not known until the database is open again.
        self.store.as_ref().ok_or_else(reopening)?;
        self.followers
            .add(topic, token, follower, self.next.sequence);
        Ok(())
    }

    /// Drops the topic's `oldest` records; some may be gone by now. Not flushed: a trim that a power cut undoes is
    /// repeated. Works on a full disk, as it is what makes room.
    fn trim(&mut self, topic: Topic, oldest: &[Sequence]) -> Result<bool, Error> {
        let store = self.trimmable()?;
        if self.shared.is_held() {
            return Ok(false);
        }
        let Some(mut state) = self.cache.get(&store, &topic)? else {
            return Ok(true);
        };
        let gone = oldest.partition_point(|sequence| *sequence < state.first);
        let Some((last, _)) = oldest[gone..].split_last() else {
            return Ok(true);
        };
        let mut batch = store.batch().durability(Some(fjall::PersistMode::Buffer));
        for sequence in &oldest[gone..] {
            batch.remove(&store.records, layout::record_key(state.id, *sequence));
        }
        state.first = last.next();
        let entry = state.entry().encode();
        batch.insert(&store.topics, layout::topic_key(&topic), entry);
        batch.commit().map_err(|error| self.broken(error))?;
        let dropped = (oldest.len() - gone) as u64;
        self.shared.meters.trimmed(topic.space(), dropped);
        self.cache.put(topic, state);
        Ok(true)
    }

    /// Holds trims back. Not on a full disk: they make room there.
    fn hold(&self) -> Result<(Hold, Next), Error> {
        match self.mode {
            Mode::Full | Mode::Broken => Err(Error::Full),
            Mode::Ready | Mode::Failed(_) => Ok((Hold::new(self.shared.clone()), self.next)),
        }
    }

    /// Forgets up to [`STEP`] keys used before `before`.
    fn forget_keys(&mut self, before: Timestamp) -> Result<bool, Error> {
        let store = self.trimmable()?;
        let expiries = store.expiries(&self.forgotten, before, STEP)?;
        let mut batch = store.batch().durability(Some(fjall::PersistMode::Buffer));
        for expiry in &expiries {
            let (time, key) = layout::expiry_of(expiry)?;
            // A key used again after its window has a later expiry of its own.
            if store.known(key)?.is_some_and(|known| known.time == time) {
                batch.remove(&store.keys, key);
            }
            batch.remove(&store.expiry, expiry.clone());
        }
        batch.commit().map_err(|error| self.broken(error))?;
        if let Some(last) = expiries.last() {
            self.forgotten = last.to_vec();
        }
        Ok(expiries.len() == STEP)
    }

    fn trimmable(&mut self) -> Result<Arc<Store>, Error> {
        match &self.mode {
            Mode::Ready | Mode::Full => self.writable(),
            Mode::Broken => Err(reopening()),
            Mode::Failed(cause) => Err(Error::Failed(cause.clone())),
        }
    }

    /// Looks whether the disk has room again, and goes on if so.
    fn recover(&mut self) {
        if !self.room.is_back() {
            return;
        }
        if matches!(self.mode, Mode::Broken) {
            self.reopen();
        } else {
            self.set_mode(Mode::Ready);
        }
    }

    /// Opens the database anew after a write that found the disk full. Readers get [`Error::Unavailable`] meanwhile. Tried
    /// again later when readers still hold the old one, or when the disk is full again.
    fn reopen(&mut self) {
        self.store = None;
        if !self.shared.release_store() {
            return;
        }
        match Store::open(&self.dir, self.cache_bytes) {
            Ok(store) => self.resume(Arc::new(store)),
            Err(crate::log::OpenError::Directory { cause, .. }) if disk::is_full(&cause) => {}
            Err(error) => self.set_mode(Mode::Failed(error.to_string())),
        }
    }

    fn resume(&mut self, store: Arc<Store>) {
        let next = match store.next() {
            Ok(next) => next,
            Err(error) => return self.set_mode(Mode::Failed(error.to_string())),
        };
        if next.sequence > self.next.sequence {
            // What failed is stored after all, and nobody was shown it.
            self.followers.skip_to(next.sequence);
        }
        self.next = next;
        self.shared.reached(next.sequence);
        self.cache.clear();
        self.store = Some(store.clone());
        self.shared.set_store(store);
        self.set_mode(Mode::Ready);
    }

    /// Makes everything durable and lets go of the directory.
    fn close(mut self) {
        if let Some(store) = self.store.take()
            && matches!(self.mode, Mode::Ready | Mode::Full)
            && let Err(error) = store.persist()
        {
            tracing::error!(%error, "the log's last flush failed");
        }
        while !self.shared.release_store() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.release_dir();
        self.shared.set_health(Health::Closed);
    }
}

fn fail_all(appends: Vec<Append>, error: &Error) {
    for append in appends {
        append.fail(error.clone());
    }
}

/// Tells that the committer panicked: nothing will be appended any more.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked();
        }
    }
}
