//! Which engines the tests of the log run on in this target, and what those need.

use weir::config::Config;

/// Runs every claim on the engines that need nothing beyond this machine.
macro_rules! suite {
    ($($claim:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() { super::$claim(super::EngineKind::Memory).await; })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() { super::$claim(super::EngineKind::Embedded).await; })*
        }
    };
}

/// What an engine runs on: nothing here.
pub(crate) struct Backend;

pub(crate) fn prepare(_config: &mut Config) -> Backend {
    Backend
}
