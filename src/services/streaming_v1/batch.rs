//! `ProcessDataBatch`.

use std::collections::BTreeMap;

use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::{
        Error, Name,
        appender::Appended,
        processing::{Batch, SeriesId, SeriesStatistics},
    },
    log::{NewRecord, Space, Topic, TraceContext},
    proto::streaming::v1::{
        BatchProcessingResult, DataRecord, RecordError, SeriesStatistics as Statistics,
    },
    services::{
        Core,
        check::Check,
        intake::{Admission, intake},
        message_limit,
        points::{Point, nanos},
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
        topic: Topic::new(Space::Data, TOPIC).map_err(|_| Status::internal("no topic"))?,
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
        let (point, series, key) = checked(record)?;
        let taken = Taken {
            index,
            id: point.id.clone(),
            series: self.batch.series(series.as_str())?,
            value: point.value,
        };
        Ok((taken, point.record(&self.topic, key, self.trace)))
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

/// The point that a record stands for, its series and its key.
fn checked(record: DataRecord) -> Result<(Point, Name, Option<Name>), Error> {
    let mut check = Check::new(&"");
    let series = check.name(SERIES, record.series);
    let id = check.optional("id", record.id);
    let key = check.optional("idempotency_key", record.idempotency_key);
    if !record.value.is_finite() {
        check.refuse("value", "value must be finite");
    }
    let timestamp = record.timestamp.map_or(Some(0), nanos);
    if timestamp.is_none() {
        check.refuse("timestamp", "timestamp must be a time from 1677 to 2262");
    }
    let (series, timestamp) = check.finish(series.zip(timestamp))?;
    let mut metadata: BTreeMap<_, _> = record.attributes.into_iter().collect();
    metadata.insert(SERIES.into(), series.as_str().into());
    let point = Point {
        id: id.map(Box::<str>::from).unwrap_or_default().into(),
        value: record.value,
        timestamp,
        metadata,
    };
    Ok((point, series, key))
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
