//! The door of a data directory: a Unix socket in it, open to whoever may use the directory, by which a running instance gives
//! backups.
//!
//! ```text
//!  client ── "backup 1\n" ──▶ instance
//!  client ◀── frames: 1 kind │ 4 length │ content
//!             'M' manifest   'D' some of the archive   'E' summary, the end   'F' why it failed, the end
//! ```

use std::{
    fs::{self, File, Permissions},
    io::{self, BufRead as _, BufReader, Read as _, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::UnixListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Contents, Error, Manifest, Summary, write};
use crate::log::export::Exporter;

/// The socket's name in the directory.
const NAME: &str = "control.sock";
const REQUEST: &str = "backup 1\n";
/// Backups given at the same time; further ones are refused.
const BACKUPS: usize = 4;
/// How long a client may take to ask.
const ASKING: Duration = Duration::from_secs(5);
/// How long a client may take nothing. What it holds back cannot be dropped meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long backups may take to tell that the instance stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of a frame.
const FRAME_BYTES: usize = 256 * 1024;
/// Bytes of an address of a Unix socket.
const PATH_BYTES: usize = 107;

const MANIFEST: u8 = b'M';
const DATA: u8 = b'D';
const END: u8 = b'E';
const FAILED: u8 = b'F';

/// The socket's address: by way of the open directory where the path is longer than a socket's may be.
struct Address {
    path: PathBuf,
    _dir: Option<File>,
}

impl Address {
    fn of(dir: &Path) -> io::Result<Self> {
        use std::os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _};

        let path = dir.join(NAME);
        if path.as_os_str().as_bytes().len() <= PATH_BYTES {
            return Ok(Self { path, _dir: None });
        }
        let opened = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", opened.as_raw_fd()));
        Ok(Self {
            path,
            _dir: Some(opened),
        })
    }
}

/// An open door. To be closed before the log is.
pub struct Control {
    dir: PathBuf,
    closing: CancellationToken,
    sessions: TaskTracker,
}

/// What the sessions share.
struct Giving {
    exporter: Arc<dyn Exporter>,
    files: Option<PathBuf>,
    permits: Arc<Semaphore>,
    closing: CancellationToken,
    sessions: TaskTracker,
}

impl Control {
    /// Opens the door of `dir`, whose log `exporter` reads and in which `files` are, if they are in a directory. The caller
    /// holds the directory, so a socket that is there is nobody's. To be called in a runtime.
    ///
    /// # Errors
    /// The file system has no sockets, or no room for one.
    pub fn open(
        dir: &Path,
        exporter: Arc<dyn Exporter>,
        files: Option<PathBuf>,
    ) -> io::Result<Self> {
        let listener = listen(dir)?;
        let control = Self {
            dir: dir.into(),
            closing: CancellationToken::new(),
            sessions: TaskTracker::new(),
        };
        let giving = Arc::new(Giving {
            exporter,
            files,
            permits: Arc::new(Semaphore::new(BACKUPS)),
            closing: control.closing.clone(),
            sessions: control.sessions.clone(),
        });
        control.sessions.spawn(giving.accept(listener));
        Ok(control)
    }

    /// Ends every backup and removes the socket.
    pub async fn close(&self) {
        self.closing.cancel();
        self.sessions.close();
        self.sessions.wait().await;
        if let Ok(address) = Address::of(&self.dir) {
            // One that stays is replaced by the next instance.
            let _ = fs::remove_file(address.path);
        }
    }
}

/// A listener that nobody but the owner can reach, at any moment.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let address = Address::of(dir)?;
    match fs::remove_file(&address.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&address.path)?)?;
    // Before the first connection can be made.
    fs::set_permissions(&address.path, Permissions::from_mode(0o600))?;
    socket.listen(i32::try_from(BACKUPS).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}

impl Giving {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            let stream = accepted.and_then(|(stream, _)| stream.into_std());
            let prepared = stream.and_then(|stream| {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(ASKING))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok((stream.try_clone()?, stream))
            });
            match prepared {
                Ok((handle, stream)) => self.clone().begin(handle, stream),
                Err(error) => {
                    tracing::warn!(%error, "a backup could not begin");
                    // There may be no file descriptors; a while later there may be.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Gives a backup on a thread of its own. One that does not end when the instance stops is cut.
    fn begin(self: Arc<Self>, handle: UnixStream, stream: UnixStream) {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            let text = format!("{BACKUPS} backups are under way already");
            // It fits into the socket; a client that is gone does not want it.
            let _ = frame(&mut &stream, FAILED, text.as_bytes());
            return;
        };
        let (closing, sessions) = (self.closing.clone(), self.sessions.clone());
        let work = tokio::task::spawn_blocking(move || self.session(stream, permit));
        sessions.spawn(async move {
            tokio::pin!(work);
            tokio::select! {
                _ = &mut work => return,
                () = closing.cancelled() => {}
            }
            if tokio::time::timeout(LAST_WORDS, &mut work).await.is_err() {
                // It is gone when it was shut down by the other side.
                let _ = handle.shutdown(Shutdown::Both);
                let _ = work.await;
            }
        });
    }

    fn session(&self, stream: UnixStream, _permit: OwnedSemaphorePermit) {
        match self.give(&stream) {
            Ok(summary) => {
                let Summary {
                    records,
                    files,
                    bytes,
                    ..
                } = summary;
                tracing::info!(records, files, bytes, "a backup was taken");
            }
            Err(error) => {
                tracing::warn!(%error, "a backup failed");
                let text = match error {
                    Error::Refused(text) => text,
                    error => error.to_string(),
                };
                // A client that is gone does not want it.
                let _ = frame(&mut &stream, FAILED, text.as_bytes());
            }
        }
    }

    fn give(&self, stream: &UnixStream) -> Result<Summary, Error> {
        let mut request = String::new();
        let asked = BufReader::new(stream.take(64)).read_line(&mut request);
        asked.map_err(Error::Archive)?;
        if request != REQUEST {
            return Err(Error::Refused(
                "it does not know this request; use the `weir` of its version".into(),
            ));
        }
        let contents = Contents {
            log: self.exporter.begin()?,
            files: self.files.clone(),
        };
        let manifest = contents.manifest()?;
        tell(&mut &*stream, MANIFEST, &manifest).map_err(Error::Archive)?;
        let frames = Frames {
            stream,
            closing: &self.closing,
            buffer: Vec::with_capacity(FRAME_BYTES),
        };
        let (summary, _) = write(&contents, &manifest, frames)?;
        tell(&mut &*stream, END, &summary).map_err(Error::Archive)?;
        Ok(summary)
    }
}

fn tell(out: &mut impl Write, kind: u8, content: &impl Serialize) -> io::Result<()> {
    frame(out, kind, &serde_json::to_vec(content)?)
}

fn frame(out: &mut impl Write, kind: u8, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut head = [kind, 0, 0, 0, 0];
    head[1..].copy_from_slice(&length.to_be_bytes());
    out.write_all(&head)?;
    out.write_all(content)
}

/// The archive on its way to the client.
struct Frames<'a> {
    stream: &'a UnixStream,
    closing: &'a CancellationToken,
    buffer: Vec<u8>,
}

impl Write for Frames<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == FRAME_BYTES {
            self.flush()?;
        }
        let taken = buf.len().min(FRAME_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&buf[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closing.is_cancelled() {
            return Err(io::Error::other("the instance stops"));
        }
        if !self.buffer.is_empty() {
            frame(&mut self.stream, DATA, &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// What became of asking a directory's instance for a backup.
#[derive(Debug)]
pub enum Fetched {
    /// The whole archive was written, which holds this.
    Whole(Summary),
    /// No instance listens in the directory.
    Nobody,
}

/// Asks the instance that has `dir` open for a backup and writes it to `out`; `begun` hears what to expect. Blocks.
///
/// # Errors
/// [`Error::Refused`] and [`Error::Gone`] by the instance, or what `out` reports; what was written is then no archive.
pub fn fetch(
    dir: &Path,
    begun: impl FnOnce(&Manifest),
    mut out: impl Write,
) -> Result<Fetched, Error> {
    let connected = Address::of(dir).and_then(|address| UnixStream::connect(&address.path));
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => match error.kind() {
            // Nothing there, or what a crash left.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                return Ok(Fetched::Nobody);
            }
            _ => return Err(Error::file(dir.join(NAME))(error)),
        },
    };
    (&stream)
        .write_all(REQUEST.as_bytes())
        .map_err(|_| Error::Gone)?;
    let mut incoming = BufReader::with_capacity(FRAME_BYTES, &stream);
    let mut begun = Some(begun);
    let mut content = Vec::new();
    loop {
        let kind = next(&mut incoming, &mut content).map_err(|_| Error::Gone)?;
        match kind {
            MANIFEST => {
                let manifest = serde_json::from_slice(&content).map_err(|_| foreign())?;
                if let Some(begun) = begun.take() {
                    begun(&manifest);
                }
            }
            DATA => out.write_all(&content).map_err(Error::Archive)?,
            END => {
                let summary = serde_json::from_slice(&content).map_err(|_| foreign())?;
                out.flush().map_err(Error::Archive)?;
                return Ok(Fetched::Whole(summary));
            }
            FAILED => {
                return Err(Error::Refused(
                    String::from_utf8_lossy(&content).into_owned(),
                ));
            }
            _ => return Err(foreign()),
        }
    }
}

/// Reads a frame; returns its kind.
fn next(from: &mut impl io::Read, content: &mut Vec<u8>) -> io::Result<u8> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    content.resize(length, 0);
    from.read_exact(content)?;
    Ok(kind)
}

fn foreign() -> Error {
    Error::Refused("it does not answer as expected; use the `weir` of its version".into())
}
