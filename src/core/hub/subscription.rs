//! A subscriber: a cursor over a topic, from history into live.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use prometheus::IntGauge;

use super::{
    SLICE_BYTES,
    encoded::Encoding,
    tail::{Place, Tail, Taken, Wait},
};
use crate::log::{Error, Limit, Page, Record, Sequence, Timestamp, Topic};

/// What one page of a catching-up subscriber holds at most.
const PAGE: Limit = Limit {
    records: 1024,
    bytes: SLICE_BYTES,
};

/// How a subscriber wants its records.
pub trait View: Send + Sync + Unpin + 'static {
    /// What it gets them as.
    type Data: Send;

    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn take(tail: &Tail, from: Sequence, wait: Wait<'_>) -> Taken<Batch<Self::Data>>;

    #[doc(hidden)]
    fn page(topic: &Topic, records: Vec<Arc<Record>>) -> Self::Data;
}

/// New records for a subscriber.
#[derive(Debug, Clone)]
pub struct Batch<T> {
    /// The records, in the form that the view asked for.
    pub data: T,
    /// How many they are; may be zero when the topic has a gap there.
    pub records: usize,
    /// When the newest was appended, if it came from memory: what was read from the log is old by its reader's pace.
    pub newest: Option<Timestamp>,
}

/// The records themselves.
#[derive(Debug, Clone, Copy)]
pub struct Records;

impl View for Records {
    type Data = Vec<Arc<Record>>;

    #[allow(private_interfaces)]
    fn take(tail: &Tail, from: Sequence, wait: Wait<'_>) -> Taken<Batch<Self::Data>> {
        match tail.take_records(from, PAGE.records, wait) {
            Taken::New(data, next) => {
                let records = data.len();
                let newest = data.last().map(|record| record.time);
                Taken::New(
                    Batch {
                        data,
                        records,
                        newest,
                    },
                    next,
                )
            }
            Taken::Nothing => Taken::Nothing,
            Taken::Behind => Taken::Behind,
        }
    }

    fn page(_: &Topic, records: Vec<Arc<Record>>) -> Self::Data {
        records
    }
}

/// The records in the wire form `E`, laid end to end.
#[derive(Debug)]
pub struct Encoded<E>(PhantomData<fn() -> E>);

impl<E> Default for Encoded<E> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Encoding> View for Encoded<E> {
    type Data = Bytes;

    #[allow(private_interfaces)]
    fn take(tail: &Tail, from: Sequence, wait: Wait<'_>) -> Taken<Batch<Bytes>> {
        match tail.take_encoded::<E>(from, wait) {
            Taken::New(slice, next) => {
                let batch = Batch {
                    data: slice.bytes,
                    records: slice.records,
                    newest: Some(slice.newest),
                };
                Taken::New(batch, next)
            }
            Taken::Nothing => Taken::Nothing,
            Taken::Behind => Taken::Behind,
        }
    }

    fn page(topic: &Topic, records: Vec<Arc<Record>>) -> Bytes {
        let mut bytes = BytesMut::new();
        for record in &records {
            E::encode(topic, record, &mut bytes);
        }
        bytes.freeze()
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Page, Error>> + Send>>;

/// A live subscription. Dropping it leaves nothing behind.
pub struct Subscription<V> {
    tail: Arc<Tail>,
    place: Place,
    cursor: Sequence,
    reading: Option<Reading>,
    source: Source,
    view: PhantomData<fn() -> V>,
}

impl<V: View> Subscription<V> {
    pub(super) fn new(tail: Arc<Tail>, cursor: Sequence, _view: V) -> Self {
        let gauge = |source| tail.hub().metrics.subscribers.with_label_values(&[source]);
        let source = Source::new(gauge("tail"), gauge("log"));
        Self {
            place: tail.join(),
            tail,
            cursor,
            reading: None,
            source,
            view: PhantomData,
        }
    }

    /// The position of the next record this subscription will deliver.
    #[must_use]
    pub const fn cursor(&self) -> Sequence {
        self.cursor
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        self.tail.topic()
    }

    /// The next batch; waits for one.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when retention overtook this subscriber; else what the engine reports.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch<V::Data>, Error>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let page = ready!(reading.as_mut().poll(cx));
                self.reading = None;
                if let Some(batch) = self.turn(page?) {
                    return Poll::Ready(Ok(batch));
                }
            }
            let wait = Wait {
                place: &self.place,
                waker: cx.waker(),
            };
            match V::take(&self.tail, self.cursor, wait) {
                Taken::New(batch, next) => {
                    self.source.is_log(false);
                    self.cursor = next;
                    return Poll::Ready(Ok(batch));
                }
                Taken::Nothing => {
                    self.source.is_log(false);
                    return Poll::Pending;
                }
                Taken::Behind => self.read(),
            }
        }
    }

    /// The next batch, as a future; see [`Self::poll_next`]. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::poll_next`].
    pub async fn next(&mut self) -> Result<Batch<V::Data>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Makes the next poll read the log, although memory has nothing new: afterwards the cursor lies behind everything that
    /// is stored. Returns false when a read is under way already.
    pub(super) fn ask_log(&mut self) -> bool {
        let is_new = self.reading.is_none();
        if is_new {
            self.read();
        }
        is_new
    }

    /// Moves the cursor of a subscription that has nothing new up to `position`, before which the topic has nothing.
    pub(super) fn skip(&mut self, position: Sequence) {
        if self.reading.is_none() {
            self.cursor = self.cursor.max(position);
        }
    }

    fn read(&mut self) {
        self.source.is_log(true);
        let (engine, topic, from) = (self.tail.engine(), self.topic().clone(), self.cursor);
        self.reading = Some(Box::pin(
            async move { engine.read(&topic, from, PAGE).await },
        ));
    }

    /// Moves on behind a page; `None` when it held nothing. A page that is all there is ends at the log's tail, so the
    /// cursor has then reached the start of any feed opened before the read, however old the topic's last record is.
    fn turn(&mut self, page: Page) -> Option<Batch<V::Data>> {
        let lag = page.tail.0.saturating_sub(self.cursor.0);
        #[allow(clippy::cast_precision_loss, reason = "a histogram takes floats")]
        self.tail.hub().metrics.subscriber_lag.observe(lag as f64);
        self.cursor = self.cursor.max(page.next);
        let records = page.records.len();
        (records > 0).then(|| Batch {
            data: V::page(self.tail.topic(), page.records),
            records,
            newest: None,
        })
    }
}

impl<V> Drop for Subscription<V> {
    fn drop(&mut self) {
        self.tail.leave(&self.place);
    }
}

/// Keeps the gauge of where a subscription reads from.
struct Source {
    tail: IntGauge,
    log: IntGauge,
    is_log: bool,
}

impl Source {
    fn new(tail: IntGauge, log: IntGauge) -> Self {
        tail.inc();
        Self {
            tail,
            log,
            is_log: false,
        }
    }

    fn is_log(&mut self, is_log: bool) {
        if self.is_log != is_log {
            self.is_log = is_log;
            let (from, to) = if is_log {
                (&self.tail, &self.log)
            } else {
                (&self.log, &self.tail)
            };
            from.dec();
            to.inc();
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if self.is_log {
            self.log.dec()
        } else {
            self.tail.dec()
        }
    }
}
