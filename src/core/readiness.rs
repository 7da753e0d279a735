//! Whether the instance can serve, and if not, why.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// What can keep an instance from serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// The log is being opened.
    Recovering,
    /// The log cannot append.
    Log,
    /// Published records are not delivered.
    Canary,
    /// The instance is asked to stop.
    Draining,
}

impl Condition {
    /// Its name in `/readyz`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recovering => "recovering",
            Self::Log => "log",
            Self::Canary => "canary",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Ready while no condition holds. A cheap handle; all clones are one.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<State>);

#[derive(Debug)]
struct State {
    conditions: Mutex<BTreeMap<Condition, Cow<'static, str>>>,
    ready: watch::Sender<bool>,
}

impl Readiness {
    /// Not ready, for [`Condition::Recovering`] holds: clear it once recovery is done.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(State {
            conditions: Mutex::new(BTreeMap::from([(Condition::Recovering, Cow::default())])),
            ready: watch::Sender::new(false),
        }))
    }

    /// `condition` holds; `detail`, which may be empty, replaces what was said before.
    pub fn fail(&self, condition: Condition, detail: impl Into<Cow<'static, str>>) {
        let mut conditions = self.conditions();
        conditions.insert(condition, detail.into());
        self.publish(&conditions);
    }

    /// `condition` does not hold.
    pub fn clear(&self, condition: Condition) {
        let mut conditions = self.conditions();
        conditions.remove(&condition);
        self.publish(&conditions);
    }

    /// No condition holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Whether `condition` holds.
    #[must_use]
    pub fn holds(&self, condition: Condition) -> bool {
        self.conditions().contains_key(&condition)
    }

    /// What holds, a line each: `draining`, `log: the disk is full`. Empty when ready.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let line = |(condition, detail): (&Condition, &Cow<'static, str>)| match &**detail {
            "" => condition.to_string(),
            detail => format!("{condition}: {detail}"),
        };
        self.conditions().iter().map(line).collect()
    }

    /// Follows [`Self::is_ready`]; wakes on changes only.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }

    fn conditions(&self) -> MutexGuard<'_, BTreeMap<Condition, Cow<'static, str>>> {
        let held = self.0.conditions.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// Called with the conditions locked, so that watchers see changes in order.
    fn publish(&self, conditions: &BTreeMap<Condition, Cow<'static, str>>) {
        let now = conditions.is_empty();
        self.0
            .ready
            .send_if_modified(|ready| std::mem::replace(ready, now) != now);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_until_recovery_is_done() {
        let readiness = Readiness::new();
        assert_eq!(readiness.reasons(), ["recovering"]);
        assert!(readiness.holds(Condition::Recovering) && !readiness.holds(Condition::Draining));
        assert!(!readiness.is_ready());
        readiness.clear(Condition::Recovering);
        assert!(readiness.is_ready());
        assert!(readiness.reasons().is_empty());
    }

    #[test]
    fn every_reason_is_named_and_the_latest_detail_stands() {
        let readiness = Readiness::new();
        readiness.clear(Condition::Recovering);
        readiness.fail(Condition::Log, "unreachable");
        readiness.fail(Condition::Log, "disk is full");
        readiness.fail(Condition::Draining, "");
        readiness.fail(Condition::Canary, format!("no delivery for {} s", 6));
        let reasons = [
            "log: disk is full",
            "canary: no delivery for 6 s",
            "draining",
        ];
        assert_eq!(readiness.reasons(), reasons);
    }

    #[test]
    fn watchers_wake_on_changes_only() {
        let readiness = Readiness::new();
        let mut watch = readiness.clone().watch();
        readiness.fail(Condition::Canary, "late");
        readiness.clear(Condition::Recovering);
        assert!(!watch.has_changed().unwrap());
        readiness.clear(Condition::Canary);
        assert!(watch.has_changed().unwrap());
        assert!(*watch.borrow_and_update());
        readiness.clear(Condition::Canary);
        assert!(!watch.has_changed().unwrap());
    }
}
