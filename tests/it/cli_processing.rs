//! `weir collect` and `weir process`, run as a shell runs them.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::support::{OWN_ADDRESS, Settings, TestServer, server::binary, soon};

/// Runs a command with `input` as its stdin, and waits for its end.
async fn run(server: &TestServer, args: &[&str], input: &str) -> Ended {
    let mut child = Command::new(binary())
        .args(args)
        .args(["--addr", &server.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    let writing = tokio::spawn(async move {
        // A command that refuses its input ends before it read all.
        let _ = stdin.write_all(input.as_bytes()).await;
    });
    let ended = soon("the command's end", child.wait_with_output()).await;
    writing.abort();
    let Output {
        status,
        stdout,
        stderr,
    } = ended.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended {
        code: status.code(),
        out: text(stdout),
        err: text(stderr),
    }
}

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn lines(values: impl IntoIterator<Item = Value>) -> String {
    values
        .into_iter()
        .map(|value| format!("{value}\n"))
        .collect()
}

#[tokio::test]
async fn collect_sends_lines_and_says_what_became_of_them() {
    let server = TestServer::start().await;
    let samples = (0..2500).map(|number| {
        let part = (number % 2).to_string();
        json!({"name": "lines_total", "value": 1, "kind": "COUNTER", "labels": {"part": part}})
    });
    let ended = run(&server, &["collect"], &lines(samples)).await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "2500 received, 2500 accepted, 0 rejected\n"),
        "{ended:?}"
    );
    assert_eq!(server.metric("lines_total{part=\"1\"}").await, 1250.0);
}

#[tokio::test]
async fn collect_ends_with_four_when_a_sample_is_refused_and_the_others_count() {
    let server = TestServer::start().await;
    let samples = ["heat", "weir_heat", "cold"].map(|name| json!({"name": name, "value": 5}));
    let ended = run(&server, &["collect"], &lines(samples)).await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(4), "3 received, 2 accepted, 1 rejected\n")
    );
    assert!(
        ended
            .err
            .contains("the first refusal: counted from 0 at line 1, sample 1: name is taken"),
        "{ended:?}"
    );
    assert_eq!(server.metric("cold").await, 5.0);

    let ended = run(
        &server,
        &["collect"],
        "{\"name\":\"warm\",\"value\":1}\n{\"name\":\"warm\"}\n",
    )
    .await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(1), "1 received, 1 accepted, 0 rejected\n")
    );
    assert!(
        ended.err.contains("line 2: missing field `value`"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn process_describes_a_batch() {
    let server = TestServer::start().await;
    let mut records: Vec<_> = (1..=1000)
        .map(|value| json!({"series": "s", "value": value, "id": format!("r{value}")}))
        .collect();
    let ended = run(&server, &["process"], &lines(records.clone())).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let rows: Vec<Vec<_>> = ended
        .out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 2, "{ended:?}");
    assert_eq!(
        rows[0][..7],
        ["series", "count", "sum", "min", "max", "mean", "stddev"]
    );
    assert_eq!(
        rows[1][..7],
        ["s", "1000", "500500", "1", "1000", "500.5", "288.675"]
    );

    records.push(json!({"series": " ", "value": 1, "id": "bad"}));
    let ended = run(&server, &["process", "--json"], &lines(records)).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(
        ended.err.contains("1 of 1001 records were refused"),
        "{ended:?}"
    );
    let result: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(result["accepted"], 1000);
    assert_eq!(
        result["errors"],
        json!([{"index": 1000, "id": "bad", "reason": "series is required"}])
    );
    assert_eq!(result["series"][0]["sum"], 500_500.0);
}

#[tokio::test]
async fn process_names_a_bad_line_and_accepts_those_before_it() {
    let server = TestServer::start().await;
    let ended = run(
        &server,
        &["process"],
        "{\"series\":\"s\",\"value\":1}\n{}\n",
    )
    .await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .err
            .contains("1 accepted: line 2: missing field `series`"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn process_live_answers_every_line_in_order() {
    let server = TestServer::start().await;
    let inputs = (0..5000).map(|number| match number % 10 {
        9 => json!({"id": format!("{number}"), "series": "", "value": 1}),
        _ => json!({"id": format!("{number}"), "series": "s", "value": 2, "timestamp": "2023-11-14T22:13:20Z"}),
    });
    let ended = run(&server, &["process", "--live"], &lines(inputs)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let results: Vec<Value> = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 5000);
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result["id"], number.to_string());
        match number % 10 {
            9 => assert_eq!(result["error"], "INVALID_SERIES"),
            _ => assert_eq!(
                (&result["mean"], &result["window_start"]),
                (&json!(2.0), &json!("2023-11-14T22:13:00Z"))
            ),
        }
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_three() {
    let mut server = TestServer::with(Settings::default().set("server.grpc", OWN_ADDRESS)).await;
    server.kill().await;
    for args in [&["collect"][..], &["process"], &["process", "--live"]] {
        let ended = run(&server, args, "").await;
        assert_eq!(ended.code, Some(3), "{ended:?}");
    }
}
