//! HTTP beside gRPC. Knows the core and telemetry, no storage.

pub mod admin;
pub mod files;
pub mod http;

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use ::http::{Request, Response};
use axum::Router;
use tonic::body::Body;
use tower::Service;

/// A router as a service for [`crate::net`]'s connections.
#[derive(Debug, Clone)]
pub struct Web(Router);

/// Serves `router`.
#[must_use]
pub fn service(router: Router) -> Web {
    Web(router.with_state(()))
}

impl Service<Request<Body>> for Web {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures::future::MapOk<
        <Router as Service<Request<Body>>>::Future,
        fn(Response<axum::body::Body>) -> Response<Body>,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        use futures::TryFutureExt as _;
        self.0
            .call(request)
            .map_ok(|response| response.map(Body::new))
    }
}
