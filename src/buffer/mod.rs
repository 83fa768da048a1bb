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
//!   wait.
//! * **Acknowledge** and **drop oldest** remove from the front, and nothing else removes.
//! * When the disk refuses, lines wait in memory, in order, up to [`MEMORY_LIMIT`] bytes, and are written as soon
//!   as it accepts again. Only what exceeds that is dropped: the newest, since the older ones are on the way.
//! * A file that is no database, or a damaged one, is moved aside and a new one begun.
//!
//! Every line dropped is counted and said.

mod store;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::{Reader, Store};

use crate::shutdown::Doorbell;

/// Bytes of lines that wait in memory while the disk refuses them, a stream.
pub const MEMORY_LIMIT: usize = 32 << 20;

/// Between two attempts to open a buffer that could not be opened. Appends to an open one are always tried.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// At the first opening, a predecessor that is ending is waited for: calls wait rather than have their lines in
/// memory only.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(3);

/// Why lines can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// The directory can't be made or used.
    #[error("the buffer's directory {path} can't be used", path = .path.display())]
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
    #[error("the buffer {path} could not be opened a moment ago", path = .path.display())]
    NotYet {
        /// The database.
        path: PathBuf,
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

/// The oldest lines that wait, and up to which one they reach.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The lines, oldest first.
    pub lines: Vec<String>,
    /// The last one's id, for [`Buffer::acknowledge`].
    pub last: i64,
}

/// What became of lines, counted since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken from osqueryd.
    pub accepted: u64,
    /// Had by the server.
    pub delivered: u64,
    /// Given up: too many, too long, or nowhere to keep them.
    pub dropped: u64,
}

/// The lines of one stream.
pub struct Buffer {
    name: &'static str,
    path: PathBuf,
    written: Mutex<Writing>,
    reader: Mutex<Option<Reader>>,
    accepted: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    /// Rung when a line comes.
    bell: Arc<Doorbell>,
}

/// What appends need, under one lock.
#[derive(Default)]
struct Writing {
    store: Option<Store>,
    not_before: Option<Instant>,
    /// Lines that the disk refused, oldest first.
    waiting: VecDeque<String>,
    waiting_bytes: usize,
    refused: bool,
}

impl Buffer {
    /// The stream `name` in `directory`. The disk isn't touched before the first line or peek.
    #[must_use]
    pub fn new(directory: &Path, name: &'static str, bell: Arc<Doorbell>) -> Self {
        Self {
            name,
            path: directory.join(format!("{name}.sqlite")),
            written: Mutex::default(),
            reader: Mutex::default(),
            accepted: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            bell,
        }
    }

    /// Keeps lines, in order; `most` is how many may wait in all, the oldest go first.
    pub fn append(&self, lines: Vec<String>, most: Option<u64>) {
        if lines.is_empty() {
            return;
        }
        self.accepted.fetch_add(lines.len() as u64, Ordering::Relaxed);
        let mut writing = self.writing();
        self.write(&mut writing, lines);
        if let (Some(most), Some(store)) = (most, writing.store.as_mut()) {
            match store.drop_oldest(most) {
                Ok(0) => {}
                Ok(dropped) => self.count_dropped(dropped, "more of them wait than buffered_log_max allows"),
                Err(error) => log::debug!("{error}"),
            }
        }
        drop(writing);
        self.bell.ring();
    }

    /// The oldest lines: at most `max_lines` of them, and `max_bytes` together unless the first alone has more.
    pub fn peek(&self, max_lines: usize, max_bytes: usize) -> Result<Batch, BufferError> {
        let first = {
            let mut writing = self.writing();
            self.store(&mut writing)?;
            self.write(&mut writing, Vec::new());
            self.store(&mut writing)?.first()
        };
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.is_none() {
            *reader = Some(Reader::open(&self.path)?);
        }
        let batch = reader.as_ref().map_or(Ok(Batch::default()), |reader| reader.peek(first, max_lines, max_bytes));
        if batch.is_err() {
            *reader = None;
        }
        batch
    }

    /// The server has the lines up to this id: removes them.
    pub fn acknowledge(&self, last: i64) -> Result<(), BufferError> {
        let mut writing = self.writing();
        let removed = self.store(&mut writing)?.remove_through(last)?;
        self.delivered.fetch_add(removed, Ordering::Relaxed);
        Ok(())
    }

    /// Removes the lines up to this id, of which `dropped` were not delivered, for the reason given.
    pub fn acknowledge_with_losses(&self, last: i64, dropped: u64, reason: &str) -> Result<(), BufferError> {
        self.acknowledge(last)?;
        if dropped > 0 {
            self.delivered.fetch_sub(dropped, Ordering::Relaxed);
            self.count_dropped(dropped, reason);
        }
        Ok(())
    }

    /// Whether no line waits, as far as is known without asking the disk more than it must be.
    pub fn is_empty(&self) -> bool {
        let mut writing = self.writing();
        writing.waiting.is_empty() && self.store(&mut writing).is_ok_and(|store| store.count() == 0)
    }

    /// What became of lines.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Counts a line that was never kept, for the reason given.
    pub fn refuse(&self, reason: &str) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.count_dropped(1, reason);
    }

    /// Writes what waits in memory and then `lines`; what the disk refuses waits in memory.
    fn write(&self, writing: &mut Writing, lines: Vec<String>) {
        if writing.waiting.is_empty() {
            if lines.is_empty() {
                return;
            }
            match self.store(writing).and_then(|store| store.append(&lines)) {
                Ok(()) => return,
                Err(error) => self.note_refusal(writing, &error),
            }
            return self.wait_in_memory(writing, lines);
        }
        self.wait_in_memory(writing, lines);
        let waiting = std::mem::take(&mut writing.waiting);
        match self.store(writing).and_then(|store| store.append(&waiting)) {
            Ok(()) => {
                writing.waiting_bytes = 0;
                writing.refused = false;
                log::info!(
                    "the {} buffer can be written again: {} lines from memory are safe",
                    self.name,
                    waiting.len()
                );
            }
            Err(error) => {
                writing.waiting = waiting;
                self.note_refusal(writing, &error);
            }
        }
    }

    fn wait_in_memory(&self, writing: &mut Writing, lines: Vec<String>) {
        let mut lost = 0;
        for line in lines {
            if writing.waiting_bytes + line.len() > MEMORY_LIMIT {
                lost += 1;
            } else {
                writing.waiting_bytes += line.len();
                writing.waiting.push_back(line);
            }
        }
        if lost > 0 {
            self.count_dropped(lost, "the disk refuses them and the memory for them is full");
        }
    }

    fn note_refusal(&self, writing: &mut Writing, error: &BufferError) {
        if !writing.refused {
            writing.refused = true;
            log::error!("{error}: {} lines wait in memory until it can be written again", self.name);
        }
    }

    /// The open store; opens it when that has not failed a moment ago.
    fn store<'a>(&self, writing: &'a mut Writing) -> Result<&'a mut Store, BufferError> {
        if writing.store.is_none() {
            if writing.not_before.is_some_and(|at| Instant::now() < at) {
                return Err(BufferError::NotYet { path: self.path.clone() });
            }
            let patience = if writing.not_before.is_none() { PREDECESSOR_LIMIT } else { Duration::ZERO };
            let opened = Store::open(&self.path, patience);
            writing.not_before = Some(Instant::now() + REOPEN_INTERVAL);
            let store = opened?;
            if store.count() > 0 {
                log::info!("{} {} lines wait in the buffer since before the start", store.count(), self.name);
            }
            writing.store = Some(store);
        }
        writing.store.as_mut().ok_or_else(|| BufferError::NotYet { path: self.path.clone() })
    }

    fn count_dropped(&self, count: u64, reason: &str) {
        let before = self.dropped.fetch_add(count, Ordering::Relaxed);
        // Said at the first and then each time the number has doubled: a flood of losses is no flood of messages.
        if before == 0 || before.ilog2() != (before + count).ilog2() {
            log::error!("{} {} lines dropped so far; the last because {reason}", before + count, self.name);
        }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
