//! The first lines that wait in a journal, some of which the server refuses: a search among them, and what is to be sent
//! for it. The lines stay where they are in the journal until all before them are done with.

use std::collections::BTreeMap;
use std::ops::Range;

use super::backlog::Backlog;
use super::bundle::{self, Bundle, Bundler, Room};
use crate::chain::chain;
use crate::journal::{JournalError, Position, Reader};
use crate::line_count::LineCounter;
use crate::plugins::isolation::{Refusal, Search, Step, Then};
use crate::remote::{Blame, RemoteError};

/// The most requests whose lines are looked at together.
const MOST_REQUESTS: usize = 3;

/// A search and the lines that it is about.
pub(crate) struct Window {
    bundle: Bundle,
    search: Search,
    /// How many of the lines are gone from the journal.
    gone: usize,
    /// All of them are gone from it.
    is_gone: bool,
    /// Why a line is set aside, when it is: it was refused alone, or is given up.
    reasons: BTreeMap<usize, String>,
    /// How many lines were set aside.
    pub(crate) set_aside: usize,
}

impl Window {
    /// A search among these lines, of which a request may have `most`. Nothing is known of them.
    pub(crate) fn new(bundle: Bundle, most: usize) -> Self {
        let search = Search::new(bundle.ends.len(), most);
        Self { bundle, search, gone: 0, is_gone: false, reasons: BTreeMap::new(), set_aside: 0 }
    }

    /// Lines that a request may have, as far as is known now.
    pub(crate) fn size(&self) -> usize {
        self.search.size()
    }

    /// What is to be done next; what is to be sent is no larger than there is room for.
    pub(crate) fn next(&mut self, room: &Room) -> Step {
        match self.search.next() {
            Step::Send(lines) => {
                let fits = |end: &usize| self.data(&(lines.start..*end)).len() <= room.bytes;
                let end = (lines.start + 1..=lines.end).rev().find(fits).unwrap_or(lines.start + 1);
                Step::Send(lines.start..end)
            }
            Step::SetAside(line) => {
                self.set_aside += 1;
                Step::SetAside(line)
            }
            step => step,
        }
    }

    /// Lines as a request has them.
    pub(crate) fn data(&self, lines: &Range<usize>) -> &str {
        let start =
            lines.start.checked_sub(1).and_then(|before| self.bundle.ends.get(before)).map_or(0, |end| end.at + 1);
        let end = lines.end.checked_sub(1).and_then(|last| self.bundle.ends.get(last)).map_or(0, |end| end.at);
        self.bundle.data.get(start..end).unwrap_or_default()
    }

    /// The server has these.
    pub(crate) fn taken(&mut self, lines: Range<usize>) {
        self.search.taken(lines);
    }

    /// The server has just taken lines of another journal.
    pub(crate) fn taken_elsewhere(&mut self) {
        self.search.taken_elsewhere();
    }

    /// Sending these had no success.
    pub(crate) fn failed(&mut self, lines: Range<usize>, error: &RemoteError) -> Then {
        let refusal = match error.blame() {
            Blame::Nothing => return Then::Wait,
            Blame::Size => Refusal::Size,
            Blame::Content => Refusal::Content,
        };
        let words = chain(error).to_string();
        log::debug!("{} lines are refused: {words}", lines.len());
        if lines.len() == 1 && self.search.is_up() {
            self.reasons.insert(lines.start, format!("the server refuses it alone, and takes others: {words}"));
        }
        match self.search.refused(lines, refusal) {
            _ if error.retry_after().is_some() => Then::Wait,
            then => then,
        }
    }

    /// A line is not to be sent any more, for this reason.
    pub(crate) fn give_up(&mut self, line: usize, reason: &'static str) {
        self.reasons.insert(line, reason.to_owned());
        self.search.set_aside(line);
    }

    /// A wait has passed: whether its lines are still the first ones, and the search goes on.
    pub(crate) fn waited(&mut self, reader: &Reader<LineCounter>) -> bool {
        self.search.waited();
        let first = reader.peek(1).ok().and_then(|waiting| waiting.start());
        first.is_some_and(|first| is_same(first, self.start()))
    }

    /// Removes from the journal what is done with, from the front, sets aside what is to be, and puts what was deferred into
    /// the backlog. While the disk refuses that, they stay, and are sent again.
    pub(crate) fn settle(&mut self, reader: &Reader<LineCounter>, backlog: Option<&Backlog>) {
        let done = self.search.done();
        let is_all = done == self.bundle.ends.len();
        if self.is_gone || (done <= self.gone && !is_all) {
            return;
        }
        let is_passed = |before: usize| before >= self.gone && (before < done || is_all);
        let left_out: Vec<_> = self.bundle.left_out.iter().filter(|left_out| is_passed(left_out.before)).collect();
        if !bundle::settle(&left_out, reader, backlog) {
            return;
        }
        self.is_gone = is_all;
        for line in (self.gone..done).filter(|&line| self.search.is_set_aside(line)) {
            let reason = self.reasons.get(&line).map_or("", String::as_str);
            let lines = self.bundle.ends.get(line).map_or(1, |end| end.lines);
            reader.set_aside(self.data(&(line..line + 1)).as_bytes(), lines, reason);
        }
        self.gone = done;
        reader.acknowledge(if is_all { self.bundle.end } else { self.start() });
    }

    /// Takes in what waits behind, as much as a request has: for comparison.
    pub(crate) fn grow(
        &mut self,
        bundler: &mut Bundler,
        reader: &Reader<LineCounter>,
        room: &Room,
    ) -> Result<(), JournalError> {
        let rest = self.gone..self.bundle.ends.len();
        let known = self.data(&rest);
        let mut grown = None;
        if rest.len() < MOST_REQUESTS * room.lines && known.len() < MOST_REQUESTS * room.bytes {
            // As the first ones were taken in: what was left out of them must be left out again.
            let snapshots = self.bundle.snapshots;
            let room = Room { lines: rest.len() + room.lines, bytes: known.len() + room.bytes, snapshots, ..*room };
            grown = bundler.next(reader, &room)?;
        }
        let is_grown = |bundle: &Bundle| {
            let same = is_same(bundle.start, self.start()) && bundle.data.starts_with(known);
            same && bundle.ends.len() > rest.len()
        };
        match grown.filter(is_grown) {
            Some(bundle) => {
                self.search.forget(self.gone);
                self.search.grow(bundle.ends.len() - rest.len());
                let gone = self.gone;
                let reasons = self.reasons.split_off(&gone).into_iter();
                self.reasons = reasons.map(|(line, text)| (line - gone, text)).collect();
                (self.bundle, self.gone, self.is_gone) = (bundle, 0, false);
            }
            None => self.search.grow(0),
        }
        Ok(())
    }

    /// Where the first line is that is not gone.
    fn start(&self) -> Position {
        let before = self.gone.checked_sub(1).and_then(|before| self.bundle.ends.get(before));
        before.map_or(self.bundle.start, |end| end.position)
    }
}

/// Whether two places in a journal are the same one: the end of a segment is the next one's beginning.
fn is_same(one: Position, other: Position) -> bool {
    let in_memory = one.is_in_memory();
    in_memory == other.is_in_memory() && one.line == other.line && (!in_memory || one.offset == other.offset)
}
