//! Requests that osqueryd asks for again and again are not made against a server that fails: they are answered from
//! what is at hand.

use std::time::{Duration, Instant};

use super::{Backoff, Chance};

/// After a failure no request is made for U(½, 1) · min(10·n² seconds, `most`), n being the failures in a row; then one
/// is let through, and decides.
///
/// osqueryd asks for distributed queries every few seconds and for the configuration at its interval, whatever came of
/// the last time. Of a fleet that is the larger part of all requests, and while a server struggles they are what keeps
/// it down.
#[derive(Clone, Debug)]
pub struct Breaker {
    backoff: Backoff,
    not_before: Option<Instant>,
}

/// The first wait, before it is spread.
const STEP: Duration = Duration::from_secs(10);

impl Breaker {
    /// For distributed queries, whose asker waits for them: two minutes at most.
    #[must_use]
    pub fn for_reads() -> Self {
        Self::new(Duration::from_secs(120))
    }

    /// For configurations: five minutes at most.
    #[must_use]
    pub fn for_configurations() -> Self {
        Self::new(Duration::from_secs(300))
    }

    fn new(most: Duration) -> Self {
        Self { backoff: Backoff::new(STEP, most), not_before: None }
    }

    /// How long no request is to be made yet; `None` when one may be.
    #[must_use]
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.not_before?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Whether the last request has failed: what is asked for is answered from what is at hand, whether it is tried or
    /// not.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.backoff.failures() > 0
    }

    /// A request has failed. Returns the time within which no other one is made, which is longer where the server
    /// `asked` for more.
    pub fn failed(&mut self, now: Instant, asked: Option<Duration>, chance: &mut Chance) -> Duration {
        let wait = self.backoff.failed(chance).max(asked.unwrap_or_default());
        self.not_before = now.checked_add(wait);
        wait
    }

    /// A request has succeeded: whether others had failed before it.
    pub fn succeeded(&mut self) -> bool {
        self.not_before = None;
        self.backoff.succeeded() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn nth_wait(mut breaker: Breaker, n: u32, chance: &mut Chance) -> Duration {
        let now = Instant::now();
        for _ in 1..n {
            breaker.failed(now, None, chance);
        }
        breaker.failed(now, None, chance)
    }

    #[test]
    fn it_stays_open_longer_with_each_failure_up_to_its_maximum() {
        assert_uniform(5.0, 10.0, |chance| nth_wait(Breaker::for_reads(), 1, chance));
        assert_uniform(20.0, 40.0, |chance| nth_wait(Breaker::for_reads(), 2, chance));
        assert_uniform(60.0, 120.0, |chance| nth_wait(Breaker::for_reads(), 4, chance));
        assert_uniform(60.0, 120.0, |chance| nth_wait(Breaker::for_reads(), 40, chance));
        assert_uniform(80.0, 160.0, |chance| nth_wait(Breaker::for_configurations(), 4, chance));
        assert_uniform(150.0, 300.0, |chance| nth_wait(Breaker::for_configurations(), 40, chance));
    }

    #[test]
    fn requests_are_made_until_one_fails_and_one_is_made_when_the_wait_is_over() {
        let (mut chance, now) = (Chance::with_seed(1), Instant::now());
        let mut breaker = Breaker::for_reads();
        assert_eq!(breaker.left(now), None);
        let wait = breaker.failed(now, None, &mut chance);
        assert_eq!(breaker.left(now), Some(wait));
        assert_eq!(breaker.left(now + wait / 2), Some(wait - wait / 2));
        assert_eq!(breaker.left(now + wait), None);
    }

    #[test]
    fn a_success_closes_it_and_tells_whether_it_was_open() {
        let (mut chance, now) = (Chance::with_seed(1), Instant::now());
        let mut breaker = Breaker::for_reads();
        assert!(!breaker.succeeded());
        let wait = breaker.failed(now, None, &mut chance);
        assert!(breaker.is_failing() && breaker.left(now + wait).is_none(), "its wait over, it still has to be tried");
        assert!(breaker.succeeded() && !breaker.is_failing());
        assert_eq!(breaker.left(now), None);
        assert!(breaker.failed(now, None, &mut chance) <= 10 * SECOND, "the row has begun again");
    }

    #[test]
    fn a_server_that_asks_for_more_is_given_it() {
        let (mut chance, now) = (Chance::with_seed(1), Instant::now());
        assert_eq!(Breaker::for_reads().failed(now, Some(900 * SECOND), &mut chance), 900 * SECOND);
        assert!(Breaker::for_reads().failed(now, Some(SECOND), &mut chance) >= 5 * SECOND);
    }
}
