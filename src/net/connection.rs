//! One connection: hyper's protocol, all its streams and its socket, driven by one task.
//!
//! hyper spawns a task for every HTTP/2 stream. Here its executor hands those futures back to the connection, which polls
//! them in its own task: a publish to a thousand subscribers on eight connections wakes eight tasks, not a thousand, and
//! each of them leaves with one write.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::rt::Executor;
use hyper_util::{rt::TokioTimer, server::conn::auto};
use pin_project_lite::pin_project;

use super::{
    expiry::{Expiring, Expiry},
    io::Flusher,
    tasks::{Task, Tasks},
};

/// HTTP/2 frames at most this large are accepted: bulk uploads cost a third less than with the default of 16 KiB.
const MAX_FRAME_BYTES: u32 = 1024 * 1024;
/// Streams the server may reset on one connection while the peer still sends, before h2 gives the connection up. Ending
/// bidirectional streams by age resets them, so h2's default of 1024 would end long-lived connections.
const MAX_LOCAL_RESETS: usize = 16 * 1024;
/// Request headers at most.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// What h2 holds of one stream's output before the stream has to wait.
const MAX_SEND_BYTES: usize = 256 * 1024;

/// Rounds of polling before the connection gives way to the runtime's other tasks.
const ROUNDS: usize = 32;

/// What every connection is served with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Concurrent streams at most.
    pub max_streams: u32,
    /// Flow-control window of one stream's upload, in bytes.
    pub stream_window: u32,
    /// Flow-control window of all the connection's uploads, in bytes.
    pub connection_window: u32,
    /// How often a silent connection is pinged.
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
    /// How long it may take to speak.
    pub preface_timeout: Duration,
    /// Age at which it is asked to go; jittered by a tenth.
    pub max_age: Duration,
}

impl Settings {
    /// A hyper builder for HTTP/1.1 and HTTP/2 whose streams run where `streams` says.
    pub(super) fn builder(&self, streams: Streams) -> auto::Builder<Streams> {
        let mut builder = auto::Builder::new(streams);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.preface_timeout)
            .max_buf_size(MAX_HEADER_BYTES as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_concurrent_streams(self.max_streams)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .max_send_buf_size(MAX_SEND_BYTES);
        builder
    }
}

/// Collects the streams that hyper spawns, until the connection takes them over. It never holds more than the connection
/// accepted in one poll.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<Spawned>>);

#[derive(Default)]
struct Spawned {
    streams: Vec<Task>,
    /// Of the request that was served last: hyper calls the service, then spawns its stream.
    expiry: Option<Expiry>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Spawned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Task> {
        std::mem::take(&mut self.lock().streams)
    }

    /// The expiry of the stream that is spawned next.
    pub(super) fn serving(&self) -> Expiry {
        self.lock().expiry.insert(Expiry::default()).clone()
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let mut spawned = self.lock();
        let task: Task = match spawned.expiry.take() {
            Some(expiry) => Box::pin(Expiring::new(future, expiry)),
            None => Box::pin(future),
        };
        spawned.streams.push(task);
    }
}

pin_project! {
    /// A connection with its streams. Resolves when the peer is gone or everything is served; dropping it ends every stream.
    pub(super) struct Connection<C> {
        #[pin]
        protocol: C,
        spawned: Streams,
        tasks: Tasks,
        waker: Waker,
        flusher: Flusher,
        outcome: Option<io::Result<()>>,
    }
}

impl<C> Connection<C> {
    pub(super) fn new(protocol: C, spawned: Streams, flusher: Flusher) -> Self {
        let tasks = Tasks::new();
        Self {
            protocol,
            spawned,
            waker: tasks.protocol_waker(),
            tasks,
            flusher,
            outcome: None,
        }
    }

    /// The protocol, to ask it for a graceful end; it is polled next.
    pub(super) fn protocol(self: Pin<&mut Self>) -> Pin<&mut C> {
        let this = self.project();
        this.waker.wake_by_ref();
        this.protocol
    }

    /// Whether the peer sent less than an HTTP/2 preface.
    pub(super) fn is_silent(&self) -> bool {
        const PREFACE_BYTES: u64 = 24;
        self.flusher.bytes_read() < PREFACE_BYTES
    }
}

impl<C, E> Future for Connection<C>
where
    C: Future<Output = Result<(), E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // What the socket makes ready is the protocol's business: whoever waits to write is woken as the protocol.
        let mut protocol_cx = Context::from_waker(this.waker);
        for _ in 0..ROUNDS {
            let round = this.tasks.poll_round();
            if round.is_protocol_ready && this.outcome.is_none() {
                if let Poll::Ready(outcome) = this.protocol.as_mut().poll(&mut protocol_cx) {
                    *this.outcome = Some(outcome.map_err(io::Error::other));
                }
                for task in this.spawned.take() {
                    this.tasks.add(task);
                }
            }
            if round.is_idle || this.outcome.is_some() {
                break;
            }
        }
        let drained = this.flusher.poll_drain(&mut protocol_cx)?;
        if drained.is_ready()
            && let Some(outcome) = this.outcome.take()
        {
            return Poll::Ready(outcome);
        }
        if this.tasks.poll_sleep(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
