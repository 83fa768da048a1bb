//! How a reader walks through its journal's segments: the position where it is, and what it finds there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chunk::{self, LargeRecord, Waiting};
use super::cursor::{self, Cursor, Stored};
use super::tally::Tally;
use super::walk::{self, Step, Walk};
use super::{Amount, Chunk, CountLines, JournalError, Position, segments};

/// Reads a journal's segments from a position on. Every line before that position was delivered, set aside or dropped.
pub(super) struct SegmentReader {
    directory: PathBuf,
    cursor: Cursor,
    position: Position,
    /// Lines before this were done with by an earlier reader, even if the position has gone back.
    done_before: u64,
    /// The segments, as they were listed last.
    numbers: Vec<u64>,
    /// Sizes of segments that are over.
    sizes: BTreeMap<u64, u64>,
    /// Where whole records end, as far as was looked.
    end: Position,
    /// Bytes by which the records have grown since that was asked.
    grown: u64,
    /// Whether the position is ahead of the cursor.
    is_unwritten: bool,
    /// The record at the position, where it was looked for before.
    ahead: Option<(u64, Step)>,
    /// What was read into last: a fresh buffer of a request's size costs more than reading it.
    pub(super) buffer: Vec<u8>,
    /// The reader's counts.
    tally: Arc<Tally>,
}

/// A file that can't be read, or is gone.
pub(super) type Outcome<T> = Result<T, JournalError>;

impl SegmentReader {
    pub(super) fn new(directory: &Path, tally: Arc<Tally>) -> Self {
        Self {
            directory: directory.to_owned(),
            cursor: Cursor::new(directory),
            position: Position::default(),
            done_before: 0,
            numbers: Vec::new(),
            sizes: BTreeMap::new(),
            end: Position::default(),
            grown: 0,
            is_unwritten: false,
            ahead: None,
            buffer: Vec::new(),
            tally,
        }
    }

    /// Goes to where the cursor is.
    pub(super) fn open<W: CountLines>(&mut self) -> Outcome<()> {
        self.list()?;
        let path = self.directory.join(segments::CURSOR);
        let cursor =
            cursor::read(&self.directory).map_err(|source| JournalError::File { path: path.clone(), source })?;
        if cursor == Stored::Nonsense {
            log::warn!("{} makes no sense: lines may be sent again", path.display());
        }
        let cursor = cursor.position();
        let resolved = cursor::resolve::<W>(&self.directory, &self.numbers, cursor)
            .map_err(|source| JournalError::Directory { path: self.directory.clone(), source })?;
        if resolved.went_back {
            log::warn!("the cursor of {} points to no record: lines may be sent again", self.directory.display());
        }
        self.position = resolved.position;
        self.done_before = cursor.unwrap_or_default().line;
        self.cursor = Cursor::new(&self.directory);
        (self.end, self.ahead) = (Position::default(), None);
        self.sizes.clear();
        Ok(())
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Where whole records end, as far as was looked.
    pub(super) fn end(&self) -> Position {
        self.end.max(self.position)
    }

    /// Whether nothing waits, as far as was looked.
    pub(super) fn is_at_end(&self) -> bool {
        (self.position.file, self.position.offset) >= (self.end.file, self.end.offset)
    }

    /// How much waits, as far as was looked.
    pub(super) fn waiting(&self) -> Amount {
        let before: u64 = self.sizes.range(self.position.file..self.end.file).map(|(_, size)| size).sum();
        Amount {
            lines: if self.is_at_end() { 0 } else { self.end.line.saturating_sub(self.position.line) },
            bytes: before.saturating_add(self.end.offset).saturating_sub(self.position.offset),
        }
    }

    /// The segment behind the position's.
    pub(super) fn next_segment(&self) -> Option<u64> {
        let next = self.numbers.partition_point(|&number| number <= self.position.file);
        self.numbers.get(next).copied()
    }

    /// Bytes from the position to the end of its segment, which is over.
    pub(super) fn bytes_left_in_segment(&self) -> u64 {
        self.sizes.get(&self.position.file).map_or(0, |size| size.saturating_sub(self.position.offset))
    }

    /// Goes further, without writing the cursor: [`Self::settle`] does that.
    pub(super) fn pass(&mut self, position: Position) {
        self.position = position;
        self.is_unwritten = true;
    }

    /// Whether records have grown by `bytes`, or about, since the last time that this was so.
    pub(super) fn has_grown_by(&mut self, bytes: u64) -> bool {
        let has_grown = self.grown >= bytes;
        if has_grown {
            self.grown = 0;
        }
        has_grown
    }

    /// Everything up to `position` is done with: how many lines more than before. [`Self::settle`] writes the cursor.
    pub(super) fn move_to(&mut self, position: Position) -> u64 {
        let lines = position.line.saturating_sub(self.position.line);
        self.pass(position);
        lines
    }

    /// Tries once more to write a cursor that the disk has refused.
    pub(super) fn write_refused_cursor(&mut self) {
        if self.cursor.is_refused() {
            self.cursor.write(self.position);
        }
    }

    /// The oldest records: as many whole ones as have at most `max_bytes`, or one that is larger.
    pub(super) fn peek<W: CountLines>(&mut self, max_bytes: usize) -> Outcome<Waiting> {
        let mut is_first = true;
        loop {
            self.settle()?;
            let number = self.position.file;
            if self.numbers.binary_search(&number).is_err() {
                return Ok(Waiting::Nothing);
            }
            let source = match self.peek_in_segment::<W>(max_bytes) {
                Ok(waiting) => return Ok(waiting),
                Err(error) => error,
            };
            let path = segments::path(&self.directory, number);
            // Deleted by the writer's backstop just now, or not ours: the next one's turn.
            let is_gone = source.kind() == io::ErrorKind::NotFound
                || segments::is_foreign(&path) && segments::move_aside(&path, &source).is_ok();
            if !std::mem::take(&mut is_first) || !is_gone {
                return Err(JournalError::File { path, source });
            }
        }
    }

    fn peek_in_segment<W: CountLines>(&mut self, max_bytes: usize) -> io::Result<Waiting> {
        // Known before the read: then nothing comes after it.
        let is_over = self.next_segment().is_some();
        let file = self.open_segment()?;
        let length = file.metadata()?.len();
        if length < self.position.offset {
            log::warn!("segment {} has become shorter: lines may be sent again", self.position.file);
            self.position = Position::beginning_of(self.position.file);
        }
        let left = length.saturating_sub(self.position.offset);
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.resize(usize::try_from(left).unwrap_or(usize::MAX).min(max_bytes), 0);
        let read = walk::read_up_to(&file, &mut bytes, self.position.offset)?;
        let is_rest = read as u64 == left;
        let whole = match memchr::memrchr(b'\n', bytes.get(..read).unwrap_or_default()) {
            Some(newline) => newline + 1,
            None if is_rest && is_over => read,
            None if is_rest => 0,
            None => return self.large::<W>(file, is_over),
        };
        bytes.truncate(whole);
        let chunk = Chunk::new::<W>(bytes, self.position);
        Ok(chunk.map_or(Waiting::Nothing, |chunk| Waiting::Records(chunk.followed(is_over && whole as u64 == left))))
    }

    /// The record at the position, which is longer than was asked for.
    fn large<W: CountLines>(&mut self, file: File, is_over: bool) -> io::Result<Waiting> {
        let Some(record) = self.record::<W>(&file)?.filter(|record| record.is_whole || is_over) else {
            return Ok(Waiting::Nothing);
        };
        let length = record.end - record.start;
        let end = chunk::behind(self.position, length, record.lines);
        let text = length.saturating_sub(u64::from(record.is_whole));
        Ok(Waiting::Large(LargeRecord::new(file, self.position, end, text)))
    }

    /// The record at the position, which is looked for once.
    pub(super) fn record<W: CountLines>(&mut self, file: &File) -> io::Result<Option<Step>> {
        let Position { file: number, offset, .. } = self.position;
        if let Some((_, record)) = self.ahead.filter(|(of, record)| *of == number && record.start == offset) {
            return Ok(Some(record));
        }
        let record = Walk::<W>::new(file, offset).step()?;
        if let Some(record) = record {
            self.note_record(record);
        }
        Ok(record)
    }

    /// Remembers a record of the position's segment. What is not whole may still grow.
    pub(super) fn note_record(&mut self, record: Step) {
        self.ahead = record.is_whole.then_some((self.position.file, record));
    }

    /// Whether a whole record is known to begin at the position.
    pub(super) fn is_before_a_record(&self) -> bool {
        self.ahead.is_some_and(|(number, record)| (number, record.start) == (self.position.file, self.position.offset))
    }

    /// Opens the segment of the position.
    pub(super) fn open_segment(&self) -> io::Result<File> {
        segments::open_for_reading(&segments::path(&self.directory, self.position.file))
    }

    /// Looks where whole records end now.
    pub(super) fn look<W: CountLines>(&mut self) -> Outcome<()> {
        self.settle()?;
        let Some(&newest) = self.numbers.last() else {
            self.end = self.position;
            return Ok(());
        };
        let unreadable = |source| JournalError::File { path: segments::path(&self.directory, newest), source };
        for &number in self.numbers.iter().filter(|&&number| number < newest) {
            if !self.sizes.contains_key(&number) {
                let size = size(&self.directory, number).map_err(unreadable)?;
                self.sizes.insert(number, size);
                // By so much, or less.
                self.grown = self.grown.saturating_add(size);
            }
        }
        let file = segments::open_for_reading(&segments::path(&self.directory, newest)).map_err(unreadable)?;
        if self.end.file != newest || self.end.offset > file.metadata().map_err(unreadable)?.len() {
            self.end = Position::beginning_of(newest);
        }
        let mut walk = Walk::<W>::new(&file, self.end.offset);
        while let Some(record) = walk.whole_step().map_err(unreadable)? {
            if (newest, record.start) == (self.position.file, self.position.offset) {
                // A large one takes time: it is not walked over twice.
                self.ahead = Some((newest, record));
            }
            self.grown = self.grown.saturating_add(record.end - record.start);
            self.end.offset = record.end;
            self.end.line = self.end.line.saturating_add(record.lines);
        }
        Ok(())
    }

    /// Lists the segments, goes on to the next one where the present one is done with or gone, and deletes those that are
    /// done with.
    pub(super) fn settle(&mut self) -> Outcome<()> {
        let settled = self.list().and_then(|()| self.find_segment());
        if std::mem::take(&mut self.is_unwritten) {
            self.cursor.write(self.position);
        }
        settled?;
        self.delete_done();
        Ok(())
    }

    fn find_segment(&mut self) -> Outcome<()> {
        loop {
            let is_there = self.numbers.binary_search(&self.position.file).is_ok();
            let next = self.next_segment();
            match next {
                Some(next) if !is_there || self.is_done_with(self.position.file)? => self.go_on(next),
                None if !is_there => {
                    if let Some(&oldest) = self.numbers.first() {
                        // Another program has replaced the files. None of these was read.
                        log::warn!("the files of {} are not those that were there", self.directory.display());
                        self.pass(Position::beginning_of(oldest));
                        self.cursor = Cursor::new(&self.directory);
                    }
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    /// Goes to the beginning of a segment behind the position's. Lines in between that are in no file are missing.
    fn go_on(&mut self, next: u64) {
        let known = self.position.line.max(self.done_before);
        self.tally.dropped(next.saturating_sub(known), "their files are gone or damaged");
        self.pass(Position::beginning_of(next));
    }

    /// Whether a segment that has another one behind it, and so no longer grows, holds nothing more.
    fn is_done_with(&self, number: u64) -> Outcome<bool> {
        let size = size(&self.directory, number)
            .map_err(|source| JournalError::File { path: segments::path(&self.directory, number), source })?;
        Ok(size <= self.position.offset)
    }

    fn delete_done(&mut self) {
        let done = self.numbers.partition_point(|&number| number < self.position.file);
        for number in self.numbers.drain(..done) {
            segments::remove(&segments::path(&self.directory, number));
            self.sizes.remove(&number);
        }
    }

    fn list(&mut self) -> Outcome<()> {
        let listing = segments::list_beside(&self.directory, &self.numbers)
            .map_err(|source| JournalError::Directory { path: self.directory.clone(), source })?;
        listing.clear_foreign();
        self.numbers = listing.segments;
        Ok(())
    }
}

/// A segment's size; 0 when it is gone.
fn size(directory: &Path, number: u64) -> io::Result<u64> {
    match std::fs::symlink_metadata(segments::path(directory, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        found => Ok(found?.len()),
    }
}
