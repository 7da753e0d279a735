//! What happens to the connection, told on stderr.

use std::{fmt::Display, io, io::Write as _, time::Duration};

use super::failure::{ADVICE, explain};
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
            without_advice(&explain(addr, cause)),
            rounded(*delay)
        )),
    }
}

/// What happened, without what to do about it: the next attempt is already planned.
fn without_advice(text: &str) -> &str {
    ADVICE
        .iter()
        .find_map(|advice| text.strip_suffix(advice))
        .unwrap_or(text)
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
    use crate::client::{Client, RetryPolicy};

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

    #[tokio::test]
    async fn a_reconnect_asks_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let policy = RetryPolicy {
            max_retries: Some(0),
            ..RetryPolicy::default()
        };
        let client = Client::connect_lazy(&addr).unwrap();
        let client = client.with_publish_policy(policy);
        let cause = &client.send("ann", "general", "hi", "").await.unwrap_err();
        let delay = Duration::from_millis(27);
        assert_eq!(
            text(&addr, &Event::Reconnecting { delay, cause }).unwrap(),
            format!("cannot reach {addr}: connection refused; next attempt in 27 ms")
        );
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
