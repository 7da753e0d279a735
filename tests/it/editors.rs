//! Editors of shared documents, over real sockets.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use weir::{
    client::TextDocument,
    core::documents::lib0::{Reader, write_bytes, write_uint},
    proto::{
        streaming::v1::{
            CollaborationEvent, Saved, collaboration_event::Event,
            streaming_service_client::StreamingServiceClient,
        },
        weir::v1::{GetDocumentRequest, documents_client::DocumentsClient},
    },
};
use yrs::{ReadTxn as _, Transact as _, updates::encoder::Encode as _};

use crate::support::{TestServer, end, next, soon};

pub(crate) const LARGEST: usize = 64 << 20;

pub(crate) fn sync(kind: u64, content: &[u8]) -> Event {
    let mut out = Vec::new();
    write_uint(kind, &mut out);
    write_bytes(content, &mut out);
    Event::Sync(out.into())
}

/// A client's event.
pub(crate) fn event(document: &str, user: &str, id: &str, event: Event) -> CollaborationEvent {
    CollaborationEvent {
        id: id.into(),
        document_id: document.into(),
        user_id: user.into(),
        event: Some(event),
        ..CollaborationEvent::default()
    }
}

/// The kind and content of a sync message.
#[track_caller]
pub(crate) fn sync_of(event: &CollaborationEvent) -> (u64, Bytes) {
    let Some(Event::Sync(sync)) = &event.event else {
        panic!("no sync message: {event:?}");
    };
    let mut reader = Reader::new(sync);
    let kind = reader.uint().unwrap();
    (kind, Bytes::copy_from_slice(reader.bytes().unwrap()))
}

pub(crate) fn state_vector(document: &TextDocument) -> Vec<u8> {
    document.doc().transact().state_vector().encode_v1()
}

pub(crate) fn missing(document: &TextDocument, state_vector: &[u8]) -> Vec<u8> {
    let state_vector = yrs::updates::decoder::Decode::decode_v1(state_vector).unwrap();
    let transaction = document.doc().transact();
    transaction.encode_state_as_update_v1(&state_vector)
}

/// An awareness update of one editor.
pub(crate) fn awareness(client: u64, state: &str) -> Bytes {
    let mut out = Vec::new();
    for number in [1, client, 1] {
        write_uint(number, &mut out);
    }
    write_bytes(state.as_bytes(), &mut out);
    out.into()
}

pub(crate) async fn service(server: &TestServer) -> StreamingServiceClient<Channel> {
    StreamingServiceClient::new(server.channel().await)
        .max_decoding_message_size(LARGEST)
        .max_encoding_message_size(LARGEST)
}

pub(crate) async fn documents(server: &TestServer) -> DocumentsClient<Channel> {
    DocumentsClient::new(server.channel().await)
        .max_decoding_message_size(LARGEST)
        .max_encoding_message_size(LARGEST)
}

/// An editor with an open stream.
pub(crate) struct Editor {
    pub(crate) user: &'static str,
    pub(crate) document: TextDocument,
    pub(crate) say: mpsc::Sender<CollaborationEvent>,
    pub(crate) hear: Streaming<CollaborationEvent>,
}

impl Editor {
    /// Opens a stream and says nothing.
    pub(crate) async fn silent(server: &TestServer, user: &'static str) -> Self {
        let (say, said) = mpsc::channel(64);
        let mut service = service(server).await;
        let collaborating = service.collaborate(ReceiverStream::new(said));
        let hear = soon("a response", collaborating).await.unwrap();
        Self {
            user,
            document: TextDocument::new("content"),
            say,
            hear: hear.into_inner(),
        }
    }

    /// Joins `document` with what the editor has, and exchanges what either lacks.
    pub(crate) async fn join(server: &TestServer, user: &'static str, document: &str) -> Self {
        let mut editor = Self::silent(server, user).await;
        editor.enter(document).await;
        editor
    }

    pub(crate) async fn enter(&mut self, document: &str) {
        let step_1 = sync(0, &state_vector(&self.document));
        self.say(document, "join", step_1).await;
        let (kind, update) = sync_of(&next(&mut self.hear).await);
        assert_eq!(kind, 1);
        self.document.apply(&update).unwrap();
        let (kind, has) = sync_of(&next(&mut self.hear).await);
        assert_eq!(kind, 0);
        let lacks = missing(&self.document, &has);
        self.say(document, "offline", sync(1, &lacks)).await;
        self.saved("offline").await;
    }

    pub(crate) async fn say(&self, document: &str, id: &str, what: Event) {
        let event = event(document, self.user, id, what);
        self.say.send(event).await.unwrap();
    }

    /// Adds to the end of the text and waits until that is saved; returns the sequence.
    pub(crate) async fn append(&mut self, document: &str, text: &str) -> u64 {
        let update = self.document.append(text);
        self.say(document, text, sync(2, &update)).await;
        self.saved(text).await
    }

    /// Takes what comes until the event `id` is saved; returns the sequence.
    pub(crate) async fn saved(&mut self, id: &str) -> u64 {
        loop {
            let event = next(&mut self.hear).await;
            match &event.event {
                Some(Event::Saved(Saved { event_id, sequence })) if event_id == id => {
                    return *sequence;
                }
                Some(Event::Sync(_)) => drop(self.document.hear(&event).unwrap()),
                _ => {}
            }
        }
    }

    /// Takes what comes until the text is `wanted`.
    pub(crate) async fn until(&mut self, wanted: &str) {
        while self.document.text() != wanted {
            self.document.hear(&next(&mut self.hear).await).unwrap();
        }
    }

    /// How the stream ends after saying this.
    pub(crate) async fn refused(mut self, said: CollaborationEvent) -> Status {
        self.say.send(said).await.unwrap();
        end(&mut self.hear).await.unwrap_err()
    }
}

pub(crate) async fn text(server: &TestServer, document: &str) -> String {
    let request = GetDocumentRequest {
        document_id: document.into(),
    };
    let got = documents(server).await.get_document(request).await.unwrap();
    let copy = TextDocument::new("content");
    copy.apply(&got.into_inner().state).unwrap();
    copy.text()
}
