//! What `weir bench` can be asked.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum, builder::RangedU64ValueParser, value_parser};
use serde::Serialize;

use super::{grpc::Target, message::STAMP_BYTES, process::Process};

const SUBSCRIBERS_MAX: u64 = 100_000;
const CONNECTIONS_MAX: u64 = 10_000;
const SIZE_MAX_BYTES: u64 = 1024 * 1024;
const BURST_MAX: u64 = 10_000;
const DURATION_MAX: Duration = Duration::from_secs(3600);

const EXAMPLES: &str = "\
Examples:
  weir bench fanout --pid $(pidof weir)
  weir bench latency --rate 100
  weir bench ingest --mode stream
  weir bench idle --pid $(pidof weir)

For figures that can be compared, give server and load generator a core each:
  TOKIO_WORKER_THREADS=1 taskset -c 0 weir serve
  taskset -c 1 weir bench fanout --pid $(pidof weir)

The load generator uses one thread. Trust CPU time per delivery more than rates: a busy neighbour \
changes rates first. Thousands of connections need as many open files: see `ulimit -n`.";

const CATCHUP_EXAMPLES: &str = "\
Examples:
  weir bench catchup --pid $(pidof weir)
  weir bench catchup --pid $(pidof weir) --readers 100 --count 100000
  weir bench catchup --pid $(pidof weir) --cold ./data

The history is uploaded to a room of its own first. Every reader reads all of it.";

const FANOUT_EXAMPLES: &str = "\
Examples:
  weir bench fanout --pid $(pidof weir)                      # bursts of 64 to 1000 subscribers
  weir bench fanout --burst 1 --size 300                     # one message at a time
  weir bench fanout --subscribers 10000 --connections 20
  weir bench fanout --subscribers 100 --connections 100      # a connection for each

A round that is not complete after two seconds counts what is missing as lost, and the loop goes on.";

const LATENCY_EXAMPLES: &str = "\
Examples:
  weir bench latency --rate 100 --subscribers 1000
  weir bench latency --rate 1 --duration 60s --json

Above some 600 messages a second the load generator keeps its core busy, to be in time.";

const INGEST_EXAMPLES: &str = "\
Examples:
  weir bench ingest --publishers 64 --rooms 16
  weir bench ingest --mode stream --count 1000000
  weir bench ingest --mode stream --publishers 8 --size 1024 --pid $(pidof weir)";

const FILES_EXAMPLES: &str = "\
Examples:
  cargo bench --bench naive -- --addr 127.0.0.1:50061      # a byte stream that stores nothing
  weir bench files --baseline-addr http://127.0.0.1:50061
  weir bench files --mib 4096 --rounds 1

One stream, chunks of 64 KiB; a file counts when its answer is there, which Weir gives when it is on disk.";

const IDLE_EXAMPLES: &str = "\
Examples:
  weir bench idle --subscribers 10000 --connections 20 --pid $(pidof weir)

Measure a fresh server: one that has freed memory before seems to need none.";

const CLUSTER_EXAMPLES: &str = "\
Examples:
  weir bench cluster --nats nats://127.0.0.1:4222
  weir bench cluster --addr http://127.0.0.1:50051 --addr http://127.0.0.1:50061 --nats-replicas 3

Work is spread over all addresses; deliveries go from the first to the last, which also reads the history. Weir and the \
bare server, with a stream of its own that is deleted afterwards, take turns.

`benches/cluster.sh` starts servers and replicas and ends them afterwards.";

const COMPARE_EXAMPLES: &str = "\
Examples:
  cargo bench --bench naive -- --addr 127.0.0.1:50061      # prints its pid
  weir bench compare --pid WEIR_PID --baseline-addr http://127.0.0.1:50061 --baseline-pid NAIVE_PID
  weir bench compare ... --nats-addr 127.0.0.1:4222 --nats-pid NATS_PID

`benches/compare.sh` starts all servers, pins them and ends them afterwards.";

/// Measures a running server that speaks `chat.ChatService`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Print one JSON object instead of a table.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Deliveries a second from one publisher to many subscribers, and what each costs the server.
    Fanout(FanoutArgs),
    /// How late messages are at a fixed rate, measured from when each was meant to be sent.
    Latency(LatencyArgs),
    /// Messages stored a second, and how long publishers wait for the acknowledgement.
    Ingest(IngestArgs),
    /// Megabytes a second of one file's stream, up and down, beside a server that stores nothing.
    Files(FilesArgs),
    /// Replicas on NATS JetStream beside the bare server: appends, deliveries between replicas, catching up.
    Cluster(ClusterArgs),
    /// How fast readers read a history to its end, and what that costs the server.
    Catchup(CatchupArgs),
    /// Memory that an idle subscription costs the server.
    Idle(IdleArgs),
    /// Weir beside a baseline server, and NATS if it runs, with goals for the ratios.
    Compare(CompareArgs),
}

/// The server that is measured.
#[derive(Debug, Clone, Args, Serialize)]
pub(super) struct ServerArgs {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub(super) addr: Target,
    /// The server's process on this machine: adds its CPU time.
    #[arg(long)]
    pub(super) pid: Option<u32>,
}

impl ServerArgs {
    /// The server's process, if it was named.
    pub(super) fn process(&self) -> Result<Option<Process>> {
        self.pid.map(Process::open).transpose()
    }
}

/// `weir bench fanout`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = FANOUT_EXAMPLES)]
pub(super) struct FanoutArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Streams that receive every message.
    #[arg(long, default_value_t = 1000, value_parser = up_to(1, SUBSCRIBERS_MAX))]
    pub(super) subscribers: usize,
    /// TCP connections that carry them.
    #[arg(long, default_value_t = 8, value_parser = up_to(1, CONNECTIONS_MAX))]
    pub(super) connections: usize,
    /// Bytes of content a message.
    #[arg(long, default_value_t = 64, value_parser = up_to(STAMP_BYTES as u64, SIZE_MAX_BYTES))]
    pub(super) size: usize,
    /// Messages sent at once; the next ones go when the slowest connection has them. 1: one at a time.
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u64).range(1..=BURST_MAX))]
    pub(super) burst: u64,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) duration: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "2s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) warmup: Duration,
}

/// `weir bench latency`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = LATENCY_EXAMPLES)]
pub(super) struct LatencyArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Messages a second, whatever the server makes of them.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) rate: u32,
    /// Streams that receive every message.
    #[arg(long, default_value_t = 1000, value_parser = up_to(1, SUBSCRIBERS_MAX))]
    pub(super) subscribers: usize,
    /// TCP connections that carry them.
    #[arg(long, default_value_t = 8, value_parser = up_to(1, CONNECTIONS_MAX))]
    pub(super) connections: usize,
    /// Bytes of content a message.
    #[arg(long, default_value_t = 64, value_parser = up_to(STAMP_BYTES as u64, SIZE_MAX_BYTES))]
    pub(super) size: usize,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) duration: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "2s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) warmup: Duration,
}

/// How messages are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum IngestMode {
    /// One `SendMessage` a message; every publisher waits for its answer.
    Unary,
    /// One `UploadMessages` a publisher, answered once at its end.
    Stream,
}

/// `weir bench ingest`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = INGEST_EXAMPLES)]
pub(super) struct IngestArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// How messages are published.
    #[arg(long, value_enum, default_value_t = IngestMode::Unary)]
    pub(super) mode: IngestMode,
    /// Publishers at the same time [default: 64, in stream mode 1].
    #[arg(long, value_parser = up_to(1, 10_000))]
    publishers: Option<usize>,
    /// Connections that unary publishers share; a stream has its own.
    #[arg(long, default_value_t = 4, value_parser = up_to(1, CONNECTIONS_MAX))]
    pub(super) connections: usize,
    /// Rooms that messages are spread over.
    #[arg(long, default_value_t = 1, value_parser = up_to(1, 10_000))]
    pub(super) rooms: usize,
    /// Bytes of content a message.
    #[arg(long, default_value_t = 64, value_parser = up_to(STAMP_BYTES as u64, SIZE_MAX_BYTES))]
    pub(super) size: usize,
    /// How long unary publishers publish.
    #[arg(long, default_value = "10s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) duration: Duration,
    /// Messages that streams upload altogether.
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    pub(super) count: u64,
}

impl IngestArgs {
    /// Publishers at the same time.
    pub(super) fn publishers(&self) -> usize {
        let usual = match self.mode {
            IngestMode::Unary => 64,
            IngestMode::Stream => 1,
        };
        self.publishers.unwrap_or(usual)
    }
}

/// `weir bench files`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = FILES_EXAMPLES)]
pub(super) struct FilesArgs {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub(super) addr: Target,
    /// Where the baseline listens.
    #[arg(long, value_name = "URL")]
    pub(super) baseline_addr: Option<Target>,
    /// Size of the file in MiB.
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u64).range(1..=1_000_000))]
    mib: u64,
    /// How often everything is measured; the servers take turns.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
}

impl FilesArgs {
    /// Bytes of the file.
    pub(super) const fn bytes(&self) -> u64 {
        self.mib * 1024 * 1024
    }
}

/// `weir bench cluster`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = CLUSTER_EXAMPLES)]
pub(super) struct ClusterArgs {
    /// Where a replica listens; once for each.
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub(super) addr: Vec<Target>,
    /// Where NATS is.
    #[arg(long, default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    pub(super) nats: String,
    /// Copies of the bare server's stream: as many as `jetstream.replicas` says.
    #[arg(long, default_value_t = 1, value_parser = up_to(1, 5))]
    pub(super) nats_replicas: usize,
    /// Publishers that each wait for the acknowledgement, over all replicas.
    #[arg(long, default_value_t = 64, value_parser = up_to(1, 10_000))]
    pub(super) publishers: usize,
    /// Messages that are written by one stream and then read from the beginning.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub(super) count: u64,
    /// Messages a second while deliveries are measured.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) rate: u32,
    /// Bytes of content a message.
    #[arg(long, default_value_t = 64, value_parser = up_to(STAMP_BYTES as u64, SIZE_MAX_BYTES))]
    pub(super) size: usize,
    /// How often everything is measured; the two take turns.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// How long publishers publish, and deliveries are measured, in each round.
    #[arg(long, default_value = "5s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) duration: Duration,
    /// How long to deliver before measuring.
    #[arg(long, default_value = "1s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) warmup: Duration,
}

impl ClusterArgs {
    /// The replica that is written to where there is one writer.
    pub(super) fn first(&self) -> &Target {
        &self.addr[0]
    }

    /// The replica that is read from.
    pub(super) fn last(&self) -> &Target {
        &self.addr[self.addr.len() - 1]
    }

    /// Between two messages while deliveries are measured.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.rate
    }

    /// This replica's share of the publishers.
    pub(super) fn ingest(&self, addr: &Target) -> IngestArgs {
        IngestArgs {
            server: ServerArgs {
                addr: addr.clone(),
                pid: None,
            },
            mode: IngestMode::Unary,
            publishers: Some(self.publishers.div_ceil(self.addr.len())),
            connections: 4,
            rooms: 1,
            size: self.size,
            duration: self.duration,
            count: self.count,
        }
    }
}

/// Readers of a history.
#[derive(Debug, Args, Serialize)]
#[command(after_help = CATCHUP_EXAMPLES)]
pub(super) struct CatchupArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Messages of the history, which is uploaded first.
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    pub(super) count: u64,
    /// Bytes of content a message.
    #[arg(long, default_value_t = 64, value_parser = up_to(STAMP_BYTES as u64, SIZE_MAX_BYTES))]
    pub(super) size: usize,
    /// Readers at the same time, each on a connection of its own.
    #[arg(long, default_value_t = 1, value_parser = up_to(1, CONNECTIONS_MAX))]
    pub(super) readers: usize,
    /// Drop the log in this data directory from the page cache before it is read.
    #[arg(long, value_name = "DIR")]
    pub(super) cold: Option<std::path::PathBuf>,
}

/// `weir bench idle`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = IDLE_EXAMPLES)]
pub(super) struct IdleArgs {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub(super) addr: Target,
    /// The server's process on this machine.
    #[arg(long)]
    pub(super) pid: u32,
    /// Streams to open.
    #[arg(long, default_value_t = 10_000, value_parser = up_to(1, SUBSCRIBERS_MAX))]
    pub(super) subscribers: usize,
    /// TCP connections that carry them.
    #[arg(long, default_value_t = 20, value_parser = up_to(1, CONNECTIONS_MAX))]
    pub(super) connections: usize,
    /// How long to wait before reading the memory again.
    #[arg(long, default_value = "1s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) settle: Duration,
}

/// `weir bench compare`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = COMPARE_EXAMPLES)]
pub(super) struct CompareArgs {
    /// Where Weir listens.
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    addr: Target,
    /// Weir's process.
    #[arg(long)]
    pid: u32,
    /// Where the baseline listens.
    #[arg(long, value_name = "URL")]
    baseline_addr: Target,
    /// The baseline's process.
    #[arg(long, value_name = "PID")]
    baseline_pid: u32,
    /// Where a NATS server listens.
    #[arg(long, value_name = "HOST:PORT", requires = "nats_pid")]
    nats_addr: Option<Target>,
    /// The NATS server's process.
    #[arg(long, value_name = "PID", requires = "nats_addr")]
    nats_pid: Option<u32>,
    /// How often everything is measured; the servers take turns.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// How long to measure each server in each scenario and round.
    #[arg(long, default_value = "5s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) duration: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "1s", value_parser = duration)]
    #[serde(with = "humantime_serde")]
    pub(super) warmup: Duration,
    /// Fail if a goal is missed.
    #[arg(long)]
    pub(super) enforce: bool,
}

impl CompareArgs {
    /// The server whose goals these are.
    pub(super) fn weir(&self) -> ServerArgs {
        ServerArgs {
            addr: self.addr.clone(),
            pid: Some(self.pid),
        }
    }

    /// The server it is compared with.
    pub(super) fn baseline(&self) -> ServerArgs {
        ServerArgs {
            addr: self.baseline_addr.clone(),
            pid: Some(self.baseline_pid),
        }
    }

    /// The NATS server, if there is one.
    pub(super) fn nats(&self) -> Option<ServerArgs> {
        let addr = self.nats_addr.clone()?;
        Some(ServerArgs {
            addr,
            pid: self.nats_pid,
        })
    }
}

fn up_to(min: u64, max: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(min..=max)
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() || duration > DURATION_MAX {
        return Err("must be more than nothing and at most an hour".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.bench)
    }

    #[test]
    fn every_command_has_usable_defaults() {
        let compare = "compare --pid 1 --baseline-addr 127.0.0.1:1 --baseline-pid 2";
        for line in [
            "fanout",
            "latency",
            "ingest --json",
            "idle --pid 1",
            "cluster",
            compare,
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let lines = [
            "",
            "idle",
            "fanout --subscribers 0",
            "fanout --subscribers 100001",
            "fanout --size 8",
            "fanout --burst 0",
            "fanout --duration 2h",
            "fanout --duration 0s",
            "fanout --addr https://127.0.0.1:1",
            "compare --pid 1 --baseline-addr 127.0.0.1:1 --baseline-pid 2 --nats-pid 3",
        ];
        for line in lines {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn publishers_default_by_mode() {
        for (line, expected) in [
            ("ingest", 64),
            ("ingest --mode stream", 1),
            ("ingest --publishers 3", 3),
        ] {
            let Ok(BenchArgs {
                command: Command::Ingest(args),
                ..
            }) = parse(line)
            else {
                panic!("{line} is not an ingest");
            };
            assert_eq!(args.publishers(), expected, "{line}");
        }
    }
}
