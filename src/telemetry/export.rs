//! Where spans go: a tracer provider that exports them in batches, or one that keeps none.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
    },
};

use super::Error;
use crate::config;

/// Ended spans waiting for export at most; further ones are dropped.
const QUEUE: usize = 8192;
/// Spans in one export at most.
const BATCH: usize = 512;
/// How long a span waits for its batch to fill.
const DELAY: Duration = Duration::from_secs(1);
/// How long one export may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The provider that `settings` ask for, and whether spans leave the process. Without an endpoint spans are never recorded,
/// but still carry their caller's trace id into the log lines.
///
/// The exporter's connection lives on the current tokio runtime.
pub(super) fn provider(
    settings: &config::Telemetry,
    instance_id: &str,
) -> Result<(SdkTracerProvider, bool), Error> {
    if settings.otlp_endpoint.is_empty() {
        let silent = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff);
        return Ok((silent.build(), false));
    }
    tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
    let exporter = Otlp::builder()
        .with_tonic()
        .with_endpoint(&settings.otlp_endpoint)
        .with_timeout(TIMEOUT)
        .build()?;
    let ratio = Sampler::TraceIdRatioBased(settings.trace_ratio);
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .with_resource(resource(instance_id))
        .with_span_processor(batches(Announcing::new(exporter)))
        .build();
    Ok((provider, true))
}

fn batches(exporter: impl SpanExporter + 'static) -> BatchSpanProcessor {
    let bounds = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY);
    BatchSpanProcessor::builder(exporter)
        .with_batch_config(bounds.build())
        .build()
}

fn resource(instance_id: &str) -> Resource {
    Resource::builder()
        .with_service_name("weir")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance_id.to_owned()))
        .build()
}

/// Logs when exports begin to fail and when they work again, instead of every failure or none.
#[derive(Debug)]
struct Announcing<E> {
    exporter: E,
    is_failing: AtomicBool,
}

impl<E> Announcing<E> {
    const fn new(exporter: E) -> Self {
        Self {
            exporter,
            is_failing: AtomicBool::new(false),
        }
    }

    fn announce(&self, result: &OTelSdkResult) {
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was_failing => {
                tracing::warn!(%error, "traces do not reach the collector");
            }
            Ok(()) if was_failing => tracing::info!("traces reach the collector again"),
            _ => {}
        }
    }
}

impl<E: SpanExporter> SpanExporter for Announcing<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        self.announce(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicUsize};

    use futures::executor::block_on;
    use opentelemetry_sdk::error::OTelSdkError;
    use tracing_subscriber::{Layer, Registry, layer::SubscriberExt as _};

    use super::*;

    /// Fails while told so.
    #[derive(Debug, Default)]
    struct Moody(AtomicBool);

    impl SpanExporter for Moody {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            if self.0.load(Ordering::Relaxed) {
                return Err(OTelSdkError::Timeout(TIMEOUT));
            }
            Ok(())
        }
    }

    /// Counts events.
    struct Events(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Events {
        fn on_event(
            &self,
            _event: &tracing::Event<'_>,
            _context: tracing_subscriber::layer::Context<'_, S>,
        ) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_outage_of_the_collector_is_two_lines() {
        let lines = Arc::new(AtomicUsize::new(0));
        let subscriber = Registry::default().with(Events(Arc::clone(&lines)));
        let exporter = Announcing::new(Moody::default());
        tracing::subscriber::with_default(subscriber, || {
            for is_down in [false, false, true, true, true, false, false] {
                exporter.exporter.0.store(is_down, Ordering::Relaxed);
                assert_eq!(block_on(exporter.export(Vec::new())).is_err(), is_down);
            }
        });
        assert_eq!(lines.load(Ordering::Relaxed), 2);
    }
}
