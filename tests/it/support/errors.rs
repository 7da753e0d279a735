//! What a status says besides its code.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The fields that a `BadRequest` names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request().expect("a BadRequest");
    let violations = request.field_violations.into_iter();
    violations.map(|violation| violation.field).collect()
}

/// The reason in the `ErrorInfo`, and its metadata.
pub(crate) fn info(status: &Status) -> (String, HashMap<String, String>) {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.domain, "weir");
    (info.reason, info.metadata)
}

/// How long the client should wait before it retries.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Asserts a bad argument, with all that it says.
#[track_caller]
pub(crate) fn assert_invalid(status: &Status, text: &str, names: &[&str]) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(status.message(), text);
    assert_eq!(fields(status), names);
    assert_eq!(info(status).0, "INVALID_ARGUMENT");
    assert_eq!(retry_after(status), None);
}

/// Asserts that the server ended a stream for `reason` and says how to go on; returns where to resume, if it says so.
#[track_caller]
pub(crate) fn assert_ended(status: &Status, reason: &str) -> Option<u64> {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let (found, metadata) = info(status);
    assert_eq!(found, reason);
    let delay = retry_after(status).expect("a RetryInfo");
    assert!((100..1000).contains(&delay.as_millis()), "{delay:?}");
    let pushback = status
        .metadata()
        .get("grpc-retry-pushback-ms")
        .expect("a pushback");
    assert_eq!(pushback.to_str().unwrap(), delay.as_millis().to_string());
    metadata
        .get("after_sequence")
        .map(|text| text.parse().unwrap())
}
