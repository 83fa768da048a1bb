//! How a worker ends: in osqueryd's order, or at once.
//!
//! Told to end, it interrupts its services one after the other. The pings' thread calls `shutdown()` of every extension,
//! the manager hangs up on all of its connections, and within milliseconds the sockets are swept away: the manager's,
//! and every extension's, whose process may be as alive as before. The other services finish what they are at: the
//! scheduler all the queries of its second, with a logger call for each of their lines. Then the process exits.

use std::fs;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::core::{sockets_beside, spawn};
use super::lock;
use super::watcher::WorkerStop;
use super::worker::Worker;

/// From the hang-up to the sweep, in microseconds: what was seen of osqueryd, the quick ones in most of its ends.
const SWEEPS: [std::ops::RangeInclusive<u64>; 2] = [100..=500, 500..=14_000];
/// osqueryd's extensions are mostly asked before the sweep, and tests count on it; one that doesn't answer is not waited for.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
/// The pause between two looks whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How far a worker's life has come.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// It was told to end.
    ending: AtomicBool,
    /// Every extension was asked to end.
    pub(super) has_asked: AtomicBool,
    /// It was killed, or its process has exited: nothing of it may go on.
    dead: AtomicBool,
    /// All of that is over.
    gone: AtomicBool,
    /// Held by the caller that waits for the threads.
    joining: Mutex<()>,
    /// What a test makes it do by hand, and began before it was told to end.
    by_hand: AtomicUsize,
}

/// A worker that is doing something by hand: its process stays until that is done, as for any of its services.
pub(super) struct AtWork {
    worker: Arc<Worker>,
    counts: bool,
}

impl AtWork {
    /// What begins while the worker ends is not waited for.
    pub(super) fn begin(worker: Arc<Worker>) -> AtWork {
        worker.life.by_hand.fetch_add(1, Ordering::SeqCst);
        let counts = !worker.life.ending.load(Ordering::SeqCst);
        if !counts {
            worker.life.by_hand.fetch_sub(1, Ordering::SeqCst);
        }
        AtWork { worker, counts }
    }
}

impl Deref for AtWork {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.worker
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if self.counts {
            self.worker.life.by_hand.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Worker {
    /// False once it was killed or its process has exited.
    pub(super) fn is_alive(&self) -> bool {
        !self.life.dead.load(Ordering::SeqCst)
    }

    /// Whether its process has exited and none of its threads runs.
    pub(super) fn is_gone(&self) -> bool {
        self.life.gone.load(Ordering::SeqCst)
    }

    /// Waits until it is gone. False when the limit is over.
    pub(super) fn wait_gone(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.is_gone() {
            if Instant::now() >= deadline {
                return false;
            }
            self.core.transcript.wait_for_change(LOOK_AGAIN);
        }
        true
    }

    /// Hears its process: a signal tells the worker to end, and the process' end is the worker's.
    pub(super) fn hear_process(self: &Arc<Worker>) {
        while self.process.next_signal() {
            self.begin_end(0);
        }
        self.die();
        self.core.transcript.note(format!("process {} of worker {} has ended", self.process.id(), self.number));
        self.life.gone.store(true, Ordering::SeqCst);
        self.core.transcript.ring();
    }

    /// Begins the end in order, with the code that the process is to exit with. Returns at once.
    pub(super) fn begin_end(self: &Arc<Worker>, code: i32) {
        if !self.is_alive() || self.life.ending.swap(true, Ordering::SeqCst) {
            return;
        }
        self.core.transcript.note(format!("worker {} begins to end", self.number));
        let worker = Arc::clone(self);
        spawn("worker-end", move || worker.end_in_order(code));
    }

    fn end_in_order(&self, code: i32) {
        self.interrupt();
        self.close_manager();
        let deadline = Instant::now() + ASKED_WITHIN;
        while !self.life.has_asked.load(Ordering::SeqCst) && Instant::now() < deadline {
            self.core.transcript.wait_for_change(LOOK_AGAIN);
        }
        let [quick, slow] = SWEEPS;
        thread::sleep(Duration::from_micros(fastrand::u64(if fastrand::bool() { quick } else { slow })));
        if self.is_alive() {
            let _ = fs::remove_file(&self.socket);
            for path in sockets_beside(&self.socket) {
                let _ = fs::remove_file(path);
            }
            self.core.transcript.note("the sockets are swept away");
        }
        self.join_threads();
        while self.is_alive() && self.life.by_hand.load(Ordering::SeqCst) > 0 {
            self.core.transcript.wait_for_change(LOOK_AGAIN);
        }
        if self.is_alive() {
            lock(&self.core.database).save();
            self.process.exit(code);
        }
    }

    /// As the watcher stops its child: SIGTERM, and SIGKILL when it does not end within the limit. None when it had
    /// ended before.
    pub(super) fn stop(self: &Arc<Worker>, limit: Duration) -> Option<WorkerStop> {
        if !self.is_alive() {
            return None;
        }
        let pid = self.process.id();
        self.core.transcript.note(format!("watcher sends SIGTERM to its worker ({pid})"));
        let begun = Instant::now();
        self.process.terminate();
        let killed = !self.wait_gone(limit);
        if killed {
            self.core.transcript.note(format!("the worker ({pid}) did not end: SIGKILL"));
            self.kill();
        }
        Some(WorkerStop { pid, status: self.process.reap(), took: begun.elapsed(), killed })
    }

    /// As `kill -9`: every connection ends at once, no extension is told, and the sockets' files are left alone. Returns
    /// when its process and its threads are gone. The process is a zombie then, until the watcher looks.
    pub(super) fn kill(&self) {
        self.life.dead.store(true, Ordering::SeqCst);
        // The kernel hangs up before it tells that a process has ended.
        self.cut();
        self.process.kill();
        while !self.is_gone() {
            self.core.transcript.wait_for_change(LOOK_AGAIN);
        }
    }

    fn die(&self) {
        self.life.dead.store(true, Ordering::SeqCst);
        self.cut();
        self.join_threads();
    }

    fn cut(&self) {
        self.interrupt();
        self.close_manager();
        self.connections.cut();
    }

    /// Refuses connections from now on, and closes those that were made.
    fn close_manager(&self) {
        self.served.cut();
        if let Some(listener) = lock(&self.listener).take() {
            // Wakes the thread that accepts.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
    }

    fn join_threads(&self) {
        let _joining = lock(&self.life.joining);
        loop {
            let threads = std::mem::take(&mut *lock(&self.threads));
            if threads.is_empty() {
                return;
            }
            for joined in threads {
                let _ = joined.join();
            }
        }
    }
}
