//! Event-time windows of one series.

use std::{collections::VecDeque, time::Duration};

use super::Moments;

/// Tumbling windows by event time, with an allowed lateness. Times are Unix nanoseconds.
///
/// ```text
///             newest - lateness            newest
///                     │                      │
///   ──┬───────┬───────┼───────┬───────┬──────┼┬──────
///     │closed │     open      │ open  │ open  │
///            too late ◀ ▶ taken
/// ```
///
/// A value is taken while it is at most `lateness` behind the newest of the series; a window is closed and dropped once no
/// value can fall into it any more. So at most `lateness / length + 2` are open.
#[derive(Debug, Clone)]
pub struct Windows {
    length: i64,
    lateness: i64,
    newest: i64,
    /// Their starts and statistics, in order of time.
    open: VecDeque<(i64, Moments)>,
}

/// The window that a value fell into, the value included.
#[derive(Debug, Clone, Copy)]
pub struct Windowed {
    /// Its start.
    pub start: i64,
    /// Its end, exclusive.
    pub end: i64,
    /// The statistics of its values so far.
    pub moments: Moments,
}

/// A value came too late for its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}ns behind the newest value of its series", .behind)]
pub struct TooLate {
    /// How far behind, in nanoseconds.
    pub behind: i64,
}

impl Windows {
    /// No value yet. A `length` of zero counts as a nanosecond.
    #[must_use]
    pub fn new(length: Duration, lateness: Duration) -> Self {
        Self {
            length: nanos(length).max(1),
            lateness: nanos(lateness),
            newest: i64::MIN,
            open: VecDeque::new(),
        }
    }

    /// Takes a value.
    ///
    /// # Errors
    /// It came too late; nothing changed.
    pub fn add(&mut self, time: i64, value: f64) -> Result<Windowed, TooLate> {
        let oldest = self.newest.saturating_sub(self.lateness);
        if time < oldest {
            let behind = self.newest.saturating_sub(time);
            return Err(TooLate { behind });
        }
        if time > self.newest {
            self.newest = time;
            self.close();
        }
        let start = time.div_euclid(self.length).saturating_mul(self.length);
        let at = self.open.partition_point(|window| window.0 < start);
        if self.open.get(at).is_none_or(|window| window.0 != start) {
            self.open.insert(at, (start, Moments::default()));
        }
        let moments = &mut self.open[at].1;
        moments.add(value);
        Ok(Windowed {
            start,
            end: start.saturating_add(self.length),
            moments: *moments,
        })
    }

    /// Windows open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Drops windows that no value can fall into any more.
    fn close(&mut self) {
        let oldest = self.newest.saturating_sub(self.lateness);
        while let Some((start, _)) = self.open.front() {
            if start.saturating_add(self.length) > oldest {
                break;
            }
            self.open.pop_front();
        }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_agree_with_a_model_that_keeps_every_value(
            steps in prop::collection::vec((-50i64..200, -10..10i32), 1..300),
            length in 1i64..60, lateness in 0i64..150, begin in -1000i64..1000,
        ) {
            let mut windows = Windows::new(
                Duration::from_nanos(length.cast_unsigned()),
                Duration::from_nanos(lateness.cast_unsigned()),
            );
            let mut taken: Vec<(i64, f64)> = Vec::new();
            let mut now = begin;
            for (step, value) in steps {
                // Mostly forward, sometimes far back.
                let time = now + step;
                now += step / 10;
                let newest = taken.iter().map(|(time, _)| *time).max();
                let is_late = newest.is_some_and(|newest| newest - time > lateness);
                match windows.add(time, f64::from(value)) {
                    Err(TooLate { behind }) => {
                        prop_assert!(is_late);
                        prop_assert_eq!(behind, newest.unwrap() - time);
                    }
                    Ok(window) => {
                        prop_assert!(!is_late);
                        taken.push((time, f64::from(value)));
                        prop_assert!(window.start <= time && time < window.end);
                        prop_assert_eq!(window.end - window.start, length);
                        prop_assert_eq!(window.start.rem_euclid(length), 0);
                        let inside: Vec<_> = taken
                            .iter()
                            .filter(|(time, _)| (window.start..window.end).contains(time))
                            .map(|(_, value)| *value)
                            .collect();
                        prop_assert_eq!(window.moments.count(), inside.len() as u64);
                        prop_assert_eq!(window.moments.sum(), inside.iter().sum::<f64>());
                    }
                }
                prop_assert!(windows.open() as i64 <= lateness / length + 2);
            }
        }
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        let windows = || Windows::new(Duration::from_secs(60), Duration::MAX);
        let mut forward = windows();
        for time in [i64::MIN, i64::MAX] {
            assert_eq!(forward.add(time, 1.0).unwrap().moments.count(), 1);
        }
        let mut backward = windows();
        backward.add(i64::MAX, 1.0).unwrap();
        let behind = i64::MAX;
        assert_eq!(backward.add(i64::MIN, 1.0).unwrap_err(), TooLate { behind });
    }
}
