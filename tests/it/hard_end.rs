//! A drain over a log that hangs: it ends all the same, and says what did not.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::oneshot};
use tracing_subscriber::fmt::MakeWriter;
use weir::{
    app::{App, Error, Shutdown},
    config::Config,
    log::{
        Engine, Limit, Sequence,
        embedded::{Embedded, Faults},
    },
    telemetry::{self, Metrics},
};

use crate::{
    log_support::{record, room},
    support::{eventually, server::http_get, soon},
};

/// Log lines as they are written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn with(&self, part: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(part));
        lines.map(str::to_owned).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// An instance in this process, whose disk the test holds.
struct Held {
    config: Config,
    _dir: TempDir,
    faults: Faults,
    admin: SocketAddr,
    shutdown: Shutdown,
    lines: Lines,
    /// Told when its runtime is gone, as at the end of a process.
    ended: oneshot::Receiver<Result<(), Error>>,
}

impl Held {
    /// Starts it, stores one record, and leaves a second in a flush that does not end.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::default();
        config.server.grpc = vec![free];
        config.server.http = free;
        config.server.admin = free;
        config.log.dir = dir.path().join("data");
        config.drain.timeout = Duration::from_secs(1);
        let faults = Faults::default();
        let engine = Embedded::open_with(&config.log, Metrics::new(), faults.clone());
        let engine = Arc::new(engine.unwrap());
        let shutdown = Shutdown::default();
        let lines = Lines::default();
        let (bound, admin) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let instance = Instance {
            config: config.clone(),
            engine: engine.clone(),
            shutdown: shutdown.clone(),
            lines: lines.clone(),
        };
        thread::spawn(move || {
            // The test may have failed meanwhile.
            let _ = end.send(instance.run(bound));
        });
        let admin = soon("its ports", admin).await.unwrap();
        eventually("readiness", || async {
            let answer = http_get(admin, "/readyz").await;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
        engine.append(record(&room("a"), "kept")).await.unwrap();
        faults.hold();
        let stuck = engine.enqueue(vec![record(&room("a"), "stuck")]).await;
        drop(stuck.unwrap());
        let waiting = faults.clone();
        let held = tokio::task::spawn_blocking(move || waiting.wait_until_held());
        soon("a flush", held).await.unwrap();
        // From here on the instance has the last handle, whose end would wait for the flush.
        drop(engine);
        Self {
            config,
            _dir: dir,
            faults,
            admin,
            shutdown,
            lines,
            ended,
        }
    }

    /// Lets the disk go on; what was acknowledged is there.
    async fn recover(self) {
        self.faults.release();
        let engine = eventually("the directory to be free", || async {
            Embedded::open(&self.config.log, Metrics::new()).ok()
        })
        .await;
        let limit = Limit {
            records: 1,
            bytes: 100,
        };
        let page = engine.read(&room("a"), Sequence::FIRST, limit).await;
        assert_eq!(&*page.unwrap().records[0].payload, b"kept");
    }
}

/// What `weir serve` runs.
struct Instance {
    config: Config,
    engine: Arc<Embedded>,
    shutdown: Shutdown,
    lines: Lines,
}

impl Instance {
    /// Runs to its end on a runtime that is left as the binary leaves its own.
    fn run(self, bound: oneshot::Sender<SocketAddr>) -> Result<(), Error> {
        let settings = self.config.telemetry.clone();
        let (subscriber, guard) =
            telemetry::subscriber(&settings, "test", self.lines, false).unwrap();
        let runtime = Runtime::new().unwrap();
        let outcome = tracing::subscriber::with_default(subscriber, || {
            runtime.block_on(async {
                let app = App::bind(self.config, guard.traces(), guard.lines())?.over(self.engine);
                let _ = bound.send(app.addresses().unwrap().admin);
                app.run(self.shutdown).await
            })
        });
        runtime.shutdown_background();
        outcome
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_though_the_log_does_not_close() {
    let mut held = Held::start().await;
    held.shutdown.drain.cancel();
    let told = Instant::now();
    let outcome = soon("the end", &mut held.ended).await.unwrap();
    assert!(outcome.is_ok(), "it ends like every drain");
    let took = told.elapsed();
    assert!(took < Duration::from_secs(30), "of a second: {took:?}");
    assert!(held.shutdown.left().unwrap() < Duration::from_secs(1));
    assert_eq!(http_get(held.admin, "/readyz").await, "", "it is gone");
    let [line] = &held.lines.with("what was acknowledged is durable")[..] else {
        panic!("not said once");
    };
    assert!(line.contains("unfinished=\"the log\""), "{line}");
    held.recover().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_does_not_wait_for_the_log_either() {
    let mut held = Held::start().await;
    held.shutdown.drain.cancel();
    held.shutdown.now.cancel();
    soon("the end", &mut held.ended).await.unwrap().unwrap();
    held.recover().await;
}
