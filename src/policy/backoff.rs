//! Waits that grow with the square of the failures in a row, as osquery's own do, each spread over half its length.

use std::time::Duration;

use super::{Chance, between};

/// How long to wait after each failure in a row: U(½, 1) · min(`step`·k², `most`).
///
/// The cap comes before the draw. With the cap behind it, four fifths of a fleet wait exactly as long as the cap after an
/// hour's outage, and come back together. So a first failure's wait is half of `step` at least, and `step` at most.
#[derive(Clone, Debug)]
pub struct Backoff {
    step: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of `step`·k², at most `most`.
    #[must_use]
    pub fn new(step: Duration, most: Duration) -> Self {
        Self { step, most, failures: 0 }
    }

    /// A failure more: the wait that follows it.
    pub fn failed(&mut self, chance: &mut Chance) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let factor = self.failures.saturating_mul(self.failures);
        let longest = self.step.saturating_mul(factor).min(self.most);
        between(longest / 2, longest, chance)
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
    pub fn set_bounds(&mut self, step: Duration, most: Duration) {
        self.step = step;
        self.most = most;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failed(times: u32, chance: &mut Chance) -> Duration {
        let mut backoff = Backoff { failures: times - 1, ..Backoff::new(4 * SECOND, 60 * SECOND) };
        backoff.failed(chance)
    }

    #[test]
    fn waits_are_spread_evenly_over_the_upper_half_of_the_square_of_the_failures() {
        assert_uniform(2.0, 4.0, |chance| failed(1, chance));
        assert_uniform(8.0, 16.0, |chance| failed(2, chance));
        assert_uniform(18.0, 36.0, |chance| failed(3, chance));
    }

    #[test]
    fn at_the_maximum_waits_are_spread_as_much_as_before() {
        assert_uniform(30.0, 60.0, |chance| failed(4, chance));
        assert_uniform(30.0, 60.0, |chance| failed(u32::MAX, chance));
    }

    #[test]
    fn a_success_starts_the_row_again_and_tells_its_length() {
        let mut chance = Chance::with_seed(1);
        let mut backoff = Backoff::new(SECOND, 600 * SECOND);
        backoff.failed(&mut chance);
        backoff.failed(&mut chance);
        assert_eq!((backoff.failures(), backoff.succeeded(), backoff.failures()), (2, 2, 0));
        assert!(backoff.failed(&mut chance) <= SECOND);
    }

    #[test]
    fn other_bounds_count_from_the_next_failure_on_and_keep_the_row() {
        let mut chance = Chance::with_seed(1);
        let mut backoff = Backoff::new(SECOND, 600 * SECOND);
        backoff.failed(&mut chance);
        backoff.set_bounds(10 * SECOND, 600 * SECOND);
        assert!((20 * SECOND..=40 * SECOND).contains(&backoff.failed(&mut chance)));
    }
}
