//! What is counted, mostly what became of lines; what was lost is said, too.

use super::Counts;
use crate::lock::Mutex;
use crate::words::counted;

/// One side's counts: the writer's, or the reader's, who shares them with its segment reader.
pub(super) struct Tally {
    name: &'static str,
    counts: Mutex<Counts>,
    /// What was said of losses, for those who don't read the log.
    losses: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, counts: Mutex::default(), losses: Mutex::default() }
    }

    /// The count of a kind grows by `more`: what it was, and what it is now.
    pub(super) fn add(&self, kind: fn(&mut Counts) -> &mut u64, more: u64) -> (u64, u64) {
        let mut counts = self.counts.lock();
        let count = kind(&mut counts);
        let before = *count;
        *count = before.saturating_add(more);
        (before, *count)
    }

    /// Lines were set aside: said.
    pub(super) fn set_aside(&self, lines: u64, reason: &str) {
        self.lose(|counts| &mut counts.set_aside, lines, "set aside", reason);
    }

    /// Lines were dropped: said.
    pub(super) fn dropped(&self, lines: u64, reason: &str) {
        self.lose(|counts| &mut counts.dropped, lines, "dropped", reason);
    }

    /// Dropped, and not for a fault.
    pub(super) fn discarded(&self, lines: u64) {
        self.add(|counts| &mut counts.discarded, lines);
        self.dropped(lines, "an operator discarded them");
    }

    /// Counts losses of a kind. Said at the first and then each time the number has doubled: a flood of losses is no
    /// flood of messages.
    fn lose(&self, kind: fn(&mut Counts) -> &mut u64, lines: u64, what: &str, reason: &str) {
        if lines == 0 {
            return;
        }
        let (before, now) = self.add(kind, lines);
        if before.checked_ilog2() != now.checked_ilog2() {
            let lines = counted(now, "line");
            let message = format!("{lines} of the {} journal {what} so far; the last because {reason}", self.name);
            log::error!("{message}");
            self.losses.lock().push(message);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock()
    }

    pub(super) fn take_losses(&self) -> Vec<String> {
        std::mem::take(&mut *self.losses.lock())
    }
}
