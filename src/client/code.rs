//! Which statuses are worth another try.

use tonic::Code;

/// Whether a call that ended with `code` may be repeated.
///
/// Everything this client repeats is harmless to repeat: a subscription reads, a publish carries an idempotency key. So a
/// code is retryable when the same call can succeed later, and permanent when repeating it can only fail again.
///
/// `UNKNOWN`, `INTERNAL` and `CANCELLED` are retryable because that is how a cut connection or a proxy that reset the
/// stream looks to the client; `OK` because a subscription has no end of its own.
pub fn is_retryable(code: Code) -> bool {
    match code {
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => true,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_decided() {
        let retryable = [0, 1, 2, 4, 8, 10, 13, 14];
        for number in 0..=16 {
            let code = Code::from_i32(number);
            assert_eq!(is_retryable(code), retryable.contains(&number), "{code:?}");
        }
    }
}
