//! How unusual a value is among the recent ones of its series.

use std::collections::VecDeque;

/// Values a score is taken against.
const RECENT: usize = 256;
/// Below so many values nothing is unusual.
const ENOUGH: usize = 8;
/// Scales the median absolute deviation to the standard deviation of a normal distribution.
const MEDIAN_SCALE: f64 = 0.6745;
/// The same for the mean absolute deviation: sqrt(pi / 2).
const MEAN_SCALE: f64 = 1.253_314;
/// The largest score, either way; what a constant series' first other value gets.
pub const MAX_SCORE: f64 = 1e9;

/// The last 256 values of a series. At most 4 KiB.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    arrived: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl Recent {
    /// The robust z-score of a value that is not among them: `0.6745 * (value - median) / MAD`, where MAD is the median of
    /// the distances to the median. When more than half of the values are equal, so that MAD is zero, the mean of the
    /// distances takes its place: `(value - median) / (1.2533 * mean distance)`; when all are equal, another value scores
    /// [`MAX_SCORE`]. Negative below the median; 0 while there are fewer than eight values.
    #[must_use]
    pub fn score(&self, value: f64) -> f64 {
        if self.sorted.len() < ENOUGH {
            return 0.0;
        }
        let median = median(&self.sorted);
        let distance = half_distance(value, median);
        let typical = self.half_median_distance(median);
        let score = if typical > 0.0 {
            MEDIAN_SCALE * distance / typical
        } else {
            let mean = self.half_mean_distance(median);
            match (mean > 0.0, distance == 0.0) {
                (_, true) => 0.0,
                (true, false) => distance / (MEAN_SCALE * mean),
                (false, false) => MAX_SCORE.copysign(distance),
            }
        };
        score.clamp(-MAX_SCORE, MAX_SCORE)
    }

    /// Takes a finite value; the oldest goes when there are too many.
    pub fn push(&mut self, value: f64) {
        // Both zeros are one value.
        let value = value + 0.0;
        if self.arrived.len() == RECENT
            && let Some(oldest) = self.arrived.pop_front()
        {
            let at = self.place(oldest);
            self.sorted.remove(at);
        }
        self.arrived.push_back(value);
        let at = self.place(value);
        self.sorted.insert(at, value);
    }

    fn place(&self, value: f64) -> usize {
        self.sorted.partition_point(|held| *held < value)
    }

    /// The median of the distances: they grow away from the median, so the smaller half of them is met by going outwards
    /// from the middle on both sides.
    fn half_median_distance(&self, median: f64) -> f64 {
        let count = self.sorted.len();
        let (mut below, mut above) = (count / 2, count / 2);
        let (mut last, mut previous) = (0.0, 0.0);
        for _ in 0..=count / 2 {
            let left = below
                .checked_sub(1)
                .map(|at| half_distance(self.sorted[at], median).abs());
            let right = self
                .sorted
                .get(above)
                .map(|held| half_distance(*held, median).abs());
            previous = last;
            last = match (left, right) {
                (Some(left), Some(right)) if left <= right => {
                    below -= 1;
                    left
                }
                (_, Some(right)) => {
                    above += 1;
                    right
                }
                (Some(left), None) => {
                    below -= 1;
                    left
                }
                (None, None) => break,
            };
        }
        match count % 2 {
            1 => last,
            _ => previous / 2.0 + last / 2.0,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "at most 256")]
    fn half_mean_distance(&self, median: f64) -> f64 {
        let count = self.sorted.len() as f64;
        let distances = self
            .sorted
            .iter()
            .map(|held| half_distance(*held, median).abs());
        // Divided before they are added: the sum of huge ones would not fit.
        distances.map(|distance| distance / count).sum()
    }
}

/// Half of how far a value is from the median; halved first, so that it fits into a double.
fn half_distance(value: f64, median: f64) -> f64 {
    value / 2.0 - median / 2.0
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => sorted[middle - 1] / 2.0 + sorted[middle] / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(values: &[f64], value: f64) -> f64 {
        let recent = &values[values.len().saturating_sub(256)..];
        if recent.len() < 8 {
            return 0.0;
        }
        let middle = |mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            let half = all.len() / 2;
            match all.len() % 2 {
                1 => all[half],
                _ => (all[half - 1] + all[half]) / 2.0,
            }
        };
        let median = middle(recent.to_vec());
        let distances: Vec<_> = recent.iter().map(|held| (held - median).abs()).collect();
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        let mad = middle(distances);
        match (mad > 0.0, mean > 0.0) {
            (true, _) => 0.6745 * (value - median) / mad,
            (false, true) => (value - median) / (1.253_314 * mean),
            (false, false) if value == median => 0.0,
            (false, false) => MAX_SCORE.copysign(value - median),
        }
    }

    fn check(values: &[f64]) -> Result<(), TestCaseError> {
        let mut recent = Recent::default();
        for (at, value) in values.iter().enumerate() {
            let (found, expected) = (recent.score(*value), naive(&values[..at], *value));
            prop_assert!(
                (found - expected).abs() <= expected.abs() * 1e-9 + 1e-9,
                "{found} for {expected} at {at}"
            );
            recent.push(*value);
            prop_assert!(recent.sorted.is_sorted() && recent.sorted.len() <= RECENT);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn scores_agree_with_a_naive_computation(values in prop::collection::vec(-1e3..1e3f64, 1..600)) {
            check(&values)?;
        }

        #[test]
        fn scores_of_few_distinct_values_agree_too(values in prop::collection::vec(0..3i32, 1..600)) {
            let values: Vec<_> = values.into_iter().map(f64::from).collect();
            check(&values)?;
        }

        #[test]
        fn scores_of_any_doubles_are_finite(values in prop::collection::vec(
            prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO, 1..100,
        )) {
            let mut recent = Recent::default();
            for value in values {
                prop_assert!(recent.score(value).is_finite());
                recent.push(value);
            }
        }
    }

    #[test]
    fn a_jump_of_a_constant_series_is_the_most_unusual_of_all() {
        let mut recent = Recent::default();
        for _ in 0..8 {
            assert_eq!(recent.score(99.0), 0.0);
            recent.push(5.0);
        }
        assert_eq!(recent.score(5.0), 0.0);
        assert_eq!(
            (recent.score(5.1), recent.score(4.9)),
            (MAX_SCORE, -MAX_SCORE)
        );
    }
}
