//! The end, asked for once and seen by every thread: a flag, waits that it interrupts, and hooks that it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex, MutexGuard};

/// Shared by all threads: asks them to end, and ends their waits.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    requested: bool,
    hooks: Vec<Hook>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl Shutdown {
    /// Asks every thread that waits on this to end. Asking again does nothing.
    pub fn request(&self) {
        let hooks = {
            let mut state = self.state();
            state.requested = true;
            std::mem::take(&mut state.hooks)
        };
        self.0.bell.notify_all();
        for hook in hooks {
            hook();
        }
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.state().requested
    }

    /// Waits for `limit`, less when the end is asked for: whether it was.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        // A limit beyond what the clock can hold is no limit.
        let until = Instant::now().checked_add(limit);
        let mut state = self.state();
        while !state.requested && until.is_none_or(|until| Instant::now() < until) {
            state = self.0.bell.wait(state, until);
        }
        state.requested
    }

    /// Runs `hook` when the end is asked for: at once if it was already. For threads that wait for something else.
    pub fn on_request(&self, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.requested {
            drop(state);
            hook();
        } else {
            state.hooks.push(Box::new(hook));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// Wakes one waiting thread; a ring while no thread waits is kept for the next wait.
#[derive(Default)]
pub struct Doorbell {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Doorbell {
    /// Wakes the thread that waits, or the next one to wait.
    pub fn ring(&self) {
        *self.rung.lock() = true;
        self.bell.notify_one();
    }

    /// Waits for a ring, until `deadline` at most; `None` waits for as long as it takes.
    pub fn wait(&self, deadline: Option<Instant>) {
        let mut rung = self.rung.lock();
        while !*rung {
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return;
            }
            rung = self.bell.wait(rung, deadline);
        }
        *rung = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_request_ends_a_wait_at_once() {
        let shutdown = Shutdown::default();
        let waiter = thread::spawn({
            let shutdown = shutdown.clone();
            move || (Instant::now(), shutdown.wait(LONG))
        });
        shutdown.request();
        let (began, requested) = waiter.join().unwrap();
        assert!(requested && began.elapsed() < LONG);
    }

    #[test]
    fn hooks_run_at_the_request_and_at_once_after_it() {
        let shutdown = Shutdown::default();
        let (before, after) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&before);
        shutdown.on_request(move || flag.store(true, Ordering::SeqCst));
        assert!(!before.load(Ordering::SeqCst));
        shutdown.request();
        let flag = Arc::clone(&after);
        shutdown.on_request(move || flag.store(true, Ordering::SeqCst));
        assert!(before.load(Ordering::SeqCst) && after.load(Ordering::SeqCst));
    }

    #[test]
    fn a_ring_before_the_wait_is_not_lost() {
        let bell = Doorbell::default();
        bell.ring();
        bell.wait(None);
        bell.wait(Some(Instant::now()));
    }
}
