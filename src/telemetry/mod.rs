//! What the operator sees: metrics, traces and log lines.

mod metrics;

pub use metrics::Metrics;
