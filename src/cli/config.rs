//! `weir config`: what is in effect, what is wrong, and the example file.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use super::{Failure, exit};
use crate::config::{Config, Sources, load, to_markdown, to_toml};

/// Where settings come from beside the environment; every command that reads settings has these.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SettingsArgs {
    /// The settings file; without it weir.toml in the working directory, if there is one.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Sets one key, over file and environment; may be repeated. Lists are separated by commas.
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = setting, global = true)]
    pub set: Vec<(String, String)>,
}

impl SettingsArgs {
    /// These arguments and the environment of the process.
    #[must_use]
    pub fn sources(self) -> Sources {
        Sources::of_process(self.config, self.set)
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("write section.key=value, as server.instance_id=node-1".to_owned()),
    }
}

const AFTER_HELP: &str = "\
Examples:
  weir config example > weir.toml       a file to start from: every key with its meaning, range and default
  weir config check --config weir.toml  everything that is wrong with it
  weir config reference > settings.md   the same as a page to read
  weir config print                     what is in effect: defaults, file, environment and --set together";

/// Shows and checks settings.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
enum Action {
    /// Print the settings in effect as TOML, secrets redacted.
    Print,
    /// Report everything that is wrong with the settings.
    Check,
    /// Print an example file: every key with its meaning, range and default.
    Example,
    /// Print the same as a page of Markdown.
    Reference,
}

/// Runs the command.
///
/// # Errors
/// The settings cannot be used; every problem was said on standard error.
pub fn run(args: Args) -> Result<(), Failure> {
    let sources = args.settings.sources();
    match execute(args.action, &sources, &mut io::stdout(), &mut io::stderr())? {
        true => Ok(()),
        false => Err(Failure::silent(exit::FAILED)),
    }
}

/// Whether the settings can be used.
fn execute(
    action: Action,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<bool> {
    match action {
        Action::Example => return said(out, &to_toml(&Config::default(), true)),
        Action::Reference => return said(out, &to_markdown()),
        Action::Print | Action::Check => {}
    }
    let loaded = match load(sources) {
        Ok(loaded) => loaded,
        Err(problems) => {
            writeln!(err, "{problems}")?;
            return Ok(false);
        }
    };
    match action {
        Action::Check => writeln!(out, "The settings are valid ({}).", loaded.sources)?,
        Action::Print | Action::Example | Action::Reference => {
            write!(out, "{}", to_toml(&loaded.config, false))?;
        }
    }
    out.flush()?;
    Ok(true)
}

fn said(out: &mut dyn Write, text: &str) -> io::Result<bool> {
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    /// Exit code, standard output and standard error of `weir config …` in an empty directory.
    fn config(words: &[&str]) -> (bool, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let line = ["config"].iter().chain(words);
        let args = <Cli as clap::Parser>::try_parse_from(line).unwrap().args;
        let sources = Sources {
            dir: dir.path().to_owned(),
            env: Vec::new(),
            ..args.settings.sources()
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = execute(args.action, &sources, &mut out, &mut err).unwrap();
        (
            code,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    #[test]
    fn print_shows_the_effective_settings() {
        let (code, out, err) = config(&["print", "--set", "server.instance_id=node-1"]);
        assert_eq!((code, err.as_str()), (true, ""));
        assert!(out.contains("instance_id = \"node-1\"\n"), "{out}");
        assert!(!out.contains('#'), "{out}");
    }

    #[test]
    fn check_reports_every_problem_on_standard_error() {
        let (code, out, err) = config(&["check", "--set", "log.queue=0", "--set", "a.b=c"]);
        assert_eq!((code, out.as_str()), (false, ""));
        assert_eq!(err.lines().count(), 2, "{err}");
        let (code, out, _) = config(&["check", "--set", "hub.tail=1MiB"]);
        assert_eq!(
            (code, out.as_str()),
            (true, "The settings are valid (defaults, 1 flag).\n")
        );
    }

    #[test]
    fn an_override_without_a_value_is_a_usage_error() {
        assert!(
            <Cli as clap::Parser>::try_parse_from(["config", "check", "--set", "server.http"])
                .is_err()
        );
    }
}
