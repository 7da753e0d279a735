//! The command line: one file per subcommand, [`Failure`] for how they end.
//!
//! Records go to stdout, everything else to stderr. No command keeps state: each is a thin user of [`crate::client`].

mod backup;
pub mod bench;
mod bulk;
mod chat;
mod collect;
pub mod config;
mod data;
mod directory;
mod doc;
mod events;
mod failure;
mod feedback;
mod files;
mod follow;
mod format;
mod health;
mod input;
mod instances;
mod log;
mod notices;
mod notify;
mod process;
mod publish;
pub mod serve;
mod subscribe;

use std::future::Future;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Client, RetryPolicy};

pub use failure::{Failure, exit};

const LONG_ABOUT: &str = "\
Weir: durable gRPC streaming over one ordered, replayable log.

Start a server in one terminal and talk in others:

  weir serve
  weir chat --user ann
  weir chat --user bob

What is acknowledged is on disk; a subscription that breaks continues where it broke.";

const AFTER_HELP: &str = "\
Exit codes:
  0    done (also when the reader of the output went away)
  1    failed
  2    wrong usage
  3    the server cannot be reached or is unavailable: the same command may succeed later
  4    the server refused: the same command will be refused again
  130  interrupted by Ctrl-C
  143  ended by SIGTERM

`weir help COMMAND` shows examples.";

/// Durable gRPC streaming over one ordered, replayable log.
#[derive(Debug, Parser)]
#[command(name = "weir", version, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Chat(chat::ChatArgs),
    Subscribe(subscribe::SubscribeArgs),
    Publish(publish::PublishArgs),
    Events(events::EventsArgs),
    Notify(notify::NotifyArgs),
    Data(data::DataArgs),
    Upload(files::UploadArgs),
    Download(files::DownloadArgs),
    Files(files::FilesArgs),
    Feedback(feedback::FeedbackArgs),
    Doc(doc::DocArgs),
    Collect(collect::CollectArgs),
    Process(process::ProcessArgs),
    Health(health::HealthArgs),
    Instances(instances::InstancesArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Log(log::LogArgs),
    Repair(log::RepairArgs),
    Config(config::Args),
    Bench(Box<bench::BenchArgs>),
}

/// Runs a subcommand to its end.
///
/// # Errors
/// How it failed, with its exit code.
///
/// # Cancellation
/// Dropping the future ends the command; what it had sent may be stored.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Chat(args) => chat::run(args).await,
        Command::Subscribe(args) => interruptible(subscribe::run(args)).await,
        Command::Publish(args) => interruptible(publish::run(args)).await,
        Command::Events(args) => interruptible(events::run(args)).await,
        Command::Notify(args) => interruptible(notify::run(args)).await,
        Command::Data(args) => interruptible(data::run(args)).await,
        Command::Upload(args) => interruptible(files::upload(args)).await,
        Command::Download(args) => interruptible(files::download(args)).await,
        Command::Files(args) => interruptible(files::files(args)).await,
        Command::Feedback(args) => interruptible(feedback::run(args)).await,
        Command::Doc(args) => interruptible(doc::run(args)).await,
        Command::Collect(args) => interruptible(collect::run(args)).await,
        Command::Process(args) => interruptible(process::run(args)).await,
        Command::Health(args) => interruptible(health::run(args)).await,
        Command::Instances(args) => interruptible(instances::run(args)).await,
        Command::Backup(args) => interruptible(backup::backup(args)).await,
        Command::Restore(args) => interruptible(backup::restore(args)).await,
        Command::Log(args) => interruptible(log::run(args)).await,
        // Not cut short half-way; a second run would go on, but there is no need.
        Command::Repair(args) => log::repair(args).await,
        Command::Config(args) => config::run(args),
        Command::Bench(args) => interruptible(measure(*args)).await,
    }
}

async fn measure(args: bench::BenchArgs) -> Result<(), Failure> {
    let measured = bench::run(args).await;
    measured.map_err(|error| Failure::failed(format!("{error:#}")))
}

/// Which server to talk to.
#[derive(Debug, Args)]
struct Target {
    /// Address of the server's gRPC port.
    #[arg(
        long,
        value_name = "URL",
        env = "WEIR_ADDR",
        default_value = "http://127.0.0.1:50051"
    )]
    addr: String,
}

impl Target {
    /// Connects at once, so that a wrong address is told at once.
    async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.addr).await?)
    }
}

/// How persistent a command is.
#[derive(Debug, Args)]
struct Persistence {
    /// Failed attempts in a row before giving up, the first connection included [default: the first connection must
    /// succeed at once; later never for subscriptions, 10 for publishes].
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
}

impl Persistence {
    /// A client that follows the option, if it is given, from the first connection on. Without it connects at once, so
    /// that a wrong address is told at once.
    async fn connect(&self, target: &Target) -> Result<Client, Failure> {
        let Some(retries) = self.retries else {
            return target.connect().await;
        };
        let policy = RetryPolicy {
            max_retries: Some(retries),
            ..RetryPolicy::default()
        };
        Ok(Client::connect_lazy(&target.addr)?
            .with_subscribe_policy(policy.clone())
            .with_publish_policy(policy))
    }
}

/// Ends `work` at Ctrl-C or SIGTERM. The first process of a container ends at neither by itself.
async fn interruptible(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        outcome = work => outcome,
        code = interrupt() => Err(Failure::silent(code)),
    }
}

/// Catches Ctrl-C and SIGTERM from here on; the future waits for one and gives the code to exit with, or waits for ever if they
/// cannot be caught, because then they end the process by themselves.
fn interrupt() -> impl Future<Output = u8> {
    // Not at the first poll: what is polled beside it may be far by then.
    let caught = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    async {
        let (Ok(mut interrupt), Ok(mut terminate)) = caught else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => exit::INTERRUPTED,
            _ = terminate.recv() => exit::TERMINATED,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[tokio::test]
    async fn a_signal_is_caught_before_anybody_waits_for_it() {
        let signalled = interrupt();
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::TERM).unwrap();
        assert_eq!(signalled.await, exit::TERMINATED);
    }

    fn code_of(args: &[&str]) -> i32 {
        Cli::try_parse_from(args).map_or_else(|error| error.exit_code(), |_| -1)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("weir "), "{}", command.get_name());
        }
    }

    #[test]
    fn help_documents_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for code in [
            exit::OK,
            exit::FAILED,
            exit::USAGE,
            exit::UNAVAILABLE,
            exit::REFUSED,
            exit::INTERRUPTED,
            exit::TERMINATED,
        ] {
            assert!(help.contains(&format!("\n  {code:<5}")), "{code}");
        }
    }

    #[test]
    fn usage_errors_end_with_two_and_help_with_zero() {
        assert_eq!(code_of(&["weir", "chat"]), 2);
        assert_eq!(
            code_of(&["weir", "subscribe", "general", "--count", "0"]),
            2
        );
        assert_eq!(code_of(&["weir", "serve", "--set", "no-equals-sign"]), 2);
        assert_eq!(code_of(&["weir", "--help"]), 0);
        assert_eq!(code_of(&["weir", "chat", "--user", "ann"]), -1);
    }
}
