//! Whether osqueryd is owed a configuration, and what follows from that: when it is asked for again, how, what is pushed, and
//! what a call is given in its place. Pure: no clock, no lock, no network.
//!
//! ```text
//!          a genConfig is answered without one, or an operator wants it now
//! Nothing ──────────────────────────────────────────────────────────────────► Owed ──┐ fetching fails, or osqueryd
//!    ▲                                                                          │  ▲──┘ doesn't take it: later again
//!    └── osqueryd is given it: by a call that waited, by a push; or it has it ──┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CALL_LIMIT, KEPT_LIMIT};
use crate::policy::{Backoff, Chance};
use crate::single_flight::Taken;

/// Waits between attempts that no call waits for.
const RETRY_STEP: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// What osqueryd has of the server's configurations, and what it is owed.
pub(super) struct Owed {
    /// The configuration of the server's that osqueryd has from this worker.
    delivered: Option<Arc<str>>,
    /// A genConfig was answered without one, or an operator wants it now: what comes later is pushed.
    is_owed: bool,
    /// An operator wants it now: the next request is made however the server is, and names no configuration that is here.
    is_pressing: bool,
    backoff: Backoff,
    /// When it is asked for again though no call asks. It means nothing while nothing is owed.
    retry_at: Option<Instant>,
    chance: Chance,
}

/// How the server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// However the server is, for the whole: an operator waits, and this is the way out where a server's etags are wrong.
    AtOnce,
    /// At its intervals osqueryd asks again anyway.
    AtInterval,
    /// osqueryd's start waits for its first configuration.
    WithAttempts,
}

/// What is to be done when an attempt to fetch has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing until a call asks, or until [`Owed::retry_at`].
    Wait,
    /// To say that osqueryd has this one.
    SayUnchanged,
    /// To give it to osqueryd, which asks for it no longer; [`Owed::pushed`] hears what came of that.
    Push(Arc<str>),
}

/// What a call is given in place of the server's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// No configuration, which is no error: osqueryd keeps its own, and its rhythm.
    NoNews,
    /// An error: the running schedule stays.
    Error,
    /// The last good configuration is better than none; an error where none is kept.
    LastGood,
}

impl Owed {
    pub(super) fn new(chance: Chance) -> Self {
        let backoff = Backoff::new(RETRY_STEP, RETRY_MAX);
        Self { delivered: None, is_owed: false, is_pressing: false, backoff, retry_at: None, chance }
    }

    /// Whether osqueryd has none of the server's configurations: then it may be given the last good one.
    pub(super) fn has_none(&self) -> bool {
        self.delivered.is_none()
    }

    /// osqueryd is gone, and what it had.
    pub(super) fn osqueryd_is_gone(&mut self) {
        self.delivered = None;
    }

    /// The configuration is wanted now, and is pushed even where osqueryd has it.
    pub(super) fn refresh(&mut self) {
        self.delivered = None;
        self.wanted_now();
    }

    /// An operator wants the configuration now.
    pub(super) fn wanted_now(&mut self) {
        (self.is_owed, self.is_pressing) = (true, true);
    }

    /// osqueryd has this configuration of the server's now.
    pub(super) fn given(&mut self, document: &Arc<str>) {
        self.delivered = Some(Arc::clone(document));
        (self.is_owed, self.is_pressing) = (false, false);
    }

    /// A call is answered without the server's configuration, `is_left_alone`: since the server is left alone for a while. What
    /// the call is given.
    pub(super) fn unanswered(&mut self, is_left_alone: bool) -> Instead {
        if !self.has_none() && is_left_alone {
            return Instead::NoNews;
        }
        self.is_owed = true;
        if self.has_none() { Instead::LastGood } else { Instead::Error }
    }

    /// When it is to be asked for again though no call asks.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.is_owed)
    }

    /// No call asks, but something may have changed, or a wait is over: whether it is to be asked for now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        match self.retry_at {
            _ if !self.is_owed => false,
            Some(at) => now >= at,
            // A call has just been answered without one.
            None => {
                self.retry_later(now);
                false
            }
        }
    }

    /// It is asked for now: how.
    pub(super) fn ask(&mut self) -> Ask {
        match std::mem::take(&mut self.is_pressing) {
            true => Ask::AtOnce,
            false if self.has_none() => Ask::WithAttempts,
            false => Ask::AtInterval,
        }
    }

    /// An attempt to fetch has ended with this document, or without one. `taken`: whether a call was waiting for it.
    pub(super) fn fetched(&mut self, document: Option<Arc<str>>, taken: Taken, now: Instant) -> Then {
        match document {
            None if self.is_owed => {
                self.retry_later(now);
                Then::Wait
            }
            Some(document) if self.is_owed && taken == Taken::Unclaimed => {
                if self.delivered.as_ref() != Some(&document) {
                    return Then::Push(document);
                }
                self.is_owed = false;
                self.settled();
                Then::SayUnchanged
            }
            // It is owed to no one, or the call that waited hands it on.
            _ => {
                self.settled();
                Then::Wait
            }
        }
    }

    /// What was to be pushed was: whether osqueryd has it.
    pub(super) fn pushed(&mut self, has_it: bool, now: Instant) {
        if has_it { self.settled() } else { self.retry_later(now) }
    }

    fn retry_later(&mut self, now: Instant) {
        self.retry_at = Some(now + self.backoff.failed(&mut self.chance));
    }

    fn settled(&mut self) {
        self.backoff.succeeded();
        self.retry_at = None;
    }
}

/// How long a call waits at most, where there is a last good configuration to give it or not.
pub(super) fn call_limit(has_kept: bool) -> Duration {
    if has_kept { KEPT_LIMIT } else { CALL_LIMIT }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The machine and its clock.
    struct Trial {
        owed: Owed,
        now: Instant,
    }

    impl Trial {
        fn new() -> Self {
            Self { owed: Owed::new(Chance::with_seed(1)), now: Instant::now() }
        }

        /// To an osqueryd that has this one.
        fn with(document: &str) -> Self {
            let mut trial = Self::new();
            trial.owed.given(&document.into());
            trial
        }

        /// An attempt ends while no call waits.
        fn fetched(&mut self, document: Option<&str>) -> Then {
            self.owed.fetched(document.map(Arc::from), Taken::Unclaimed, self.now)
        }

        fn pushed(&mut self, document: &str, has_it: bool) {
            assert_eq!(self.fetched(Some(document)), Then::Push(document.into()));
            if has_it {
                self.owed.given(&document.into());
            }
            self.owed.pushed(has_it, self.now);
        }

        /// How long it is not asked for by itself; `None` when it isn't at all.
        fn wait(&self) -> Option<Duration> {
            self.owed.retry_at().map(|at| at.saturating_duration_since(self.now))
        }

        /// Lets the time pass until it is asked for by itself.
        fn pass(&mut self) {
            let wait = self.wait().expect("it is owed");
            self.now += wait - SECOND / 1000;
            assert!(!self.owed.is_due(self.now), "its time has not come");
            self.now += SECOND / 1000;
            assert!(self.owed.is_due(self.now));
        }
    }

    #[test]
    fn nothing_is_asked_for_or_pushed_while_nothing_is_owed() {
        let mut trial = Trial::new();
        assert_eq!((trial.owed.is_due(trial.now), trial.wait()), (false, None));
        assert_eq!(trial.fetched(Some("a")), Then::Wait);
        assert_eq!((trial.fetched(None), trial.wait()), (Then::Wait, None));
        // The call that asked has gone, and none was answered without one: osqueryd asks again.
        let mut trial = Trial::with("a");
        assert_eq!((trial.fetched(Some("b")), trial.wait()), (Then::Wait, None));
    }

    #[test]
    fn what_a_call_was_answered_without_is_asked_for_again_and_pushed() {
        let mut trial = Trial::new();
        assert_eq!(trial.owed.unanswered(false), Instead::LastGood);
        assert_eq!(trial.wait(), None);
        assert!(!trial.owed.is_due(trial.now), "it was asked for a moment ago");
        assert!((RETRY_STEP / 2..=RETRY_STEP).contains(&trial.wait().unwrap()), "{:?}", trial.wait());
        trial.pass();
        trial.pushed("a", true);
        assert_eq!((trial.wait(), trial.owed.is_due(trial.now)), (None, false));
    }

    #[test]
    fn failures_are_followed_by_longer_waits_until_osqueryd_has_it() {
        let mut trial = Trial::new();
        trial.owed.unanswered(false);
        for attempt in 1..=20 {
            assert_eq!(trial.fetched(None), Then::Wait);
            let most = (attempt * attempt * RETRY_STEP).min(RETRY_MAX);
            assert!((most / 2..=most).contains(&trial.wait().unwrap()), "{attempt}: {:?}", trial.wait());
            trial.pass();
        }
        // It has come, and osqueryd can't be given it.
        trial.pushed("a", false);
        assert!(trial.wait().unwrap() >= RETRY_MAX / 2, "{:?}", trial.wait());
        trial.pass();
        trial.pushed("a", true);
        trial.owed.unanswered(false);
        trial.fetched(None);
        assert!(trial.wait().unwrap() <= RETRY_STEP, "the row has begun again");
    }

    #[test]
    fn what_a_call_waits_for_is_handed_on_by_it() {
        let mut trial = Trial::new();
        trial.owed.unanswered(false);
        trial.fetched(None);
        assert_eq!(trial.owed.fetched(Some("a".into()), Taken::Claimed, trial.now), Then::Wait);
        assert_eq!(trial.wait(), None);
        // An error is no configuration, for a call that waited as for a push.
        assert_eq!(trial.owed.fetched(None, Taken::Claimed, trial.now), Then::Wait);
        assert!(trial.wait().is_some());
        trial.owed.given(&"a".into());
        assert_eq!(trial.wait(), None);
    }

    #[test]
    fn only_what_is_new_is_pushed() {
        let mut trial = Trial::with("a");
        assert_eq!(trial.owed.unanswered(false), Instead::Error);
        assert_eq!((trial.fetched(Some("a")), trial.wait()), (Then::SayUnchanged, None));
        assert_eq!(trial.fetched(Some("b")), Then::Wait, "nothing is owed any more");
        trial.owed.unanswered(false);
        trial.pushed("b", true);
        // The next osqueryd has none, and a refresh is to be seen.
        trial.owed.osqueryd_is_gone();
        trial.owed.unanswered(false);
        trial.pushed("b", true);
        trial.owed.refresh();
        trial.pushed("b", true);
        // An operator who waits longer than for his answer.
        trial.owed.wanted_now();
        assert_eq!(trial.fetched(Some("b")), Then::SayUnchanged);
    }

    #[test]
    fn a_wait_that_a_call_has_ended_counts_for_the_next_debt() {
        let mut trial = Trial::new();
        trial.owed.unanswered(false);
        trial.fetched(None);
        let wait = trial.wait();
        trial.owed.given(&"a".into());
        assert!(!trial.owed.is_due(trial.now + RETRY_MAX) && trial.wait().is_none());
        trial.owed.unanswered(false);
        assert_eq!(trial.wait(), wait);
    }

    #[test]
    fn an_osqueryd_that_has_one_keeps_it_and_its_rhythm_while_the_server_is_left_alone() {
        let mut trial = Trial::with("a");
        assert_eq!(trial.owed.unanswered(true), Instead::NoNews);
        assert_eq!((trial.owed.is_due(trial.now), trial.wait()), (false, None), "nothing is owed");
        assert_eq!(trial.owed.unanswered(false), Instead::Error);
        trial.owed.osqueryd_is_gone();
        assert!(trial.owed.has_none());
        assert_eq!(trial.owed.unanswered(true), Instead::LastGood);
    }

    #[test]
    fn the_server_is_asked_as_urgently_as_somebody_waits() {
        let mut trial = Trial::new();
        assert_eq!(trial.owed.ask(), Ask::WithAttempts);
        trial.owed.given(&"a".into());
        assert_eq!(trial.owed.ask(), Ask::AtInterval);
        trial.owed.wanted_now();
        assert_eq!([trial.owed.ask(), trial.owed.ask()], [Ask::AtOnce, Ask::AtInterval]);
        trial.owed.refresh();
        assert_eq!([trial.owed.ask(), trial.owed.ask()], [Ask::AtOnce, Ask::WithAttempts]);
        // A call was faster: the operator's wish is fulfilled.
        trial.owed.refresh();
        trial.owed.given(&"b".into());
        assert_eq!(trial.owed.ask(), Ask::AtInterval);
        trial.owed.osqueryd_is_gone();
        assert_eq!(trial.owed.ask(), Ask::WithAttempts);
    }

    #[test]
    fn a_call_waits_for_long_only_where_nothing_could_be_given_instead() {
        assert_eq!((call_limit(true), call_limit(false)), (KEPT_LIMIT, CALL_LIMIT));
    }
}
