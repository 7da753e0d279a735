//! What the benchmark can be asked.

use std::{path::PathBuf, time::Duration};

pub(crate) const HELP: &str = "\
Options:
  --records N     records that are written in batches and read back, and that a killed process leaves behind [1m]
  --size N        bytes of payload [64]
  --seconds N     how long waiting writers write, in each round [3]
  --rounds N      how often the waiting writers' sides take turns [2]
  --topics N      measure N topics of one record instead [0]
  --dir PATH      directory for the logs, on the disk that is measured [the system's for temporary files]

Numbers take k and m: 10m is ten million.";

pub(crate) struct Options {
    pub(crate) records: u64,
    pub(crate) size: usize,
    pub(crate) duration: Duration,
    pub(crate) rounds: u64,
    pub(crate) topics: u64,
    parent: PathBuf,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut options = Self {
            records: 1_000_000,
            size: 64,
            duration: Duration::from_secs(3),
            rounds: 2,
            topics: 0,
            parent: std::env::temp_dir(),
        };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            // Cargo adds it.
            if word == "--bench" {
                continue;
            }
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            match word {
                "--records" => options.records = number(value)?,
                "--size" => options.size = usize::try_from(number(value)?).unwrap(),
                "--seconds" => options.duration = Duration::from_secs(number(value)?),
                "--rounds" => options.rounds = number(value)?,
                "--topics" => options.topics = number(value)?,
                "--dir" => options.parent = value.into(),
                _ => return Err(format!("{word} is no option")),
            }
        }
        Ok(options)
    }

    /// A directory of this run.
    pub(crate) fn dir(&self) -> PathBuf {
        let dir = self
            .parent
            .join(format!("weir-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
}

fn number(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1000),
        Some(b'm') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no number"))?;
    Ok(number * unit)
}
