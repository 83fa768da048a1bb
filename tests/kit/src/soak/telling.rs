//! What the soak says: the rows of its table, and its findings at the end.

use super::processes::Usage;
use super::report::{self, Row};
use super::schedule::{Disturbance, Mood, Pace};
use super::{Done, Outcome, STREAMS, Soak, lock, verdict};

impl Soak<'_> {
    /// A row of the table.
    pub(super) fn report(&mut self) {
        let [results, statuses, distributed] = STREAMS.map(|stream| self.buffers.size(stream));
        let mut row = Row {
            elapsed: self.began.elapsed(),
            waiting: Some(0),
            requests: self.books.requests(),
            front: self.usage(self.front()),
            worker: self.usage(self.worker),
            results,
            others: statuses + distributed + self.buffers.size_of_others(),
            phase: self.phase.clone(),
            ..Row::default()
        };
        for (stream, ledger) in STREAMS.into_iter().zip(self.ledgers()) {
            // In this order, what is missing and doesn't wait is gone: a line leaves the journal after it was received
            // or set aside.
            let before = lock(ledger).clone();
            let waiting = self.buffers.waiting(stream);
            self.enter_set_aside();
            let after = lock(ledger).clone();
            let missing = after.missing_of(&before);
            row.dropped += waiting.map_or(0, |waiting| missing.saturating_sub(waiting));
            row.waiting = row.waiting.zip(waiting).map(|(sum, waiting)| sum + waiting);
            row.taken += after.taken();
            row.received += after.received();
            row.set_aside += after.all_set_aside();
            row.duplicates += after.duplicates();
        }
        let calls = lock(&self.books.calls).clone();
        (row.refused, row.broken) = (calls.refused + calls.unexplained, calls.broken);
        (self.say)(&row.render());
    }

    /// Says what the run has shown.
    pub(super) fn judge(&self) -> Outcome {
        self.summarize();
        let problems = verdict::problems(self.books, &self.buffers, &self.quiet, &self.troubles);
        for problem in &problems {
            (self.say)(&format!("PROBLEM: {problem}"));
        }
        (self.say)(if problems.is_empty() { "verdict: ok" } else { "verdict: NOT ok" });
        if problems.is_empty() { Outcome::Fine } else { Outcome::Faulty }
    }

    fn summarize(&self) {
        (self.say)("");
        for (stream, ledger) in STREAMS.into_iter().zip(self.ledgers()) {
            let ledger = lock(ledger);
            (self.say)(&format!(
                "{stream}: {} sent, {} taken, {} received, {} set aside, {} lost; {} received again, {} taken in a \
                 broken call",
                ledger.sent(),
                ledger.taken(),
                ledger.received(),
                ledger.all_set_aside(),
                ledger.missing().count(),
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
        (self.say)(&format!("largest backlog seen: {lines} lines, {} MiB of results", report::mib(bytes)));
        if let Some(last) = self.quiet.last() {
            let [results, others] = [last.files[0], last.others].map(report::mib);
            (self.say)(&format!("at the last quiet moment: {results} MiB of results, {others} MiB of lines set aside"));
        }
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
