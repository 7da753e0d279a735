//! `weir collect`: samples from stdin into telemetry.

use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use clap::Args;
use serde::Deserialize;

use super::{
    Failure, Persistence, Target,
    bulk::{Call, next_call},
    format::plain,
    input,
    publish::time,
};
use crate::{
    client::Client,
    proto::streaming::v1::{MetricData, MetricKind, MetricsCollectionResult},
};

const AFTER_HELP: &str = "\
Examples:
  echo '{\"name\":\"room_heat_celsius\",\"value\":21.5,\"labels\":{\"room\":\"kitchen\"}}' | weir collect
  echo '{\"name\":\"hits_total\",\"value\":1,\"kind\":\"COUNTER\"}' | weir collect
  sensors | weir collect --addr http://10.0.0.7:50051

A line is an object with name and value, and any of kind (GAUGE, the default: the present value; COUNTER: the increase),
labels, timestamp (RFC 3339) and idempotency_key. Prometheus finds accepted samples at the server's /metrics.

Every line gets an idempotency key: when the server is away, unacknowledged lines are sent again and counted once. What
became of the samples is printed at the end. When the server refused some, the others are stored all the same, and the
exit code is 4.";

/// Send the samples of stdin as telemetry.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CollectArgs {
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: CollectArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let mut lines = input::stdin()?;
    let mut sent = Sent::default();
    let mut failed = Ok(());
    while failed.is_ok()
        && let Some(call) = next_call(&mut lines).await
    {
        failed = sent.send(&client, &args.server.addr, call).await;
    }
    writeln!(
        io::stdout(),
        "{} received, {} accepted, {} rejected",
        sent.total.received,
        sent.total.accepted,
        sent.total.rejected
    )?;
    failed?;
    match sent.total.rejected {
        0 => Ok(()),
        _ => Err(Failure::refused(format!(
            "the first refusal: {}",
            plain(&sent.total.error_message)
        ))),
    }
}

/// What became of everything sent.
#[derive(Default)]
struct Sent {
    total: MetricsCollectionResult,
}

impl Sent {
    /// Sends a call's lines; those before a bad one too.
    async fn send(&mut self, client: &Client, addr: &str, call: Call) -> Result<(), Failure> {
        let (mut samples, mut bad) = (Vec::with_capacity(call.lines.len()), call.failure);
        for (number, line) in (call.first..).zip(call.lines) {
            match sample(&line) {
                Ok(sample) => samples.push(sample),
                Err(problem) => {
                    bad = Some(Failure::failed(format!("line {number}: {problem}")));
                    break;
                }
            }
        }
        if !samples.is_empty() {
            let result = client.collect_all(samples).await;
            self.add(
                call.first,
                result.map_err(|status| Failure::status(addr, &status))?,
            );
        }
        bad.map_or(Ok(()), Err)
    }

    /// Adds the result of a call whose first sample was on line `first`.
    fn add(&mut self, first: u64, result: MetricsCollectionResult) {
        if self.total.error_message.is_empty() && !result.error_message.is_empty() {
            let message = result.error_message;
            self.total.error_message = format!("counted from 0 at line {first}, {message}");
        }
        self.total.received += result.received;
        self.total.accepted += result.accepted;
        self.total.rejected += result.rejected;
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine {
    name: String,
    value: f64,
    kind: Option<String>,
    #[serde(default)]
    labels: HashMap<String, String>,
    timestamp: Option<String>,
    #[serde(default)]
    idempotency_key: String,
}

/// The sample that a line stands for, or what is wrong with the line.
fn sample(line: &str) -> Result<MetricData, String> {
    let line: JsonLine = serde_json::from_str(line).map_err(|error| error.to_string())?;
    Ok(MetricData {
        name: line.name,
        value: line.value,
        timestamp: line.timestamp.map(time).transpose()?,
        labels: line.labels,
        kind: line.kind.map_or(Ok(MetricKind::Gauge), kind)?.into(),
        idempotency_key: line.idempotency_key,
    })
}

fn kind(name: String) -> Result<MetricKind, String> {
    MetricKind::from_str_name(&name)
        .ok_or_else(|| format!("kind `{name}` is none of GAUGE, COUNTER"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_sample() {
        let line = r#"{"name":"a","value":-1.5,"kind":"COUNTER","labels":{"b":"c"},"timestamp":"2023-11-14T22:13:20Z"}"#;
        let full = sample(line).unwrap();
        assert_eq!(
            (full.name.as_str(), full.value, full.kind()),
            ("a", -1.5, MetricKind::Counter)
        );
        assert_eq!(
            (&*full.labels["b"], full.timestamp.unwrap().seconds),
            ("c", 1_700_000_000)
        );
        assert_eq!(
            sample(r#"{"name":"a","value":1}"#).unwrap().kind(),
            MetricKind::Gauge
        );
    }

    #[test]
    fn what_is_wrong_with_a_line_is_told() {
        for (line, problem) in [
            ("{", "EOF"),
            (r#"{"name":"a"}"#, "value"),
            (r#"{"name":"a","value":1,"unit":"m"}"#, "unit"),
            (
                r#"{"name":"a","value":1,"kind":"SUM"}"#,
                "none of GAUGE, COUNTER",
            ),
            (
                r#"{"name":"a","value":1,"timestamp":"now"}"#,
                "timestamp `now`",
            ),
        ] {
            let told = sample(line).unwrap_err();
            assert!(told.contains(problem), "{told}");
        }
    }
}
