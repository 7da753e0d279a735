//! The response body of a call: it ends on deadline, drain and age, and its end is counted once.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};
use tracing::Span;

use super::{Call, Ending, Kind, frames::FrameCounter, status, streams::Registered};
use crate::{net::Expiry, telemetry::trace};

/// What may end a call before its handler does.
pub(super) struct Limits {
    pub(super) registered: Option<Registered>,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
}

impl Limits {
    /// Ready with the status and the reason when the call has to end now.
    pub(super) fn poll_end(
        &mut self,
        call: &Call,
        cx: &mut Context<'_>,
    ) -> Poll<(Status, &'static str)> {
        if let Some(registered) = &mut self.registered
            && let Poll::Ready(ending) = registered.poll_ending(cx)
        {
            if ending == Ending::MaxAge {
                // Its successor on the same connection would stay here.
                call.leave_connection();
            }
            return Poll::Ready((status::ended(ending, call.position()), reason(ending)));
        }
        if let Some(deadline) = &mut self.deadline
            // The timer is coarser than a deadline may be.
            && (deadline.as_mut().poll(cx).is_ready() || deadline.deadline() <= Instant::now())
        {
            return Poll::Ready((status::deadline_exceeded(call.method()), "deadline"));
        }
        Poll::Pending
    }

    /// Has the connection reset a stream that stays when it has to end: its client does not read, so nobody asks the body.
    pub(super) fn watch(&self, expiry: &Expiry) {
        let ending = self.registered.as_ref().map(Registered::watch);
        let deadline = self.deadline.as_ref().map(|deadline| deadline.deadline());
        if ending.is_some() || deadline.is_some() {
            expiry.set(move || {
                ending.as_ref().is_some_and(|ending| ending().is_some())
                    || deadline.is_some_and(|deadline| deadline <= Instant::now())
            });
        }
    }

    /// Why the call had to end, if it had to.
    fn ended(&self) -> Option<(Code, &'static str)> {
        if let Some(ending) = self.registered.as_ref().and_then(Registered::ending) {
            return Some((Code::Unavailable, reason(ending)));
        }
        let deadline = self.deadline.as_ref()?.deadline();
        (deadline <= Instant::now()).then_some((Code::DeadlineExceeded, "deadline"))
    }
}

const fn reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Drain => "drain",
        Ending::MaxAge => "max_age",
    }
}

/// Why a stream ended that the server did not end early. What the client asked wrongly is not the service's error.
const fn reason_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "complete",
        Code::Cancelled => "client_cancel",
        Code::ResourceExhausted => "overload",
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented => "refused",
        Code::DeadlineExceeded => "deadline",
        Code::Unknown | Code::Internal | Code::Unavailable | Code::DataLoss => "error",
    }
}

/// Counts a call's end exactly once; a call dropped before its end was cancelled by its client.
pub(super) struct Outcome {
    call: Call,
    span: Span,
    is_recorded: bool,
}

impl Outcome {
    pub(super) fn new(call: Call, span: Span) -> Self {
        let method = call.method();
        method.started.inc();
        if let Some(active) = &method.active {
            active.inc();
        }
        Self {
            call,
            span,
            is_recorded: false,
        }
    }

    pub(super) const fn call(&self) -> &Call {
        &self.call
    }

    /// Ends the span where a stream of responses begins: it is not held open for hours.
    pub(super) fn stream_began(&mut self) {
        if matches!(
            self.call.method().kind,
            Kind::ServerStream | Kind::BidiStream
        ) {
            self.span = Span::none();
        }
    }

    /// Records the end; `reason` tells why the server ended it, if it did.
    pub(super) fn record(&mut self, code: Code, reason: Option<&'static str>) {
        if std::mem::replace(&mut self.is_recorded, true) {
            return;
        }
        let method = self.call.method();
        let elapsed = self.call.0.started.elapsed();
        method.handled(code);
        if let Some(handling) = &method.handling {
            handling.observe(elapsed.as_secs_f64());
        }
        if let Some(active) = &method.active {
            active.dec();
            let reason = reason.unwrap_or_else(|| reason_of(code));
            method
                .metrics
                .streams_ended
                .with_label_values(&[reason])
                .inc();
            method
                .metrics
                .stream_duration_secs
                .observe(elapsed.as_secs_f64());
        }
        let span = std::mem::replace(&mut self.span, Span::none());
        let _entered = span.enter();
        log_end(
            &method.full_name,
            method.active.is_some(),
            code,
            reason,
            elapsed,
        );
        trace::finish(&span, code, false);
    }
}

/// One line for each call: streams and failures are news, a unary success is detail.
fn log_end(
    method: &str,
    is_stream: bool,
    code: Code,
    reason: Option<&'static str>,
    elapsed: std::time::Duration,
) {
    let status = super::methods::code_name(code);
    let duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if is_stream || code != Code::Ok {
        tracing::info!(method, status, reason, duration_ms, "call ended");
    } else {
        tracing::debug!(method, status, duration_ms, "call ended");
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.record(Code::Cancelled, None);
    }
}

/// The body.
pub(super) struct CallBody {
    inner: Body,
    limits: Limits,
    outcome: Outcome,
    frames: FrameCounter,
    is_first_sent: bool,
    is_ended: bool,
}

impl CallBody {
    pub(super) fn new(inner: Body, limits: Limits, outcome: Outcome) -> Self {
        Self {
            inner,
            limits,
            outcome,
            frames: FrameCounter::default(),
            is_first_sent: false,
            is_ended: false,
        }
    }

    fn end(&mut self, status: &Status, reason: &'static str) -> Frame<Bytes> {
        self.is_ended = true;
        self.outcome.call().ended_by_server();
        self.outcome.record(status.code(), Some(reason));
        let mut trailers = HeaderMap::new();
        if let Err(error) = status.add_header(&mut trailers) {
            tracing::error!(%error, "a status could not be written");
        }
        // Nothing of an ended call stays behind: its handler goes with its body.
        self.inner = Body::empty();
        self.limits.registered = None;
        Frame::trailers(trailers)
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_trailers() {
            Ok(mut trailers) => {
                status::canonical(&mut trailers);
                self.is_ended = true;
                self.outcome
                    .record(status::code_of(&trailers).unwrap_or(Code::Unknown), None);
                Frame::trailers(trailers)
            }
            Err(frame) => {
                if let Some(data) = frame.data_ref() {
                    self.count(data);
                }
                frame
            }
        }
    }

    fn count(&mut self, data: &[u8]) {
        let state = &self.outcome.call().0;
        if !self.is_first_sent {
            self.is_first_sent = true;
            if state.method.active.is_some() {
                let elapsed = state.started.elapsed().as_secs_f64();
                state
                    .method
                    .metrics
                    .stream_first_message_secs
                    .observe(elapsed);
            }
        }
        if !state.counts_itself.load(Ordering::Relaxed) {
            state.method.sent.inc_by(self.frames.count(data));
        }
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.is_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready((status, reason)) = this.limits.poll_end(this.outcome.call(), cx) {
            return Poll::Ready(Some(Ok(this.end(&status, reason))));
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(this.pass(frame)))),
            Poll::Ready(None) => {
                this.is_ended = true;
                Poll::Ready(None)
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for CallBody {
    fn drop(&mut self) {
        if !self.is_ended
            && let Some((code, reason)) = self.limits.ended()
        {
            self.outcome.call().ended_by_server();
            self.outcome.record(code, Some(reason));
        }
    }
}

/// Counts the messages of a request as they are read.
pub(super) struct CountedRequest {
    inner: Body,
    call: Call,
    frames: FrameCounter,
}

impl CountedRequest {
    pub(super) fn new(inner: Body, call: Call) -> Self {
        Self {
            inner,
            call,
            frames: FrameCounter::default(),
        }
    }
}

impl HttpBody for CountedRequest {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            this.call.method().received.inc_by(this.frames.count(data));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
