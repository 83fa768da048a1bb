//! How fast a backlog is sent after an outage.

use std::time::{Duration, Instant};

use super::{Chance, between};

/// The share of its own intake rate at which a host sends its backlog, beside its new lines.
///
/// A rate in bytes a second that suits every host doesn't exist: a mean host's hour is a megabyte, gone in two requests at
/// any rate worth having, and a hundred thousand of them bring a server an hour's load at once. With a share of 0.25 a fleet
/// brings it a quarter more than usual, whatever the hosts' rates and number are.
///
/// It begins at 0.25, grows by 0.03 a minute while all is well, and is halved by a failure and by an answer that takes more
/// than two seconds; from 0.02 to 1. A share of 1 means twice the usual load from this host.
#[derive(Clone, Debug)]
pub struct Drain {
    share: f64,
    /// What the share has grown for so far.
    grown_until: Instant,
}

const FIRST_SHARE: f64 = 0.25;
const SMALLEST_SHARE: f64 = 0.02;
const LARGEST_SHARE: f64 = 1.0;
const GROWTH_A_MINUTE: f64 = 0.03;

/// Answers that take longer say that the server has enough to do.
const SLOW: Duration = Duration::from_secs(2);

/// How much the flushes' period varies while a backlog is sent, to both sides.
const VARIATION: f64 = 0.25;

impl Drain {
    /// A backlog is to be sent from `now` on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { share: FIRST_SHARE, grown_until: now }
    }

    /// The share as of the last answer.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
    }

    /// The server has taken lines, after so long.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        let minutes = now.saturating_duration_since(self.grown_until).as_secs_f64() / 60.0;
        self.grown_until = now;
        let share = if took > SLOW { self.share / 2.0 } else { self.share + GROWTH_A_MINUTE * minutes };
        self.share = share.clamp(SMALLEST_SHARE, LARGEST_SHARE);
    }

    /// The server has not taken lines. The time until it does again is not one in which the share grows.
    pub fn failed(&mut self, now: Instant) {
        self.grown_until = now;
        self.share = (self.share / 2.0).max(SMALLEST_SHARE);
    }

    /// Bytes of the backlog that may go with the flush that follows `since` after the one before it.
    #[must_use]
    pub fn allowance(&self, rate: IntakeRate, since: Duration) -> f64 {
        self.share * rate.bytes_per_second() * since.as_secs_f64()
    }

    /// The flushes' period while there is a backlog: within a quarter of `period`, so that hosts that came back together
    /// don't stay together.
    #[must_use]
    pub fn period(period: Duration, chance: &mut Chance) -> Duration {
        between(period.mul_f64(1.0 - VARIATION), period.mul_f64(1.0 + VARIATION), chance)
    }
}

/// How fast lines come to a host, measured by its backlog: bytes ÷ age.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntakeRate(f64);

impl IntakeRate {
    /// So many bytes have come in so long. A time under a second counts as one: nothing can be told from less.
    #[must_use]
    pub fn of(bytes: u64, age: Duration) -> Self {
        Self(bytes as f64 / age.as_secs_f64().max(1.0))
    }

    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_second(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[track_caller]
    fn assert_share(drain: &Drain, share: f64) {
        assert!((drain.share() - share).abs() < 1e-9, "{drain:?}, not {share}");
    }

    #[test]
    fn the_share_grows_by_the_minute_whatever_the_number_of_answers() {
        let start = Instant::now();
        let (mut seldom, mut often) = (Drain::new(start), Drain::new(start));
        assert_share(&seldom, 0.25);
        seldom.answered(SECOND, start + 10 * MINUTE);
        for tenths in 1..=100 {
            often.answered(SECOND, start + MINUTE * tenths / 10);
        }
        assert_share(&seldom, 0.55);
        assert_share(&often, 0.55);
        seldom.answered(SECOND, start + 60 * MINUTE);
        assert_share(&seldom, 1.0);
    }

    #[test]
    fn failures_and_slow_answers_halve_it_down_to_the_least_and_it_does_not_grow_meanwhile() {
        let start = Instant::now();
        let mut drain = Drain::new(start);
        drain.answered(2 * SECOND, start);
        assert_share(&drain, 0.25);
        drain.answered(2 * SECOND + SECOND / 10, start + MINUTE);
        assert_share(&drain, 0.125);
        drain.failed(start + 30 * MINUTE);
        assert_share(&drain, 0.0625);
        drain.answered(SECOND, start + 31 * MINUTE);
        assert_share(&drain, 0.0925);
        for _ in 0..9 {
            drain.failed(start + 32 * MINUTE);
        }
        assert_share(&drain, 0.02);
        drain.answered(3 * SECOND, start + 32 * MINUTE);
        assert_share(&drain, 0.02);
    }

    #[test]
    fn what_may_be_sent_is_the_share_of_the_host_s_own_rate() {
        let start = Instant::now();
        let mut drain = Drain::new(start);
        let hour = IntakeRate::of(1_080_000, 60 * MINUTE);
        assert!((hour.bytes_per_second() - 300.0).abs() < 1e-9);
        assert!((drain.allowance(hour, 10 * SECOND) - 750.0).abs() < 1e-9);
        drain.answered(SECOND, start + 25 * MINUTE);
        assert!((drain.allowance(hour, 10 * SECOND) - 3000.0).abs() < 1e-9);
        assert!((IntakeRate::of(500, Duration::ZERO).bytes_per_second() - 500.0).abs() < 1e-9);
    }

    #[test]
    fn the_period_varies_by_a_quarter() {
        assert_uniform(7.5, 12.5, |chance| Drain::period(10 * SECOND, chance));
    }
}
