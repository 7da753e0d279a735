//! `weir data`: points of data topics, followed and published.

use clap::Args;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

use super::{
    Failure, Persistence, Target, bulk,
    follow::FollowArgs,
    format::{plain, to_seconds},
};
use crate::proto::{
    streaming::{DataPoint, StreamRequest, StreamResponse},
    weir::v1::PublishDataRequest,
};

const AFTER_HELP: &str = "\
Examples:
  weir data metrics                          what the instance measures of itself, from now on
  weir data logs events --after 0            its log lines and events, everything retained, then live
  weir data readings --newest 20             the newest twenty, and no more
  weir data readings --json | jq .value
  seq 100 | weir data --publish readings     a value a line
  echo '{\"value\":21.5,\"metadata\":{\"room\":\"7\"}}' | weir data --publish readings

Columns: sequence, time (UTC), topic, value, metadata. A broken connection is repaired and continues after the last point.
The topics metrics, events and logs are the service's own. In logs the value is the severity: 9 INFO, 13 WARN, 17 ERROR.

A line to publish is a number, or an object with a value and any of id, timestamp (RFC 3339), metadata and
idempotency_key; the lines that --json prints are such objects. Every line gets a key: when the server is away,
unacknowledged lines are sent again and stored once. The number of points stored is printed at the end.";

/// Follow data topics, or publish to one.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DataArgs {
    /// The topics to follow.
    #[arg(value_name = "TOPIC", required_unless_present = "publish")]
    topics: Vec<String>,
    /// Points the server sends at once at most; a second after the last ones it sends what there is.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..=1000))]
    batch: i32,
    /// Print this many of the newest points and end.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1000), conflicts_with = "count")]
    newest: Option<i32>,
    /// Store the lines of stdin in this topic instead.
    #[arg(long, value_name = "TOPIC", conflicts_with_all = ["topics", "batch", "newest", "after", "count", "json"])]
    publish: Option<String>,
    #[command(flatten)]
    follow: FollowArgs,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: DataArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let addr = &args.server.addr;
    if let Some(topic) = &args.publish {
        let send = |points| {
            let client = client.clone();
            async move { client.publish_data(points).await }
        };
        return bulk::store(addr, |line| point(topic, &line), send).await;
    }
    let request = StreamRequest {
        subscription_id: "weir-data".into(),
        topics: args.topics,
        batch_size: args.newest.unwrap_or(args.batch),
        after_sequence: args.follow.after,
    };
    if args.newest.is_some() {
        let points = client.newest_data(request).await;
        let points = points.map_err(|status| Failure::status(addr, &status))?;
        return args.follow.print_all(&points, columns, json);
    }
    let batches = client.data(request);
    let columns = |batch: &StreamResponse| batch.data_points.iter().map(columns).collect();
    let json = |batch: &StreamResponse| batch.data_points.iter().map(json).collect();
    args.follow.print(batches, addr, columns, json).await
}

/// A line of JSON input; topic and sequence, as `--json` prints them, are accepted and mean nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct JsonLine {
    value: Option<Value>,
    id: String,
    timestamp: Option<String>,
    metadata: HashMap<String, String>,
    idempotency_key: String,
    #[serde(rename = "topic")]
    _topic: String,
    #[serde(rename = "sequence")]
    _sequence: u64,
}

/// A value in JSON, which has no number for those that are not finite.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(untagged)]
enum Value {
    Number(f64),
    Text(String),
}

impl Value {
    fn of(value: f64) -> Self {
        match value.is_finite() {
            true => Self::Number(value),
            false => Self::Text(value.to_string()),
        }
    }

    fn number(self) -> Result<f64, String> {
        match self {
            Self::Number(value) => Ok(value),
            Self::Text(text) => number(&text),
        }
    }
}

fn number(text: &str) -> Result<f64, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("`{text}` is neither a number nor an object"))
}

/// The point that a line stands for, or what is wrong with the line.
fn point(topic: &str, line: &str) -> Result<PublishDataRequest, String> {
    let line = match line.trim_start().starts_with('{') {
        true => serde_json::from_str(line).map_err(|error| error.to_string())?,
        false => JsonLine {
            value: Some(Value::Number(number(line)?)),
            ..JsonLine::default()
        },
    };
    let mut metadata = line.metadata;
    // The server says which topic a point is of.
    metadata.remove("topic");
    Ok(PublishDataRequest {
        topic: topic.to_owned(),
        id: line.id,
        value: line.value.ok_or("the value is missing")?.number()?,
        timestamp: line.timestamp.map_or(Ok(0), |text| nanos(&text))?,
        metadata,
        idempotency_key: line.idempotency_key,
    })
}

fn nanos(text: &str) -> Result<i64, String> {
    let time: Timestamp = text
        .parse()
        .map_err(|_| format!("timestamp `{text}` is not of the form 2026-01-31T12:00:00Z"))?;
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    i64::try_from(nanos).map_err(|_| format!("timestamp `{text}` is out of range"))
}

fn time(point: &DataPoint) -> Timestamp {
    Timestamp {
        seconds: point.timestamp.div_euclid(1_000_000_000),
        nanos: i32::try_from(point.timestamp.rem_euclid(1_000_000_000)).unwrap_or_default(),
    }
}

/// What its publisher says about a point, by name; its topic is shown on its own.
fn metadata(point: &DataPoint) -> BTreeMap<&str, &str> {
    let all = point.metadata.iter();
    let others = all.filter(|(name, _)| *name != "topic");
    others
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect()
}

fn topic(point: &DataPoint) -> &str {
    point.metadata.get("topic").map_or("", String::as_str)
}

fn columns(point: &DataPoint) -> String {
    let pairs: Vec<_> = metadata(point)
        .into_iter()
        .map(|(name, text)| format!("{}={}", plain(name), plain(text)))
        .collect();
    format!(
        "{}\t{}\t{}\t{}\t{}",
        point.sequence,
        to_seconds(Some(time(point))),
        plain(topic(point)),
        point.value,
        pairs.join(" ")
    )
}

/// A point as one line of JSON.
#[derive(Serialize)]
struct JsonPoint<'a> {
    sequence: u64,
    id: &'a str,
    topic: &'a str,
    value: Value,
    /// RFC 3339, UTC.
    timestamp: String,
    metadata: BTreeMap<&'a str, &'a str>,
}

fn json(point: &DataPoint) -> serde_json::Result<String> {
    serde_json::to_string(&JsonPoint {
        sequence: point.sequence,
        id: &point.id,
        topic: topic(point),
        value: Value::of(point.value),
        timestamp: time(point).to_string(),
        metadata: metadata(point),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: f64) -> DataPoint {
        DataPoint {
            id: "p".into(),
            value,
            timestamp: 1_500_000_000,
            metadata: [("topic", "t"), ("b", "2\n"), ("a", "1")]
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into(),
            sequence: 9,
        }
    }

    #[test]
    fn a_point_is_one_line() {
        let line = "9\t1970-01-01T00:00:01Z\tt\t0.5\ta=1 b=2\\n";
        assert_eq!(columns(&sample(0.5)), line);
    }

    #[test]
    fn what_json_prints_publish_takes() {
        for value in [0.5, -3.0, f64::INFINITY, f64::NAN] {
            let copy = point("copy", &json(&sample(value)).unwrap()).unwrap();
            assert_eq!(copy.value.to_bits(), value.to_bits());
            assert_eq!((copy.topic.as_str(), copy.id.as_str()), ("copy", "p"));
            assert_eq!(copy.timestamp, 1_500_000_000);
            assert_eq!(copy.metadata.len(), 2);
        }
    }

    #[test]
    fn a_line_is_a_number_or_an_object() {
        assert_eq!(point("t", " -1e3 ").unwrap().value, -1000.0);
        for (line, problem) in [
            ("x", "`x` is neither a number nor an object"),
            ("", "`` is neither"),
            ("{}", "the value is missing"),
            (r#"{"value":1,"unit":"m"}"#, "unknown field `unit`"),
            (r#"{"value":1,"timestamp":"now"}"#, "not of the form"),
        ] {
            let error = point("t", line).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
