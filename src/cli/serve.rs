//! `weir serve`: the server.

use std::path::PathBuf;

use clap::Args;

use super::Failure;

const AFTER_HELP: &str = "\
Examples:
  weir serve
  weir serve --config weir.toml
  weir serve --set log.dir=/var/lib/weir --set server.grpc=0.0.0.0:50051
  WEIR__LOG__ENGINE=memory weir serve

Every key can be set in the file, as WEIR__SECTION__KEY in the environment, or with --set; later ones win.";

/// Serve until SIGTERM or Ctrl-C, then drain.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One setting, stronger than file and environment; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
}

/// Serves until it is told to stop.
///
/// # Errors
/// The configuration is wrong, a port is taken, or the log failed.
pub async fn run(_args: ServeArgs) -> Result<(), Failure> {
    Err(Failure::failed("this build has no server"))
}

/// Splits `section.key=value`; the value may contain further equals signs.
fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected SECTION.KEY=VALUE")?;
    match key.split_once('.') {
        Some((section, name)) if !section.is_empty() && !name.is_empty() => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("`{key}` is not of the form SECTION.KEY")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_split_at_its_first_equals_sign() {
        assert_eq!(setting("a.b=c=d"), Ok(("a.b".into(), "c=d".into())));
        assert_eq!(setting("a.b="), Ok(("a.b".into(), String::new())));
        for wrong in ["", "a.b", "ab=c", ".b=c", "a.=c"] {
            assert!(setting(wrong).is_err(), "{wrong}");
        }
    }
}
