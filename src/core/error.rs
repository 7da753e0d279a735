//! What can go wrong, in the domain's words.

use crate::{
    blob,
    log::{self, Sequence},
    registry,
};

/// Why the core refused or failed. Services turn it into a status in one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request breaks rules; every violation is named.
    #[error("{}", describe(.0))]
    Invalid(Vec<Violation>),
    /// The named thing does not exist.
    #[error("{kind} {name} not found")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// No instance has this name.
    #[error("instance {name} not found; there {}", roll(.known, *.more))]
    UnknownInstance {
        /// The name.
        name: String,
        /// Names of those that there are.
        known: Vec<String>,
        /// How many more there are.
        more: usize,
    },
    /// Another instance does not answer; it may later.
    #[error("{0}")]
    Instance(String),
    /// The idempotency key was used for other content.
    #[error("the idempotency key was already used for another content at sequence {sequence}")]
    KeyConflict {
        /// The record that the key stands for.
        sequence: Sequence,
    },
    /// One stream asks for more than it may have.
    #[error("{what} is limited to {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The named thing exists already, and is another.
    #[error("{kind} {name} already exists with other metadata")]
    AlreadyExists {
        /// What kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Another stream took over what this one wrote.
    #[error("another stream took this upload over")]
    Superseded,
    /// A file's content is not what its checksum says.
    #[error("File checksum verification failed")]
    Checksum,
    /// The range begins behind the end of a file.
    #[error("the range begins behind the end of the file, which has {size} bytes")]
    OutOfRange {
        /// The file's size in bytes.
        size: u64,
    },
    /// The file storage refused or failed.
    #[error(transparent)]
    Blob(blob::Error),
    /// Who is where cannot be known or said now.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The log refused or failed.
    #[error(transparent)]
    Log(#[from] log::Error),
}

/// One broken rule of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }
}

fn roll(known: &[String], more: usize) -> String {
    let verb = if known.len() == 1 { "is" } else { "are" };
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{verb} {}{more}", known.join(", "))
}

fn describe(violations: &[Violation]) -> String {
    let texts: Vec<_> = violations
        .iter()
        .map(|violation| violation.description.as_str())
        .collect();
    texts.join("; ")
}

/// The closed set of outcomes a client can meet; each has one canonical status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The request breaks a rule.
    InvalidArgument,
    /// No such thing.
    NotFound,
    /// The idempotency key stands for other content.
    KeyConflict,
    /// The stream asks for more than its limit.
    LimitExceeded,
    /// Records after the position are no longer retained.
    PositionTrimmed,
    /// The position lies after the topic's end.
    PositionBeyondTail,
    /// The position belongs to another log than this one.
    LogReplaced,
    /// The thing exists already, and is another.
    AlreadyExists,
    /// Another stream took over.
    Superseded,
    /// The content does not match its checksum.
    ChecksumMismatch,
    /// The range lies outside of the file.
    RangeOutside,
    /// No disk space.
    StorageFull,
    /// The storage cannot be reached now.
    StorageUnavailable,
    /// The storage failed for good.
    StorageFailed,
    /// Stored data does not read back.
    StorageCorrupt,
    /// The instance that was asked for does not answer.
    InstanceUnavailable,
    /// The instance is going away; another continues.
    Draining,
    /// The stream reached its maximum age; reconnect and continue.
    MaxAge,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 18] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::KeyConflict,
        Self::LimitExceeded,
        Self::PositionTrimmed,
        Self::PositionBeyondTail,
        Self::LogReplaced,
        Self::AlreadyExists,
        Self::Superseded,
        Self::ChecksumMismatch,
        Self::RangeOutside,
        Self::StorageFull,
        Self::StorageUnavailable,
        Self::StorageFailed,
        Self::StorageCorrupt,
        Self::InstanceUnavailable,
        Self::Draining,
        Self::MaxAge,
    ];

    /// The machine-readable reason in `ErrorInfo`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::KeyConflict => "IDEMPOTENCY_KEY_REUSED",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::PositionTrimmed => "POSITION_TRIMMED",
            Self::PositionBeyondTail => "POSITION_BEYOND_TAIL",
            Self::LogReplaced => "LOG_REPLACED",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Superseded => "SUPERSEDED",
            Self::ChecksumMismatch => "CHECKSUM_MISMATCH",
            Self::RangeOutside => "RANGE_OUTSIDE",
            Self::StorageFull => "STORAGE_FULL",
            Self::StorageUnavailable => "STORAGE_UNAVAILABLE",
            Self::StorageFailed => "STORAGE_FAILED",
            Self::StorageCorrupt => "STORAGE_CORRUPT",
            Self::InstanceUnavailable => "INSTANCE_UNAVAILABLE",
            Self::Draining => "DRAINING",
            Self::MaxAge => "MAX_AGE",
        }
    }

    /// Whether the same call may succeed later, here or on another instance.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::StorageFull
            | Self::StorageUnavailable
            | Self::StorageFailed
            | Self::InstanceUnavailable
            | Self::Draining
            | Self::MaxAge => true,
            Self::InvalidArgument
            | Self::NotFound
            | Self::KeyConflict
            | Self::LimitExceeded
            | Self::PositionTrimmed
            | Self::PositionBeyondTail
            | Self::LogReplaced
            | Self::AlreadyExists
            | Self::Superseded
            | Self::ChecksumMismatch
            | Self::RangeOutside
            | Self::StorageCorrupt => false,
        }
    }

    /// Whether a call that ended so certainly stored nothing of the message it answers.
    #[must_use]
    pub const fn has_no_side_effects(self) -> bool {
        match self {
            Self::InvalidArgument
            | Self::NotFound
            | Self::KeyConflict
            | Self::LimitExceeded
            | Self::PositionTrimmed
            | Self::PositionBeyondTail
            | Self::LogReplaced
            | Self::AlreadyExists
            | Self::ChecksumMismatch
            | Self::RangeOutside
            | Self::StorageFull
            | Self::InstanceUnavailable => true,
            Self::Superseded
            | Self::StorageUnavailable
            | Self::StorageFailed
            | Self::StorageCorrupt
            | Self::Draining
            | Self::MaxAge => false,
        }
    }
}

impl From<blob::Error> for Error {
    fn from(error: blob::Error) -> Self {
        match error {
            blob::Error::Conflict => Self::Superseded,
            error => Self::Blob(error),
        }
    }
}

impl Error {
    /// The code this error has for a client.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::InvalidArgument,
            Self::NotFound { .. } | Self::UnknownInstance { .. } => ErrorCode::NotFound,
            Self::Instance(_) => ErrorCode::InstanceUnavailable,
            Self::KeyConflict { .. } => ErrorCode::KeyConflict,
            Self::Limit { .. } => ErrorCode::LimitExceeded,
            Self::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            Self::Superseded => ErrorCode::Superseded,
            Self::Checksum => ErrorCode::ChecksumMismatch,
            Self::OutOfRange { .. } => ErrorCode::RangeOutside,
            Self::Blob(error) => match error {
                blob::Error::Full => ErrorCode::StorageFull,
                blob::Error::Unavailable(_) | blob::Error::Busy => ErrorCode::StorageUnavailable,
                blob::Error::Corrupt(_) => ErrorCode::StorageCorrupt,
                blob::Error::Conflict => ErrorCode::Superseded,
            },
            Self::Registry(_) => ErrorCode::StorageUnavailable,
            Self::Log(error) => match error {
                log::Error::Full => ErrorCode::StorageFull,
                log::Error::Topics { .. } => ErrorCode::LimitExceeded,
                log::Error::Unavailable(_) => ErrorCode::StorageUnavailable,
                log::Error::Failed(_) => ErrorCode::StorageFailed,
                log::Error::Corrupt(_) => ErrorCode::StorageCorrupt,
                log::Error::Trimmed { .. } => ErrorCode::PositionTrimmed,
                log::Error::BeyondTail { .. } => ErrorCode::PositionBeyondTail,
                log::Error::Replaced { .. } => ErrorCode::LogReplaced,
                log::Error::Closed => ErrorCode::Draining,
            },
        }
    }

    /// One violation of one field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, description)])
    }
}
