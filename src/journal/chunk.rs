//! What a reader hands out.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::{CountLines, Position, walk};

/// The oldest records that wait.
#[derive(Debug)]
pub enum Waiting {
    /// No record waits.
    Nothing,
    /// As many whole records as have at most the bytes that were asked for.
    Records(Chunk),
    /// One that is longer than was asked for, alone.
    Large(LargeRecord),
}

impl Waiting {
    /// Where the oldest one begins; `None` when no record waits.
    #[must_use]
    pub fn start(&self) -> Option<Position> {
        match self {
            Self::Nothing => None,
            Self::Records(chunk) => Some(chunk.start()),
            Self::Large(record) => Some(record.start()),
        }
    }
}

/// Whole records, oldest first; at least one.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    bytes: Vec<u8>,
    start: Position,
    end: Position,
    records: Vec<RecordBounds>,
    is_followed: bool,
}

/// Where a record of a chunk ends; it begins where the one before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RecordBounds {
    /// Where its text ends in the chunk.
    text_end: usize,
    end: Position,
}

/// A record of the journal, as it lies in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its beginning. `lines_done` of its lines are done with already: only of the first record that waits can that be some.
    pub start: Position,
    /// The next record's beginning: what to acknowledge when all of its lines are done with.
    pub end: Position,
    /// Its text, without the newline.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// The lines of it that are not done with yet.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.end.line.saturating_sub(self.start.line)
    }
}

impl Chunk {
    /// These bytes, which begin at a record's beginning: whole records, the last of which may have no newline. `None` when
    /// there are none.
    pub(super) fn new<W: CountLines>(bytes: Vec<u8>, start: Position) -> Option<Self> {
        let mut records = Vec::new();
        let mut counter = W::default();
        let mut at = 0;
        let mut end = start;
        for newline in memchr::memchr_iter(b'\n', &bytes).chain([bytes.len()]) {
            let Some(text) = bytes.get(at..newline).filter(|text| newline < bytes.len() || !text.is_empty()) else {
                break;
            };
            counter.feed(text);
            let length = (newline + 1).min(bytes.len()) - at;
            end = behind(end, length as u64, counter.finish());
            records.push(RecordBounds { text_end: newline, end });
            at += length;
        }
        (!records.is_empty()).then_some(Self { bytes, start, end, records, is_followed: false })
    }

    /// The records, oldest first.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        let (mut at, mut start) = (0, self.start);
        self.records.iter().map(move |bounds| {
            let bytes = self.bytes.get(at..bounds.text_end).unwrap_or_default();
            at = bounds.text_end + 1;
            Record { start: std::mem::replace(&mut start, bounds.end), end: bounds.end, bytes }
        })
    }

    /// How many records these are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// The records as they are kept, each followed by a newline; a last one that a failed disk or a power cut has left may
    /// have none.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether they end a segment that another one follows: a peek sees no more than one.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.is_followed
    }

    pub(super) fn followed(self, is_followed: bool) -> Self {
        Self { is_followed, ..self }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The first record's beginning.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// Where the records end: what to acknowledge when all of them are done with.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }
}

/// The place behind a record that begins at `start`, has `length` bytes with its newline and stands for `lines`.
pub(super) fn behind(start: Position, length: u64, lines: u64) -> Position {
    // In memory, records are numbered.
    let length = if start.is_in_memory() { 1 } else { length };
    Position {
        file: start.file,
        offset: start.offset.saturating_add(length),
        lines_done: 0,
        line: start.line.saturating_add(lines.saturating_sub(start.lines_done)),
    }
}

/// A record that is read in pieces: as a [`Read`] and [`Seek`] over its text, without the newline. It can be read for as
/// long as this lives, whatever becomes of its file.
#[derive(Debug)]
pub struct LargeRecord {
    file: File,
    start: Position,
    end: Position,
    /// Bytes of its text.
    length: u64,
    /// Where the next read begins, within the text.
    at: u64,
}

impl LargeRecord {
    pub(super) fn new(file: File, start: Position, end: Position, length: u64) -> Self {
        Self { file, start, end, length, at: 0 }
    }

    /// Its beginning; `lines_done` of its lines are done with already.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// The next record's beginning: what to acknowledge when all of its lines are done with.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Bytes of its text.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is large")]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// The lines of it that are not done with yet.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.end.line.saturating_sub(self.start.line)
    }

    /// The text's first bytes, `most` of them at most.
    pub(super) fn beginning(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(most).min(most)];
        let read = walk::read_up_to(&self.file, &mut bytes, self.start.offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

impl Read for LargeRecord {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = left.min(bytes.len());
        let read = walk::read_at(&self.file, bytes.get_mut(..most).unwrap_or_default(), self.start.offset + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for LargeRecord {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the beginning"))?;
        Ok(self.at)
    }
}
