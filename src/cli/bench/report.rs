//! How results are printed: plain tables for people, one JSON object for programs.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::process::Machine;

/// Whether a result is as hoped for; coloured on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As hoped for.
    Good,
    /// Not.
    Bad,
}

/// Columns of text: the first one to the left, all others to the right.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(super) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self {
            rows: vec![headings.map(str::to_owned).to_vec()],
        }
    }

    /// Appends a row.
    pub(super) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(str::to_owned).to_vec());
    }

    /// The table, every line ended.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            out += &line(row, &widths);
            if index == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                out += &line(&rule, &widths);
            }
        }
        out
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let pad = |(index, (cell, width)): (usize, (&String, &usize))| match index {
        0 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    };
    let padded: Vec<String> = cells.iter().zip(widths).enumerate().map(pad).collect();
    format!("{}\n", padded.join("  ").trim_end())
}

/// Writes a result and the machine it was measured on.
pub(super) fn print(text: &str) -> Result<()> {
    let machine = Machine::this();
    let (version, kernel) = (machine.weir_version, machine.kernel);
    let (cores, model) = (machine.cores, machine.cpu_model);
    write_out(&format!(
        "{text}\nweir {version} on {cores} × {model}, Linux {kernel}\n"
    ))
}

/// Writes a result as one JSON object, with its arguments and the machine it was measured on.
pub(super) fn print_json(name: &str, args: &impl Serialize, result: &impl Serialize) -> Result<()> {
    let object = serde_json::json!({
        "benchmark": name,
        "machine": Machine::this(),
        "arguments": args,
        "result": result,
    });
    write_out(&format!("{object}\n"))
}

/// A reader that went away is no failure.
fn write_out(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("the result cannot be written")
        }
        _ => Ok(()),
    }
}

/// Tells somebody who watches what is going on.
pub(super) fn progress(text: &str) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        // Nobody reads it if it cannot be written.
        let _ = writeln!(err, "{text} ...");
    }
}

/// The text in the verdict's colour, if anybody sees colours.
pub(super) fn coloured(text: &str, verdict: Verdict) -> String {
    let colour = match verdict {
        Verdict::Good => 32,
        Verdict::Bad => 31,
    };
    if io::stdout().is_terminal() {
        format!("\u{1b}[{colour}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// A whole number with its thousands apart.
pub(super) fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        for (value, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1 000"),
            (1234567.8, "1 234 568"),
        ] {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["what", "µs"]);
        table.row(["a", "1.25"]);
        table.row(["longer", "10"]);
        assert_eq!(
            table.render(),
            "what      µs\n------  ----\na       1.25\nlonger    10\n"
        );
    }
}
