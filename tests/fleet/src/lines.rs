//! A host's log lines: numbered as they come, at an even rate; which are delivered, and which wait.

use std::collections::VecDeque;
use std::ops::Range;

use crate::time::{SECOND, Tick};

/// Bytes of a line.
pub(crate) const LINE_BYTES: u64 = 600;

/// Lines younger than this are live, and go first where a policy says so; older ones are the backlog.
const LIVE: Tick = 60 * SECOND;

/// The lines of a host. What is in none of the ranges is delivered, or was dropped.
pub(crate) struct Lines {
    /// Lines a tick.
    rate: f64,
    /// The first line comes when this and the rate make one.
    phase: f64,
    backlog: VecDeque<Range<u32>>,
    /// The first line that is not delivered and not in the backlog.
    live: u32,
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
}

/// Lines of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) live: u32,
    pub(crate) backlog: u32,
}

impl Batch {
    pub(crate) fn lines(&self) -> u32 {
        self.live + self.backlog
    }
}

impl Lines {
    pub(crate) fn new(lines_a_second: f64, phase: f64) -> Self {
        let rate = lines_a_second / f64::from(SECOND);
        Self { rate, phase, backlog: VecDeque::new(), live: 0, delivered: 0, dropped: 0 }
    }

    pub(crate) fn a_second(&self) -> f64 {
        self.rate * f64::from(SECOND)
    }

    /// How many have come by then.
    pub(crate) fn come(&self, now: Tick) -> u32 {
        (self.rate * f64::from(now) + self.phase) as u32
    }

    /// When line `n` has come.
    pub(crate) fn time_of(&self, n: u32) -> Tick {
        ((f64::from(n + 1) - self.phase) / self.rate).ceil().max(0.0) as Tick
    }

    /// What came before the last minute is backlog from now on.
    pub(crate) fn divide(&mut self, now: Tick) {
        let from = self.come(now.saturating_sub(LIVE));
        if from <= self.live {
            return;
        }
        match self.backlog.back_mut() {
            Some(last) if last.end == self.live => last.end = from,
            _ => self.backlog.push_back(self.live..from),
        }
        self.live = from;
    }

    /// Keeps no more than `most`: the oldest are lost.
    pub(crate) fn keep(&mut self, most: u32, now: Tick) {
        let too_many = (self.come(now) - self.live).saturating_sub(most);
        self.live += too_many;
        self.dropped += u64::from(too_many);
    }

    pub(crate) fn in_backlog(&self) -> u32 {
        self.backlog.iter().map(|range| range.end - range.start).sum()
    }

    pub(crate) fn live(&self, now: Tick) -> u32 {
        self.come(now) - self.live
    }

    pub(crate) fn waiting(&self, now: Tick) -> u32 {
        self.in_backlog() + self.live(now)
    }

    /// In how many ticks the backlog came.
    pub(crate) fn backlog_took(&self) -> Tick {
        (f64::from(self.in_backlog()) / self.rate) as Tick
    }

    /// When the oldest of what is newer than all that was delivered has come: what an operator doesn't see yet.
    pub(crate) fn unseen_since(&self, now: Tick) -> Option<Tick> {
        let oldest = match self.backlog.front() {
            // Whatever is delivered of the backlog, nothing behind it was.
            Some(first) if self.backlog.len() == 1 && first.end == self.live => first.start,
            _ => self.live,
        };
        (oldest < self.come(now)).then(|| self.time_of(oldest))
    }

    /// These are delivered.
    pub(crate) fn acknowledge(&mut self, batch: &Batch) {
        self.live += batch.live;
        let mut left = batch.backlog;
        while left > 0
            && let Some(first) = self.backlog.front_mut()
        {
            let taken = left.min(first.end - first.start);
            first.start += taken;
            left -= taken;
            if first.start == first.end {
                self.backlog.pop_front();
            }
        }
        self.delivered += u64::from(batch.lines());
    }

    /// Every line that came was delivered once, was dropped, or waits.
    pub(crate) fn are_conserved(&self, now: Tick) -> bool {
        let in_order = self.backlog.iter().zip(self.backlog.iter().skip(1)).all(|(one, next)| one.end <= next.start);
        let apart = self.backlog.back().is_none_or(|last| last.end <= self.live);
        let sum = self.delivered + self.dropped + u64::from(self.waiting(now));
        in_order && apart && sum == u64::from(self.come(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_evenly_and_each_is_delivered_once() {
        let mut lines = Lines::new(1.0, 0.0);
        assert_eq!((lines.come(9), lines.come(10), lines.time_of(0), lines.time_of(9)), (0, 1, 10, 100));
        lines.divide(1000);
        assert_eq!((lines.in_backlog(), lines.live(1000), lines.backlog_took()), (40, 60, 400));
        lines.acknowledge(&Batch { live: 60, backlog: 0 });
        lines.divide(3000);
        assert_eq!((lines.in_backlog(), lines.live(3000)), (40 + 140, 60));
        lines.acknowledge(&Batch { live: 0, backlog: 50 });
        assert_eq!((lines.backlog.len(), lines.in_backlog(), lines.delivered), (1, 130, 110));
        assert!(lines.are_conserved(3000));
        lines.live += 1;
        assert!(!lines.are_conserved(3000), "a lost line is seen");
    }

    #[test]
    fn what_is_not_seen_yet_is_what_came_after_all_that_was_delivered() {
        let mut lines = Lines::new(1.0, 0.0);
        lines.divide(1000);
        assert_eq!(lines.unseen_since(1000), Some(10));
        lines.acknowledge(&Batch { live: 60, backlog: 0 });
        assert_eq!(lines.unseen_since(1000), None);
        assert_eq!(lines.unseen_since(1010), Some(1010));
    }
}
