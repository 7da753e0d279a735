//! Topic names.

use std::{fmt, str::FromStr, sync::Arc};

/// The kinds of topic; a closed set, so it can label metrics and carry retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Chat rooms.
    Room,
    /// What happened to each user.
    Event,
    /// Notifications of each user.
    Notification,
    /// Notifications for all users; one topic.
    Broadcast,
    /// Points that clients publish.
    Data,
    /// What the service tells of itself: its measurements, events and log lines, and telemetry it collected.
    Telemetry,
    /// Consumers' feedback; one topic.
    Feedback,
    /// The staff's replies to each consumer.
    Reply,
    /// Updates of each shared document.
    Document,
    /// Who came to rooms and went; one topic.
    Presence,
    /// The service's own end-to-end probe.
    Canary,
}

impl Space {
    /// Every space.
    pub const ALL: [Self; 11] = [
        Self::Room,
        Self::Event,
        Self::Notification,
        Self::Broadcast,
        Self::Data,
        Self::Telemetry,
        Self::Feedback,
        Self::Reply,
        Self::Document,
        Self::Presence,
        Self::Canary,
    ];

    /// Its name in topics, metrics and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Event => "event",
            Self::Notification => "notification",
            Self::Broadcast => "broadcast",
            Self::Data => "data",
            Self::Telemetry => "telemetry",
            Self::Feedback => "feedback",
            Self::Reply => "reply",
            Self::Document => "document",
            Self::Presence => "presence",
            Self::Canary => "canary",
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Space {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|space| space.as_str() == text)
            .ok_or(TopicError::UnknownSpace)
    }
}

/// A topic's name: a space and a name within it. The name is any non-blank UTF-8 of at most [`Topic::MAX_NAME_BYTES`];
/// engines escape what their storage cannot hold. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    space: Space,
    name: Arc<str>,
}

impl Topic {
    /// The longest name, in bytes.
    pub const MAX_NAME_BYTES: usize = 256;

    /// The topic called `name` in `space`.
    ///
    /// # Errors
    /// The name is blank or too long.
    pub fn new(space: Space, name: &str) -> Result<Self, TopicError> {
        if name.trim().is_empty() {
            return Err(TopicError::Blank);
        }
        if name.len() > Self::MAX_NAME_BYTES {
            return Err(TopicError::TooLong);
        }
        Ok(Self {
            space,
            name: name.into(),
        })
    }

    /// What comes before every topic of `space` in name order; no topic itself.
    pub(super) fn least(space: Space) -> Self {
        Self {
            space,
            name: "".into(),
        }
    }

    /// Its space.
    #[must_use]
    pub const fn space(&self) -> Space {
        self.space
    }

    /// Its name within the space.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.space, self.name)
    }
}

/// Why a text names no topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing but white space.
    #[error("must not be blank")]
    Blank,
    /// More than [`Topic::MAX_NAME_BYTES`].
    #[error("must be at most 256 bytes")]
    TooLong,
    /// No such space.
    #[error("unknown space")]
    UnknownSpace,
}
