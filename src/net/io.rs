//! The write-once socket: writes gather in memory and leave together.
//!
//! h2 hands every DATA frame of 256 bytes or more to the socket by itself, which would be one system call each. Here
//! `poll_write` appends to a bounded buffer and `poll_flush` does nothing; the connection's task calls
//! [`Flusher::poll_drain`] once after each poll, so also before it sleeps. A system call costs as much as a thousand copies
//! of a small message.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

/// Bytes gathered before a write has to wait for the socket: the bound of one connection's output in user space.
const GATHER_BYTES: usize = 256 * 1024;
/// A drained buffer that grew beyond this is given back, so that idle connections hold little.
const KEEP_BYTES: usize = 64 * 1024;

/// The socket as hyper sees it.
pub(super) struct WriteOnce(Arc<Shared>);

/// The other end of the buffer, for the task that polls the connection.
pub(super) struct Flusher(Arc<Shared>);

struct Shared {
    socket: Mutex<Socket>,
    bytes_read: AtomicU64,
    link: Link,
}

/// A connection as its streams see it; in every request's extensions. A stream that goes away on a link that stands was
/// cancelled by its client.
#[derive(Debug, Clone, Default)]
pub struct Link(Arc<Standing>);

#[derive(Debug, Default)]
struct Standing {
    is_broken: AtomicBool,
    leaving: CancellationToken,
}

impl Link {
    /// Whether the connection is gone: the peer closed it, it failed, or this side gave it up.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.is_broken.load(Ordering::Acquire)
    }

    pub(super) fn broke(&self) {
        self.0.is_broken.store(true, Ordering::Release);
    }

    /// Asks the connection to go (GOAWAY): its streams go on, further ones need another connection.
    pub fn leave(&self) {
        self.0.leaving.cancel();
    }

    /// Resolves when somebody asked it to go.
    pub(super) async fn leaving(&self) {
        self.0.leaving.cancelled().await;
    }
}

struct Socket {
    stream: TcpStream,
    gathered: Vec<u8>,
    written: usize,
}

/// Wraps `stream`.
pub(super) fn write_once(stream: TcpStream) -> (WriteOnce, Flusher) {
    let shared = Arc::new(Shared {
        socket: Mutex::new(Socket {
            stream,
            gathered: Vec::new(),
            written: 0,
        }),
        bytes_read: AtomicU64::new(0),
        link: Link::default(),
    });
    (WriteOnce(Arc::clone(&shared)), Flusher(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Socket {
    /// Writes what is gathered; ready when nothing is left.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.written = 0;
        if self.gathered.capacity() > KEEP_BYTES {
            self.gathered = Vec::new();
        } else {
            self.gathered.clear();
        }
        Poll::Ready(Ok(()))
    }
}

impl Flusher {
    /// Writes what is gathered; ready when nothing is left. Call it after each poll of the connection.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.lock();
        if socket.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        socket.poll_drain(cx)
    }

    /// The connection, for those who outlive a poll of it.
    pub(super) fn link(&self) -> Link {
        self.0.link.clone()
    }

    /// Bytes the peer has sent so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Ordering::Relaxed)
    }
}

impl AsyncRead for WriteOnce {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut self.0.lock().stream).poll_read(cx, buffer));
        let read = buffer.filled().len() - before;
        // Nothing read is the end. Streams that go because of it are polled after this.
        if outcome.is_err() || (read == 0 && buffer.remaining() > 0) {
            self.0.link.broke();
        }
        outcome?;
        self.0.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteOnce {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.0.lock();
        if socket.gathered.len() + bytes.len() > GATHER_BYTES && !socket.gathered.is_empty() {
            ready!(socket.poll_drain(cx))?;
        }
        socket.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.lock();
        ready!(socket.poll_drain(cx))?;
        Pin::new(&mut socket.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}
