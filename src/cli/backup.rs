//! `weir backup` and `weir restore`: the embedded log and its files as an archive, and back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::{
    Failure,
    directory::{Directory, blocking},
    notices,
};
use crate::{
    backup::{self, Contents, Error, Fetched, Summary},
    config::Config,
    log::{OpenError, embedded::open_export},
};

/// What is read or written at once.
const BUFFER_BYTES: usize = 1024 * 1024;

const BACKUP_EXAMPLES: &str = "\
Examples:
  weir backup --dir ./data --output weir.tar
  weir backup --dir ./data | zstd > weir.tar.zst
  weir backup --config weir.toml --output /backups/weir.tar
  docker compose exec -T weir weir backup --config /etc/weir/weir.toml > weir.tar

The server may run or not. The archive holds everything that was acknowledged before it began, and the files if they are in \
the data directory. FILE has its name when the archive is whole and durable; one that is there is replaced then.

Who may read the data directory may do this; the server is asked through a socket in it.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  weir restore --dir ./data weir.tar
  zstd -dc weir.tar.zst | weir restore --dir ./data -
  weir serve --set log.dir=./data

The directory must not exist or be empty. The log comes back with the same sequences, times and idempotency keys, so \
clients resume from their positions. An archive that is damaged or incomplete is refused and leaves nothing; after a restore \
that was killed the server does not start there until it is run again.";

/// Write the log and its files into an archive, while the server runs.
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(super) struct BackupArgs {
    /// Where the archive goes; `-` is stdout.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    directory: Directory,
}

/// Make a data directory from an archive.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub(super) struct RestoreArgs {
    /// The archive; `-` is stdin.
    #[arg(value_name = "FILE")]
    archive: PathBuf,
    #[command(flatten)]
    directory: Directory,
}

pub(super) async fn backup(args: BackupArgs) -> Result<(), Failure> {
    let config = args.directory.resolve()?;
    let started = Instant::now();
    let summary = match is_standard(&args.output) {
        true => {
            if io::stdout().is_terminal() {
                return Err(Failure::usage(
                    "the archive is not for a terminal: use --output FILE, or redirect it",
                ));
            }
            blocking(move || Ok(take(&config, io::stdout())?.0)).await?
        }
        false => {
            let partial = Partial::of(&args.output)?;
            let file = partial.create()?;
            let summary = blocking(move || {
                let (summary, file) = take(&config, file)?;
                let synced = file.sync_all();
                synced.map_err(|error| Failure::failed(error.to_string()))?;
                Ok(summary)
            })
            .await?;
            partial.finish()?;
            summary
        }
    };
    say("backed up", &summary, started);
    Ok(())
}

pub(super) async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let config = args.directory.resolve()?;
    let started = Instant::now();
    let dir = config.log.dir;
    let restored = blocking(move || {
        let (from, bytes): (Box<dyn Read>, _) = match is_standard(&args.archive) {
            true => (Box::new(io::stdin().lock()), None),
            false => {
                let file = File::open(&args.archive);
                let file = file.map_err(|error| local(&args.archive, &error))?;
                let bytes = file.metadata().map(|meta| meta.len()).ok();
                (Box::new(file), bytes)
            }
        };
        let bar = bar();
        if let Some(bytes) = bytes {
            bar.set_length(bytes);
        }
        let from = BufReader::with_capacity(BUFFER_BYTES, bar.wrap_read(from));
        let restored = backup::restore(&dir, from);
        bar.finish_and_clear();
        restored.map_err(|error| failed(&error))
    })
    .await?;
    say("restored", &restored.summary, started);
    Ok(())
}

/// Writes the backup of the directory to `target`, from whoever has it open, else from the directory itself.
fn take<W: Write>(config: &Config, mut target: W) -> Result<(Summary, W), Failure> {
    let dir = &config.log.dir;
    let bar = bar();
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, bar.wrap_write(&mut target));
    let expect = |manifest: &backup::Manifest| {
        bar.set_length(manifest.log_bytes + manifest.file_bytes);
    };
    let fetched = backup::fetch(dir, expect, &mut out).map_err(|error| failed(&error))?;
    let summary = match fetched {
        Fetched::Whole(summary) => summary,
        Fetched::Nobody => {
            let mut read = || {
                let contents = Contents {
                    log: open_export(dir)?,
                    files: backup::files_dir(config),
                };
                let manifest = contents.manifest()?;
                expect(&manifest);
                Ok(backup::write(&contents, &manifest, &mut out)?.0)
            };
            read().map_err(|error| failed(&error))?
        }
    };
    bar.finish_and_clear();
    // Whoever wrote the archive flushed it.
    drop(out);
    Ok((summary, target))
}

fn failed(error: &Error) -> Failure {
    match error {
        Error::Gone | Error::Refused(_) => {
            Failure::unavailable(format!("{error}; try again later"))
        }
        Error::Open(OpenError::InUse { path }) => Failure::unavailable(format!(
            "the data directory {} is in use by a process that gives no backup now; try again when it has started or stopped",
            path.display()
        )),
        // Also when the reader of the output went away: it has no backup.
        _ => Failure::failed(error.to_string()),
    }
}

fn local(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file that gets its name when it is whole. Dropped before, it is removed.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    is_done: bool,
}

impl Partial {
    fn of(target: &Path) -> Result<Self, Failure> {
        let name = target.file_name().map(|name| name.to_string_lossy());
        let name =
            name.ok_or_else(|| Failure::usage(format!("{} is no file", target.display())))?;
        // Two backups into one file do not meet.
        let path = target.with_file_name(format!("{name}.{}.part", std::process::id()));
        Ok(Self {
            path,
            target: target.into(),
            is_done: false,
        })
    }

    /// The file, for its owner only: it holds everything.
    fn create(&self) -> Result<File, Failure> {
        let mut options = OpenOptions::new();
        let opened = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path);
        opened.map_err(|error| local(&self.path, &error))
    }

    /// Gives it its name, durably. What it holds has to be durable.
    fn finish(mut self) -> Result<(), Failure> {
        let dir = match self.target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        fs::rename(&self.path, &self.target)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|error| local(&self.target, &error))?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A progress bar on stderr; nothing where stderr is no terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let form = "{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What was done, on stderr: stdout may be the archive.
fn say(done: &str, summary: &Summary, started: Instant) {
    let secs = started.elapsed().as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate for people"
    )]
    let rate = (summary.bytes as f64 / secs.max(0.001)) as u64;
    notices::say(format!(
        "{done} {} records of {} topics and {} files: {} in {secs:.1} s ({}/s); the log ends before {}",
        HumanCount(summary.records),
        HumanCount(summary.topics),
        HumanCount(summary.files),
        HumanBytes(summary.bytes),
        HumanBytes(rate),
        summary.tail,
    ));
}
