//! Streams that have to end though their client does not read: nothing can be sent to it, so the stream is reset.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

/// How long a client may take to make room for a stream's last words.
const GRACE: Duration = Duration::from_secs(1);

type Check = Box<dyn Fn() -> bool + Send + Sync>;

/// Says when a stream has to be gone; in the extensions of every HTTP/2 request.
#[derive(Clone, Default)]
pub struct Expiry(Arc<OnceLock<Check>>);

impl Expiry {
    /// Has the stream reset a second after `is_over` says so, if it has not ended until then. It is asked whenever something
    /// wakes the stream, so what makes it true has to. The first call counts.
    pub fn set(&self, is_over: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(is_over));
    }

    fn is_over(&self) -> bool {
        self.0.get().is_some_and(|is_over| is_over())
    }
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiry").finish_non_exhaustive()
    }
}

pin_project! {
    /// A stream's future that ends when its time is over. Dropped before it is done by itself, it resets the stream.
    pub(super) struct Expiring<F> {
        #[pin]
        stream: F,
        expiry: Expiry,
        grace: Option<Pin<Box<Sleep>>>,
    }
}

impl<F> Expiring<F> {
    pub(super) const fn new(stream: F, expiry: Expiry) -> Self {
        Self {
            stream,
            expiry,
            grace: None,
        }
    }
}

impl<F: Future<Output = ()>> Future for Expiring<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !this.expiry.is_over() {
            return Poll::Pending;
        }
        let grace = this.grace.get_or_insert_with(|| Box::pin(sleep(GRACE)));
        grace.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_ends_a_grace_after_its_time() {
        let (expiry, is_over) = (Expiry::default(), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&is_over);
        expiry.set(move || over.load(Ordering::Relaxed));
        let start = Instant::now();
        let stream = async {
            sleep(Duration::from_secs(10)).await;
            is_over.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        Expiring::new(stream, expiry).await;
        assert_eq!(start.elapsed().as_secs(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_limit_or_within_its_grace_ends_by_itself() {
        for is_over in [None, Some(true)] {
            let expiry = Expiry::default();
            if let Some(is_over) = is_over {
                expiry.set(move || is_over);
            }
            let start = Instant::now();
            Expiring::new(sleep(Duration::from_millis(900)), expiry).await;
            assert_eq!(start.elapsed().as_millis(), 900);
        }
    }
}
