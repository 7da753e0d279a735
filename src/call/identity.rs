//! The log's identity on the wire: responses name it, and a request that names another log is refused.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tonic::{Status, body::Body};

use super::{Method, status};
use crate::{core::Error, log::LogId};

/// The header of requests and responses.
const LOG_ID: HeaderName = HeaderName::from_static("log-id");

/// The text for those who come before the log is open.
pub(crate) const RECOVERING: &str = "the log is being recovered";

/// The identity of the log that this instance serves, once it is open. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity(Arc<OnceLock<(LogId, HeaderValue)>>);

impl Identity {
    /// Names the log from now on.
    pub(super) fn set(&self, id: LogId) {
        // Digits are a header's value always.
        if let Ok(value) = HeaderValue::try_from(id.to_string()) {
            self.0.get_or_init(|| (id, value));
        }
    }

    /// Refuses a request that names another log: its positions mean nothing here.
    ///
    /// # Errors
    /// The status to refuse it with.
    pub(super) fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), Status> {
        if !method.is_of_core() {
            return Ok(());
        }
        for value in headers.get_all(LOG_ID) {
            let named = value.to_str().ok().and_then(|text| text.parse().ok());
            let named: LogId = named.ok_or_else(malformed)?;
            match self.0.get() {
                Some((here, _)) if named == *here => {}
                Some((here, _)) => return Err(status::of_another_log(*here)),
                None => return Err(status::unavailable(RECOVERING)),
            }
        }
        Ok(())
    }

    /// The value that names the log in the response to a call of `method`; none before the log is open.
    pub(super) fn name(&self, method: &Method) -> Option<HeaderValue> {
        let (_, value) = self.0.get().filter(|_| method.is_of_core())?;
        Some(value.clone())
    }
}

fn malformed() -> Status {
    let text = "log-id must be 32 lower-case hexadecimal digits";
    status::into_status(Error::invalid(LOG_ID.as_str(), text))
}

/// Puts the log's name into the header of a response, of a refusal too.
pub(super) fn named(mut response: Response<Body>, name: Option<HeaderValue>) -> Response<Body> {
    if let Some(name) = name {
        response.headers_mut().insert(LOG_ID, name);
    }
    response
}
