//! The resumable subscription: one endless stream made of as many server streams as it takes.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    Stream, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FusedStream},
};
use tokio::time::Instant;
use tonic::{Response, Status};

use super::{
    Retry, RetryPolicy, SystemTiming, Timing,
    cursor::{Cursor, Resume},
};

/// How long the server may take to open a stream before the attempt counts as failed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What a subscription delivers: knows its position.
pub trait Sequenced {
    /// The position in the log; 0 on what is not a record.
    fn sequence(&self) -> u64;

    /// Whether this is what the server says at the start of every stream; a reconnect does not repeat it.
    fn is_greeting(&self) -> bool {
        false
    }
}

/// What happens to a subscription's connection.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server opened a stream.
    Connected {
        /// True from the second stream on.
        is_resumed: bool,
        /// The position it continues after, as far as it is known.
        position: Option<u64>,
    },
    /// The stream ended, or could not be opened; the next attempt comes after `delay`.
    Reconnecting {
        /// Time until the next attempt.
        delay: Duration,
        /// Why.
        cause: &'a Status,
    },
}

type Items<T> = BoxStream<'static, Result<T, Status>>;
type Opening<T> = BoxFuture<'static, Result<Response<Items<T>>, Status>>;

enum State<T> {
    Idle,
    Opening(Opening<T>),
    Open(Items<T>, Instant),
    Waiting(BoxFuture<'static, ()>),
    Ended,
}

/// A subscription that outlives its connections.
///
/// It is a [`Stream`] of records in sequence order: when a server stream ends, another one is opened after the last
/// record received, with the back-off of its [`RetryPolicy`] and never sooner than the server asked for. A record is
/// delivered once. It ends after the first error it yields, a permanent status or the last one when
/// [`RetryPolicy::max_retries`] is used up; it never ends otherwise.
///
/// **Live from now.** Without a start position nothing published after the first stream was opened is missed if the
/// server tells that stream's position, in the response header `after-sequence` or in the `after_sequence` of the final
/// status' `ErrorInfo`. Weir does. With a server that tells neither, what is published between the loss of a stream that
/// delivered no record yet and its successor is missed.
///
/// **Another log.** The first response names the server's log in its header `log-id`, and what resumes sends the name along.
/// A server whose log is another one, because its storage was made again or restored from a backup, refuses with
/// `OUT_OF_RANGE` (`LOG_REPLACED`), which ends the subscription: its position means nothing there.
///
/// **Cancellation.** Dropping it ends the call. `next()` may be dropped and called again without losing anything.
pub struct Subscription<T> {
    open: Box<dyn FnMut(Resume) -> Opening<T> + Send>,
    state: State<T>,
    cursor: Cursor,
    retry: Retry,
    streams: u64,
    observer: Box<dyn FnMut(Event<'_>) + Send>,
}

impl<T: Sequenced + 'static> Subscription<T> {
    /// A subscription that starts after `position` (`None`: live from now) and opens its server streams with `open`,
    /// which gets the position to continue after and asks with [`Resume::request`]. Nothing is opened before the first poll.
    pub fn new<S, F>(
        position: Option<u64>,
        mut open: impl FnMut(Resume) -> F + Send + 'static,
    ) -> Self
    where
        S: Stream<Item = Result<T, Status>> + Send + 'static,
        F: Future<Output = Result<Response<S>, Status>> + Send + 'static,
    {
        Self {
            open: Box::new(move |resume| Box::pin(open_in_time(open(resume)))),
            state: State::Idle,
            cursor: Cursor::new(position),
            retry: Retry::new(RetryPolicy::default(), Arc::new(SystemTiming)),
            streams: 0,
            observer: Box::new(|_| ()),
        }
    }

    /// Replaces the retry policy and the source of chance and time.
    #[must_use]
    pub fn with_retry(mut self, policy: RetryPolicy, timing: Arc<dyn Timing>) -> Self {
        self.retry = Retry::new(policy, timing);
        self
    }

    /// Calls `observer` with everything that happens to the connection; it must not block.
    #[must_use]
    pub fn with_observer(mut self, observer: impl FnMut(Event<'_>) + Send + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// The position a reconnect would continue after; `None`: none is known yet.
    pub fn position(&self) -> Option<u64> {
        self.cursor.position()
    }

    /// How many records the server sent again; they were dropped.
    pub fn duplicates(&self) -> u64 {
        self.cursor.duplicates()
    }

    /// The next record; `None` after an error was returned.
    ///
    /// # Errors
    /// The status that ends the subscription: a permanent one, or any when the retries are used up.
    ///
    /// # Cancellation
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<T, Status>> {
        StreamExt::next(self).await
    }

    fn start(&mut self) {
        self.state = State::Opening((self.open)(self.cursor.resume()));
    }

    fn opened(&mut self, response: Response<Items<T>>) {
        self.cursor.note_opened(response.metadata());
        let is_resumed = self.streams > 0;
        self.streams += 1;
        self.state = State::Open(response.into_inner(), self.retry.timing().now());
        (self.observer)(Event::Connected {
            is_resumed,
            position: self.cursor.position(),
        });
    }

    /// Plans the next attempt; returns the status if there is none.
    fn failed(&mut self, status: Status) -> Option<Status> {
        if let State::Open(_, since) = self.state {
            self.retry.note_lifetime(since);
        }
        self.cursor.note_ended(&status);
        let Some(delay) = self.retry.next_delay(&status) else {
            self.state = State::Ended;
            return Some(status);
        };
        self.state = State::Waiting(self.retry.timing().sleep(delay));
        (self.observer)(Event::Reconnecting {
            delay,
            cause: &status,
        });
        None
    }

    /// Passes on what is news; a new record is progress.
    fn received(&mut self, item: T) -> Option<T> {
        if !self.cursor.admit(&item) {
            return None;
        }
        if item.sequence() > 0 {
            self.retry.reset();
        }
        Some(item)
    }

    /// Takes one step; `Ready(None)`: take another.
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        let failure = match &mut self.state {
            State::Idle => {
                self.start();
                None
            }
            State::Waiting(sleep) => {
                ready!(sleep.as_mut().poll(cx));
                self.start();
                None
            }
            State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(response) => {
                    self.opened(response);
                    None
                }
                Err(status) => self.failed(status),
            },
            State::Open(items, _) => match ready!(items.poll_next_unpin(cx)) {
                Some(Ok(item)) => return Poll::Ready(self.received(item).map(Ok)),
                Some(Err(status)) => self.failed(status),
                None => self.failed(Status::unavailable("the server ended the stream")),
            },
            State::Ended => None,
        };
        Poll::Ready(failure.map(Err))
    }
}

impl<T: Sequenced + 'static> Stream for Subscription<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.is_terminated() {
                return Poll::Ready(None);
            }
            if let Some(item) = ready!(self.step(cx)) {
                return Poll::Ready(Some(item));
            }
        }
    }
}

impl<T: Sequenced + 'static> FusedStream for Subscription<T> {
    fn is_terminated(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

/// Opens a stream within [`OPEN_TIMEOUT`]; the stream itself may then live for ever.
async fn open_in_time<T: 'static, S>(
    opening: impl Future<Output = Result<Response<S>, Status>>,
) -> Result<Response<Items<T>>, Status>
where
    S: Stream<Item = Result<T, Status>> + Send + 'static,
{
    let opened = tokio::time::timeout(OPEN_TIMEOUT, opening).await;
    let response =
        opened.map_err(|_| Status::unavailable("the server did not open the stream in time"))??;
    Ok(response.map(StreamExt::boxed))
}
