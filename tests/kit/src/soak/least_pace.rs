//! What the extension owes in a moment without load and fault. After an outage of more than a minute it sends what waits
//! at a share of the host's own rate (docs/fleet.md), so that a backlog's end is nothing to wait for. But some of it must
//! come within a stated time, and the rest no slower than by the least share.

use std::time::{Duration, Instant};

/// The longest time in which nothing may come although lines wait and the server is well: a request that hangs (10 s), the waits after
/// failures (5 s; those of lines that were refused alone grow to 25 s in a phase of faults), `Retry-After` (6 s), a new
/// enrollment (10 s), and a busy machine.
pub(super) const SILENCE: Duration = Duration::from_secs(90);

/// The least share of its own rate at which a host sends a backlog is 0.02. Half of that is held against it: ages are
/// seen from outside, and rates change.
const LEAST_SHARE: f64 = 0.01;

/// The extension's rate of its own is the lines that wait by the time in which they came; a second at least.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// One stream in such a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeastPace {
    began: Instant,
    /// When a line came last.
    moved: Instant,
    /// Lines that were neither received nor set aside, in the beginning and now.
    owed_at_first: u64,
    owed: u64,
    /// The slowest that they may come, in lines a second.
    pace: f64,
}

impl LeastPace {
    /// A moment begins in which `owed` lines are owed, the oldest of them for `age`.
    pub(super) fn new(owed: u64, age: Duration, now: Instant) -> LeastPace {
        let pace = LEAST_SHARE * owed as f64 / age.max(LEAST_AGE).as_secs_f64();
        LeastPace { began: now, moved: now, owed_at_first: owed, owed, pace }
    }

    /// What is wrong when `owed` lines are owed now.
    pub(super) fn look(&mut self, owed: u64, now: Instant) -> Option<String> {
        if owed < self.owed {
            self.moved = now;
        }
        self.owed = owed;
        let (silent, lasted) = (now - self.moved, now - self.began);
        // A slow stream's next line takes its time.
        if owed > 0 && silent > SILENCE + Duration::from_secs_f64(1.0 / self.pace) {
            return Some(format!("{owed} lines are owed, and none came for {silent:.0?} while the server was well"));
        }
        let (came, least) = (self.owed_at_first.saturating_sub(owed), self.least(lasted));
        (came < least).then(|| {
            format!(
                "{came} of {} lines that waited came in {lasted:.0?}, fewer than {least}: slower than by the least share",
                self.owed_at_first
            )
        })
    }

    /// Whether nothing is owed, or something came.
    pub(super) fn is_content(&self) -> bool {
        self.owed == 0 || self.owed < self.owed_at_first
    }

    /// How many must have come by then.
    fn least(&self, lasted: Duration) -> u64 {
        let least = (self.pace * lasted.saturating_sub(SILENCE).as_secs_f64()) as u64;
        least.min(self.owed_at_first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// 6000 lines of two minutes: half a line a second is the least.
    fn least_pace(now: Instant) -> LeastPace {
        LeastPace::new(6000, 120 * SECOND, now)
    }

    #[test]
    fn a_backlog_may_wait_as_long_as_it_goes_by_the_least_share() {
        let start = Instant::now();
        let mut least_pace = least_pace(start);
        assert!(!least_pace.is_content());
        for second in 0..3600 {
            let sent = u64::from(second) / 2;
            assert_eq!(least_pace.look(6000 - sent, start + second * SECOND), None, "second {second}");
        }
        assert!(least_pace.is_content());
    }

    #[test]
    fn silence_is_a_fault_while_lines_wait_and_only_then() {
        let start = Instant::now();
        let mut silent = least_pace(start);
        assert_eq!(silent.look(6000, start + SILENCE), None);
        let told = silent.look(6000, start + SILENCE + 3 * SECOND).unwrap();
        assert!(told.contains("6000 lines are owed, and none came for 93s"), "{told}");
        // Also after a good beginning.
        let mut stalled = least_pace(start);
        assert_eq!(stalled.look(10, start + SECOND), None);
        assert_eq!(stalled.look(10, start + SILENCE), None);
        assert!(stalled.look(10, start + SILENCE + 4 * SECOND).is_some());
        let mut done = least_pace(start);
        assert_eq!(done.look(0, start + SECOND), None);
        assert_eq!(done.look(0, start + 10 * SILENCE), None);
        let mut nothing = LeastPace::new(0, Duration::ZERO, start);
        assert!(nothing.is_content());
        assert_eq!(nothing.look(0, start + 10 * SILENCE), None);
    }

    #[test]
    fn a_slow_stream_has_more_time_for_each_line() {
        let start = Instant::now();
        // A line a minute: at a hundredth of that the next one takes 6000 s.
        let mut least_pace = LeastPace::new(2, 120 * SECOND, start);
        assert_eq!(least_pace.look(2, start + SILENCE + 5900 * SECOND), None);
        assert!(least_pace.look(2, start + SILENCE + 6100 * SECOND).is_some());
    }

    #[test]
    fn what_goes_slower_than_by_the_least_share_is_a_fault() {
        let start = Instant::now();
        let mut least_pace = least_pace(start);
        let mut told = None;
        for second in (0..1000).step_by(10) {
            // A line each ten seconds: never silent.
            told = told.or(least_pace.look(6000 - u64::from(second) / 10, start + second * SECOND));
        }
        let told = told.unwrap();
        assert!(told.contains("slower than by the least share"), "{told}");
    }
}
