//! Which of several servers is asked: the next one when the one in use fails for a while, an earlier one again when it
//! works.

use std::time::{Duration, Instant};

use super::{Breaker, Chance};

/// The course of one host among its servers, which go by their numbers: 0 is the one that is wanted, the others are asked
/// in their order while that one fails.
///
/// While another one than the first is in use, a request is tried with the earlier ones now and then, with the waits of
/// [`Breaker::for_configurations`] between the trials. So a fleet doesn't come back to a server in the moment in which it
/// works again.
#[derive(Clone, Debug)]
pub struct Failover {
    in_use: usize,
    /// Since when every request to the server in use has failed.
    failing_since: Option<Instant>,
    trials: Breaker,
}

/// What a request to a server says of that server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers as it should.
    Works,
    /// It can't be reached, or it fails whatever it is asked.
    Fails,
    /// Neither: the fault may be the request's.
    Open,
}

/// What follows from a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The request's outcome counts.
    None,
    /// The request is made once more, to this server.
    Repeat(usize),
    /// This server is in use from now on, and the request is made once more, to it. The one before had failed that long.
    Leave(usize, Duration),
    /// The server of this request works again, and is in use from now on.
    Return,
}

impl Default for Failover {
    fn default() -> Self {
        Self { in_use: 0, failing_since: None, trials: Breaker::for_configurations() }
    }
}

impl Failover {
    /// The server in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// The server that a request is made to. That is the first one when a trial is due and the request `may_try`.
    pub fn choose(&mut self, may_try: bool, now: Instant, chance: &mut Chance) -> usize {
        if self.in_use == 0 || !may_try || self.trials.left(now).is_some() {
            return self.in_use;
        }
        // The next trial's wait begins now, so that other threads don't try meanwhile.
        self.trials.failed(now, None, chance);
        0
    }

    /// A request to `server`, one of `servers`, was made. The one in use is left when it has failed for `after`.
    pub fn note(
        &mut self,
        server: usize,
        verdict: Verdict,
        servers: usize,
        after: Duration,
        now: Instant,
        chance: &mut Chance,
    ) -> Consequence {
        match verdict {
            Verdict::Works if server < self.in_use => {
                *self = Self { in_use: server, ..Self::default() };
                self.wait_for_a_trial(now, chance);
                Consequence::Return
            }
            _ if server < self.in_use => Consequence::Repeat(server + 1),
            Verdict::Works if server == self.in_use => {
                self.failing_since = None;
                Consequence::None
            }
            Verdict::Fails if server == self.in_use && servers > 1 => {
                let failed_for = now.saturating_duration_since(*self.failing_since.get_or_insert(now));
                if failed_for < after {
                    return Consequence::None;
                }
                *self = Self { in_use: (server + 1) % servers, ..Self::default() };
                self.wait_for_a_trial(now, chance);
                Consequence::Leave(self.in_use, failed_for)
            }
            // Neither here nor there, or of a server that was left meanwhile.
            _ => Consequence::None,
        }
    }

    fn wait_for_a_trial(&mut self, now: Instant, chance: &mut Chance) {
        if self.in_use > 0 {
            self.trials.failed(now, None, chance);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const AFTER: Duration = Duration::from_secs(60);

    /// A course among this many servers, and its clock.
    struct Trial {
        course: Failover,
        servers: usize,
        now: Instant,
        chance: Chance,
    }

    impl Trial {
        fn new(servers: usize) -> Self {
            Self { course: Failover::default(), servers, now: Instant::now(), chance: Chance::with_seed(1) }
        }

        fn note(&mut self, server: usize, verdict: Verdict) -> Consequence {
            self.course.note(server, verdict, self.servers, AFTER, self.now, &mut self.chance)
        }

        fn choose(&mut self) -> usize {
            self.course.choose(true, self.now, &mut self.chance)
        }

        /// Leaves the server in use.
        fn leave(&mut self) {
            let server = self.course.in_use();
            assert_eq!(self.note(server, Verdict::Fails), Consequence::None);
            self.now += AFTER;
            assert!(matches!(self.note(server, Verdict::Fails), Consequence::Leave(_, AFTER)));
        }

        /// Lets the time pass until a trial is due.
        fn pass(&mut self) -> Duration {
            let wait = self.course.trials.left(self.now).unwrap();
            assert_eq!(self.choose(), self.course.in_use(), "no trial before its time");
            self.now += wait;
            wait
        }
    }

    #[test]
    fn a_server_is_left_when_it_has_failed_all_the_time() {
        let mut trial = Trial::new(2);
        assert_eq!(trial.note(0, Verdict::Fails), Consequence::None);
        trial.now += AFTER - SECOND;
        assert_eq!(trial.note(0, Verdict::Fails), Consequence::None);
        assert_eq!(trial.note(0, Verdict::Works), Consequence::None);
        trial.now += SECOND;
        assert_eq!(trial.note(0, Verdict::Fails), Consequence::None, "one success is in between");
        trial.now += AFTER;
        assert_eq!(trial.note(0, Verdict::Open), Consequence::None);
        assert_eq!(trial.note(0, Verdict::Fails), Consequence::Leave(1, AFTER));
        assert_eq!((trial.course.in_use(), trial.choose()), (1, 1));
        // One that was under way.
        assert_eq!(trial.note(0, Verdict::Fails), Consequence::Repeat(1));
    }

    #[test]
    fn the_only_server_is_never_left() {
        let mut trial = Trial::new(1);
        for _ in 0..3 {
            assert_eq!((trial.note(0, Verdict::Fails), trial.choose()), (Consequence::None, 0));
            trial.now += AFTER;
        }
    }

    #[test]
    fn they_are_asked_in_their_order_and_the_first_comes_behind_the_last() {
        let mut trial = Trial::new(3);
        let order = [1, 2, 0, 1].map(|_| {
            trial.leave();
            trial.course.in_use()
        });
        assert_eq!(order, [1, 2, 0, 1]);
    }

    #[test]
    fn a_trial_goes_through_the_earlier_ones_and_costs_its_request_nothing() {
        let mut trial = Trial::new(3);
        trial.leave();
        trial.leave();
        let mut waits = Vec::new();
        for verdict in [Verdict::Fails, Verdict::Open, Verdict::Fails, Verdict::Fails] {
            waits.push(trial.pass());
            assert!(trial.course.choose(false, trial.now, &mut trial.chance) == 2, "it may not be tried with this one");
            assert_eq!((trial.choose(), trial.choose()), (0, 2), "one request tries");
            assert_eq!(trial.note(0, verdict), Consequence::Repeat(1));
            assert_eq!(trial.note(1, verdict), Consequence::Repeat(2));
            assert_eq!(trial.note(2, Verdict::Works), Consequence::None);
        }
        assert!(waits.is_sorted() && waits[0] <= 10 * SECOND && waits[3] >= 75 * SECOND, "{waits:?}");
        trial.pass();
        assert_eq!(trial.choose(), 0);
        assert_eq!(trial.note(0, Verdict::Fails), Consequence::Repeat(1));
        assert_eq!(trial.note(1, Verdict::Works), Consequence::Return);
        assert_eq!(trial.course.in_use(), 1);
        trial.pass();
        assert_eq!((trial.choose(), trial.note(0, Verdict::Works)), (0, Consequence::Return));
        assert_eq!((trial.course.in_use(), trial.choose()), (0, 0));
        // One that was under way.
        assert_eq!(trial.note(1, Verdict::Fails), Consequence::None);
    }
}
