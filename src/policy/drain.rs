//! How fast a backlog is sent after an outage.

use std::time::{Duration, Instant};

use super::{Chance, between};

/// The share of its own intake rate at which a host sends its backlog, beside its new lines.
///
/// A rate in bytes a second that suits every host doesn't exist: a mean host's hour is a megabyte, gone in two requests
/// at any rate worth having, and a hundred thousand of them bring a server an hour's load at once. With a share of 0.25
/// a fleet brings it a quarter more than usual, whatever the hosts' rates and number are.
///
/// It begins at 0.25, grows by 0.03 a minute while all is well, and is halved by a failure and by an answer that takes
/// more than two seconds; from 0.02 to 1. A share of 1 means twice the usual load from this host.
///
/// What may be sent is kept as a credit. The sender may overdraw it by a request, since a line can't be divided, and
/// then waits until it is there again. Bytes can be lines as well: credit and rate count the same.
#[derive(Clone, Debug)]
pub struct Drain {
    share: f64,
    /// What the share has grown for so far.
    grown_until: Instant,
    /// Bytes that may be sent; below zero when more were.
    credit: f64,
    /// What the credit has grown for so far.
    credited_until: Option<Instant>,
}

const FIRST_SHARE: f64 = 0.25;
const SMALLEST_SHARE: f64 = 0.02;
const LARGEST_SHARE: f64 = 1.0;
const GROWTH_A_MINUTE: f64 = 0.03;

/// Answers that take longer say that the server has enough to do.
const SLOW: Duration = Duration::from_secs(2);

/// What a host that logs next to nothing sends its backlog by.
const QUIET_LINES_PER_SECOND: f64 = 0.2;

/// How much the flushes' period varies while a backlog is sent, to both sides.
const VARIATION: f64 = 0.25;

impl Drain {
    /// A backlog is to be sent from `now` on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { share: FIRST_SHARE, grown_until: now, credit: 0.0, credited_until: None }
    }

    /// The share as of the last answer.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Bytes of the backlog that may be sent with the flush of `now`, beside what is new: nothing when they are not
    /// above zero. The first flush, and the first one after a failure, has the credit of one `period`.
    pub fn credit(&mut self, rate: IntakeRate, period: Duration, now: Instant) -> f64 {
        let since = self.credited_until.map_or(period, |then| now.saturating_duration_since(then));
        self.credited_until = Some(now);
        self.credit += self.share * rate.per_second() * since.as_secs_f64();
        self.credit
    }

    /// Uses up this part of the credit.
    pub fn spent(&mut self, bytes: u64) {
        self.credit -= bytes as f64;
    }

    /// The server has taken lines, and took this time for it.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        let minutes = now.saturating_duration_since(self.grown_until).as_secs_f64() / 60.0;
        self.grown_until = now;
        let share = if took > SLOW { self.share / 2.0 } else { self.share + GROWTH_A_MINUTE * minutes };
        self.share = share.clamp(SMALLEST_SHARE, LARGEST_SHARE);
    }

    /// The server has not taken lines. Neither the share nor the credit grows until it does again; what was not used of
    /// the credit is gone, and what was overdrawn, too: the next flush must have something to try with.
    pub fn failed(&mut self, now: Instant) {
        self.grown_until = now;
        self.share = (self.share / 2.0).max(SMALLEST_SHARE);
        self.credit = 0.0;
        self.credited_until = None;
    }

    /// The flushes' period while there is a backlog: within a quarter of `period`, so that hosts that came back
    /// together don't stay together.
    #[must_use]
    pub fn period(period: Duration, chance: &mut Chance) -> Duration {
        between(period.mul_f64(1.0 - VARIATION), period.mul_f64(1.0 + VARIATION), chance)
    }
}

/// How fast lines come to a host, measured by its backlog: bytes ÷ age.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct IntakeRate(f64);

impl IntakeRate {
    /// The rate of `bytes` that came within `age`. A time under a second counts as one: nothing can be told from less.
    #[must_use]
    pub fn of(bytes: u64, age: Duration) -> Self {
        Self(bytes as f64 / age.as_secs_f64().max(1.0))
    }

    /// This rate, or a quiet host's where that is more: a backlog of a few lines must not take days because it is old.
    /// A quiet host's lines have `line` bytes each; 1 where lines are counted and not bytes.
    #[must_use]
    pub fn at_least_a_quiet_host_s(self, line: u64) -> Self {
        Self(self.0.max(QUIET_LINES_PER_SECOND * line as f64))
    }

    /// Bytes a second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const PERIOD: Duration = Duration::from_secs(10);

    #[track_caller]
    fn assert_near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-6, "{value}, not {expected}");
    }

    #[test]
    fn the_share_grows_by_the_minute_whatever_the_number_of_answers() {
        let start = Instant::now();
        let (mut seldom, mut often) = (Drain::new(start), Drain::new(start));
        assert_near(seldom.share(), 0.25);
        seldom.answered(SECOND, start + 10 * MINUTE);
        for tenths in 1..=100 {
            often.answered(SECOND, start + MINUTE * tenths / 10);
        }
        assert_near(seldom.share(), 0.55);
        assert_near(often.share(), 0.55);
        seldom.answered(SECOND, start + 60 * MINUTE);
        assert_near(seldom.share(), 1.0);
    }

    #[test]
    fn failures_and_slow_answers_halve_it_down_to_the_least_and_it_does_not_grow_meanwhile() {
        let start = Instant::now();
        let mut drain = Drain::new(start);
        drain.answered(2 * SECOND, start);
        assert_near(drain.share(), 0.25);
        drain.answered(2 * SECOND + SECOND / 10, start + MINUTE);
        assert_near(drain.share(), 0.125);
        drain.failed(start + 30 * MINUTE);
        assert_near(drain.share(), 0.0625);
        drain.answered(SECOND, start + 31 * MINUTE);
        assert_near(drain.share(), 0.0925);
        for _ in 0..9 {
            drain.failed(start + 32 * MINUTE);
        }
        assert_near(drain.share(), 0.02);
        drain.answered(3 * SECOND, start + 32 * MINUTE);
        assert_near(drain.share(), 0.02);
    }

    #[test]
    fn the_credit_is_the_share_of_the_host_s_own_rate() {
        let start = Instant::now();
        let hour = IntakeRate::of(1_080_000, 60 * MINUTE);
        assert_near(hour.per_second(), 300.0);
        let mut drain = Drain::new(start);
        assert_near(drain.credit(hour, PERIOD, start), 750.0);
        drain.spent(750);
        assert_near(drain.credit(hour, PERIOD, start + 2 * PERIOD), 1500.0);
        assert_near(IntakeRate::of(500, Duration::ZERO).per_second(), 500.0);
        assert_near(IntakeRate::of(5, 3600 * MINUTE).at_least_a_quiet_host_s(1).per_second(), 0.2);
        assert_near(hour.at_least_a_quiet_host_s(600).per_second(), 300.0);
    }

    #[test]
    fn what_is_overdrawn_is_waited_for() {
        let start = Instant::now();
        let rate = IntakeRate::of(400, SECOND);
        let mut drain = Drain::new(start);
        assert!(drain.credit(rate, PERIOD, start) > 0.0);
        drain.spent(3000);
        assert!(drain.credit(rate, PERIOD, start + PERIOD) < 0.0);
        assert_near(drain.credit(rate, PERIOD, start + 2 * PERIOD), 0.0);
        assert!(drain.credit(rate, PERIOD, start + 3 * PERIOD) > 0.0);
    }

    #[test]
    fn an_outage_while_a_backlog_is_sent_gives_no_credit() {
        let start = Instant::now();
        let rate = IntakeRate::of(400, SECOND);
        let mut drain = Drain::new(start);
        drain.credit(rate, PERIOD, start);
        drain.failed(start);
        assert_near(drain.credit(rate, PERIOD, start + 60 * MINUTE), 0.125 * 400.0 * 10.0);
    }

    #[test]
    fn the_period_varies_by_a_quarter() {
        assert_uniform(7.5, 12.5, |chance| Drain::period(PERIOD, chance));
    }
}
