//! Times of points, which go over the wire as timestamps or as Unix nanoseconds.

use prost_types::Timestamp;

use crate::log;

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// The present in Unix nanoseconds.
pub(super) fn now() -> i64 {
    i64::try_from(log::Timestamp::now().0).unwrap_or(i64::MAX)
}

/// A time in Unix nanoseconds: 1677 to 2262. `None`: it lies outside of them, or is no time at all.
pub(super) fn nanos(time: Timestamp) -> Option<i64> {
    let nanos = i64::from(time.nanos);
    if !(0..SECOND).contains(&nanos) {
        return None;
    }
    // The earliest second is only there in part: from its end backwards it fits.
    let (seconds, nanos) = match time.seconds < 0 {
        true => (time.seconds + 1, nanos - SECOND),
        false => (time.seconds, nanos),
    };
    seconds.checked_mul(SECOND)?.checked_add(nanos)
}

/// The time of Unix nanoseconds.
pub(super) fn time(nanos: i64) -> Timestamp {
    Timestamp {
        seconds: nanos.div_euclid(SECOND),
        // Less than a second.
        nanos: i32::try_from(nanos.rem_euclid(SECOND)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nanoseconds_and_times_are_the_same(any in prop::num::i64::ANY) {
            prop_assert_eq!(nanos(time(any)), Some(any));
        }
    }

    #[test]
    fn what_is_no_time_is_found() {
        for (seconds, nanos_) in [
            (0, -1),
            (0, 1_000_000_000),
            (i64::MAX, 0),
            (i64::MIN, 0),
            (9_223_372_037, 0),
        ] {
            assert_eq!(
                nanos(Timestamp {
                    seconds,
                    nanos: nanos_
                }),
                None
            );
        }
    }
}
