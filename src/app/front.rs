//! The way in: gRPC as it is, gRPC-Web translated, both through the one call layer to the routes behind the gate.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use tonic::{Status, body::Body, service::Routes};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, Service, ServiceExt as _, util::BoxCloneSyncService};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    call::{CallLayer, CallService, RECOVERING, unavailable},
    config::Cors,
    services::{self, Core},
};

/// How long a browser may remember what it may send.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);
/// What a browser's client may read of a response.
const EXPOSED: [HeaderName; 6] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("grpc-retry-pushback-ms"),
    HeaderName::from_static("after-sequence"),
    HeaderName::from_static("log-id"),
];

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// What every connection is served by.
#[derive(Clone)]
pub(super) struct Front {
    grpc: CallService<Gate>,
    web: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>,
}

impl Front {
    pub(super) fn new(calls: &CallLayer, gate: Gate, cors: &Cors) -> Self {
        let grpc = calls.layer(gate);
        let web = cors_layer(cors).layer(GrpcWebLayer::new().layer(grpc.clone()));
        Self {
            grpc,
            web: BoxCloneSyncService::new(web),
        }
    }
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_web(&request) {
            Box::pin(self.web.clone().oneshot(request))
        } else if is_too_old(&request) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            Box::pin(std::future::ready(Ok(response)))
        } else {
            Box::pin(self.grpc.call(request))
        }
    }
}

/// A browser's preflight and gRPC-Web go the web's way.
fn is_web(request: &Request<Body>) -> bool {
    request.method() == Method::OPTIONS || is_of_type(request, b"application/grpc-web")
}

/// gRPC itself needs HTTP/2: its trailers.
fn is_too_old(request: &Request<Body>) -> bool {
    request.version() != Version::HTTP_2
        && request.method() == Method::POST
        && is_of_type(request, b"application/grpc")
}

fn is_of_type(request: &Request<Body>, start: &[u8]) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(start))
}

fn cors_layer(cors: &Cors) -> CorsLayer {
    let origins = &cors.allowed_origins;
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        // Origins were checked with the configuration; one that is no header value would never match anyway.
        false => AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST, Method::GET, Method::OPTIONS])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(PREFLIGHT_AGE)
}

/// Lets health and reflection through at once, everything else when the log is open.
#[derive(Clone)]
pub(super) struct Gate {
    base: Routes,
    full: Arc<OnceLock<Routes>>,
}

impl Gate {
    pub(super) fn new(
        base: Routes,
        with_reflection: bool,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let base = match with_reflection {
            true => services::with_reflection(base)?,
            false => base,
        };
        Ok(Self {
            base: base.prepare(),
            full: Arc::default(),
        })
    }

    /// Opens for every service over `core`.
    pub(super) fn open(&self, core: &Core) {
        self.full
            .get_or_init(|| services::routes(self.base.clone(), core).prepare());
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let routes = match self.full.get() {
            Some(routes) => routes,
            None if request.uri().path().starts_with("/grpc.") => &self.base,
            None => {
                let refused = unavailable(RECOVERING).into_http();
                return Box::pin(std::future::ready(Ok(refused)));
            }
        };
        let answer = routes.clone().oneshot(request);
        Box::pin(async move {
            Ok(answer
                .await
                .unwrap_or_else(|error| Status::internal(error.to_string()).into_http()))
        })
    }
}
