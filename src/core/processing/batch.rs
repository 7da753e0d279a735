//! Statistics of a batch, by series.

use std::collections::HashMap;

use super::{Moments, Sketch};
use crate::core::Error;

/// What the statistics of a series take in a result beside its name, in bytes; a little more than any encoding needs.
const STATISTICS_BYTES: usize = 128;

/// The series of a batch. Memory: at most `max_series` times a name and 33 KiB; a tenth of it for what is usual.
pub struct Batch {
    max_series: usize,
    max_bytes: usize,
    bytes: usize,
    numbers: HashMap<Box<str>, usize>,
    statistics: Vec<(Moments, Sketch)>,
}

/// A series of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeriesId(usize);

/// What a series' values were like.
#[derive(Debug, Clone)]
pub struct SeriesStatistics {
    /// The series.
    pub series: Box<str>,
    /// Count, sum, extremes, mean and deviation.
    pub moments: Moments,
    /// The median, by a [`Sketch`].
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Batch {
    /// An empty batch that takes `max_series` series, and not more of them than have a place in a result of `max_bytes`.
    #[must_use]
    pub fn new(max_series: usize, max_bytes: usize) -> Self {
        Self {
            max_series,
            max_bytes,
            bytes: 0,
            numbers: HashMap::new(),
            statistics: Vec::new(),
        }
    }

    /// The series called `name`; a place is taken for it.
    ///
    /// # Errors
    /// [`Error::Limit`]: the batch has as many series as it may, or as the result has room for.
    pub fn series(&mut self, name: &str) -> Result<SeriesId, Error> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(SeriesId(*number));
        }
        let number = self.statistics.len();
        if number >= self.max_series {
            return Err(Error::Limit {
                what: "series of one batch",
                limit: self.max_series,
            });
        }
        let bytes = self.bytes + name.len() + STATISTICS_BYTES;
        if bytes > self.max_bytes {
            return Err(Error::Limit {
                what: "bytes of the statistics of one batch",
                limit: self.max_bytes,
            });
        }
        self.bytes = bytes;
        self.numbers.insert(name.into(), number);
        self.statistics
            .push((Moments::default(), Sketch::default()));
        Ok(SeriesId(number))
    }

    /// Takes a finite value of a series.
    pub fn add(&mut self, series: SeriesId, value: f64) {
        if let Some((moments, sketch)) = self.statistics.get_mut(series.0) {
            moments.add(value);
            sketch.add(value);
        }
    }

    /// The statistics of every series that got a value, by name.
    #[must_use]
    pub fn finish(self) -> Vec<SeriesStatistics> {
        let Self {
            numbers,
            statistics,
            ..
        } = self;
        let mut all: Vec<_> = numbers
            .into_iter()
            .filter_map(|(series, number)| statistics_of(series, statistics.get(number)?))
            .collect();
        all.sort_by(|one, other| one.series.cmp(&other.series));
        all
    }
}

fn statistics_of(
    series: Box<str>,
    (moments, sketch): &(Moments, Sketch),
) -> Option<SeriesStatistics> {
    // The extremes are exact, so no quantile needs to lie beyond them.
    let quantile = |quantile| {
        let about = sketch.quantile(quantile)?;
        Some(about.clamp(moments.min(), moments.max()))
    };
    Some(SeriesStatistics {
        p50: quantile(0.5)?,
        p95: quantile(0.95)?,
        p99: quantile(0.99)?,
        series,
        moments: *moments,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_kept_apart_and_come_by_name() {
        let mut batch = Batch::new(2, 1000);
        let (b, a) = (batch.series("b").unwrap(), batch.series("a").unwrap());
        for value in 1..=100 {
            batch.add(b, f64::from(value));
            batch.add(a, f64::from(-value));
        }
        let all = batch.finish();
        let names: Vec<_> = all.iter().map(|one| &*one.series).collect();
        assert_eq!(names, ["a", "b"]);
        let sums: Vec<_> = all.iter().map(|one| one.moments.sum()).collect();
        assert_eq!(sums, [-5050.0, 5050.0]);
        for (found, exact) in [(all[0].p50, -51.0), (all[1].p50, 50.0), (all[1].p99, 99.0)] {
            assert!((found / exact - 1.0).abs() <= 0.01, "{found} for {exact}");
        }
    }

    #[test]
    fn one_series_too_many_is_refused_and_known_ones_go_on() {
        let mut batch = Batch::new(1, 1000);
        let first = batch.series("a").unwrap();
        assert!(matches!(
            batch.series("b"),
            Err(Error::Limit { limit: 1, .. })
        ));
        assert_eq!(batch.series("a").unwrap(), first);
    }

    #[test]
    fn the_result_has_room_for_every_series_taken() {
        let mut batch = Batch::new(100, 300);
        batch.series("a").unwrap();
        batch.series("b").unwrap();
        assert!(matches!(
            batch.series("c"),
            Err(Error::Limit { limit: 300, .. })
        ));
    }

    #[test]
    fn a_series_without_a_value_does_not_show() {
        let mut batch = Batch::new(1, 1000);
        batch.series("a").unwrap();
        assert!(batch.finish().is_empty());
    }
}
