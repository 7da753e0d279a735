//! Who writes which upload now, and how much room is taken: in memory, bounded by `files.max_uploads`.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::{Error, state::Key};
use crate::{config, log::Timestamp};

/// The uploads under way.
#[derive(Debug, Clone)]
pub(super) struct Shelf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_total: u64,
    max_uploads: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of all files.
    stored: u64,
    /// Bytes that uploads under way have or declared.
    reserved: u64,
    under_way: HashMap<Key, Entry>,
}

/// An upload under way: written now, or broken and waiting to go on.
#[derive(Debug)]
struct Entry {
    /// Grows with every stream that takes the upload over.
    epoch: u64,
    /// Ends the stream of this epoch.
    fence: CancellationToken,
    /// Held by the one that may touch what is staged.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The stream of this epoch is gone; its task settles what it left.
    is_left: Arc<AtomicBool>,
    reserved: u64,
    /// When it is swept, unless somebody writes.
    expires: Timestamp,
}

impl Shelf {
    pub(super) fn new(settings: &config::Files) -> Self {
        Self(Arc::new(Inner {
            max_total: settings.max_total.as_u64(),
            max_uploads: settings.max_uploads,
            state: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes stored, uploads under way.
    pub(super) fn counts(&self) -> (u64, usize) {
        let state = self.lock();
        (state.stored, state.under_way.len())
    }

    /// All files were counted.
    pub(super) fn counted(&self, bytes: u64) {
        self.lock().stored = bytes;
    }

    /// A file was stored.
    pub(super) fn stored(&self, bytes: u64) {
        self.lock().stored += bytes;
    }

    /// A file was deleted.
    pub(super) fn removed(&self, bytes: u64) {
        let mut state = self.lock();
        state.stored = state.stored.saturating_sub(bytes);
    }

    /// Puts an upload of another process back, or notes how it is by now. Limits do not hold for what is there already.
    pub(super) fn found(&self, key: Key, reserved: u64, expires: Timestamp) {
        let mut state = self.lock();
        let entry = state.under_way.entry(key);
        let entry = entry.or_insert_with(|| Entry::new(0, expires));
        if entry.waits() {
            entry.expires = expires;
            let before = std::mem::replace(&mut entry.reserved, reserved);
            state.reserved = (state.reserved + reserved).saturating_sub(before);
        }
    }

    /// Forgets uploads that wait here and are not among those of the store.
    pub(super) fn retain(&self, stored: &HashSet<Key>) {
        let mut state = self.lock();
        let mut freed = 0;
        state.under_way.retain(|key, entry| {
            let is_gone = entry.waits() && !stored.contains(key);
            freed += if is_gone { entry.reserved } else { 0 };
            !is_gone
        });
        state.reserved = state.reserved.saturating_sub(freed);
    }

    /// Takes the upload over from whoever writes it: their stream ends. `bytes` is what it declares.
    ///
    /// # Errors
    /// It is a new one, and there is no room for it.
    pub(super) fn take(&self, key: &Key, bytes: u64) -> Result<Ticket, Error> {
        let mut state = self.lock();
        if !state.under_way.contains_key(key) {
            if state.under_way.len() >= self.0.max_uploads {
                return Err(Error::Limit {
                    what: "uploads under way",
                    limit: self.0.max_uploads,
                });
            }
            self.room(&state, bytes)?;
            state.reserved += bytes;
            let entry = Entry::new(bytes, Timestamp::default());
            state.under_way.insert(key.clone(), entry);
        }
        let entry = state.under_way.entry(key.clone()).or_default();
        entry.fence.cancel();
        entry.epoch += 1;
        entry.fence = CancellationToken::new();
        entry.is_left = Arc::default();
        Ok(Ticket {
            shelf: self.clone(),
            key: key.clone(),
            epoch: entry.epoch,
            fence: entry.fence.clone(),
            is_left: Arc::clone(&entry.is_left),
            fate: Fate::Unchanged,
            turn: Arc::clone(&entry.turn),
        })
    }

    fn room(&self, state: &State, bytes: u64) -> Result<(), Error> {
        let taken = state.stored.saturating_add(state.reserved);
        match taken.saturating_add(bytes) <= self.0.max_total {
            true => Ok(()),
            false => Err(Error::Limit {
                what: "bytes of all files",
                limit: usize::try_from(self.0.max_total).unwrap_or(usize::MAX),
            }),
        }
    }

    /// Takes room for an upload that holds `bytes` in all.
    pub(super) fn grow(&self, key: &Key, bytes: u64) -> Result<(), Error> {
        let mut state = self.lock();
        let Some(entry) = state.under_way.get(key) else {
            return Ok(());
        };
        let more = bytes.saturating_sub(entry.reserved);
        if more > 0 {
            self.room(&state, more)?;
            state.reserved += more;
            if let Some(entry) = state.under_way.get_mut(key) {
                entry.reserved = bytes;
            }
        }
        Ok(())
    }

    /// Waits until a stream that is gone is settled; one that runs is not waited for.
    pub(super) async fn settled(&self, key: &Key) {
        let turn = {
            let state = self.lock();
            let entry = state.under_way.get(key);
            entry
                .filter(|entry| entry.is_left.load(Ordering::Acquire))
                .map(|entry| Arc::clone(&entry.turn))
        };
        if let Some(turn) = turn {
            drop(turn.lock().await);
        }
    }

    /// Broken uploads whose time is over, each with the right to touch it.
    pub(super) fn expired(&self, now: Timestamp) -> Vec<Ticket> {
        let state = self.lock();
        let due = state
            .under_way
            .iter()
            .filter(|(_, entry)| entry.waits() && entry.expires <= now);
        due.map(|(key, entry)| Ticket {
            shelf: self.clone(),
            key: key.clone(),
            epoch: entry.epoch,
            fence: entry.fence.clone(),
            is_left: Arc::default(),
            fate: Fate::Unchanged,
            turn: Arc::clone(&entry.turn),
        })
        .collect()
    }

    /// Whether the upload is under way.
    pub(super) fn knows(&self, key: &str) -> bool {
        self.lock()
            .under_way
            .keys()
            .any(|known| known.as_str() == key)
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self::new(0, Timestamp::default())
    }
}

impl Entry {
    fn new(reserved: u64, expires: Timestamp) -> Self {
        Self {
            epoch: 0,
            fence: CancellationToken::new(),
            turn: Arc::default(),
            is_left: Arc::default(),
            reserved,
            expires,
        }
    }

    /// Whether it is broken and nobody here writes or settles it: whoever does holds the turn.
    fn waits(&self) -> bool {
        self.expires != Timestamp::default() && self.turn.try_lock().is_ok()
    }
}

/// What a stream leaves.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// What was there before it.
    Unchanged,
    /// Something to go on from, until then.
    Kept(Timestamp),
    /// Nothing.
    Gone,
}

/// The place of one stream in an upload's succession. Dropping it leaves the upload to wait until it expires; one that has
/// nothing to go on from is forgotten.
#[derive(Debug)]
pub(super) struct Ticket {
    shelf: Shelf,
    key: Key,
    epoch: u64,
    fence: CancellationToken,
    is_left: Arc<AtomicBool>,
    fate: Fate,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Ticket {
    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    pub(super) const fn fence(&self) -> &CancellationToken {
        &self.fence
    }

    /// Set when the stream is gone.
    pub(super) fn is_left(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_left)
    }

    /// Waits until nobody else touches what is staged.
    ///
    /// # Errors
    /// Another stream took the upload over meanwhile.
    pub(super) async fn turn(&self) -> Result<OwnedMutexGuard<()>, Error> {
        tokio::select! {
            biased;
            () = self.fence.cancelled() => Err(Error::Superseded),
            guard = Arc::clone(&self.turn).lock_owned() => Ok(guard),
        }
    }

    /// There is something to go on from until `ttl` from now.
    pub(super) fn keep(&mut self, ttl: Duration) {
        let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        self.keep_until(Timestamp(Timestamp::now().0.saturating_add(ttl)));
    }

    /// There is something to go on from until then.
    pub(super) const fn keep_until(&mut self, expires: Timestamp) {
        self.fate = Fate::Kept(expires);
    }

    /// There is nothing to go on from.
    pub(super) const fn forget(&mut self) {
        self.fate = Fate::Gone;
    }

    /// The upload became a file of `bytes`.
    pub(super) fn stored(&mut self, bytes: u64) {
        self.forget();
        self.shelf.stored(bytes);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shelf.lock();
        let Some(entry) = state.under_way.get_mut(&self.key) else {
            return;
        };
        match self.fate {
            Fate::Unchanged => {}
            Fate::Kept(expires) => entry.expires = expires,
            Fate::Gone => entry.expires = Timestamp::default(),
        }
        // A successor decides for itself.
        if entry.epoch == self.epoch && entry.expires == Timestamp::default() {
            let reserved = entry.reserved;
            state.reserved = state.reserved.saturating_sub(reserved);
            state.under_way.remove(&self.key);
        }
    }
}
