//! How keys are declared: a section is a struct whose fields carry their text, default and range in one place.

use std::{
    net::SocketAddr,
    ops::{Bound, RangeBounds},
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;

use super::{Config, size};

/// What can be said about one key or section without a value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The dotted key, `log.retention.room.age`; of a section, `log.retention`.
    pub key: String,
    /// What it means.
    pub about: String,
    /// What a value looks like and its range; `None` for a section.
    pub allowed: Option<String>,
}

impl Entry {
    /// The environment variable of this key.
    #[must_use]
    pub fn variable(&self) -> String {
        super::source::variable(&self.key)
    }
}

/// Every section and key, in the order in which they are declared.
#[must_use]
pub fn entries() -> Vec<Entry> {
    let mut all = Vec::new();
    Config::describe("", "", None, &mut all);
    all
}

/// A rule that a value breaks: the first key is to blame, the others take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) keys: Vec<String>,
    /// What is allowed, where it is not just the key's form and range.
    pub(super) allowed: Option<String>,
}

impl Violation {
    pub(super) fn new(keys: &[&str], allowed: impl Into<String>) -> Self {
        Self {
            keys: keys.iter().map(ToString::to_string).collect(),
            allowed: Some(allowed.into()),
        }
    }

    pub(super) fn range(key: String) -> Self {
        Self {
            keys: vec![key],
            allowed: None,
        }
    }
}

/// A section, or the type of a single value.
pub(super) trait Node {
    /// Appends what there is to say about this node; `range` narrows what its type allows.
    fn describe(key: &str, about: &str, range: Option<String>, into: &mut Vec<Entry>);

    /// Appends the keys whose values are outside their range.
    fn check(&self, _key: &str, _into: &mut Vec<Violation>) {}
}

/// A type whose values have an order, so that a key can have a range.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for Duration {
    fn shown(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl Shown for ByteSize {
    fn shown(&self) -> String {
        size::exact(*self)
    }
}

macro_rules! shown {
    ($($number:ty),+) => { $(impl Shown for $number { fn shown(&self) -> String { self.to_string() } })+ };
}
shown!(usize, u32, f64);

/// A range in words.
pub(super) fn range<T: Shown>(range: &impl RangeBounds<T>) -> Option<String> {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(low), Bound::Included(high)) => {
            Some(format!("{} to {}", low.shown(), high.shown()))
        }
        (Bound::Included(low), Bound::Unbounded) => Some(format!("at least {}", low.shown())),
        _ => None,
    }
}

/// `name` below `parent`.
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

/// The lines of a doc comment as plain text.
pub(super) fn text(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join("\n")
}

pub(super) fn describe_value(
    key: &str,
    about: &str,
    form: &str,
    range: Option<String>,
    into: &mut Vec<Entry>,
) {
    let allowed = range.map_or_else(|| form.to_owned(), |range| format!("{form} ({range})"));
    into.push(Entry {
        key: key.to_owned(),
        about: about.to_owned(),
        allowed: Some(allowed),
    });
}

/// Says what the values of a type look like.
macro_rules! value {
    ($($type:ty => $form:expr;)+) => { $(
        impl $crate::config::section::Node for $type {
            fn describe(
                key: &str,
                about: &str,
                range: Option<String>,
                into: &mut Vec<$crate::config::section::Entry>,
            ) {
                $crate::config::section::describe_value(key, about, $form, range, into);
            }
        }
    )+ };
}

value! {
    bool => "true or false";
    usize => "a whole number";
    u32 => "a whole number";
    f64 => "a number";
    String => "a text";
    PathBuf => "a path";
    SocketAddr => "an address such as 127.0.0.1:8080";
    Vec<SocketAddr> => "a list of addresses such as 127.0.0.1:8080";
    Vec<String> => "a list of texts";
    Duration => "a duration such as 500ms or 10m";
    ByteSize => "a size such as 64KiB or 10GiB";
}

/// Declares a section: `/// text`, `pub key: Type = default, in range;`. A field's type may be a section itself.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $(#[derive($extra:ident)])?
        pub struct $name:ident {
            $(
                $(#[doc = $text:literal])+
                $(#[serde($($serde:tt)*)])?
                pub $field:ident: $type:ty = $default:expr $(, in $range:expr)?;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, $($extra,)? PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $text])+
                $(#[serde($($serde)*)])?
                pub $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::section::Node for $name {
            fn describe(
                key: &str,
                about: &str,
                _range: Option<String>,
                into: &mut Vec<$crate::config::section::Entry>,
            ) {
                use $crate::config::section::{Entry, Node, join, text};
                if !key.is_empty() {
                    into.push(Entry { key: key.to_owned(), about: about.to_owned(), allowed: None });
                }
                $({
                    #[allow(unused_mut, unused_assignments)]
                    let mut range: Option<String> = None;
                    $(range = $crate::config::section::range::<$type>(&$range);)?
                    <$type as Node>::describe(&join(key, stringify!($field)), &text(&[$($text),+]), range, into);
                })+
            }

            fn check(&self, key: &str, into: &mut Vec<$crate::config::section::Violation>) {
                use $crate::config::section::{Node, join};
                $(
                    $(if !std::ops::RangeBounds::<$type>::contains(&$range, &self.$field) {
                        into.push($crate::config::section::Violation::range(join(key, stringify!($field))));
                    })?
                    Node::check(&self.$field, &join(key, stringify!($field)), into);
                )+
            }
        }
    };
}

/// Declares an enumeration of names: `/// text`, `Variant = "name"`.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        pub enum $name:ident {
            $($(#[doc = $text:literal])+ $variant:ident = $value:literal,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[doc = $text])+ #[serde(rename = $value)] $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $value,)+
                })
            }
        }

        impl $crate::config::section::Node for $name {
            fn describe(
                key: &str,
                about: &str,
                range: Option<String>,
                into: &mut Vec<$crate::config::section::Entry>,
            ) {
                let form = format!("one of {}", [$($value),+].join(", "));
                $crate::config::section::describe_value(key, about, &form, range, into);
            }
        }
    };
}

pub(super) use {choice, section};
