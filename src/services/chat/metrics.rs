//! `StreamMetrics`: of this instance, or of another by asking it each time.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::{
    call::into_status,
    core::{
        Error, Name,
        instance::{Measurement, Sample},
    },
    proto::chat::{Metric, MetricsRequest},
    services::{Core, Responses, check::Check},
};

/// How often measurements are taken when the request does not say.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Measurements at every interval.
///
/// # Errors
/// The request is wrong, or the other instance is unknown or does not answer.
pub(super) async fn stream(
    core: &Core,
    request: MetricsRequest,
) -> Result<Responses<Metric>, Error> {
    let every = metrics_interval(&request)?;
    match other_instance(core, request.instance_id)? {
        Some(id) => of_another(core, id, every).await,
        None => Ok(own(core, every)),
    }
}

fn own(core: &Core, every: Duration) -> Responses<Metric> {
    let instance = core.instance.clone();
    let start = (ticks(every), instance.sample());
    let measured = stream::unfold(start, move |(mut ticks, mut since)| {
        let instance = instance.clone();
        async move {
            ticks.tick().await;
            let measured = instance.measure(&mut since);
            Some((metrics(measured), (ticks, since)))
        }
    });
    Box::pin(measured.flat_map(|metrics| stream::iter(metrics.into_iter().map(Ok))))
}

/// Ends when the other does not answer: whoever asked should learn that what it sees is no more.
async fn of_another(core: &Core, id: Name, every: Duration) -> Result<Responses<Metric>, Error> {
    let instances = core.instances.clone();
    let first = instances.counters(id.as_str()).await?;
    let since = Sample::new(id.as_str(), first);
    let measured = stream::unfold(Some((ticks(every), since)), move |state| {
        let (instances, id) = (instances.clone(), id.clone());
        async move {
            let (mut ticks, mut since) = state?;
            ticks.tick().await;
            match instances.counters(id.as_str()).await {
                Ok(now) => Some((Ok(metrics(since.measure(now))), Some((ticks, since)))),
                Err(error) => Some((Err(into_status(gone(&id, error))), None)),
            }
        }
    });
    Ok(Box::pin(measured.flat_map(|measured| {
        let (metrics, error) = match measured {
            Ok(metrics) => (metrics, None),
            Err(status) => (Vec::new(), Some(Err(status))),
        };
        stream::iter(metrics.into_iter().map(Ok).chain(error))
    })))
}

/// An instance that was there is not unknown when it is gone: it may come back.
fn gone(id: &Name, error: Error) -> Error {
    match error {
        Error::UnknownInstance { .. } => Error::Instance(format!(
            "instance {} is gone; it may come back",
            id.as_str()
        )),
        error => error,
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + every, every);
    // A reader that comes back gets one measurement of the whole time, not one for each interval it missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn metrics(measured: Vec<Measurement>) -> Vec<Metric> {
    measured.into_iter().map(Metric::from).collect()
}

/// The name of the instance that is asked for, unless it is this one.
fn other_instance(core: &Core, id: String) -> Result<Option<Name>, Error> {
    if id.is_empty() || id == core.instance.id() {
        return Ok(None);
    }
    let mut check = Check::new(&"");
    let name = check.name("instance_id", id);
    check.finish(name.map(Some))
}

fn metrics_interval(request: &MetricsRequest) -> Result<Duration, Error> {
    match u64::try_from(request.interval_seconds) {
        Ok(0) => Ok(DEFAULT_INTERVAL),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err(Error::invalid(
            "interval_seconds",
            "interval_seconds must not be negative",
        )),
    }
}
