//! `weir bench fanout`: how much one room delivers, and what a delivery costs the server.

use anyhow::Result;
use serde::Serialize;

use super::{
    args::FanoutArgs,
    closed_loop::{ClosedLoop, Figures, Pace, Publisher},
    fleet::{Fleet, FleetPlan},
    grpc::Target,
    message::{self, Template},
    nats::{NatsFleet, NatsPublisher},
    process::Process,
    publisher::Upload,
    report::{self, Table},
};

/// One fan-out to measure.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Scenario {
    pub(super) subscribers: usize,
    pub(super) connections: usize,
    pub(super) size: usize,
    pub(super) burst: u64,
}

/// Measures a fan-out of `chat.ChatService`.
pub(super) async fn measure(
    target: &Target,
    process: Option<&Process>,
    scenario: Scenario,
    pace: Pace,
) -> Result<Figures> {
    let room = message::fresh_room();
    let template = Template::message(&room, scenario.size);
    let fleet = Fleet::open(FleetPlan {
        target: target.clone(),
        room,
        subscribers: scenario.subscribers,
        connections: scenario.connections,
        size: scenario.size,
        timeline: None,
    })
    .await?;
    let upload = Upload::open(target, vec![template]).await?;
    let mut publisher = Publisher::Chat(Box::new(upload));
    let figures = ClosedLoop {
        round: fleet.round(),
        connections: fleet.connections(),
        publisher: &mut publisher,
        process,
        pace,
        rounds: 0,
    }
    .run()
    .await?;
    publisher.finish().await?;
    Ok(figures)
}

/// Measures the same fan-out of core NATS.
pub(super) async fn measure_nats(
    target: &Target,
    process: Option<&Process>,
    scenario: Scenario,
    pace: Pace,
) -> Result<Figures> {
    let subject = message::fresh_room();
    let template = Template::message(&subject, scenario.size);
    let (subscribers, connections) = (scenario.subscribers, scenario.connections);
    let fleet = NatsFleet::open(target, &subject, subscribers, connections).await?;
    let publisher = NatsPublisher::open(target, &subject, template).await?;
    let mut publisher = Publisher::Nats(publisher);
    ClosedLoop {
        round: fleet.round(),
        connections: fleet.connections(),
        publisher: &mut publisher,
        process,
        pace,
        rounds: 0,
    }
    .run()
    .await
}

/// Runs the command.
pub(super) async fn run(args: &FanoutArgs, json: bool) -> Result<()> {
    let process = args.server.process()?;
    let scenario = Scenario {
        subscribers: args.subscribers,
        connections: args.connections,
        size: args.size,
        burst: args.burst,
    };
    let pace = Pace {
        subscribers: args.subscribers,
        burst: args.burst,
        warmup: args.warmup,
        duration: args.duration,
    };
    report::progress(&format!(
        "fan-out to {} subscribers of {}",
        args.subscribers, args.server.addr
    ));
    let figures = measure(&args.server.addr, process.as_ref(), scenario, pace).await?;
    if json {
        return report::print_json("fanout", args, &figures);
    }
    report::print(&table(&figures))
}

fn table(figures: &Figures) -> String {
    let mut table = Table::new(["figure", "value"]);
    table.row(["deliveries/s", &report::count(figures.deliveries_per_sec)]);
    table.row(["publishes/s", &report::count(figures.publishes_per_sec)]);
    let per_delivery = figures.server_cpu_us_per_delivery;
    let per_delivery = per_delivery.map_or("- (needs --pid)".to_owned(), |us| format!("{us:.4}"));
    table.row(["server CPU µs/delivery", &per_delivery]);
    table.row(["delivered", &report::count(figures.delivered as f64)]);
    table.row(["lost", &report::count(figures.lost as f64)]);
    table.row(["content checked", &report::count(figures.checked as f64)]);
    table.row(["seconds", &format!("{:.2}", figures.seconds)]);
    table.render()
}
