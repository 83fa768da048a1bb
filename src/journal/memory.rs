//! Records that the disk refused, in order, bounded; some of them may be lent to a reader.

use std::collections::VecDeque;

use super::{Amount, Borrowed, CountLines, MEMORY_LIMIT, walk};

/// What is written to the disk in one go.
const WRITTEN_AT_ONCE: usize = 1 << 20;

/// The records, oldest first.
pub(super) struct Memory {
    records: VecDeque<Kept>,
    held: Amount,
    /// The number of the oldest.
    first: u64,
    /// How many of them, from the front, are on their way to the server.
    lent: usize,
}

struct Kept {
    /// With its newline.
    bytes: Vec<u8>,
    lines: u64,
}

/// Records from the front, for the disk.
pub(super) struct Batch {
    /// Each followed by a newline.
    pub(super) bytes: Vec<u8>,
    /// For how many lines they stand.
    pub(super) lines: u64,
}

impl Default for Memory {
    fn default() -> Self {
        // What was meant for another process's records must not meet ours.
        Self { records: VecDeque::new(), held: Amount::default(), first: fastrand::u64(..u64::MAX >> 1), lent: 0 }
    }
}

impl Memory {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn is_lent(&self) -> bool {
        self.lent > 0
    }

    pub(super) fn give_back(&mut self) {
        self.lent = 0;
    }

    pub(super) fn held(&self) -> Amount {
        self.held
    }

    /// Puts records behind those that wait, each with its newline: the lines of those that found no room.
    pub(super) fn push<W: CountLines>(&mut self, records: Vec<u8>) -> u64 {
        let is_one = memchr::memchr(b'\n', &records).is_none_or(|newline| newline + 1 == records.len());
        if records.is_empty() {
            return 0;
        }
        if is_one {
            return self.push_one::<W>(records);
        }
        records.split_inclusive(|&byte| byte == b'\n').map(|record| self.push_one::<W>(record.to_vec())).sum()
    }

    fn push_one<W: CountLines>(&mut self, bytes: Vec<u8>) -> u64 {
        let lines = walk::lines_of::<W>(&bytes);
        let held = Amount { lines: self.held.lines + lines, bytes: self.held.bytes + bytes.len() as u64 };
        if held.bytes > MEMORY_LIMIT as u64 {
            return lines;
        }
        self.held = held;
        self.records.push_back(Kept { bytes, lines });
        0
    }

    /// Lends the oldest records: at most `max_bytes` together, but at least one.
    pub(super) fn lend(&mut self, max_bytes: usize) -> Option<Borrowed> {
        self.lent = self.oldest(max_bytes);
        let through = self.first.saturating_add(self.lent as u64);
        (self.lent > 0).then(|| Borrowed { through, bytes: self.batch(self.lent).bytes })
    }

    /// The oldest records, for the disk.
    pub(super) fn next_batch(&self) -> Option<Batch> {
        let count = self.oldest(WRITTEN_AT_ONCE);
        (count > 0).then(|| self.batch(count))
    }

    /// How many records from the front have at most `max_bytes` together; one, where there is any.
    fn oldest(&self, max_bytes: usize) -> usize {
        let mut bytes = 0;
        let fits = |record: &&Kept| {
            bytes += record.bytes.len();
            bytes <= max_bytes || bytes == record.bytes.len()
        };
        self.records.iter().take_while(fits).count()
    }

    fn batch(&self, count: usize) -> Batch {
        let mut batch = Batch { bytes: Vec::new(), lines: 0 };
        for record in self.records.iter().take(count) {
            batch.bytes.extend_from_slice(&record.bytes);
            batch.lines += record.lines;
        }
        batch
    }

    /// Removes `bytes` of whole records from the front: the disk has them.
    pub(super) fn remove_bytes(&mut self, bytes: usize) {
        let mut left = bytes;
        while let Some(record) = self.records.front().filter(|record| record.bytes.len() <= left && left > 0) {
            left -= record.bytes.len();
            self.remove_first();
        }
    }

    /// Removes the records below this number. What it says of others' numbers means nothing here.
    pub(super) fn remove(&mut self, through: u64) {
        self.lent = 0;
        if through <= self.first.saturating_add(self.records.len() as u64) {
            while self.first < through {
                self.remove_first();
            }
        }
    }

    /// Gives up everything: the lines.
    pub(super) fn clear(&mut self) -> u64 {
        let lines = self.held.lines;
        while !self.is_empty() {
            self.remove_first();
        }
        self.lent = 0;
        lines
    }

    fn remove_first(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.held.lines = self.held.lines.saturating_sub(record.lines);
            self.held.bytes = self.held.bytes.saturating_sub(record.bytes.len() as u64);
        }
        self.first = self.first.saturating_add(1);
    }
}
