//! The sources of settings, each flattened to dotted keys that remember where they came from.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ::config::{File, FileFormat, Map, Source as _, Value, ValueKind};

use super::{problem::Problem, render::redact};

/// The file that is used when it exists and none is named.
const FILE: &str = "weir.toml";
/// What the environment variables of settings begin with.
const PREFIX: &str = "WEIR__";

/// Where settings are looked for, beside the defaults; later ones win.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A file that has to exist. Without it, `weir.toml` in `dir` is used if it is there.
    pub file: Option<PathBuf>,
    /// The working directory; empty: the process's own.
    pub dir: PathBuf,
    /// The environment; only names that begin with `WEIR__` count.
    pub env: Vec<(String, String)>,
    /// `section.key` and its value, from the command line.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The sources of this process: its working directory and its environment.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let env = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        Self {
            file,
            dir: PathBuf::new(),
            env,
            flags,
        }
    }
}

/// The environment variable of `key`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// Which kind of source a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A file of this name.
    File(String),
    /// An environment variable.
    Variable(String),
    /// `--set`.
    Flag,
}

impl Origin {
    pub(super) fn shown(&self) -> String {
        match self {
            Self::File(name) => name.clone(),
            Self::Variable(name) => format!("environment {name}"),
            Self::Flag => "--set".to_owned(),
        }
    }

    /// The name by which this kind of source calls `key`.
    pub(super) fn spelled(&self, key: &str) -> String {
        match self {
            Self::Variable(_) => variable(key),
            Self::File(_) | Self::Flag => key.to_owned(),
        }
    }
}

/// One value that somebody gave.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) key: String,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Given {
    pub(super) fn problem(&self, expected: impl Into<String>) -> Problem {
        Problem {
            origin: self.origin.shown(),
            key: self.key.clone(),
            given: Some(shown(&self.value.kind)),
            expected: expected.into(),
        }
    }
}

/// Everything given in one source.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// How the start-up line calls it; `None` when there is nothing to say.
    pub(super) name: Option<String>,
    pub(super) given: Vec<Given>,
}

/// The file's layer, empty where there is no file.
pub(super) fn file(sources: &Sources) -> Result<Layer, Problem> {
    let path = sources
        .dir
        .join(sources.file.as_deref().unwrap_or_else(|| Path::new(FILE)));
    let name = sources
        .file
        .as_ref()
        .map_or_else(|| FILE.to_owned(), |path| path.display().to_string());
    let unreadable = |expected: String| Problem {
        origin: name.clone(),
        key: String::new(),
        given: None,
        expected,
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && sources.file.is_none() => {
            return Ok(Layer::default());
        }
        Err(error) => return Err(unreadable(format!("cannot be read: {error}"))),
    };
    let tree = File::from_str(&text, FileFormat::Toml)
        .collect()
        .map_err(|error| unreadable(error.to_string().trim_end().to_owned()))?;
    let mut given = Vec::new();
    flatten("", tree, &Origin::File(name.clone()), &mut given);
    given.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Layer {
        name: Some(name),
        given,
    })
}

fn flatten(parent: &str, tree: Map<String, Value>, origin: &Origin, into: &mut Vec<Given>) {
    for (name, value) in tree {
        let key = super::section::join(parent, &name);
        match value.kind {
            ValueKind::Table(table) if !table.is_empty() => flatten(&key, table, origin, into),
            _ => into.push(Given {
                key,
                value,
                origin: origin.clone(),
            }),
        }
    }
}

/// The layer of the environment.
pub(super) fn environment(sources: &Sources) -> Layer {
    let mut given: Vec<_> = sources
        .env
        .iter()
        .filter_map(|(name, text)| {
            let key = name.strip_prefix(PREFIX)?.to_lowercase().replace("__", ".");
            Some(Given {
                key,
                value: Value::new(None, text.as_str()),
                origin: Origin::Variable(name.clone()),
            })
        })
        .collect();
    given.sort_by(|a, b| a.key.cmp(&b.key));
    Layer {
        name: count(given.len(), "variable"),
        given,
    }
}

/// The layer of the command line.
pub(super) fn flags(sources: &Sources) -> Layer {
    let given: Vec<_> = sources
        .flags
        .iter()
        .map(|(key, text)| Given {
            key: key.clone(),
            value: Value::new(None, text.as_str()),
            origin: Origin::Flag,
        })
        .collect();
    Layer {
        name: count(given.len(), "flag"),
        given,
    }
}

fn count(number: usize, noun: &str) -> Option<String> {
    match number {
        0 => None,
        1 => Some(format!("1 {noun}")),
        _ => Some(format!("{number} {noun}s")),
    }
}

/// A value as an operator would write it, secrets redacted.
pub(super) fn shown(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) => format!("{:?}", redact(text)),
        ValueKind::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| shown(&item.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Table(_) => "a table".to_owned(),
        other => other.to_string(),
    }
}
