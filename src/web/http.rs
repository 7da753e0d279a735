//! The HTTP port: what browsers and curl use.

use ::http::Request;
use axum::Router;
use tonic::body::Body;
use tower::ServiceExt as _;

use super::{Web, files::Files, service};
use crate::net::HttpService;

const GREETING: &str = concat!(
    "Weir ",
    env!("CARGO_PKG_VERSION"),
    "\n\nThis port speaks gRPC-Web (binary and text): POST /package.Service/Method.\nFiles: GET /files/ID.\n"
);

/// A greeting at `/`, the files below `/files/`; everything else goes to `grpc`, which speaks gRPC-Web.
pub fn router(grpc: impl HttpService + Sync, files: Files) -> Web {
    let grpc = grpc.map_request(|request: Request<axum::body::Body>| request.map(Body::new));
    let router = Router::new()
        .route("/", axum::routing::get(|| async { GREETING }))
        .merge(files.router())
        .fallback_service(grpc);
    service(router)
}
