//! A walk over a segment's records in the order of the file, without having any of them in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::CountLines;

/// What is read at a time.
const BLOCK: usize = 64 << 10;

/// Goes from record to record.
pub(super) struct Walk<'a, W> {
    file: &'a File,
    counter: W,
    /// What was read last; empty before the first read.
    block: Vec<u8>,
    /// What of it is not walked over yet.
    left: std::ops::Range<usize>,
    /// Where that begins in the file.
    at: u64,
}

/// A record that the walk came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Where it begins, in bytes from the segment's beginning.
    pub(super) start: u64,
    /// Where the next one begins.
    pub(super) end: u64,
    /// For how many lines it stands.
    pub(super) lines: u64,
    /// Whether a newline ends it; otherwise the file does.
    pub(super) is_whole: bool,
}

impl<'a, W: CountLines> Walk<'a, W> {
    /// From this record's beginning on.
    pub(super) fn new(file: &'a File, offset: u64) -> Self {
        Self { file, counter: W::default(), block: Vec::new(), left: 0..0, at: offset }
    }

    /// The next record; `None` at the end of the file.
    pub(super) fn step(&mut self) -> io::Result<Option<Step>> {
        let start = self.at;
        loop {
            let left = self.block.get(self.left.clone()).unwrap_or_default();
            if left.is_empty() {
                if self.fill()? {
                    continue;
                }
                let lines = self.counter.finish();
                let tail = Step { start, end: self.at, lines, is_whole: false };
                return Ok((self.at > start).then_some(tail));
            }
            let newline = memchr::memchr(b'\n', left);
            let record = left.get(..newline.unwrap_or(left.len())).unwrap_or_default();
            self.counter.feed(record);
            let walked = record.len() + usize::from(newline.is_some());
            self.left.start += walked;
            self.at += walked as u64;
            if newline.is_some() {
                return Ok(Some(Step { start, end: self.at, lines: self.counter.finish(), is_whole: true }));
            }
        }
    }

    /// The next whole record.
    pub(super) fn whole_step(&mut self) -> io::Result<Option<Step>> {
        Ok(self.step()?.filter(|step| step.is_whole))
    }

    /// Reads the next block: whether there is one.
    fn fill(&mut self) -> io::Result<bool> {
        self.block.resize(BLOCK, 0);
        let read = read_at(self.file, &mut self.block, self.at)?;
        self.left = 0..read;
        Ok(read > 0)
    }
}

/// Reads once: how much, 0 at the end of the file.
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Reads until `bytes` are full or the file ends: how much.
pub(super) fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match read_at(file, rest, offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// The lines of records that are in memory, each followed by a newline; a last one without a newline is counted, too.
pub(super) fn lines_of<W: CountLines>(records: &[u8]) -> u64 {
    let mut counter = W::default();
    let mut lines = 0;
    for record in records.split_inclusive(|&byte| byte == b'\n') {
        counter.feed(record.strip_suffix(b"\n").unwrap_or(record));
        lines += counter.finish();
    }
    lines
}
