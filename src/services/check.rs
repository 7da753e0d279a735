//! Checks of what clients send, shared by every service: all violations of a request are reported together.

use std::fmt::Display;

use prost_types::Timestamp;

use crate::{
    core::{Error, Name, Violation, hub::Start},
    log::{self, EventTime, Sequence, Space, Topic, TopicError},
};

/// Items of a page when the request does not say.
const PAGE_SIZE: usize = 100;
/// Items of a page at most.
const MAX_PAGE_SIZE: usize = 1000;

/// Collects every violation of a message.
pub(super) struct Check<'a> {
    path: &'a dyn Display,
    violations: Vec<Violation>,
}

impl<'a> Check<'a> {
    /// Nothing is wrong yet; `path` is where the message stands in the call, for the fields' names.
    pub(super) const fn new(path: &'a dyn Display) -> Self {
        Self {
            path,
            violations: Vec::new(),
        }
    }

    /// Notes that `field` is wrong.
    pub(super) fn refuse(&mut self, field: &str, description: impl Into<String>) {
        let violation = Violation::new(format!("{}{field}", self.path), description);
        self.violations.push(violation);
    }

    fn violated(&mut self, field: &str, error: TopicError) {
        match error {
            TopicError::Blank => self.refuse(field, format!("{field} is required")),
            error => self.refuse(field, format!("{field} {error}")),
        }
    }

    /// A name that must be there.
    pub(super) fn name(&mut self, field: &str, text: impl Into<Box<str>>) -> Option<Name> {
        Name::new(text)
            .map_err(|error| self.violated(field, error))
            .ok()
    }

    /// A name that may be absent: empty. Blank but not empty is as wrong as elsewhere.
    pub(super) fn optional(&mut self, field: &str, text: String) -> Option<Name> {
        if text.is_empty() {
            return None;
        }
        Name::new(text)
            .map_err(|error| self.refuse(field, format!("{field} {error}")))
            .ok()
    }

    /// The topic that `text` names in `space`.
    pub(super) fn topic(&mut self, space: Space, field: &str, text: &str) -> Option<Topic> {
        Topic::new(space, text)
            .map_err(|error| self.violated(field, error))
            .ok()
    }

    /// The size of a page: 0 is the default, and what is too large is cut.
    pub(super) fn page_size(&mut self, size: i32) -> Option<usize> {
        match usize::try_from(size) {
            Ok(0) => Some(PAGE_SIZE),
            Ok(size) => Some(size.min(MAX_PAGE_SIZE)),
            Err(_) => {
                self.refuse("page_size", "page_size must not be negative");
                None
            }
        }
    }

    /// `value` when nothing was wrong.
    ///
    /// # Errors
    /// Every violation found.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Error> {
        match value {
            Some(value) if self.violations.is_empty() => Ok(value),
            _ => Err(Error::Invalid(self.violations)),
        }
    }
}

/// Where a subscription begins.
pub(super) const fn start(after_sequence: Option<u64>) -> Start {
    match after_sequence {
        None => Start::Live,
        Some(after) => Start::After(Sequence(after)),
    }
}

/// The present, as it goes over the wire.
pub(super) fn now() -> Timestamp {
    timestamp(log::Timestamp::now().into())
}

pub(super) const fn timestamp(time: EventTime) -> Timestamp {
    Timestamp {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}

pub(super) const fn event_time(time: Timestamp) -> EventTime {
    EventTime {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}
