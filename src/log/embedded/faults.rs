//! Faults for tests: a disk that fails, is full, is slow or forgets, without a disk that does.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::disk::{Disk, DiskFile, System};

/// Scripted misbehaviour of the disk below an [`super::Embedded`]: a [`Disk`] over the real one. Cheap to clone; all clones are
/// one script. Production code opens without it.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    script: Mutex<Script>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Script {
    /// What becomes of the next writes of batches.
    commits: VecDeque<Option<io::ErrorKind>>,
    /// What the next flushes of journals answer.
    flushes: VecDeque<io::ErrorKind>,
    /// What every flush of a journal answers from now on.
    every_flush: Option<io::ErrorKind>,
    flush_delay: Duration,
    reads: Option<io::ErrorKind>,
    creations: Option<i32>,
    allocations: Option<io::ErrorKind>,
    free_bytes: Option<u64>,
    is_held: bool,
    waiting: bool,
}

impl Faults {
    /// Lets `good` more commits of appends succeed and fails the one after them as if writing it had returned `kind`; what it
    /// held is not stored. [`io::ErrorKind::StorageFull`] is a disk that ran full during the write.
    pub fn fail_commit_after(&self, good: usize, kind: io::ErrorKind) {
        let mut script = self.script();
        script.commits = std::iter::repeat_n(None, good).collect();
        script.commits.push_back(Some(kind));
    }

    /// Stores the next commit of appends, but answers its flush with `kind`.
    pub fn fail_after_next_commit(&self, kind: io::ErrorKind) {
        self.script().flushes.push_back(kind);
    }

    /// Answers every flush of a journal with `kind` from now on; `None` ends that.
    pub fn fail_flushes(&self, kind: Option<io::ErrorKind>) {
        self.script().every_flush = kind;
    }

    /// Makes every flush of a journal take this much longer.
    pub fn delay_flushes(&self, delay: Duration) {
        self.script().flush_delay = delay;
    }

    /// Answers every read with `kind` from now on; `None` ends that.
    pub fn fail_reads(&self, kind: Option<io::ErrorKind>) {
        self.script().reads = kind;
    }

    /// Answers every creation of a file with this error of the operating system from now on; `None` ends that.
    pub fn fail_creations(&self, errno: Option<i32>) {
        self.script().creations = errno;
    }

    /// Answers every setting aside of room with `kind` from now on; `None` ends that.
    pub fn fail_allocations(&self, kind: Option<io::ErrorKind>) {
        self.script().allocations = kind;
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

    /// What happens to the batch that is about to be written.
    fn before_commit(&self) -> io::Result<()> {
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

    /// What happens to the answer of a journal's flush that was just made.
    fn after_flush(&self) -> io::Result<()> {
        let mut script = self.script();
        let next = script.flushes.pop_front().or(script.every_flush);
        let delay = script.flush_delay;
        drop(script);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        next.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile {
            file,
            faults: self.clone(),
            is_journal: super::files::is_journal(path),
            has_batch: AtomicBool::new(false),
        })
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

impl Disk for Faults {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(errno) = self.script().creations {
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(self.file(path, System.create(path)?))
    }

    fn open(&self, path: &Path, writes: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, System.open(path, writes)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        System.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        System.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        System.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let scripted = self.script().free_bytes;
        scripted.or_else(|| System.free_bytes(dir))
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn DiskFile>,
    faults: Faults,
    is_journal: bool,
    /// A batch was written that is not flushed yet.
    has_batch: AtomicBool,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(kind) = self.faults.script().reads {
            return Err(kind.into());
        }
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // The first bytes of a journal are its header, no batch.
        if self.is_journal && offset > 0 {
            self.faults.before_commit()?;
            self.has_batch.store(true, Ordering::Release);
        }
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        if self.has_batch.swap(false, Ordering::AcqRel) {
            self.faults.after_flush()?;
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if let Some(kind) = self.faults.script().allocations {
            return Err(kind.into());
        }
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}
