//! How a command fails: one sentence for people, one number for scripts.

use std::{error::Error, fmt, io, io::Write as _, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::format::plain;
use crate::client::ConnectError;

/// What the exit codes mean.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed, and no other code says it better.
    pub const FAILED: u8 = 1;
    /// The arguments or the configuration are wrong.
    pub const USAGE: u8 = 2;
    /// The server cannot be reached or is unavailable: later may be better.
    pub const UNAVAILABLE: u8 = 3;
    /// The server refused: the same request will be refused again.
    pub const REFUSED: u8 = 4;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
    /// SIGTERM. A server that drained ends with [`OK`].
    pub const TERMINATED: u8 = 143;
}

/// Why a command ended early: an exit code and, unless there is nothing to say, a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// Failed for the reason given.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(exit::FAILED, message)
    }

    /// Arguments or configuration are wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    /// It cannot be done now; later may be better.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(exit::UNAVAILABLE, message)
    }

    /// The server took the call and refused part of it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(exit::REFUSED, message)
    }

    /// Ends with `code` and says nothing.
    pub fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// A call to the server at `addr` ended with `status`.
    pub fn status(addr: &str, status: &Status) -> Self {
        Self::new(exit_code(status.code()), explain(addr, status))
    }

    /// The same with `context` in front of the sentence.
    #[must_use]
    pub fn context(self, context: &str) -> Self {
        let message = format!("{context}: {}", self.message);
        Self { message, ..self }
    }

    /// The code to exit with, see [`exit`].
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Says it on stderr and returns the code to exit with.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            // Without stderr the exit code has to do.
            let _ = writeln!(io::stderr(), "weir: {self}");
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<io::Error> for Failure {
    /// A reader that went away ends a command quietly; every other error is a failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(exit::OK),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match &error {
            ConnectError::Address { .. } => Self::usage(error.to_string()),
            ConnectError::Unreachable { addr, source } => {
                Self::new(exit::UNAVAILABLE, unreachable(addr, source))
            }
        }
    }
}

/// The exit code for a call that ended with `code`.
fn exit_code(code: Code) -> u8 {
    match code {
        Code::Ok => exit::OK,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => exit::FAILED,
        Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted | Code::Unavailable => {
            exit::UNAVAILABLE
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => exit::REFUSED,
    }
}

/// What a sentence may end with for somebody who decides about the next try.
pub(super) const ADVICE: [&str; 2] = [IS_RUNNING, TRY_LATER];
const IS_RUNNING: &str = "; is `weir serve` running?";
const TRY_LATER: &str = "; try again later";
/// The reason of a status: the position is of another log than the server's.
const LOG_REPLACED: &str = "LOG_REPLACED";

/// One sentence about a status, safe to print.
pub(super) fn explain(addr: &str, status: &Status) -> String {
    let local = status
        .source()
        .filter(|_| status.code() == Code::Unavailable);
    match (local, status.code()) {
        (Some(cause), _) => unreachable(addr, cause),
        (None, Code::Unimplemented) => format!("{addr} does not offer this call: {}", told(status)),
        (None, code) => match exit_code(code) {
            exit::REFUSED => format!("refused: {}", told(status)),
            exit::UNAVAILABLE => {
                format!("{addr} is unavailable: {}{TRY_LATER}", told(status))
            }
            _ => format!("the call failed: {}", told(status)),
        },
    }
}

fn unreachable(addr: &str, cause: &(dyn Error + 'static)) -> String {
    format!("cannot reach {addr}: {}{IS_RUNNING}", root_cause(cause))
}

/// The status' message, or its code's meaning, with the details that help to mend the request.
fn told(status: &Status) -> String {
    let text = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    plain(&format!(
        "{text}{}{}",
        violations(status),
        first_left(status)
    ))
    .into_owned()
}

/// The fields that are wrong, in parentheses.
fn violations(status: &Status) -> String {
    let fields = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations);
    let fields: Vec<_> = fields
        .into_iter()
        .flatten()
        .map(|violation| format!("{}: {}", violation.field, violation.description))
        .collect();
    match fields.is_empty() {
        true => String::new(),
        false => format!(" ({})", fields.join("; ")),
    }
}

/// The position to go on from, when retention took what was asked for or a restored backup does not have it.
fn first_left(status: &Status) -> String {
    let Some(info) = status.get_details_error_info() else {
        return String::new();
    };
    let first = info.metadata.get("first_sequence");
    let Some(first) = first.and_then(|first| first.parse::<u64>().ok()) else {
        return String::new();
    };
    let what = if info.reason == LOG_REPLACED {
        "what came after the restore"
    } else {
        "the first message that is left"
    };
    format!("; {what} follows `--after {}`", first.saturating_sub(1))
}

/// The innermost cause, without the number of the system's error.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;
    use crate::client::Client;

    const ADDR: &str = "http://weir.example:50051";

    fn of(status: &Status) -> (u8, String) {
        let failure = Failure::status(ADDR, status);
        (failure.code(), failure.to_string())
    }

    #[test]
    fn every_code_has_an_exit_code() {
        let expected = [0, 1, 1, 4, 3, 4, 4, 4, 3, 4, 3, 4, 4, 1, 3, 1, 4];
        let actual: Vec<_> = (0..=16)
            .map(|code| exit_code(Code::from_i32(code)))
            .collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn a_refusal_names_the_fields() {
        let details = ErrorDetails::with_bad_request_violation("user", "must not be blank");
        let status = Status::with_error_details(Code::InvalidArgument, "user is required", details);
        let expected = "refused: user is required (user: must not be blank)";
        assert_eq!(of(&status), (exit::REFUSED, expected.into()));
    }

    #[test]
    fn a_lost_position_names_the_first_that_is_left() {
        let metadata = HashMap::from([("first_sequence".to_owned(), "40".to_owned())]);
        let details = ErrorDetails::with_error_info("TRIMMED", "weir", metadata);
        let status = Status::with_error_details(Code::OutOfRange, "too old", details);
        let expected = "refused: too old; the first message that is left follows `--after 39`";
        assert_eq!(of(&status), (exit::REFUSED, expected.into()));
    }

    #[test]
    fn a_position_of_a_replaced_log_is_refused_in_one_sentence() {
        let replaced = |text: &str, metadata: &[(&str, &str)]| {
            let metadata = metadata
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let details = ErrorDetails::with_error_info(
                LOG_REPLACED,
                "weir",
                metadata.collect::<HashMap<_, _>>(),
            );
            of(&Status::with_error_details(Code::OutOfRange, text, details))
        };
        assert_eq!(
            replaced("another log", &[("log-id", "00")]),
            (exit::REFUSED, "refused: another log".into())
        );
        let expected = "refused: a backup; what came after the restore follows `--after 39`";
        assert_eq!(
            replaced("a backup", &[("first_sequence", "40")]),
            (exit::REFUSED, expected.into())
        );
    }

    #[test]
    fn what_the_server_says_cannot_control_the_terminal() {
        let (_, text) = of(&Status::internal("\u{1b}[2Jgone\n"));
        assert_eq!(text, "the call failed: \\u{1b}[2Jgone\\n");
    }

    #[test]
    fn a_closed_output_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure, Failure::silent(exit::OK));
        assert_eq!(Failure::from(io::Error::other("disk")).code(), exit::FAILED);
    }

    #[tokio::test]
    async fn nobody_listening_says_what_to_do() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let expected = format!("cannot reach {addr}: connection refused; is `weir serve` running?");
        let eager = Failure::from(Client::connect(&addr).await.err().unwrap());
        assert_eq!(
            (eager.code(), eager.to_string()),
            (exit::UNAVAILABLE, expected.clone())
        );
        let client =
            Client::connect_lazy(&addr)
                .unwrap()
                .with_publish_policy(crate::client::RetryPolicy {
                    max_retries: Some(0),
                    ..Default::default()
                });
        let status = client.send("ann", "general", "hi", "").await.unwrap_err();
        let lazy = Failure::status(&addr, &status);
        assert_eq!(
            (lazy.code(), lazy.to_string()),
            (exit::UNAVAILABLE, expected)
        );
    }

    #[test]
    fn a_malformed_address_is_wrong_usage() {
        let failure = Failure::from(Client::connect_lazy("localhost:50051").err().unwrap());
        assert_eq!(failure.code(), exit::USAGE);
    }
}
