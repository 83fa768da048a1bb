//! Durable lines: appended before osqueryd gets its answer, removed when the server has them.
//!
//! # Format
//!
//! One SQLite database a stream (results, statuses), in a directory of mode 0700, mode 0600, with one table:
//! `lines(id INTEGER PRIMARY KEY, line TEXT)`. Ids grow by one from line to line and are never used twice while the
//! process lives, so the lines between the smallest and the largest id are exactly the lines that wait.
//!
//! # Rules
//!
//! * **Append** is one transaction, in the write-ahead log before the call returns (`synchronous=NORMAL`): a line
//!   survives the death of every process. Only a power cut can take the last moments' lines.
//! * **Peek** reads the oldest lines over a connection of its own: it neither waits for an append nor makes one
//!   wait. One thread peeks and acknowledges.
//! * **An append waits for nothing but appends.** The write-ahead log is copied into the database by a thread of its
//!   own ([`Housekeeper`]) over the reading connection; lines are removed, and free pages given back, a few at a
//!   time, with the lock handed to whoever waits in between.
//! * **Bounds** ([`Limits`]): lines, bytes, and the disk space that is left to others. The oldest lines go first.
//! * **Acknowledge** and **drop oldest** remove from the front, and nothing else removes. What was dropped is
//!   removed a moment later: after a kill just then it waits once more.
//! * When the disk refuses, lines wait in memory, in order, up to [`MEMORY_LIMIT`] bytes. They are written as soon
//!   as it accepts again, which is tried once a second; when there is nothing older on disk they are peeked from
//!   there. Only what exceeds the bound is dropped: the newest, since the older ones are on the way.
//! * A file that is no database, or a damaged one, is moved aside and a new one begun. One that can't be read is not:
//!   SQLite calls that damage, too, so its files are looked at a second time, and read without it.
//! * What waits in memory need not wait for older lines on a disk that can't be read.
//!
//! * **Set aside**: a line that the server is never to get is put into the table `rejected` (time, reason, size, line)
//!   of the same database, which keeps the newest [`REJECTED_LINES`] within [`REJECTED_BYTES`].
//!
//! Every line set aside or dropped is counted and said.

mod housekeeper;
pub mod status;
mod store;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use store::{Ids, Reader, Store};

pub use housekeeper::Housekeeper;

use crate::shutdown::Doorbell;

/// Bytes of lines that wait in memory while the disk refuses them, a stream.
pub const MEMORY_LIMIT: usize = 32 << 20;

/// Lines set aside that are kept, and their bytes together, a stream.
pub const REJECTED_LINES: i64 = 1000;
/// See [`REJECTED_LINES`].
pub const REJECTED_BYTES: i64 = 16 << 20;

/// Between two attempts to open or write a buffer that could not be.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// At the first opening, a predecessor that is ending is waited for: calls wait rather than have their lines in
/// memory only.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(3);

/// Why lines can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// The directory can't be made or used.
    #[error("the buffer's directory {path} can't be used: {source}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another process uses the buffer.
    #[error("the buffer {path} is used by another process", path = .path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// It could not be opened a moment ago, and the next attempt is not due yet.
    #[error("the buffer {path} could not be opened a moment ago ({reason})", path = .path.display())]
    NotYet {
        /// The database.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// SQLite's own error.
    #[error("the buffer {path} can't be used: {source}", path = .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

impl BufferError {
    /// Whether the file is no database, or a damaged one.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Database { source, .. } if store::is_damage(source))
    }

    /// Whether the file holds lines that we did not write.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Database { source, .. }
            if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation))
    }
}

/// Lines to be kept, made as they are written: once, and once more when the disk refuses them.
pub trait Lines {
    /// The lines in order.
    fn lines(&self) -> impl Iterator<Item = Cow<'_, str>>;
}

impl<T: AsRef<str>> Lines for [T] {
    fn lines(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.iter().map(|line| Cow::Borrowed(line.as_ref()))
    }
}

/// The oldest lines that wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The lines, oldest first.
    pub lines: Vec<String>,
    /// Which they are, for [`Buffer::acknowledge`].
    pub place: Place,
}

/// Where lines wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On disk, from the first id to the last.
    Disk(i64, i64),
    /// In memory, that many from the front.
    Memory(usize),
}

impl Default for Place {
    fn default() -> Self {
        Self::Memory(0)
    }
}

/// What a stream may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lines that wait; `None` is no limit.
    pub lines: Option<u64>,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// Bytes that must stay free on the disk: below this the database doesn't grow.
    pub free_bytes: u64,
}

/// What became of lines, counted since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken from osqueryd.
    pub accepted: u64,
    /// Had by the server.
    pub delivered: u64,
    /// Set aside: too long, no JSON, refused by the server.
    pub set_aside: u64,
    /// Given up: too many, or nowhere to keep them.
    pub dropped: u64,
}

/// A line of a batch that the server is never to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its index in the batch.
    pub index: usize,
    /// Why.
    pub reason: String,
}

/// The lines of one stream.
pub struct Buffer {
    name: &'static str,
    path: PathBuf,
    writing: Mutex<Writing>,
    /// With the number of the store that it reads.
    reader: Mutex<Option<(u64, Reader)>>,
    accepted: AtomicU64,
    delivered: AtomicU64,
    set_aside: AtomicU64,
    dropped: AtomicU64,
    /// Lines that waited when the database was opened.
    found: AtomicU64,
    /// What was said of losses, for those who don't read the log.
    losses: Mutex<Vec<String>>,
    /// Rung when a line comes.
    bell: Arc<Doorbell>,
    /// Rung when there is something to tidy.
    housekeeper: Arc<Doorbell>,
}

/// What appends need, under one lock.
#[derive(Default)]
struct Writing {
    store: Option<Store>,
    /// Of the lines in the last store, once it is closed.
    ids: Ids,
    /// The last store looked damaged.
    suspect: bool,
    /// Counts the stores opened: a reader of an older one reads a file that was moved aside.
    stores: u64,
    /// When opening may be tried again.
    not_before: Option<Instant>,
    /// Why it could not be opened.
    unopened: String,
    /// When writing may be tried again, after a refusal.
    refused_until: Option<Instant>,
    /// Lines that the disk refused, oldest first.
    waiting: VecDeque<String>,
    waiting_bytes: usize,
    /// How many of them, from the front, are on their way to the server.
    lent: usize,
}

impl Buffer {
    /// The stream `name` in `directory`, which rings `bell` when a line comes and `housekeeper` when there is
    /// something to [tidy](Self::tidy). The disk isn't touched before the first line or peek.
    #[must_use]
    pub fn new(directory: &Path, name: &'static str, bell: Arc<Doorbell>, housekeeper: Arc<Doorbell>) -> Self {
        Self {
            name,
            path: directory.join(format!("{name}.sqlite")),
            writing: Mutex::default(),
            reader: Mutex::default(),
            accepted: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
            found: AtomicU64::new(0),
            losses: Mutex::default(),
            dropped: AtomicU64::new(0),
            bell,
            housekeeper,
        }
    }

    /// Keeps lines, in order, within the limits.
    pub fn append(&self, lines: &(impl Lines + ?Sized), limits: &Limits) {
        let mut writing = self.writing();
        self.keep(&mut writing, lines);
        if let Some(store) = writing.store.as_mut() {
            for (dropped, reason) in store.keep_within(limits) {
                self.count_dropped(dropped, reason);
            }
        }
        self.ring_housekeeper(&writing);
        drop(writing);
        self.bell.ring();
    }

    /// The oldest lines: at most `max_lines` of them, and `max_bytes` together unless the first alone has more.
    /// What was peeked before and not acknowledged is peeked again.
    pub fn peek(&self, max_lines: usize, max_bytes: usize) -> Result<Batch, BufferError> {
        let mut writing = self.writing();
        writing.lent = 0;
        let opened = self.store(&mut writing).map(|_| ());
        self.write_waiting(&mut writing);
        let on_disk = writing.store.as_ref().filter(|store| store.count() > 0).map(Store::first);
        match on_disk {
            Some(first) => {
                let stores = writing.stores;
                drop(writing);
                self.peek_on_disk(stores, first, max_lines, max_bytes).or_else(|error| {
                    let mut writing = self.writing();
                    if writing.waiting.is_empty() {
                        Err(error)
                    } else {
                        Ok(writing.peek_in_memory(max_lines, max_bytes))
                    }
                })
            }
            None if !writing.waiting.is_empty() => Ok(writing.peek_in_memory(max_lines, max_bytes)),
            None => opened.map(|()| Batch::default()),
        }
    }

    /// The server has a batch, but for those lines that are rejected: removes it, and sets those aside.
    pub fn acknowledge(&self, batch: &Batch, rejected: &[Rejected]) {
        let mut writing = self.writing();
        if let (Some(store), false) = (writing.store.as_mut(), rejected.is_empty()) {
            store.set_aside(batch, rejected);
        }
        let removed = match batch.place {
            Place::Disk(_, last) => {
                writing.suspect = false;
                writing.store.as_mut().map_or(0, |store| store.give_up_through(last))
            }
            Place::Memory(count) => writing.remove_from_memory(count),
        };
        remove_given_up(&mut writing);
        self.ring_housekeeper(&writing);
        drop(writing);
        let count = (rejected.len() as u64).min(removed);
        self.delivered.fetch_add(removed - count, Ordering::Relaxed);
        if let Some(last) = rejected.last() {
            self.count(&self.set_aside, count, "set aside", &last.reason);
        }
    }

    /// Removes a batch that nobody is to have.
    pub fn discard(&self, batch: &Batch) {
        self.acknowledge(batch, &[]);
        self.delivered.fetch_sub(batch.lines.len() as u64, Ordering::Relaxed);
    }

    /// Nothing is on its way to the server: what waits in memory can be written once the disk accepts it.
    pub fn take_back(&self) {
        self.writing().lent = 0;
    }

    /// Whether lines wait in memory for the disk.
    pub(crate) fn waits_for_disk(&self) -> bool {
        !self.writing().waiting.is_empty()
    }

    /// Whether no line waits, as far as is known without asking the disk more than it must be.
    pub fn is_empty(&self) -> bool {
        let mut writing = self.writing();
        writing.waiting.is_empty() && self.store(&mut writing).is_ok_and(|store| store.count() == 0)
    }

    /// How many lines wait, as far as the database is open.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let writing = self.writing();
        writing.waiting.len() as u64 + writing.store.as_ref().map_or(0, Store::count)
    }

    /// How many lines waited since before the start, as far as the database is open.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Gives the disk back what a backlog has taken, once it is gone.
    pub fn shrink(&self) {
        let mut writing = self.writing();
        let mut shrunk = false;
        while writing.store.as_mut().is_some_and(Store::shrink_a_bit) {
            shrunk = true;
            MutexGuard::bump(&mut writing);
        }
        drop(writing);
        if shrunk {
            self.checkpoint();
        }
    }

    /// Does what appends leave behind: writes what waits in memory if the disk accepts it by now, removes lines that were
    /// given up, and copies the write-ahead log into the database. Appends don't wait for it.
    pub fn tidy(&self) {
        let mut writing = self.writing();
        self.write_waiting(&mut writing);
        let needed = writing.store.as_ref().is_some_and(Store::needs_tidying);
        remove_given_up(&mut writing);
        drop(writing);
        if needed {
            self.checkpoint();
        }
    }

    /// The end: a last attempt to write what waits in memory, and the word on what is lost if that fails.
    pub fn close(&self) {
        // The writing side is the last one then, and copies the log into the database.
        *self.reader.lock() = None;
        let mut writing = self.writing();
        remove_given_up(&mut writing);
        writing.lent = 0;
        writing.refused_until = None;
        writing.not_before = writing.not_before.map(|_| Instant::now());
        self.write_waiting(&mut writing);
        let lost = writing.waiting.len() as u64;
        if lost > 0 {
            self.count_dropped(lost, "the disk refused them until the end");
            writing.remove_from_memory(usize::MAX);
        }
    }

    /// What became of lines.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            set_aside: self.set_aside.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Counts a line that was never kept, for the reason given.
    pub fn refuse(&self, reason: &str) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.count_dropped(1, reason);
    }

    /// Writes lines, behind those that wait in memory; what the disk refuses joins them.
    fn keep(&self, writing: &mut Writing, lines: &(impl Lines + ?Sized)) {
        // Memory that the disk takes off us now has room for these.
        self.write_waiting(writing);
        if writing.waiting.is_empty() && writing.may_write() {
            match self.store(writing).and_then(|store| store.append(lines.lines())) {
                Ok(count) => {
                    self.accepted.fetch_add(count, Ordering::Relaxed);
                    return self.note_acceptance(writing, 0);
                }
                Err(error) => self.note_refusal(writing, &error),
            }
        }
        if writing.waiting.is_empty() {
            // Which tries again once a second.
            self.housekeeper.ring();
        }
        let (kept, lost) = writing.wait_in_memory(lines.lines());
        self.accepted.fetch_add(kept + lost, Ordering::Relaxed);
        if lost > 0 {
            self.count_dropped(lost, "the disk refuses them and the memory for them is full");
        }
        self.write_waiting(writing);
    }

    /// Writes what waits in memory, unless that was refused a moment ago or is on its way to the server.
    fn write_waiting(&self, writing: &mut Writing) {
        if writing.waiting.is_empty() || writing.lent > 0 || !writing.may_write() {
            return;
        }
        let waiting = std::mem::take(&mut writing.waiting);
        match self.store(writing).and_then(|store| store.append(&waiting)) {
            Ok(_) => {
                writing.waiting_bytes = 0;
                self.note_acceptance(writing, waiting.len());
            }
            Err(error) => {
                writing.waiting = waiting;
                self.note_refusal(writing, &error);
            }
        }
    }

    /// The disk has taken lines, so many of them from memory.
    fn note_acceptance(&self, writing: &mut Writing, from_memory: usize) {
        if writing.refused_until.take().is_some() || from_memory > 0 {
            log::info!("the {} buffer can be written again: {from_memory} lines from memory are safe", self.name);
        }
    }

    fn note_refusal(&self, writing: &mut Writing, error: &BufferError) {
        if error.is_damage() && writing.store.is_some() {
            self.note_damage(writing, error);
            return;
        }
        if error.is_conflict() {
            // Somebody else has written into our file: look at it afresh.
            writing.close();
            writing.not_before = None;
        }
        if writing.refused_until.is_none() {
            log::error!("{error}: {} lines wait in memory until it can be written again", self.name);
        }
        writing.refused_until = Some(Instant::now() + RETRY_INTERVAL);
    }

    /// A database that looks damaged is opened again, since a read that failed once looks the same. When it still
    /// does, it goes out of the way; the next use begins a new one.
    fn note_damage(&self, writing: &mut Writing, error: &BufferError) {
        if writing.store.is_none() {
            return;
        }
        writing.close();
        writing.not_before = None;
        if !std::mem::replace(&mut writing.suspect, true) {
            log::debug!("{error}: opening it again");
            return;
        }
        match store::set_aside(&self.path, error) {
            Ok(()) => self.count_damaged(writing),
            Err(error) => log::debug!("{} can't be moved aside: {error}", self.path.display()),
        }
    }

    /// The lines of a file that was moved aside.
    fn count_damaged(&self, writing: &mut Writing) {
        writing.suspect = false;
        let lost = writing.ids.forget();
        if lost > 0 {
            self.count_dropped(lost, "the buffer's file was damaged; what is left is in the file moved aside");
        }
    }

    fn peek_on_disk(&self, stores: u64, first: i64, max_lines: usize, max_bytes: usize) -> Result<Batch, BufferError> {
        let batch = self.read(stores, |reader| reader.peek(first, max_lines, max_bytes));
        if let Err(error) = &batch
            && error.is_damage()
        {
            self.note_damage(&mut self.writing(), error);
        }
        batch
    }

    /// Uses the reading connection of the store of that number. One that has failed is opened anew the next time.
    fn read<T>(&self, stores: u64, read: impl FnOnce(&Reader) -> Result<T, BufferError>) -> Result<T, BufferError> {
        let mut slot = self.reader.lock();
        let reader = match slot.take() {
            Some((number, reader)) if number == stores => reader,
            _ => Reader::open(&self.path)?,
        };
        let outcome = read(&reader)?;
        *slot = Some((stores, reader));
        Ok(outcome)
    }

    /// Copies the write-ahead log into the database. Not vital: what can't be copied now is copied the next time.
    fn checkpoint(&self) {
        let stores = self.writing().stores;
        let copied = self.read(stores, |reader| {
            let copied = reader.checkpoint()?;
            let mut writing = self.writing();
            let Some(store) = writing.store.as_mut() else { return Ok(()) };
            if store.is_to_be_finished(copied) {
                // Only what came meanwhile is left to be copied, if anything.
                reader.checkpoint()?;
                store.restart_log()?;
            }
            Ok(())
        });
        if let Err(error) = copied {
            log::debug!("the write-ahead log can't be copied now: {error}");
        }
    }

    fn ring_housekeeper(&self, writing: &Writing) {
        if writing.store.as_ref().is_some_and(Store::needs_tidying) {
            self.housekeeper.ring();
        }
    }

    /// The open store; opens it when that has not failed a moment ago.
    fn store<'a>(&self, writing: &'a mut Writing) -> Result<&'a mut Store, BufferError> {
        if writing.store.is_none() {
            if writing.not_before.is_some_and(|at| Instant::now() < at) {
                return Err(BufferError::NotYet { path: self.path.clone(), reason: writing.unopened.clone() });
            }
            let patience = if writing.stores == 0 { PREDECESSOR_LIMIT } else { Duration::ZERO };
            writing.stores += 1;
            let opened = Store::open(&self.path, patience, writing.ids);
            writing.not_before = Some(Instant::now() + RETRY_INTERVAL);
            let store = opened.inspect_err(|error| writing.unopened = error.to_string())?;
            if store.begun_anew() {
                self.count_damaged(writing);
            }
            if store.count() > 0 {
                self.found.store(store.count(), Ordering::Relaxed);
                log::info!("{} {} lines wait in the buffer since before the start", store.count(), self.name);
            }
            writing.store = Some(store);
        }
        let reason = &writing.unopened;
        writing.store.as_mut().ok_or_else(|| BufferError::NotYet { path: self.path.clone(), reason: reason.clone() })
    }

    fn count_dropped(&self, count: u64, reason: &str) {
        self.count(&self.dropped, count, "dropped", reason);
    }

    /// Counts losses of a kind. Said at the first and then each time the number has doubled: a flood of losses is no
    /// flood of messages.
    fn count(&self, counter: &AtomicU64, count: u64, kind: &str, reason: &str) {
        let before = counter.fetch_add(count, Ordering::Relaxed);
        if count > 0 && (before == 0 || before.ilog2() != (before + count).ilog2()) {
            let message = format!("{} {} lines {kind} so far; the last because {reason}", before + count, self.name);
            log::error!("{message}");
            self.losses.lock().push(message);
        }
    }

    /// What was said of losses since the last time this was asked.
    pub fn take_losses(&self) -> Vec<String> {
        std::mem::take(&mut *self.losses.lock())
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock()
    }
}

/// Removes lines that no longer wait, with the lock handed to whoever waits for it in between.
fn remove_given_up(writing: &mut MutexGuard<'_, Writing>) {
    while writing.store.as_mut().is_some_and(Store::remove_some) {
        MutexGuard::bump(writing);
    }
}

impl Writing {
    /// Closes the store; the next one goes on where it was.
    fn close(&mut self) {
        if let Some(store) = self.store.take() {
            self.ids = store.ids();
        }
    }

    fn may_write(&self) -> bool {
        self.refused_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Puts lines behind those that wait: how many found room, and how many didn't.
    fn wait_in_memory(&mut self, lines: impl Iterator<Item: AsRef<str>>) -> (u64, u64) {
        let (mut kept, mut lost) = (0, 0);
        for line in lines {
            let line = line.as_ref();
            if self.waiting_bytes + line.len() > MEMORY_LIMIT {
                lost += 1;
            } else {
                self.waiting_bytes += line.len();
                self.waiting.push_back(line.to_owned());
                kept += 1;
            }
        }
        (kept, lost)
    }

    fn peek_in_memory(&mut self, max_lines: usize, max_bytes: usize) -> Batch {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len() + 1;
            bytes <= max_bytes || bytes == line.len() + 1
        };
        let lines: Vec<String> = self.waiting.iter().take(max_lines).take_while(fits).cloned().collect();
        self.lent = lines.len();
        Batch { place: Place::Memory(lines.len()), lines }
    }

    fn remove_from_memory(&mut self, count: usize) -> u64 {
        let count = count.min(self.waiting.len());
        let bytes: usize = self.waiting.drain(..count).map(|line| line.len()).sum();
        self.waiting_bytes -= bytes;
        self.lent = 0;
        count as u64
    }
}

#[cfg(test)]
mod tests;
