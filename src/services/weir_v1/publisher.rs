//! `weir.v1.Publisher`.

use std::fmt::Display;

use prost::Message as _;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use crate::{
    call::into_status,
    core::{
        Error,
        appender::Appended,
        feeds::{self, Entry, OwnFeed, Point},
    },
    log::{EventTime, NewRecord, Space, Topic, TopicError},
    proto::{
        streaming::v1::{Notification, UserEvent, UserEventType},
        weir::v1::{
            PublishDataRequest, PublishNotificationRequest, PublishResponse, PublishStreamResponse,
            PublishUserEventRequest,
            publisher_server::{Publisher, PublisherServer},
        },
    },
    services::{
        Core, ENVELOPE_BYTES,
        check::{Check, event_time, timestamp},
        incoming::Incoming,
        message_limit,
    },
};

/// Adds the service.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    let limit = message_limit(&core.limits);
    let service = PublisherServer::new(Feeder { core: core.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES));
    routes.add_service(service)
}

/// The service.
struct Feeder {
    core: Core,
}

impl Feeder {
    async fn publish(
        &self,
        entry: Result<Entry, Error>,
    ) -> Result<Response<PublishResponse>, Status> {
        let entry = entry.map_err(into_status)?;
        let published = self.core.feeds.publish(entry).await;
        Ok(Response::new(answer(published.map_err(into_status)?)))
    }

    /// The records of a batch up to the first bad point, and what is wrong with that.
    fn records(
        &self,
        batch: Vec<PublishDataRequest>,
        index: &mut usize,
    ) -> (Vec<NewRecord>, Option<Error>) {
        let mut records = Vec::with_capacity(batch.len());
        for message in batch {
            match point(message, &format_args!("messages[{index}].")) {
                Ok(entry) => records.push(self.core.feeds.record(entry)),
                Err(error) => return (records, Some(error)),
            }
            *index += 1;
        }
        (records, None)
    }
}

#[tonic::async_trait]
impl Publisher for Feeder {
    async fn publish_user_event(
        &self,
        request: Request<PublishUserEventRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        self.publish(event(request.into_inner())).await
    }

    async fn publish_notification(
        &self,
        request: Request<PublishNotificationRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        self.publish(notification(request.into_inner())).await
    }

    async fn publish_data(
        &self,
        request: Request<PublishDataRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        self.publish(point(request.into_inner(), &"")).await
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishDataRequest>>,
    ) -> Result<Response<PublishStreamResponse>, Status> {
        let mut messages = Incoming::new(request.into_inner());
        let mut pipeline = self.core.feeds.pipeline();
        let mut index = 0;
        while let Some(batch) = messages.next_batch().await? {
            let (records, refused) = self.records(batch, &mut index);
            pipeline.push(records).await.map_err(into_status)?;
            if let Some(refused) = refused {
                pipeline.finish().await.map_err(into_status)?;
                return Err(into_status(refused));
            }
        }
        let stored = pipeline.finish().await.map_err(into_status)?;
        Ok(Response::new(PublishStreamResponse {
            count: i64::try_from(stored).unwrap_or(i64::MAX),
        }))
    }
}

fn answer((id, appended): (Box<str>, Appended)) -> PublishResponse {
    PublishResponse {
        id: id.into(),
        sequence: appended.sequence.0,
        timestamp: Some(timestamp(appended.time.into())),
    }
}

fn event(request: PublishUserEventRequest) -> Result<Entry, Error> {
    let mut check = Check::new(&"");
    let topic = check.topic(Space::Event, "user_id", &request.user_id);
    let id = check.optional("id", request.id);
    let key = check.optional("idempotency_key", request.idempotency_key);
    let kind = UserEventType::try_from(request.r#type)
        .ok()
        .and_then(|known| u16::try_from(known as i32).ok());
    if kind.is_none() {
        check.refuse("type", format!("type {} is not known", request.r#type));
    }
    let payload = UserEvent {
        data: request.data,
        ..UserEvent::default()
    };
    check.finish(topic.zip(kind).map(|(topic, kind)| Entry {
        topic,
        id,
        kind,
        event_time: request.timestamp.map(event_time),
        key,
        payload: payload.encode_to_vec().into(),
    }))
}

fn notification(request: PublishNotificationRequest) -> Result<Entry, Error> {
    let mut check = Check::new(&"");
    let topic = addressee(&mut check, &request.user_id);
    let id = check.optional("id", request.id);
    let key = check.optional("idempotency_key", request.idempotency_key);
    let payload = Notification {
        title: request.title,
        body: request.body,
        category: request.category,
        priority: request.priority,
        data: request.data,
        ..Notification::default()
    };
    check.finish(topic.map(|topic| Entry {
        topic,
        id,
        kind: 0,
        event_time: None,
        key,
        payload: payload.encode_to_vec().into(),
    }))
}

/// The topic of one user, or of all when none is named.
fn addressee(check: &mut Check<'_>, user: &str) -> Option<Topic> {
    match user {
        "" => known(check, "user_id", feeds::everybody()),
        user => check.topic(Space::Notification, "user_id", user),
    }
}

/// A point as something to publish; `path` is where it stands in the call, for what is wrong with it.
fn point(request: PublishDataRequest, path: &dyn Display) -> Result<Entry, Error> {
    let mut check = Check::new(path);
    let topic = check.topic(Space::Data, "topic", &request.topic);
    if let Some(own) = OwnFeed::named(&request.topic) {
        check.refuse("topic", format!("topic {own} is the service's own"));
    }
    let id = check.optional("id", request.id);
    let key = check.optional("idempotency_key", request.idempotency_key);
    check.finish(topic.map(|topic| Entry {
        topic,
        id,
        kind: 0,
        event_time: (request.timestamp != 0).then(|| from_nanos(request.timestamp)),
        key,
        payload: Point::new(request.value, request.metadata).encode(),
    }))
}

fn from_nanos(nanos: i64) -> EventTime {
    EventTime {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default(),
    }
}

fn known(check: &mut Check<'_>, field: &str, topic: Result<Topic, TopicError>) -> Option<Topic> {
    topic
        .map_err(|error| check.refuse(field, error.to_string()))
        .ok()
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    #[test]
    fn times_before_the_epoch_have_positive_nanoseconds() {
        let time = from_nanos(-1);
        assert_eq!((time.seconds, time.nanos), (-1, 999_999_999));
        let time = from_nanos(1_500_000_000);
        assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    }

    #[test]
    fn equal_requests_have_equal_content() {
        let request = |pairs: [(&str, &str); 2]| PublishDataRequest {
            topic: "t".into(),
            metadata: pairs
                .map(|(name, text)| (name.into(), text.into()))
                .into_iter()
                .collect(),
            ..PublishDataRequest::default()
        };
        let one = point(request([("a", "1"), ("b", "2")]), &"").unwrap();
        let other = point(request([("b", "2"), ("a", "1")]), &"").unwrap();
        assert_eq!(one.payload, other.payload);
    }

    #[test]
    fn details_of_an_event_are_kept() {
        let data = Any {
            type_url: "type.googleapis.com/x".into(),
            value: b"1".to_vec(),
        };
        let request = PublishUserEventRequest {
            user_id: "ann".into(),
            data: Some(data.clone()),
            ..PublishUserEventRequest::default()
        };
        let entry = event(request).unwrap();
        assert_eq!(UserEvent::decode(entry.payload).unwrap().data, Some(data));
    }
}
