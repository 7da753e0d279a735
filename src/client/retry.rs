//! When to try again: exponential back-off with full jitter, never sooner than the server asked for.

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::is_retryable;

/// The trailer in which a server says, in milliseconds, when to come back; a negative number means never.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// How often and how soon a failed call is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The longest wait before the first repetition; the actual wait is drawn evenly between zero and it.
    pub base: Duration,
    /// The longest wait at all. A server that asks for more gets more.
    pub cap: Duration,
    /// How much longer each next wait may be.
    pub multiplier: f64,
    /// Age at which a stream counts as healthy even if it delivered nothing, so that its end starts over at `base`.
    pub healthy_after: Duration,
    /// Repetitions in a row without progress before giving up; `None`: never give up.
    pub max_retries: Option<u32>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(10),
            multiplier: 2.0,
            healthy_after: Duration::from_secs(10),
            max_retries: None,
        }
    }
}

impl RetryPolicy {
    /// The longest wait after `failures` repetitions in a row.
    fn ceiling(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures).unwrap_or(i32::MAX);
        let seconds = self.base.as_secs_f64() * self.multiplier.powi(exponent);
        Duration::try_from_secs_f64(seconds).map_or(self.cap, |wait| wait.min(self.cap))
    }
}

/// Chance and time, as a retry loop needs them; tests replace both.
pub trait Timing: Send + Sync {
    /// The current time.
    fn now(&self) -> Instant;
    /// A random number in `[0, 1)`.
    fn jitter(&self) -> f64;
    /// A future that ends after `delay`.
    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()>;
}

/// The system's clock and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemTiming;

impl Timing for SystemTiming {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn jitter(&self) -> f64 {
        rand::random()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(delay))
    }
}

/// One call's retries: counts them and says how long to wait before the next.
#[derive(Clone)]
pub struct Retry {
    policy: RetryPolicy,
    timing: Arc<dyn Timing>,
    failures: u32,
}

impl Retry {
    /// No failures so far.
    pub fn new(policy: RetryPolicy, timing: Arc<dyn Timing>) -> Self {
        Self {
            policy,
            timing,
            failures: 0,
        }
    }

    /// Where chance and time come from.
    pub fn timing(&self) -> &dyn Timing {
        &*self.timing
    }

    /// Notes progress: the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Notes the end of a stream that was opened at `opened`; one that lived long enough was progress.
    pub fn note_lifetime(&mut self, opened: Instant) {
        if self.timing.now().saturating_duration_since(opened) >= self.policy.healthy_after {
            self.reset();
        }
    }

    /// How long to wait before repeating a call that ended with `status`; `None`: do not repeat it.
    pub fn next_delay(&mut self, status: &Status) -> Option<Duration> {
        let exhausted = self
            .policy
            .max_retries
            .is_some_and(|max| self.failures >= max);
        if exhausted || !is_retryable(status.code()) {
            return None;
        }
        let asked = asked_delay(status)?;
        let ceiling = self.policy.ceiling(self.failures);
        self.failures = self.failures.saturating_add(1);
        Some(
            ceiling
                .mul_f64(self.timing.jitter().clamp(0.0, 1.0))
                .max(asked),
        )
    }

    /// Repeats `call` until it succeeds or must not be repeated; then returns its last status.
    ///
    /// # Errors
    /// The status of the last try.
    ///
    /// # Cancellation
    /// Dropping the future abandons the current try, which may or may not have taken effect.
    pub async fn run<T, F>(mut self, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        loop {
            let status = match call().await {
                Ok(value) => return Ok(value),
                Err(status) => status,
            };
            match self.next_delay(&status) {
                Some(delay) => self.timing.sleep(delay).await,
                None => return Err(status),
            }
        }
    }
}

/// The delay the server asks for, the longer one if it says so twice; `None`: it wants no repetition.
fn asked_delay(status: &Status) -> Option<Duration> {
    let info = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    let pushback = match status.metadata().get(PUSHBACK) {
        Some(value) => Duration::from_millis(value.to_str().ok()?.parse().ok()?),
        None => Duration::ZERO,
    };
    Some(info.unwrap_or_default().max(pushback))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic_types::ErrorDetails;

    use super::*;

    struct Fixed(f64);

    impl Timing for Fixed {
        fn now(&self) -> Instant {
            Instant::now()
        }
        fn jitter(&self) -> f64 {
            self.0
        }
        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    fn retry(jitter: f64, max_retries: Option<u32>) -> Retry {
        let policy = RetryPolicy {
            max_retries,
            ..RetryPolicy::default()
        };
        Retry::new(policy, Arc::new(Fixed(jitter)))
    }

    fn pushback(text: &str) -> Status {
        let mut status = Status::unavailable("draining");
        status
            .metadata_mut()
            .insert(PUSHBACK, text.parse().unwrap());
        status
    }

    #[test]
    fn waits_double_up_to_the_cap_and_start_over_after_progress() {
        let mut retry = retry(1.0, None);
        let mut next = || {
            retry
                .next_delay(&Status::unavailable(""))
                .unwrap()
                .as_millis()
        };
        let waits: Vec<_> = (0..9).map(|_| next()).collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        retry.reset();
        assert_eq!(
            retry.next_delay(&Status::unavailable("")),
            Some(Duration::from_millis(100))
        );
    }

    #[test]
    fn the_longer_of_the_servers_wishes_is_the_least_wait() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let info = Status::with_error_details(tonic::Code::Unavailable, "draining", details);
        assert_eq!(
            retry(0.0, None).next_delay(&info),
            Some(Duration::from_secs(2))
        );
        let mut both = info.clone();
        both.metadata_mut()
            .insert(PUSHBACK, "3500".parse().unwrap());
        assert_eq!(
            retry(0.0, None).next_delay(&both),
            Some(Duration::from_millis(3500))
        );
        assert_eq!(
            retry(1.0, None).next_delay(&pushback("5")),
            Some(Duration::from_millis(100))
        );
    }

    #[test]
    fn a_negative_or_unreadable_pushback_forbids_the_repetition() {
        for text in ["-1", "soon"] {
            assert_eq!(retry(0.5, None).next_delay(&pushback(text)), None, "{text}");
        }
    }

    #[test]
    fn gives_up_after_max_retries_and_at_once_on_permanent_codes() {
        let mut bounded = retry(0.5, Some(1));
        assert!(bounded.next_delay(&Status::unavailable("")).is_some());
        assert!(bounded.next_delay(&Status::unavailable("")).is_none());
        assert!(
            retry(0.5, None)
                .next_delay(&Status::not_found(""))
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn a_wait_lies_between_zero_and_its_ceiling(jitter in 0.0..1.0f64, failures in 0u32..2000) {
            let mut retry = retry(jitter, None);
            retry.failures = failures;
            let delay = retry.next_delay(&Status::unavailable("")).unwrap();
            let ceiling = 100u64.saturating_mul(2u64.saturating_pow(failures)).min(10_000);
            prop_assert!(delay <= Duration::from_millis(ceiling));
        }
    }
}
