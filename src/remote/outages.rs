//! How servers are, by endpoint, and whether a request is made of one that is not well. Pure: no clock, no lock, no network.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use log::Level;

use super::endpoint::Endpoint;
use super::error::RemoteError;
use crate::logging::{Failed, Past, Streak};
use crate::policy::{Breaker, Chance, RetryAfter};

/// How often a request is made of a server that is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwell {
    Once,
    AsOften,
}

/// Failures in a row, so that a change is said and each failure isn't, and until when servers are left alone.
#[derive(Default)]
pub(super) struct Outages(HashMap<(usize, Endpoint), Outage>);

#[derive(Default)]
struct Outage {
    failures: Streak,
    breaker: Option<Breaker>,
    /// The server asked to be left alone until then.
    not_before: Option<Instant>,
}

/// What follows from a failure.
pub(super) struct Noted {
    /// For how long no other request is to be made, if that follows.
    pub(super) wait: Option<Duration>,
    /// How to say it.
    pub(super) failed: Failed,
}

impl Outages {
    /// A request has succeeded: the failures before it, when others had failed.
    pub(super) fn is_over(&mut self, server: usize, endpoint: Endpoint, now: Instant) -> Option<Past> {
        self.0.remove(&(server, endpoint)).and_then(|outage| outage.failures.succeeded_at(now))
    }

    /// A request has failed.
    pub(super) fn note(
        &mut self,
        server: usize,
        endpoint: Endpoint,
        error: &RemoteError,
        now: Instant,
        chance: &mut Chance,
    ) -> Noted {
        let outage = self.0.entry((server, endpoint)).or_default();
        let asked = RetryAfter::spread(error.retry_after(), chance);
        outage.not_before = asked.map(|asked| now + asked);
        let wait = match breaker_of(endpoint) {
            Some(breaker) if error.says_unwell() => {
                Some(outage.breaker.get_or_insert(breaker).failed(now, asked, chance))
            }
            _ => asked,
        };
        Noted { wait, failed: outage.failures.failed_at(now, Level::Warn) }
    }

    /// How long this server still asked to be left alone.
    pub(super) fn asked_for(&self, server: usize, endpoint: Endpoint, now: Instant) -> Option<Duration> {
        let left = self.0.get(&(server, endpoint))?.not_before?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// How long it still is to be left alone, asked or not.
    pub(super) fn open_for(&self, server: usize, endpoint: Endpoint, now: Instant) -> Option<Duration> {
        let left = self.breaker(server, endpoint).and_then(|breaker| breaker.left(now));
        left.max(self.asked_for(server, endpoint, now))
    }

    /// Whether the last request failed since the server is not well.
    pub(super) fn is_unwell(&self, server: usize, endpoint: Endpoint) -> bool {
        self.breaker(server, endpoint).is_some_and(Breaker::is_failing)
    }

    fn breaker(&self, server: usize, endpoint: Endpoint) -> Option<&Breaker> {
        self.0.get(&(server, endpoint))?.breaker.as_ref()
    }
}

/// Whether a request that has failed is made again after `wait`, when it may have `most` attempts and had `made`.
pub(super) fn is_made_again(error: &RemoteError, made: u32, most: u32, wait: Duration, unwell: Unwell) -> bool {
    let may_ask = error.retry_after().is_none_or(|asked| asked <= wait);
    let bears_it = unwell == Unwell::AsOften || !error.says_unwell();
    made < most && error.is_worth_another_attempt() && may_ask && bears_it
}

/// What keeps osqueryd's intervals from a server that is not well.
fn breaker_of(endpoint: Endpoint) -> Option<Breaker> {
    match endpoint {
        Endpoint::DistributedRead => Some(Breaker::for_reads()),
        Endpoint::Config => Some(Breaker::for_configurations()),
        Endpoint::Enroll | Endpoint::Logger | Endpoint::DistributedWrite => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RequestError;
    use crate::remote::api::AnswerError;

    const SECOND: Duration = Duration::from_secs(1);
    const ENDPOINT: Endpoint = Endpoint::Config;

    fn answer(source: AnswerError) -> RemoteError {
        RequestError::Answer { endpoint: ENDPOINT, url: String::new(), source }.into()
    }

    fn status(status: u16) -> RemoteError {
        answer(AnswerError::Status { status, beginning: String::new(), retry_after: None })
    }

    fn busy(seconds: u32) -> RemoteError {
        answer(AnswerError::Status { status: 503, beginning: String::new(), retry_after: Some(seconds * SECOND) })
    }

    /// The outages of the servers, and the clock.
    struct Trial {
        outages: Outages,
        now: Instant,
        chance: Chance,
    }

    impl Trial {
        fn new() -> Self {
            Self { outages: Outages::default(), now: Instant::now(), chance: Chance::with_seed(1) }
        }

        fn fail(&mut self, endpoint: Endpoint, error: &RemoteError) -> Noted {
            self.outages.note(0, endpoint, error, self.now, &mut self.chance)
        }

        fn open(&self, endpoint: Endpoint) -> Option<Duration> {
            self.outages.open_for(0, endpoint, self.now)
        }

        fn asked(&self, endpoint: Endpoint) -> Option<Duration> {
            self.outages.asked_for(0, endpoint, self.now)
        }
    }

    #[test]
    fn what_osqueryd_asks_for_at_intervals_is_not_asked_of_a_server_that_is_not_well() {
        for endpoint in [Endpoint::Config, Endpoint::DistributedRead] {
            let mut trial = Trial::new();
            assert_eq!((trial.open(endpoint), trial.outages.is_unwell(0, endpoint)), (None, false));
            let wait = trial.fail(endpoint, &status(500)).wait.unwrap();
            assert!((5 * SECOND..=10 * SECOND).contains(&wait), "{wait:?}");
            assert_eq!((trial.open(endpoint), trial.asked(endpoint)), (Some(wait), None), "it hasn't asked for it");
            trial.now += wait;
            assert_eq!(trial.open(endpoint), None);
            assert!(trial.outages.is_unwell(0, endpoint), "that is to be seen yet");
            let longer = trial.fail(endpoint, &status(500)).wait.unwrap();
            assert!((20 * SECOND..=40 * SECOND).contains(&longer), "{longer:?}");
            trial.outages.is_over(0, endpoint, trial.now);
            assert_eq!((trial.open(endpoint), trial.outages.is_unwell(0, endpoint)), (None, false));
        }
    }

    #[test]
    fn a_server_that_is_well_and_those_who_wait_by_themselves_are_not_kept_from_it() {
        let mut trial = Trial::new();
        assert_eq!(trial.fail(Endpoint::Config, &status(400)).wait, None);
        assert!(!trial.outages.is_unwell(0, Endpoint::Config));
        for endpoint in [Endpoint::Logger, Endpoint::DistributedWrite] {
            assert_eq!(trial.fail(endpoint, &status(500)).wait, None);
            assert_eq!((trial.open(endpoint), trial.outages.is_unwell(0, endpoint)), (None, false));
        }
    }

    #[test]
    fn a_server_that_asks_for_it_is_left_alone_by_all() {
        for endpoint in [Endpoint::Config, Endpoint::Logger] {
            let mut trial = Trial::new();
            let wait = trial.fail(endpoint, &busy(60)).wait.unwrap();
            assert!((60 * SECOND..=120 * SECOND).contains(&wait), "{wait:?}");
            assert_eq!((trial.asked(endpoint), trial.open(endpoint)), (Some(wait), Some(wait)));
            trial.now += wait;
            assert_eq!((trial.asked(endpoint), trial.open(endpoint)), (None, None));
        }
        // Its last word counts.
        let mut trial = Trial::new();
        trial.fail(Endpoint::Logger, &busy(60));
        trial.fail(Endpoint::Logger, &status(500));
        assert_eq!(trial.asked(Endpoint::Logger), None);
        // A short wait that it asks for shortens none of ours.
        let wait = trial.fail(Endpoint::Config, &busy(1)).wait.unwrap();
        assert!(wait >= 5 * SECOND && trial.open(Endpoint::Config) == Some(wait), "{wait:?}");
        assert!(trial.asked(Endpoint::Config).is_some_and(|asked| asked <= 2 * SECOND));
    }

    #[test]
    fn the_first_failure_is_said_and_the_end_with_how_many_there_were() {
        let mut trial = Trial::new();
        assert!(trial.outages.is_over(0, ENDPOINT, trial.now).is_none(), "nothing had failed");
        let levels = [0; 3].map(|_| {
            trial.now += SECOND;
            trial.fail(ENDPOINT, &status(400)).failed.level
        });
        assert_eq!(levels, [Level::Warn, Level::Debug, Level::Debug]);
        trial.now += 2 * SECOND;
        let past = trial.outages.is_over(0, ENDPOINT, trial.now).unwrap();
        assert_eq!(past.to_string(), "after 3 failures in 4 s");
        assert!(trial.outages.is_over(0, ENDPOINT, trial.now).is_none());
        assert_eq!(trial.fail(ENDPOINT, &status(400)).failed.level, Level::Warn);
    }

    #[test]
    fn each_server_and_each_endpoint_fails_by_itself() {
        let mut trial = Trial::new();
        trial.fail(Endpoint::Config, &busy(60));
        let now = trial.now;
        for (server, endpoint) in [(1, Endpoint::Config), (0, Endpoint::DistributedRead)] {
            assert_eq!(trial.outages.open_for(server, endpoint, now), None);
            assert!(!trial.outages.is_unwell(server, endpoint));
            assert!(trial.outages.is_over(server, endpoint, now).is_none());
        }
        assert!(trial.open(Endpoint::Config).is_some());
    }

    #[test]
    fn a_request_is_made_again_only_where_that_can_help_and_does_no_harm() {
        let again = |error: &RemoteError, made, unwell| is_made_again(error, made, 3, 10 * SECOND, unwell);
        let (unwell, refused) = (&status(500), &status(400));
        assert_eq!([1, 2, 3].map(|made| again(unwell, made, Unwell::AsOften)), [true, true, false]);
        assert!(!again(unwell, 1, Unwell::Once), "it is not well");
        assert!(again(refused, 1, Unwell::Once));
        // The server asks for a wait that is within ours, or isn't.
        assert!(again(&busy(10), 1, Unwell::AsOften) && !again(&busy(11), 1, Unwell::AsOften));
        let unusable = answer(AnswerError::NotAConfiguration(String::new()));
        assert!(!again(&unusable, 1, Unwell::AsOften), "the next one would be no other");
        let left_alone = RemoteError::BackingOff { endpoint: ENDPOINT, left: SECOND };
        assert!(!again(&left_alone, 1, Unwell::AsOften), "it was not made at all");
    }
}
