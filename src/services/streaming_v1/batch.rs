//! `ProcessDataBatch`.

use std::collections::BTreeMap;

use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::{
        Error, Feeds, Name,
        appender::Appended,
        feeds::{Entry, Point, data_topic},
        processing::{Batch, SeriesId, SeriesStatistics},
    },
    log::{NewRecord, Topic, TraceContext},
    proto::streaming::v1::{
        BatchProcessingResult, DataRecord, RecordError, SeriesStatistics as Statistics,
    },
    services::{
        Core,
        check::{Check, event_time},
        intake::{Admission, intake},
        message_limit,
        points::nanos,
    },
    telemetry::trace,
};

use super::signed;

/// The topic that accepted records are published to.
const TOPIC: &str = "data";
/// Refusals that a result names.
const MAX_ERRORS: usize = 100;
/// The metadata key that names a point's series.
const SERIES: &str = "series";

pub(super) async fn process(
    core: &Core,
    request: Request<Streaming<DataRecord>>,
) -> Result<Response<BatchProcessingResult>, Status> {
    let limit = message_limit(&core.limits);
    let mut side = Side {
        feeds: core.feeds.clone(),
        topic: data_topic(TOPIC).map_err(|_| Status::internal("no topic"))?,
        trace: trace::current(),
        // The other half is for the errors.
        batch: Batch::new(core.processing.max_series, limit / 2),
        errors: BTreeMap::new(),
    };
    let counts = intake(core, request.into_inner(), &mut side).await?;
    let mut result = BatchProcessingResult {
        received: signed(counts.received),
        accepted: signed(counts.accepted),
        rejected: signed(counts.received - counts.accepted),
        errors: side.errors.into_values().collect(),
        series: side.batch.finish().into_iter().map(statistics).collect(),
    };
    while result.encoded_len() > limit && result.errors.pop().is_some() {}
    Ok(Response::new(result))
}

/// One batch.
struct Side {
    feeds: Feeds,
    topic: Topic,
    trace: Option<TraceContext>,
    batch: Batch,
    /// The first refusals, by index: conflicts of keys show later than what is wrong with a record itself.
    errors: BTreeMap<u64, RecordError>,
}

/// A record on its way into the log.
struct Taken {
    index: u64,
    id: String,
    series: SeriesId,
    value: f64,
}

impl Admission for Side {
    type In = DataRecord;
    type Taken = Taken;

    fn admit(&mut self, index: u64, record: DataRecord) -> Option<(Taken, NewRecord)> {
        let id = shortened(&record.id).to_owned();
        match self.taken(index, record) {
            Ok(taken) => Some(taken),
            Err(error) => {
                self.refuse(index, id, &error);
                None
            }
        }
    }

    fn settled(&mut self, taken: Taken, outcome: Result<Appended, Error>) {
        match outcome {
            Ok(_) => self.batch.add(taken.series, taken.value),
            Err(error) => self.refuse(taken.index, taken.id, &error),
        }
    }
}

impl Side {
    fn taken(&mut self, index: u64, record: DataRecord) -> Result<(Taken, NewRecord), Error> {
        let id = record.id.clone();
        let value = record.value;
        let (series, entry) = checked(record, &self.topic)?;
        let taken = Taken {
            index,
            id,
            series: self.batch.series(series.as_str())?,
            value,
        };
        let mut record = self.feeds.record(entry);
        record.trace = self.trace;
        Ok((taken, record))
    }

    fn refuse(&mut self, index: u64, id: String, error: &Error) {
        let reason = error.to_string();
        let error = RecordError {
            index: signed(index),
            id,
            reason,
        };
        self.errors.insert(index, error);
        if self.errors.len() > MAX_ERRORS {
            self.errors.pop_last();
        }
    }
}

/// A record's series, and what is published of it.
fn checked(record: DataRecord, topic: &Topic) -> Result<(Name, Entry), Error> {
    let mut check = Check::new(&"");
    let series = check.name(SERIES, record.series);
    let id = check.optional("id", record.id);
    let key = check.optional("idempotency_key", record.idempotency_key);
    if !record.value.is_finite() {
        check.refuse("value", "value must be finite");
    }
    if record.timestamp.is_some_and(|time| nanos(time).is_none()) {
        check.refuse("timestamp", "timestamp must be a time from 1677 to 2262");
    }
    let series = check.finish(series)?;
    let named = (SERIES.to_owned(), series.as_str().to_owned());
    let metadata = record.attributes.into_iter().chain([named]);
    let entry = Entry {
        topic: topic.clone(),
        id,
        kind: 0,
        event_time: record.timestamp.map(event_time),
        key,
        payload: Point::new(record.value, metadata).encode(),
    };
    Ok((series, entry))
}

/// As much of an id as an id may be long.
fn shortened(id: &str) -> &str {
    let end = (0..=id.len().min(Topic::MAX_NAME_BYTES))
        .rev()
        .find(|at| id.is_char_boundary(*at));
    &id[..end.unwrap_or(0)]
}

fn statistics(found: SeriesStatistics) -> Statistics {
    let moments = found.moments;
    Statistics {
        series: found.series.into(),
        count: signed(moments.count()),
        sum: moments.sum(),
        min: moments.min(),
        max: moments.max(),
        mean: moments.mean(),
        stddev: moments.stddev(),
        p50: found.p50,
        p95: found.p95,
        p99: found.p99,
    }
}
