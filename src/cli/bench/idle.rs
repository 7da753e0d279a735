//! `weir bench idle`: what a subscription costs in memory while nothing is published.

use anyhow::Result;
use serde::Serialize;

use super::{
    args::IdleArgs,
    fleet::{Fleet, FleetPlan},
    message,
    process::Process,
    report::{self, Table},
};

/// What the command found.
#[derive(Debug, Serialize)]
struct Figures {
    resident_bytes_before: u64,
    resident_bytes_after: u64,
    resident_bytes_per_subscriber: f64,
    opening_secs: f64,
}

/// Runs the command.
pub(super) async fn run(args: &IdleArgs, json: bool) -> Result<()> {
    let process = Process::open(args.pid)?;
    let before = process.resident_bytes()?;
    report::progress(&format!("opening {} subscriptions", args.subscribers));
    let start = std::time::Instant::now();
    let fleet = Fleet::open(FleetPlan {
        target: args.addr.clone(),
        room: message::fresh_room(),
        subscribers: args.subscribers,
        connections: args.connections,
        size: 0,
        timeline: None,
    })
    .await?;
    let opening = start.elapsed();
    tokio::time::sleep(args.settle).await;
    let after = process.resident_bytes()?;
    fleet.round().healthy()?;
    let figures = Figures {
        resident_bytes_before: before,
        resident_bytes_after: after,
        resident_bytes_per_subscriber: (after as f64 - before as f64) / args.subscribers as f64,
        opening_secs: opening.as_secs_f64(),
    };
    drop(fleet);
    if json {
        return report::print_json("idle", args, &figures);
    }
    report::print(&table(&figures))
}

fn table(figures: &Figures) -> String {
    let kibibytes = |bytes: u64| report::count(bytes as f64 / 1024.0);
    let mut table = Table::new(["figure", "value"]);
    let per_subscriber = figures.resident_bytes_per_subscriber;
    table.row(["bytes/subscriber", &report::count(per_subscriber)]);
    table.row(["KiB before", &kibibytes(figures.resident_bytes_before)]);
    table.row(["KiB after", &kibibytes(figures.resident_bytes_after)]);
    table.row(["seconds to open", &format!("{:.2}", figures.opening_secs)]);
    table.render()
}
