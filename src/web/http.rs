//! The HTTP port: what browsers and curl use.

use std::convert::Infallible;

use ::http::{Request, Response};
use axum::Router;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::{Web, service};

const GREETING: &str = concat!(
    "Weir ",
    env!("CARGO_PKG_VERSION"),
    "\n\nThis port speaks gRPC-Web (binary and text): POST /package.Service/Method.\n"
);

/// A greeting at `/`; everything else goes to `grpc`, which speaks gRPC-Web.
pub fn router<S>(grpc: S) -> Web
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let grpc = grpc.map_request(|request: Request<axum::body::Body>| request.map(Body::new));
    let router = Router::new()
        .route("/", axum::routing::get(|| async { GREETING }))
        .fallback_service(grpc);
    service(router)
}
