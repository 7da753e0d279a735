//! What the operator sees: metrics, traces and log lines.
//!
//! [`Metrics`] is one registry, passed along. [`init`] installs log lines and traces for the process, [`subscriber`] makes
//! the same without global state. [`trace`] makes the spans; nothing here depends on the core or on a service.

mod export;
mod line_feed;
mod lines;
mod metrics;
mod process;
mod queue;
mod setup;
pub mod trace;

pub use line_feed::{Line, Lines};
pub use metrics::Metrics;
pub use process::register as register_process;
pub use queue::Queue;
pub use setup::{Error, Guard, init, subscriber};
pub use trace::Traces;
