//! Fan-out and the domain. Knows no tonic, prost or axum type and no storage engine.

pub mod instance;
mod machine;
pub mod readiness;

pub use instance::Instance;
pub use readiness::Readiness;
