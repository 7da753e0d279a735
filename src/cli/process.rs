//! `weir process`: numbers from stdin, described as a batch or one by one.

use std::{
    collections::HashMap,
    io::{self, BufWriter, Write},
};

use clap::Args;
use futures::FutureExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{Failure, Target, format::plain, input, notices, publish::time};
use crate::{
    client::Client,
    proto::streaming::v1::{
        BatchProcessingResult, DataInput, DataRecord, ProcessingResult, RecordError,
        SeriesStatistics, processing_result::Result as Outcome,
    },
};

/// Records on their way from stdin to the call; then stdin is not read on.
const WAITING: usize = 1024;

const AFTER_HELP: &str = "\
Examples:
  weir process < measurements.jsonl          a table of statistics by series
  weir process --json < measurements.jsonl   the same as one JSON object
  sensors | weir process --live              window and anomaly score of every value

A line is an object with series and value, and any of id, timestamp (RFC 3339), attributes and idempotency_key.

Without --live all lines are one batch: when stdin ends and every accepted record is durable, its statistics are printed,
and refused records are told on stderr; accepted ones are published to the data topic `data`. When some were refused the
exit code is 4. Records with idempotency keys can be sent again after a failure without being stored twice.

With --live every line is answered by a line of JSON, in order: its window's statistics, or `error`, which is no failure of
the command. Nothing is stored, and attributes and idempotency_key mean nothing.";

/// Describe the numbers of stdin: statistics of a batch, or windows and anomalies live.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ProcessArgs {
    /// Answer every line as it comes.
    #[arg(long, conflicts_with = "json")]
    live: bool,
    /// Print the batch's result as a JSON object, with all digits.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Target,
}

pub(super) async fn run(args: ProcessArgs) -> Result<(), Failure> {
    let client = args.server.connect().await?;
    match args.live {
        true => live(&client, &args).await,
        false => batch(&client, &args).await,
    }
}

async fn batch(client: &Client, args: &ProcessArgs) -> Result<(), Failure> {
    let (send, records) = mpsc::channel(WAITING);
    let call = client.process_batch(ReceiverStream::new(records).map(JsonLine::into_record));
    tokio::pin!(call);
    let failed = |status: &Status| Failure::status(&args.server.addr, status);
    let fed = tokio::select! {
        fed = feed(send) => fed,
        // A call ends before its records do only when it fails.
        ended = &mut call => match ended {
            Err(status) => return Err(failed(&status)),
            Ok(_) => Err(Failure::failed("the server ended the batch")),
        },
    };
    if let Err(bad) = fed {
        // Those before the bad line are a batch all the same.
        let accepted = call.await.map_err(|status| failed(&status))?.accepted;
        return Err(bad.context(&format!("{accepted} accepted")));
    }
    let result = call.await.map_err(|status| failed(&status))?;
    report(&result, args.json)
}

async fn live(client: &Client, args: &ProcessArgs) -> Result<(), Failure> {
    let (send, inputs) = mpsc::channel(WAITING);
    let opened = client.process_live(ReceiverStream::new(inputs).map(JsonLine::into_input));
    let failed = |status: Status| Failure::status(&args.server.addr, &status);
    let mut results = opened.await.map_err(failed)?;
    let mut output = BufWriter::new(io::stdout());
    let printing = async {
        while let Some(result) = next(&mut results, &mut output).await? {
            let result = result.map_err(failed)?;
            writeln!(output, "{}", json(&shown(&result))?)?;
        }
        Ok(output.flush()?)
    };
    let feeding = feed(send);
    tokio::pin!(printing, feeding);
    // The end of the results is the end: of all of them, or with an error before.
    tokio::select! {
        printed = &mut printing => printed,
        fed = &mut feeding => printing.await.and(fed),
    }
}

/// The next result; the output is flushed before it is waited for.
async fn next(
    results: &mut Streaming<ProcessingResult>,
    output: &mut impl Write,
) -> Result<Option<Result<ProcessingResult, Status>>, Failure> {
    if let Some(result) = results.next().now_or_never() {
        return Ok(result);
    }
    output.flush()?;
    Ok(results.next().await)
}

/// Passes on the lines of stdin up to its end or a bad one, as fast as they are taken.
async fn feed(send: mpsc::Sender<JsonLine>) -> Result<(), Failure> {
    let mut lines = input::stdin()?;
    let progress = progress();
    while let Some(batch) = lines.recv().await {
        let batch = batch?;
        progress.inc(batch.lines.len() as u64);
        for (number, line) in (batch.first..).zip(batch.lines) {
            let line = serde_json::from_str(&line)
                .map_err(|error| error.to_string())
                .and_then(JsonLine::timed);
            let line =
                line.map_err(|problem| Failure::failed(format!("line {number}: {problem}")))?;
            if send.send(line).await.is_err() {
                // The call is over and says why.
                return Ok(());
            }
        }
    }
    progress.finish_and_clear();
    Ok(())
}

/// How many lines were read, on a terminal.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} lines, {per_sec}");
    let bar = ProgressBar::new_spinner();
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine {
    series: String,
    value: f64,
    #[serde(default)]
    id: String,
    #[serde(default)]
    timestamp: Option<String>,
    #[serde(default)]
    attributes: HashMap<String, String>,
    #[serde(default)]
    idempotency_key: String,
    #[serde(skip)]
    time: Option<Timestamp>,
}

impl JsonLine {
    fn timed(mut self) -> Result<Self, String> {
        self.time = self.timestamp.take().map(time).transpose()?;
        Ok(self)
    }

    fn into_record(self) -> DataRecord {
        DataRecord {
            id: self.id,
            series: self.series,
            value: self.value,
            timestamp: self.time,
            attributes: self.attributes,
            idempotency_key: self.idempotency_key,
        }
    }

    fn into_input(self) -> DataInput {
        DataInput {
            id: self.id,
            series: self.series,
            value: self.value,
            timestamp: self.time,
            attributes: self.attributes,
        }
    }
}

/// Prints a batch's result; a failure when something was refused.
fn report(result: &BatchProcessingResult, is_json: bool) -> Result<(), Failure> {
    let mut output = BufWriter::new(io::stdout());
    match is_json {
        true => writeln!(output, "{}", json(&JsonResult::from(result))?)?,
        false => {
            output.write_all(table(&result.series).as_bytes())?;
            for error in &result.errors {
                let RecordError { index, id, reason } = error;
                notices::say(format!("record {index} {}: {}", plain(id), plain(reason)));
            }
        }
    }
    output.flush()?;
    match result.rejected {
        0 => Ok(()),
        rejected => Err(Failure::refused(format!(
            "{rejected} of {} records were refused",
            result.received
        ))),
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))
}

const COLUMNS: [&str; 10] = [
    "series", "count", "sum", "min", "max", "mean", "stddev", "p50", "p95", "p99",
];

/// The statistics in columns, numbers to the right.
fn table(all: &[SeriesStatistics]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(all.iter().map(|one| {
        let count = one.count.to_string();
        let [sum, min, max, mean, stddev, p50, p95, p99] = [
            one.sum, one.min, one.max, one.mean, one.stddev, one.p50, one.p95, one.p99,
        ]
        .map(number);
        let series = plain(&one.series).into_owned();
        [series, count, sum, min, max, mean, stddev, p50, p95, p99]
    }));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        text += &format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            text += &format!("  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}

/// Six digits that mean something.
fn number(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    if !(-4.0..15.0).contains(&magnitude) {
        return format!("{value:.5e}");
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 9"
    )]
    let decimals = (5.0 - magnitude).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    match decimals {
        0 => text,
        _ => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[derive(Serialize)]
struct JsonResult<'a> {
    received: i64,
    accepted: i64,
    rejected: i64,
    errors: Vec<JsonError<'a>>,
    series: Vec<JsonSeries<'a>>,
}

#[derive(Serialize)]
struct JsonError<'a> {
    index: i64,
    id: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct JsonSeries<'a> {
    series: &'a str,
    count: i64,
    sum: f64,
    min: f64,
    max: f64,
    mean: f64,
    stddev: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

impl<'a> From<&'a BatchProcessingResult> for JsonResult<'a> {
    fn from(result: &'a BatchProcessingResult) -> Self {
        let errors = result.errors.iter().map(|error| JsonError {
            index: error.index,
            id: &error.id,
            reason: &error.reason,
        });
        let series = result.series.iter().map(|one| JsonSeries {
            series: &one.series,
            count: one.count,
            sum: one.sum,
            min: one.min,
            max: one.max,
            mean: one.mean,
            stddev: one.stddev,
            p50: one.p50,
            p95: one.p95,
            p99: one.p99,
        });
        Self {
            received: result.received,
            accepted: result.accepted,
            rejected: result.rejected,
            errors: errors.collect(),
            series: series.collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonLive<'a> {
    Processed {
        id: &'a str,
        series: &'a str,
        value: f64,
        window_start: Option<String>,
        window_end: Option<String>,
        count: i64,
        mean: f64,
        min: f64,
        max: f64,
        stddev: f64,
        anomaly_score: f64,
        is_anomaly: bool,
    },
    Error {
        id: &'a str,
        error: &'a str,
        message: &'a str,
    },
}

fn shown(result: &ProcessingResult) -> JsonLive<'_> {
    let id = &result.id;
    match &result.result {
        Some(Outcome::Processed(data)) => JsonLive::Processed {
            id,
            series: &data.series,
            value: data.value,
            window_start: data.window_start.map(|time| time.to_string()),
            window_end: data.window_end.map(|time| time.to_string()),
            count: data.count,
            mean: data.mean,
            min: data.min,
            max: data.max,
            stddev: data.stddev,
            anomaly_score: data.anomaly_score,
            is_anomaly: data.is_anomaly,
        },
        Some(Outcome::Error(error)) => JsonLive::Error {
            id,
            error: &error.code,
            message: &error.message,
        },
        None => JsonLive::Error {
            id,
            error: "",
            message: "the server sent an empty result",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_six_digits() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (-20.5, "-20.5"),
            (1.0 / 3.0, "0.333333"),
            (1234.5678, "1234.57"),
            (123_456_789.0, "123456789"),
            (1e15, "1.00000e15"),
            (1e-5, "1.00000e-5"),
            (f64::INFINITY, "inf"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn the_table_is_aligned_and_cannot_control_the_terminal() {
        let one = |series: &str, count| SeriesStatistics {
            series: series.into(),
            count,
            ..SeriesStatistics::default()
        };
        let text = table(&[one("é\u{1b}", 5), one("a", 12345)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "series   count  sum  min  max  mean  stddev  p50  p95  p99"
        );
        assert_eq!(
            lines[1],
            "é\\u{1b}      5    0    0    0     0       0    0    0    0"
        );
        assert_eq!(
            lines[2],
            "a        12345    0    0    0     0       0    0    0    0"
        );
    }

    #[test]
    fn a_line_needs_series_and_value_and_nothing_unknown() {
        let parse = |line: &str| {
            serde_json::from_str::<JsonLine>(line)
                .map_err(|error| error.to_string())
                .and_then(JsonLine::timed)
        };
        let line =
            parse(r#"{"series":"s","value":1.5,"timestamp":"2023-11-14T22:13:20Z"}"#).unwrap();
        let record = line.into_record();
        assert_eq!((record.series.as_str(), record.value), ("s", 1.5));
        assert_eq!(record.timestamp.unwrap().seconds, 1_700_000_000);
        for bad in [
            r#"{"series":"s"}"#,
            r#"{"value":1}"#,
            r#"{"series":"s","value":1,"x":2}"#,
            r#"{"series":"s","value":1,"timestamp":"now"}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
