//! `CollectMetrics`.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::{
        Error, Feeds, Name,
        appender::Appended,
        collect::{Collect, Kind, Reason, Refusal, Sample},
    },
    log::{NewRecord, TraceContext},
    proto::streaming::v1::{MetricData, MetricKind, MetricsCollectionResult},
    services::{
        Core,
        check::event_time,
        intake::{Admission, intake},
        points::nanos,
    },
    telemetry::trace,
};

use super::signed;

pub(super) async fn collect(
    core: &Core,
    request: Request<Streaming<MetricData>>,
) -> Result<Response<MetricsCollectionResult>, Status> {
    let mut side = Side {
        feeds: core.feeds.clone(),
        trace: trace::current(),
        collect: core.collect.clone(),
        first: None,
    };
    let counts = intake(core, request.into_inner(), &mut side).await?;
    let first = side
        .first
        .map(|(index, why)| format!("sample {index}: {why}"));
    Ok(Response::new(MetricsCollectionResult {
        received: signed(counts.received),
        accepted: signed(counts.accepted),
        rejected: signed(counts.received - counts.accepted),
        error_message: first.unwrap_or_default(),
    }))
}

/// One stream of samples.
struct Side {
    feeds: Feeds,
    trace: Option<TraceContext>,
    collect: Collect,
    /// The first refusal: conflicts of keys show later than what is wrong with a sample itself.
    first: Option<(u64, String)>,
}

/// A sample on its way into the log.
struct Taken {
    index: u64,
    sample: Sample,
    key: Option<Box<str>>,
}

impl Admission for Side {
    type In = MetricData;
    type Taken = Taken;

    fn admit(&mut self, index: u64, data: MetricData) -> Option<(Self::Taken, NewRecord)> {
        match self.taken(data) {
            Ok((sample, record)) => {
                let key = record.key.clone();
                Some((Taken { index, sample, key }, record))
            }
            Err(refusal) => {
                self.refuse(index, &refusal);
                None
            }
        }
    }

    fn settled(&mut self, taken: Taken, outcome: Result<Appended, Error>) {
        let Taken { index, sample, key } = taken;
        match outcome {
            Ok(appended) if appended.is_duplicate => self.collect.repeated(sample, key.as_deref()),
            Ok(_) => self.collect.stored(sample, key.as_deref()),
            Err(error) => self.refuse(index, &Refusal::new(Reason::Key, error.to_string())),
        }
    }

    fn abandoned(&mut self, taken: Taken) {
        if let Some(key) = taken.key {
            self.collect.abandoned(key);
        }
    }
}

impl Side {
    fn taken(&self, data: MetricData) -> Result<(Sample, NewRecord), Refusal> {
        let kind = match MetricKind::try_from(data.kind) {
            Ok(MetricKind::Gauge) => Kind::Gauge,
            Ok(MetricKind::Counter) => Kind::Counter,
            Err(_) => {
                let text = format!("kind {} is not known", data.kind);
                return Err(Refusal::new(Reason::Kind, text));
            }
        };
        if data.timestamp.is_some_and(|time| nanos(time).is_none()) {
            let text = "timestamp must be a time from 1677 to 2262";
            return Err(Refusal::new(Reason::Timestamp, text));
        }
        let key = match data.idempotency_key.as_str() {
            "" => None,
            key => Some(
                Name::new(key)
                    .map_err(|why| Refusal::new(Reason::Key, format!("idempotency_key {why}")))?,
            ),
        };
        let mut labels: BTreeMap<_, _> = data.labels.into_iter().collect();
        let sample = Sample::new(&data.name, kind, &labels, data.value)?;
        self.collect.reserve(&sample)?;
        labels.insert("kind".into(), kind.as_str().into());
        let labels = labels
            .into_iter()
            .map(|(name, text)| (name.into(), text.into()));
        let time = data.timestamp.map(event_time);
        let record = self
            .feeds
            .metric_record(&data.name, data.value, time, labels, key);
        let mut record = record.map_err(|why| Refusal::new(Reason::Name, why.to_string()))?;
        record.trace = self.trace;
        Ok((sample, record))
    }

    fn refuse(&mut self, index: u64, refusal: &Refusal) {
        self.collect.refused(refusal.reason);
        if self.first.as_ref().is_none_or(|(first, _)| index < *first) {
            self.first = Some((index, refusal.to_string()));
        }
    }
}
