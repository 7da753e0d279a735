//! The admin listener over a loopback port.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use weir::{
    core::{Readiness, readiness::Condition},
    telemetry::{self, Metrics},
    web::admin,
};

struct Reply {
    status: u16,
    kind: String,
    body: String,
}

async fn serve(readiness: &Readiness) -> (SocketAddr, Metrics) {
    let metrics = Metrics::new();
    let runtime = tokio::runtime::Handle::current();
    telemetry::register_process(metrics.registry(), &runtime).unwrap();
    let router = admin::router(metrics.registry().clone(), readiness.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    (address, metrics)
}

async fn get(address: SocketAddr, path: &str) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    Reply {
        status: head[9..12].parse().unwrap(),
        kind: kind.unwrap_or_default().into(),
        body: body.into(),
    }
}

/// Value by series (name and labels).
fn samples(text: &str) -> HashMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
    pairs
        .map(|(series, value)| (series, value.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn readiness_says_why_and_liveness_does_not_care() {
    let readiness = Readiness::new();
    let (address, _metrics) = serve(&readiness).await;
    let reply = get(address, "/readyz").await;
    assert_eq!((reply.status, &*reply.body), (503, "recovering\n"));

    readiness.clear(Condition::Recovering);
    let reply = get(address, "/readyz").await;
    assert_eq!((reply.status, &*reply.body), (200, "ok\n"));

    readiness.fail(Condition::Draining, "");
    readiness.fail(Condition::Log, "disk is full");
    let reply = get(address, "/readyz").await;
    assert_eq!(
        (reply.status, &*reply.body),
        (503, "log: disk is full\ndraining\n")
    );
    assert_eq!(reply.kind, "text/plain; charset=utf-8");
    let reply = get(address, "/livez").await;
    assert_eq!((reply.status, &*reply.body), (200, "ok\n"));
}

#[tokio::test]
async fn the_root_lists_the_paths_and_nothing_else_is_there() {
    let (address, _metrics) = serve(&Readiness::new()).await;
    let reply = get(address, "/").await;
    assert_eq!(
        (reply.status, &*reply.body),
        (200, "/metrics\n/livez\n/readyz\n")
    );
    assert_eq!(get(address, "/debug").await.status, 404);
}

#[tokio::test]
async fn metrics_hold_the_process_and_its_runtime() {
    let (address, metrics) = serve(&Readiness::new()).await;
    metrics.appended.with_label_values(&["room"]).inc_by(3);
    let reply = get(address, "/metrics").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(
        reply
            .body
            .contains("# TYPE process_cpu_seconds_total counter\n")
    );
    let samples = samples(&reply.body);
    assert_eq!(samples["weir_appended_records_total{space=\"room\"}"], 3.0);
    assert_eq!(samples["weir_runtime_workers"], 1.0);
    assert!(samples["weir_runtime_alive_tasks"] >= 1.0);
    assert!(samples["weir_runtime_busy_seconds_total"] >= 0.0);
    assert!(samples.contains_key("weir_runtime_global_queue_depth"));
    if cfg!(target_os = "linux") {
        assert!(samples["process_resident_memory_bytes"] > 1_048_576.0);
        assert!(samples["process_open_fds"] >= 3.0);
        assert!(samples["process_max_fds"] >= samples["process_open_fds"]);
        assert!(samples["process_threads"] >= 1.0);
        assert!(samples["process_cpu_seconds_total"] >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let age = now.unwrap().as_secs_f64() - samples["process_start_time_seconds"];
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
