//! Which engines the tests of the log run on in this target, and what those need.

use bytesize::ByteSize;
use weir::config::{Config, EngineKind};

use super::nats::Nats;

/// Runs every claim on JetStream: as it is by default, with next to nothing in memory so that every read goes to the stream,
/// and the same on three copies in a cluster, of which any may answer.
macro_rules! suite {
    ($($claim:ident),* $(,)?) => {
        mod jetstream {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() { super::$claim(super::EngineKind::Jetstream).await; })*
        }
        mod jetstream_history {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() { super::$claim(super::EngineKind::Jetstream).await; })*
        }
        mod jetstream_cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() { super::$claim(super::EngineKind::Jetstream).await; })*
        }
    };
}

/// What the engine runs on: a NATS server of the test's own.
pub(crate) type Backend = Nats;

/// Starts a NATS server and points the engine to it.
pub(crate) fn prepare(config: &mut Config) -> Backend {
    assert_eq!(config.log.engine, EngineKind::Jetstream);
    let thread = std::thread::current();
    let is_in = |part: &str| thread.name().is_some_and(|test| test.contains(part));
    let is_cluster = is_in("jetstream_cluster");
    let nats = match is_cluster {
        true => Nats::cluster(),
        false => Nats::start(),
    };
    config.jetstream.url = nats.url();
    config.jetstream.replicas = if is_cluster { 3 } else { 1 };
    if is_cluster || is_in("jetstream_history") {
        config.jetstream.recent = ByteSize::b(1);
    }
    nats
}
