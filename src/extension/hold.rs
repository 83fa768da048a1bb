//! Answers that wait while osqueryd [sweeps](super::sweep) the socket's name away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};

/// No answer waits longer than this for a sweep. The slowest sweep seen came 14 ms after the hang-up; an osqueryd that was
/// killed sends none, and then nobody waits for these answers, either.
const LIMIT: Duration = Duration::from_millis(50);

/// Holds answers back, or lets them go.
#[derive(Debug, Default)]
pub struct Hold {
    /// Changed with `until`: what each answer looks at.
    is_on: AtomicBool,
    until: Mutex<Option<Instant>>,
    over: Condvar,
}

impl Hold {
    /// Called at the first sign that osqueryd ends: answers wait for its sweep, for 50 ms at most.
    pub fn begin(&self) {
        let mut until = self.until.lock();
        *until = Some(Instant::now() + LIMIT);
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// The name is back, or no sweep is to come.
    pub fn end(&self) {
        if self.is_on() {
            self.let_go(&mut self.until.lock());
        }
    }

    /// Whether answers are held back.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Waits while answers are held back.
    pub fn wait(&self) {
        if !self.is_on() {
            return;
        }
        let mut until = self.until.lock();
        while let Some(limit) = *until {
            if Instant::now() >= limit {
                self.let_go(&mut until);
            } else {
                until = self.over.wait(until, Some(limit));
            }
        }
    }

    fn let_go(&self, until: &mut Option<Instant>) {
        *until = None;
        self.is_on.store(false, Ordering::Relaxed);
        self.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    #[test]
    fn an_answer_waits_for_the_end_of_the_hold() {
        let hold = Arc::<Hold>::default();
        hold.wait();
        hold.begin();
        let (has_ended, waiting) = (Arc::<AtomicBool>::default(), Arc::clone(&hold));
        let seen = Arc::clone(&has_ended);
        let began = Instant::now();
        let (waits, is_waiting) = mpsc::channel();
        let answer = thread::spawn(move || {
            waits.send(()).unwrap();
            waiting.wait();
            (seen.load(Ordering::SeqCst), began.elapsed())
        });
        is_waiting.recv().unwrap();
        // A wait that lets go at once would be over by then.
        thread::sleep(LIMIT / 10);
        has_ended.store(true, Ordering::SeqCst);
        hold.end();
        let (after_end, took) = answer.join().unwrap();
        // On a busy machine the limit may be over before.
        assert!(after_end || took >= LIMIT, "{took:?}");
        hold.wait();
    }

    #[test]
    fn a_sweep_that_does_not_come_is_not_waited_for() {
        let hold = Hold::default();
        let began = Instant::now();
        hold.begin();
        hold.wait();
        assert!(began.elapsed() >= LIMIT);
        assert!(!hold.is_on(), "later answers would look at the clock each");
    }
}
