//! Layers the sources and reports everything that is wrong with them at once.

use std::{collections::BTreeMap, mem};

use ::config::{Config as Tree, ConfigError, Value, ValueKind};

use super::{
    Config, Problem, Problems, Sources,
    render::values,
    section::{Entry, Violation, entries},
    source::{self, Given, Layer},
};

/// The settings and where they came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The effective settings.
    pub config: Config,
    /// For the start-up line: `defaults, weir.toml, 2 variables`.
    pub sources: String,
}

/// Layers defaults, file, environment and flags, later ones winning.
///
/// # Errors
/// Every problem of every source: unreadable files, unknown keys, values of the wrong type or out of range, and values that
/// do not fit each other.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let file = source::file(sources).unwrap_or_else(|problem| {
        problems.push(problem);
        Layer::default()
    });
    let layers = [file, source::environment(sources), source::flags(sources)];
    let names: Vec<_> = layers
        .iter()
        .filter_map(|layer| layer.name.clone())
        .collect();

    let keys = Keys::new();
    let mut effective = BTreeMap::new();
    for given in layers.into_iter().flat_map(|layer| layer.given) {
        match keys.typed(given) {
            Ok(given) => drop(effective.insert(given.key.clone(), given)),
            Err(problem) => problems.push(*problem),
        }
    }
    let config = build(effective.values()).unwrap_or_else(|error| {
        problems.push(whole(&error));
        Config::default()
    });
    problems.extend(keys.violations(&config, &effective, &problems));
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let sources = std::iter::once("defaults".to_owned())
        .chain(names)
        .collect::<Vec<_>>();
    Ok(Loaded {
        config,
        sources: sources.join(", "),
    })
}

impl Config {
    /// Checks ranges and the rules between keys, for settings that were not [`load`]ed.
    ///
    /// # Errors
    /// Every value that is not allowed.
    pub fn validate(&self) -> Result<(), Problems> {
        let problems = Keys::new().violations(self, &BTreeMap::new(), &[]);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems(problems))
        }
    }
}

fn build<'a>(given: impl IntoIterator<Item = &'a Given>) -> Result<Config, ConfigError> {
    let mut builder = Tree::builder().add_source(Tree::try_from(&Config::default())?);
    for Given { key, value, .. } in given {
        builder = builder.set_override(key, value.clone())?;
    }
    builder.build()?.try_deserialize()
}

fn whole(error: &ConfigError) -> Problem {
    Problem {
        origin: "settings".to_owned(),
        key: String::new(),
        given: None,
        expected: error.to_string(),
    }
}

/// What is known about every key.
struct Keys {
    entries: BTreeMap<String, Entry>,
    defaults: BTreeMap<String, toml::Value>,
}

impl Keys {
    fn new() -> Self {
        Self {
            entries: entries()
                .into_iter()
                .map(|entry| (entry.key.clone(), entry))
                .collect(),
            defaults: values(&Config::default()),
        }
    }

    /// The value in its key's own type, if the key exists and the value is one.
    fn typed(&self, mut given: Given) -> Result<Given, Box<Problem>> {
        let Some(entry) = self.entries.get(&given.key) else {
            return Err(Box::new(given.problem(self.unknown(&given))));
        };
        let Some(allowed) = &entry.allowed else {
            return Err(Box::new(
                given.problem("is a section; set the keys below it"),
            ));
        };
        let wrong = |given: &Given| Box::new(given.problem(format!("must be {allowed}")));
        let value = mem::take(&mut given.value.kind);
        let Some(fitted) = self.fit(&given, &value) else {
            given.value.kind = value;
            return Err(wrong(&given));
        };
        given.value = Value::new(None, fitted);
        match build([&given]) {
            Ok(_) => Ok(given),
            Err(_) => Err(wrong(&given)),
        }
    }

    /// Turns the text of variables and flags into what the default is, and refuses other kinds of values.
    fn fit(&self, given: &Given, value: &ValueKind) -> Option<ValueKind> {
        let typed = matches!(given.origin, source::Origin::File(_));
        match (self.defaults.get(&given.key)?, value) {
            (toml::Value::String(_), ValueKind::String(_)) => Some(value.clone()),
            (toml::Value::Boolean(_), ValueKind::Boolean(_)) => Some(value.clone()),
            (toml::Value::Integer(_), ValueKind::I64(_)) => Some(value.clone()),
            (toml::Value::Float(_), ValueKind::Float(_)) => Some(value.clone()),
            #[expect(
                clippy::cast_precision_loss,
                reason = "a whole number meant as a fraction is small"
            )]
            (toml::Value::Float(_), ValueKind::I64(number)) => {
                Some(ValueKind::Float(*number as f64))
            }
            (toml::Value::Array(_), ValueKind::Array(items)) => items
                .iter()
                .all(|item| matches!(item.kind, ValueKind::String(_)))
                .then(|| value.clone()),
            (default, ValueKind::String(text)) if !typed => parse(default, text.trim()),
            _ => None,
        }
    }

    /// Says that there is no such key, and which one is closest.
    fn unknown(&self, given: &Given) -> String {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let distance = |entry: &&Entry| {
            let whole = strsim::osa_distance(&entry.key, &given.key);
            let moved = if last(&entry.key) == last(&given.key) {
                2
            } else {
                usize::MAX
            };
            whole.min(moved)
        };
        let closest = self
            .entries
            .values()
            .filter(|entry| entry.allowed.is_some())
            .min_by_key(distance);
        match closest.filter(|entry| distance(entry) <= 3) {
            Some(entry) => format!(
                "unknown key; did you mean {}?",
                given.origin.spelled(&entry.key)
            ),
            None => "unknown key; `weir config print` shows all".to_owned(),
        }
    }

    /// What is out of range or does not fit together, leaving out keys that already have a problem.
    fn violations(
        &self,
        config: &Config,
        given: &BTreeMap<String, Given>,
        known: &[Problem],
    ) -> Vec<Problem> {
        let fresh = |violation: &Violation| {
            let keys = &violation.keys;
            !known.iter().any(|problem| keys.contains(&problem.key))
        };
        let effective = values(config);
        super::check::all(config)
            .into_iter()
            .filter(fresh)
            .filter_map(|violation| self.problem(violation, given, &effective))
            .collect()
    }

    fn problem(
        &self,
        violation: Violation,
        given: &BTreeMap<String, Given>,
        effective: &BTreeMap<String, toml::Value>,
    ) -> Option<Problem> {
        // Blame a value that somebody gave before one that was always there.
        let somebodys = violation.keys.iter().find_map(|key| given.get(key));
        let key = somebodys.map_or(violation.keys.first()?, |given| &given.key);
        let allowed = || self.entries.get(key)?.allowed.clone();
        let expected = format!("must be {}", violation.allowed.clone().or_else(allowed)?);
        Some(somebodys.map_or_else(
            || Problem {
                origin: "default".to_owned(),
                key: key.clone(),
                given: effective.get(key).map(super::render::shown),
                expected: expected.clone(),
            },
            |given| given.problem(expected.clone()),
        ))
    }
}

/// A value of the default's kind out of plain text; lists are separated by commas.
fn parse(default: &toml::Value, text: &str) -> Option<ValueKind> {
    match default {
        toml::Value::Boolean(_) => text.parse().ok().map(ValueKind::Boolean),
        toml::Value::Integer(_) => text.parse().ok().map(ValueKind::I64),
        toml::Value::Float(_) => text.parse().ok().map(ValueKind::Float),
        toml::Value::Array(_) => Some(ValueKind::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::new(None, item))
                .collect(),
        )),
        _ => None,
    }
}
