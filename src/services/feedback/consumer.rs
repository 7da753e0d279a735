//! `weir.v1.Feedback`: the consumers' side for clients without bidirectional streams.

use std::{collections::VecDeque, sync::Arc};

use futures::stream;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    call::{Call, into_status},
    core::{
        Error,
        feedback::{Feedback as Replies, NewFeedback, feedback_id, replies},
        hub::{Records, Start, Subscription},
    },
    log::{Record, Sequence, Topic},
    proto::weir::v1::{
        StaffReply, SubmitFeedbackRequest, SubmitFeedbackResponse, WatchRepliesRequest,
        feedback_server::{Feedback, FeedbackServer},
    },
    services::{Core, ENVELOPE_BYTES, Responses, check::Check, live::positioned, message_limit},
};

/// The service.
pub(super) fn service(core: &Core) -> FeedbackServer<Consumer> {
    let limit = message_limit(&core.limits);
    FeedbackServer::new(Consumer { core: core.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES))
}

/// The service.
pub(super) struct Consumer {
    core: Core,
}

#[tonic::async_trait]
impl Feedback for Consumer {
    type WatchStream = Responses<StaffReply>;

    async fn submit(
        &self,
        request: Request<SubmitFeedbackRequest>,
    ) -> Result<Response<SubmitFeedbackResponse>, Status> {
        let new = NewFeedback::try_from(request.into_inner()).map_err(into_status)?;
        let response_message = convert::thanks(new.consumer.as_str());
        let stored = self.core.feedback.submit(new).await.map_err(into_status)?;
        Ok(Response::new(SubmitFeedbackResponse {
            response_message,
            feedback_id: feedback_id(stored.sequence),
            sequence: stored.sequence.0,
        }))
    }

    async fn watch(
        &self,
        request: Request<WatchRepliesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = request.extensions().get::<Call>().cloned();
        let watching = self.watching(request.into_inner(), call).await;
        let watching = watching.map_err(into_status)?;
        let waiting = watching.waiting.front().map(|record| record.sequence);
        let cursor = waiting.unwrap_or_else(|| watching.records.cursor());
        let replies = stream::unfold(Some(watching), |watching| async move {
            let mut watching = watching?;
            match watching.next().await {
                Ok(reply) => Some((Ok(reply), Some(watching))),
                Err(error) => Some((Err(into_status(error)), None)),
            }
        });
        Ok(positioned(Box::pin(replies), cursor))
    }
}

impl Consumer {
    async fn watching(
        &self,
        request: WatchRepliesRequest,
        call: Option<Call>,
    ) -> Result<Watching, Error> {
        let feedback = self.core.feedback.clone();
        let topic = topic(request.consumer_id)?;
        let (waiting, after) = match request.after_sequence {
            Some(after) => (VecDeque::new(), Sequence(after)),
            None => {
                let undelivered = feedback.undelivered(&topic).await?;
                (undelivered.replies.into(), undelivered.after)
            }
        };
        Ok(Watching {
            records: feedback.follow(&topic, Start::After(after)).await?,
            feedback,
            topic,
            waiting,
            unmarked: None,
            call,
        })
    }
}

fn topic(consumer_id: String) -> Result<Topic, Error> {
    let mut check = Check::new(&"");
    let consumer = check.name("consumer_id", consumer_id);
    replies(check.finish(consumer)?.as_str())
}

/// A consumer that waits for replies.
struct Watching {
    feedback: Replies,
    topic: Topic,
    records: Subscription<Records>,
    /// What was read and not sent yet: one page at most, or what waited for the consumer.
    waiting: VecDeque<Arc<Record>>,
    /// The newest reply that was handed over and is not marked yet.
    unmarked: Option<Sequence>,
    call: Option<Call>,
}

impl Watching {
    async fn next(&mut self) -> Result<StaffReply, Error> {
        loop {
            while let Some(record) = self.waiting.pop_front() {
                self.moved(record.sequence);
                if let Some(reply) = convert::staff_reply(&record) {
                    self.unmarked = Some(record.sequence);
                    return Ok(reply);
                }
            }
            self.moved(Sequence(self.records.cursor().0.saturating_sub(1)));
            if let Some(sequence) = self.unmarked.take() {
                self.feedback.delivered(&self.topic, sequence).await?;
            }
            self.waiting.extend(self.records.next().await?.data);
        }
    }

    fn moved(&self, sequence: Sequence) {
        if let Some(call) = &self.call {
            call.resume_after(sequence);
        }
    }
}
