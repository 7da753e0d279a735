//! Which engines the tests of the log run on in this target, and what those need.

use bytesize::ByteSize;
use weir::config::{Config, EngineKind};

use super::nats::Nats;

/// Runs every claim on JetStream: as it is by default, and with next to nothing in memory so that every read goes to the
/// stream.
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
    };
}

/// What the engine runs on: a NATS server of the test's own.
pub(crate) type Backend = Nats;

/// Starts a NATS server and points the engine to it.
pub(crate) fn prepare(config: &mut Config) -> Backend {
    assert_eq!(config.log.engine, EngineKind::Jetstream);
    let nats = Nats::start();
    config.jetstream.url = nats.url();
    let thread = std::thread::current();
    if thread
        .name()
        .is_some_and(|test| test.contains("jetstream_history"))
    {
        config.jetstream.recent = ByteSize::b(1);
    }
    nats
}
