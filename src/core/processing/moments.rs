//! Count, sum, extremes, mean and deviation in one pass.

/// Exact statistics of finite values, in constant memory.
///
/// The sum is compensated (Neumaier): its error does not grow with the number of values. The deviation is updated by
/// Welford's method, so a large common offset does not drown it. What exceeds the largest double is infinite, never NaN: a
/// sum of huge values, and the deviation of values more than 1e154 apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    count: u64,
    sum: f64,
    /// What the sum lost to rounding.
    lost: f64,
    min: f64,
    max: f64,
    mean: f64,
    /// The sum of the squares of the distances to the mean.
    squares: f64,
}

impl Moments {
    /// Takes a finite value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        (self.min, self.max) = match self.count {
            1 => (value, value),
            _ => (self.min.min(value), self.max.max(value)),
        };
        let sum = self.sum + value;
        self.lost += match self.sum.abs() >= value.abs() {
            true => (self.sum - sum) + value,
            false => (value - sum) + self.sum,
        };
        self.sum = sum;
        let count = self.count_f64();
        let distance = value - self.mean;
        self.mean += match distance.is_finite() {
            true => distance / count,
            false => value / count - self.mean / count,
        };
        self.squares += distance * (value - self.mean);
    }

    /// How many values.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> f64 {
        match self.sum.is_finite() {
            true => self.sum + self.lost,
            false => self.sum,
        }
    }

    /// The smallest; zero while there is none.
    #[must_use]
    pub const fn min(&self) -> f64 {
        self.min
    }

    /// The largest; zero while there is none.
    #[must_use]
    pub const fn max(&self) -> f64 {
        self.max
    }

    /// The mean; zero while there is no value.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let sum = self.sum();
        let mean = match sum.is_finite() {
            true => sum / self.count_f64(),
            false => self.mean,
        };
        mean.clamp(self.min, self.max)
    }

    /// The standard deviation of the population; zero while there is no value.
    #[must_use]
    pub fn stddev(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        match self.squares.is_nan() {
            true => f64::INFINITY,
            false => (self.squares.max(0.0) / self.count_f64()).sqrt(),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    const fn count_f64(&self) -> f64 {
        self.count as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Moments {
        let mut moments = Moments::default();
        values.into_iter().for_each(|value| moments.add(value));
        moments
    }

    proptest! {
        /// Integers below 2^20 around an offset that is a multiple of 2^20: sums of them and of their squares are exact in
        /// 128 bits.
        #[test]
        fn they_agree_with_exact_arithmetic_at_any_offset(
            values in prop::collection::vec(-1_000_000i64..1_000_000, 1..500), offset in -(1i64 << 30)..(1 << 30),
        ) {
            let offset = offset << 20;
            let all: Vec<_> = values.iter().map(|value| i128::from(value + offset)).collect();
            let count = all.len() as i128;
            let sum: i128 = all.iter().sum();
            // n² times the variance.
            let squares = all.iter().map(|value| value * value).sum::<i128>() * count - sum * sum;
            let moments = of(all.iter().map(|value| *value as f64));
            prop_assert_eq!(moments.count(), count as u64);
            prop_assert_eq!(moments.sum(), sum as f64);
            prop_assert_eq!(moments.min(), *all.iter().min().unwrap() as f64);
            prop_assert_eq!(moments.max(), *all.iter().max().unwrap() as f64);
            let mean = sum as f64 / count as f64;
            prop_assert!((moments.mean() - mean).abs() <= mean.abs() * 1e-15, "{} {mean}", moments.mean());
            let stddev = (squares as f64).sqrt() / count as f64;
            // A mean near 2^50 has steps of 2^-3: that is what the deviation can be off by.
            prop_assert!((moments.stddev() - stddev).abs() <= stddev * 1e-6 + 1.0, "{} {stddev}", moments.stddev());
        }

        #[test]
        fn nothing_is_ever_nan_and_the_mean_lies_between(
            values in prop::collection::vec(
                prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO, 1..100,
            ),
        ) {
            let moments = of(values);
            prop_assert!(!moments.sum().is_nan() && !moments.stddev().is_nan());
            prop_assert!(moments.min() <= moments.mean() && moments.mean() <= moments.max());
        }
    }

    #[test]
    fn a_large_offset_does_not_drown_the_deviation() {
        let moments = of([4.0, 7.0, 13.0, 16.0].map(|value| value + 1e9));
        assert!((moments.stddev() - 22.5f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn small_values_between_large_ones_are_not_lost_from_the_sum() {
        assert_eq!(of([1.0, 1e100, 1.0, -1e100]).sum(), 2.0);
        let tenths = of((0..10_000_000).map(|_| 0.1));
        assert!((tenths.sum() - 1e6).abs() < 1e-9, "{}", tenths.sum());
    }

    #[test]
    fn huge_values_of_both_signs_have_a_mean() {
        let moments = of([f64::MAX, f64::MAX, -f64::MAX]);
        assert_eq!(moments.sum(), f64::INFINITY);
        assert_eq!(moments.stddev(), f64::INFINITY);
        assert!((moments.mean() / f64::MAX - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn without_values_everything_is_zero() {
        let none = Moments::default();
        assert_eq!(
            (none.count(), none.sum(), none.mean(), none.stddev()),
            (0, 0.0, 0.0, 0.0)
        );
    }
}
