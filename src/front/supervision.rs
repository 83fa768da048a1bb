//! Which workers there are, and what follows from what happens to them. Pure: no clock, no process, no socket, no log.
//!
//! ```text
//!            Started            Ready: takes over
//! due ─Start─► present ◄─────────────────────────── candidate ◄─Start─ Renew, NewBinary, too much memory
//!  ▲            │  │                                    │
//!  └─── Ended ──┘  └─ is taken over from ─► retiring    └─ Ended, or not ready in time: given up
//!       or hung
//! ```
//!
//! Workers go by their numbers here; `workers` has the processes, and does what comes out.

use std::time::{Duration, Instant};

use super::worker_process::WorkerEvent;

/// A new worker beside an old one must take calls within this, or the old one stays.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Between two workers that are replaced for their memory. What one has to have in memory, the next one may, too.
const MEMORY_PAUSE: Duration = Duration::from_secs(60);

/// A worker that doesn't answer a ping for this long is replaced.
pub(super) const HUNG_LIMIT: Duration = Duration::from_secs(5);

/// Why a worker is brought in beside another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An operator wants it.
    Signal,
    /// Another binary is on disk.
    NewBinary,
    /// The present one has too much in memory.
    Memory,
}

impl Cause {
    /// As the log has it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::NewBinary => "another binary is there",
            Self::Memory => "the worker is too large",
        }
    }
}

/// What happens to workers, from outside.
pub(super) enum Event {
    /// The first one is wanted.
    Needed,
    /// This one, which serves, was left by the program that ran in this process before.
    Adopted(u64),
    /// One was started, `beside` the present one for that cause.
    Started { number: u64, beside: Option<Cause> },
    /// One could not be started, and none is there. A failure `beside` a present one is no event: nothing follows.
    NotStarted,
    /// One has said something, or has ended.
    Heard(u64, WorkerEvent),
    /// SIGHUP.
    Renew,
    /// Another binary has taken the place of the one that workers were started from.
    NewBinary,
    /// The present one was looked at; `is_needed` when a call waits for it, or its process is stopped.
    Looked { is_needed: bool },
    /// What the present one has in memory, and the most that it may have, in bytes.
    Memory { bytes: u64, most: u64 },
    /// Time has passed.
    Time,
    /// All are to finish what they have, and end.
    Stop,
    /// Those that were told to end have had their time.
    TimeOver,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// To start one, and to say so where it is `beside` the present one, for that cause. [`Event::Started`] says that it
    /// is there.
    Start { number: u64, beside: Option<Cause> },
    /// Calls go to it from now on.
    Use(u64),
    /// Calls go to it from now on, which is to be said; the one that was there is told to finish what it has.
    TakeOver { number: u64, from: Option<u64> },
    /// To ping it; `ping` counts its pings.
    Ping { number: u64, ping: u64 },
    /// To say that the present one has not answered for [`HUNG_LIMIT`].
    SayHung,
    /// To say that the present one has that many bytes in memory.
    SayTooLarge(u64),
    /// Calls wait from now on; to end its process, and to say so with the `pause` until the next one starts.
    Bury { number: u64, pause: Duration },
    /// To say why a candidate is of no use, and to end it.
    GiveUp { number: u64, reason: &'static str },
    /// To end its process, without a word.
    End(u64),
    /// To tell it to end.
    Stop(u64),
    /// To say that it did not end in time, and to end it.
    Kill(u64),
}

/// The workers of a front. Events go in, and what is to be done comes out.
#[derive(Default)]
pub(super) struct Supervision {
    /// How many were started, those that could not be among them: the last one's number.
    pub(super) started: u64,
    /// A new binary's worker has taken over, and its front can go on in place.
    pub(super) has_new_binary: bool,
    present: Option<Present>,
    deaths: Deaths,
    /// When the next worker is due, after deaths.
    due: Option<Instant>,
    candidate: Option<Candidate>,
    /// Workers that finish their calls while another one serves already.
    retiring: Vec<u64>,
    /// When one was last replaced for its memory.
    too_large: Option<Instant>,
}

/// The worker that calls go to, or will when it is ready.
struct Present {
    number: u64,
    /// Since when it is the present one.
    born: Instant,
    /// It has said that it takes calls.
    is_ready: bool,
    pings: u64,
    /// Since when a ping is on its way.
    unanswered: Option<Instant>,
}

/// A worker that is to take over from the present one.
struct Candidate {
    number: u64,
    deadline: Instant,
    is_new_binary: bool,
}

impl Present {
    fn new(number: u64, is_ready: bool, now: Instant) -> Self {
        Self { number, born: now, is_ready, pings: 0, unanswered: None }
    }
}

impl Supervision {
    /// Something happens `now`: what is to be done.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Needed => self.start(None),
            Event::Adopted(number) => {
                self.present = Some(Present::new(number, false, now));
                vec![Action::Use(number)]
            }
            Event::Started { number, beside } => self.has_started(number, beside, now),
            Event::NotStarted => {
                self.due = Some(now + self.deaths.another(Duration::ZERO));
                Vec::new()
            }
            Event::Heard(number, event) => self.hear(number, &event, now),
            Event::Renew => self.bring_in(Cause::Signal),
            Event::NewBinary => self.bring_in(Cause::NewBinary),
            Event::Looked { is_needed } => self.looked(is_needed, now),
            Event::Memory { bytes, most } => self.weighed(bytes, most, now),
            Event::Time => self.keep_deadlines(now),
            Event::Stop => self.stop(),
            Event::TimeOver => self.retiring.drain(..).map(Action::Kill).collect(),
        }
    }

    /// When [`Event::Time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let candidate = self.candidate.as_ref().map(|candidate| candidate.deadline);
        self.due.filter(|_| self.present.is_none()).into_iter().chain(candidate).min()
    }

    /// The present worker, whether it takes calls already or not.
    pub(super) fn present(&self) -> Option<u64> {
        self.present.as_ref().map(|present| present.number)
    }

    /// The one that is to take over from the present one.
    pub(super) fn candidate(&self) -> Option<u64> {
        self.candidate.as_ref().map(|candidate| candidate.number)
    }

    /// The present worker, when it takes calls and no other one is there.
    pub(super) fn alone(&self) -> Option<u64> {
        let present = self.present.as_ref().filter(|present| present.is_ready)?;
        (self.retiring.is_empty() && self.candidate.is_none()).then_some(present.number)
    }

    /// Whether workers are there that have been told to end.
    pub(super) fn are_left(&self) -> bool {
        !self.retiring.is_empty()
    }

    /// The deaths up to now, and how they are to be said.
    pub(super) fn deaths(&self) -> &Deaths {
        &self.deaths
    }

    fn start(&mut self, beside: Option<Cause>) -> Vec<Action> {
        self.started += 1;
        vec![Action::Start { number: self.started, beside }]
    }

    fn bring_in(&mut self, cause: Cause) -> Vec<Action> {
        if self.candidate.is_some() { Vec::new() } else { self.start(Some(cause)) }
    }

    fn has_started(&mut self, number: u64, beside: Option<Cause>, now: Instant) -> Vec<Action> {
        if let Some(cause) = beside {
            let (deadline, is_new_binary) = (now + READY_LIMIT, cause == Cause::NewBinary);
            self.candidate = Some(Candidate { number, deadline, is_new_binary });
        } else {
            self.present = Some(Present::new(number, false, now));
            self.due = None;
        }
        Vec::new()
    }

    fn hear(&mut self, number: u64, event: &WorkerEvent, now: Instant) -> Vec<Action> {
        if let Some(index) = self.retiring.iter().position(|retiring| *retiring == number) {
            if let WorkerEvent::Ended = event {
                return vec![Action::End(self.retiring.swap_remove(index))];
            }
        } else if self.candidate() == Some(number) {
            match event {
                WorkerEvent::Ready(ready) => return self.take_over(ready.resumes, now),
                WorkerEvent::Ended => return self.give_up("it ended"),
                WorkerEvent::Pong(_) => {}
            }
        } else if let Some(present) = self.present.as_mut().filter(|present| present.number == number) {
            match event {
                WorkerEvent::Ready(_) => {
                    present.is_ready = true;
                    return vec![Action::Use(number)];
                }
                WorkerEvent::Pong(ping) => present.unanswered = present.unanswered.filter(|_| *ping != present.pings),
                WorkerEvent::Ended => return self.bury(now),
            }
        }
        Vec::new()
    }

    /// The present worker is dead, or will be in a moment.
    fn bury(&mut self, now: Instant) -> Vec<Action> {
        let Some(Present { number, born, .. }) = self.present.take() else { return Vec::new() };
        let pause = self.deaths.another(now.duration_since(born));
        self.due = Some(now + pause);
        vec![Action::Bury { number, pause }]
    }

    /// The candidate serves: calls go to it, and the old worker finishes what it has.
    fn take_over(&mut self, resumes: bool, now: Instant) -> Vec<Action> {
        let Some(Candidate { number, is_new_binary, .. }) = self.candidate.take() else { return Vec::new() };
        self.has_new_binary |= is_new_binary && resumes;
        self.due = None;
        let from = self.present.replace(Present::new(number, true, now)).map(|old| old.number);
        self.retiring.extend(from);
        vec![Action::TakeOver { number, from }]
    }

    fn give_up(&mut self, reason: &'static str) -> Vec<Action> {
        let given_up = self.candidate.take();
        given_up.map(|candidate| Action::GiveUp { number: candidate.number, reason }).into_iter().collect()
    }

    /// A worker is pinged when there is reason to, and only then is silence a sign.
    fn looked(&mut self, is_needed: bool, now: Instant) -> Vec<Action> {
        let Some(present) = &mut self.present else { return Vec::new() };
        match present.unanswered {
            Some(since) if now.duration_since(since) >= HUNG_LIMIT => {
                let mut actions = vec![Action::SayHung];
                actions.extend(self.bury(now));
                actions
            }
            None if is_needed => {
                present.pings += 1;
                present.unanswered = Some(now);
                vec![Action::Ping { number: present.number, ping: present.pings }]
            }
            _ => Vec::new(),
        }
    }

    fn weighed(&mut self, bytes: u64, most: u64, now: Instant) -> Vec<Action> {
        let is_due = self.too_large.is_none_or(|at| now.duration_since(at) >= MEMORY_PAUSE);
        if self.present.is_none() || !is_due || bytes <= most {
            return Vec::new();
        }
        self.too_large = Some(now);
        let mut actions = vec![Action::SayTooLarge(bytes)];
        actions.extend(self.bring_in(Cause::Memory));
        actions
    }

    fn keep_deadlines(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.candidate.as_ref().is_some_and(|candidate| now >= candidate.deadline) {
            actions.extend(self.give_up("it was not ready in time"));
        }
        if self.present.is_none() && self.due.is_some_and(|due| now >= due) {
            actions.extend(self.start(None));
        }
        actions
    }

    fn stop(&mut self) -> Vec<Action> {
        self.due = None;
        let candidate = self.candidate.take().map(|candidate| Action::End(candidate.number));
        let present = self.present.take().map(|present| present.number);
        self.retiring.extend(present);
        candidate.into_iter().chain(present.map(Action::Stop)).collect()
    }
}

/// When the next worker is due after deaths: at once after the first, then n² times [`PAUSE_STEP`], at most
/// [`LONGEST_PAUSE`], since calls wait.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    in_a_row: u32,
}

const PAUSE_STEP: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A worker that has lived this long was not to blame for its predecessors' deaths.
const LONG_LIFE: Duration = Duration::from_secs(5);

impl Deaths {
    /// A worker has died at this age, or could not be started: the pause before the next one.
    fn another(&mut self, age: Duration) -> Duration {
        if age >= LONG_LIFE {
            self.in_a_row = 0;
        }
        let pause = PAUSE_STEP.saturating_mul(self.in_a_row.saturating_mul(self.in_a_row)).min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        pause
    }

    /// How many there were in a row.
    #[must_use]
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Deaths in a row are said whenever their number has doubled.
    #[must_use]
    pub(super) fn level(&self) -> log::Level {
        if self.in_a_row.is_power_of_two() { log::Level::Error } else { log::Level::Debug }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Ready;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// Workers that are only numbers, and their clock.
    struct Trial {
        workers: Supervision,
        now: Instant,
    }

    impl Trial {
        /// None is started yet.
        fn new() -> Self {
            Self { workers: Supervision::default(), now: Instant::now() }
        }

        /// Worker 1 serves.
        fn serving() -> Self {
            let mut trial = Self::new();
            trial.on(Event::Needed);
            trial.started(1, None);
            assert_eq!(trial.ready(1), [Action::Use(1)]);
            trial
        }

        /// Worker 1 serves, and worker 2 is there to take over from it.
        fn with_candidate(cause: Cause) -> Self {
            let mut trial = Self::serving();
            trial.on(if cause == Cause::NewBinary { Event::NewBinary } else { Event::Renew });
            trial.started(2, Some(cause));
            trial
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            self.workers.on(event, self.now)
        }

        fn started(&mut self, number: u64, beside: Option<Cause>) {
            assert_eq!(self.on(Event::Started { number, beside }), []);
        }

        fn ready(&mut self, number: u64) -> Vec<Action> {
            let ready = Ready { resumes: true, ..Ready::default() };
            self.on(Event::Heard(number, WorkerEvent::Ready(ready)))
        }

        fn ended(&mut self, number: u64) -> Vec<Action> {
            self.on(Event::Heard(number, WorkerEvent::Ended))
        }

        fn pong(&mut self, number: u64, ping: u64) -> Vec<Action> {
            self.on(Event::Heard(number, WorkerEvent::Pong(ping)))
        }

        fn look(&mut self, is_needed: bool) -> Vec<Action> {
            self.on(Event::Looked { is_needed })
        }

        fn weigh(&mut self, bytes: u64) -> Vec<Action> {
            self.on(Event::Memory { bytes, most: 100 })
        }

        /// Lets time pass, and has what is due by then done.
        fn pass(&mut self, time: Duration) -> Vec<Action> {
            self.now += time;
            self.on(Event::Time)
        }

        /// How long it is until something is due.
        fn wait(&self) -> Option<Duration> {
            self.workers.next_deadline().map(|at| at.saturating_duration_since(self.now))
        }
    }

    #[test]
    fn the_first_worker_gets_calls_once_it_is_ready() {
        let mut trial = Trial::new();
        assert_eq!(trial.pass(SECOND), [], "none was asked for");
        assert_eq!(trial.on(Event::Needed), [Action::Start { number: 1, beside: None }]);
        trial.started(1, None);
        assert_eq!((trial.workers.present(), trial.workers.alone(), trial.wait()), (Some(1), None, None));
        assert_eq!(trial.ready(1), [Action::Use(1)]);
        assert_eq!(trial.workers.alone(), Some(1));
    }

    #[test]
    fn a_worker_that_can_t_be_started_is_tried_again_under_another_number() {
        let mut trial = Trial::new();
        trial.on(Event::Needed);
        assert_eq!(trial.on(Event::NotStarted), []);
        assert_eq!((trial.wait(), trial.workers.deaths().level()), (Some(Duration::ZERO), log::Level::Error));
        assert_eq!(trial.pass(Duration::ZERO), [Action::Start { number: 2, beside: None }]);
        trial.on(Event::NotStarted);
        assert_eq!(trial.wait(), Some(5 * MS));
        assert_eq!(trial.pass(4 * MS), []);
        assert_eq!(trial.pass(MS), [Action::Start { number: 3, beside: None }]);
    }

    #[test]
    fn a_dead_worker_is_followed_by_another_one_after_a_pause_that_grows() {
        let mut trial = Trial::serving();
        for (number, pause) in [(1, Duration::ZERO), (2, 5 * MS), (3, 20 * MS)] {
            assert_eq!(trial.ended(number), [Action::Bury { number, pause }]);
            assert_eq!((trial.workers.present(), trial.wait()), (None, Some(pause)));
            if !pause.is_zero() {
                assert_eq!(trial.pass(pause - MS), []);
                trial.now += MS;
            }
            assert_eq!(trial.on(Event::Time), [Action::Start { number: number + 1, beside: None }]);
            trial.started(number + 1, None);
            assert_eq!(trial.ready(number + 1), [Action::Use(number + 1)]);
        }
        assert_eq!(trial.workers.deaths().in_a_row(), 3);
        trial.now += LONG_LIFE;
        assert_eq!(trial.ended(4), [Action::Bury { number: 4, pause: Duration::ZERO }]);
    }

    #[test]
    fn a_candidate_that_is_ready_takes_over_and_the_old_worker_finishes() {
        let mut trial = Trial::serving();
        assert_eq!(trial.on(Event::Renew), [Action::Start { number: 2, beside: Some(Cause::Signal) }]);
        trial.started(2, Some(Cause::Signal));
        assert_eq!((trial.workers.present(), trial.workers.candidate()), (Some(1), Some(2)));
        assert_eq!(trial.workers.alone(), None);
        assert_eq!(trial.ready(2), [Action::TakeOver { number: 2, from: Some(1) }]);
        assert_eq!((trial.workers.present(), trial.workers.candidate(), trial.wait()), (Some(2), None, None));
        assert!(trial.workers.are_left() && trial.workers.alone().is_none());
        assert_eq!(trial.ended(1), [Action::End(1)], "no death: nothing is said, and none is started");
        assert_eq!((trial.workers.alone(), trial.wait(), trial.workers.deaths().in_a_row()), (Some(2), None, 0));
        assert!(!trial.workers.has_new_binary);
    }

    #[test]
    fn a_candidate_that_is_not_ready_in_time_is_given_up_and_the_old_worker_stays() {
        let mut trial = Trial::with_candidate(Cause::NewBinary);
        assert_eq!(trial.wait(), Some(READY_LIMIT));
        assert_eq!(trial.pass(READY_LIMIT - MS), []);
        let reason = "it was not ready in time";
        assert_eq!(trial.pass(MS), [Action::GiveUp { number: 2, reason }]);
        assert_eq!((trial.workers.alone(), trial.wait()), (Some(1), None));
        assert_eq!(trial.ready(2), [], "what it still says changes nothing");
        assert_eq!(trial.ended(2), []);
        assert!(!trial.workers.has_new_binary);
    }

    #[test]
    fn a_candidate_s_death_is_no_death_of_the_worker_that_serves() {
        let mut trial = Trial::with_candidate(Cause::Signal);
        assert_eq!(trial.ended(2), [Action::GiveUp { number: 2, reason: "it ended" }]);
        assert_eq!((trial.workers.alone(), trial.wait(), trial.workers.deaths().in_a_row()), (Some(1), None, 0));
        assert_eq!(trial.on(Event::Renew), [Action::Start { number: 3, beside: Some(Cause::Signal) }]);
    }

    #[test]
    fn a_second_candidate_is_not_started_beside_a_first() {
        let mut trial = Trial::with_candidate(Cause::Signal);
        trial.now += SECOND;
        assert_eq!(trial.on(Event::Renew), []);
        assert_eq!(trial.on(Event::NewBinary), []);
        assert_eq!((trial.workers.candidate(), trial.wait()), (Some(2), Some(READY_LIMIT - SECOND)));
    }

    #[test]
    fn a_worker_that_dies_beside_a_candidate_is_followed_by_whichever_is_there_first() {
        let mut trial = Trial::with_candidate(Cause::Signal);
        trial.ended(1);
        assert_eq!(trial.wait(), Some(Duration::ZERO), "the sooner of two deadlines");
        assert_eq!(trial.ready(2), [Action::TakeOver { number: 2, from: None }]);
        assert_eq!((trial.pass(SECOND), trial.workers.alone()), (vec![], Some(2)));

        let mut trial = Trial::with_candidate(Cause::Signal);
        trial.ended(1);
        let (given_up, start) = (
            Action::GiveUp { number: 2, reason: "it was not ready in time" },
            Action::Start { number: 3, beside: None },
        );
        assert_eq!(trial.pass(READY_LIMIT), [given_up, start]);
    }

    #[test]
    fn a_new_binary_s_worker_lets_its_front_go_on_only_when_that_one_can() {
        let mut trial = Trial::serving();
        assert_eq!(trial.on(Event::NewBinary), [Action::Start { number: 2, beside: Some(Cause::NewBinary) }]);
        trial.started(2, Some(Cause::NewBinary));
        assert!(!trial.workers.has_new_binary, "it doesn't serve yet");
        trial.ready(2);
        assert!(trial.workers.has_new_binary);

        let mut trial = Trial::with_candidate(Cause::NewBinary);
        let old = Ready { resumes: false, ..Ready::default() };
        assert_eq!(trial.on(Event::Heard(2, WorkerEvent::Ready(old))), [Action::TakeOver { number: 2, from: Some(1) }]);
        assert!(!trial.workers.has_new_binary);
    }

    #[test]
    fn a_worker_that_does_not_answer_while_calls_wait_is_killed() {
        let mut trial = Trial::serving();
        assert_eq!(trial.look(false), [], "no call waits for it");
        assert_eq!(trial.look(true), [Action::Ping { number: 1, ping: 1 }]);
        trial.now += HUNG_LIMIT - MS;
        assert_eq!(trial.look(true), []);
        assert_eq!(trial.pong(1, 1), []);
        trial.now += MS;
        assert_eq!(trial.look(true), [Action::Ping { number: 1, ping: 2 }], "it has answered");
        trial.pong(1, 1);
        trial.now += HUNG_LIMIT;
        let buried = [Action::SayHung, Action::Bury { number: 1, pause: Duration::ZERO }];
        assert_eq!(
            trial.look(false),
            buried,
            "an answer to an older ping is none, and the call may have been broken off"
        );
        assert_eq!(trial.wait(), Some(Duration::ZERO));
        assert_eq!(trial.look(true), [], "none is there");
    }

    #[test]
    fn a_worker_that_is_too_large_is_replaced_once_a_minute_at_most() {
        let mut trial = Trial::serving();
        assert_eq!(trial.weigh(100), []);
        let replaced = |number| [Action::SayTooLarge(101), Action::Start { number, beside: Some(Cause::Memory) }];
        assert_eq!(trial.weigh(101), replaced(2));
        trial.started(2, Some(Cause::Memory));
        trial.ready(2);
        trial.now += MEMORY_PAUSE - MS;
        assert_eq!(trial.weigh(101), []);
        trial.now += MS;
        assert_eq!(trial.weigh(101), replaced(3));
    }

    #[test]
    fn a_worker_that_was_left_goes_on_and_the_next_one_s_number_is_another() {
        let mut trial = Trial::new();
        trial.workers.started = 7;
        assert_eq!(trial.on(Event::Adopted(7)), [Action::Use(7)]);
        assert_eq!((trial.workers.present(), trial.wait()), (Some(7), None));
        assert_eq!(trial.on(Event::Renew), [Action::Start { number: 8, beside: Some(Cause::Signal) }]);
    }

    #[test]
    fn at_the_end_a_candidate_goes_at_once_and_the_others_have_their_time() {
        let mut trial = Trial::with_candidate(Cause::Signal);
        trial.ready(2);
        trial.on(Event::Renew);
        trial.started(3, Some(Cause::Signal));
        assert_eq!(trial.on(Event::Stop), [Action::End(3), Action::Stop(2)]);
        assert_eq!(trial.ended(1), [Action::End(1)]);
        assert!(trial.workers.are_left());
        assert_eq!((trial.pass(SECOND), trial.wait()), (vec![], None), "none is started any more");
        assert_eq!(trial.on(Event::TimeOver), [Action::Kill(2)]);
        assert!(!trial.workers.are_left());

        let mut trial = Trial::serving();
        trial.ended(1);
        assert_eq!((trial.on(Event::Stop), trial.pass(SECOND), trial.wait()), (vec![], vec![], None));
    }

    #[test]
    fn pauses_grow_with_deaths_in_a_row_and_a_long_life_ends_the_row() {
        let mut deaths = Deaths::default();
        let pauses: Vec<u128> = (0..12).map(|_| deaths.another(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [0, 5, 20, 45, 80, 125, 180, 245, 320, 405, 500, 500]);
        assert_eq!(deaths.in_a_row(), 12);
        assert_eq!(deaths.another(LONG_LIFE), Duration::ZERO);
        assert_eq!((deaths.in_a_row(), deaths.level()), (1, log::Level::Error));
    }
}
