//! The calls of `weir.v1.Feedback` and `weir.v1.FeedbackDesk`.

use std::time::Duration;

use tonic::{Status, transport::Channel};

use super::{
    Client, ENVELOPE_BYTES, MAX_MESSAGE_BYTES, Sequenced, Subscription,
    chat::{key_or_new, timed},
};
use crate::proto::weir::v1::{
    FeedbackItem, ListFeedbackRequest, ListFeedbackResponse, ReplyToFeedbackRequest,
    ReplyToFeedbackResponse, StaffReply, SubmitFeedbackRequest, SubmitFeedbackResponse,
    WatchFeedbackRequest, WatchRepliesRequest, feedback_client::FeedbackClient,
    feedback_desk_client::FeedbackDeskClient,
};

/// Time for one try of a call.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Sequenced for FeedbackItem {
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Sequenced for StaffReply {
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Client {
    /// Gives a feedback and returns once it is durable. Failed tries are repeated under one idempotency key: its own, or
    /// else a new one. A try takes ten seconds at most.
    ///
    /// # Errors
    /// As [`Client::send`].
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown whether the feedback is stored.
    pub async fn submit_feedback(
        &self,
        mut feedback: SubmitFeedbackRequest,
    ) -> Result<SubmitFeedbackResponse, Status> {
        feedback.idempotency_key = key_or_new(&feedback.idempotency_key);
        let call = || {
            let (mut client, request) = (self.feedback(), timed(feedback.clone(), TIMEOUT));
            async move { client.submit(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Answers a feedback and returns once the reply is durable; see [`Client::submit_feedback`].
    ///
    /// # Errors
    /// As [`Client::send`], and `NOT_FOUND` when there is no such feedback.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown whether the reply is stored.
    pub async fn reply_to_feedback(
        &self,
        mut reply: ReplyToFeedbackRequest,
    ) -> Result<ReplyToFeedbackResponse, Status> {
        reply.idempotency_key = key_or_new(&reply.idempotency_key);
        let call = || {
            let (mut client, request) = (self.desk(), timed(reply.clone(), TIMEOUT));
            async move { client.reply_to_feedback(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// One page of feedback; failed tries are repeated.
    ///
    /// # Errors
    /// A permanent status, or the last one when the repetitions are used up.
    ///
    /// # Cancellation
    /// Nothing is stored, so nothing is left behind.
    pub async fn list_feedback(
        &self,
        list: ListFeedbackRequest,
    ) -> Result<ListFeedbackResponse, Status> {
        let call = || {
            let (mut client, request) = (self.desk(), timed(list.clone(), TIMEOUT));
            async move { client.list_feedback(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Follows all feedback rated from `min_rating` to `max_rating` (0: no limit), after the sequence `after`, or live.
    pub fn watch_feedback(
        &self,
        min_rating: i32,
        max_rating: i32,
        after: Option<u64>,
    ) -> Subscription<FeedbackItem> {
        let desk = self.desk();
        self.resumable(Subscription::new(after, move |resume| {
            let mut desk = desk.clone();
            let request = WatchFeedbackRequest {
                after_sequence: resume.after_sequence,
                min_rating,
                max_rating,
            };
            let request = resume.request(request);
            async move { desk.watch_feedback(request).await }
        }))
    }

    /// Follows the staff's replies to a consumer after the sequence `after`; without it, those that wait for the consumer
    /// come first.
    pub fn watch_replies(&self, consumer: &str, after: Option<u64>) -> Subscription<StaffReply> {
        let feedback = self.feedback();
        let consumer_id = consumer.to_owned();
        self.resumable(Subscription::new(after, move |resume| {
            let mut feedback = feedback.clone();
            let request = WatchRepliesRequest {
                consumer_id: consumer_id.clone(),
                after_sequence: resume.after_sequence,
            };
            let request = resume.request(request);
            async move { feedback.watch(request).await }
        }))
    }

    fn feedback(&self) -> FeedbackClient<Channel> {
        FeedbackClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn desk(&self) -> FeedbackDeskClient<Channel> {
        FeedbackDeskClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}
