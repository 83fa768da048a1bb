//! Waits that grow with the square of the failures in a row, as osquery's own do: `step`, `4·step`, `9·step`...
//! up to `max`.

use std::time::{Duration, Instant};

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

/// Bounds how often something happens in any hour: half of it may come at once, the rest at even intervals, so that a
/// burst doesn't lead to an hour of silence.
#[derive(Debug)]
pub struct Allowance {
    /// Where the even intervals between all that happened so far have led to.
    used_up_to: Instant,
}

impl Allowance {
    /// Nothing has happened before `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { used_up_to: now }
    }

    /// It has happened `now`; at most `most` times an hour are allowed (at least 2): when the next time is due.
    pub fn used(&mut self, now: Instant, most: u32) -> Instant {
        let at_once = (most / 2).max(1);
        let interval = HOUR / at_once;
        self.used_up_to = self.used_up_to.max(now) + interval;
        self.used_up_to.checked_sub(interval * (at_once - 1)).map_or(now, |due| due.max(now))
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_an_hour_s_allowance_may_be_used_at_once_and_the_rest_comes_bit_by_bit() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut times = vec![start];
        while times.len() < 12 {
            let last = times[times.len() - 1];
            times.push(allowance.used(last, 8));
        }
        let minutes: Vec<u64> = times.iter().map(|at| at.duration_since(start).as_secs() / 60).collect();
        assert_eq!(minutes, [0, 0, 0, 0, 15, 30, 45, 60, 75, 90, 105, 120]);
        let within_an_hour = |from: &Instant| times.iter().filter(|at| *at >= from && **at < *from + HOUR).count();
        assert!(times.iter().all(|from| within_an_hour(from) <= 8), "{minutes:?}");
    }

    #[test]
    fn an_allowance_that_was_not_used_is_there_again() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for _ in 0..4 {
            allowance.used(start, 8);
        }
        let later = start + 2 * HOUR;
        assert!((0..3).all(|_| allowance.used(later, 8) == later));
        assert_eq!(allowance.used(later, 8), later + HOUR / 4);
    }

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
