//! Waits that grow with the square of the failures in a row, as osquery's own do: `step`, `4·step`, `9·step`...
//! up to `max`.

use std::time::Duration;

/// How long to wait after each failure in a row.
///
/// osquery's enrollment waits n² seconds up to `tls_enroll_max_interval`, its logger period·n² seconds up to
/// `logger_tls_backoff_max`, its config and distributed plugins n² seconds between their few attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    step: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of `step`·n², at most `max`.
    #[must_use]
    pub fn new(step: Duration, max: Duration) -> Self {
        Self { step, max, failures: 0 }
    }

    /// A failure more: the wait that follows it.
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let factor = self.failures.saturating_mul(self.failures);
        self.step.saturating_mul(factor).min(self.max)
    }

    /// A failure more: the wait that follows it, spread so that a fleet doesn't come back all at once: up to half as
    /// long again, and within the upper half of the maximum where that is reached.
    pub fn failed_in_a_fleet(&mut self) -> Duration {
        let wait = self.failed();
        let spread = wait.mul_f64(fastrand::f64() / 2.0);
        if wait < self.max { (wait + spread).min(self.max) } else { wait - spread }
    }

    /// A success ends the row: answers how many failures it had.
    pub fn succeeded(&mut self) -> u32 {
        std::mem::take(&mut self.failures)
    }

    /// The failures in a row so far.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Other bounds from now on (flags can change while running); the row of failures goes on.
    pub fn set_bounds(&mut self, step: Duration, max: Duration) {
        self.step = step;
        self.max = max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_grow_with_the_square_up_to_the_maximum() {
        let mut backoff = Backoff::new(4 * SECOND, 60 * SECOND);
        let waits: Vec<u64> = (0..5).map(|_| backoff.failed().as_secs()).collect();
        assert_eq!(waits, [4, 16, 36, 60, 60]);
    }

    #[test]
    fn a_success_starts_the_row_again_and_tells_its_length() {
        let mut backoff = Backoff::new(SECOND, 600 * SECOND);
        backoff.failed();
        backoff.failed();
        assert_eq!(backoff.succeeded(), 2);
        assert_eq!(backoff.failed(), SECOND);
    }

    #[test]
    fn a_fleet_s_waits_are_spread_and_stay_within_their_bounds() {
        let waits: Vec<Duration> =
            (0..100).map(|_| Backoff::new(4 * SECOND, 60 * SECOND).failed_in_a_fleet()).collect();
        assert!(waits.iter().all(|wait| (4 * SECOND..=6 * SECOND).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "no two hosts come back together");
        let mut capped = Backoff { step: SECOND, max: 600 * SECOND, failures: 100 };
        assert!((0..100).all(|_| (300 * SECOND..=600 * SECOND).contains(&capped.failed_in_a_fleet())));
    }

    #[test]
    fn endless_failures_do_not_overflow() {
        let mut backoff = Backoff { step: SECOND, max: 600 * SECOND, failures: u32::MAX - 1 };
        assert_eq!(backoff.failed(), 600 * SECOND);
        assert_eq!(backoff.failed(), 600 * SECOND);
    }
}
