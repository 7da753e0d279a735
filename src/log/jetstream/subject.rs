//! Topics as NATS subjects and back.
//!
//! ```text
//!   {prefix}.log.{space}.{name}    a topic's records
//!   {prefix}.trim.{space}.{name}   one message: the position before which its records were dropped
//!   {prefix}.live.{subject}        each of these once more, as the server republishes it
//! ```
//!
//! A name is one token. Bytes other than ASCII letters, digits, `-` and `_` are written `%XX`, so dots, spaces, wildcards
//! and any Unicode come back as they were and no two names share a subject.

use crate::{
    log::{Space, Topic},
    nats::token::{escape, unescape},
};

/// Begins an escaped byte.
const MARK: char = '%';

/// The subjects of one log.
#[derive(Debug, Clone)]
pub(super) struct Subjects {
    prefix: Box<str>,
}

/// What a subject stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// Records of a topic.
    Log(Topic),
    /// Where a topic begins.
    Trim(Topic),
}

impl Subjects {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// What the stream takes.
    pub(super) fn all(&self) -> Vec<String> {
        vec![
            format!("{}.log.>", self.prefix),
            format!("{}.trim.>", self.prefix),
        ]
    }

    /// What the server republishes to, and a node subscribes to.
    pub(super) fn live(&self) -> String {
        format!("{}.live.>", self.prefix)
    }

    pub(super) fn log(&self, topic: &Topic) -> String {
        self.of("log", topic)
    }

    pub(super) fn trim(&self, topic: &Topic) -> String {
        self.of("trim", topic)
    }

    /// The records and the trim positions of every topic in `space`.
    pub(super) fn space(&self, space: Space) -> [String; 2] {
        ["log", "trim"].map(|kind| format!("{}.{kind}.{space}.*", self.prefix))
    }

    fn of(&self, kind: &str, topic: &Topic) -> String {
        let mut subject = format!("{}.{kind}.{}.", self.prefix, topic.space());
        escape(topic.name(), MARK, &mut subject);
        subject
    }

    /// What `subject` stands for, republished or not; none when it is nothing of this log.
    pub(super) fn parse(&self, subject: &str) -> Option<Subject> {
        let rest = subject.strip_prefix(&*self.prefix)?.strip_prefix('.')?;
        let rest = match rest.strip_prefix("live.") {
            Some(republished) => republished.strip_prefix(&*self.prefix)?.strip_prefix('.')?,
            None => rest,
        };
        let (kind, rest) = rest.split_once('.')?;
        let (space, name) = rest.split_once('.')?;
        let topic = Topic::new(space.parse().ok()?, &unescape(name, MARK)?).ok()?;
        match kind {
            "log" => Some(Subject::Log(topic)),
            "trim" => Some(Subject::Trim(topic)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_one_token(subject: &str) -> bool {
        subject.split('.').count() == 4
            && subject
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'))
            && subject.split('.').all(|token| !token.is_empty())
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in "\\PC{0,64}|[.*> %\\x00-\\x20]{0,80}|.{0,60}") {
            let subjects = Subjects::new("weir");
            let Ok(topic) = Topic::new(Space::Room, &name) else { return Ok(()) };
            let log = subjects.log(&topic);
            prop_assert!(is_one_token(&log), "{log}");
            prop_assert_eq!(subjects.parse(&log), Some(Subject::Log(topic.clone())));
            let live = format!("weir.live.{log}");
            prop_assert_eq!(subjects.parse(&live), Some(Subject::Log(topic.clone())));
            let trim = subjects.trim(&topic);
            prop_assert_eq!(subjects.parse(&trim), Some(Subject::Trim(topic)));
        }

        #[test]
        fn no_two_names_share_a_subject(one in "[a%2.E ]{1,6}", other in "[a%2.E ]{1,6}") {
            let subjects = Subjects::new("weir");
            let topic = |name: &str| Topic::new(Space::Room, name);
            if let (Ok(a), Ok(b)) = (topic(&one), topic(&other)) {
                prop_assert_eq!(subjects.log(&a) == subjects.log(&b), one == other);
            }
        }

        #[test]
        fn foreign_subjects_stand_for_nothing(subject in "(weir|live|log|room|\\.|%|%4|x){0,8}") {
            // It must not panic; what it finds has to be what it would write.
            let subjects = Subjects::new("weir");
            if let Some(Subject::Log(topic)) = subjects.parse(&subject) {
                let plain = subject.strip_prefix("weir.live.").unwrap_or(&subject);
                prop_assert_eq!(subjects.parse(plain), Some(Subject::Log(topic)));
            }
        }
    }

    #[test]
    fn the_longest_name_fits() {
        let topic = Topic::new(Space::Notification, &"é".repeat(128)).unwrap();
        assert!(Subjects::new("weir").log(&topic).len() < 1024);
    }
}
