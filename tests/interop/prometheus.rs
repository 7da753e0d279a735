//! A real Prometheus scrapes a real Weir.

use std::{io::Write as _, net::SocketAddr, path::Path, process::Stdio};

use percent_encoding::NON_ALPHANUMERIC;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use weir::proto::streaming::v1::{
    MetricData, MetricKind, streaming_service_client::StreamingServiceClient,
};

use crate::{
    support::{TestServer, eventually, follow, next, send, server::http_get, soon},
    tools::tool,
};

pub(crate) struct Prometheus {
    _process: Child,
    _dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts one that scrapes `target` four times a second.
    async fn scraping(target: SocketAddr) -> Self {
        Self::with_rules(target, None).await
    }

    /// The same, evaluating the rules in this directory as often.
    pub(crate) async fn with_rules(target: SocketAddr, rules: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rules = rules.map_or_else(String::new, |rules| {
            format!("rule_files: ['{}/*.yml']\n", rules.display())
        });
        let config = format!(
            "global:\n  scrape_interval: 250ms\n  scrape_timeout: 250ms\n  evaluation_interval: 250ms\n{rules}\
             scrape_configs:\n  - job_name: weir\n    static_configs:\n      - targets: ['{target}']\n"
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let mut process = Command::new(tool("prometheus"))
            .args([
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--web.listen-address=127.0.0.1:0",
            ])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = soon("Prometheus's address", async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(address) = listens_on(&line) {
                    return address;
                }
            }
            panic!("Prometheus ended")
        })
        .await;
        // It stops when nobody reads what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        eventually("Prometheus to be ready", || async {
            let response = http_get(address, "/-/ready").await;
            response.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
        Self {
            _process: process,
            _dir: dir,
            address,
        }
    }

    /// The value of an expression that gives one series; `None` while there is none.
    async fn query(&self, expression: &str) -> Option<f64> {
        let response = http_get(self.address, &format!("/api/v1/query?query={expression}")).await;
        let answer: serde_json::Value =
            serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()?;
        answer["data"]["result"][0]["value"][1]
            .as_str()?
            .parse()
            .ok()
    }

    /// Every value that any expression gives now.
    ///
    /// # Errors
    /// What Prometheus says against the expression.
    pub(crate) async fn values(&self, expression: &str) -> Result<Vec<f64>, String> {
        let query = percent_encoding::utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let answer = self.get(&format!("/api/v1/query?query={query}")).await;
        let result = answer["data"]["result"]
            .as_array()
            .ok_or_else(|| answer.to_string())?;
        let value = |series: &serde_json::Value| series["value"][1].as_str()?.parse().ok();
        Ok(result.iter().filter_map(value).collect())
    }

    /// The groups of rules, once each was evaluated.
    pub(crate) async fn rules(&self) -> Vec<serde_json::Value> {
        eventually("evaluated rules", || async {
            let answer = self.get("/api/v1/rules").await;
            let groups = answer["data"]["groups"].as_array()?.clone();
            let mut rules = groups.iter().flat_map(|group| group["rules"].as_array());
            let is_over = |rule: &serde_json::Value| rule["health"] != "unknown";
            rules
                .all(|rules| rules.iter().all(is_over))
                .then_some(groups)
        })
        .await
    }

    async fn get(&self, path: &str) -> serde_json::Value {
        let response = http_get(self.address, path).await;
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
        let body = match head.to_lowercase().contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        serde_json::from_str(&body).unwrap_or_default()
    }

    async fn eventually(&self, expression: &str, is_fine: impl Fn(f64) -> bool) {
        let is_fine = &is_fine;
        eventually(expression, || async move {
            self.query(expression).await.filter(|value| is_fine(*value))
        })
        .await;
    }
}

/// The body that was sent in chunks.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

fn listens_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("Listening on")?;
    let (_, address) = rest.split_once("address=")?;
    address.split([' ', '"']).next()?.parse().ok()
}

/// A server on which something has happened.
async fn busy() -> TestServer {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = chat
        .subscribe_messages(follow("general", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    for _ in 0..3 {
        chat.send_message(send("general", "ann", "hi"))
            .await
            .unwrap();
        next(&mut stream).await;
    }
    collect(&server).await;
    server
}

/// Telemetry of a client, with all that is hard to quote.
async fn collect(server: &TestServer) {
    let labels = [("room", "kitchen"), ("site", "ü \"\\\n{}")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let sample = |name: &str, value, kind: MetricKind| MetricData {
        name: name.into(),
        value,
        labels: labels.clone().into(),
        kind: kind.into(),
        ..MetricData::default()
    };
    let unlabelled = MetricData {
        labels: std::collections::HashMap::new(),
        ..sample("room_heat_celsius", f64::INFINITY, MetricKind::Gauge)
    };
    let samples = [
        unlabelled,
        sample("room_heat_celsius", 21.5, MetricKind::Gauge),
        sample("door_openings_total", 4.0, MetricKind::Counter),
        sample("door_openings_total", 3.0, MetricKind::Counter),
    ];
    let mut v1 = StreamingServiceClient::new(server.channel().await);
    let result = v1
        .collect_metrics(tokio_stream::iter(samples))
        .await
        .unwrap();
    assert_eq!(result.into_inner().accepted, 4);
}

#[tokio::test]
async fn prometheus_scrapes_and_answers_queries() {
    let server = busy().await;
    let prometheus = Prometheus::scraping(server.admin()).await;
    prometheus.eventually("up", |value| value == 1.0).await;
    prometheus
        .eventually(
            "grpc_server_started_total{grpc_method=\"SendMessage\"}",
            |value| value == 3.0,
        )
        .await;
    prometheus
        .eventually("weir_build_info", |value| value == 1.0)
        .await;
    prometheus
        .eventually("door_openings_total{room=\"kitchen\"}", |value| {
            value == 7.0
        })
        .await;
    prometheus
        .eventually("sum(rate(weir_append_seconds_count[10s]))", |value| {
            value > 0.0
        })
        .await;
    let target = http_get(prometheus.address, "/api/v1/targets").await;
    assert!(
        target.contains("\"lastError\":\"\"") && target.contains("\"health\":\"up\""),
        "{target}"
    );
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_about_the_metrics() {
    let server = busy().await;
    let response = server.admin_get("/metrics").await;
    let (_, text) = response.split_once("\r\n\r\n").unwrap();
    assert!(
        text.contains("weir_build_info{")
            && text.contains("room_heat_celsius ")
            && text.contains("process_cpu_seconds_total "),
        "{text}"
    );
    let mut promtool = std::process::Command::new(tool("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let done = promtool.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(done.status.success() && said.trim().is_empty(), "{said}");
}
