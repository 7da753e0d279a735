//! The domain: one ordered log behind rooms and, later, every other door.
//!
//! Owns the fan-out ([`hub`]), appending ([`Appender`]) and the meaning of records in each space. Knows no tonic, prost or
//! axum type, and no engine: services translate the wire into it, engines store below it.

pub mod appender;
pub mod canary;
pub mod collect;
pub mod documents;
mod error;
pub mod feedback;
pub mod feeds;
pub mod files;
pub mod hub;
pub mod instance;
pub mod instances;
mod machine;
pub mod presence;
pub mod processing;
pub mod readiness;
pub mod rooms;
pub mod signals;
mod topics;

pub use appender::{Appender, Pipeline};
pub use error::{Error, ErrorCode, Violation};
pub use feedback::Feedback;
pub use feeds::Feeds;
pub use files::Files;
pub use hub::Hub;
pub use instance::Instance;
pub use instances::Instances;
pub use presence::Presence;
pub use readiness::Readiness;
pub use signals::Signals;
pub use topics::Topics;

use crate::log::{Topic, TopicError};

/// An identifier given by a client: non-blank, at most 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// It is blank or too long.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, TopicError> {
        let text = text.into();
        if text.trim().is_empty() {
            Err(TopicError::Blank)
        } else if text.len() > Topic::MAX_NAME_BYTES {
            Err(TopicError::TooLong)
        } else {
            Ok(Self(text))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Name> for Box<str> {
    fn from(name: Name) -> Self {
        name.0
    }
}
