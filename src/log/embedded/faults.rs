//! Faults for tests: a disk that fails, is full or is slow, without a disk that is.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Scripted misbehaviour of the storage below an [`super::Embedded`]. Cheap to clone; all clones are one script. Production
/// code opens without it.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    script: Mutex<Script>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Script {
    commits: VecDeque<Option<io::ErrorKind>>,
    answer: Option<io::ErrorKind>,
    free_bytes: Option<u64>,
    is_held: bool,
    waiting: bool,
}

impl Faults {
    /// Lets `good` more commits of appends succeed and fails the one after them as if its flush had returned `kind`; what it
    /// held is not stored. [`io::ErrorKind::StorageFull`] is a disk that ran full during the write.
    pub fn fail_commit_after(&self, good: usize, kind: io::ErrorKind) {
        let mut script = self.script();
        script.commits = std::iter::repeat_n(None, good).collect();
        script.commits.push_back(Some(kind));
    }

    /// Stores the next commit of appends, but answers it as if its flush had returned `kind`.
    pub fn fail_after_next_commit(&self, kind: io::ErrorKind) {
        self.script().answer = Some(kind);
    }

    /// Makes the disk look as if it had this many free bytes; `None` looks at the disk again.
    pub fn set_free_bytes(&self, free_bytes: Option<u64>) {
        self.script().free_bytes = free_bytes;
    }

    /// Makes the next commit wait until [`Faults::release`], so that appends pile up behind it.
    pub fn hold(&self) {
        self.script().is_held = true;
    }

    /// Blocks until a commit waits at [`Faults::hold`].
    pub fn wait_until_held(&self) {
        let mut script = self.script();
        while !script.waiting {
            script = self.wait(script);
        }
    }

    /// Lets commits go on.
    pub fn release(&self) {
        self.script().is_held = false;
        self.0.changed.notify_all();
    }

    /// What happens to the commit that is about to be written.
    pub(super) fn before_commit(&self) -> io::Result<()> {
        let mut script = self.script();
        while script.is_held {
            script.waiting = true;
            self.0.changed.notify_all();
            script = self.wait(script);
        }
        script.waiting = false;
        match script.commits.pop_front().flatten() {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    /// What happens to the answer of the commit that was just written.
    pub(super) fn after_commit(&self) -> io::Result<()> {
        match self.script().answer.take() {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.script().free_bytes
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, script: MutexGuard<'a, Script>) -> MutexGuard<'a, Script> {
        self.0
            .changed
            .wait(script)
            .unwrap_or_else(PoisonError::into_inner)
    }
}
