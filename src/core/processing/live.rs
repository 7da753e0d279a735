//! Live data: each value against its series' window and its recent values.

use std::collections::HashMap;

use super::{Recent, TooLate, Windowed, Windows};
use crate::config::Processing;

/// The series of one stream. Memory: at most `processing.max_series` times a name, 4 KiB and 56 bytes for each open window.
pub struct Live {
    settings: Processing,
    series: HashMap<Box<str>, Series>,
}

struct Series {
    windows: Windows,
    recent: Recent,
}

/// A processed value.
#[derive(Debug, Clone, Copy)]
pub struct Processed {
    /// Its window, it included.
    pub window: Windowed,
    /// Its [`Recent::score`] against the values before it.
    pub score: f64,
    /// Whether the score reaches the threshold, either way.
    pub is_anomaly: bool,
}

/// Why a value was not processed. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is too far behind the newest value of its series.
    #[error(transparent)]
    TooLate(#[from] TooLate),
    /// The stream has as many series as it may.
    #[error("series of one stream is limited to {limit}")]
    TooManySeries {
        /// The limit.
        limit: usize,
    },
}

impl Live {
    /// No series yet.
    #[must_use]
    pub fn new(settings: Processing) -> Self {
        Self {
            settings,
            series: HashMap::new(),
        }
    }

    /// Takes a finite value of `series` at `time`, in Unix nanoseconds.
    ///
    /// # Errors
    /// It is too late or of one series too many.
    pub fn add(&mut self, series: &str, time: i64, value: f64) -> Result<Processed, Refused> {
        let threshold = self.settings.anomaly_threshold;
        let series = self.series(series)?;
        let window = series.windows.add(time, value)?;
        let score = series.recent.score(value);
        series.recent.push(value);
        Ok(Processed {
            window,
            score,
            is_anomaly: score.abs() >= threshold,
        })
    }

    fn series(&mut self, name: &str) -> Result<&mut Series, Refused> {
        let limit = self.settings.max_series;
        // The name is copied for a first value only.
        if !self.series.contains_key(name) && self.series.len() < limit {
            let fresh = Series {
                windows: Windows::new(self.settings.window, self.settings.lateness),
                recent: Recent::default(),
            };
            self.series.insert(name.into(), fresh);
        }
        let known = self.series.get_mut(name);
        known.ok_or(Refused::TooManySeries { limit })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn live() -> Live {
        Live::new(Processing {
            window: Duration::from_nanos(10),
            lateness: Duration::from_nanos(10),
            max_series: 2,
            ..Processing::default()
        })
    }

    #[test]
    fn series_do_not_mix() {
        let mut live = live();
        for time in 0..10 {
            live.add("a", time, 1.0).unwrap();
            let of_b = live.add("b", 1000 + time, 2.0).unwrap();
            assert_eq!(of_b.window.moments.mean(), 2.0);
        }
        assert!(live.add("a", 9, 50.0).unwrap().is_anomaly);
        assert!(!live.add("b", 1009, 2.0).unwrap().is_anomaly);
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut live = live();
        for time in 0..9 {
            live.add("a", 100 + time, 1.0).unwrap();
        }
        live.add("b", 0, 1.0).unwrap();
        for _ in 0..300 {
            assert_eq!(
                live.add("a", 97, 7.0).unwrap_err(),
                TooLate { behind: 11 }.into()
            );
            let refused = live.add("c", 0, 1.0).unwrap_err();
            assert_eq!(refused, Refused::TooManySeries { limit: 2 });
        }
        let last = live.add("a", 108, 1.0).unwrap();
        assert_eq!((last.window.moments.count(), last.score), (10, 0.0));
    }
}
