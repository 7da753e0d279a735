//! `weir bench compare`: Weir beside a baseline, in turns, on the same machine.

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{
    args::{CompareArgs, ServerArgs},
    closed_loop::{Figures, Pace},
    fanout::{self, Scenario},
    process::Process,
    report::{self, Table, Verdict},
    stats::Spread,
};

const SUBSCRIBERS: usize = 1000;
const CONNECTIONS: usize = 8;

/// A fan-out that is compared, and the goals for it.
#[derive(Debug, Clone, Copy)]
struct Contest {
    name: &'static str,
    size: usize,
    burst: u64,
    /// The baseline must cost at least this many times as much as Weir.
    baseline_at_least: f64,
    /// Weir may cost at most this many times as much as NATS.
    nats_at_most: Option<f64>,
}

const CONTESTS: [Contest; 3] = [
    Contest {
        name: "64 B, single",
        size: 64,
        burst: 1,
        baseline_at_least: 1.3,
        nats_at_most: None,
    },
    Contest {
        name: "64 B, bursts of 64",
        size: 64,
        burst: 64,
        baseline_at_least: 8.0,
        nats_at_most: Some(1.0),
    },
    Contest {
        name: "300 B, single",
        size: 300,
        burst: 1,
        baseline_at_least: 6.0,
        nats_at_most: None,
    },
];

/// One server's costs and rates in one contest, a value for each round.
#[derive(Debug, Default, Clone, Serialize)]
struct Series {
    cpu_us_per_delivery: Vec<f64>,
    deliveries_per_sec: Vec<f64>,
    lost: u64,
}

impl Series {
    fn push(&mut self, figures: &Figures) -> Result<()> {
        let cost = figures.server_cpu_us_per_delivery;
        self.cpu_us_per_delivery
            .push(cost.context("a server's processor time is unknown")?);
        self.deliveries_per_sec.push(figures.deliveries_per_sec);
        self.lost += figures.lost;
        Ok(())
    }

    fn cost(&self) -> Result<Spread> {
        Spread::of(&self.cpu_us_per_delivery).context("nothing was measured")
    }
}

/// One contest's outcome.
#[derive(Debug, Serialize)]
struct Verdicts {
    scenario: &'static str,
    weir: Series,
    baseline: Series,
    nats: Option<Series>,
    /// How many times as much the baseline costs as Weir.
    baseline_ratio: Spread,
    baseline_goal: f64,
    baseline_met: bool,
    /// How many times as much Weir costs as NATS.
    nats_ratio: Option<Spread>,
    nats_goal: Option<f64>,
    nats_met: Option<bool>,
}

/// The servers, in the order of the first round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Weir,
    Baseline,
    Nats,
}

struct Servers {
    weir: (ServerArgs, Process),
    baseline: (ServerArgs, Process),
    nats: Option<(ServerArgs, Process)>,
}

impl Servers {
    fn open(args: &CompareArgs) -> Result<Self> {
        let open = |server: ServerArgs| -> Result<(ServerArgs, Process)> {
            let pid = server.pid.context("every server needs its process id")?;
            Ok((server, Process::open(pid)?))
        };
        Ok(Self {
            weir: open(args.weir())?,
            baseline: open(args.baseline())?,
            nats: args.nats().map(open).transpose()?,
        })
    }

    /// Everybody takes turns at going first.
    fn order(&self, round: u32) -> Vec<Contestant> {
        let mut order = vec![Contestant::Weir, Contestant::Baseline];
        if self.nats.is_some() {
            order.push(Contestant::Nats);
        }
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    async fn measure(&self, who: Contestant, scenario: Scenario, pace: Pace) -> Result<Figures> {
        let (server, process) = match who {
            Contestant::Weir => &self.weir,
            Contestant::Baseline => &self.baseline,
            Contestant::Nats => self.nats.as_ref().context("NATS does not take part")?,
        };
        let measured = match who {
            Contestant::Nats => {
                fanout::measure_nats(&server.addr, Some(process), scenario, pace).await
            }
            _ => fanout::measure(&server.addr, Some(process), scenario, pace).await,
        };
        measured.with_context(|| format!("{who:?} at {} failed", server.addr))
    }
}

/// Runs the command.
pub(super) async fn run(args: &CompareArgs, json: bool) -> Result<()> {
    let servers = Servers::open(args)?;
    let mut series = vec![[(); 3].map(|()| Series::default()); CONTESTS.len()];
    for round in 0..args.rounds {
        for (contest, series) in CONTESTS.iter().zip(&mut series) {
            for who in servers.order(round) {
                let named = format!("round {}/{}: {}", round + 1, args.rounds, contest.name);
                report::progress(&format!("{named}, {who:?}"));
                let (scenario, pace) = plan(contest, args);
                let figures = servers.measure(who, scenario, pace).await?;
                series[who as usize].push(&figures)?;
            }
        }
    }
    let verdicts: Vec<Verdicts> = CONTESTS
        .iter()
        .zip(series)
        .map(|(contest, series)| judge(contest, series, servers.nats.is_some()))
        .collect::<Result<_>>()?;
    if json {
        report::print_json("compare", args, &verdicts)?;
    } else {
        report::print(&text(&verdicts)?)?;
    }
    let all_met = verdicts.iter().all(Verdicts::met);
    ensure!(!args.enforce || all_met, "a goal was missed");
    Ok(())
}

fn plan(contest: &Contest, args: &CompareArgs) -> (Scenario, Pace) {
    let scenario = Scenario {
        subscribers: SUBSCRIBERS,
        connections: CONNECTIONS,
        size: contest.size,
        burst: contest.burst,
    };
    let pace = Pace {
        subscribers: SUBSCRIBERS,
        burst: contest.burst,
        warmup: args.warmup,
        duration: args.duration,
    };
    (scenario, pace)
}

fn judge(contest: &Contest, series: [Series; 3], with_nats: bool) -> Result<Verdicts> {
    let [weir, baseline, nats] = series;
    let ratio = |above: &Series, below: &Series| {
        Spread::of_ratios(&above.cpu_us_per_delivery, &below.cpu_us_per_delivery)
            .context("a server's processor time is too short to compare")
    };
    let baseline_ratio = ratio(&baseline, &weir)?;
    let nats_ratio = with_nats.then(|| ratio(&weir, &nats)).transpose()?;
    let nats_met = nats_ratio
        .zip(contest.nats_at_most)
        .map(|(ratio, goal)| ratio.median <= goal);
    Ok(Verdicts {
        scenario: contest.name,
        weir,
        baseline,
        nats: with_nats.then_some(nats),
        baseline_ratio,
        baseline_goal: contest.baseline_at_least,
        baseline_met: baseline_ratio.median >= contest.baseline_at_least,
        nats_ratio,
        nats_goal: contest.nats_at_most,
        nats_met,
    })
}

impl Verdicts {
    fn met(&self) -> bool {
        self.baseline_met && self.nats_met != Some(false)
    }
}

fn text(verdicts: &[Verdicts]) -> Result<String> {
    Ok(format!(
        "Fan-out to {SUBSCRIBERS} subscribers on {CONNECTIONS} connections; server CPU µs per delivery, \
         median [min–max]\n\n{}\nDeliveries a second, thousands\n\n{}\n{}",
        costs(verdicts)?,
        rates(verdicts)?,
        goals(verdicts)
    ))
}

fn costs(verdicts: &[Verdicts]) -> Result<String> {
    let mut table = Table::new([
        "scenario",
        "weir",
        "baseline",
        "nats",
        "baseline/weir",
        "weir/nats",
    ]);
    for verdict in verdicts {
        let nats = verdict.nats.as_ref().map(Series::cost).transpose()?;
        table.row([
            verdict.scenario,
            &verdict.weir.cost()?.text(4),
            &verdict.baseline.cost()?.text(4),
            &nats.map_or("-".to_owned(), |cost| cost.text(4)),
            &verdict.baseline_ratio.text(2),
            &verdict
                .nats_ratio
                .map_or("-".to_owned(), |ratio| ratio.text(2)),
        ]);
    }
    Ok(table.render())
}

fn rates(verdicts: &[Verdicts]) -> Result<String> {
    let mut table = Table::new([
        "scenario",
        "weir",
        "baseline",
        "nats",
        "lost weir",
        "lost baseline",
    ]);
    let rate = |series: &Series| {
        let thousands: Vec<f64> = series
            .deliveries_per_sec
            .iter()
            .map(|rate| rate / 1e3)
            .collect();
        Spread::of(&thousands)
            .map(|rate| rate.text(0))
            .context("nothing was measured")
    };
    for verdict in verdicts {
        table.row([
            verdict.scenario,
            &rate(&verdict.weir)?,
            &rate(&verdict.baseline)?,
            &verdict.nats.as_ref().map_or(Ok("-".to_owned()), rate)?,
            &report::count(verdict.weir.lost as f64),
            &report::count(verdict.baseline.lost as f64),
        ]);
    }
    Ok(table.render())
}

fn goals(verdicts: &[Verdicts]) -> String {
    let line = |name: &str, versus: &str, ratio: f64, goal: String, met: bool| {
        let verdict = if met {
            ("met", Verdict::Good)
        } else {
            ("missed", Verdict::Bad)
        };
        let verdict = report::coloured(verdict.0, verdict.1);
        format!("{name}: {versus} {ratio:.2}, goal {goal}: {verdict}\n")
    };
    let mut out = String::new();
    for verdict in verdicts {
        let goal = format!("≥ {:.1}", verdict.baseline_goal);
        let ratio = verdict.baseline_ratio.median;
        out += &line(
            verdict.scenario,
            "baseline/weir",
            ratio,
            goal,
            verdict.baseline_met,
        );
        if let (Some(ratio), Some(goal), Some(met)) =
            (verdict.nats_ratio, verdict.nats_goal, verdict.nats_met)
        {
            let goal = format!("≤ {goal:.1}");
            out += &line(verdict.scenario, "weir/nats", ratio.median, goal, met);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(costs: &[f64]) -> Series {
        Series {
            cpu_us_per_delivery: costs.to_vec(),
            deliveries_per_sec: vec![1000.0; costs.len()],
            lost: 0,
        }
    }

    #[test]
    fn goals_are_judged_by_the_median_ratio() {
        let costs = [
            series(&[0.1, 0.1, 0.1]),
            series(&[0.9, 0.7, 0.8]),
            series(&[0.2, 0.1, 0.05]),
        ];
        let verdict = judge(&CONTESTS[1], costs, true).unwrap();
        assert!(verdict.baseline_met && verdict.nats_met == Some(true) && verdict.met());
        let costs = [series(&[0.2]), series(&[0.9]), Series::default()];
        let verdict = judge(&CONTESTS[1], costs, false).unwrap();
        assert!(!verdict.met());
        assert_eq!(verdict.nats_met, None);
    }

    #[test]
    fn the_report_names_every_goal() {
        let costs = || [series(&[0.1]), series(&[0.9]), series(&[0.2])];
        let verdicts: Vec<_> = CONTESTS
            .iter()
            .map(|contest| judge(contest, costs(), true).unwrap())
            .collect();
        let text = text(&verdicts).unwrap();
        assert_eq!(text.matches(": met").count(), 4, "{text}");
    }
}
