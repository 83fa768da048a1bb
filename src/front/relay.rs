//! Calls that the front doesn't answer itself: handed to the worker, and repeated with the next one when a worker dies
//! under them. All of them bear repetition; result lines, which don't, never come here.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::control::{self, Order, ToOther};
use crate::lock::{Condvar, Mutex};

/// Calls that wait for a worker, at most: threads are left for lines and pings, whatever a worker takes its time over.
const MOST_IN_FLIGHT: usize = 32;

/// How many workers may die under one call before it is answered by a failure: it may be what kills them.
const MOST_DEATHS: u32 = 20;

/// How long a call may take while osqueryd is ending.
pub const LAST_CALL_LIMIT: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// No worker was there within the time that the call could wait.
    #[error("no worker is there to answer it")]
    NoWorker,
    /// As many as a worker is given wait already.
    #[error("{MOST_IN_FLIGHT} calls wait for an answer already")]
    Crowded,
    /// One worker after the other died under it.
    #[error("{MOST_DEATHS} workers died over it")]
    Deadly,
    /// osqueryd is ending, and waits for its calls.
    #[error("osqueryd is ending")]
    Ending,
}

/// Where calls are answered that the front doesn't answer itself.
pub trait Elsewhere: Send + Sync {
    /// Answers a call's whole message; waits at most `wait_limit` while there is no worker, and as long as it takes
    /// while one is at it.
    ///
    /// # Errors
    /// There is no answer.
    fn answer(&self, frame: &[u8], wait_limit: Duration) -> Result<Vec<u8>, Unanswered>;
}

/// Hands calls to the worker that is there.
#[derive(Default)]
pub struct Relay {
    worker: Mutex<Option<(u64, Arc<ToOther>)>>,
    changed: Condvar,
    in_flight: AtomicUsize,
    /// Calls at the worker, by number.
    asked: Mutex<(u64, Vec<(u64, UnixStream)>)>,
    /// osqueryd is ending.
    is_ending: AtomicBool,
}

impl Relay {
    /// From now on calls go to this worker, which has this number.
    pub fn use_worker(&self, number: u64, worker: Arc<ToOther>) {
        *self.worker.lock() = Some((number, worker));
        self.changed.notify_all();
    }

    /// This worker is gone: calls wait for the next one.
    pub fn forget_worker(&self, number: u64) {
        let mut worker = self.worker.lock();
        if worker.as_ref().is_some_and(|(present, _)| *present == number) {
            *worker = None;
        }
    }

    /// Tells the worker that is there something.
    pub fn tell(&self, order: &Order) {
        let worker = self.worker.lock().as_ref().map(|(_, worker)| Arc::clone(worker));
        if let Some(worker) = worker {
            worker.tell(order);
        }
    }

    /// osqueryd is ending, and its end waits for its calls: from now on none takes longer than [`LAST_CALL_LIMIT`].
    pub fn hurry(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    /// Breaks off the calls that are at the worker.
    pub fn break_off(&self) {
        for (_, stream) in &self.asked.lock().1 {
            // An error says that it is over already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Another osqueryd is there: its calls may take their time.
    pub fn take_time(&self) {
        self.is_ending.store(false, Ordering::SeqCst);
    }

    fn ask(&self, worker: &ToOther, frame: &[u8]) -> io::Result<Vec<u8>> {
        let (ours, theirs) = UnixStream::pair()?;
        if self.is_ending.load(Ordering::SeqCst) {
            ours.set_read_timeout(Some(LAST_CALL_LIMIT))?;
        }
        let number = {
            let mut asked = self.asked.lock();
            asked.0 += 1;
            let number = asked.0;
            asked.1.push((number, ours.try_clone()?));
            number
        };
        let answer = worker.send(&Order::Call {}, Some(&theirs)).and_then(|()| {
            // Ours alone is left: a worker that dies is the end of the connection.
            drop(theirs);
            control::ask(&ours, frame)
        });
        self.asked.lock().1.retain(|(other, _)| *other != number);
        answer
    }

    /// Calls that wait for a worker or its answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// The worker that is there, or comes before `deadline`; not the one of this number, which is dead.
    fn worker(&self, dead: Option<u64>, deadline: Instant) -> Result<(u64, Arc<ToOther>), Unanswered> {
        let mut worker = self.worker.lock();
        loop {
            if let Some((number, present)) = worker.as_ref().filter(|(number, _)| Some(*number) != dead) {
                return Ok((*number, Arc::clone(present)));
            }
            if Instant::now() >= deadline {
                return Err(Unanswered::NoWorker);
            }
            worker = self.changed.wait(worker, Some(deadline));
        }
    }
}

impl Elsewhere for Relay {
    fn answer(&self, frame: &[u8], wait_limit: Duration) -> Result<Vec<u8>, Unanswered> {
        let others = self.in_flight.fetch_add(1, Ordering::SeqCst);
        let _counted = InFlight(&self.in_flight);
        if others >= MOST_IN_FLIGHT {
            return Err(Unanswered::Crowded);
        }
        let mut dead = None;
        for _ in 0..MOST_DEATHS {
            let (number, worker) = self.worker(dead, Instant::now() + wait_limit)?;
            match self.ask(&worker, frame) {
                Ok(answer) => return Ok(answer),
                Err(_) if self.is_ending.load(Ordering::SeqCst) => return Err(Unanswered::Ending),
                Err(error) => log::debug!("a worker ended under a call, which the next one gets: {error}"),
            }
            dead = Some(number);
        }
        Err(Unanswered::Deadly)
    }
}

/// Counts a call down, however it ends.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::control::{Receiver, as_stream, hear, reply};

    const LONG: Duration = Duration::from_secs(30);

    /// A worker that answers `answers` calls and dies in the middle of the next one.
    fn worker(answers: usize) -> (Arc<ToOther>, thread::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let works = move || {
            let mut orders = Receiver::new(theirs);
            for left in (0..=answers).rev() {
                let Some((Order::Call {}, descriptors)) = orders.receive::<Order>().unwrap() else { return };
                let stream = as_stream(descriptors).unwrap();
                let mut frame = hear(&stream).unwrap();
                if left > 0 {
                    frame.reverse();
                    reply(&stream, &frame).unwrap();
                }
            }
        };
        (Arc::new(ToOther::new(ours)), thread::spawn(works))
    }

    #[test]
    fn a_call_under_which_workers_die_is_answered_by_the_next_one() {
        let relay = Relay::default();
        let mut threads = Vec::new();
        thread::scope(|scope| {
            let call = scope.spawn(|| relay.answer(b"abc", LONG));
            for (number, answers) in [(1, 0), (2, 0), (3, 1)] {
                let (worker, thread) = worker(answers);
                relay.use_worker(number, worker);
                if answers == 0 {
                    thread.join().unwrap();
                    relay.forget_worker(number);
                } else {
                    threads.push(thread);
                }
            }
            assert_eq!(call.join().unwrap().unwrap(), b"cba");
        });
        assert_eq!(relay.in_flight(), 0);
        relay.forget_worker(3);
        drop(relay);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn calls_at_the_worker_are_broken_off_when_osqueryd_is_ending() {
        let relay = Relay::default();
        // A worker that takes calls and never answers.
        let (ours, theirs) = UnixStream::pair().unwrap();
        relay.use_worker(1, Arc::new(ToOther::new(ours)));
        thread::scope(|scope| {
            let call = scope.spawn(|| relay.answer(b"abc", LONG));
            let (_, descriptors) = Receiver::new(theirs.try_clone().unwrap()).receive::<Order>().unwrap().unwrap();
            let stream = as_stream(descriptors).unwrap();
            assert_eq!(hear(&stream).unwrap(), b"abc");
            relay.hurry();
            relay.break_off();
            assert_eq!(call.join().unwrap(), Err(Unanswered::Ending));
        });
        assert_eq!(relay.answer(b"abc", LONG), Err(Unanswered::Ending), "and later ones have a limit");
        drop(theirs);
    }

    #[test]
    fn without_a_worker_a_call_waits_for_its_time_and_no_longer() {
        let relay = Relay::default();
        assert_eq!(relay.answer(b"abc", Duration::from_millis(10)), Err(Unanswered::NoWorker));
    }

    #[test]
    fn a_call_that_kills_workers_ends() {
        let relay = Arc::new(Relay::default());
        let calling = thread::spawn({
            let relay = Arc::clone(&relay);
            move || relay.answer(b"abc", LONG)
        });
        for number in 1..=u64::from(MOST_DEATHS) {
            let (worker, thread) = worker(0);
            relay.use_worker(number, worker);
            thread.join().unwrap();
        }
        assert_eq!(calling.join().unwrap(), Err(Unanswered::Deadly));
    }
}
