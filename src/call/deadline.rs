//! The caller's deadline, from `grpc-timeout`.

use std::time::Duration;

use http::HeaderMap;

/// The header's name.
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Digits the protocol allows.
const MAX_DIGITS: usize = 8;

/// The time the caller gives the call; `None` when it gives no limit.
///
/// # Errors
/// The header is not what the protocol says.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, InvalidTimeout> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| InvalidTimeout)?;
    parse(text).map(Some)
}

/// `grpc-timeout` is neither 1 to 8 digits nor followed by one of `H M S m u n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidTimeout;

fn parse(text: &str) -> Result<Duration, InvalidTimeout> {
    let split = text.len().checked_sub(1).ok_or(InvalidTimeout)?;
    let (digits, unit) = text.split_at_checked(split).ok_or(InvalidTimeout)?;
    let is_number = !digits.is_empty()
        && digits.len() <= MAX_DIGITS
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(InvalidTimeout);
    }
    let number: u64 = digits.parse().map_err(|_| InvalidTimeout)?;
    match unit {
        "H" => Ok(Duration::from_secs(number * 3600)),
        "M" => Ok(Duration::from_secs(number * 60)),
        "S" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_millis(number)),
        "u" => Ok(Duration::from_micros(number)),
        "n" => Ok(Duration::from_nanos(number)),
        _ => Err(InvalidTimeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_refuses_the_rest() {
        assert_eq!(parse("2H"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Ok(Duration::from_secs(180)));
        assert_eq!(parse("10S"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("250m"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Ok(Duration::from_micros(7)));
        assert_eq!(parse("99999999n"), Ok(Duration::from_nanos(99_999_999)));
        for text in ["", "S", "1", "-1S", "1s", "123456789S", "1 S", "é", "1é"] {
            assert_eq!(parse(text), Err(InvalidTimeout), "{text:?}");
        }
    }
}
