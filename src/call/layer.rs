//! The layer itself: what happens to a request on its way in.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, StatusCode, header};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Span;

use super::{
    Call, Kind, Methods, Streams,
    body::{CallBody, CountedRequest, Limits, Outcome},
    deadline,
    identity::{self, Identity},
    status,
};
use crate::{
    core::Instance,
    log::LogId,
    net::{Expiry, Link},
    telemetry::Traces,
};

/// Puts [`CallService`] around the routes.
#[derive(Debug, Clone)]
pub struct CallLayer {
    methods: Methods,
    streams: Streams,
    instance: Instance,
    traces: Traces,
    identity: Identity,
}

impl CallLayer {
    /// A layer that knows `methods`, registers streams in `streams` and counts requests for `instance`.
    #[must_use]
    pub fn new(methods: Methods, streams: Streams, instance: Instance, traces: Traces) -> Self {
        Self {
            methods,
            streams,
            instance,
            traces,
            identity: Identity::default(),
        }
    }

    /// Says which log this instance serves, once it is open: responses name it, and requests that name another are refused.
    pub fn serves_log(&self, id: LogId) {
        self.identity.set(id);
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService {
            inner,
            layer: self.clone(),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Some(refused) = refuse(&request) {
            return CallFuture::done(refused);
        }
        let method = self.layer.methods.of(request.uri().path()).clone();
        let call = Call::new(method, request.extensions().get::<Link>().cloned());
        self.layer.instance.count(call.method().index);
        let span = self
            .layer
            .traces
            .rpc(&call.method().full_name, request.headers());
        let mut outcome = Outcome::new(call.clone(), span.clone());
        let log = self.layer.identity.name(call.method());
        let timeout = match self.admit(&call, request.headers()) {
            Ok(timeout) => timeout,
            Err(status) => {
                outcome.record(status.code(), None);
                return CallFuture::done(identity::named(status.into_http(), log));
            }
        };
        let limits = self.limits(&call, timeout);
        if let Some(expiry) = request.extensions().get::<Expiry>() {
            limits.watch(expiry);
        }
        let entered = span.enter();
        let inner = self.inner.call(prepare(request, &call));
        drop(entered);
        CallFuture::Running {
            inner,
            limits: Some(limits),
            outcome: Some(outcome),
            span,
            log,
        }
    }
}

impl<S> CallService<S> {
    /// Checks what the request says of itself; returns the time that the caller gives it.
    ///
    /// # Errors
    /// The status to refuse it with.
    fn admit(&self, call: &Call, headers: &HeaderMap) -> Result<Option<Duration>, Status> {
        self.layer.identity.check(call.method(), headers)?;
        deadline::timeout(headers).map_err(|_| status::invalid_timeout())
    }

    fn limits(&self, call: &Call, timeout: Option<Duration>) -> Limits {
        let is_stream = call.method().kind != Kind::Unary;
        Limits {
            registered: is_stream.then(|| self.layer.streams.register()),
            deadline: timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout))),
        }
    }
}

/// What is no gRPC request is refused in HTTP's words.
fn refuse(request: &Request<Body>) -> Option<Response<Body>> {
    let code = if request.method() != HttpMethod::POST {
        StatusCode::METHOD_NOT_ALLOWED
    } else if !is_grpc(request.headers()) {
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    } else {
        return None;
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    if code == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    Some(response)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn prepare(request: Request<Body>, call: &Call) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(call.clone());
    Request::from_parts(parts, Body::new(CountedRequest::new(body, call.clone())))
}

pin_project! {
    /// A call until its response begins.
    #[project = CallProjection]
    pub enum CallFuture<F> {
        /// Answered without a handler.
        Done {
            response: Option<Response<Body>>,
        },
        /// The handler runs.
        Running {
            #[pin]
            inner: F,
            limits: Option<Limits>,
            outcome: Option<Outcome>,
            span: Span,
            log: Option<HeaderValue>,
        },
    }
}

impl<F> CallFuture<F> {
    const fn done(response: Response<Body>) -> Self {
        Self::Done {
            response: Some(response),
        }
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for CallFuture<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CallProjection::Done { response } => {
                Poll::Ready(Ok(response.take().unwrap_or_default()))
            }
            CallProjection::Running {
                inner,
                limits,
                outcome,
                span,
                log,
            } => {
                let _entered = span.enter();
                poll_running(inner, limits, outcome, cx)
                    .map(|response| Ok(identity::named(response, log.take())))
            }
        }
    }
}

fn poll_running<F: Future<Output = Result<Response<Body>, Infallible>>>(
    inner: Pin<&mut F>,
    limits: &mut Option<Limits>,
    outcome: &mut Option<Outcome>,
    cx: &mut Context<'_>,
) -> Poll<Response<Body>> {
    if let (Some(limits), Some(outcome)) = (limits.as_mut(), outcome.as_mut())
        && let Poll::Ready((status, reason)) = limits.poll_end(outcome.call(), cx)
    {
        outcome.record(status.code(), Some(reason));
        return Poll::Ready(status.into_http());
    }
    let Poll::Ready(Ok(response)) = inner.poll(cx) else {
        return Poll::Pending;
    };
    Poll::Ready(match (limits.take(), outcome.take()) {
        (Some(limits), Some(outcome)) => begin(response, limits, outcome),
        _ => response,
    })
}

/// Wraps the response's body; one that consists of headers alone has ended already.
fn begin(response: Response<Body>, limits: Limits, mut outcome: Outcome) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.headers.contains_key(Status::GRPC_STATUS) {
        status::canonical(&mut parts.headers);
        outcome.record(
            status::code_of(&parts.headers).unwrap_or(Code::Unknown),
            None,
        );
        return Response::from_parts(parts, body);
    }
    outcome.stream_began();
    Response::from_parts(parts, Body::new(CallBody::new(body, limits, outcome)))
}
