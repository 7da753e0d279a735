//! `GetData` and `SubscribeData`.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use futures::stream;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, metadata::MetadataValue};

use crate::{
    call::{Call, into_status},
    core::{
        Error,
        feeds::{self, Point, Recent},
        hub::{Found, Merged, Start},
    },
    log::{self, EventTime, Record, Sequence, Topic},
    proto::streaming::{DataPoint, StreamRequest, StreamResponse},
    services::{
        Core, Responses,
        check::{Check, start},
        message_limit,
    },
};

/// Points of a batch when the request does not say.
const DEFAULT_BATCH: usize = 10;
/// Points of a batch at most.
const MAX_BATCH: usize = 1000;
/// When a batch goes out at the latest after the one before.
const PACE: Duration = Duration::from_secs(1);
/// Where the response says after which sequence a subscription begins.
const AFTER_SEQUENCE: &str = "after-sequence";

pub(super) async fn get(
    core: &Core,
    request: Request<StreamRequest>,
) -> Result<Response<StreamResponse>, Status> {
    let get = Wanted::new(core, request.into_inner()).map_err(into_status)?;
    let recent = Recent {
        records: get.batch,
        bytes: message_limit(&core.limits),
        after: match get.start {
            Start::Live => Sequence::default(),
            Start::After(after) => after,
        },
    };
    let found = core.feeds.newest(&get.topics, recent).await;
    let found = found.map_err(into_status)?;
    let points = newest(&get.subscription, &found, message_limit(&core.limits));
    Ok(Response::new(StreamResponse {
        data_points: points.map_err(into_status)?,
        sequence_number: 0,
    }))
}

pub(super) async fn subscribe(
    core: &Core,
    request: Request<StreamRequest>,
) -> Result<Response<Responses<StreamResponse>>, Status> {
    let call = request.extensions().get::<Call>().cloned();
    let wanted = Wanted::new(core, request.into_inner()).map_err(into_status)?;
    let merged = core.topics.merge(&wanted.topics, wanted.start).await;
    let batches = Batches {
        merged: merged.map_err(into_status)?,
        subscription: wanted.subscription,
        batch: wanted.batch,
        bytes: message_limit(&core.limits),
        waiting: VecDeque::new(),
        due: Instant::now() + PACE,
        number: 0,
        call,
    };
    let after = batches.moved();
    let batches = stream::unfold(Some(batches), |batches| async {
        let mut batches = batches?;
        match batches.next().await {
            Ok(batch) => Some((Ok(batch), Some(batches))),
            Err(error) => Some((Err(into_status(error)), None)),
        }
    });
    let batches: Responses<StreamResponse> = Box::pin(batches);
    let mut response = Response::new(batches);
    let after = MetadataValue::from(after.0);
    response.metadata_mut().insert(AFTER_SEQUENCE, after);
    Ok(response)
}

/// As many of the newest points as a message of `limit` bytes holds, at least one, oldest first.
fn newest(subscription: &str, found: &[Found], limit: usize) -> Result<Vec<DataPoint>, Error> {
    let mut points = Vec::with_capacity(found.len());
    let mut bytes = 0;
    for (topic, record) in found.iter().rev() {
        let point = point(subscription, topic, record)?;
        bytes += size(&point);
        if bytes > limit && !points.is_empty() {
            break;
        }
        points.push(point);
    }
    points.reverse();
    Ok(points)
}

/// What a request asks for.
struct Wanted {
    subscription: String,
    topics: Vec<Topic>,
    batch: usize,
    start: Start,
}

impl Wanted {
    fn new(core: &Core, request: StreamRequest) -> Result<Self, Error> {
        let limit = core.limits.rooms_per_stream;
        let mut check = Check::new(&"");
        let subscription = check.optional("subscription_id", request.subscription_id);
        if request.topics.is_empty() {
            check.refuse("topics", "topics is required");
        }
        let mut topics = Vec::with_capacity(request.topics.len().min(limit));
        for (index, name) in request.topics.iter().enumerate() {
            match feeds::data_topic(name) {
                Ok(topic) if topics.contains(&topic) => {}
                Ok(_) if topics.len() >= limit => {
                    let what = "topics of one stream";
                    return Err(Error::Limit { what, limit });
                }
                Ok(topic) => topics.push(topic),
                Err(log::TopicError::Blank) => {
                    let field = format!("topics[{index}]");
                    check.refuse(&field, format!("{field} is required"));
                }
                Err(error) => {
                    let field = format!("topics[{index}]");
                    check.refuse(&field, format!("{field} {error}"));
                }
            }
        }
        let batch = match usize::try_from(request.batch_size) {
            Ok(0) => DEFAULT_BATCH,
            Ok(batch @ 1..=MAX_BATCH) => batch,
            _ => {
                let text = format!("batch_size must be 0 to {MAX_BATCH}");
                check.refuse("batch_size", text);
                DEFAULT_BATCH
            }
        };
        check.finish(Some(Self {
            subscription: subscription.map_or_else(String::new, |name| name.as_str().to_owned()),
            topics,
            batch,
            start: start(request.after_sequence),
        }))
    }
}

/// The batches of one subscription: made when the client takes them. What waits for the next batch is at most one batch and
/// what the topics gave last.
struct Batches {
    merged: Merged,
    subscription: String,
    /// Points of a batch.
    batch: usize,
    /// Bytes of a batch at most, unless it is one point.
    bytes: usize,
    waiting: VecDeque<Found>,
    /// When the next batch goes out, however many points it has.
    due: Instant,
    number: i64,
    call: Option<Call>,
}

impl Batches {
    /// The next batch; when it comes, its points count as delivered.
    async fn next(&mut self) -> Result<StreamResponse, Error> {
        while self.waiting.len() < self.batch {
            match timeout_at(self.due, self.merged.next()).await {
                Ok(records) => self.waiting.extend(records?),
                Err(_) => break,
            }
        }
        let batch = self.take()?;
        self.due = Instant::now() + PACE;
        self.number += 1;
        self.moved();
        Ok(batch)
    }

    fn take(&mut self) -> Result<StreamResponse, Error> {
        let mut data_points = Vec::with_capacity(self.batch.min(self.waiting.len()));
        let mut bytes = 0;
        while data_points.len() < self.batch
            && let Some((topic, record)) = self.waiting.front()
        {
            let point = point(&self.subscription, topic, record)?;
            bytes += size(&point);
            if bytes > self.bytes && !data_points.is_empty() {
                break;
            }
            data_points.push(point);
            self.waiting.pop_front();
        }
        Ok(StreamResponse {
            data_points,
            sequence_number: self.number,
        })
    }

    /// Tells the call where a client would resume: before what waits here.
    fn moved(&self) -> Sequence {
        let next = self.waiting.front();
        let next = next.map_or_else(|| self.merged.cursor(), |(_, record)| record.sequence);
        let after = Sequence(next.0.saturating_sub(1));
        if let Some(call) = &self.call {
            call.resume_after(after);
        }
        after
    }
}

/// Bytes that a point takes in a batch: its own, its tag and its length.
fn size(point: &DataPoint) -> usize {
    prost::Message::encoded_len(point) + 11
}

/// A record as a point of the subscription called `subscription`.
fn point(subscription: &str, topic: &Topic, record: &Record) -> Result<DataPoint, Error> {
    let point = Point::decode(record.payload.clone())
        .map_err(|error| Error::Log(log::Error::Corrupt(error.to_string())))?;
    let mut metadata: HashMap<String, String> = point
        .metadata
        .into_iter()
        .map(|(name, text)| (name.into(), text.into()))
        .collect();
    metadata.insert("topic".into(), topic.name().to_owned());
    let id = match record.id.as_ref() {
        "" => format!("{subscription}-{}", record.sequence),
        id => id.to_owned(),
    };
    Ok(DataPoint {
        id,
        value: point.value,
        timestamp: nanos(record.shown_time()),
        metadata,
        sequence: record.sequence.0,
    })
}

/// Unix nanoseconds; what does not fit becomes the first or the last there are.
fn nanos(time: EventTime) -> i64 {
    let seconds = i128::from(time.seconds) * 1_000_000_000;
    let nanos = seconds + i128::from(time.nanos);
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_nanoseconds_are_the_outermost() {
        let at = |seconds, nanos_| {
            nanos(EventTime {
                seconds,
                nanos: nanos_,
            })
        };
        assert_eq!(at(-1, 999_999_999), -1);
        assert_eq!(at(1, 5), 1_000_000_005);
        assert_eq!((at(i64::MAX, 0), at(i64::MIN, 0)), (i64::MAX, i64::MIN));
    }
}
