//! What became of lines: counted, and what was lost is said.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Counts;
use crate::lock::Mutex;
use crate::words::counted;

/// One side's counters.
pub(super) struct Tally {
    name: &'static str,
    accepted: AtomicU64,
    delivered: AtomicU64,
    set_aside: AtomicU64,
    dropped: AtomicU64,
    /// Those that an operator wanted to be dropped.
    discarded: AtomicU64,
    /// What was said of losses, for those who don't read the log.
    losses: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            accepted: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            losses: Mutex::default(),
        }
    }

    pub(super) fn accept(&self, lines: u64) {
        self.accepted.fetch_add(lines, Ordering::Relaxed);
    }

    pub(super) fn deliver(&self, lines: u64) {
        self.delivered.fetch_add(lines, Ordering::Relaxed);
    }

    pub(super) fn set_aside(&self, lines: u64, reason: &str) {
        self.lose(&self.set_aside, lines, "set aside", reason);
    }

    pub(super) fn drop(&self, lines: u64, reason: &str) {
        self.lose(&self.dropped, lines, "dropped", reason);
    }

    /// Dropped, and not for a fault.
    pub(super) fn discard(&self, lines: u64) {
        self.discarded.fetch_add(lines, Ordering::Relaxed);
        self.drop(lines, "an operator discarded them");
    }

    /// Counts losses of a kind. Said at the first and then each time the number has doubled: a flood of losses is no
    /// flood of messages.
    fn lose(&self, counter: &AtomicU64, lines: u64, kind: &str, reason: &str) {
        if lines == 0 {
            return;
        }
        let before = counter.fetch_add(lines, Ordering::Relaxed);
        let now = before.saturating_add(lines);
        if before.checked_ilog2() != now.checked_ilog2() {
            let lines = counted(now, "line");
            let message = format!("{lines} of the {} journal {kind} so far; the last because {reason}", self.name);
            log::error!("{message}");
            self.losses.lock().push(message);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            set_aside: self.set_aside.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            discarded: self.discarded.load(Ordering::Relaxed),
        }
    }

    pub(super) fn take_losses(&self) -> Vec<String> {
        std::mem::take(&mut *self.losses.lock())
    }
}
