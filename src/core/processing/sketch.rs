//! Quantiles in bounded memory.
//!
//! Values are counted in buckets whose bounds grow by a fixed ratio, as `DDSketch` does, and only buckets that hold
//! something take memory: 16 bytes each. When a sketch has too many, neighbours are merged in pairs everywhere, which
//! doubles the error; so it is the same for every quantile and always known. (A dense store that drops its lowest buckets,
//! which is what the libraries offer, takes memory for the range of the values and loses the error bound of low quantiles
//! silently.)

/// The error of a fresh sketch; a little below one percent, so that rounding cannot pass it.
const ALPHA: f64 = 0.0099;
/// Buckets of one sketch at most, of 71,600 that normal doubles of either sign fall into.
const MAX_BUCKETS: usize = 2048;
/// Makes every bucket's number positive: the smallest normal double is in bucket -35,773.
const OFFSET: i32 = 40_000;

/// Quantiles of any number of finite values.
///
/// A quantile is within [`Self::error`] of the exact value, relative to it: at most 1 % while the values fall into no more
/// than 2048 buckets, which magnitudes have to fill 17 decades (8 of either sign) to exceed, then 2 %, then 4 % and so on.
/// Zero is exact, and values closer to zero than the smallest normal double (2.3e-308) count as zero. At most 32 KiB.
#[derive(Debug, Clone, Default)]
pub struct Sketch {
    /// What each bucket holds, in the order of the values; no empty ones.
    buckets: Vec<(i32, u64)>,
    /// How often neighbours were merged.
    merges: u32,
    count: u64,
}

impl Sketch {
    /// Counts a finite value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let bucket = self.bucket(value);
        match self.buckets.binary_search_by_key(&bucket, |held| held.0) {
            Ok(at) => self.buckets[at].1 += 1,
            Err(at) => {
                self.buckets.insert(at, (bucket, 1));
                // Each round halves the range of buckets, so there are few.
                while self.buckets.len() > MAX_BUCKETS {
                    self.merge_neighbours();
                }
            }
        }
    }

    /// About the value that `quantile` (0 to 1) of the others do not exceed: of `n` values in order, the one at place
    /// `floor(quantile * (n - 1))` counted from zero. `None` while there is none.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts stay below 2^53, and a rank is not negative"
    )]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let last = self.count.checked_sub(1)?;
        let rank = (quantile.clamp(0.0, 1.0) * last as f64) as u64;
        let mut before = 0;
        let bucket = self.buckets.iter().find(|(_, held)| {
            before += held;
            before > rank
        });
        bucket.map(|(bucket, _)| self.value(*bucket))
    }

    /// The largest relative error of a quantile now.
    #[must_use]
    pub fn error(&self) -> f64 {
        let gamma = self.gamma_ln().exp();
        ((gamma - 1.0) / (gamma + 1.0)).max(0.01)
    }

    /// The logarithm of the ratio between the bounds of a bucket.
    fn gamma_ln(&self) -> f64 {
        fresh_gamma_ln() * f64::from(1u32 << self.merges)
    }

    /// The number of a value's bucket: in the order of the values, zero for zero.
    fn bucket(&self, value: f64) -> i32 {
        if value.abs() < f64::MIN_POSITIVE {
            return 0;
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most 40,000 either way")]
        let fresh = (value.abs().ln() / fresh_gamma_ln()).ceil() as i32;
        let merged = (0..self.merges).fold(fresh, |number, _| parent(number));
        (merged + OFFSET) * if value < 0.0 { -1 } else { 1 }
    }

    /// The value that is equally far, relative to them, from both bounds of a bucket.
    fn value(&self, bucket: i32) -> f64 {
        if bucket == 0 {
            return 0.0;
        }
        let gamma_ln = self.gamma_ln();
        let gamma = gamma_ln.exp();
        let number = bucket.abs() - OFFSET;
        // From the lower bound, which no double exceeds.
        let lower = (f64::from(number - 1) * gamma_ln).exp();
        let value = lower * (2.0 * gamma / (gamma + 1.0));
        value.copysign(f64::from(bucket))
    }

    fn merge_neighbours(&mut self) {
        self.merges += 1;
        for (bucket, _) in &mut self.buckets {
            if *bucket != 0 {
                *bucket = (parent(bucket.abs() - OFFSET) + OFFSET) * bucket.signum();
            }
        }
        self.buckets.dedup_by(|next, kept| {
            let is_same = next.0 == kept.0;
            kept.1 += if is_same { next.1 } else { 0 };
            is_same
        });
    }
}

/// The bucket that holds bucket `number` and a neighbour once pairs are merged: half of it, rounded up.
const fn parent(number: i32) -> i32 {
    (number + 1) >> 1
}

fn fresh_gamma_ln() -> f64 {
    ((1.0 + ALPHA) / (1.0 - ALPHA)).ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUANTILES: [f64; 9] = [0.0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0];

    /// Compares with the exact values; returns how often neighbours were merged.
    fn check(mut values: Vec<f64>) -> Result<u32, TestCaseError> {
        let mut sketch = Sketch::default();
        for value in &values {
            sketch.add(*value);
        }
        values.sort_by(f64::total_cmp);
        for quantile in QUANTILES {
            let exact = values[(quantile * (values.len() - 1) as f64) as usize];
            let found = sketch.quantile(quantile).unwrap();
            let bound = exact.abs() * sketch.error() + f64::MIN_POSITIVE;
            // The largest doubles: the sketch's value may lie beyond them, and its user clamps.
            let found = found.clamp(-f64::MAX, f64::MAX);
            prop_assert!(
                (found - exact).abs() <= bound,
                "{quantile}: {found} for {exact}"
            );
        }
        prop_assert!(sketch.buckets.len() <= MAX_BUCKETS);
        Ok(sketch.merges)
    }

    fn unit() -> impl Strategy<Value = f64> {
        1e-12..1.0f64
    }

    proptest! {
        #[test]
        fn quantiles_of_any_doubles_are_within_the_bound(
            values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::ZERO, 1..2000),
        ) {
            check(values)?;
        }

        #[test]
        fn quantiles_of_mixed_signs_are_within_one_percent(
            values in prop::collection::vec(-1e3..1e3f64, 1..5000), offset in -1e6..1e6f64,
        ) {
            let values = values.into_iter().map(|value| value + offset).collect();
            prop_assert_eq!(check(values)?, 0);
        }

        #[test]
        fn quantiles_of_heavy_tails_are_within_one_percent(
            values in prop::collection::vec(unit(), 1..5000), shape in 0.7..3.0f64, sign in prop::bool::ANY,
        ) {
            let sign = if sign { 1.0 } else { -1.0 };
            let values = values.into_iter().map(|unit| sign * unit.powf(-1.0 / shape)).collect();
            prop_assert_eq!(check(values)?, 0);
        }

        #[test]
        fn quantiles_of_exponentials_and_zeros_are_within_one_percent(
            values in prop::collection::vec(unit(), 1..5000), zeros in 0..1000usize, scale in -300..300i32,
        ) {
            let scale = 10f64.powi(scale);
            let values = values.into_iter().map(|unit| -unit.ln() * scale);
            prop_assert_eq!(check(values.chain(vec![0.0; zeros]).collect())?, 0);
        }
    }

    #[test]
    fn values_spread_over_all_doubles_cost_precision_and_no_memory() {
        let spread = (0..200_000).map(|number| {
            let exponent = f64::from(number - 100_000) * 0.006_9;
            exponent.exp() * if number % 3 == 0 { -1.0 } else { 1.0 }
        });
        assert_eq!(check(spread.collect()).unwrap(), 7);
    }

    #[test]
    fn the_ends_of_the_doubles_have_buckets() {
        let ends = [f64::MAX, f64::MIN, f64::MIN_POSITIVE, -f64::MIN_POSITIVE];
        check(ends.to_vec()).unwrap();
        check(vec![5e-324, -5e-324, 0.0, -0.0]).unwrap();
    }

    #[test]
    fn one_value_and_none() {
        assert_eq!(Sketch::default().quantile(0.5), None);
        check(vec![42.0]).unwrap();
    }
}
