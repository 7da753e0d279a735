//! `Collaborate`.

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    call::into_status,
    core::{
        Error,
        documents::{Change, Document},
        signals::{Sender, SignalKind},
    },
    log::{Sequence, Topic},
    proto::streaming::v1::CollaborationEvent,
    services::{
        Core, Responses,
        collaboration::{Content, Followed, Heard, Incoming, Sync, events, saved, signal, sync},
        duplex::{Duplex, duplex},
    },
};

/// Updates of this stream whose records it has not come by yet; beyond that it takes no more in.
const OWN: usize = 4096;

pub(super) fn collaborate(
    core: &Core,
    request: Request<Streaming<CollaborationEvent>>,
) -> Result<Response<Responses<CollaborationEvent>>, Status> {
    let session = Session {
        core: core.clone(),
        sender: Sender::new(),
        documents: HashMap::new(),
        heard: SelectAll::new(),
    };
    Ok(Response::new(duplex(request.into_inner(), session)))
}

/// One `Collaborate` stream. What it has edited is durable when it is answered, so nothing is ever under way between its
/// steps.
struct Session {
    core: Core,
    sender: Sender,
    /// The documents it is in.
    documents: HashMap<Topic, Entered>,
    heard: SelectAll<BoxStream<'static, (Topic, Result<Heard, Error>)>>,
}

/// A document that the stream is in.
struct Entered {
    document: Document,
    /// Records that are this stream's own and do not go back to it, until it has come by them.
    own: BTreeSet<Sequence>,
}

/// Updates of one document that came together.
#[derive(Default)]
struct Edits {
    topic: Option<Topic>,
    ids: Vec<String>,
    changes: Vec<Change>,
}

impl Duplex for Session {
    type In = CollaborationEvent;
    type Out = CollaborationEvent;
    type Event = (Topic, Heard);

    async fn take(
        &mut self,
        batch: Vec<CollaborationEvent>,
        out: &mut VecDeque<CollaborationEvent>,
    ) -> Result<(), Status> {
        let mut edits = Edits::default();
        for event in batch {
            let taken = match Incoming::new(event, &"") {
                Ok(event) => self.admit(event, &mut edits, out).await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                self.store(&mut edits, out).await.map_err(into_status)?;
                return Err(into_status(error));
            }
        }
        self.store(&mut edits, out).await.map_err(into_status)
    }

    async fn event(&mut self) -> Result<(Topic, Heard), Error> {
        match self.heard.next().await {
            Some((topic, heard)) => Ok((topic, heard?)),
            None => std::future::pending().await,
        }
    }

    async fn handle(
        &mut self,
        (topic, heard): (Topic, Heard),
        out: &mut VecDeque<CollaborationEvent>,
    ) -> Result<(), Error> {
        let Some(entered) = self.documents.get_mut(&topic) else {
            return Ok(());
        };
        let position = heard.position();
        let own = &entered.own;
        out.extend(events(&topic, heard, |record| {
            !own.contains(&record.sequence)
        }));
        if let Some(position) = position {
            entered.own = entered.own.split_off(&position);
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        let own = self.documents.values().map(|entered| entered.own.len());
        own.sum::<usize>() < OWN
    }

    fn is_settled(&self) -> bool {
        true
    }

    fn fail(&mut self) {
        self.heard.clear();
    }
}

impl Session {
    async fn admit(
        &mut self,
        event: Incoming,
        edits: &mut Edits,
        out: &mut VecDeque<CollaborationEvent>,
    ) -> Result<(), Error> {
        if edits
            .topic
            .as_ref()
            .is_some_and(|topic| *topic != event.document)
            || !matches!(event.content, Content::Updates(_))
        {
            self.store(edits, out).await?;
        }
        if !self.documents.contains_key(&event.document) {
            self.join(&event, out).await?;
        } else if let Content::Asks(state_vector) = &event.content {
            let entered = &self.documents[&event.document];
            let missing = entered.document.missing(state_vector.clone()).await?;
            out.push_back(sync(&event.document, &Sync::Step2(missing)));
        }
        match &event.content {
            Content::Asks(_) => {}
            Content::Awareness(awareness) => {
                let (by, payload) = ((self.sender, event.user.as_str()), awareness.clone());
                let signals = &self.core.signals;
                signal(signals, &event.document, by, SignalKind::Awareness, payload);
            }
            Content::Updates(update) => {
                let update = update.clone();
                edits.topic = Some(event.document.clone());
                edits.ids.push(event.id.clone());
                edits.changes.push(event.change(update));
            }
        }
        Ok(())
    }

    /// Joins the document of its first event here: answers step 1, and asks for what the server lacks.
    async fn join(
        &mut self,
        event: &Incoming,
        out: &mut VecDeque<CollaborationEvent>,
    ) -> Result<(), Error> {
        let limit = self.core.limits.rooms_per_stream;
        if self.documents.len() >= limit {
            return Err(Error::Limit {
                what: "documents of one stream",
                limit,
            });
        }
        let topic = &event.document;
        let asks = match &event.content {
            Content::Asks(state_vector) => Some(state_vector.clone()),
            Content::Updates(_) | Content::Awareness(_) => None,
        };
        let by = (self.sender, &event.user);
        // Who does not say what it has is told nothing, so that nothing is worked out in vain.
        let has = asks.clone().unwrap_or_else(Bytes::new);
        let (followed, missing, state_vector) = Followed::join(&self.core, topic, by, has).await?;
        if asks.is_some() {
            out.push_back(sync(topic, &Sync::Step2(missing)));
        }
        out.push_back(sync(topic, &Sync::Step1(state_vector)));
        let entered = Entered {
            document: followed.document(),
            own: BTreeSet::new(),
        };
        self.documents.insert(topic.clone(), entered);
        let named = topic.clone();
        let heard = followed.heard().map(move |heard| (named.clone(), heard));
        self.heard.push(heard.boxed());
        Ok(())
    }

    /// Stores what came together and acknowledges it.
    async fn store(
        &mut self,
        edits: &mut Edits,
        out: &mut VecDeque<CollaborationEvent>,
    ) -> Result<(), Error> {
        let Edits {
            topic,
            ids,
            changes,
        } = std::mem::take(edits);
        let Some(topic) = topic else {
            return Ok(());
        };
        let Some(entered) = self.documents.get_mut(&topic) else {
            return Ok(());
        };
        let (stored, error) = entered.document.apply(changes).await;
        for (id, one) in ids.into_iter().zip(stored) {
            if one.is_stored {
                entered.own.insert(one.sequence);
            }
            out.push_back(saved(&topic, id, one.sequence));
        }
        error.map_or(Ok(()), Err)
    }
}
