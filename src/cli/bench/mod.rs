//! `weir bench`: a load generator for any server that speaks `chat.ChatService`.
//!
//! It shall cost less than what it measures. So it speaks HTTP/2 itself, counts gRPC messages by their prefixes, decodes
//! only a sample of them, and runs on one thread of its own. Every wait is bounded. In reading order: `args`, `grpc`
//! and `frame` (the client), `fleet` and `publisher` (who talks), `round` and `closed_loop` (when), one module
//! a command, `nats` and `bare` (the server beside), and `process`, `stats`, `report` (what comes out).

mod args;
mod bare;
mod catchup;
mod closed_loop;
mod cluster;
mod compare;
mod fanout;
mod files;
mod fleet;
mod frame;
mod grpc;
mod idle;
mod ingest;
mod latency;
mod message;
mod nats;
mod process;
mod publisher;
mod report;
mod round;
mod stats;

use anyhow::{Context as _, Result};

pub use self::args::BenchArgs;
use self::args::Command;

/// Runs the asked benchmark on a thread of its own and prints what it found.
///
/// # Errors
///
/// Says in one sentence why nothing could be measured.
pub async fn run(args: BenchArgs) -> Result<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("bench".to_owned())
        .spawn(move || sender.send(run_alone(&args)))
        .context("cannot start the load generator's thread")?;
    receiver.await.context("the load generator panicked")?
}

fn run_alone(args: &BenchArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the load generator's runtime")?;
    runtime.block_on(dispatch(args))
}

async fn dispatch(args: &BenchArgs) -> Result<()> {
    match &args.command {
        Command::Fanout(command) => fanout::run(command, args.json).await,
        Command::Latency(command) => latency::run(command, args.json).await,
        Command::Ingest(command) => ingest::run(command, args.json).await,
        Command::Files(command) => files::run(command, args.json).await,
        Command::Cluster(command) => cluster::run(command, args.json).await,
        Command::Catchup(command) => catchup::run(command, args.json).await,
        Command::Idle(command) => idle::run(command, args.json).await,
        Command::Compare(command) => compare::run(command, args.json).await,
    }
}
