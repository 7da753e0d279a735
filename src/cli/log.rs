//! `weir log inspect` and `weir repair`: the embedded log's files, looked at and mended.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, HumanCount};

use super::{
    Failure,
    directory::{Directory, blocking},
    notices,
};
use crate::log::{
    OpenError, Timestamp,
    embedded::{self, Inspection, Repair},
};

const LOG_EXAMPLES: &str = "\
Examples:
  weir log inspect --dir ./data
  weir log inspect --dir ./data --json | jq .damage";

const INSPECT_EXAMPLES: &str = "\
Examples:
  weir log inspect --dir ./data
  weir log inspect --config weir.toml --topics
  weir log inspect --dir ./data --json | jq .damage

Every byte of the log is read and compared with its checksum. The server may run; what it writes at that moment may show as an \
unfinished write. It ends with 1 when something is damaged; `weir repair` mends that.";

const REPAIR_EXAMPLES: &str = "\
Examples:
  weir log inspect --dir ./data
  weir repair --dir ./data
  weir serve --set log.dir=./data

For a log that does not open because a file of it is damaged. Each damaged file is written once more with everything of it that \
can be read, and moved to the directory `damaged`, beside a list of what is lost. Sequences that may have been given out are not \
given out again. A sound log is left as it is. Take a copy of the directory first.";

/// Look at the embedded log's files.
#[derive(Debug, Args)]
#[command(after_help = LOG_EXAMPLES)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    Inspect(InspectArgs),
}

/// Show segments, topics, sizes and damage.
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
struct InspectArgs {
    /// Print everything as one JSON object.
    #[arg(long)]
    json: bool,
    /// Print a line for each topic too.
    #[arg(long, conflicts_with = "json")]
    topics: bool,
    #[command(flatten)]
    directory: Directory,
}

/// Mend an embedded log that is damaged, keeping what can be read.
#[derive(Debug, Args)]
#[command(after_help = REPAIR_EXAMPLES)]
pub(super) struct RepairArgs {
    /// Print what was done as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    directory: Directory,
}

pub(super) async fn run(args: LogArgs) -> Result<(), Failure> {
    let LogCommand::Inspect(args) = args.command;
    let dir = args.directory.resolve()?.log.dir;
    let inspection = blocking(move || embedded::inspect(&dir).map_err(|error| failed(&error)));
    let inspection = inspection.await?;
    let printed = if args.json {
        print_json(&inspection)
    } else {
        print_inspection(&inspection, args.topics)
    };
    written(printed)?;
    match inspection.damage.len() {
        0 if !inspection.strange.is_empty() => Err(Failure::failed(
            "there are files that are none of this log, so that a server does not start on it; `weir repair` moves them aside",
        )),
        0 => Ok(()),
        count => Err(Failure::failed(format!(
            "{count} damaged; `weir repair` keeps what can be read"
        ))),
    }
}

pub(super) async fn repair(args: RepairArgs) -> Result<(), Failure> {
    let dir = args.directory.resolve()?.log.dir;
    notices::say("reading every file of the log");
    let done = blocking(move || embedded::repair(&dir).map_err(|error| failed(&error))).await?;
    let printed = if args.json {
        print_json(&done)
    } else {
        print_repair(&done)
    };
    written(printed)
}

fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

fn print_inspection(inspection: &Inspection, with_topics: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "log {}", inspection.id)?;
    for file in &inspection.files {
        let newest = Timestamp(file.newest);
        let age =
            humantime::format_duration(std::time::Duration::from_secs(newest.elapsed().as_secs()));
        write!(
            out,
            "{}  {}  {} records of {} topics",
            file.file,
            HumanBytes(file.bytes),
            HumanCount(file.records),
            HumanCount(file.topics),
        )?;
        if file.records > 0 {
            write!(out, "  {} to {}, newest {age} ago", file.first, file.last)?;
        }
        if file.unfinished_bytes > 0 {
            write!(out, "  and an unfinished write at the end")?;
        }
        writeln!(out)?;
    }
    let bytes = inspection.files.iter().map(|file| file.bytes).sum();
    let topics = inspection.topics.len() as u64;
    writeln!(
        out,
        "{} files, {}, {} topics with records",
        inspection.files.len(),
        HumanBytes(bytes),
        HumanCount(topics),
    )?;
    for (name, topic) in inspection.topics.iter().filter(|_| with_topics) {
        writeln!(
            out,
            "{}  {} records  {}  {} to {}",
            super::format::plain(name),
            HumanCount(topic.records),
            HumanBytes(topic.bytes),
            topic.first,
            topic.last,
        )?;
    }
    for name in &inspection.strange {
        writeln!(out, "{name} is no file of this log")?;
    }
    for loss in &inspection.damage {
        writeln!(out, "damaged: {loss}")?;
    }
    Ok(())
}

fn print_repair(done: &Repair) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Some(aside) = &done.aside else {
        if done.repaired.is_empty() {
            return writeln!(out, "nothing is damaged; nothing was changed");
        }
        return writeln!(out, "made again: {}", done.repaired.join(", "));
    };
    writeln!(
        out,
        "written once more: {}; {} records were kept of them",
        done.repaired.join(", "),
        HumanCount(done.kept),
    )?;
    for loss in &done.lost {
        writeln!(out, "{loss}")?;
    }
    writeln!(
        out,
        "the damaged files and this list are in {}",
        aside.display()
    )
}

fn written(printed: io::Result<()>) -> Result<(), Failure> {
    match printed {
        // Whoever read the output has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|error| Failure::failed(error.to_string())),
    }
}

fn failed(error: &OpenError) -> Failure {
    match error {
        OpenError::InUse { .. } => {
            Failure::unavailable(format!("{error}; a log is repaired while no server has it"))
        }
        _ => Failure::failed(error.to_string()),
    }
}
