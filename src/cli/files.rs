//! `weir upload`, `weir download` and `weir files`.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Failure, Persistence, Target,
    failure::explain,
    format::{is_unsafe, plain},
    notices,
};
use crate::{
    client::{Client, FileUpload, Transfer, TransferError},
    proto::weir::v1::File,
};

const UPLOAD_EXAMPLES: &str = "\
Examples:
  weir upload report.pdf
  weir upload backup.tar --name nightly.tar --type application/x-tar
  weir upload video.mp4 --upload-id holiday-1

Prints the file's id and the URL that HTTP serves it at. An upload that breaks goes on by itself; one that was ended goes \
on when the same command runs again, and a complete one gives the same file. The checksum is compared at the end.";

const DOWNLOAD_EXAMPLES: &str = "\
Examples:
  weir download file-0198c5d2a7b37e1f9c3d5b6a70819203
  weir download file-0198c5d2a7b37e1f9c3d5b6a70819203 -o report.pdf

Without -o the file gets the name it was uploaded under, in the current directory. Until it is complete and its checksum \
is right it is called ID.part; the same command goes on from there.";

const FILES_EXAMPLES: &str = "\
Examples:
  weir files list
  weir files list --limit 1000
  weir files delete file-0198c5d2a7b37e1f9c3d5b6a70819203

A line holds id, time, size in bytes, media type and name, separated by tabs; the newest file comes first.";

/// Store a file.
#[derive(Debug, Args)]
#[command(after_help = UPLOAD_EXAMPLES)]
pub(super) struct UploadArgs {
    /// The file.
    file: PathBuf,
    /// Its name on the server [default: the file's own].
    #[arg(long)]
    name: Option<String>,
    /// Its media type [default: by the name's ending].
    #[arg(long = "type", value_name = "TYPE")]
    content_type: Option<String>,
    /// Names the upload [default: made of name, type and content].
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    upload_id: String,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

/// Fetch a file.
#[derive(Debug, Args)]
#[command(after_help = DOWNLOAD_EXAMPLES)]
pub(super) struct DownloadArgs {
    /// The file's id.
    id: String,
    /// Where to put it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

/// List or delete files.
#[derive(Debug, Args)]
#[command(after_help = FILES_EXAMPLES)]
pub(super) struct FilesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The stored files, newest first.
    List {
        /// Files at most.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        server: Target,
    },
    /// Delete a file.
    Delete {
        /// The file's id.
        id: String,
        #[command(flatten)]
        server: Target,
    },
}

pub(super) async fn upload(args: UploadArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let own_name = args.file.file_name().map(|name| name.to_string_lossy());
    let name = match args.name {
        Some(name) => name,
        None => own_name
            .ok_or_else(|| Failure::usage(format!("{} is no file", args.file.display())))?
            .into_owned(),
    };
    let upload = FileUpload {
        content_type: args.content_type.unwrap_or_else(|| {
            let guess = mime_guess::from_path(&name).first_raw();
            guess.unwrap_or_default().to_owned()
        }),
        name,
        upload_id: args.upload_id,
        path: args.file,
    };
    let bar = Bar::new(&args.server.addr);
    let stored = client
        .upload_file(&upload, |event| bar.show(&event))
        .await
        .map_err(|error| failed(&args.server.addr, &upload.path, error))?;
    bar.clear();
    Ok(writeln!(
        io::stdout(),
        "{}\t{}",
        stored.file_id,
        stored.download_url
    )?)
}

pub(super) async fn download(args: DownloadArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let addr = &args.server.addr;
    let target = match args.output {
        Some(output) => output,
        None => {
            let file = client.file(&args.id).await;
            let file = file.map_err(|status| Failure::status(addr, &status))?;
            local_name(&file).into()
        }
    };
    if !args.force && target.exists() {
        let text = format!("{} exists; --force replaces it", target.display());
        return Err(Failure::failed(text));
    }
    let partial = partial(&args.id, &target)?;
    let bar = Bar::new(addr);
    client
        .download_file(&args.id, &partial, |event| bar.show(&event))
        .await
        .map_err(|error| {
            forget_empty(&partial);
            failed(addr, &partial, error)
        })?;
    bar.clear();
    std::fs::rename(&partial, &target).map_err(|error| local(&target, &error))?;
    Ok(writeln!(io::stdout(), "{}", target.display())?)
}

/// A download that brought nothing leaves nothing.
fn forget_empty(partial: &Path) {
    if std::fs::metadata(partial).is_ok_and(|there| there.len() == 0) {
        let _ = std::fs::remove_file(partial);
    }
}

/// Where a download is until it is complete: named by the id, so that what is found there is of this file.
fn partial(id: &str, target: &Path) -> Result<PathBuf, Failure> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match id.chars().all(is_plain) && id.len() <= 64 && !id.is_empty() {
        true => Ok(target.with_file_name(format!("{id}.part"))),
        false => Err(Failure::usage(format!("`{}` is no file id", plain(id)))),
    }
}

/// A name for the file in the current directory, whatever it is called.
fn local_name(file: &File) -> String {
    let name = file.filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let name = name.replace(is_unsafe, "_");
    match name.trim() {
        "" | "." | ".." => file.file_id.replace(['/', '\\'], "_"),
        _ => name,
    }
}

pub(super) async fn files(args: FilesArgs) -> Result<(), Failure> {
    match args.command {
        Command::List { limit, server } => list(&server.connect().await?, &server, limit).await,
        Command::Delete { id, server } => {
            let deleted = server.connect().await?.delete_file(&id).await;
            deleted.map_err(|status| Failure::status(&server.addr, &status))
        }
    }
}

async fn list(client: &Client, server: &Target, limit: usize) -> Result<(), Failure> {
    let (mut left, mut token) = (limit, String::new());
    while left > 0 {
        let size = i32::try_from(left.min(1000)).unwrap_or(1000);
        let page = client.list_files(size, &token).await;
        let page = page.map_err(|status| Failure::status(&server.addr, &status))?;
        left = left.saturating_sub(page.files.len().max(1));
        for file in &page.files {
            writeln!(io::stdout(), "{}", line(file))?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    Ok(())
}

fn line(file: &File) -> String {
    let created = file.created.map(|time| prost_types::Timestamp {
        seconds: time.seconds,
        nanos: 0,
    });
    format!(
        "{}\t{}\t{}\t{}\t{}",
        file.file_id,
        created.map_or_else(|| "-".to_owned(), |time| time.to_string()),
        file.size,
        plain(&file.content_type),
        plain(&file.filename)
    )
}

fn failed(addr: &str, path: &Path, error: TransferError) -> Failure {
    match error {
        TransferError::Io(error) => local(path, &error),
        TransferError::Status(status) => Failure::status(addr, &status),
        TransferError::Checksum => Failure::failed(error.to_string()),
    }
}

fn local(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

/// A progress bar on stderr; nothing where stderr is no terminal.
struct Bar {
    bar: ProgressBar,
    addr: String,
}

impl Bar {
    fn new(addr: &str) -> Self {
        let bar = ProgressBar::new(0);
        let form = "{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            addr: addr.to_owned(),
        }
    }

    fn show(&self, event: &Transfer<'_>) {
        match event {
            Transfer::Progress { done, total } => {
                if self.bar.length() == Some(0) {
                    // What is there already says nothing about the speed.
                    self.bar.set_length(*total);
                    self.bar.set_position(*done);
                    self.bar.reset_eta();
                }
                self.bar.set_position(*done);
            }
            Transfer::Reconnecting { delay, cause } => self.bar.suspend(|| {
                notices::say(format!(
                    "{}; next attempt in {} ms",
                    explain(&self.addr, cause),
                    delay.as_millis()
                ));
            }),
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_name_stays_in_the_directory() {
        for (name, expected) in [
            ("report.pdf", "report.pdf"),
            ("../../etc/passwd", "passwd"),
            ("C:\\temp\\x.txt", "x.txt"),
            ("..", "file-1"),
            ("a/", "file-1"),
            (" ", "file-1"),
            ("a\u{202e}txt.exe", "a_txt.exe"),
        ] {
            let file = File {
                file_id: "file-1".into(),
                filename: name.into(),
                ..File::default()
            };
            assert_eq!(local_name(&file), expected, "{name}");
        }
    }

    #[test]
    fn a_partial_file_is_named_by_its_id() {
        let of = |id, target| partial(id, Path::new(target));
        assert_eq!(
            of("file-1", "dir/a").unwrap(),
            Path::new("dir").join("file-1.part")
        );
        for id in ["", "../x", "a/b", "a.b"] {
            assert!(of(id, "a").is_err(), "{id}");
        }
    }
}
