//! The admin listener: metrics for scraping and the two probes. Not for the public.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Registry, TextEncoder};

use crate::core::Readiness;

const PLAIN: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `/metrics` of `registry`, `/livez`, `/readyz` of `readiness`, and `/` that lists them.
pub fn router(registry: Registry, readiness: Readiness) -> Router {
    let metrics = Router::new()
        .route("/metrics", get(metrics))
        .with_state(registry);
    let ready = Router::new()
        .route("/readyz", get(readyz))
        .with_state(readiness);
    Router::new()
        .route(
            "/",
            get(|| text(StatusCode::OK, "/metrics\n/livez\n/readyz\n")),
        )
        .route("/livez", get(|| text(StatusCode::OK, "ok\n")))
        .merge(metrics)
        .merge(ready)
        .fallback(|| text(StatusCode::NOT_FOUND, "not found\n"))
}

async fn text(status: StatusCode, body: &'static str) -> Response {
    plain(status, body.into())
}

fn plain(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, PLAIN)], body).into_response()
}

/// Says whether the instance can serve, with a line for every reason that it cannot.
async fn readyz(State(readiness): State<Readiness>) -> Response {
    let reasons = readiness.reasons();
    if reasons.is_empty() {
        return text(StatusCode::OK, "ok\n").await;
    }
    plain(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}

async fn metrics(State(registry): State<Registry>) -> Response {
    // Collectors read files: not on a worker.
    let encoded = tokio::task::spawn_blocking(move || {
        TextEncoder::new().encode_to_string(&registry.gather())
    });
    match encoded.await {
        Ok(Ok(body)) => ([(CONTENT_TYPE, EXPOSITION)], body).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "metrics could not be gathered");
    plain(StatusCode::INTERNAL_SERVER_ERROR, "failed\n".into())
}
