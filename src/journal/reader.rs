//! The reading side: hands out what waits, and forgets what is done with.

use std::fs::{self, File, Metadata};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::chunk::{LargeRecord, Waiting};
use super::inspect::{self, Oldest};
use super::rejected::{LINE_BYTES, Rejected};
use super::segment_reader::SegmentReader;
use super::segments::{self, PREDECESSOR_LIMIT, READER_LOCK};
use super::tally::Tally;
use super::{Amount, Chunk, CountLines, Counts, JournalError, Overflow, Position, chain};
use crate::lock::Mutex;
use crate::words::counted;

/// Reads a journal. One thread peeks, acknowledges and sets aside; the other methods are for any thread.
pub struct Reader<W> {
    name: &'static str,
    pub(super) directory: PathBuf,
    rejected: Arc<Rejected>,
    overflow: Option<Arc<dyn Overflow>>,
    pub(super) state: Mutex<State>,
    pub(super) tally: Arc<Tally>,
    /// Lines that waited when it was opened.
    found: AtomicU64,
    /// Where the reader is, for those who must not wait for it.
    position: Mutex<Option<Position>>,
    counter: PhantomData<fn() -> W>,
}

/// What reading needs, under one lock.
pub(super) struct State {
    /// Whether it was tried before to open it.
    was_tried: bool,
    /// It was made after the first look at it: what is in it didn't wait at the start.
    is_new: bool,
    /// The lock, while the journal is open.
    lock: Option<File>,
    pub(super) segments: SegmentReader,
    /// Up to where records in memory are done with.
    in_memory: Position,
    /// Records from memory are, or may be, on their way to the server.
    lent: bool,
    /// Lines that were set aside, or are in another journal, since the last acknowledgement.
    elsewhere: u64,
}

/// How a journal stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What became of lines on this side: delivered, set aside and dropped.
    pub counts: Counts,
    /// What waits, on disk and in memory.
    pub waiting: Amount,
    /// Bytes of the journal's files.
    pub file_bytes: u64,
    /// The oldest record on disk; `None` when none waits there.
    pub oldest: Option<Oldest>,
}

impl Status {
    /// How both stand together, where this journal's records come behind those of an older one.
    #[must_use]
    pub fn behind(self, older: Self) -> Self {
        Self {
            counts: self.counts + older.counts,
            waiting: self.waiting + older.waiting,
            file_bytes: self.file_bytes.saturating_add(older.file_bytes),
            oldest: older.oldest.or(self.oldest),
        }
    }
}

impl<W: CountLines> Reader<W> {
    /// Reads the journal in this directory, which is called `name` in messages. What its writer has in memory comes by way
    /// of `overflow`; what is set aside goes to `rejected`. The disk isn't touched before the first use.
    #[must_use]
    pub fn new(
        directory: PathBuf,
        name: &'static str,
        rejected: Arc<Rejected>,
        overflow: Option<Arc<dyn Overflow>>,
    ) -> Self {
        let tally = Arc::new(Tally::new(name));
        let state = State {
            was_tried: false,
            is_new: false,
            lock: None,
            segments: SegmentReader::new(&directory, Arc::clone(&tally)),
            in_memory: Position { file: Position::MEMORY, ..Position::default() },
            lent: overflow.is_some(),
            elsewhere: 0,
        };
        Self {
            name,
            directory,
            rejected,
            overflow,
            state: Mutex::new(state),
            tally,
            found: AtomicU64::new(0),
            position: Mutex::default(),
            counter: PhantomData,
        }
    }

    /// The oldest records that wait: as many whole ones as have at most `max_bytes` together with their newlines, or one
    /// that is larger. What was peeked before and not acknowledged is peeked again. What waits in memory comes when nothing
    /// waits on disk, or that can't be read.
    pub fn peek(&self, max_bytes: usize) -> Result<Waiting, JournalError> {
        let mut state = self.state.lock();
        self.give_back(&mut state);
        let on_disk = self.peek_on_disk(&mut state, max_bytes);
        if matches!(on_disk, Ok(Waiting::Records(_) | Waiting::Large(_))) {
            return on_disk;
        }
        match self.peek_in_memory(&mut state, max_bytes) {
            Ok(Some(chunk)) => Ok(Waiting::Records(chunk)),
            // The disk may just have taken what waited there.
            Ok(None) if self.overflow.is_some() && on_disk.is_ok() => self.peek_on_disk(&mut state, max_bytes),
            Ok(None) => on_disk,
            Err(source) => on_disk.and(Err(JournalError::Overflow { source })),
        }
    }

    /// The chunk was looked through: the next peek reads into the same memory.
    pub fn recycle(&self, chunk: Chunk) {
        self.state.lock().segments.buffer = chunk.into_bytes();
    }

    /// The server has everything up to this place, but for what was set aside: forgets it. A place that lies before what is
    /// forgotten already means nothing.
    pub fn acknowledge(&self, until: Position) {
        let mut state = self.state.lock();
        let done = self.forget(&mut state, until);
        let elsewhere = std::mem::take(&mut state.elsewhere);
        drop(state);
        self.tally.add(|counts| &mut counts.delivered, done.saturating_sub(elsewhere));
    }

    /// What lies before this place is no longer wanted: it is removed without being counted.
    pub fn remove_uncounted(&self, until: Position) {
        let mut state = self.state.lock();
        state.elsewhere = 0;
        self.forget(&mut state, until);
    }

    /// Keeps a record that the server is never to get, or one of its lines, among the rejected ones, and counts it as so
    /// many lines. To be called when it is certain, right before the acknowledgement that goes past it.
    pub fn set_aside(&self, line: &[u8], lines: u64, reason: &str) {
        self.note_set_aside(line.get(..LINE_BYTES + 1).unwrap_or(line), line.len() as u64, lines, reason);
    }

    /// As many lines before the next acknowledgement are in another journal by now: they are neither delivered nor lost.
    pub fn note_taken_over(&self, lines: u64) {
        let mut state = self.state.lock();
        state.elsewhere = state.elsewhere.saturating_add(lines);
    }

    /// [`Self::set_aside`] for a large record: what is left of its lines.
    pub fn set_aside_large(&self, record: &LargeRecord, reason: &str) {
        let beginning = record.beginning(LINE_BYTES + 1).unwrap_or_else(|error| {
            log::debug!("a large record can't be read for setting it aside: {error}");
            Vec::new()
        });
        self.note_set_aside(&beginning, record.len(), record.lines(), reason);
    }

    /// Nothing is on its way to the server: what waits in memory can be written once the disk accepts it.
    pub fn take_back(&self) {
        self.give_back(&mut self.state.lock());
    }

    /// Where the records on disk end now.
    pub fn end(&self) -> Result<Position, JournalError> {
        let mut state = self.state.lock();
        self.look(&mut state)?;
        Ok(state.segments.end())
    }

    /// Whether nothing waits; not when that can't be known.
    pub fn is_empty(&self) -> bool {
        let mut state = self.state.lock();
        let on_disk = self.look(&mut state).map(|_| state.segments.is_at_end());
        drop(state);
        on_disk.is_ok_and(|is_at_end| is_at_end) && self.held().is_some_and(|held| held.lines == 0)
    }

    /// How many lines wait, on disk and in memory, as far as that can be known.
    pub fn waiting_lines(&self) -> u64 {
        (self.waits_on_disk() + self.held().unwrap_or_default()).lines
    }

    /// How much waits on the disk.
    pub(crate) fn waits_on_disk(&self) -> Amount {
        let mut state = self.state.lock();
        if let Err(error) = self.look(&mut state) {
            log::debug!("{}", chain(&error));
        }
        state.segments.waiting()
    }

    /// When the file of the oldest record that waits was written last; `None` when that is not known.
    #[must_use]
    pub fn oldest_written(&self) -> Option<SystemTime> {
        self.oldest_file()?.modified().ok()
    }

    /// When that file was made; where the file system doesn't know, when it was written last.
    #[must_use]
    pub fn oldest_made(&self) -> Option<SystemTime> {
        let file = self.oldest_file()?;
        file.created().or_else(|_| file.modified()).ok()
    }

    fn oldest_file(&self) -> Option<Metadata> {
        let file = self.state.lock().segments.position().file;
        fs::metadata(segments::path(&self.directory, file)).ok()
    }

    /// How many lines waited on disk when the journal was opened; 0 before that.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Gives the lock to a successor. A later use opens the journal again.
    pub fn close(&self) {
        let mut state = self.state.lock();
        self.give_back(&mut state);
        if state.lock.is_some() {
            state.segments.write_refused_cursor();
        }
        state.lock = None;
        *self.position.lock() = None;
    }

    /// How it stands, for tables. Waits only for the disk; what can't be read is missing, and said at DEBUG.
    #[must_use]
    pub fn status(&self) -> Status {
        let position = *self.position.lock();
        let look = inspect::look_from::<W>(&self.directory, position);
        look.problems.iter().for_each(|problem| log::debug!("{problem}"));
        // Counted last: lines that are delivered meanwhile are in both numbers rather than in none.
        let waiting = look.waiting + self.held().unwrap_or_default();
        Status { counts: self.counts(), waiting, file_bytes: look.file_bytes, oldest: look.oldest }
    }

    /// What became of lines on this side: delivered, set aside and dropped.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// What was said of losses on both sides since the last time this was asked.
    pub fn take_losses(&self) -> Vec<String> {
        let mut losses = self.tally.take_losses();
        losses.extend(self.overflow.iter().flat_map(|overflow| overflow.take_losses()));
        losses
    }

    /// The journal's name, as messages have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn peek_on_disk(&self, state: &mut State, max_bytes: usize) -> Result<Waiting, JournalError> {
        if !self.open(state)? {
            return Ok(Waiting::Nothing);
        }
        let waiting = state.segments.peek::<W>(max_bytes);
        self.note_position(state);
        waiting
    }

    fn peek_in_memory(&self, state: &mut State, max_bytes: usize) -> std::io::Result<Option<Chunk>> {
        let Some(overflow) = &self.overflow else { return Ok(None) };
        let Some(borrowed) = overflow.peek(max_bytes)? else { return Ok(None) };
        state.lent = true;
        let records = memchr::memchr_iter(b'\n', &borrowed.bytes).count() as u64;
        let first = borrowed.through.saturating_sub(records);
        if state.in_memory.offset != first {
            state.in_memory = Position { offset: first, lines_done: 0, ..state.in_memory };
        }
        Ok(Chunk::new::<W>(borrowed.bytes, state.in_memory))
    }

    /// Moves past everything up to `until`: how many lines that is.
    fn forget(&self, state: &mut State, until: Position) -> u64 {
        if until.is_in_memory() {
            let Some(overflow) = self.overflow.as_ref().filter(|_| until > state.in_memory) else { return 0 };
            let done = until.line.saturating_sub(state.in_memory.line);
            state.in_memory = until;
            overflow.remove(until.offset);
            state.lent = false;
            return done;
        }
        if state.lock.is_none() || until <= state.segments.position() {
            return 0;
        }
        let done = state.segments.move_to(until);
        if let Err(error) = state.segments.settle() {
            log::debug!("{}", chain(&error));
        }
        self.note_position(state);
        done
    }

    /// Opens the journal if need be, and finds out where its records end: whether there is a journal.
    pub(super) fn look(&self, state: &mut State) -> Result<bool, JournalError> {
        let exists = self.open(state)?;
        if exists {
            let looked = state.segments.look::<W>();
            self.note_position(state);
            looked?;
        }
        Ok(exists)
    }

    /// Opens the journal if need be: whether there is one.
    fn open(&self, state: &mut State) -> Result<bool, JournalError> {
        if state.lock.is_some() {
            return Ok(true);
        }
        if !exists(&self.directory) {
            state.is_new |= !state.was_tried;
            return Ok(false);
        }
        let timeout = if state.was_tried { Duration::ZERO } else { PREDECESSOR_LIMIT };
        state.was_tried = true;
        segments::trust_in(&self.directory)
            .map_err(|source| JournalError::Directory { path: self.directory.clone(), source })?;
        let lock = segments::lock(&self.directory.join(READER_LOCK), timeout)?;
        state.segments.open::<W>()?;
        state.lock = Some(lock);
        if let Err(error) = state.segments.look::<W>() {
            log::debug!("{}", chain(&error));
        }
        self.note_position(state);
        let found = if std::mem::take(&mut state.is_new) { 0 } else { state.segments.waiting().lines };
        self.found.store(found, Ordering::Relaxed);
        if found > 0 {
            log::info!("{} waited in the {} journal at the start", counted(found, "line"), self.name);
        }
        Ok(true)
    }

    /// Tells those who don't wait where the reader is.
    pub(super) fn note_position(&self, state: &State) {
        *self.position.lock() = Some(state.segments.position());
    }

    fn note_set_aside(&self, beginning: &[u8], size: u64, lines: u64, reason: &str) {
        self.rejected.add(self.name, reason, beginning, size);
        self.tally.set_aside(lines, reason);
        let mut state = self.state.lock();
        state.elsewhere = state.elsewhere.saturating_add(lines);
    }

    fn give_back(&self, state: &mut State) {
        if let Some(overflow) = self.overflow.as_ref().filter(|_| state.lent) {
            overflow.give_back();
            state.lent = false;
        }
    }

    /// What waits in memory; `None` when that can't be known.
    fn held(&self) -> Option<Amount> {
        let Some(overflow) = &self.overflow else { return Some(Amount::default()) };
        overflow.held().inspect_err(|error| log::debug!("what waits in the writer's memory isn't known: {error}")).ok()
    }
}

/// Whether a journal's directory is there. One that can't be looked at counts: its use will say why.
fn exists(directory: &Path) -> bool {
    !matches!(directory.try_exists(), Ok(false))
}
