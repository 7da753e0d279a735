//! Puts log lines and traces together.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, FilterFn, filter_fn},
    fmt::{self, MakeWriter, format::JsonFields},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{
    export, line_feed,
    line_feed::{LineFeed, Lines},
    lines,
    trace::{self, Traces},
};
use crate::config::{self, LogFormat};

/// Why log lines or traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `telemetry.log_level` is not a filter.
    #[error("telemetry.log_level: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// `telemetry.otlp_endpoint` cannot be used.
    #[error("telemetry.otlp_endpoint: {0}")]
    Endpoint(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Exporting needs a tokio runtime to run on.
    #[error("traces need a tokio runtime")]
    NoRuntime,
    /// The process has log lines already.
    #[error("log lines are set up already")]
    Twice,
}

/// Holds the exporter; ends it.
#[derive(Debug)]
pub struct Guard {
    provider: SdkTracerProvider,
    traces: Traces,
    lines: Lines,
}

impl Guard {
    /// What makes spans.
    #[must_use]
    pub fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// The log lines on their way to the topic `logs`.
    #[must_use]
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Exports the spans that ended, waiting `timeout` at most, so that a collector that is down holds nothing up. False when
    /// some may be lost.
    pub async fn shutdown(self, timeout: Duration) -> bool {
        let provider = self.provider;
        // The provider waits on a thread of its own kind, never on a worker that it may need.
        let stop = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout));
        matches!(tokio::time::timeout(timeout, stop).await, Ok(Ok(Ok(()))))
    }
}

/// Installs log lines on stderr and traces for the whole process, once.
///
/// # Errors
/// A setting cannot be used, or the process has a subscriber already.
pub fn init(settings: &config::Telemetry, instance_id: &str) -> Result<Guard, Error> {
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = io::stderr().is_terminal() && !is_plain;
    let (subscriber, guard) = subscriber(settings, instance_id, io::stderr, colours)?;
    // Takes lines of the `log` crate too, which the storage engine writes.
    subscriber.try_init().map_err(|_| Error::Twice)?;
    Ok(guard)
}

/// What [`init`] installs, without installing it: log lines go to `writer`.
///
/// # Errors
/// A setting cannot be used.
pub fn subscriber<W>(
    settings: &config::Telemetry,
    instance_id: &str,
    writer: W,
    colours: bool,
) -> Result<(impl Subscriber + Send + Sync + use<W>, Guard), Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = EnvFilter::try_new(&settings.log_level)?;
    let (provider, exports) = export::provider(settings, instance_id)?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("weir"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter(is_trace_span, LevelFilter::INFO));
    let lines = lines(settings.log_format, writer, colours)
        .with_filter(level.and(filter(is_for_lines, LevelFilter::TRACE)));
    // What the operator sees is what the topic gets.
    let level = EnvFilter::try_new(&settings.log_level)?;
    let (feed, waiting) = LineFeed::new();
    let feed = feed.with_filter(level.and(filter(line_feed::is_taken, LevelFilter::INFO)));
    let guard = Guard {
        provider,
        traces: Traces::new(exports),
        lines: waiting,
    };
    let subscriber = Registry::default().with(spans).with(lines).with(feed);
    Ok((subscriber, guard))
}

type BoxedLines<S> = Box<dyn Layer<S> + Send + Sync>;

fn lines<S, W>(format: LogFormat, writer: W, colours: bool) -> BoxedLines<S>
where
    S: Subscriber + for<'s> tracing_subscriber::registry::LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => layer.with_ansi(colours).event_format(lines::Text).boxed(),
        LogFormat::Json => layer
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(lines::Json)
            .boxed(),
    }
}

/// Only spans made by [`trace`] are exported: those of the exporter's own connection would feed back.
fn is_trace_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == trace::TARGET
}

/// Spans made by [`trace`] are known to log lines by their ids alone, so a call costs no formatting.
fn is_for_lines(metadata: &Metadata<'_>) -> bool {
    !is_trace_span(metadata)
}

/// A filter with a level: without one every library's `trace!` would be asked.
fn filter(
    wanted: fn(&Metadata<'_>) -> bool,
    level: LevelFilter,
) -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(wanted).with_max_level_hint(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_set_up_once() {
        let silent = config::Telemetry {
            log_level: "off".into(),
            ..config::Telemetry::default()
        };
        let guard = init(&silent, "server-01").unwrap();
        assert!(!guard.traces().enabled());
        assert!(matches!(init(&silent, "server-01"), Err(Error::Twice)));
    }
}
