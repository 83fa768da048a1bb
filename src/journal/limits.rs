//! What a journal may take, and what a reader drops so that it stays within that.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::reader::{Reader, State};
use super::segment_reader::{Outcome, SegmentReader};
use super::walk::Walk;
use super::{Amount, CountLines, Position, chain, chunk};

/// The disk's free space is looked at after records have grown by this many bytes: a journal that doesn't grow gives nothing
/// up for a disk that others fill.
const LOOK_EVERY: u64 = 256 << 10;

/// What a journal may take. A worker tells its front, which may be of another version: a limit that isn't said is none.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Limits {
    /// Lines that wait; `None` is no limit.
    pub max_lines: Option<u64>,
    /// Bytes of the records that wait. The files can have as many more as one segment has.
    pub max_bytes: u64,
    /// Bytes that must stay free on the disk: below this the journal doesn't grow by more than a segment.
    pub min_free_bytes: u64,
}

impl Limits {
    /// A journal may take everything.
    pub const NONE: Self = Self { max_lines: None, max_bytes: u64::MAX, min_free_bytes: 0 };

    /// What they leave for an older journal while this much waits in a newer one.
    #[must_use]
    pub fn without(&self, newer: Amount) -> Self {
        Self {
            max_lines: self.max_lines.map(|most| most.saturating_sub(newer.lines)),
            max_bytes: self.max_bytes.saturating_sub(newer.bytes),
            min_free_bytes: self.min_free_bytes,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}

impl<W: CountLines> Reader<W> {
    /// Drops the oldest lines that exceed the limits: how many. It may be called while records are on their way to the
    /// server; acknowledging those that were dropped does nothing then.
    ///
    /// Lines and bytes are kept exactly, as of the records that are there now; a batch is entered in its middle. When the
    /// disk is short of space, whole segments go, with a tenth of the lines at least, since only that gives space back; and
    /// never the newest.
    pub fn keep_within(&self, limits: &Limits) -> u64 {
        let mut state = self.state.lock();
        let outcome = self.keep(&mut state, limits);
        drop(state);
        outcome.unwrap_or_else(|error| {
            log::debug!("the {} journal can't be kept within its limits now: {}", self.name(), chain(&error));
            0
        })
    }

    /// Drops all lines that wait on the disk now: how many. It may be called at any time, as [`Self::keep_within`].
    ///
    /// # Errors
    /// The journal can't be read.
    pub fn drop_all(&self) -> Outcome<u64> {
        let mut state = self.state.lock();
        if !self.look(&mut state)? {
            return Ok(0);
        }
        let waiting = state.segments.waiting().lines;
        let lines = state.segments.drop_lines::<W>(waiting);
        self.tally.discarded(lines);
        self.note_position(&state);
        Ok(lines)
    }

    fn keep(&self, state: &mut State, limits: &Limits) -> Outcome<u64> {
        if !self.look(state)? {
            return Ok(0);
        }
        let mut dropped = 0;
        let mut note = |lines: u64, reason: &str| {
            self.tally.dropped(lines, reason);
            dropped += lines;
        };
        let segments = &mut state.segments;
        if let Some(surplus) = limits.max_lines.and_then(|most| segments.waiting().lines.checked_sub(most)) {
            let lines = segments.drop_lines::<W>(surplus);
            note(lines, "more of them wait than buffered_log_max allows");
        }
        if let Some(surplus) = segments.waiting().bytes.checked_sub(limits.max_bytes) {
            let lines = segments.drop_bytes::<W>(surplus);
            note(lines, "they take more bytes than buffer_max_bytes allows");
        }
        if segments.has_grown_by(LOOK_EVERY)
            && free_bytes(&self.directory).is_some_and(|free| free < limits.min_free_bytes)
        {
            let lines = segments.drop_segments();
            note(lines, "less of the disk is free than buffer_min_free_bytes");
        }
        self.note_position(state);
        Ok(dropped)
    }
}

impl SegmentReader {
    /// Drops `lines` of the oldest lines, or as many as there are: how many it were.
    fn drop_lines<W: CountLines>(&mut self, lines: u64) -> u64 {
        let line = self.position().line.saturating_add(lines);
        self.drop_with(|reader| {
            while let Some(next) = reader.next_segment().filter(|&next| next <= line) {
                reader.pass(Position::beginning_of(next));
            }
            reader.pass_records::<W>(|_, behind| behind.line <= line)?;
            let rest = line.saturating_sub(reader.position().line);
            if rest > 0 && reader.is_before_a_record() {
                reader.pass(reader.position().after_lines(rest));
            }
            Ok(())
        })
    }

    /// Drops the oldest records that have `bytes` together, or somewhat more: how many lines it were.
    fn drop_bytes<W: CountLines>(&mut self, bytes: u64) -> u64 {
        let mut left = bytes;
        self.drop_with(|reader| {
            while let Some(next) = reader.next_segment() {
                let Some(rest) = left.checked_sub(reader.bytes_left_in_segment()) else { break };
                left = rest;
                reader.pass(Position::beginning_of(next));
            }
            let start = reader.position().offset;
            reader.pass_records::<W>(|at, _| at.offset.saturating_sub(start) < left)
        })
    }

    /// Drops the oldest segments, with a tenth of the lines at least, but for the newest: how many lines it were.
    fn drop_segments(&mut self) -> u64 {
        let line = self.position().line.saturating_add(self.waiting().lines.div_ceil(10));
        self.drop_with(|reader| {
            while let Some(next) = reader.next_segment().filter(|_| reader.position().line < line) {
                reader.pass(Position::beginning_of(next));
            }
            Ok(())
        })
    }

    /// Drops what `pass` goes past, also when it fails on the way: how many lines it were.
    fn drop_with(&mut self, pass: impl FnOnce(&mut Self) -> io::Result<()>) -> u64 {
        let before = self.position();
        if let Err(error) = pass(self) {
            // The rest is dropped as soon as it can be read, or its whole segment is to go.
            log::debug!("segment {} can't be read for dropping lines: {error}", self.position().file);
        }
        let after = self.position();
        if let Err(error) = self.settle() {
            log::debug!("{}", chain(&error));
        }
        after.line.saturating_sub(before.line)
    }

    /// Goes past whole records of the position's segment, as long as `goes` says so of the positions before and
    /// behind one.
    fn pass_records<W: CountLines>(&mut self, goes: impl Fn(Position, Position) -> bool) -> io::Result<()> {
        let file = self.open_segment()?;
        let Some(mut record) = self.record::<W>(&file)? else { return Ok(()) };
        let mut walk = Walk::<W>::new(&file, record.end);
        while record.is_whole {
            let behind = chunk::behind(self.position(), record.end - record.start, record.lines);
            if !goes(self.position(), behind) {
                break;
            }
            self.pass(behind);
            let Some(next) = walk.step()? else { break };
            record = next;
            self.note_record(record);
        }
        Ok(())
    }
}

/// What is free on the directory's disk for us; `None` when the system doesn't say.
pub(super) fn free_bytes(directory: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(directory).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}
