//! How much of a stream's backlog goes with a flush.

use std::time::{Duration, Instant};

use crate::policy::{Drain, IntakeRate};

/// What has waited no longer than this is no backlog: it is sent at once.
pub(super) const RECENT: Duration = Duration::from_secs(60);

/// A backlog counts as no older than this: a host's clock can be wrong by years.
const OLDEST: Duration = Duration::from_secs(24 * 3600);

/// How a stream's backlog is sent, counted in lines. There is none while lines are delivered as they come.
#[derive(Default)]
pub(super) struct Pace(Option<Draining>);

struct Draining {
    drain: Drain,
    /// The highest that was measured: as the backlog shrinks, its age doesn't.
    rate: IntakeRate,
    /// Lines that waited after the last flush; not when that has failed.
    left: Option<u64>,
    /// Lines that came since then: as many go without credit, so that the backlog never grows.
    came: u64,
}

impl Pace {
    /// How many of the `waiting` lines may go with the flush that begins; `None` is all. `age` is the time since nothing was
    /// left to send.
    pub(super) fn allows(&mut self, waiting: u64, age: Duration, period: Duration, now: Instant) -> Option<u64> {
        let is_sent = self.0.as_ref().is_some_and(|draining| draining.left == Some(0));
        if age < RECENT || waiting == 0 || is_sent {
            self.0 = None;
            return None;
        }
        let new = || Draining { drain: Drain::new(now), rate: IntakeRate::default(), left: None, came: 0 };
        let draining = self.0.get_or_insert_with(new);
        let rate = IntakeRate::of(waiting, age.min(OLDEST)).at_least_a_quiet_host_s(1);
        if rate > draining.rate {
            draining.rate = rate;
        }
        draining.came = draining.left.map_or(0, |left| waiting.saturating_sub(left));
        draining.left = Some(waiting);
        let credit = draining.drain.credit(draining.rate, period, now).ceil().max(0.0) as u64;
        Some(draining.came.saturating_add(credit))
    }

    /// The server has taken this many lines of it, and took this time for it.
    pub(super) fn answered(&mut self, lines: u64, took: Duration, now: Instant) {
        if let Some(draining) = &mut self.0 {
            draining.drain.spent(lines.saturating_sub(draining.came));
            draining.drain.answered(took, now);
            draining.came = draining.came.saturating_sub(lines);
            draining.left = draining.left.map(|left| left.saturating_sub(lines));
        }
    }

    /// The server has not taken what was sent.
    pub(super) fn failed(&mut self, now: Instant) {
        if let Some(draining) = &mut self.0 {
            draining.drain.failed(now);
            draining.left = None;
        }
    }

    /// Whether one is being sent.
    pub(super) fn is_draining(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PERIOD: Duration = Duration::from_secs(10);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_came_within_the_last_minute_goes_at_once() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.allows(1_000_000, 59 * SECOND, PERIOD, now), None);
        assert!(!pace.is_draining());
    }

    #[test]
    fn an_hour_s_lines_go_at_the_pace_at_which_they_came_and_a_share_more() {
        let now = Instant::now();
        let mut pace = Pace::default();
        // Half a line a second.
        assert_eq!(pace.allows(1800, HOUR, PERIOD, now), Some(2));
        pace.answered(2, SECOND / 10, now);
        assert!(pace.is_draining());
        let (now, waiting) = (now + PERIOD, 1798 + 5);
        assert_eq!(pace.allows(waiting, HOUR, PERIOD, now), Some(5 + 1), "what was overdrawn is waited for");
        pace.answered(6, SECOND / 10, now);
        assert_eq!(pace.allows(100, 10 * SECOND, PERIOD, now + HOUR), None);
        assert!(!pace.is_draining());
    }

    #[test]
    fn it_is_over_when_all_that_waited_is_sent() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.allows(4, HOUR, PERIOD, now), Some(1));
        pace.answered(1, SECOND / 10, now);
        assert_eq!(pace.allows(3, HOUR, PERIOD, now + HOUR), Some(180));
        pace.answered(3, SECOND / 10, now + HOUR);
        assert_eq!(pace.allows(7, 2 * HOUR, PERIOD, now + HOUR + PERIOD), None);
        assert!(!pace.is_draining());
    }

    #[test]
    fn what_comes_faster_than_before_does_not_pile_up() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let (mut waiting, mut now) = (3600, start);
        for minute in 0..180 {
            waiting += 600;
            now = start + minute * 60 * SECOND;
            // The oldest stays as old: the worst that there is.
            let sent = pace.allows(waiting, HOUR, PERIOD, now).unwrap_or(waiting).min(waiting);
            pace.answered(sent, SECOND / 10, now);
            waiting -= sent;
        }
        assert!(waiting < 3600, "{waiting} lines wait, {:?} later", now - start);
    }

    #[test]
    fn a_clock_that_is_wrong_by_years_does_not_stop_it() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.allows(864_000, 50 * 365 * 24 * HOUR, PERIOD, now), Some(25));
    }

    #[test]
    fn a_failure_takes_the_credit_and_half_of_the_share() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.allows(36_000, HOUR, PERIOD, now);
        pace.failed(now);
        assert_eq!(pace.allows(36_000, HOUR, PERIOD, now + HOUR), Some(13));
    }
}
