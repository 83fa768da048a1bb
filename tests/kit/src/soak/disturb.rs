//! What is done to processes: kills, renewals, restarts. Only those that osqueryd, or its extension, has started get
//! signals, by their ids.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::processes::{Usage, children_of};
use super::schedule::Disturbance;
use super::{PROCESS_LIMIT, Soak, lock};
use crate::osqueryd::{Osqueryd, StartError};

/// Between two looks whether a process is there.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Soak<'_> {
    pub(super) fn disturb(&mut self, disturbance: Disturbance) {
        match disturbance {
            Disturbance::KillFront(times) => {
                for _ in 0..times {
                    let pause = Duration::from_millis(self.random.u64(..1000));
                    self.pass(Instant::now() + pause);
                    self.kill_front();
                }
            }
            Disturbance::KillWorker(times) => {
                for _ in 0..times {
                    let pause = Duration::from_millis(self.random.u64(..1000));
                    self.pass(Instant::now() + pause);
                    self.kill_worker();
                }
            }
            Disturbance::Renew => {
                self.done.renewals += 1;
                if let (Some(osqueryd), Some(front)) = (self.gate.osqueryd(), self.front()) {
                    osqueryd.signal(front, Signal::HUP.as_raw());
                }
                self.worker = self.other_worker_than(self.worker);
            }
            Disturbance::KillOsquerydWorker(pause) => {
                self.done.osqueryd_worker_kills += 1;
                let Some(osqueryd) = self.gate.shut() else { return };
                let restarted = self.gate.while_osqueryd_is_gone(|| {
                    osqueryd.kill_worker();
                    self.gate.wait_empty(PROCESS_LIMIT);
                    thread::sleep(Duration::from_millis(pause));
                    osqueryd.start_worker()
                });
                self.reopen(restarted.map(|()| osqueryd));
            }
            Disturbance::RestartOsqueryd(pause) => {
                self.done.osqueryd_restarts += 1;
                self.gate.while_osqueryd_is_gone(|| {
                    self.end_osqueryd();
                    thread::sleep(Duration::from_millis(pause));
                });
                self.reopen(Osqueryd::start(self.options.clone()).map(Arc::new));
            }
        }
    }

    /// Kills the front, which only the calls that it is at may notice: the worker stands in for it until osqueryd has
    /// started the next one.
    fn kill_front(&mut self) {
        let (Some(osqueryd), Some(front)) = (self.gate.osqueryd(), self.front()) else { return };
        self.done.front_kills += 1;
        self.killed_fronts.push(front);
        let is_dead = self.gate.while_killing_front(|| {
            lock(&self.books.calls).front_kills += 1;
            osqueryd.signal(front, Signal::KILL.as_raw());
            wait(PROCESS_LIMIT, || Usage::of(front).is_none())
        });
        if !is_dead {
            self.trouble(format!("the front {front} was killed and is still there after {PROCESS_LIMIT:?}"));
        }
        self.worker = self.other_worker_than(self.worker);
    }

    /// Kills the worker, which no call may notice.
    fn kill_worker(&mut self) {
        let (Some(worker), Some(front)) = (self.worker, self.front()) else { return };
        // Its id may be another process's by now, should it have died.
        if !children_of(front).contains(&worker) {
            return;
        }
        self.done.worker_kills += 1;
        if let Some(worker) = i32::try_from(worker).ok().and_then(Pid::from_raw) {
            let _ = kill_process(worker, Signal::KILL);
        }
        self.worker = self.other_worker_than(Some(worker));
    }

    /// osqueryd is there again, or will never be.
    fn reopen(&mut self, started: Result<Arc<Osqueryd>, StartError>) {
        match started {
            Ok(osqueryd) => {
                self.gate.open(osqueryd);
                self.worker = self.other_worker_than(None);
            }
            Err(error) => self.trouble(error.to_string()),
        }
    }

    /// Ends osqueryd, and with it the extension, which must take it well.
    pub(super) fn end_osqueryd(&mut self) {
        let Some(osqueryd) = self.gate.shut() else { return };
        // osqueryd's own threads end before it asks extensions to: those that need no server do so at once.
        self.gate.wait_empty(Duration::from_secs(2));
        self.look_at_exits(&osqueryd);
        let report = osqueryd.stop();
        if report.exit_code() != Some(0) || report.extensions.iter().any(|extension| extension.killed) {
            self.trouble(format!("the extension did not end cleanly: {report:?}"));
        }
        if let Err(error) = self.keep_log(&osqueryd) {
            self.trouble(format!("the extension's log can't be written: {error}"));
        }
        self.worker = None;
    }

    fn keep_log(&self, osqueryd: &Osqueryd) -> io::Result<()> {
        let Some(path) = &self.plan.log else { return Ok(()) };
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(osqueryd.stderr_of_extensions().as_bytes())
    }

    /// Waits until the front has exactly one worker, and another than this one.
    pub(super) fn other_worker_than(&mut self, predecessor: Option<u32>) -> Option<u32> {
        let mut found = None;
        let is_there = wait(PROCESS_LIMIT, || {
            let workers = self.front().map(children_of).unwrap_or_default();
            found = if let [worker] = workers[..] { Some(worker) } else { None };
            found.is_some() && found != predecessor
        });
        if !is_there {
            self.trouble(format!("there is no other worker than {predecessor:?} after {PROCESS_LIMIT:?}"));
            return None;
        }
        found
    }
}

/// Waits for a condition: whether it came true within the limit.
fn wait(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_AGAIN);
    }
}
