//! One `SendFeedback` stream: feedback in, thank-yous and the staff's replies out.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tonic::Status;

use super::convert;
use crate::{
    call::{Call, into_status},
    core::{
        Error, Name, Pipeline,
        appender::Appended,
        feedback::{Feedback, NewFeedback, replies},
        hub::{Merged, Start},
    },
    log::{Record, Sequence, Topic},
    proto::feedback::{FeedbackRequest, FeedbackResponse},
    services::{Core, duplex::Duplex, session::USERS_PER_STREAM},
};

/// The stream's state.
pub(super) struct Conversation {
    feedback: Feedback,
    call: Option<Call>,
    resume: Option<Sequence>,
    pipeline: Pipeline,
    /// What was appended and not acknowledged yet, batch by batch like the pipeline: who gave it; nobody for marks.
    pending: VecDeque<Vec<Name>>,
    /// Whose replies come here: bounded, as users are.
    consumers: HashMap<Box<str>, Topic>,
    replies: Merged,
    /// Replies handed over and not marked yet, by the newest of each consumer.
    unmarked: HashMap<Topic, Sequence>,
}

/// What happens besides the client's messages.
pub(super) enum Event {
    Stored(Result<Vec<Result<Appended, Error>>, Error>),
    Heard(Vec<(Topic, Arc<Record>)>),
    HandedOver,
}

impl Duplex for Conversation {
    type In = FeedbackRequest;
    type Out = FeedbackResponse;
    type Event = Event;

    async fn take(
        &mut self,
        batch: Vec<FeedbackRequest>,
        out: &mut VecDeque<FeedbackResponse>,
    ) -> Result<(), Status> {
        let mut consumers = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        let mut refused = Ok(());
        for request in batch {
            match self.admit(request, out).await {
                Ok(new) => {
                    consumers.push(new.consumer.clone());
                    records.push(self.feedback.record(new));
                }
                Err(error) => {
                    refused = Err(into_status(error));
                    break;
                }
            }
        }
        if !records.is_empty() {
            self.pipeline.push(records).await.map_err(into_status)?;
            self.pending.push_back(consumers);
        }
        refused
    }

    async fn event(&mut self) -> Result<Event, Error> {
        self.moved();
        // What was to be sent is handed over: nothing is waited for before.
        if !self.unmarked.is_empty() && self.pipeline.has_room() {
            return Ok(Event::HandedOver);
        }
        tokio::select! {
            outcomes = self.pipeline.next() => Ok(Event::Stored(outcomes)),
            heard = self.replies.next() => Ok(Event::Heard(heard?)),
        }
    }

    async fn handle(
        &mut self,
        event: Event,
        out: &mut VecDeque<FeedbackResponse>,
    ) -> Result<(), Error> {
        match event {
            Event::Stored(outcomes) => {
                if let Err(error) = self.stored(outcomes, out) {
                    // The answers end here: what is under way may be stored, but is not acknowledged.
                    self.pipeline = self.feedback.pipeline();
                    self.pending.clear();
                    return Err(error);
                }
            }
            Event::Heard(records) => {
                for (topic, record) in records {
                    self.replied(&topic, &record, out);
                }
            }
            Event::HandedOver => {
                let unmarked = self.unmarked.drain();
                let marks = unmarked.map(|(topic, sequence)| self.feedback.mark(&topic, sequence));
                let marks: Vec<_> = marks.collect();
                self.pipeline.push(marks).await?;
                self.pending.push_back(Vec::new());
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.pipeline.has_room()
    }

    /// A stream that ends well has marked what it delivered, so that the next one does not repeat it.
    fn is_settled(&self) -> bool {
        self.pipeline.is_idle() && self.unmarked.is_empty()
    }

    fn fail(&mut self) {
        self.replies.clear();
    }
}

impl Conversation {
    pub(super) fn new(core: &Core, resume: Option<Sequence>, call: Option<Call>) -> Self {
        Self {
            feedback: core.feedback.clone(),
            call,
            resume,
            pipeline: core.feedback.pipeline(),
            pending: VecDeque::new(),
            consumers: HashMap::new(),
            replies: core.feedback.merged(),
            unmarked: HashMap::new(),
        }
    }

    /// Checks a feedback; a consumer that is new to this stream gets the replies that wait for it, before its thank-you.
    async fn admit(
        &mut self,
        request: FeedbackRequest,
        out: &mut VecDeque<FeedbackResponse>,
    ) -> Result<NewFeedback, Error> {
        let new = NewFeedback::try_from(request)?;
        let consumer = new.consumer.as_str();
        if self.consumers.contains_key(consumer) {
            return Ok(new);
        }
        if self.consumers.len() >= USERS_PER_STREAM {
            return Err(Error::Limit {
                what: "consumers of one stream",
                limit: USERS_PER_STREAM,
            });
        }
        let topic = replies(consumer)?;
        let after = match self.resume {
            Some(after) => after,
            None => {
                let undelivered = self.feedback.undelivered(&topic).await?;
                for record in &undelivered.replies {
                    self.replied(&topic, record, out);
                }
                undelivered.after
            }
        };
        self.replies.add(&topic, Start::After(after)).await?;
        self.consumers.insert(consumer.into(), topic);
        Ok(new)
    }

    fn replied(&mut self, topic: &Topic, record: &Record, out: &mut VecDeque<FeedbackResponse>) {
        if let Some(response) = convert::response(record) {
            out.push_back(response);
            self.unmarked.insert(topic.clone(), record.sequence);
        }
    }

    fn stored(
        &mut self,
        outcomes: Result<Vec<Result<Appended, Error>>, Error>,
        out: &mut VecDeque<FeedbackResponse>,
    ) -> Result<(), Error> {
        let mut consumers = self.pending.pop_front().unwrap_or_default().into_iter();
        for outcome in outcomes? {
            let sequence = outcome?.sequence;
            if let Some(consumer) = consumers.next() {
                out.push_back(convert::acknowledgement(&consumer, sequence));
            }
        }
        Ok(())
    }

    /// Tells the call where a client would resume, for every consumer.
    fn moved(&self) {
        if let Some(call) = &self.call
            && self.replies.topics() > 0
        {
            call.resume_after(Sequence(self.replies.cursor().0.saturating_sub(1)));
        }
    }
}
