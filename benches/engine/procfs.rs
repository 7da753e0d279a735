//! What the kernel counted for this process, and what a directory holds.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

/// CPU time of all threads so far, those that ended too; fine where threads still live.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

/// Bytes that this process had written to the disk.
pub(crate) fn written_bytes() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

/// `VmRSS` or `VmHWM`.
pub(crate) fn memory_mib(name: &str) -> f64 {
    field("/proc/self/status", name) as f64 / 1024.0
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// Blocks below the directory, as bytes: what the disk gave, not what the files' lengths say.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let of_entry = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        // Removed meanwhile.
        Err(_) => 0,
    };
    entries.flatten().map(of_entry).sum()
}

/// Waits until this process neither writes nor works for half a second, half a minute at most.
pub(crate) fn settle() {
    let start = Instant::now();
    let mut before = (written_bytes(), cpu_time());
    while start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(500));
        let now = (written_bytes(), cpu_time());
        if now.0 == before.0 && now.1 - before.1 < Duration::from_millis(10) {
            return;
        }
        before = now;
    }
}
