//! `SubscribeToNotifications`.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use crate::{
    call::into_status,
    core::{Error, feeds, hub::Start},
    log::{Record, Space, Topic},
    proto::streaming::v1::{Notification, SubscribeRequest},
    services::{
        Core,
        check::{Check, start, timestamp},
        live::{Live, Selected, Source, WithLive, frame_with},
    },
};

/// Adds the method to the service.
pub(super) fn add<S>(service: WithLive<S>, core: &Core) -> WithLive<S> {
    let core = core.clone();
    let path = "/streaming.v1.StreamingService/SubscribeToNotifications";
    service.method(path, move |request| {
        let core = core.clone();
        async move { subscribe(&core, request).await.map_err(into_status) }
    })
}

async fn subscribe(
    core: &Core,
    request: SubscribeRequest,
) -> Result<Live<impl Source + use<>>, Error> {
    let Subscribe {
        topics,
        categories,
        start,
    } = Subscribe::try_from(request)?;
    let source = Selected {
        merged: core.topics.merge(&topics, start).await?,
        encode: move |topic: &Topic, record: &Record, out: &mut BytesMut| {
            let is_wanted = is_wanted(&categories, &record.payload);
            if is_wanted {
                encode(topic, record, out);
            }
            is_wanted
        },
    };
    Ok(Live {
        first: Bytes::new(),
        source,
    })
}

/// Whether a stored notification is of one of the categories; none: all. One that does not read back is passed on.
fn is_wanted(categories: &HashSet<String>, payload: &Bytes) -> bool {
    categories.is_empty()
        || Notification::decode(payload.clone())
            .map_or(true, |stored| categories.contains(&stored.category))
}

fn encode(topic: &Topic, record: &Record, out: &mut BytesMut) {
    let user = match topic.space() {
        Space::Broadcast => "",
        _ => topic.name(),
    };
    let notification = Notification {
        id: record.id.to_string(),
        user_id: user.to_owned(),
        timestamp: Some(timestamp(record.shown_time())),
        sequence: record.sequence.0,
        ..Notification::default()
    };
    frame_with(&notification, &record.payload, out);
}

/// Whose notifications, which, and from where.
struct Subscribe {
    topics: [Topic; 2],
    categories: HashSet<String>,
    start: Start,
}

impl TryFrom<SubscribeRequest> for Subscribe {
    type Error = Error;

    fn try_from(request: SubscribeRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let user = check.topic(Space::Notification, "user_id", &request.user_id);
        let topics = user.zip(feeds::everybody().ok());
        check.finish(topics.map(|(user, everybody)| Self {
            topics: [user, everybody],
            categories: request.categories.into_iter().collect(),
            start: start(request.after_sequence),
        }))
    }
}
