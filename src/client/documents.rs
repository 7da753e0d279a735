//! The calls of `weir.v1.Documents`, for documents that are a text.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Code, Status};
use yrs::{
    Doc, GetString as _, OffsetKind, Options, ReadTxn as _, Text as _, TextRef, Transact as _,
    Update,
    updates::{decoder::Decode as _, encoder::Encode as _},
};

use super::{
    Client, ENVELOPE_BYTES, MAX_MESSAGE_BYTES, Sequenced, Subscription,
    chat::{key_or_new, timed},
};
use crate::{
    core::documents::lib0::{Reader, write_bytes, write_uint},
    proto::{
        streaming::v1::{CollaborationEvent, collaboration_event::Event},
        weir::v1::{GetDocumentRequest, WatchRequest, documents_client::DocumentsClient},
    },
};

/// Time for one try of a call.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The sync message that brings an update.
const UPDATE: u64 = 2;
/// The sync message that asks; it brings nothing.
const STEP_1: u64 = 0;

impl Sequenced for CollaborationEvent {
    /// A state vector resumes a document, not a position.
    fn sequence(&self) -> u64 {
        0
    }
}

/// One client's copy of a document that is a text. Cheap to clone; clones are the same copy.
#[derive(Clone)]
pub struct TextDocument {
    doc: Doc,
    text: TextRef,
}

impl TextDocument {
    /// An empty document whose text is the shared type called `field`.
    #[must_use]
    pub fn new(field: &str) -> Self {
        let doc = Doc::with_options(Options {
            offset_kind: OffsetKind::Utf16,
            ..Options::default()
        });
        let text = doc.get_or_insert_text(field);
        Self { doc, text }
    }

    /// The Yjs document.
    #[must_use]
    pub const fn doc(&self) -> &Doc {
        &self.doc
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        self.text.get_string(&self.doc.transact())
    }

    /// Takes an update (v1).
    ///
    /// # Errors
    /// `DATA_LOSS`: it is none.
    pub fn apply(&self, update: &[u8]) -> Result<(), Status> {
        let broken = |error: &dyn std::fmt::Display| Status::data_loss(error.to_string());
        let update = Update::decode_v1(update).map_err(|error| broken(&error))?;
        let applied = self.doc.transact_mut().apply_update(update);
        applied.map_err(|error| broken(&error))
    }

    /// Takes what a server's event brings; returns whether it is about the text.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn hear(&self, event: &CollaborationEvent) -> Result<bool, Status> {
        let Some(Event::Sync(sync)) = &event.event else {
            return Ok(false);
        };
        let mut reader = Reader::new(sync);
        match (reader.uint(), reader.bytes()) {
            (Some(STEP_1), Some(_)) => Ok(false),
            (Some(_), Some(update)) => self.apply(update).map(|()| true),
            _ => Err(Status::data_loss("the server sent no sync message")),
        }
    }

    /// Replaces what differs between the text and `wanted`; returns the update.
    #[must_use]
    pub fn set(&self, wanted: &str) -> Bytes {
        let present = self.text();
        let before: usize = same(present.chars(), wanted.chars());
        let (old, new) = (&present[before..], &wanted[before..]);
        let after = same(old.chars().rev(), new.chars().rev());
        let (old, new) = (&old[..old.len() - after], &new[..new.len() - after]);
        let mut transaction = self.doc.transact_mut();
        let at = units(&present[..before]);
        self.text.remove_range(&mut transaction, at, units(old));
        self.text.insert(&mut transaction, at, new);
        transaction.encode_update_v1().into()
    }

    /// Adds to the end of the text; returns the update.
    #[must_use]
    pub fn append(&self, more: &str) -> Bytes {
        let mut transaction = self.doc.transact_mut();
        self.text.push(&mut transaction, more);
        transaction.encode_update_v1().into()
    }

    fn state_vector(&self) -> Bytes {
        self.doc.transact().state_vector().encode_v1().into()
    }
}

/// Bytes of the characters that both begin with.
fn same(one: impl Iterator<Item = char>, other: impl Iterator<Item = char>) -> usize {
    let pairs = one.zip(other);
    let equal = pairs.take_while(|(one, other)| one == other);
    equal.map(|(one, _)| one.len_utf8()).sum()
}

/// A text's length as Yjs counts it.
fn units(text: &str) -> u32 {
    u32::try_from(text.encode_utf16().count()).unwrap_or(u32::MAX)
}

impl Client {
    /// The document `id` as a text called `field`, and the position of its last record. A try takes ten seconds at most.
    ///
    /// # Errors
    /// `NOT_FOUND`: nobody wrote to it. Else a permanent status, or the last one when the repetitions are used up.
    pub async fn document(&self, id: &str, field: &str) -> Result<(TextDocument, u64), Status> {
        let call = || {
            let request = GetDocumentRequest {
                document_id: id.to_owned(),
            };
            let (mut documents, request) = (self.documents(), timed(request, TIMEOUT));
            async move { documents.get_document(request).await }
        };
        let found = self.publish_retry().run(call).await?.into_inner();
        let document = TextDocument::new(field);
        document.apply(&found.state)?;
        Ok((document, found.sequence))
    }

    /// Edits the document `id`, which is empty when nobody wrote to it: `edit` makes the update. Returns the position that
    /// has it, once it is durable. What others write meanwhile is kept. A try takes ten seconds at most.
    ///
    /// # Errors
    /// A permanent status, or the last one when the repetitions are used up: whether the edit is stored is then unknown.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown whether the edit is stored.
    pub async fn edit_document(
        &self,
        id: &str,
        field: &str,
        user: &str,
        edit: impl FnOnce(&TextDocument) -> Bytes,
    ) -> Result<u64, Status> {
        let document = match self.document(id, field).await {
            Ok((document, _)) => document,
            Err(status) if status.code() == Code::NotFound => TextDocument::new(field),
            Err(status) => return Err(status),
        };
        let mut sync = Vec::new();
        write_uint(UPDATE, &mut sync);
        write_bytes(&edit(&document), &mut sync);
        let event = CollaborationEvent {
            document_id: id.to_owned(),
            user_id: user.to_owned(),
            event: Some(Event::Sync(sync.into())),
            idempotency_key: key_or_new(""),
            ..CollaborationEvent::default()
        };
        let call = || {
            let (mut documents, request) = (self.documents(), timed(event.clone(), TIMEOUT));
            async move { documents.apply(request).await }
        };
        let applied = self.publish_retry().run(call).await?;
        Ok(applied.into_inner().sequence)
    }

    /// Follows the document `id` as `user`: what `document` lacks, then everything as it happens. After a broken connection
    /// it goes on with what `document` lacks then, so give it every event ([`TextDocument::hear`]).
    pub fn watch_document(
        &self,
        id: &str,
        user: &str,
        document: &TextDocument,
    ) -> Subscription<CollaborationEvent> {
        let (documents, document) = (self.documents(), document.clone());
        let request = WatchRequest {
            document_id: id.to_owned(),
            user_id: user.to_owned(),
            state_vector: Bytes::new(),
        };
        self.resumable(Subscription::new(None, move |_| {
            let mut documents = documents.clone();
            let request = WatchRequest {
                state_vector: document.state_vector(),
                ..request.clone()
            };
            async move { documents.watch(request).await }
        }))
    }

    fn documents(&self) -> DocumentsClient<tonic::transport::Channel> {
        DocumentsClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_becomes_what_is_wanted(texts in prop::collection::vec("[ab🙂é]{0,8}", 1..6)) {
            let (one, other) = (TextDocument::new("content"), TextDocument::new("content"));
            for text in texts {
                let update = one.set(&text);
                prop_assert_eq!(&one.text(), &text);
                other.apply(&update).unwrap();
                prop_assert_eq!(&other.text(), &text);
            }
            other.apply(&one.append("!")).unwrap();
            prop_assert_eq!(other.text(), one.text());
        }
    }
}
