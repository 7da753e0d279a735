//! Log lines for the topic `logs`: the layer that notes them, and the queue they wait in.
//!
//! It must not feed back on itself: storing a line must not make lines that are stored in turn. So it takes lines of level
//! INFO and above only (nothing that happens for each append, delivery or frame is said as loudly), of the storage engine's
//! libraries warnings and above, and who stores them logs nothing.

use std::fmt;

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::{Layer, layer::Context};

use super::queue::Queue;
use crate::log::Timestamp;

/// Lines that may wait; further ones are dropped and counted.
const WAITING: usize = 1024;
/// Fields of one line at most.
const FIELDS: usize = 16;
/// Bytes of one text at most; the rest is cut off.
const TEXT_BYTES: usize = 4096;

/// A log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was said.
    pub time: Timestamp,
    /// How severe it is.
    pub level: Level,
    /// Which part of the program says it.
    pub target: String,
    /// What it says.
    pub message: String,
    /// Its values.
    pub fields: Vec<(&'static str, String)>,
}

impl Line {
    /// The severity as OpenTelemetry numbers it: TRACE 1, DEBUG 5, INFO 9, WARN 13, ERROR 17.
    #[must_use]
    pub fn severity(&self) -> u8 {
        match self.level {
            Level::TRACE => 1,
            Level::DEBUG => 5,
            Level::INFO => 9,
            Level::WARN => 13,
            Level::ERROR => 17,
        }
    }
}

/// The lines that nobody took yet. A cheap handle.
pub type Lines = Queue<Line>;

/// Notes lines.
pub(super) struct LineFeed(Lines);

impl LineFeed {
    pub(super) fn new() -> (Self, Lines) {
        let lines = Queue::new(WAITING);
        (Self(lines.clone()), lines)
    }
}

/// Whether a line may be noted, by what is known before it is said.
pub(super) fn is_taken(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && *metadata.level() <= Level::INFO
}

impl<S: Subscriber> Layer<S> for LineFeed {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let normal = event.normalized_metadata();
        let metadata = normal.as_ref().unwrap_or_else(|| event.metadata());
        // Lines of the `log` crate have their real target only here.
        if !is_taken(metadata) {
            return;
        }
        self.0.push(|| {
            let mut texts = Texts::default();
            event.record(&mut texts);
            Line {
                time: Timestamp::now(),
                level: *metadata.level(),
                target: metadata.target().to_owned(),
                message: texts.message,
                fields: texts.fields,
            }
        });
    }
}

#[derive(Default)]
struct Texts {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Texts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.note(field, value.to_string());
    }
}

impl Texts {
    fn note(&mut self, field: &Field, mut text: String) {
        let mut end = text.len().min(TEXT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        match field.name() {
            "message" => self.message = text,
            // Where a line of the `log` crate came from is in its target.
            name if name.starts_with("log.") => {}
            name if self.fields.len() < FIELDS => self.fields.push((name, text)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{Registry, layer::SubscriberExt as _};

    use super::*;

    #[test]
    fn lines_are_noted_with_their_fields_and_quiet_ones_are_not() {
        let (feed, lines) = LineFeed::new();
        tracing::subscriber::with_default(Registry::default().with(feed), || {
            tracing::info!(target: "weir::a", count = 3, name = "x", "hello");
            tracing::debug!("too quiet");
            tracing::warn!(target: "library", "a library complains");
            tracing::error!(text = "é".repeat(TEXT_BYTES), "long");
        });
        let taken = lines.take();
        let seen: Vec<_> = taken
            .iter()
            .map(|line| (line.severity(), line.target.as_str(), line.message.as_str()))
            .collect();
        assert_eq!(seen[0], (9, "weir::a", "hello"));
        assert_eq!(seen[1], (13, "library", "a library complains"));
        assert_eq!((seen[2].0, seen[2].2), (17, "long"));
        assert_eq!(seen.len(), 3);
        let fields = [("count", "3".to_owned()), ("name", "x".to_owned())];
        assert_eq!(taken[0].fields, fields);
        assert_eq!(taken[2].fields[0].1.len(), TEXT_BYTES);
    }

    #[test]
    fn lines_nobody_takes_are_bounded() {
        let (feed, lines) = LineFeed::new();
        tracing::subscriber::with_default(Registry::default().with(feed), || {
            for number in 0..WAITING + 10 {
                tracing::info!(number, "busy");
            }
        });
        assert_eq!(lines.take().len(), WAITING);
        assert_eq!(lines.take_dropped(), 10);
    }
}
