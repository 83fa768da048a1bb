//! The gate that every call goes through: it knows which osqueryd there is, how fast lines are to come, and what
//! happened to processes while a call was under way.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ledger::{Books, Circumstances, Fate, Promise};
use super::schedule::Pace;
use crate::osqueryd::Osqueryd;

/// The time after the front was killed in which osqueryd may not know the extension: the front may have been killed in the
/// middle of osqueryd's own ping, and the next one registers again.
const AFTERMATH: Duration = Duration::from_secs(10);

/// The gate. Calls wait while it is shut or the pace is [`Pace::Off`].
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    osqueryd: Option<Arc<Osqueryd>>,
    pace: Pace,
    /// Calls under way.
    inside: usize,
    over: bool,
    kills: Events,
    ends: Events,
    last_kill: Option<Instant>,
}

/// Events that take their time: a call was under way meanwhile when fewer were done at its beginning than had begun
/// at its end.
#[derive(Clone, Copy, Default)]
struct Events {
    begun: u64,
    done: u64,
}

/// A caller inside.
pub(super) struct Visit<'a> {
    gate: &'a Gate,
    osqueryd: Arc<Osqueryd>,
    pub(super) pace: Pace,
    kills_done: u64,
    ends_done: u64,
}

impl Gate {
    /// Shut, and without load.
    pub(super) fn new() -> Gate {
        let state = State {
            osqueryd: None,
            pace: Pace::Off,
            inside: 0,
            over: false,
            kills: Events::default(),
            ends: Events::default(),
            last_kill: None,
        };
        Gate { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Lets a caller in as soon as calls may be made; `None` when all is over.
    pub(super) fn enter(&self) -> Option<Visit<'_>> {
        let waits = |state: &mut State| !state.over && (state.osqueryd.is_none() || state.pace == Pace::Off);
        let mut state = self.changed.wait_while(self.state(), waits).unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return None;
        }
        let osqueryd = Arc::clone(state.osqueryd.as_ref()?);
        state.inside += 1;
        let (kills_done, ends_done) = (state.kills.done, state.ends.done);
        Some(Visit { gate: self, osqueryd, pace: state.pace, kills_done, ends_done })
    }

    /// Waits for time to pass, or for the end.
    pub(super) fn pause(&self, time: Duration) {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.over);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn set_pace(&self, pace: Pace) {
        self.change(|state| state.pace = pace);
    }

    /// Calls go to this osqueryd from now on.
    pub(super) fn open(&self, osqueryd: Arc<Osqueryd>) {
        self.change(|state| state.osqueryd = Some(osqueryd));
    }

    /// No call begins any more: the osqueryd that there was.
    pub(super) fn shut(&self) -> Option<Arc<Osqueryd>> {
        self.change(|state| state.osqueryd.take())
    }

    /// The osqueryd that calls go to.
    pub(super) fn osqueryd(&self) -> Option<Arc<Osqueryd>> {
        self.state().osqueryd.clone()
    }

    /// Waits until no call is under way, for `limit` at most: whether none is.
    pub(super) fn wait_empty(&self, limit: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), limit, |state| state.inside > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.inside == 0
    }

    /// Ends the load for good.
    pub(super) fn finish(&self) {
        self.change(|state| state.over = true);
    }

    /// Runs `kill`, which kills the front and waits until it is dead: calls that are under way then may break off.
    pub(super) fn while_killing_front<T>(&self, kill: impl FnOnce() -> T) -> T {
        self.change(|state| state.kills.begun += 1);
        let outcome = kill();
        self.change(|state| {
            state.kills.done += 1;
            state.last_kill = Some(Instant::now());
        });
        outcome
    }

    /// Runs `restart`, in which osqueryd goes and comes again: whatever fails meanwhile is excused, since it was
    /// asked by an osqueryd that is gone.
    pub(super) fn while_osqueryd_is_gone<T>(&self, restart: impl FnOnce() -> T) -> T {
        self.change(|state| state.ends.begun += 1);
        let outcome = restart();
        self.change(|state| state.ends.done += 1);
        outcome
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.state());
        self.changed.notify_all();
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_after_kill(&self) -> bool {
        self.last_kill.is_some_and(|at| at.elapsed() < AFTERMATH)
    }
}

impl Visit<'_> {
    /// Makes a call and enters it in the books: whether it was answered 0.
    pub(super) fn call(&self, books: &Books, promise: Promise, registry: &str, request: &[(&str, &[u8])]) -> bool {
        let outcome = self.osqueryd.call(registry, "remote_tls", request);
        let fate = Fate::of(&outcome, self.circumstances());
        super::lock(&books.calls).count(promise, &outcome, fate)
    }

    fn circumstances(&self) -> Circumstances {
        let state = self.gate.state();
        if state.ends.begun > self.ends_done {
            Circumstances::OsquerydGone
        } else if state.kills.begun > self.kills_done {
            Circumstances::Killed
        } else if state.is_after_kill() {
            Circumstances::AfterKill
        } else {
            Circumstances::Calm
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.gate.change(|state| state.inside -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::osqueryd::Options;

    fn gate() -> (Gate, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let gate = Gate::new();
        gate.open(Arc::new(Osqueryd::start_bare(Options::new(directory.path()))));
        gate.set_pace(Pace::Moderate);
        (gate, directory)
    }

    #[test]
    fn a_call_is_excused_by_what_happens_while_it_is_under_way_and_by_nothing_else() {
        let (gate, _directory) = gate();
        let before = gate.enter().unwrap();
        assert_eq!(before.circumstances(), Circumstances::Calm);
        gate.while_killing_front(|| assert_eq!(gate.enter().unwrap().circumstances(), Circumstances::Killed));
        assert_eq!(before.circumstances(), Circumstances::Killed);
        assert_eq!(gate.enter().unwrap().circumstances(), Circumstances::AfterKill);
        gate.while_osqueryd_is_gone(|| {
            assert_eq!(gate.enter().unwrap().circumstances(), Circumstances::OsquerydGone);
        });
        assert_eq!(before.circumstances(), Circumstances::OsquerydGone);
        assert_eq!(gate.enter().unwrap().circumstances(), Circumstances::AfterKill);
    }

    #[test]
    fn nobody_enters_a_gate_that_is_shut_or_without_load_and_everybody_leaves_at_the_end() {
        let (gate, _directory) = gate();
        let inside = gate.enter().unwrap();
        assert!(!gate.wait_empty(Duration::ZERO));
        drop(inside);
        assert!(gate.wait_empty(Duration::ZERO));
        std::thread::scope(|scope| {
            let osqueryd = gate.shut().unwrap();
            let caller = scope.spawn(|| gate.enter().is_some());
            gate.open(osqueryd);
            assert!(caller.join().unwrap());
            gate.set_pace(Pace::Off);
            let caller = scope.spawn(|| gate.enter().is_some());
            gate.finish();
            assert!(!caller.join().unwrap());
        });
    }
}
