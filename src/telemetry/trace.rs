//! Spans, and how a trace travels: in with a call's headers, on with the stored record, out with the delivery.
//!
//! ```text
//! caller's traceparent ─▶ rpc span ─▶ append span ─▶ (record.trace) ─▶ deliver span, on any node, at any later time
//! ```
//!
//! Attribute names follow the OpenTelemetry conventions for RPC and messaging.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::log::{Record, Timestamp, Topic, TraceContext};

/// The target of every exported span.
pub const TARGET: &str = "weir::trace";
/// The attribute that holds a call's status, spelled like `UNAVAILABLE`.
pub const STATUS_CODE: &str = "rpc.status_code";
/// The attribute that says why a call failed; absent on success.
pub const ERROR_TYPE: &str = "error.type";

const TRACEPARENT: &str = "traceparent";
/// Deliveries traced within one second at most: a record's fan-out has no bound, its spans need one.
const DELIVERIES: u64 = 1000;

/// Makes spans; a cheap handle. Without an exporter it makes none, save for calls that bring a trace along, whose log lines
/// shall carry its id.
#[derive(Debug, Clone)]
pub struct Traces {
    exports: bool,
    deliveries: Arc<Budget>,
}

impl Traces {
    pub(super) fn new(exports: bool) -> Self {
        Self {
            exports,
            deliveries: Arc::default(),
        }
    }

    /// Makes no spans.
    #[must_use]
    pub fn off() -> Self {
        Self::new(false)
    }

    /// Spans leave the process.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.exports
    }

    /// The server's span of a call of `method` (`chat.ChatService/SendMessage`), continuing the trace in its headers.
    #[must_use]
    pub fn rpc(&self, method: &str, headers: &HeaderMap) -> Span {
        let parent = extract(headers);
        if !self.exports && parent.is_none() {
            return Span::none();
        }
        let span = info_span!(
            target: TARGET,
            parent: None,
            "rpc",
            otel.name = method,
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method,
        );
        under(span, parent)
    }

    /// The client's span of a call of `method`, within the current span. Send its trace along with [`inject`].
    #[must_use]
    pub fn call(&self, method: &str) -> Span {
        if !self.exports {
            return Span::none();
        }
        info_span!(
            target: TARGET,
            "call",
            otel.name = method,
            otel.kind = "client",
            rpc.system.name = "grpc",
            rpc.method = method,
        )
    }

    /// The span from enqueueing to durability, within the current span if that is sampled.
    #[must_use]
    pub fn append(&self, topic: &Topic) -> Span {
        if !self.exports || current().is_none() {
            return Span::none();
        }
        append_span(topic)
    }

    /// [`Traces::append`] for messages of a stream whose own span has ended or is not current.
    #[must_use]
    pub fn append_under(&self, topic: &Topic, parent: Option<TraceContext>) -> Span {
        match sampled(parent) {
            Some(parent) if self.exports => under(append_span(topic), Some(context_of(&parent))),
            _ => Span::none(),
        }
    }

    /// The span of handing `record` to one reader: part of the trace it was published in. None for records without a sampled
    /// trace and, while there are more than a thousand a second, for the rest of that second.
    #[must_use]
    pub fn deliver(&self, topic: &Topic, record: &Record) -> Span {
        match sampled(record.trace) {
            Some(parent) if self.exports && self.deliveries.spend(Timestamp::now()) => {
                under(deliver_span(topic, record), Some(context_of(&parent)))
            }
            _ => Span::none(),
        }
    }
}

fn append_span(topic: &Topic) -> Span {
    info_span!(
        target: TARGET,
        "append",
        otel.kind = "producer",
        messaging.system = "weir",
        messaging.operation.r#type = "send",
        messaging.destination.name = %topic,
    )
}

fn deliver_span(topic: &Topic, record: &Record) -> Span {
    info_span!(
        target: TARGET,
        parent: None,
        "deliver",
        otel.kind = "consumer",
        messaging.system = "weir",
        messaging.operation.r#type = "process",
        messaging.destination.name = %topic,
        messaging.message.id = &*record.id,
        weir.sequence = record.sequence.0,
    )
}

fn under(span: Span, parent: Option<Context>) -> Span {
    if let Some(parent) = parent {
        // Fails only where nothing is traced.
        let _ = span.set_parent(parent);
    }
    span
}

fn sampled(trace: Option<TraceContext>) -> Option<TraceContext> {
    trace.filter(|trace| trace.flags & 1 == 1)
}

/// Notes on `span` how its call ended; `is_client` because the two sides differ in what counts as an error.
pub fn finish(span: &Span, code: Code, is_client: bool) {
    if span.is_disabled() {
        return;
    }
    let name = code_name(code);
    span.set_attribute(STATUS_CODE, name);
    if code != Code::Ok && (is_client || is_server_error(code)) {
        span.set_attribute(ERROR_TYPE, name);
        span.set_status(Status::error(""));
    }
}

/// Failures of the server rather than of the request, by the convention for server spans.
const fn is_server_error(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

/// The canonical name of a status code.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Notes on `span` that it also belongs to `other`.
pub fn link(span: &Span, other: &TraceContext) {
    span.add_link(span_context(other));
}

/// The trace of the span that is entered now, if it is sampled: what a record is stored with.
#[must_use]
pub fn current() -> Option<TraceContext> {
    Context::map_current(stored)
}

/// The trace of `span`, if it is sampled.
#[must_use]
pub fn of(span: &Span) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    stored(&span.context())
}

fn stored(context: &Context) -> Option<TraceContext> {
    let span = context.span();
    let found = span.span_context();
    (found.is_valid() && found.is_sampled()).then(|| TraceContext {
        trace_id: found.trace_id().to_bytes(),
        span_id: found.span_id().to_bytes(),
        flags: found.trace_flags().to_u8(),
    })
}

/// A stored trace as the parent of further spans.
#[must_use]
pub fn context_of(trace: &TraceContext) -> Context {
    Context::new().with_remote_span_context(span_context(trace))
}

fn span_context(trace: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(trace.trace_id),
        SpanId::from_bytes(trace.span_id),
        TraceFlags::new(trace.flags),
        true,
        TraceState::NONE,
    )
}

/// The caller's trace in W3C headers; none when they are absent, repeated or malformed.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Option<Context> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    if parents.next().is_none() || parents.next().is_some() {
        return None;
    }
    let propagator = TraceContextPropagator::new();
    let context = propagator.extract_with_context(&Context::new(), &Reading(headers));
    let is_valid = context.span().span_context().is_valid();
    is_valid.then_some(context)
}

/// Writes the trace of `span` into W3C headers, if it has one.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    if !span.is_disabled() {
        let context = span.context();
        TraceContextPropagator::new().inject_context(&context, &mut Writing(headers));
    }
}

struct Reading<'h>(&'h HeaderMap);

impl Extractor for Reading<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Writing<'h>(&'h mut HeaderMap);

impl Injector for Writing<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// So much a second, and no more.
#[derive(Debug, Default)]
struct Budget {
    second: AtomicU64,
    spent: AtomicU64,
}

impl Budget {
    /// Takes one; false when this second's are spent. Exact but for a race at the turn of a second.
    fn spend(&self, now: Timestamp) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.spent.store(0, Ordering::Relaxed);
        }
        self.spent.fetch_add(1, Ordering::Relaxed) < DELIVERIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(parent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            HeaderName::from_static(TRACEPARENT),
            HeaderValue::from_static(parent),
        )])
    }

    #[test]
    fn a_traceparent_is_stored_and_restored() {
        let context = extract(&headers(PARENT)).unwrap();
        let trace = stored(&context).unwrap();
        assert_eq!(trace.trace_id[..2], [0x0a, 0xf7]);
        assert_eq!(stored(&context_of(&trace)), Some(trace));
        let mut sent = HeaderMap::new();
        TraceContextPropagator::new().inject_context(&context, &mut Writing(&mut sent));
        assert_eq!(sent[TRACEPARENT], PARENT);
    }

    #[test]
    fn an_unsampled_trace_is_not_stored() {
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(stored(&extract(&headers(unsampled)).unwrap()), None);
    }

    #[test]
    fn malformed_and_repeated_parents_are_ignored() {
        for wrong in [
            "",
            "00-zz-zz-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert!(extract(&headers(wrong)).is_none(), "{wrong}");
        }
        let mut twice = headers(PARENT);
        twice.append(TRACEPARENT, HeaderValue::from_static(PARENT));
        assert!(extract(&twice).is_none());
    }

    #[test]
    fn off_makes_no_spans() {
        let traces = Traces::off();
        assert!(traces.rpc("a.B/C", &HeaderMap::new()).is_disabled());
        assert!(traces.call("a.B/C").is_disabled());
        assert_eq!(current(), None);
    }

    #[test]
    fn the_budget_renews_every_second() {
        let budget = Budget::default();
        let second = |n: u64| Timestamp(n * 1_000_000_000);
        let spent = (0..2000).filter(|_| budget.spend(second(1))).count();
        assert_eq!(spent, 1000);
        assert!(budget.spend(second(2)));
    }
}
