//! How often something may happen in any hour.

use std::time::{Duration, Instant};

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
}
