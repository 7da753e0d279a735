//! The metrics an engine sets, resolved once so that the commit path looks no label up.

use prometheus::{IntCounter, IntGauge};

use super::{Health, Space};
use crate::telemetry::Metrics;

/// Handles to an engine's metrics.
#[derive(Debug, Clone)]
pub(super) struct Meters {
    pub(super) metrics: Metrics,
    spaces: Vec<SpaceMeters>,
    states: Vec<(&'static str, IntGauge)>,
}

#[derive(Debug, Clone)]
struct SpaceMeters {
    space: Space,
    appended: IntCounter,
    appended_bytes: IntCounter,
    trimmed: IntCounter,
}

impl Meters {
    pub(super) fn new(metrics: Metrics) -> Self {
        let of = |space: Space| SpaceMeters {
            space,
            appended: metrics.appended.with_label_values(&[space.as_str()]),
            appended_bytes: metrics.appended_bytes.with_label_values(&[space.as_str()]),
            trimmed: metrics.trimmed.with_label_values(&[space.as_str()]),
        };
        let states = ["ready", "full", "unavailable", "failed", "closed"]
            .map(|state| (state, metrics.log_health.with_label_values(&[state])));
        Self {
            spaces: Space::ALL.into_iter().map(of).collect(),
            states: states.into(),
            metrics,
        }
    }

    fn space(&self, space: Space) -> Option<&SpaceMeters> {
        self.spaces.iter().find(|meters| meters.space == space)
    }

    pub(super) fn appended(&self, space: Space, records: u64, bytes: u64) {
        if let Some(meters) = self.space(space) {
            meters.appended.inc_by(records);
            meters.appended_bytes.inc_by(bytes);
        }
    }

    pub(super) fn trimmed(&self, space: Space, records: u64) {
        if let Some(meters) = self.space(space) {
            meters.trimmed.inc_by(records);
        }
    }

    pub(super) fn health(&self, health: &Health) {
        let now = match health {
            Health::Ready => "ready",
            Health::Full => "full",
            Health::Unavailable(_) => "unavailable",
            Health::Failed(_) => "failed",
            Health::Closed => "closed",
        };
        for (state, gauge) in &self.states {
            gauge.set(i64::from(*state == now));
        }
    }
}
