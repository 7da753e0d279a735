//! How a log line looks: text for people or one JSON object, both with the ids of the trace it belongs to.

use std::{fmt, fmt::Write as _};

use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _},
};
use serde::ser::{SerializeMap, Serializer as _};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// The trace that the current span belongs to.
fn trace() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        let found = span.span_context();
        found.is_valid().then(|| found.clone())
    })
}

/// `time LEVEL target: message field=value trace_id=… span_id=…`
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let normal = event.normalized_metadata();
        let metadata = normal.as_ref().unwrap_or_else(|| event.metadata());
        let (dim, reset) = if writer.has_ansi_escapes() {
            ("\x1b[2m", "\x1b[0m")
        } else {
            ("", "")
        };
        write!(writer, "{dim}")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "{reset} ")?;
        level(&mut writer, *metadata.level())?;
        write!(writer, " {dim}{}:{reset} ", metadata.target())?;
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|all| all.from_root())
        {
            write!(writer, "{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                write!(writer, "{{{fields}}}")?;
            }
            writer.write_str(": ")?;
        }
        context.format_fields(writer.by_ref(), event)?;
        if let Some(trace) = trace() {
            let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
            write!(writer, " {dim}trace_id={trace_id} span_id={span_id}{reset}")?;
        }
        writeln!(writer)
    }
}

fn level(writer: &mut Writer<'_>, level: Level) -> fmt::Result {
    if !writer.has_ansi_escapes() {
        return write!(writer, "{level:>5}");
    }
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    };
    write!(writer, "\x1b[{colour}m{level:>5}\x1b[0m")
}

/// `{"timestamp":…,"level":…,"target":…,"message":…,field:value,"trace_id":…,"span_id":…}`
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Vec::with_capacity(256);
        object(&mut line, context, event).map_err(|_| fmt::Error)?;
        let line = std::str::from_utf8(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

fn object<S, N>(
    line: &mut Vec<u8>,
    context: &FmtContext<'_, S, N>,
    event: &Event<'_>,
) -> Result<(), serde_json::Error>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    let mut json = serde_json::Serializer::new(line);
    let mut map = json.serialize_map(None)?;
    map.serialize_entry("timestamp", &now())?;
    let normal = event.normalized_metadata();
    let metadata = normal.as_ref().unwrap_or_else(|| event.metadata());
    map.serialize_entry("level", metadata.level().as_str())?;
    map.serialize_entry("target", metadata.target())?;
    let mut fields = Fields {
        map: &mut map,
        failed: Ok(()),
    };
    event.record(&mut fields);
    fields.failed?;
    let spans = spans(context);
    if !spans.is_empty() {
        map.serialize_entry("spans", &spans)?;
    }
    if let Some(trace) = trace() {
        map.serialize_entry("trace_id", &trace.trace_id().to_string())?;
        map.serialize_entry("span_id", &trace.span_id().to_string())?;
    }
    map.end()
}

fn now() -> String {
    let mut text = String::with_capacity(27);
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// The enclosing spans that lines know, outermost first.
fn spans<S, N>(context: &FmtContext<'_, S, N>) -> Vec<serde_json::Value>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    let scope = context.event_scope().into_iter();
    scope
        .flat_map(|all| all.from_root())
        .map(|span| {
            let fields = span
                .extensions()
                .get::<FormattedFields<N>>()
                .and_then(|fields| serde_json::from_str(fields).ok())
                .unwrap_or(serde_json::Value::Null);
            serde_json::json!({ "name": span.name(), "fields": fields })
        })
        .collect()
}

/// Writes an event's fields into a map that is being serialized.
struct Fields<'m, M: SerializeMap> {
    map: &'m mut M,
    failed: Result<(), M::Error>,
}

impl<M: SerializeMap> Fields<'_, M> {
    fn write(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        // Where a line of the `log` crate came from is in its target.
        if self.failed.is_ok() && !field.name().starts_with("log.") {
            self.failed = self.map.serialize_entry(field.name(), value);
        }
    }
}

impl<M: SerializeMap> Visit for Fields<'_, M> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.write(field, &text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.write(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, &value);
    }
}
