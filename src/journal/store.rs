//! What a writer has open: the lock and the newest segment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cursor::{self, Stored};
use super::segments::{self, WRITER_LOCK};
use super::walk::{Walk, lines_of};
use super::{CountLines, JournalError, Position};

/// The most segments that are left behind and still to be synced that are remembered; the system writes older ones back by itself.
const MOST_UNSYNCED: usize = 16;

/// An open journal, as its writer has it.
pub(super) struct Store {
    directory: PathBuf,
    segment_bytes: u64,
    segment: Option<Segment>,
    /// The number of the next line.
    next: u64,
    unsynced: Changes,
    is_lost: bool,
    _lock: File,
}

/// The newest segment.
struct Segment {
    number: u64,
    file: File,
    length: u64,
    is_unsynced: bool,
}

/// What a power cut could take.
#[derive(Default)]
pub(super) struct Changes {
    /// Segments that were written. By number: an open file would keep its room on the disk when it is deleted.
    pub(super) segments: Vec<u64>,
    /// Whether there are new names in the directory.
    pub(super) has_new_names: bool,
}

/// A write that failed.
pub(super) struct Refusal {
    pub(super) error: JournalError,
    /// Bytes of whole records that are on disk for all that.
    pub(super) kept: usize,
}

impl Store {
    /// Opens the journal in this directory, and makes it when it isn't there.
    ///
    /// Another process that holds it is waited for, at most `timeout`. `before` is the next line's number in this
    /// process's last store: no number is used twice.
    pub(super) fn open<W: CountLines>(
        directory: &Path,
        segment_bytes: u64,
        timeout: Duration,
        before: Option<u64>,
    ) -> Result<Self, JournalError> {
        let unusable = |source| JournalError::Directory { path: directory.to_owned(), source };
        segments::make_directory(directory).map_err(unusable)?;
        let lock = segments::lock(&directory.join(WRITER_LOCK), timeout)?;
        let listing = segments::list(directory).map_err(unusable)?;
        listing.clear_foreign();
        if before.is_none() {
            // Later, some could be ours.
            listing.incoming.iter().for_each(|path| segments::remove(path));
        }
        let (mut segment, mut next) = match listing.segments.last() {
            Some(&number) => Segment::open::<W>(directory, number)
                .map_err(|source| JournalError::File { path: segments::path(directory, number), source })?,
            None => (None, 0),
        };
        if let Ok(Stored::At(cursor)) = cursor::read(directory)
            && segment.as_ref().is_none_or(|segment| segment.is_before(cursor))
        {
            // What comes now must not lie where the reader has been.
            segment = None;
            next = next.max(cursor.line);
        }
        if before.is_some_and(|before| before > next) {
            segment = None;
        }
        Ok(Self {
            directory: directory.to_owned(),
            segment_bytes,
            segment,
            next: next.max(before.unwrap_or_default()),
            unsynced: Changes { segments: Vec::new(), has_new_names: true },
            is_lost: false,
            _lock: lock,
        })
    }

    /// Where the next record will be.
    pub(super) fn end(&self) -> Position {
        let (file, offset) = match &self.segment {
            Some(segment) if segment.length < self.segment_bytes => (segment.number, segment.length),
            _ => (self.next, 0),
        };
        Position { file, offset, lines_done: 0, line: self.next }
    }

    /// The number of the next line.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether the journal on disk is no longer the one that was opened.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether the newest segment's file was deleted.
    pub(super) fn is_deleted(&self) -> bool {
        let is_gone = |segment: &Segment| segment.file.metadata().is_ok_and(|file| file.nlink() == 0);
        self.segment.as_ref().is_some_and(is_gone)
    }

    /// Writes records, each followed by a newline, which stand for `lines`.
    pub(super) fn write<W: CountLines>(&mut self, bytes: &[u8], lines: u64) -> Result<(), Refusal> {
        let segment = match self.segment_with_room() {
            Ok(segment) => segment,
            Err(source) => return Err(self.refusal(self.next, source, 0)),
        };
        match write_all(&segment.file, bytes) {
            Ok(()) => {
                segment.length += bytes.len() as u64;
                segment.is_unsynced = true;
                self.next += lines;
                Ok(())
            }
            Err((written, source)) => {
                let number = segment.number;
                let kept = self.cut_back::<W>(bytes.get(..written).unwrap_or(bytes));
                Err(self.refusal(number, source, kept))
            }
        }
    }

    /// Makes a large record's file the newest segment. The record stands for `lines`.
    pub(super) fn adopt(&mut self, record: &Path, lines: u64) -> Result<(), JournalError> {
        let path = segments::path(&self.directory, self.next);
        // An empty segment has this name already, and gives way.
        let rename = || fs::rename(record, &path);
        let renamed = match rename() {
            Err(error) if segments::is_foreign(&path) && segments::move_aside(&path, &error).is_ok() => rename(),
            renamed => renamed,
        };
        renamed.map_err(|source| JournalError::File { path, source })?;
        self.leave_segment();
        self.note_unsynced(self.next);
        self.unsynced.has_new_names = true;
        self.next += lines;
        // With one behind it, the large one can be deleted as soon as it is done with.
        if let Err(error) = self.begin_segment() {
            log::debug!("the segment behind a large record can't be made yet: {error}");
        }
        Ok(())
    }

    /// The newest segment is not written again.
    pub(super) fn leave_segment(&mut self) {
        if let Some(segment) = self.segment.take().filter(|segment| segment.is_unsynced) {
            self.note_unsynced(segment.number);
        }
    }

    /// What a power cut could take, from the last time this was asked.
    pub(super) fn take_unsynced(&mut self) -> Changes {
        if let Some(segment) = self.segment.as_mut().filter(|segment| segment.is_unsynced) {
            segment.is_unsynced = false;
            self.unsynced.segments.push(segment.number);
        }
        std::mem::take(&mut self.unsynced)
    }

    fn note_unsynced(&mut self, number: u64) {
        if self.unsynced.segments.len() >= MOST_UNSYNCED {
            self.unsynced.segments.remove(0);
        }
        self.unsynced.segments.push(number);
    }

    fn refusal(&self, number: u64, source: io::Error, kept: usize) -> Refusal {
        let path = segments::path(&self.directory, number);
        Refusal { error: JournalError::File { path, source }, kept }
    }

    fn segment_with_room(&mut self) -> io::Result<&mut Segment> {
        if self.segment.as_ref().is_none_or(|segment| segment.length >= self.segment_bytes) {
            self.leave_segment();
            self.begin_segment()?;
        }
        self.segment.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let path = segments::path(&self.directory, self.next);
        let opened = segments::open_or_replace(&path, OpenOptions::new().append(true).create_new(true));
        let file = opened.inspect_err(|error| {
            use io::ErrorKind::{AlreadyExists, NotADirectory, NotFound};
            self.is_lost = matches!(error.kind(), AlreadyExists | NotADirectory | NotFound);
        })?;
        self.is_lost = false;
        self.segment = Some(Segment { number: self.next, file, length: 0, is_unsynced: false });
        self.unsynced.has_new_names = true;
        Ok(())
    }

    /// After a write that went no further than this: keeps the whole records of it, and removes the rest. How many bytes
    /// are kept.
    fn cut_back<W: CountLines>(&mut self, written: &[u8]) -> usize {
        let whole = memchr::memrchr(b'\n', written).map_or(0, |newline| newline + 1);
        let (records, rest) = written.split_at(whole);
        self.next += lines_of::<W>(records);
        let Some(segment) = &mut self.segment else { return whole };
        segment.is_unsynced |= whole > 0;
        segment.length += whole as u64;
        if let Err(error) = segment.shorten(rest.len() as u64) {
            log::warn!("half a record can't be cut off segment {}: a new one begins: {error}", segment.number);
            // The reader takes it for a record.
            self.next += lines_of::<W>(rest);
            self.leave_segment();
        }
        whole
    }
}

impl Segment {
    /// Opens the newest segment of a journal, cuts a half record off its end and counts its lines: the segment, unless it
    /// must not be written again, and the number of the line behind it.
    fn open<W: CountLines>(directory: &Path, number: u64) -> io::Result<(Option<Self>, u64)> {
        let path = segments::path(directory, number);
        let file = segments::open(&path, OpenOptions::new().read(true).append(true))?;
        let mut next = number;
        let mut length = 0;
        let mut walk = Walk::<W>::new(&file, 0);
        while let Some(record) = walk.step()? {
            if !record.is_whole {
                let half = record.end - record.start;
                log::warn!("{} ends in half a record of {half} bytes, which is cut off", path.display());
                if let Err(error) = file.set_len(length) {
                    log::warn!("{} can't be cut back, and a new segment begins: {error}", path.display());
                    return Ok((None, next + record.lines));
                }
                break;
            }
            next += record.lines;
            length = record.end;
        }
        Ok((Some(Self { number, file, length, is_unsynced: false }), next))
    }

    /// Cuts `bytes` off its end.
    fn shorten(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.file.set_len(self.file.metadata()?.len().saturating_sub(bytes))
    }

    /// Whether a cursor stands behind it.
    fn is_before(&self, cursor: Position) -> bool {
        (cursor.file, cursor.offset) > (self.number, self.length)
    }
}

/// Writes bytes, by one system call as a rule: how many were written before the error.
fn write_all(mut file: &File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}
