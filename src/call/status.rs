//! From the core's errors to gRPC statuses: the only place.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Ending, methods::Method};
use crate::{
    blob,
    core::{Error, ErrorCode},
    log::{self, LogId, Sequence},
};

/// The domain in every `ErrorInfo`.
const DOMAIN: &str = "weir";
/// The trailer that gRPC clients with a retry policy wait for.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The range a client's wait before it retries is drawn from.
const RETRY_MILLIS: std::ops::Range<u64> = 100..1000;

/// A jittered wait before a retry, so that clients ended together do not come back together.
#[must_use]
pub fn retry_after() -> Duration {
    Duration::from_millis(rand::random_range(RETRY_MILLIS))
}

/// The canonical code of each outcome.
const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::KeyConflict | ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::LimitExceeded | ErrorCode::StorageFull => Code::ResourceExhausted,
        ErrorCode::PositionTrimmed
        | ErrorCode::PositionBeyondTail
        | ErrorCode::LogReplaced
        | ErrorCode::RangeOutside => Code::OutOfRange,
        ErrorCode::Superseded => Code::Aborted,
        ErrorCode::StorageUnavailable
        | ErrorCode::StorageFailed
        | ErrorCode::InstanceUnavailable
        | ErrorCode::Draining
        | ErrorCode::MaxAge => Code::Unavailable,
        ErrorCode::StorageCorrupt | ErrorCode::ChecksumMismatch => Code::DataLoss,
    }
}

/// The status of an error. What would show internals is logged here and answered with a fixed text.
#[must_use]
pub fn into_status(error: Error) -> Status {
    let code = error.code();
    let text = match &error {
        Error::Log(log::Error::Failed(_) | log::Error::Corrupt(_) | log::Error::Unavailable(_)) => {
            tracing::error!(%error, code = code.reason(), "the log failed a call");
            fixed_text(code).to_owned()
        }
        Error::Blob(blob::Error::Corrupt(_) | blob::Error::Unavailable(_)) => {
            tracing::error!(%error, code = code.reason(), "the file storage failed a call");
            match code {
                ErrorCode::StorageCorrupt => fixed_text(code).to_owned(),
                _ => "the file storage is not available now".to_owned(),
            }
        }
        Error::Registry(_) => {
            tracing::error!(%error, code = code.reason(), "the registry failed a call");
            "who is in the rooms cannot be known or said now".to_owned()
        }
        Error::Log(log::Error::Closed) => fixed_text(code).to_owned(),
        _ => error.to_string(),
    };
    finish(code, text, details(&error), metadata(&error))
}

/// The status of a call that comes before the instance can serve it.
#[must_use]
pub fn unavailable(why: &str) -> Status {
    finish(
        ErrorCode::StorageUnavailable,
        why.to_owned(),
        ErrorDetails::new(),
        HashMap::new(),
    )
}

const fn fixed_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::StorageCorrupt => "stored data does not read back",
        ErrorCode::StorageFailed => "the log's storage failed; this instance takes no more records",
        ErrorCode::Draining => "this instance is going away; reconnect to continue",
        ErrorCode::MaxAge => "the stream reached its maximum age; reconnect to continue",
        _ => "the log's storage is not available now",
    }
}

fn details(error: &Error) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    match error {
        Error::Invalid(violations) => {
            for violation in violations {
                details.add_bad_request_violation(&violation.field, &violation.description);
            }
        }
        Error::NotFound { kind, name } | Error::AlreadyExists { kind, name } => {
            details.set_resource_info(*kind, name, "", "");
        }
        Error::UnknownInstance { name, .. } => {
            details.set_resource_info("instance", name, "", "");
        }
        Error::Limit { what, limit } => {
            details.add_quota_failure_violation(*what, format!("at most {limit}"));
        }
        Error::Log(log::Error::Topics { limit }) => {
            details.add_quota_failure_violation("topics", format!("at most {limit}"));
        }
        Error::Log(log::Error::Full) => {
            details.add_quota_failure_violation("disk", "the log's storage is full");
        }
        Error::Blob(blob::Error::Full) => {
            details.add_quota_failure_violation("disk", "the file storage is full");
        }
        Error::KeyConflict { .. }
        | Error::Instance(_)
        | Error::Superseded
        | Error::Checksum
        | Error::OutOfRange { .. }
        | Error::Blob(_)
        | Error::Registry(_)
        | Error::Log(_) => {}
    }
    details
}

/// Positions that help a client go on.
fn metadata(error: &Error) -> HashMap<String, String> {
    let entry = match error {
        Error::OutOfRange { size } => {
            return HashMap::from([("size".into(), size.to_string())]);
        }
        Error::KeyConflict { sequence } => ("sequence", sequence),
        Error::Log(log::Error::Trimmed { first } | log::Error::Replaced { tail: first }) => {
            ("first_sequence", first)
        }
        Error::Log(log::Error::BeyondTail { tail }) => {
            let last = Sequence(tail.0.saturating_sub(1));
            return HashMap::from([("last_sequence".into(), last.to_string())]);
        }
        _ => return HashMap::new(),
    };
    HashMap::from([(entry.0.into(), entry.1.to_string())])
}

fn finish(
    code: ErrorCode,
    text: String,
    mut details: ErrorDetails,
    metadata: HashMap<String, String>,
) -> Status {
    details.set_error_info(code.reason(), DOMAIN, metadata);
    let retry = code.is_retryable().then(retry_after);
    if let Some(delay) = retry {
        details.set_retry_info(Some(delay));
    }
    let mut status = Status::with_error_details(grpc_code(code), text, details);
    if let Some(delay) = retry {
        let millis = MetadataValue::from(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        status.metadata_mut().insert(PUSHBACK, millis);
    }
    status
}

/// The status of a stream that the server ends; `position` is what the client resumes after.
pub(super) fn ended(ending: Ending, position: Option<Sequence>) -> Status {
    let code = match ending {
        Ending::Drain => ErrorCode::Draining,
        Ending::MaxAge => ErrorCode::MaxAge,
    };
    let metadata = position
        .map(|sequence| ("after_sequence".to_owned(), sequence.to_string()))
        .into_iter()
        .collect();
    finish(
        code,
        fixed_text(code).to_owned(),
        ErrorDetails::new(),
        metadata,
    )
}

/// The status of a request that names another log than `here`, which this instance serves.
pub(super) fn of_another_log(here: LogId) -> Status {
    let text = "the position is of another log and means nothing in this one: start from live, without a position, or from the \
                oldest message, after 0";
    finish(
        ErrorCode::LogReplaced,
        text.to_owned(),
        ErrorDetails::new(),
        HashMap::from([("log-id".into(), here.to_string())]),
    )
}

pub(super) fn deadline_exceeded(method: &Method) -> Status {
    Status::deadline_exceeded(format!("the deadline passed during {}", method.full_name))
}

pub(super) fn invalid_timeout() -> Status {
    into_status(Error::invalid(
        "grpc-timeout",
        "grpc-timeout must be 1 to 8 digits and a unit of H M S m u n",
    ))
}

/// Replaces the statuses that tonic gives a message it cannot take by the canonical ones: what is too large exhausts a
/// limit, what does not decode is a bad argument; neither is the server's internal fault.
pub(super) fn canonical(headers: &mut HeaderMap) {
    let code = code_of(headers);
    if !matches!(code, Some(Code::OutOfRange | Code::Internal)) {
        return;
    }
    let Some(status) =
        Status::from_header_map(headers).filter(|status| status.details().is_empty())
    else {
        return;
    };
    let text = status.message();
    let replaced = if code == Some(Code::OutOfRange) && text.contains("message length too large") {
        let mut details = ErrorDetails::new();
        details.add_quota_failure_violation("message", text);
        finish(
            ErrorCode::LimitExceeded,
            text.to_owned(),
            details,
            HashMap::new(),
        )
    } else if is_undecodable(text) {
        into_status(Error::invalid(
            "message",
            format!("the message does not decode: {text}"),
        ))
    } else {
        return;
    };
    headers.remove(Status::GRPC_STATUS);
    headers.remove(Status::GRPC_MESSAGE);
    // Encoding a status of our own making cannot fail: its text and details are escaped.
    if let Err(error) = replaced.add_header(headers) {
        tracing::error!(%error, "a status could not be written");
    }
}

fn is_undecodable(text: &str) -> bool {
    [
        "failed to decode Protobuf",
        "protocol error: received message",
        "Unexpected EOF decoding",
        "Missing request message",
        "tonic-web: ",
    ]
    .iter()
    .any(|part| text.contains(part))
}

/// The code in these headers or trailers.
pub(super) fn code_of(headers: &HeaderMap) -> Option<Code> {
    let value = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status() {
        // The reason, the canonical code, whether to retry, and whether certainly nothing was stored.
        let expected = [
            ("INVALID_ARGUMENT", Code::InvalidArgument, false, true),
            ("NOT_FOUND", Code::NotFound, false, true),
            ("IDEMPOTENCY_KEY_REUSED", Code::AlreadyExists, false, true),
            ("LIMIT_EXCEEDED", Code::ResourceExhausted, false, true),
            ("POSITION_TRIMMED", Code::OutOfRange, false, true),
            ("POSITION_BEYOND_TAIL", Code::OutOfRange, false, true),
            ("LOG_REPLACED", Code::OutOfRange, false, true),
            ("ALREADY_EXISTS", Code::AlreadyExists, false, true),
            ("SUPERSEDED", Code::Aborted, false, false),
            ("CHECKSUM_MISMATCH", Code::DataLoss, false, true),
            ("RANGE_OUTSIDE", Code::OutOfRange, false, true),
            ("STORAGE_FULL", Code::ResourceExhausted, true, true),
            ("STORAGE_UNAVAILABLE", Code::Unavailable, true, false),
            ("STORAGE_FAILED", Code::Unavailable, true, false),
            ("STORAGE_CORRUPT", Code::DataLoss, false, false),
            ("INSTANCE_UNAVAILABLE", Code::Unavailable, true, true),
            ("DRAINING", Code::Unavailable, true, false),
            ("MAX_AGE", Code::Unavailable, true, false),
        ];
        let found = ErrorCode::ALL.map(|code| {
            (
                code.reason(),
                grpc_code(code),
                code.is_retryable(),
                code.has_no_side_effects(),
            )
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_position_in_a_gap_says_where_to_go_on() {
        let tail = Sequence(40);
        let status = into_status(log::Error::Replaced { tail }.into());
        let info = status.get_details_error_info().unwrap();
        assert_eq!(status.code(), Code::OutOfRange);
        assert_eq!((&*info.reason, &*info.domain), ("LOG_REPLACED", DOMAIN));
        assert_eq!(info.metadata["first_sequence"], "40");
    }
}
