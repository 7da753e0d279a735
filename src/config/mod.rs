//! The settings: what they are, where they come from, and what is wrong with them.
//!
//! Owns every default and every range, once: `settings` declares a key with its text, default and range, and the
//! loader, the checks, `weir.example.toml` and `weir config` all read that declaration. Never reads the process's
//! environment behind the caller's back ([`Sources`] is handed in), never binds, opens or creates anything.
//!
//! Modules in reading order: `settings` (the keys), `section` (how a key is declared), `source` (file, variables, flags),
//! `load` (layering), `check` (rules between keys), `problem`, `render` (the way back to TOML).

mod check;
mod load;
mod problem;
mod render;
mod section;
mod settings;
mod size;
mod source;

#[cfg(test)]
mod tests;

pub use load::{Loaded, load};
pub use problem::{Problem, Problems};
pub(crate) use render::redact;
pub use render::{to_markdown, to_toml};
pub use section::{Entry, entries};
pub use settings::{
    Canary, Collect, Config, Cors, Documents, Drain, EngineKind, Feeds, Files, Hub, Jetstream,
    Limits, Log, LogFormat, Presence, Processing, Retention, RetentionBySpace, Server, Telemetry,
};
pub use source::Sources;
