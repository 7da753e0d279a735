//! `weir.v1.Documents`.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    call::into_status,
    core::{
        Error, Name,
        documents::State,
        signals::{Sender, SignalKind},
    },
    log::{Sequence, Space, Topic},
    proto::{
        streaming::v1::CollaborationEvent,
        weir::v1::{
            ApplyResponse, Document, GetDocumentRequest, WatchRequest,
            documents_server::{Documents, DocumentsServer},
        },
    },
    services::{
        Core, ENVELOPE_BYTES, Responses,
        check::Check,
        collaboration::{Content, Followed, Incoming, Sync, events, signal, sync},
        message_limit,
    },
};

/// Adds the service.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    let limit = message_limit(&core.limits);
    let service = DocumentsServer::new(Service { core: core.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES));
    routes.add_service(service)
}

/// The service.
struct Service {
    core: Core,
}

/// A watcher.
struct Watcher {
    document: Topic,
    user: Name,
}

impl TryFrom<&WatchRequest> for Watcher {
    type Error = Error;

    fn try_from(request: &WatchRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let document = check.topic(Space::Document, "document_id", &request.document_id);
        let user = check.name("user_id", request.user_id.as_str());
        let whole = document.zip(user);
        check.finish(whole.map(|(document, user)| Self { document, user }))
    }
}

/// The document called `id`.
fn named(id: &str) -> Result<Topic, Error> {
    let mut check = Check::new(&"");
    let topic = check.topic(Space::Document, "document_id", id);
    check.finish(topic)
}

impl Service {
    async fn watch(&self, request: WatchRequest) -> Result<Responses<CollaborationEvent>, Error> {
        let Watcher { document, user } = Watcher::try_from(&request)?;
        let by = (Sender::new(), &user);
        let has = request.state_vector;
        let (followed, missing, state_vector) =
            Followed::join(&self.core, &document, by, has).await?;
        let first = [Sync::Step2(missing), Sync::Step1(state_vector)];
        let first = first.map(|message| Ok(sync(&document, &message)));
        let heard = followed.heard().map_err(into_status);
        let heard = heard.map_ok(move |heard| {
            let events = events(&document, heard, |_| true);
            stream::iter(events.into_iter().map(Ok))
        });
        Ok(Box::pin(stream::iter(first).chain(heard.try_flatten())))
    }

    async fn store(&self, event: CollaborationEvent) -> Result<Sequence, Error> {
        let event = Incoming::new(event, &"")?;
        match &event.content {
            Content::Asks(_) => Err(Error::invalid(
                "sync",
                "sync step 1 is answered by Watch, whose request has the state vector",
            )),
            Content::Awareness(awareness) => {
                let by = (Sender::new(), event.user.as_str());
                let signals = &self.core.signals;
                let awareness = awareness.clone();
                signal(
                    signals,
                    &event.document,
                    by,
                    SignalKind::Awareness,
                    awareness,
                );
                Ok(Sequence::default())
            }
            Content::Updates(update) => {
                let update = update.clone();
                let document = self.core.documents.open(&event.document)?;
                let (saved, error) = document.apply(vec![event.change(update)]).await;
                match (saved.first(), error) {
                    (_, Some(error)) => Err(error),
                    (saved, None) => Ok(saved.map_or(Sequence::default(), |saved| saved.sequence)),
                }
            }
        }
    }

    async fn get(&self, request: GetDocumentRequest) -> Result<Document, Error> {
        let topic = named(&request.document_id)?;
        let State { update, sequence } = self.core.documents.open(&topic)?.state().await?;
        if sequence == Sequence::default() {
            return Err(Error::NotFound {
                kind: "document",
                name: request.document_id,
            });
        }
        Ok(Document {
            document_id: request.document_id,
            state: update,
            sequence: sequence.0,
        })
    }
}

#[tonic::async_trait]
impl Documents for Service {
    type WatchStream = Responses<CollaborationEvent>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watched = self.watch(request.into_inner()).await;
        watched.map(Response::new).map_err(into_status)
    }

    async fn apply(
        &self,
        request: Request<CollaborationEvent>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let stored = self.store(request.into_inner()).await;
        let sequence = stored.map_err(into_status)?.0;
        Ok(Response::new(ApplyResponse { sequence }))
    }

    async fn get_document(
        &self,
        request: Request<GetDocumentRequest>,
    ) -> Result<Response<Document>, Status> {
        let document = self.get(request.into_inner()).await;
        document.map(Response::new).map_err(into_status)
    }
}
