//! Medians and spreads of a few repetitions.

use serde::Serialize;

/// The middle of some values, and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of values in any order; `None` without any.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }

    /// Of the quotients, pair by pair: what was measured one after the other is compared.
    pub(super) fn of_ratios(numerators: &[f64], denominators: &[f64]) -> Option<Self> {
        let pairs = numerators.iter().zip(denominators);
        let usable = pairs.filter(|(_, denominator)| **denominator > 0.0);
        Self::of(
            &usable
                .map(|(above, below)| above / below)
                .collect::<Vec<_>>(),
        )
    }

    /// `1.23 [1.00–1.50]`, with so many digits.
    pub(super) fn text(self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} [{min:.digits$}–{max:.digits$}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values).map(|s| (s.median, s.min, s.max));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[2.0]), Some((2.0, 2.0, 2.0)));
        assert_eq!(spread(&[9.0, 1.0, 4.0]), Some((4.0, 1.0, 9.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some((3.0, 1.0, 9.0)));
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let ratio = Spread::of_ratios(&[8.0, 30.0, 5.0], &[2.0, 3.0, 0.0]).unwrap();
        assert_eq!(ratio.text(1), "7.0 [4.0–10.0]");
        assert_eq!(Spread::of_ratios(&[1.0], &[0.0]), None);
    }
}
