//! One works, many wait: a piece of work that a thread of its own does for all who ask for it.
//!
//! A caller asks, which gives it a [`Ticket`], and waits for the outcome, at most until its deadline. The worker does
//! the work once for all who had asked when it began, and goes on when no caller waits any longer. The end of the
//! process ends all waits.
//!
//! ```text
//! caller:  let ticket = flight.ask();           worker:  while let Next::Asked(ticket) = flight.next(None) {
//!          flight.wait(ticket, deadline)                     flight.done(ticket, work());
//!                                                        }
//! ```

use std::sync::Arc;
use std::time::Instant;

use crate::lock::{Condvar, Mutex, MutexGuard};
use crate::shutdown::Shutdown;

/// The work, whose outcome is a `T`.
pub struct SingleFlight<T> {
    state: Mutex<State<T>>,
    /// Callers wait for it.
    changed: Condvar,
    /// The worker waits for it.
    bell: Condvar,
}

/// Stands for all who have asked so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

struct State<T> {
    asked: Ticket,
    done: Ticket,
    outcome: Option<T>,
    /// The callers that are waiting.
    waiting: Vec<Ticket>,
    /// The worker goes on only then.
    not_before: Option<Instant>,
    /// The worker is to look at something else.
    woken: bool,
    ending: bool,
}

/// What the worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The work, for all up to this ticket.
    Asked(Ticket),
    /// Its time is over, or it was woken: the worker looks for other work.
    Look,
    /// The process ends: the worker is to return.
    End,
}

/// Whether an outcome has reached a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// At least one was waiting for it.
    Claimed,
    /// All who asked have given up.
    Unclaimed,
}

/// Why a caller has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Its deadline is over, or the worker won't be at it by then.
    Late,
    /// The process is ending.
    Ending,
}

impl<T: Clone + Send + 'static> SingleFlight<T> {
    /// A flight that was not asked for yet. The end asked for by `shutdown` ends all waits.
    #[must_use]
    pub fn new(shutdown: &Shutdown) -> Arc<Self> {
        let (none, outcome) = (Ticket(0), None);
        let state = State {
            asked: none,
            done: none,
            outcome,
            waiting: Vec::new(),
            not_before: None,
            woken: false,
            ending: false,
        };
        let flight = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), bell: Condvar::new() });
        let ended = Arc::downgrade(&flight);
        shutdown.on_request(move || {
            if let Some(flight) = ended.upgrade() {
                flight.state().ending = true;
                flight.changed.notify_all();
                flight.bell.notify_all();
            }
        });
        flight
    }

    /// Asks for the work, which begins after now.
    pub fn ask(&self) -> Ticket {
        let mut state = self.state();
        state.asked.0 += 1;
        self.bell.notify_one();
        state.asked
    }

    /// Waits for the work that this ticket asked for, until `deadline`. Work that began later will do, too.
    pub fn wait(&self, ticket: Ticket, deadline: Instant) -> Result<T, NotDone> {
        let mut state = self.state();
        loop {
            if state.done >= ticket
                && let Some(outcome) = &state.outcome
            {
                return Ok(outcome.clone());
            }
            if state.ending {
                return Err(NotDone::Ending);
            }
            if Instant::now() >= deadline || state.not_before.is_some_and(|at| at > deadline) {
                return Err(NotDone::Late);
            }
            state.waiting.push(ticket);
            state = self.changed.wait(state, Some(deadline));
            if let Some(index) = state.waiting.iter().position(|waiting| *waiting == ticket) {
                state.waiting.swap_remove(index);
            }
        }
    }

    /// The worker waits until a caller asks, it is woken, or `until` is over.
    pub fn next(&self, until: Option<Instant>) -> Next {
        let mut state = self.state();
        loop {
            if state.ending {
                return Next::End;
            }
            if state.done < state.asked {
                return Next::Asked(state.asked);
            }
            if std::mem::take(&mut state.woken) || until.is_some_and(|until| Instant::now() >= until) {
                return Next::Look;
            }
            state = self.bell.wait(state, until);
        }
    }

    /// The worker waits until `until`, even if callers ask, or until it is woken: whether the end has come meanwhile.
    /// Callers whose deadline is before that don't wait any longer.
    pub fn pause(&self, until: Instant) -> bool {
        let mut state = self.state();
        state.not_before = Some(until);
        self.changed.notify_all();
        while !state.ending && Instant::now() < until && !std::mem::take(&mut state.woken) {
            state = self.bell.wait(state, Some(until));
        }
        state.not_before = None;
        state.ending
    }

    /// Has the worker look for other work, once it is at [`Self::next`]; ends its [`Self::pause`].
    pub fn wake(&self) {
        let mut state = self.state();
        (state.woken, state.not_before) = (true, None);
        drop(state);
        self.bell.notify_one();
    }

    /// The ticket of the last caller who has asked: it stands for all of them.
    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        self.state().asked
    }

    /// The work is done for all up to this ticket: whether a caller was still waiting, and takes the outcome.
    pub fn done(&self, ticket: Ticket, outcome: T) -> Taken {
        let mut state = self.state();
        state.done = state.done.max(ticket);
        state.outcome = Some(outcome);
        self.changed.notify_all();
        let done = state.done;
        if state.waiting.iter().any(|waiting| *waiting <= done) { Taken::Claimed } else { Taken::Unclaimed }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    fn in_a_while() -> Instant {
        Instant::now() + LONG
    }

    #[test]
    fn the_work_is_done_once_for_all_who_wait() {
        let flight = SingleFlight::new(&Shutdown::default());
        let tickets: Vec<Ticket> = (0..5).map(|_| flight.ask()).collect();
        thread::scope(|scope| {
            let waiting = tickets.iter().map(|&ticket| {
                let flight = &flight;
                scope.spawn(move || flight.wait(ticket, in_a_while()))
            });
            let waiting: Vec<_> = waiting.collect();
            let Next::Asked(all) = flight.next(None) else { panic!("a caller has asked") };
            flight.done(all, 7);
            assert!(waiting.into_iter().all(|caller| caller.join().unwrap() == Ok(7)));
        });
        assert_eq!(flight.next(Some(Instant::now())), Next::Look, "nothing is left to be done");
    }

    #[test]
    fn who_asks_while_the_work_goes_on_waits_for_the_next() {
        let flight = SingleFlight::new(&Shutdown::default());
        flight.ask();
        let Next::Asked(first) = flight.next(None) else { panic!("a caller has asked") };
        let late = flight.ask();
        flight.done(first, 1);
        assert_eq!(flight.wait(late, Instant::now() + SHORT), Err(NotDone::Late));
        let Next::Asked(second) = flight.next(None) else { panic!("a caller has asked") };
        flight.done(second, 2);
        assert_eq!(flight.wait(late, in_a_while()), Ok(2));
        assert_eq!(flight.wait(first, in_a_while()), Ok(2), "later work will do");
    }

    #[test]
    fn work_for_all_callers_counts_for_those_who_asked_while_it_went_on() {
        let flight = SingleFlight::new(&Shutdown::default());
        flight.ask();
        assert!(matches!(flight.next(None), Next::Asked(_)));
        let late = flight.ask();
        flight.done(flight.last_ticket(), 1);
        assert_eq!(flight.wait(late, in_a_while()), Ok(1));
    }

    #[test]
    fn a_caller_that_gave_up_keeps_no_other_from_the_outcome() {
        let flight = SingleFlight::new(&Shutdown::default());
        let ticket = flight.ask();
        assert_eq!(flight.wait(ticket, Instant::now()), Err(NotDone::Late));
        let Next::Asked(all) = flight.next(None) else { panic!("it is still to be done") };
        flight.done(all, 1);
        assert_eq!(flight.wait(ticket, Instant::now()), Ok(1));
    }

    #[test]
    fn the_worker_learns_whether_a_caller_takes_the_outcome() {
        let flight = SingleFlight::new(&Shutdown::default());
        let first = flight.ask();
        assert_eq!(flight.done(first, 1), Taken::Unclaimed);
        let second = flight.ask();
        thread::scope(|scope| {
            let caller = scope.spawn(|| flight.wait(second, in_a_while()));
            // Until the caller waits.
            while flight.state().waiting.is_empty() {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(flight.done(first, 2), Taken::Unclaimed, "it waits for something else");
            assert_eq!(flight.done(second, 3), Taken::Claimed);
            assert_eq!(caller.join().unwrap(), Ok(3));
        });
    }

    #[test]
    fn a_pause_beyond_its_deadline_is_not_waited_for() {
        let shutdown = Shutdown::default();
        let flight = SingleFlight::<()>::new(&shutdown);
        let ticket = flight.ask();
        thread::scope(|scope| {
            let worker = scope.spawn(|| flight.pause(in_a_while()));
            let asked = Instant::now();
            assert_eq!(flight.wait(ticket, asked + LONG / 2), Err(NotDone::Late));
            assert!(asked.elapsed() < LONG / 2);
            shutdown.request();
            assert!(worker.join().unwrap(), "the end has come");
        });
        assert!(!SingleFlight::<()>::new(&Shutdown::default()).pause(Instant::now() + SHORT));
    }

    #[test]
    fn a_pause_ends_when_the_worker_is_woken() {
        let flight = SingleFlight::<()>::new(&Shutdown::default());
        thread::scope(|scope| {
            let worker = scope.spawn(|| flight.pause(in_a_while()));
            flight.wake();
            assert!(!worker.join().unwrap());
        });
        assert!(flight.state().not_before.is_none());
    }

    #[test]
    fn the_worker_is_woken_for_other_things_also_while_it_works() {
        let flight = SingleFlight::<()>::new(&Shutdown::default());
        flight.wake();
        flight.ask();
        let Next::Asked(ticket) = flight.next(None) else { panic!("who waits comes first") };
        flight.done(ticket, ());
        assert_eq!(flight.next(None), Next::Look);
        assert_eq!(flight.next(Some(Instant::now() + SHORT)), Next::Look, "its time is over");
    }

    #[test]
    fn the_end_ends_all_waits_and_those_after_it() {
        let shutdown = Shutdown::default();
        let flight = SingleFlight::<()>::new(&shutdown);
        let (begun, begins) = mpsc::channel();
        thread::scope(|scope| {
            let worker = scope.spawn(|| flight.next(None));
            let caller = scope.spawn(|| {
                begun.send(()).unwrap();
                flight.wait(Ticket(1), in_a_while())
            });
            begins.recv().unwrap();
            shutdown.request();
            assert_eq!((worker.join().unwrap(), caller.join().unwrap()), (Next::End, Err(NotDone::Ending)));
        });
        assert_eq!((flight.next(None), flight.wait(flight.ask(), in_a_while())), (Next::End, Err(NotDone::Ending)));
    }

    #[test]
    fn of_many_callers_each_gets_an_outcome_of_work_that_began_after_it_asked() {
        let shutdown = Shutdown::default();
        let flight = SingleFlight::<Ticket>::new(&shutdown);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                while let Next::Asked(ticket) = flight.next(None) {
                    flight.done(ticket, ticket);
                }
            });
            let callers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..500).all(|_| {
                            let mine = flight.ask();
                            flight.wait(mine, in_a_while()).is_ok_and(|outcome| outcome >= mine)
                        })
                    })
                })
                .collect();
            assert!(callers.into_iter().all(|caller| caller.join().unwrap()));
            shutdown.request();
            worker.join().unwrap();
        });
    }
}
