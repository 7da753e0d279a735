//! Settings back to TOML: what is in effect, and the example file.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Config,
    section::{Entry, entries, join},
};

const HEAD: &str = "\
# Weir's settings: every key with its default. What is left out has that default.
#
# Later wins: defaults, this file (weir.toml in the working directory, or --config FILE), environment variables,
# --set section.key=value. In a variable, a list is separated by commas. `weir config check` reports every mistake.
";

/// The settings as TOML, secrets redacted; `commented` adds what each key means, what it allows and its variable.
#[must_use]
pub fn to_toml(config: &Config, commented: bool) -> String {
    let values = values(config);
    let mut text = if commented {
        HEAD.to_owned()
    } else {
        String::new()
    };
    let mut open = String::new();
    let mut titles = Vec::new();
    for entry in entries() {
        let (Some(allowed), Some(value)) = (&entry.allowed, values.get(&entry.key)) else {
            titles.push(entry.about);
            continue;
        };
        let (section, name) = entry.key.rsplit_once('.').unwrap_or(("", &entry.key));
        let titles = std::mem::take(&mut titles);
        if section != open {
            section.clone_into(&mut open);
            text.push_str(if text.is_empty() { "" } else { "\n" });
            comment(&mut text, titles.iter().filter(|_| commented));
            let _ = writeln!(text, "[{section}]");
        }
        if commented {
            comment(&mut text, [&entry.about, &reference(&entry, allowed)]);
        }
        let _ = writeln!(text, "{name} = {}", shown(value));
    }
    text
}

const REFERENCE_HEAD: &str = "\
# Settings

Every setting, from the code: `weir config reference` prints this page. Later wins: defaults, the file (`weir.toml` in the
working directory, or `--config FILE`), environment variables, `--set section.key=value`. The variable of a key is its name
in capitals behind `WEIR__`, with two underscores for each dot: `log.retention.room.age` is
`WEIR__LOG__RETENTION__ROOM__AGE`. In a variable, a list is separated by commas. `weir config check` reports every mistake,
`weir config print` shows what is in effect.
";

/// Every setting as a page of Markdown: a table for each section with default, what is allowed, and meaning.
#[must_use]
pub fn to_markdown() -> String {
    let values = values(&Config::default());
    let mut text = REFERENCE_HEAD.to_owned();
    let mut open = String::new();
    let mut about = String::new();
    for entry in entries() {
        let (Some(allowed), Some(value)) = (&entry.allowed, values.get(&entry.key)) else {
            about = entry.about;
            continue;
        };
        let (section, name) = entry.key.rsplit_once('.').unwrap_or(("", &entry.key));
        if section != open {
            section.clone_into(&mut open);
            let _ = write!(
                text,
                "\n## `[{section}]`\n\n{about}\n\n| key | default | allowed | meaning |\n|---|---|---|---|\n"
            );
        }
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let value = cell(&shown(value));
        let (allowed, about) = (cell(allowed), cell(&entry.about));
        let _ = writeln!(text, "| `{name}` | `{value}` | {allowed} | {about} |");
    }
    text
}

/// What the comment says beside the key's meaning.
fn reference(entry: &Entry, allowed: &str) -> String {
    let mut letters = allowed.chars();
    let allowed: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(letters)
        .collect();
    format!("{allowed}. {}", entry.variable())
}

fn comment<'a>(text: &mut String, paragraphs: impl IntoIterator<Item = &'a String>) {
    for line in paragraphs
        .into_iter()
        .flat_map(|paragraph| paragraph.lines())
    {
        let _ = writeln!(text, "# {line}");
    }
}

/// Every value by its dotted key, as TOML has it.
pub(super) fn values(config: &Config) -> BTreeMap<String, toml::Value> {
    let mut all = BTreeMap::new();
    // A struct of plain values always is a table.
    flatten(
        "",
        toml::Table::try_from(config).unwrap_or_default(),
        &mut all,
    );
    all
}

fn flatten(parent: &str, table: toml::Table, into: &mut BTreeMap<String, toml::Value>) {
    for (name, value) in table {
        let key = join(parent, &name);
        match value {
            toml::Value::Table(table) => flatten(&key, table, into),
            value => drop(into.insert(key, value)),
        }
    }
}

/// A value as TOML on one line, secrets redacted.
pub(super) fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => toml::Value::String(redact(text)).to_string(),
        toml::Value::Array(items) => format!(
            "[{}]",
            items.iter().map(shown).collect::<Vec<_>>().join(", ")
        ),
        other => other.to_string(),
    }
}

/// The text without the user and password of a URL in it.
pub(crate) fn redact(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => text.to_owned(),
    }
}
