//! Dashboards, rules and their tests: a real Prometheus evaluates every expression on what a real Weir says under load.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tonic::transport::Channel;
use weir::proto::{
    chat::{MetricsRequest, chat_service_client::ChatServiceClient},
    streaming::v1::{
        DownloadFileRequest, FileChunk, FileMetadata, file_chunk::Data,
        streaming_service_client::StreamingServiceClient,
    },
};

use crate::{
    prometheus::Prometheus,
    support::{Settings, TestServer, end, eventually, follow, message, next, send},
    tools::tool,
};

/// The file or directory `path` of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a directory, by name.
fn files(dir: &str) -> BTreeMap<String, String> {
    let listed = std::fs::read_dir(project(dir)).unwrap();
    let found: BTreeMap<_, _> = listed
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    assert!(!found.is_empty(), "nothing in {dir}");
    found
}

fn dashboards() -> BTreeMap<String, Value> {
    files("grafana/dashboards")
        .into_iter()
        .map(|(name, text)| (name, serde_json::from_str(&text).unwrap()))
        .collect()
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

/// Every expression of a dashboard with where it stands: panels' and annotations'.
fn expressions(name: &str, dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            let at = format!("{name}: {}", panel["title"]);
            all.push((at, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    all
}

fn annotations(name: &str, dashboard: &Value) -> Vec<(String, String)> {
    let listed = dashboard["annotations"]["list"].as_array().unwrap();
    let annotation = |made: &Value| {
        (
            format!("{name}: {}", made["name"]),
            made["expr"].as_str().unwrap().to_owned(),
        )
    };
    listed.iter().map(annotation).collect()
}

/// What Grafana puts in for its variables.
fn substituted(expression: &str) -> String {
    let filled = expression
        .replace("$__rate_interval", "1m")
        .replace("$job", ".+")
        .replace("$instance", ".+");
    assert!(!filled.contains('$'), "an unknown variable: {expression}");
    filled
}

/// The names of metrics in an expression: words that hold an underscore and are followed by a selector, a range or an end.
fn metrics(expression: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut names = BTreeSet::new();
    let mut rest = expression;
    // Strings hold label values.
    let mut bare = String::new();
    while let Some((before, after)) = rest.split_once('"') {
        bare.push_str(before);
        bare.push_str("\"\"");
        rest = after.split_once('"').map_or("", |(_, after)| after);
    }
    bare.push_str(rest);
    for token in bare.split(|c| !word(c)) {
        let is_ours = ["weir_", "grpc_server_", "process_", "job:"]
            .iter()
            .any(|prefix| token.starts_with(prefix));
        if is_ours {
            names.insert(token.to_owned());
        }
    }
    names
}

fn output(command: &mut Command) -> (bool, String) {
    let done = command.output().unwrap();
    let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (done.status.success(), text.concat())
}

#[test]
fn generating_again_changes_nothing() {
    let mut script = Command::new(tool("python"));
    let (is_done, said) = output(script.arg(project("scripts/generate.py")).arg("--check"));
    assert!(is_done, "{said}");
}

#[test]
fn rules_are_valid_and_pass_their_tests() {
    let rules = files("prometheus/rules").into_keys();
    let paths: Vec<_> = rules
        .map(|name| project("prometheus/rules").join(name))
        .collect();
    let (is_valid, said) = output(
        Command::new(tool("promtool"))
            .args(["check", "rules"])
            .args(&paths),
    );
    assert!(is_valid, "{said}");
    let (is_valid, said) = output(
        Command::new(tool("promtool"))
            .args(["check", "config"])
            .arg(project("prometheus/prometheus.yml")),
    );
    assert!(is_valid, "{said}");
    let tests = files("prometheus/tests").into_keys();
    let paths: Vec<_> = tests
        .map(|name| project("prometheus/tests").join(name))
        .collect();
    let (is_passed, said) = output(
        Command::new(tool("promtool"))
            .args(["test", "rules"])
            .args(&paths),
    );
    assert!(is_passed, "{said}");
}

/// Lines `- alert: Name` of the rules or `alertname: Name` of their tests.
fn named(dir: &str, mark: &str) -> BTreeSet<String> {
    let names = files(dir).into_values().flat_map(|text| {
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix(mark))
            .map(|name| name.trim().to_owned());
        lines.collect::<Vec<_>>()
    });
    names.collect()
}

#[test]
fn every_alert_has_a_test_and_an_entry_in_the_runbook() {
    let alerts = named("prometheus/rules", "- alert: ");
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(alerts, named("prometheus/tests", "- alertname: "));
    let runbook = std::fs::read_to_string(project("docs/runbook.md")).unwrap();
    let entries: BTreeSet<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(str::to_owned)
        .collect();
    assert_eq!(alerts, entries);
    for (name, text) in files("prometheus/rules") {
        let mut alert = None;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("- alert: ") {
                assert_eq!(alert, None, "{name} comes before the last alert's runbook");
                alert = Some(name.to_lowercase());
            } else if let Some(url) = line.strip_prefix("runbook_url: ") {
                let entry = url.split_once("docs/runbook.md#").unwrap().1;
                assert_eq!(alert.take().as_deref(), Some(entry), "{name}");
            }
        }
        assert_eq!(alert, None, "{name}");
    }
}

#[test]
fn dashboards_keep_their_form() {
    let mut uids = BTreeSet::new();
    let variables = ["datasource", "job", "instance"];
    for (name, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert!(
            uid.starts_with("weir-") && uids.insert(uid.to_owned()),
            "{name}"
        );
        assert_eq!(dashboard["schemaVersion"], 41, "{name}");
        assert_eq!(dashboard["editable"], false, "{name}");
        assert_eq!(dashboard["id"], Value::Null, "{name}");
        let listed = dashboard["templating"]["list"].as_array().unwrap();
        let listed: Vec<_> = listed
            .iter()
            .map(|made| made["name"].as_str().unwrap())
            .collect();
        assert_eq!(listed, variables, "{name}");
        let mut places = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            let at = &panel["gridPos"];
            let side = |key: &str| at[key].as_u64().unwrap();
            assert!(side("x") + side("w") <= 24, "{name}: {title}");
            for (x, y) in (0..side("w")).flat_map(|x| (0..side("h")).map(move |y| (x, y))) {
                assert!(
                    places.insert((side("x") + x, side("y") + y)),
                    "{name}: {title} overlaps"
                );
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(
                panel["description"]
                    .as_str()
                    .is_some_and(|text| text.len() > 10),
                "{name}: {title} is not described"
            );
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{name}: {title} has no unit"
            );
            assert_eq!(
                panel["datasource"]["uid"], "${datasource}",
                "{name}: {title}"
            );
        }
        for (at, expression) in expressions(&name, &dashboard) {
            assert!(
                expression.contains("job=~\"$job\""),
                "{at} takes no job: {expression}"
            );
            assert!(
                !expression.contains("rate(") || expression.contains("[$__rate_interval]"),
                "{at} has a range of its own: {expression}"
            );
        }
    }
}

/// Records of a room that is read again and again.
const BULK: usize = 200;

/// One file up and down.
async fn move_file(files: &mut StreamingServiceClient<Channel>) {
    let described = Data::Metadata(FileMetadata {
        filename: "a.bin".into(),
        total_size: 4,
        ..FileMetadata::default()
    });
    let content = Data::Chunk("file".into());
    let parts = [(described, 0), (content, 4)].map(|(data, size)| FileChunk {
        data: Some(data),
        size,
        ..FileChunk::default()
    });
    let stored = files.upload_file(tokio_stream::iter(parts)).await.unwrap();
    let wanted = DownloadFileRequest {
        file_id: stored.into_inner().file_id,
        ..DownloadFileRequest::default()
    };
    let mut content = files.download_file(wanted).await.unwrap().into_inner();
    end(&mut content).await.unwrap();
}

/// Something of everything that panels show, again and again.
async fn load(server: &TestServer) {
    let channel = server.channel().await;
    let mut chat = ChatServiceClient::new(channel.clone());
    let mut files = StreamingServiceClient::new(channel.clone());
    let mut reader = chat
        .subscribe_messages(follow("load", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut reader).await;
    // Only one of some batches is measured, so whoever reads it all gets many.
    let content = "x".repeat(16 << 10);
    let bulk = (0..BULK).map(move |_| message("bulk", "ann", &content));
    chat.upload_messages(tokio_stream::iter(bulk))
        .await
        .unwrap();
    for round in 0_u64.. {
        let mut request = send("load", "ann", "hi");
        request.idempotency_key = format!("round-{}", round / 2);
        chat.send_message(request).await.unwrap();
        // Stored once in two rounds.
        if round % 2 == 0 {
            next(&mut reader).await;
        }
        chat.send_message(send("", "ann", "hi")).await.unwrap_err();
        let mut past = chat
            .subscribe_messages(follow("bulk", Some(0)))
            .await
            .unwrap()
            .into_inner();
        for _ in 0..BULK {
            next(&mut past).await;
        }
        drop(past);
        move_file(&mut files).await;
        let mut said = chat
            .chat(tokio_stream::iter([message("chat", "ann", "hi")]))
            .await
            .unwrap()
            .into_inner();
        end(&mut said).await.unwrap();
        let upload = tokio_stream::iter((0..10).map(|_| message("upload", "ann", "hi")));
        chat.upload_messages(upload).await.unwrap();
        drop(
            chat.stream_metrics(MetricsRequest::default())
                .await
                .unwrap(),
        );
    }
}

/// The rule files, evaluated often.
fn hasty_rules(into: &Path) -> usize {
    let mut groups = 0;
    for (name, text) in files("prometheus/rules") {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("    interval: "));
        let text: Vec<_> = lines.collect();
        groups += text
            .iter()
            .filter(|line| line.starts_with("  - name: "))
            .count();
        std::fs::write(into.join(name), text.join("\n")).unwrap();
    }
    groups
}

#[tokio::test]
async fn every_expression_is_evaluated_and_every_panel_shows_something() {
    let settings = Settings::default()
        .set("log.retention_interval", "200ms")
        .set("log.retention.canary.age", "1s")
        .set("canary.interval", "50ms");
    let server = TestServer::with(settings).await;
    let rules = tempfile::tempdir().unwrap();
    let groups = hasty_rules(rules.path());
    let prometheus = Prometheus::with_rules(server.admin(), Some(rules.path())).await;
    let checks = async {
        for (name, dashboard) in dashboards() {
            for (at, expression) in expressions(&name, &dashboard) {
                let expression = substituted(&expression);
                eventually(&format!("{at}: {expression}"), || async {
                    let values = prometheus.values(&expression).await.unwrap();
                    values.iter().any(|value| value.is_finite()).then_some(())
                })
                .await;
            }
            for (at, expression) in annotations(&name, &dashboard) {
                let outcome = prometheus.values(&substituted(&expression)).await;
                assert!(outcome.is_ok(), "{at}: {outcome:?}");
            }
        }
        let evaluated = prometheus.rules().await;
        assert_eq!(evaluated.len(), groups);
        for rule in evaluated
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap())
        {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    };
    tokio::select! {
        () = checks => {}
        () = load(&server) => {}
    }
}

#[tokio::test]
async fn every_metric_named_is_on_the_metrics_page() {
    let server = TestServer::start().await;
    let page = server.admin_get("/metrics").await;
    let mut known: BTreeSet<String> = BTreeSet::new();
    for line in page.lines() {
        if let Some(header) = line.strip_prefix("# TYPE ") {
            let (name, kind) = header.split_once(' ').unwrap();
            known.insert(name.to_owned());
            if kind == "histogram" {
                known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
            }
        }
    }
    known.extend(named("prometheus/rules", "- record: "));
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for (name, dashboard) in dashboards() {
        let all = expressions(&name, &dashboard)
            .into_iter()
            .chain(annotations(&name, &dashboard));
        for (at, expression) in all {
            used.extend(
                metrics(&expression)
                    .into_iter()
                    .map(|found| (found, at.clone())),
            );
        }
    }
    for (name, text) in files("prometheus/rules") {
        let lines = text.lines().filter(|line| {
            let line = line.trim_start();
            ![
                "summary:",
                "description:",
                "#",
                "- record:",
                "- alert:",
                "runbook_url:",
            ]
            .iter()
            .any(|start| line.starts_with(start))
        });
        for line in lines {
            // Labels that a rule sets or groups by are no metrics.
            let found = metrics(line).into_iter().filter(|found| {
                !["grpc_type", "grpc_service", "grpc_method", "grpc_code"].contains(&found.as_str())
            });
            used.extend(found.map(|found| (found, name.clone())));
        }
    }
    assert!(used.len() > 40, "{used:?}");
    for (name, at) in used {
        assert!(
            known.contains(&name),
            "{at} names {name}, which is not there"
        );
    }
}
