//! The place where a subscription stands: what it received last, of which log, and so where it continues.

use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt as _;

use super::Sequenced;

/// The response header, and the `ErrorInfo` metadata key, in which the server tells a stream's position.
const HEADER: &str = "after-sequence";
const METADATA: &str = "after_sequence";
/// The header, of responses and requests, that names the log.
const LOG_ID: &str = "log-id";

/// The place where a stream is to begin.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// After this sequence; `None`: live from now.
    pub after_sequence: Option<u64>,
    /// The log that gave the position out, where it is known.
    log: Option<AsciiMetadataValue>,
}

impl Resume {
    /// A request with `message` that names the log of the position, so that a server with another log refuses it.
    #[must_use]
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(log) = &self.log {
            request.metadata_mut().insert(LOG_ID, log.clone());
        }
        request
    }
}

/// The position of one subscription.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    position: Option<u64>,
    /// The log that the position is of, once a server told it.
    log: Option<AsciiMetadataValue>,
    is_greeted: bool,
    duplicates: u64,
}

impl Cursor {
    /// Starts after `position`; `None`: live from now.
    pub(super) fn new(position: Option<u64>) -> Self {
        Self {
            position,
            ..Self::default()
        }
    }

    /// The position to continue after; `None` as long as it is unknown.
    pub(super) fn position(&self) -> Option<u64> {
        self.position
    }

    /// The place to continue at.
    pub(super) fn resume(&self) -> Resume {
        Resume {
            after_sequence: self.position,
            log: self.log.clone().filter(|_| self.position.is_some()),
        }
    }

    /// How many records came again and were dropped.
    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Takes the position at which the server opened the stream, unless an own one is known: that one was asked for. The log
    /// is the one of the position.
    pub(super) fn note_opened(&mut self, headers: &MetadataMap) {
        if self.position.is_none() || self.log.is_none() {
            self.note_log(headers);
        }
        let told = headers
            .get(HEADER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        self.position = self.position.or(told);
    }

    /// Takes the position at which the server ended the stream; it may lie after the last record received, when what
    /// lies between was not meant for this subscriber.
    pub(super) fn note_ended(&mut self, status: &Status) {
        let told = status
            .get_details_error_info()
            .and_then(|info| info.metadata.get(METADATA)?.parse().ok());
        if self.position.is_none() && told.is_some() {
            self.note_log(status.metadata());
        }
        self.position = self.position.max(told);
    }

    fn note_log(&mut self, headers: &MetadataMap) {
        if let Some(log) = headers.get(LOG_ID) {
            self.log = Some(log.clone());
        }
    }

    /// Whether `item` is news; false for a greeting repeated after a reconnect and for a record received before.
    pub(super) fn admit(&mut self, item: &impl Sequenced) -> bool {
        if item.is_greeting() {
            return !std::mem::replace(&mut self.is_greeted, true);
        }
        match (item.sequence(), self.position) {
            (0, _) => true,
            (sequence, Some(position)) if sequence <= position => {
                self.duplicates += 1;
                false
            }
            (sequence, _) => {
                self.position = Some(sequence);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    struct Item(u64, bool);

    impl Sequenced for Item {
        fn sequence(&self) -> u64 {
            self.0
        }
        fn is_greeting(&self) -> bool {
            self.1
        }
    }

    fn ended_at(position: &str) -> Status {
        let metadata = HashMap::from([(METADATA.to_owned(), position.to_owned())]);
        let details = ErrorDetails::with_error_info("DRAINING", "weir", metadata);
        Status::with_error_details(tonic::Code::Unavailable, "draining", details)
    }

    fn opened_at(position: &str) -> MetadataMap {
        let mut headers = MetadataMap::new();
        headers.insert(HEADER, position.parse().unwrap());
        headers
    }

    #[test]
    fn only_news_is_admitted() {
        let mut cursor = Cursor::new(None);
        let items = [
            (0, true),
            (0, true),
            (0, false),
            (3, false),
            (3, false),
            (2, false),
            (0, false),
            (9, false),
        ];
        let admitted: Vec<_> = items
            .map(|(sequence, greeting)| cursor.admit(&Item(sequence, greeting)))
            .into();
        assert_eq!(
            admitted,
            [true, false, true, true, false, false, true, true]
        );
        assert_eq!((cursor.position(), cursor.duplicates()), (Some(9), 2));
    }

    #[test]
    fn the_header_counts_only_while_the_position_is_unknown() {
        let mut cursor = Cursor::new(None);
        cursor.note_opened(&opened_at("not a number"));
        assert_eq!(cursor.position(), None);
        cursor.note_opened(&opened_at("7"));
        cursor.note_opened(&opened_at("20"));
        assert_eq!(cursor.position(), Some(7));
    }

    fn of_log(log: &str) -> MetadataMap {
        let mut headers = MetadataMap::new();
        headers.insert(LOG_ID, log.parse().unwrap());
        headers
    }

    fn named(cursor: &Cursor) -> Option<String> {
        let request = cursor.resume().request(());
        let log = request.metadata().get(LOG_ID)?;
        Some(log.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_position_is_of_the_log_that_gave_it_out() {
        let mut cursor = Cursor::new(Some(3));
        assert_eq!(named(&cursor), None, "no server named its log yet");
        cursor.note_opened(&of_log("a"));
        cursor.note_opened(&of_log("b"));
        assert_eq!(named(&cursor).as_deref(), Some("a"));

        let mut live = Cursor::new(None);
        live.note_opened(&of_log("a"));
        assert_eq!(named(&live), None, "without a position any log will do");
        live.note_opened(&of_log("b"));
        live.admit(&Item(7, false));
        live.note_opened(&of_log("c"));
        assert_eq!(named(&live).as_deref(), Some("b"));

        let mut refused = Cursor::new(None);
        let mut status = ended_at("12");
        *status.metadata_mut() = of_log("a");
        refused.note_ended(&status);
        assert_eq!(named(&refused).as_deref(), Some("a"));
    }

    #[test]
    fn the_final_status_moves_the_position_only_forward() {
        let mut cursor = Cursor::new(None);
        cursor.note_ended(&Status::unavailable("cut"));
        assert_eq!(cursor.position(), None);
        cursor.note_ended(&ended_at("12"));
        cursor.note_ended(&ended_at("5"));
        assert_eq!(cursor.position(), Some(12));
    }
}
