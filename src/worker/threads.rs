//! The worker's threads, by name, and how their end is waited for.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Between two looks whether a thread has ended; std has no join with a deadline.
const JOIN_PAUSE: Duration = Duration::from_millis(2);

/// The threads that were started.
#[derive(Default)]
pub(super) struct Threads(Vec<(&'static str, JoinHandle<()>)>);

impl Threads {
    pub(super) fn spawn(&mut self, name: &'static str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).context("can't start a thread")?;
        self.0.push((name, thread));
        Ok(())
    }

    /// Joins those that have ended by now: of threads that come and go, no handles are left.
    pub(super) fn join_ended(&mut self) {
        for (name, thread) in self.0.extract_if(.., |(_, thread)| thread.is_finished()) {
            if thread.join().is_err() {
                log::error!("the thread {name} panicked; please report it with the lines above");
            }
        }
    }

    /// Joins those that end before `deadline`: whether all have.
    pub(super) fn join(&mut self, deadline: Instant) -> bool {
        loop {
            self.join_ended();
            if self.0.is_empty() || Instant::now() >= deadline {
                return self.0.is_empty();
            }
            thread::sleep(JOIN_PAUSE);
        }
    }

    /// Those left end with the process.
    pub(super) fn name_the_late(&self) {
        for (name, _) in &self.0 {
            log::warn!("the thread {name} did not end in time");
        }
    }
}
