//! How an enrollment stands, and what follows from what happens to it. Pure: no clock, no lock, no network.
//!
//! ```text
//!            Needed                    Granted
//! Without ───────────► Enrolling ─────────────────► Enrolled (provisional) ──Confirmed──► Enrolled (proven)
//!    ▲                  │     ▲                         │                                     │
//!    └── the last of the round's attempts failed        └──── Rejected: a failed attempt      └─ Rejected
//! ```
//!
//! A key in osqueryd's store, ours or the built-in plugins', makes it `Enrolled` from any state, unless another key is
//! wanted whatever is stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::EnrollError;
use crate::policy::{Allowance, Backoff, Chance, Reenrollment, RetryAfter};
use crate::remote::api::Enrolled;
use crate::secret::Secret;
use crate::settings::EnrollSettings;

/// The waits after failed attempts grow from this.
const STEP: Duration = Duration::from_secs(1);

/// How the enrollment stands.
#[derive(Debug)]
enum State {
    /// No node key is known, and no attempt is under way.
    Without,
    /// Attempts are made until there is a key.
    Enrolling,
    /// Attempts are made for another key (`enroll_always`); this one is good until then.
    Renewing(Option<Held>),
    /// There is a key.
    Enrolled(Held),
}

/// A node key that this host has, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    key: Secret,
    /// When it was asked for, in Unix seconds; 0 when that is not known.
    since: i64,
    storage: KeyStorage,
    proof: Proof,
}

/// Where a node key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyStorage {
    /// In osqueryd's store, which outlives our processes.
    Store,
    /// Here alone: the store did not take it.
    Memory,
    /// Nowhere: the server wants no key, since it knows its nodes by their client certificates.
    Nowhere,
}

/// Whether a key has been of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// No request has succeeded with it yet. When the next one rejects it, that is a failed attempt.
    Provisional,
    /// One has, or it was there before us.
    Proven,
}

/// What happens to an enrollment, from outside.
pub(super) enum Event {
    /// A request needs a key and there is none.
    Needed,
    /// A request needs a key for the first time, and `enroll_always` wants another one.
    NeededAnew,
    /// osqueryd's store was read: the key in it.
    Seen(Option<Secret>),
    /// Since when there is the key, as is stored beside it: Unix seconds.
    Dated(i64),
    /// The server has given a key, which is kept there now.
    Granted { enrolled: Enrolled, storage: KeyStorage, asked_at: i64 },
    /// An attempt has failed.
    Failed(Arc<EnrollError>),
    /// A request with this key was taken.
    Confirmed(Secret),
    /// The server does not accept this key.
    Rejected(Secret),
    /// A rejected key could not be removed from the store.
    NotRemoved(Secret),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Requests that wait for a key, or for the error, go on.
    Settle,
    /// To find out since when there is the key that was seen.
    Date,
    /// To say that this many attempts have failed, and that none is made any more until a key is needed again.
    SayGivenUp(u32),
}

/// The state of an enrollment. Events go in, and what is to be done comes out: it touches neither osqueryd nor the server.
pub(super) struct Machine {
    state: State,
    pace: Pace,
    /// A rejected key that osqueryd's store did not give up.
    not_removed: Option<Secret>,
    /// Attempts made so far.
    made: u64,
    last_error: Option<Arc<EnrollError>>,
}

/// When the next attempt may be made.
struct Pace {
    backoff: Backoff,
    /// Attempts of this round; it ends after `tls_enroll_max_attempts`, or when a key proves good.
    round: u32,
    after_failure: Instant,
    /// Bounds enrollments that succeed: each may be a new entry in the server's list of nodes.
    allowance: Allowance,
    after_grant: Instant,
    /// A key that had worked was rejected: a fleet's hosts don't ask for others all at once.
    after_rejection: Instant,
    chance: Chance,
    /// `enroll_max_per_hour`, as it was at the last grant.
    most_an_hour: u32,
}

/// What others see of it.
pub(super) struct View {
    /// Whether the host has a key that it may use.
    pub(super) enrolled: bool,
    /// When that key was asked for, in Unix seconds; 0 without a key, and when that is not known.
    pub(super) since: i64,
    /// Attempts made so far.
    pub(super) made: u64,
    /// Why there is no key, or why the next attempt has to wait.
    pub(super) error: Option<Arc<EnrollError>>,
}

impl Machine {
    pub(super) fn new(policy: &EnrollSettings, now: Instant, chance: Chance) -> Self {
        let pace = Pace {
            backoff: Backoff::new(STEP, policy.max_interval),
            round: 0,
            after_failure: now,
            allowance: Allowance::new(now),
            after_grant: now,
            after_rejection: now,
            chance,
            most_an_hour: policy.max_per_hour,
        };
        Self { state: State::Without, pace, not_removed: None, made: 0, last_error: None }
    }

    /// Something happens `now`: what is to be done.
    pub(super) fn on(&mut self, event: Event, policy: &EnrollSettings, now: Instant) -> Vec<Action> {
        match event {
            Event::Needed => self.needed(),
            Event::NeededAnew => self.needed_anew(),
            Event::Seen(key) => return self.seen(key),
            Event::Dated(since) => self.dated(since),
            Event::Granted { enrolled, storage, asked_at } => {
                self.made += 1;
                self.granted(enrolled, storage, asked_at);
                self.pace.granted(policy, now);
                return vec![Action::Settle];
            }
            Event::Failed(error) => {
                self.made += 1;
                return self.failed(error, policy, now);
            }
            Event::Confirmed(key) => self.confirmed(&key),
            Event::Rejected(key) => self.rejected(&key, policy, now),
            Event::NotRemoved(key) => self.not_removed = Some(key),
        }
        Vec::new()
    }

    /// The key to use now, as far as is known without a look at the store.
    pub(super) fn key(&self) -> Option<&Secret> {
        self.held().map(|held| &held.key)
    }

    /// Whether osqueryd's store has a say in which key is used.
    pub(super) fn is_in_store(&self) -> bool {
        self.held().is_none_or(|held| held.storage != KeyStorage::Nowhere)
    }

    /// When the next attempt is to be made; `None` when there is no need for one.
    pub(super) fn due(&self) -> Option<Instant> {
        matches!(self.state, State::Enrolling | State::Renewing(_)).then(|| self.pace.due())
    }

    /// When the next attempt may be made, whether one is needed or not.
    pub(super) fn not_before(&self) -> Instant {
        self.pace.due()
    }

    /// The spread over a fleet's time is over for this host: whether the next attempt waited for it.
    pub(super) fn hurry(&mut self, now: Instant) -> bool {
        let waited = self.pace.after_rejection > now;
        self.pace.after_rejection = self.pace.after_rejection.min(now);
        waited
    }

    /// That the next attempt waits though none has failed: too many were granted, or it is spread over a fleet's time.
    pub(super) fn throttle(&self, now: Instant) -> Option<EnrollError> {
        let (pace, wait) = (&self.pace, self.pace.due().saturating_duration_since(now));
        match () {
            () if wait.is_zero() || pace.due() == pace.after_failure => None,
            () if pace.due() == pace.after_grant => {
                Some(EnrollError::Throttled { wait, most_an_hour: pace.most_an_hour })
            }
            () => Some(EnrollError::Spread(wait)),
        }
    }

    pub(super) fn view(&self, now: Instant) -> View {
        View {
            enrolled: self.held().is_some(),
            since: self.held().map_or(0, |held| held.since),
            made: self.made,
            error: self.throttle(now).map(Arc::new).or_else(|| self.last_error.clone()),
        }
    }

    fn held(&self) -> Option<&Held> {
        match &self.state {
            State::Enrolled(held) | State::Renewing(Some(held)) => Some(held),
            State::Without | State::Enrolling | State::Renewing(None) => None,
        }
    }

    fn needed(&mut self) {
        if let State::Without = self.state {
            self.state = State::Enrolling;
        }
    }

    fn needed_anew(&mut self) {
        self.state = State::Renewing(self.held().cloned());
    }

    fn seen(&mut self, stored: Option<Secret>) -> Vec<Action> {
        let stored = stored.filter(|key| !key.is_empty() && self.not_removed.as_ref() != Some(key));
        let held = self.held().cloned();
        let now_held = match (stored, held) {
            (Some(key), Some(held)) if key == held.key => Some(held),
            (Some(key), _) => Some(Held { key, since: 0, storage: KeyStorage::Store, proof: Proof::Proven }),
            // What the store did not take is not looked for there.
            (None, held) => held.filter(|held| held.storage != KeyStorage::Store),
        };
        let another = now_held.is_some() && self.key() != now_held.as_ref().map(|held| &held.key);
        let settled = matches!(self.state, State::Enrolling) && now_held.is_some();
        self.state = match (std::mem::replace(&mut self.state, State::Without), now_held) {
            (State::Renewing(_), held) => State::Renewing(held),
            (_, Some(held)) => State::Enrolled(held),
            (State::Enrolling, None) => State::Enrolling,
            (State::Without | State::Enrolled(_), None) => State::Without,
        };
        let actions = [(another, Action::Date), (settled, Action::Settle)];
        actions.into_iter().filter_map(|(wanted, action)| wanted.then_some(action)).collect()
    }

    fn dated(&mut self, since: i64) {
        if let State::Enrolled(held) | State::Renewing(Some(held)) = &mut self.state {
            held.since = since;
        }
    }

    fn granted(&mut self, enrolled: Enrolled, storage: KeyStorage, since: i64) {
        let held = match enrolled {
            Enrolled::Key(key) => Held { key, since, storage, proof: Proof::Provisional },
            Enrolled::Blank => {
                Held { key: Secret::default(), since, storage: KeyStorage::Nowhere, proof: Proof::Provisional }
            }
        };
        self.state = State::Enrolled(held);
        self.not_removed = None;
        self.last_error = None;
    }

    fn failed(&mut self, error: Arc<EnrollError>, policy: &EnrollSettings, now: Instant) -> Vec<Action> {
        let asked = error.retry_after();
        self.last_error = Some(error);
        let Some(attempts) = self.pace.failed(policy, asked, now) else { return Vec::new() };
        // The next need begins another round, after the wait.
        self.state = match std::mem::replace(&mut self.state, State::Without) {
            State::Renewing(Some(held)) | State::Enrolled(held) => State::Enrolled(held),
            State::Renewing(None) | State::Enrolling | State::Without => State::Without,
        };
        vec![Action::SayGivenUp(attempts), Action::Settle]
    }

    fn confirmed(&mut self, key: &Secret) {
        if let State::Enrolled(held) = &mut self.state
            && held.proof == Proof::Provisional
            && held.key == *key
        {
            held.proof = Proof::Proven;
            self.pace.proven();
        }
    }

    fn rejected(&mut self, key: &Secret, policy: &EnrollSettings, now: Instant) {
        let Some(held) = self.held().filter(|held| held.key == *key) else { return };
        match (held.proof, &self.state) {
            (Proof::Provisional, _) => {
                self.last_error = Some(Arc::new(EnrollError::KeyRefused));
                self.pace.failed(policy, None, now);
            }
            (Proof::Proven, State::Enrolled(_)) => self.pace.rejected(policy, now),
            // Another one is asked for already.
            (Proof::Proven, _) => {}
        }
        self.state = match self.state {
            State::Renewing(_) => State::Renewing(None),
            _ => State::Without,
        };
    }
}

impl Pace {
    /// Not before all waits are over: none shortens another.
    fn due(&self) -> Instant {
        self.after_failure.max(self.after_grant).max(self.after_rejection)
    }

    fn granted(&mut self, policy: &EnrollSettings, now: Instant) {
        self.most_an_hour = policy.max_per_hour;
        self.after_grant = self.allowance.used(now, policy.max_per_hour);
    }

    /// Counts a failed attempt: its wait begins. How many there were, when it was the last one of a round.
    fn failed(&mut self, policy: &EnrollSettings, asked: Option<Duration>, now: Instant) -> Option<u32> {
        self.backoff.set_bounds(STEP, policy.max_interval);
        let asked = RetryAfter::spread(asked, &mut self.chance).unwrap_or_default();
        self.after_failure = now + self.backoff.failed(&mut self.chance).max(asked);
        self.round = self.round.saturating_add(1);
        let over = policy.max_attempts.is_some_and(|most| self.round >= most);
        over.then(|| std::mem::take(&mut self.round))
    }

    fn rejected(&mut self, policy: &EnrollSettings, now: Instant) {
        self.after_rejection = now + Reenrollment::new(policy.reenroll_within).wait(&mut self.chance);
    }

    fn proven(&mut self) {
        self.round = 0;
        self.backoff.succeeded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::api::AnswerError;
    use crate::remote::{Endpoint, RequestError};
    use crate::settings::SecretSource;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn policy() -> EnrollSettings {
        EnrollSettings {
            secret: SecretSource::None,
            always: false,
            disabled: false,
            reenrollment_disabled: false,
            max_attempts: Some(3),
            max_interval: 600 * SECOND,
            max_per_hour: 4,
            reenroll_within: Duration::ZERO,
        }
    }

    /// A state machine, its policy and its clock.
    struct Trial {
        machine: Machine,
        policy: EnrollSettings,
        now: Instant,
    }

    impl Trial {
        fn new() -> Self {
            let (policy, now) = (policy(), Instant::now());
            Self { machine: Machine::new(&policy, now, Chance::with_seed(1)), policy, now }
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            self.machine.on(event, &self.policy, self.now)
        }

        fn grant(&mut self, key: &str) {
            let enrolled = Enrolled::Key(Secret::new(key));
            assert_eq!(self.on(Event::Granted { enrolled, storage: KeyStorage::Store, asked_at: 7 }), [Action::Settle]);
        }

        fn fail(&mut self) -> Vec<Action> {
            self.on(Event::Failed(Arc::new(EnrollError::NoAnswerYet)))
        }

        fn see(&mut self, key: Option<&str>) -> Vec<Action> {
            self.on(Event::Seen(key.map(Secret::new)))
        }

        fn key(&self) -> Option<&str> {
            self.machine.key().map(Secret::expose)
        }

        /// How long the next attempt still waits; `None` when there is no need for one.
        fn wait(&self) -> Option<Duration> {
            self.machine.due().map(|at| at.saturating_duration_since(self.now))
        }

        /// Lets the time pass until the next attempt is due.
        fn pass(&mut self) {
            self.now += self.wait().expect("an attempt is needed");
        }
    }

    #[test]
    fn nothing_is_tried_before_a_request_needs_a_key_and_then_at_once() {
        let mut trial = Trial::new();
        assert_eq!((trial.key(), trial.wait()), (None, None));
        assert_eq!(trial.on(Event::Needed), []);
        assert_eq!(trial.wait(), Some(Duration::ZERO));
        trial.grant("k1");
        assert_eq!((trial.key(), trial.wait()), (Some("k1"), None));
        let view = trial.machine.view(trial.now);
        assert!(view.enrolled && view.error.is_none() && (view.since, view.made) == (7, 1));
    }

    #[test]
    fn failed_attempts_wait_with_the_square_and_a_round_ends() {
        let mut trial = Trial::new();
        trial.on(Event::Needed);
        for (attempt, actions) in [(1, vec![]), (2, vec![]), (3, vec![Action::SayGivenUp(3), Action::Settle])] {
            assert_eq!(trial.fail(), actions);
            trial.on(Event::Needed);
            let wait = trial.wait().unwrap();
            let square = attempt * attempt * SECOND;
            assert!((square / 2..=square).contains(&wait), "{attempt}: {wait:?}");
            trial.pass();
        }
        assert_eq!(trial.machine.view(trial.now).made, 3);
        // The need that came behind the round began another one.
        assert_eq!(trial.fail(), []);
    }

    #[test]
    fn a_server_asks_for_a_longer_wait() {
        let mut trial = Trial::new();
        trial.on(Event::Needed);
        let busy = AnswerError::Status { status: 503, beginning: String::new(), retry_after: Some(1000 * SECOND) };
        let busy = RequestError::Answer { endpoint: Endpoint::Enroll, url: String::new(), source: busy };
        trial.on(Event::Failed(Arc::new(busy.into())));
        assert!((1000 * SECOND..=2000 * SECOND).contains(&trial.wait().unwrap()), "{:?}", trial.wait());
    }

    #[test]
    fn a_key_that_is_refused_at_once_counts_as_a_failed_attempt_until_one_proves_good() {
        let mut trial = Trial::new();
        trial.policy.max_per_hour = 3600;
        for round in 1..=2 {
            trial.on(Event::Needed);
            trial.pass();
            trial.grant("bad");
            trial.on(Event::Rejected(Secret::new("bad")));
            assert_eq!(trial.key(), None);
            trial.on(Event::Needed);
            assert!(trial.wait().unwrap() >= round * round * SECOND / 2, "{:?}", trial.wait());
            assert!(matches!(*trial.machine.view(trial.now).error.unwrap(), EnrollError::KeyRefused));
        }
        trial.pass();
        trial.grant("good");
        trial.on(Event::Confirmed(Secret::new("another")));
        trial.on(Event::Confirmed(Secret::new("good")));
        // It was of use: when the server gives it up later, that is no failed attempt.
        trial.on(Event::Rejected(Secret::new("good")));
        trial.on(Event::Needed);
        assert_eq!(trial.wait(), Some(Duration::ZERO));
    }

    #[test]
    fn another_key_in_place_of_one_that_had_worked_is_asked_for_at_a_moment_of_this_host_s_own() {
        let waits: Vec<Duration> = (0..200)
            .map(|seed| {
                let mut trial = Trial::new();
                trial.machine.pace.chance = Chance::with_seed(seed);
                trial.policy.reenroll_within = 600 * SECOND;
                trial.see(Some("old"));
                trial.on(Event::Rejected(Secret::new("old")));
                trial.on(Event::Needed);
                let wait = trial.wait().unwrap();
                let said = trial.machine.view(trial.now).error.unwrap();
                assert!(matches!(*said, EnrollError::Spread(left) if left == wait), "{said}");
                wait
            })
            .collect();
        assert!(waits.iter().all(|wait| *wait <= 600 * SECOND));
        let late = waits.iter().filter(|wait| **wait > 300 * SECOND).count();
        assert!((70..130).contains(&late), "{late} of 200 in the second half");
        let mut trial = Trial::new();
        trial.policy.reenroll_within = 600 * SECOND;
        trial.see(Some("old"));
        trial.on(Event::Rejected(Secret::new("old")));
        trial.on(Event::Needed);
        assert!(trial.machine.hurry(trial.now) && !trial.machine.hurry(trial.now), "an operator need not wait");
        assert_eq!(trial.wait(), Some(Duration::ZERO));
        let mut never_had_one = Trial::new();
        never_had_one.policy.reenroll_within = 600 * SECOND;
        never_had_one.on(Event::Needed);
        assert_eq!(never_had_one.wait(), Some(Duration::ZERO));
    }

    #[test]
    fn no_more_are_granted_in_any_hour_than_are_allowed_however_they_end() {
        for proven in [false, true] {
            let mut trial = Trial::new();
            trial.policy.max_attempts = None;
            let mut grants = Vec::new();
            for number in 0..40 {
                trial.on(Event::Needed);
                trial.pass();
                let key = format!("k{number}");
                trial.grant(&key);
                grants.push(trial.now);
                trial.now += SECOND / 10;
                if proven {
                    trial.on(Event::Confirmed(Secret::new(&key)));
                }
                trial.on(Event::Rejected(Secret::new(&key)));
            }
            for from in &grants {
                let within = grants.iter().filter(|&at| at >= from && *at < *from + HOUR).count();
                assert!(within <= 4, "{within} within an hour (proven: {proven})");
            }
        }
    }

    #[test]
    fn neither_wait_shortens_the_other_and_what_is_said_of_it_is_true() {
        let mut trial = Trial::new();
        for key in ["k1", "k2"] {
            trial.on(Event::Needed);
            trial.pass();
            trial.grant(key);
            trial.on(Event::Rejected(Secret::new(key)));
        }
        trial.on(Event::Needed);
        let throttled = |trial: &Trial| match trial.machine.throttle(trial.now) {
            Some(EnrollError::Throttled { wait, most_an_hour: 4 }) => Some(wait),
            other => panic!("{other:?}"),
        };
        assert_eq!(trial.wait(), throttled(&trial), "the refusal's few seconds don't count");
        assert!(trial.wait().unwrap() > HOUR / 3, "{:?}", trial.wait());
        let before = trial.wait().unwrap();
        trial.now += 600 * SECOND;
        assert_eq!(throttled(&trial), Some(before - 600 * SECOND));
        let said = trial.machine.view(trial.now).error.unwrap().to_string();
        let seconds = (before - 600 * SECOND).as_secs_f64().ceil();
        assert!(said.contains(&format!("waits for {seconds} s (enroll_max_per_hour=4)")), "{said}");
        trial.pass();
        assert!(trial.machine.throttle(trial.now).is_none());
    }

    #[test]
    fn a_key_that_another_process_has_stored_is_taken_and_settles_it() {
        let mut trial = Trial::new();
        trial.on(Event::Needed);
        assert_eq!(trial.see(Some("theirs")), [Action::Date, Action::Settle]);
        trial.on(Event::Dated(5));
        assert_eq!((trial.key(), trial.wait(), trial.machine.view(trial.now).since), (Some("theirs"), None, 5));
        assert_eq!(trial.see(Some("theirs")), []);
        assert_eq!(trial.see(Some("another")), [Action::Date]);
        assert_eq!(trial.see(Some("")), [], "a blank one is none");
        assert_eq!((trial.key(), trial.machine.view(trial.now).since), (None, 0));
    }

    #[test]
    fn a_rejected_key_that_the_store_keeps_is_not_used_any_more() {
        let mut trial = Trial::new();
        trial.see(Some("old"));
        trial.on(Event::Rejected(Secret::new("old")));
        trial.on(Event::NotRemoved(Secret::new("old")));
        trial.see(Some("old"));
        assert_eq!(trial.key(), None);
        trial.grant("new");
        trial.see(Some("old"));
        assert_eq!(trial.key(), Some("old"), "another process has put it there again");
    }

    #[test]
    fn only_the_key_that_was_rejected_is_given_up() {
        let mut trial = Trial::new();
        trial.see(Some("current"));
        trial.on(Event::Rejected(Secret::new("older")));
        assert_eq!(trial.key(), Some("current"));
    }

    #[test]
    fn a_key_that_the_store_did_not_take_is_used_all_the_same() {
        let mut trial = Trial::new();
        trial.on(Event::Needed);
        let enrolled = Enrolled::Key(Secret::new("homeless"));
        trial.on(Event::Granted { enrolled, storage: KeyStorage::Memory, asked_at: 7 });
        assert_eq!((trial.see(None), trial.key()), (Vec::new(), Some("homeless")));
        trial.see(Some("theirs"));
        assert_eq!(trial.key(), Some("theirs"));
    }

    #[test]
    fn a_blank_key_is_not_looked_for_in_the_store() {
        let mut trial = Trial::new();
        assert!(trial.machine.is_in_store());
        trial.on(Event::Granted { enrolled: Enrolled::Blank, storage: KeyStorage::Nowhere, asked_at: 7 });
        assert_eq!((trial.key(), trial.machine.is_in_store()), (Some(""), false));
        trial.on(Event::Rejected(Secret::default()));
        assert_eq!((trial.key(), trial.machine.is_in_store()), (None, true));
    }

    #[test]
    fn a_renewal_leaves_the_key_that_there_was_until_another_is_granted_or_it_is_given_up() {
        let renewing = || {
            let mut trial = Trial::new();
            trial.see(Some("old"));
            trial.on(Event::NeededAnew);
            trial.see(Some("old"));
            assert_eq!((trial.key(), trial.wait()), (Some("old"), Some(Duration::ZERO)), "it is to be renewed");
            trial
        };
        let mut trial = renewing();
        trial.grant("new");
        assert_eq!((trial.key(), trial.wait()), (Some("new"), None));
        let mut trial = renewing();
        trial.policy.max_attempts = Some(1);
        assert_eq!(trial.fail(), [Action::SayGivenUp(1), Action::Settle]);
        assert_eq!((trial.key(), trial.wait()), (Some("old"), None));
        let mut trial = renewing();
        trial.on(Event::Rejected(Secret::new("old")));
        assert_eq!((trial.key(), trial.wait()), (None, Some(Duration::ZERO)));
    }
}
