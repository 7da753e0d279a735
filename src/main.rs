//! The `weir` binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use tokio::runtime::Runtime;
use weir::cli::{self, Cli, Failure};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli).map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS),
        Err(error) => {
            // Help that nobody reads is no failure.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(cli::exit::USAGE))
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(cli::run(cli));
    runtime.shutdown_background();
    outcome
}
