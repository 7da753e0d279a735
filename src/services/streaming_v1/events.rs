//! `StreamUserEvents`.

use bytes::{Bytes, BytesMut};
use futures::future::Either;
use prost_types::Timestamp;

use crate::{
    call::into_status,
    core::{
        Error,
        hub::{Encoded, Encoding, Start, Subscription},
    },
    log::{self, Record, Space, Topic, TopicError},
    proto::streaming::v1::{StreamUserEventsRequest, UserEvent, UserEventType},
    services::{
        Core,
        check::{Check, start, timestamp},
        live::{Live, Selected, Source, WithLive, frame_with},
    },
};

/// Adds the method to the service.
pub(super) fn add<S>(service: WithLive<S>, core: &Core) -> WithLive<S> {
    let core = core.clone();
    let path = "/streaming.v1.StreamingService/StreamUserEvents";
    service.method(path, move |request| {
        let core = core.clone();
        async move { subscribe(&core, request).await.map_err(into_status) }
    })
}

async fn subscribe(
    core: &Core,
    request: StreamUserEventsRequest,
) -> Result<Live<impl Source + use<>>, Error> {
    let Subscribe {
        user,
        kinds,
        start,
        since,
    } = Subscribe::try_from(request)?;
    let start = match since {
        Some(since) => core.feeds.start_at(&user, since).await?,
        None => start,
    };
    let source = match kinds.is_empty() {
        true => {
            let view = Encoded::<UserEvents>::default();
            Either::Left(core.topics.subscribe(&user, start, view).await?)
        }
        false => Either::Right(Selected {
            merged: core.topics.merge(&[user], start).await?,
            encode: move |user: &Topic, record: &Record, out: &mut BytesMut| {
                let is_wanted = kinds.contains(&record.kind);
                if is_wanted {
                    UserEvents::encode(user, record, out);
                }
                is_wanted
            },
        }),
    };
    let source: Either<Subscription<Encoded<UserEvents>>, _> = source;
    Ok(Live {
        first: Bytes::new(),
        source,
    })
}

/// Records of a user's events as `UserEvent`.
struct UserEvents;

impl Encoding for UserEvents {
    fn encode(user: &Topic, record: &Record, out: &mut BytesMut) {
        let event = UserEvent {
            id: record.id.to_string(),
            user_id: user.name().to_owned(),
            r#type: record.kind.into(),
            timestamp: Some(timestamp(record.shown_time())),
            data: None,
            sequence: record.sequence.0,
        };
        frame_with(&event, &record.payload, out);
    }
}

/// Whose events, which, and from where.
struct Subscribe {
    user: Topic,
    /// None: all.
    kinds: Vec<u16>,
    start: Start,
    since: Option<log::Timestamp>,
}

impl TryFrom<StreamUserEventsRequest> for Subscribe {
    type Error = Error;

    fn try_from(request: StreamUserEventsRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let user = match Topic::new(Space::Event, &request.user_id) {
            Err(TopicError::Blank) => {
                check.refuse("user_id", "User ID is required");
                None
            }
            _ => check.topic(Space::Event, "user_id", &request.user_id),
        };
        let mut kinds = Vec::with_capacity(request.event_types.len());
        for (index, number) in request.event_types.into_iter().enumerate() {
            match (UserEventType::try_from(number), u16::try_from(number)) {
                (Ok(_), Ok(kind)) => kinds.push(kind),
                _ => check.refuse(
                    &format!("event_types[{index}]"),
                    format!("type {number} is not known"),
                ),
            }
        }
        if request.start_time.is_some() && request.after_sequence.is_some() {
            let text = "start_time and after_sequence exclude each other";
            check.refuse("start_time", text);
        }
        let since = request.start_time.map(moment);
        let start = start(request.after_sequence);
        check.finish(user.map(|user| Self {
            user,
            kinds,
            start,
            since,
        }))
    }
}

/// A time as the log knows it: none before the epoch.
fn moment(time: Timestamp) -> log::Timestamp {
    let time = time.normalized();
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(time.seconds), u64::try_from(time.nanos)) else {
        return log::Timestamp::default();
    };
    log::Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_is_a_moment() {
        let at = |seconds, nanos| moment(Timestamp { seconds, nanos }).0;
        assert_eq!(at(1, 5), 1_000_000_005);
        assert_eq!((at(-1, 0), at(i64::MIN, i32::MIN)), (0, 0));
        assert_eq!(at(i64::MAX, i32::MAX), u64::MAX);
        assert_eq!(at(1, -1), 999_999_999);
    }
}
