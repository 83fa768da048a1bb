//! What the soak says: the rows of its table, and its findings at the end.

use super::journals::Waiting;
use super::processes::Usage;
use super::report::{self, Row};
use super::schedule::{Disturbance, Mood, Pace};
use super::verdict::Ending;
use super::{Done, Outcome, STREAMS, Soak, lock, verdict};

impl Soak<'_> {
    /// A row of the table.
    pub(super) fn report(&mut self) {
        // In this order, what was taken before and doesn't wait is gone: a line leaves the journals after it was
        // received or set aside. It may go from one journal to another meanwhile, but not twice.
        let before = self.ledgers().map(|ledger| lock(ledger).clone());
        let waiting = self.buffers.waiting().and_then(|first| Ok([first, self.buffers.waiting()?])).ok();
        self.enter_set_aside();
        let mut row = Row {
            elapsed: self.began.elapsed(),
            waiting: waiting.is_some().then_some(0),
            requests: self.books.requests(),
            front: self.usage(self.front()),
            worker: self.usage(self.worker),
            buffers: self.buffers.journals().1,
            others: self.buffers.size_of_set_aside(),
            phase: self.phase.clone(),
            ..Row::default()
        };
        for (stream, (ledger, before)) in self.ledgers().into_iter().zip(before).enumerate() {
            let ledger = lock(ledger);
            if let Some(waiting) = &waiting {
                let fates =
                    ledger.fates_of(&before, &waiting.each_ref().map(|read| &read.numbers[stream][..]).concat());
                row.dropped += fates.lost.count();
                row.waiting = row.waiting.map(|sum| sum + fates.waiting);
            }
            row.taken += ledger.taken();
            row.received += ledger.received();
            row.set_aside += ledger.all_set_aside();
            row.duplicates += ledger.duplicates();
        }
        let calls = lock(&self.books.calls).clone();
        (row.refused, row.broken) = (calls.refused + calls.unexplained, calls.broken);
        (self.say)(&row.render());
    }

    /// Says what the run has shown. The extension has ended: nothing changes any more.
    pub(super) fn judge(&mut self) -> Outcome {
        self.enter_set_aside();
        let mut problems = self.troubles.clone();
        let waiting = self.buffers.waiting().unwrap_or_else(|error| {
            problems.push(format!("what waits can't be read: {error}"));
            Waiting::default()
        });
        let ending = Ending { waiting, journals: self.buffers.journals(), set_aside: self.buffers.size_of_set_aside() };
        self.summarize(&ending);
        problems.extend(verdict::problems(self.books, &ending, &self.quiet));
        if self.buffers.unseen > 0 {
            problems.push(format!("{} files of lines set aside went before the soak looked", self.buffers.unseen));
        }
        for problem in &problems {
            (self.say)(&format!("PROBLEM: {problem}"));
        }
        (self.say)(if problems.is_empty() { "verdict: ok" } else { "verdict: NOT ok" });
        if problems.is_empty() { Outcome::Fine } else { Outcome::Faulty }
    }

    fn summarize(&self, ending: &Ending) {
        (self.say)("");
        for (stream, (ledger, on_disk)) in
            STREAMS.into_iter().zip(self.ledgers().into_iter().zip(&ending.waiting.numbers))
        {
            let ledger = lock(ledger);
            let fates = ledger.fates(on_disk);
            (self.say)(&format!(
                "{stream}: {} sent, {} taken = {} received + {} set aside + {} waiting on disk + {} lost; {} received \
                 again, {} more received or set aside of broken calls",
                ledger.sent(),
                ledger.taken(),
                fates.received,
                fates.set_aside,
                fates.waiting,
                fates.lost.count(),
                ledger.duplicates(),
                ledger.taken_in_a_broken_call()
            ));
        }
        let calls = lock(&self.books.calls);
        (self.say)(&format!(
            "calls: {} made, {} refused, {} broken in the middle of a kill of the front, {} while osqueryd had dropped \
             the extension after one, {} while osqueryd ended, {} broken for no reason",
            calls.made, calls.refused, calls.broken, calls.forgotten, calls.orphaned, calls.unexplained
        ));
        let Done { front_kills, worker_kills, renewals, osqueryd_worker_kills, osqueryd_restarts, outages, faults } =
            self.done;
        (self.say)(&format!(
            "done: {worker_kills} kills of the worker, {front_kills} kills of the front, {renewals} renewals, \
             {osqueryd_worker_kills} kills of osqueryd's worker, {osqueryd_restarts} restarts of osqueryd, {outages} \
             outages, {faults} faults of the server"
        ));
        let (lines, bytes) = self.largest_backlog;
        (self.say)(&format!("largest backlog seen: {lines} result lines; {} MiB of journals", report::mib(bytes)));
        let (journals, bytes) = ending.journals;
        let [bytes, waiting, aside] = [bytes, ending.waiting.bytes, ending.set_aside].map(report::mib);
        (self.say)(&format!(
            "at the end: {bytes} MiB of {journals} journals, of which {waiting} MiB wait; {aside} MiB of lines set aside"
        ));
        for trend in verdict::describe_trends(&self.quiet) {
            (self.say)(&trend);
        }
        if let Some(own) = Usage::of(std::process::id()) {
            (self.say)(&format!("the soak itself: RSS {} MiB, {} threads", report::mib(own.rss << 10), own.threads));
        }
    }
}

/// A phase for the table.
pub(super) fn phase_name(mood: Mood, pace: Pace, disturbance: Option<Disturbance>) -> String {
    let mut name = match mood {
        Mood::Healthy => "healthy".to_owned(),
        Mood::Fault(fault) => fault.to_owned(),
        Mood::Outage => "outage".to_owned(),
        Mood::Forgetful => "nodes forgotten".to_owned(),
    };
    if pace == Pace::Bursts {
        name.push_str(", bursts");
    }
    match disturbance {
        None => {}
        Some(Disturbance::KillFront(times)) => name.push_str(&format!(", {times}x kill -9 of the front")),
        Some(Disturbance::KillWorker(times)) => name.push_str(&format!(", {times}x kill -9 of the worker")),
        Some(Disturbance::Renew) => name.push_str(", SIGHUP"),
        Some(Disturbance::KillOsquerydWorker(_)) => name.push_str(", osqueryd's worker killed"),
        Some(Disturbance::RestartOsqueryd(_)) => name.push_str(", osqueryd restarted"),
    }
    name
}
