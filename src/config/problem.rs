//! What is wrong with the settings, one line each.

use std::fmt;

/// One mistake: where it stands, which key and value, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the value came from: a file's name, a variable, a flag, `default`.
    pub origin: String,
    /// The dotted key; empty where a whole source cannot be read.
    pub key: String,
    /// The value as it was given, secrets redacted.
    pub given: Option<String>,
    /// What is allowed instead.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if let Some(given) = &self.given {
                write!(f, " = {given}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.expected)
    }
}

/// Everything that is wrong with the settings, in the order of the sources; one line each when displayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}
