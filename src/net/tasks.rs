//! A connection's tasks: its protocol and its streams, polled in turn by the connection's own task.
//!
//! Why not `FuturesUnordered`: a stream that sends wakes itself through h2, and after two such futures it gives way to the
//! runtime, which would cost a wake-up and a write for every second subscriber instead of one for all. And why wakers of our
//! own for the protocol too: a stream that sends wakes the protocol, which is polled next anyway; the runtime need not know.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;
use slab::Slab;

/// A stream's future, as hyper spawns it.
pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The tasks of one connection. It holds what the connection's stream limit allows.
pub(super) struct Tasks {
    streams: Slab<Stream>,
    protocol: Arc<TaskWaker>,
    ready: Arc<Ready>,
    /// Taken from `ready` for one round; kept for its allocation.
    round: Vec<usize>,
}

struct Stream {
    future: Task,
    state: Arc<TaskWaker>,
    /// `state` as a waker, made once.
    waker: Waker,
}

/// Who wants to be polled, and who polls them.
#[derive(Default)]
struct Ready {
    keys: Mutex<Vec<usize>>,
    /// Set while the connection's task sleeps; so a wake-up while it polls costs the runtime nothing.
    sleeper: AtomicWaker,
}

/// The protocol's key among the streams'.
const PROTOCOL: usize = usize::MAX;

struct TaskWaker {
    key: usize,
    is_queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            self.ready.lock().push(self.key);
            self.ready.sleeper.wake();
        }
    }
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    /// No streams; the protocol is ready.
    pub(super) fn new() -> Self {
        let ready = Arc::<Ready>::default();
        let protocol = Arc::new(TaskWaker {
            key: PROTOCOL,
            is_queued: AtomicBool::new(false),
            ready: Arc::clone(&ready),
        });
        protocol.wake_by_ref();
        Self {
            streams: Slab::new(),
            protocol,
            ready,
            round: Vec::new(),
        }
    }

    /// Wakes the protocol.
    pub(super) fn protocol_waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.protocol))
    }

    /// Adds a stream, ready to be polled.
    pub(super) fn add(&mut self, future: Task) {
        let entry = self.streams.vacant_entry();
        let state = Arc::new(TaskWaker {
            key: entry.key(),
            is_queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        state.wake_by_ref();
        entry.insert(Stream {
            future,
            waker: Waker::from(Arc::clone(&state)),
            state,
        });
    }

    /// Polls every stream that is ready, each once; returns whether the protocol is ready too, and whether anything was.
    pub(super) fn poll_round(&mut self) -> Round {
        std::mem::swap(&mut self.round, &mut *self.ready.lock());
        let mut polled = Round {
            is_idle: self.round.is_empty(),
            is_protocol_ready: false,
        };
        let mut round = std::mem::take(&mut self.round);
        for key in round.drain(..) {
            if key == PROTOCOL {
                self.protocol.is_queued.store(false, Ordering::Release);
                polled.is_protocol_ready = true;
            } else {
                self.poll_stream(key);
            }
        }
        self.round = round;
        polled
    }

    fn poll_stream(&mut self, key: usize) {
        // A stream that ended may have been woken once more; its place may be another's by now, who does not mind.
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.state.is_queued.store(false, Ordering::Release);
        let mut cx = Context::from_waker(&stream.waker);
        let polled = stream.future.as_mut().poll(&mut cx);
        if polled.is_ready() {
            self.streams.remove(key);
        }
    }

    /// Lets the connection's task sleep: pending once `cx` will be woken by whatever becomes ready.
    pub(super) fn poll_sleep(&self, cx: &Context<'_>) -> Poll<()> {
        self.ready.sleeper.register(cx.waker());
        match self.ready.lock().is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}

/// What a round of polling found.
pub(super) struct Round {
    /// Nothing was ready.
    pub(super) is_idle: bool,
    /// The protocol has to be polled.
    pub(super) is_protocol_ready: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A future that counts its polls and is done after `polls` of them, waking itself in between.
    fn counted(polls: usize, count: &Arc<AtomicUsize>) -> Task {
        let count = Arc::clone(count);
        let mut left = polls;
        Box::pin(std::future::poll_fn(move |cx| {
            count.fetch_add(1, Ordering::Relaxed);
            left -= 1;
            if left == 0 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }

    #[test]
    fn a_round_polls_each_ready_stream_once() {
        let count = Arc::default();
        let mut tasks = Tasks::new();
        for _ in 0..100 {
            tasks.add(counted(2, &count));
        }
        assert!(tasks.poll_round().is_protocol_ready);
        assert_eq!(count.load(Ordering::Relaxed), 100);
        assert!(!tasks.poll_round().is_protocol_ready);
        assert_eq!(count.load(Ordering::Relaxed), 200);
        assert!(tasks.poll_round().is_idle);
        assert!(tasks.streams.is_empty());
    }

    #[test]
    fn only_a_sleeping_connection_is_woken() {
        let (woken, flag) = flag();
        let mut tasks = Tasks::new();
        tasks.poll_round();
        tasks.protocol_waker().wake();
        assert!(!flag.load(Ordering::Relaxed));
        let cx = Context::from_waker(&woken);
        assert!(tasks.poll_sleep(&cx).is_ready(), "the protocol waits");
        tasks.poll_round();
        assert!(tasks.poll_sleep(&cx).is_pending());
        tasks.protocol_waker().wake();
        assert!(flag.load(Ordering::Relaxed));
    }

    fn flag() -> (Waker, Arc<AtomicBool>) {
        struct Flag(Arc<AtomicBool>);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let flag = Arc::new(AtomicBool::new(false));
        (Waker::from(Arc::new(Flag(Arc::clone(&flag)))), flag)
    }
}
