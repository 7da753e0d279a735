//! What happens to the connection, told on stderr.

use std::{fmt::Display, io, io::Write as _, time::Duration};

use super::failure::explain;
use crate::client::Event;

/// An observer of a subscription to the server at `addr`.
pub(super) fn observer(addr: &str) -> impl FnMut(Event<'_>) + Send + 'static {
    let addr = addr.to_owned();
    move |event| {
        if let Some(text) = text(&addr, &event) {
            say(text);
        }
    }
}

/// Writes one line to stderr; a closed stderr loses it.
pub(super) fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "-- {text}");
}

/// What there is to say about an event; the first connection is nothing special.
fn text(addr: &str, event: &Event<'_>) -> Option<String> {
    match event {
        Event::Connected {
            is_resumed: false, ..
        } => None,
        Event::Connected {
            is_resumed: true,
            position,
        } => Some(match position {
            Some(position) => format!("connected again, continuing after {position}"),
            None => "connected again".to_owned(),
        }),
        Event::Reconnecting { delay, cause } => Some(format!(
            "{}; next attempt in {}",
            explain(addr, cause).trim_end_matches("; try again later"),
            rounded(*delay)
        )),
    }
}

/// A delay as people say it: milliseconds below a second, else seconds with one decimal.
fn rounded(delay: Duration) -> String {
    match delay.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", delay.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_reconnect_is_told_with_cause_and_delay() {
        let cause = &Status::unavailable("draining");
        let event = |delay| Event::Reconnecting { delay, cause };
        let of = |millis| text("http://h:1", &event(Duration::from_millis(millis))).unwrap();
        assert_eq!(
            of(50),
            "http://h:1 is unavailable: draining; next attempt in 50 ms"
        );
        assert!(of(2345).ends_with("in 2.3 s"), "{}", of(2345));
    }

    #[test]
    fn only_a_renewed_connection_is_told() {
        let connected = |is_resumed| Event::Connected {
            is_resumed,
            position: Some(4),
        };
        assert_eq!(text("", &connected(false)), None);
        assert_eq!(
            text("", &connected(true)).unwrap(),
            "connected again, continuing after 4"
        );
    }
}
