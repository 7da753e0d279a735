//! The calls around feeds: user events, notifications and data.

use std::time::Duration;

use futures::stream;
use tonic::{Status, transport::Channel};

use super::{
    Client, ENVELOPE_BYTES, MAX_MESSAGE_BYTES, Sequenced, Subscription,
    chat::{key_or_new, timed},
};
use crate::proto::{
    streaming::v1::{
        Notification, StreamUserEventsRequest, SubscribeRequest, UserEvent,
        streaming_service_client::StreamingServiceClient,
    },
    streaming::{DataPoint, StreamRequest, StreamResponse, data_service_client::DataServiceClient},
    weir::v1::{
        PublishDataRequest, PublishNotificationRequest, PublishResponse, PublishUserEventRequest,
        publisher_client::PublisherClient,
    },
};

/// Time for one try of a single message.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one try of a batch.
const BULK_TIMEOUT: Duration = Duration::from_secs(60);

impl Sequenced for UserEvent {
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Sequenced for Notification {
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Sequenced for StreamResponse {
    /// The position of its last point; 0 for a heartbeat.
    fn sequence(&self) -> u64 {
        self.data_points.last().map_or(0, |point| point.sequence)
    }
}

impl Client {
    /// Follows a user's events from where `request` says: after a sequence, from a time on, or live from now. It resumes by
    /// sequence.
    pub fn user_events(&self, request: StreamUserEventsRequest) -> Subscription<UserEvent> {
        let service = self.streaming();
        let start = request.after_sequence;
        self.resumable(Subscription::new(start, move |resume| {
            let mut service = service.clone();
            let mut request = request.clone();
            if resume.after_sequence.is_some() {
                request.after_sequence = resume.after_sequence;
                request.start_time = None;
            }
            let request = resume.request(request);
            async move { service.stream_user_events(request).await }
        }))
    }

    /// Follows a user's notifications and those for all users, after `request.after_sequence` or live from now.
    pub fn notifications(&self, request: SubscribeRequest) -> Subscription<Notification> {
        let service = self.streaming();
        let start = request.after_sequence;
        self.resumable(Subscription::new(start, move |resume| {
            let mut service = service.clone();
            let request = SubscribeRequest {
                after_sequence: resume.after_sequence,
                ..request.clone()
            };
            let request = resume.request(request);
            async move { service.subscribe_to_notifications(request).await }
        }))
    }

    /// Follows data topics in batches, after `request.after_sequence` or live from now. A batch without points is a
    /// heartbeat; batches are numbered anew after each reconnect.
    pub fn data(&self, request: StreamRequest) -> Subscription<StreamResponse> {
        let service = self.points();
        let start = request.after_sequence;
        self.resumable(Subscription::new(start, move |resume| {
            let mut service = service.clone();
            let request = StreamRequest {
                after_sequence: resume.after_sequence,
                ..request.clone()
            };
            let request = resume.request(request);
            async move { service.subscribe_data(request).await }
        }))
    }

    /// The newest points of data topics, oldest first.
    ///
    /// # Errors
    /// A permanent status, or the last one when the repetitions are used up.
    pub async fn newest_data(&self, request: StreamRequest) -> Result<Vec<DataPoint>, Status> {
        let call = || {
            let (mut service, request) = (self.points(), timed(request.clone(), PUBLISH_TIMEOUT));
            async move { service.get_data(request).await }
        };
        let got = self.publish_retry().run(call).await?;
        Ok(got.into_inner().data_points)
    }

    /// Publishes a user's event; returns once it is durable. Failed tries are repeated under one idempotency key, the
    /// request's own or a new one, so the event is stored once. A try takes ten seconds at most.
    ///
    /// # Errors
    /// As [`Client::send`].
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown whether the event is stored.
    pub async fn publish_user_event(
        &self,
        request: PublishUserEventRequest,
    ) -> Result<PublishResponse, Status> {
        let request = PublishUserEventRequest {
            idempotency_key: key_or_new(&request.idempotency_key),
            ..request
        };
        let call = || {
            let (mut service, request) =
                (self.publisher(), timed(request.clone(), PUBLISH_TIMEOUT));
            async move { service.publish_user_event(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Publishes a notification to a user, or to all when none is named; otherwise as [`Client::publish_user_event`].
    ///
    /// # Errors
    /// As [`Client::send`].
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown whether the notification is stored.
    pub async fn publish_notification(
        &self,
        request: PublishNotificationRequest,
    ) -> Result<PublishResponse, Status> {
        let request = PublishNotificationRequest {
            idempotency_key: key_or_new(&request.idempotency_key),
            ..request
        };
        let call = || {
            let (mut service, request) =
                (self.publisher(), timed(request.clone(), PUBLISH_TIMEOUT));
            async move { service.publish_notification(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Publishes points and returns their count once all are durable. Failed tries are repeated as a whole; every point
    /// without an idempotency key gets one, so none is stored twice. A try takes a minute at most.
    ///
    /// # Errors
    /// As [`Client::send`]; after `INVALID_ARGUMENT` the points before the bad one are stored.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown which points are stored.
    pub async fn publish_data(&self, points: Vec<PublishDataRequest>) -> Result<u64, Status> {
        let keyed = points.into_iter().map(|point| PublishDataRequest {
            idempotency_key: key_or_new(&point.idempotency_key),
            ..point
        });
        let points: Vec<_> = keyed.collect();
        let call = || {
            let points = stream::iter(points.clone());
            let (mut service, request) = (self.publisher(), timed(points, BULK_TIMEOUT));
            async move { service.publish_stream(request).await }
        };
        let stored = self.publish_retry().run(call).await?.into_inner();
        Ok(u64::try_from(stored.count).unwrap_or_default())
    }

    pub(super) fn streaming(&self) -> StreamingServiceClient<Channel> {
        StreamingServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
    }

    fn points(&self) -> DataServiceClient<Channel> {
        DataServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
    }

    fn publisher(&self) -> PublisherClient<Channel> {
        PublisherClient::new(self.channel()).max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}
