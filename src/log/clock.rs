//! The log's clock: record times that never go back, and a present that no single reading of a wall clock can move far.
//!
//! ```text
//!                       |wall − expected| ≤ 10 s
//!          ┌──────────────── believed ◀───────────────────┐
//!          │ farther off                                  │ close again; or ahead, and steady for 10 minutes
//!          └───────────────▶ suspect ─────────────────────┘
//!                              behind, and steady for 10 minutes: time passes at half speed until they meet
//! ```
//!
//! *Expected* is the time believed last plus the time that passed since by a clock that nobody sets. While the wall clock is
//! suspect, time goes on as expected, so keys expire in their time; retention by age waits while the wall clock is ahead.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::IntGauge;
use rustix::time::{ClockId, clock_gettime};

use super::Timestamp;

/// A wall clock this close to the expected time is believed.
const CLOSE: Duration = Duration::from_secs(10);
/// A suspect wall clock that has kept its distance for this long is believed.
const TRUST: Duration = Duration::from_secs(10 * 60);
/// Time that passes between two readings at most, whatever the monotonic clock says; also how old the newest record may be
/// for a log that opens to believe the wall clock at once.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The clocks of the machine, or others in their place.
pub trait TimeSource: Send + Sync {
    /// The wall clock, which somebody may set.
    fn wall(&self) -> Timestamp;

    /// The time since some moment, by a clock that nobody sets and that goes on while the machine sleeps.
    fn monotonic(&self) -> Duration;
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemTime;

impl TimeSource for SystemTime {
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        let secs = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::from_secs(secs) + Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
    }
}

/// Clocks that move by hand only, for tests. Cheap to clone; clones are the same clocks.
#[derive(Debug, Clone)]
pub struct ManualTime(Arc<Mutex<(Timestamp, Duration)>>);

impl ManualTime {
    /// Clocks of which the wall clock shows `wall`.
    #[must_use]
    pub fn new(wall: Timestamp) -> Self {
        Self(Arc::new(Mutex::new((wall, Duration::ZERO))))
    }

    /// Lets time pass on both clocks.
    pub fn pass(&self, time: Duration) {
        let mut clocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.0 = after(clocks.0, time);
        clocks.1 += time;
    }

    /// Sets the wall clock.
    pub fn set_wall(&self, wall: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = wall;
    }
}

impl TimeSource for ManualTime {
    fn wall(&self) -> Timestamp {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// A wall clock that is read elsewhere, such as a server's, beside the monotonic clock of this machine.
#[derive(Debug, Default)]
pub(super) struct ForeignTime(AtomicU64);

impl ForeignTime {
    /// Notes what the wall clock shows now. To be read soon: it stands still until the next.
    pub(super) fn set(&self, wall: Timestamp) {
        self.0.store(wall.0, Ordering::Release);
    }
}

impl TimeSource for ForeignTime {
    fn wall(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Acquire))
    }

    fn monotonic(&self) -> Duration {
        SystemTime.monotonic()
    }
}

/// The clock of one log. It moves when it is read, so a log reads it with each commit and each round of retention.
pub struct Clock {
    source: Arc<dyn TimeSource>,
    /// One while the wall clock is suspect, else zero.
    is_suspect: IntGauge,
    /// The time believed at the last reading.
    now: Timestamp,
    /// The monotonic clock at that reading.
    at: Duration,
    /// The wall clock at that reading.
    wall: Timestamp,
    suspicion: Option<Suspicion>,
}

/// A wall clock that is far from the expected time.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    /// The monotonic clock when it came to be this far off.
    since: Duration,
    /// The distance of the wall clock from the monotonic clock then, in nanoseconds.
    offset: i128,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("now", &self.now)
            .field("wall", &self.wall)
            .field("suspicion", &self.suspicion)
            .finish_non_exhaustive()
    }
}

impl Clock {
    /// The clock of a log whose newest record is of the time `newest`, zero when it has none. The wall clock is believed when
    /// the log is empty and when the newest record is at most a day older; otherwise time goes on from that record, and the
    /// wall clock has to keep steady for a while first. `is_suspect` is one while the wall clock is suspect, else zero.
    #[must_use]
    pub fn open(source: Arc<dyn TimeSource>, newest: Timestamp, is_suspect: IntGauge) -> Self {
        let wall = source.wall();
        let is_plausible = wall >= newest && since(wall, newest) <= DAY;
        let is_believed = newest == Timestamp::default() || is_plausible;
        is_suspect.set(0);
        let mut clock = Self {
            now: if is_believed { wall } else { newest },
            at: source.monotonic(),
            wall,
            source,
            is_suspect,
            suspicion: None,
        };
        clock.read();
        clock
    }

    /// The time to stamp a record with: the present as far as it is believed. Never before what was returned earlier, nor
    /// before the newest record. Idempotency keys age by it.
    pub fn now(&mut self) -> Timestamp {
        self.read();
        self.now
    }

    /// The present that retention by age goes by, never ahead of the wall clock. None while the wall clock is ahead of the
    /// time that is believed: nothing may be dropped for its age then.
    pub fn for_expiry(&mut self) -> Option<Timestamp> {
        self.read();
        let is_ahead = self.suspicion.is_some() && self.wall > self.now;
        (!is_ahead).then(|| self.wall.min(self.now))
    }

    /// Whether the wall clock was far from the expected time at the last reading.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.suspicion.is_some()
    }

    fn read(&mut self) {
        self.wall = self.source.wall();
        let monotonic = self.source.monotonic();
        let elapsed = monotonic.saturating_sub(self.at).min(DAY);
        self.at = self.at.max(monotonic);
        let expected = after(self.now, elapsed);
        if Duration::from_nanos(self.wall.0.abs_diff(expected.0)) <= CLOSE {
            self.now = self.now.max(self.wall);
            self.believe("the wall clock is as expected again");
            return;
        }
        let is_ahead = self.wall > expected;
        if !self.is_steady() {
            self.now = expected;
        } else if is_ahead {
            self.now = self.wall;
            self.believe("the wall clock was ahead of the log and kept steady: it is believed");
        } else {
            self.now = after(self.now, elapsed / 2);
        }
    }

    /// Whether the suspect wall clock has kept its distance for long enough. Begins to watch it if it was not suspect, or
    /// if its distance is another.
    fn is_steady(&mut self) -> bool {
        let offset = i128::from(self.wall.0) - nanos(self.at);
        if self.suspicion.is_none() {
            self.suspect();
        }
        let kept = self
            .suspicion
            .filter(|before| (offset - before.offset).abs() <= nanos(CLOSE));
        let since = kept.map_or(self.at, |kept| kept.since);
        let offset = kept.map_or(offset, |kept| kept.offset);
        self.suspicion = Some(Suspicion { since, offset });
        self.at - since >= TRUST
    }

    fn suspect(&self) {
        self.is_suspect.set(1);
        let (wall, log) = (self.wall.0 / 1_000_000_000, self.now.0 / 1_000_000_000);
        if wall > log {
            tracing::warn!(
                wall,
                log,
                "the wall clock is ahead of the log: retention by age waits until it is plausible or kept steady"
            );
        } else {
            tracing::warn!(
                wall,
                log,
                "the wall clock is behind the log, whose times go on without it until they meet"
            );
        }
    }

    fn believe(&mut self, why: &str) {
        if self.suspicion.take().is_some() {
            self.is_suspect.set(0);
            let wall = self.wall.0 / 1_000_000_000;
            tracing::info!(wall, "{why}");
        }
    }
}

fn after(time: Timestamp, elapsed: Duration) -> Timestamp {
    let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    Timestamp(time.0.saturating_add(nanos))
}

/// The time from `earlier` to `later`; zero when it is the other way round.
const fn since(later: Timestamp, earlier: Timestamp) -> Duration {
    Duration::from_nanos(later.0.saturating_sub(earlier.0))
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(60 * 60);
    /// Some day in 2025.
    const START: Timestamp = Timestamp(1_750_000_000_000_000_000);

    fn open(time: &ManualTime, newest: Timestamp) -> Clock {
        let gauge = IntGauge::new("suspect", "suspect").unwrap();
        Clock::open(Arc::new(time.clone()), newest, gauge)
    }

    /// A log in use, and its clocks.
    fn running() -> (ManualTime, Clock) {
        let time = ManualTime::new(START);
        let clock = open(&time, START.before(SECOND));
        (time, clock)
    }

    /// Lets time pass, with a reading each second.
    fn pass(time: &ManualTime, clock: &mut Clock, duration: Duration) {
        for _ in 0..duration.as_secs() {
            time.pass(SECOND);
            clock.now();
        }
    }

    /// The distance of the log's time from the wall clock.
    fn distance(clock: &mut Clock) -> Duration {
        let now = clock.now();
        Duration::from_nanos(now.0.abs_diff(clock.wall.0))
    }

    #[test]
    fn a_clock_that_runs_well_is_believed_at_once() {
        let (time, mut clock) = running();
        for _ in 0..100 {
            time.pass(Duration::from_secs(60));
            assert_eq!(clock.now(), time.wall());
            assert_eq!(clock.for_expiry(), Some(time.wall()));
        }
        // Some seconds back or forth are what a clock is set by every day.
        time.set_wall(after(time.wall(), 9 * SECOND));
        assert_eq!(clock.now(), time.wall());
        let before = clock.now();
        time.set_wall(time.wall().before(9 * SECOND));
        assert_eq!(clock.now(), before);
        assert_eq!(clock.for_expiry(), Some(time.wall()));
        assert!(!clock.is_suspect());
    }

    #[test]
    fn an_empty_log_believes_the_wall_clock() {
        let time = ManualTime::new(START);
        let mut clock = open(&time, Timestamp(0));
        assert_eq!(clock.now(), START);
        assert!(!clock.is_suspect());
    }

    #[test]
    fn a_jump_of_31_days_for_3_seconds_changes_nothing() {
        let (time, mut clock) = running();
        time.set_wall(after(START, 31 * DAY));
        for _ in 0..3 {
            assert_eq!(clock.for_expiry(), None);
            assert_eq!(clock.is_suspect.get(), 1);
            assert!(since(clock.now(), START) <= 3 * SECOND);
            time.pass(SECOND);
        }
        time.set_wall(after(START, 3 * SECOND));
        assert_eq!(clock.for_expiry(), Some(time.wall()));
        assert_eq!(clock.now(), time.wall());
        assert_eq!((clock.is_suspect(), clock.is_suspect.get()), (false, 0));
    }

    #[test]
    fn ten_years_ahead_at_the_start_pin_nothing() {
        let newest = START.before(5 * HOUR);
        let time = ManualTime::new(after(START, 3650 * DAY));
        let mut clock = open(&time, newest);
        assert_eq!(clock.now(), newest);
        assert_eq!(clock.for_expiry(), None);
        time.pass(SECOND);
        assert_eq!(clock.now(), after(newest, SECOND));
        // Right again: as far off as the log was quiet, so it is believed after a while.
        time.set_wall(after(START, SECOND));
        pass(&time, &mut clock, TRUST - SECOND);
        assert_eq!(clock.for_expiry(), None);
        pass(&time, &mut clock, 2 * SECOND);
        assert_eq!(clock.now(), time.wall());
        assert_eq!(clock.for_expiry(), Some(time.wall()));
    }

    #[test]
    fn an_hour_back_is_walked_off_at_half_speed() {
        let (time, mut clock) = running();
        time.set_wall(START.before(HOUR));
        let before = clock.now();
        assert_eq!(before, START);
        assert_eq!(clock.for_expiry(), Some(time.wall()), "nothing is too old");
        pass(&time, &mut clock, TRUST - SECOND);
        assert_eq!(since(clock.now(), START), TRUST - SECOND);
        assert_eq!(distance(&mut clock), HOUR);
        pass(&time, &mut clock, HOUR);
        assert_eq!(distance(&mut clock).as_secs() / 10, HOUR.as_secs() / 20);
        pass(&time, &mut clock, HOUR);
        assert!(!clock.is_suspect());
        pass(&time, &mut clock, 20 * SECOND);
        assert_eq!(clock.now(), time.wall());
    }

    #[test]
    fn a_log_ahead_of_the_wall_clock_goes_on_from_its_newest_record() {
        let time = ManualTime::new(START);
        let newest = after(START, DAY);
        let mut clock = open(&time, newest);
        assert_eq!(clock.now(), newest);
        assert_eq!(clock.for_expiry(), Some(START));
        time.pass(SECOND);
        assert_eq!(clock.now(), after(newest, SECOND));
    }

    #[test]
    fn a_night_suspended_is_believed_at_once() {
        let (time, mut clock) = running();
        time.pass(9 * HOUR);
        assert_eq!(clock.for_expiry(), Some(time.wall()));
        assert_eq!(clock.now(), time.wall());
        assert!(!clock.is_suspect());
    }

    #[test]
    fn a_week_without_a_reading_is_believed_after_a_while() {
        let (time, mut clock) = running();
        time.pass(7 * DAY);
        assert_eq!(clock.now(), after(START, DAY));
        assert_eq!(clock.for_expiry(), None);
        pass(&time, &mut clock, TRUST);
        assert_eq!(clock.for_expiry(), Some(time.wall()));
    }

    #[test]
    fn a_clock_set_right_once_and_for_all_is_believed() {
        let (time, mut clock) = running();
        time.set_wall(after(START, 40 * DAY));
        clock.now();
        pass(&time, &mut clock, TRUST - SECOND);
        assert_eq!(clock.for_expiry(), None);
        pass(&time, &mut clock, SECOND);
        assert_eq!(clock.now(), time.wall());
        assert_eq!(clock.for_expiry(), Some(time.wall()));
        assert_eq!(clock.is_suspect.get(), 0);
    }

    #[test]
    fn a_clock_that_jumps_about_is_never_believed() {
        let (time, mut clock) = running();
        for round in 1..100_u32 {
            time.set_wall(after(START, round * 2 * DAY));
            clock.now();
            pass(&time, &mut clock, TRUST / 2);
            assert_eq!(clock.for_expiry(), None);
        }
        assert_eq!(since(clock.now(), START), 99 * TRUST / 2);
    }

    #[test]
    fn the_clock_of_the_machine_is_read() {
        let gauge = IntGauge::new("suspect", "suspect").unwrap();
        let mut clock = Clock::open(Arc::new(SystemTime), Timestamp(0), gauge);
        assert!(clock.now().elapsed() < HOUR);
        assert!(SystemTime.monotonic() > Duration::ZERO);
    }

    proptest! {
        #[test]
        fn time_never_goes_back_and_one_reading_moves_it_little(
            steps in prop::collection::vec((0..10_000_u64, any::<Option<u32>>()), 1..200),
        ) {
            let (time, mut clock) = running();
            let mut before = clock.now();
            for (passed, set) in steps {
                time.pass(Duration::from_millis(passed));
                if let Some(secs) = set {
                    time.set_wall(Timestamp(u64::from(secs) * 1_000_000_000));
                }
                let now = clock.now();
                prop_assert!(now >= before);
                prop_assert!(since(now, before) <= Duration::from_millis(passed) + CLOSE);
                before = now;
            }
        }
    }
}
