//! Hot subscriptions: a response body of our own over the hub.
//!
//! tonic encodes each message for each subscriber. Here a body yields what the hub has laid end to end in wire form, one
//! zero-copy slice for all that is new. [`WithLive`] puts such methods beside a generated service.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::Either;
use http::{HeaderMap, Request, Response, header};
use http_body::Frame;
use tonic::{Status, Streaming, body::Body, codec::Codec as _, server::NamedService};
use tonic_prost::ProstCodec;
use tower::Service;

use super::Responses;
use crate::{
    call::{Call, into_status},
    core::{
        Error,
        hub::{Batch, Encoded, Encoding, Merged, Subscription},
        presence::Stay,
    },
    log::{Record, Sequence, Topic},
    telemetry::Metrics,
};

/// The header of a subscription's response that says after which sequence it begins.
const AFTER_SEQUENCE: &str = "after-sequence";
/// A message's prefix: compression flag and length.
const PREFIX_BYTES: usize = 5;
/// One of so many batches is timed, so that timing costs the hot path nothing.
const SAMPLE: u32 = 16;

/// Appends `message` to `out` as one gRPC frame.
pub(super) fn frame(message: &impl prost::Message, out: &mut BytesMut) {
    frame_with(message, &[], out);
}

/// Appends one gRPC frame: `message`, and `fields` of the same type that are encoded already. Fields of a message may
/// come in any order.
pub(super) fn frame_with(message: &impl prost::Message, fields: &[u8], out: &mut BytesMut) {
    let length = message.encoded_len() + fields.len();
    out.reserve(PREFIX_BYTES + length);
    out.put_u8(0);
    // Messages are limited to far less than 4 GiB on their way in.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(out);
    out.put_slice(fields);
}

/// A subscription on its way to a client.
pub(super) struct Live<S> {
    /// Sent before everything else.
    pub(super) first: Bytes,
    /// What follows.
    pub(super) source: S,
}

/// Framed messages as they become due.
pub(super) trait Source: Send + Unpin + 'static {
    /// The next frames; waits for some. A batch without records only moves the cursor.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch<Bytes>, Error>>;

    /// The position of the next record: a client resumes after what lies before it.
    fn cursor(&self) -> Sequence;

    /// The client ended the call itself. Without this the call ended in another way, and the client may come back.
    fn cancelled(&mut self) {}
}

/// A source whose reader is a member of its room meanwhile.
pub(super) struct Attended<S> {
    pub(super) source: S,
    pub(super) stay: Option<Stay>,
}

impl<S: Source> Source for Attended<S> {
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch<Bytes>, Error>> {
        self.source.poll_frames(cx)
    }

    fn cursor(&self) -> Sequence {
        self.source.cursor()
    }

    fn cancelled(&mut self) {
        if let Some(stay) = self.stay.take() {
            stay.leave();
        }
    }
}

/// Encoded once for all subscribers of the topic.
impl<E: Encoding> Source for Subscription<Encoded<E>> {
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch<Bytes>, Error>> {
        self.poll_next(cx).map_err(Error::from)
    }

    fn cursor(&self) -> Sequence {
        Self::cursor(self)
    }
}

/// Records that one subscriber selects, of one topic or several, encoded for it alone: `encode` appends the frame of a record
/// and returns whether it did.
pub(super) struct Selected<F> {
    pub(super) merged: Merged,
    pub(super) encode: F,
}

impl<F> Source for Selected<F>
where
    F: FnMut(&Topic, &Record, &mut BytesMut) -> bool + Send + Unpin + 'static,
{
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch<Bytes>, Error>> {
        let news = ready!(self.merged.poll_next(cx))?;
        let mut data = BytesMut::new();
        let mut records = 0;
        for (topic, record) in &news {
            records += usize::from((self.encode)(topic, record, &mut data));
        }
        Poll::Ready(Ok(Batch {
            data: data.freeze(),
            records,
            // Some may have come from the log, old by their reader's pace.
            newest: None,
        }))
    }

    fn cursor(&self) -> Sequence {
        self.merged.cursor()
    }
}

/// One of two, as the request asks.
impl<A: Source, B: Source> Source for Either<A, B> {
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch<Bytes>, Error>> {
        match self {
            Self::Left(source) => source.poll_frames(cx),
            Self::Right(source) => source.poll_frames(cx),
        }
    }

    fn cursor(&self) -> Sequence {
        match self {
            Self::Left(source) => source.cursor(),
            Self::Right(source) => source.cursor(),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// A generated service with some of its methods served by hand.
#[derive(Clone)]
pub(super) struct WithLive<S> {
    inner: S,
    metrics: Metrics,
    limit: usize,
    handlers: Arc<HashMap<&'static str, Handler>>,
}

impl<S> WithLive<S> {
    pub(super) fn new(inner: S, limit: usize, metrics: Metrics) -> Self {
        Self {
            inner,
            metrics,
            limit,
            handlers: Arc::default(),
        }
    }

    /// Serves the server-streaming method at `path` by `handler`, which turns a request into a subscription.
    pub(super) fn method<R, L, H, F>(mut self, path: &'static str, handler: H) -> Self
    where
        R: prost::Message + Default + 'static,
        L: Source,
        H: Fn(R) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Live<L>, Status>> + Send + 'static,
    {
        let (limit, metrics) = (self.limit, self.metrics.clone());
        let handler: Handler = Arc::new(move |request| {
            let (handler, metrics) = (handler.clone(), metrics.clone());
            Box::pin(async move {
                match answer(request, limit, handler, metrics).await {
                    Ok(response) => response,
                    Err(status) => status.into_http(),
                }
            })
        });
        let mut handlers = HashMap::clone(&self.handlers);
        handlers.insert(path, handler);
        self.handlers = Arc::new(handlers);
        self
    }
}

impl<S> WithLive<S> {
    /// Serves the server-streaming method at `path` by `handler`, which turns a request into a body of gRPC frames that
    /// ends with its trailers.
    pub(super) fn frames<R, B, H, F>(mut self, path: &'static str, handler: H) -> Self
    where
        R: prost::Message + Default + 'static,
        B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
        H: Fn(R, Option<Call>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<B, Status>> + Send + 'static,
    {
        let limit = self.limit;
        let handler: Handler = Arc::new(move |request| {
            let handler = handler.clone();
            Box::pin(async move {
                let (parts, body) = request.into_parts();
                let call = parts.extensions.get::<Call>().cloned();
                let answered = async {
                    let request = read::<R>(&parts.headers, body, limit).await?;
                    respond(handler(request, call).await?)
                };
                answered.await.unwrap_or_else(|status| status.into_http())
            })
        });
        let mut handlers = HashMap::clone(&self.handlers);
        handlers.insert(path, handler);
        self.handlers = Arc::new(handlers);
        self
    }
}

fn respond<B>(body: B) -> Result<Response<Body>, Status>
where
    B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
{
    Response::builder()
        .header(header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE)
        .body(Body::new(body))
        .map_err(|error| Status::internal(error.to_string()))
}

impl<S: NamedService> NamedService for WithLive<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for WithLive<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.handlers.get(request.uri().path()) {
            Some(handler) => {
                let answer = handler(request);
                Box::pin(async move { Ok(answer.await) })
            }
            None => Box::pin(self.inner.call(request)),
        }
    }
}

async fn answer<R, L, H, F>(
    request: Request<Body>,
    limit: usize,
    handler: H,
    metrics: Metrics,
) -> Result<Response<Body>, Status>
where
    R: prost::Message + Default + 'static,
    L: Source,
    H: Fn(R) -> F,
    F: Future<Output = Result<Live<L>, Status>>,
{
    let (parts, body) = request.into_parts();
    let live = handler(read::<R>(&parts.headers, body, limit).await?).await?;
    let after = live.source.cursor().0.saturating_sub(1);
    let call = parts.extensions.get::<Call>().cloned();
    let body = LiveBody::new(live, call, metrics);
    Response::builder()
        .header(header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE)
        .header(AFTER_SEQUENCE, after)
        .body(Body::new(body))
        .map_err(|error| Status::internal(error.to_string()))
}

/// Reads the one request message.
async fn read<R: prost::Message + Default + 'static>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<R, Status> {
    let encoding = headers
        .get("grpc-encoding")
        .map(header::HeaderValue::as_bytes);
    if encoding.is_some_and(|encoding| encoding != b"identity") {
        return Err(Status::unimplemented(
            "compressed requests are not accepted",
        ));
    }
    let decoder = ProstCodec::<R, R>::default().decoder();
    let mut requests = Streaming::new_request(decoder, body, None, Some(limit));
    requests.message().await?.ok_or_else(|| {
        into_status(Error::invalid(
            "message",
            "the call carries no request message",
        ))
    })
}

/// The body: what is first, then what the hub has.
struct LiveBody<S: Source> {
    first: Option<Bytes>,
    source: Option<S>,
    call: Option<Call>,
    metrics: Metrics,
    batches: u32,
    /// When the last batch was handed over, while no poll has found nothing new since.
    handed_over: Option<Instant>,
}

impl<S: Source> LiveBody<S> {
    fn new(live: Live<S>, call: Option<Call>, metrics: Metrics) -> Self {
        let body = Self {
            first: Some(live.first).filter(|first| !first.is_empty()),
            source: Some(live.source),
            call,
            metrics,
            batches: 0,
            handed_over: None,
        };
        if let Some(call) = &body.call {
            call.counts_itself();
        }
        body.moved();
        body
    }

    /// Tells the call where a client would resume.
    fn moved(&self) {
        if let (Some(call), Some(source)) = (&self.call, &self.source) {
            call.resume_after(Sequence(source.cursor().0.saturating_sub(1)));
        }
    }

    fn sent(&mut self, messages: usize) {
        if let Some(call) = &self.call {
            call.sent(messages);
        }
    }

    /// Times one of [`SAMPLE`] batches.
    fn time(&mut self, newest: Option<crate::log::Timestamp>) {
        self.batches = self.batches.wrapping_add(1);
        if !self.batches.is_multiple_of(SAMPLE) {
            self.handed_over = None;
            return;
        }
        if let Some(newest) = newest {
            self.metrics
                .delivery_secs
                .observe(newest.elapsed().as_secs_f64());
        }
        self.handed_over = Some(Instant::now());
    }

    fn waited(&mut self) {
        if let Some(handed_over) = self.handed_over.take() {
            let waited = handed_over.elapsed().as_secs_f64();
            self.metrics.send_wait_secs.observe(waited);
        }
    }
}

impl<S: Source> http_body::Body for LiveBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            this.sent(1);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(source) = &mut this.source else {
            return Poll::Ready(None);
        };
        let polled = source.poll_frames(cx);
        if polled.is_pending() {
            this.handed_over = None;
        }
        match ready!(polled) {
            Ok(batch) if batch.records == 0 => {
                // Nothing of it is for this subscriber, but it has seen it: it must not resume before what is gone by then.
                this.moved();
                // Others of the connection come first, so that a long history nobody gets does not hold them up.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(batch) => {
                this.waited();
                this.time(batch.newest);
                this.sent(batch.records);
                this.moved();
                Poll::Ready(Some(Ok(Frame::data(batch.data))))
            }
            Err(error) => {
                this.source = None;
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&into_status(error))))))
            }
        }
    }
}

impl<S: Source> Drop for LiveBody<S> {
    fn drop(&mut self) {
        let is_cancelled = self.call.as_ref().is_some_and(Call::is_cancelled_by_client);
        if let (true, Some(source)) = (is_cancelled, &mut self.source) {
            source.cancelled();
        }
    }
}

/// A stream that says in its header after which sequence it begins, as hot subscriptions do.
pub(super) fn positioned<T>(
    responses: Responses<T>,
    cursor: Sequence,
) -> tonic::Response<Responses<T>> {
    let mut response = tonic::Response::new(responses);
    let after = cursor.0.saturating_sub(1);
    let metadata = response.metadata_mut();
    metadata.insert(AFTER_SEQUENCE, after.into());
    response
}

/// A status as the end of a body.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if let Err(error) = status.add_header(&mut trailers) {
        tracing::error!(%error, "a status could not be written");
    }
    trailers
}
