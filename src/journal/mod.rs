//! The journal: a durable queue of records in plain files that a person can read. One process writes, one reads.
//!
//! # Format
//!
//! A journal is a directory of mode 0700, with files of mode 0600:
//!
//! * `0000000000000042.ndjson`: a *segment*. It holds *records*, each followed by a newline. Its name is the number of
//!   its first line, counted since ever from 0, in 16 digits; so its lines end where the next segment's name begins.
//! * `cursor`: one line of four numbers of 20 digits, with blanks between them: the [`Position`] up to which everything
//!   is done with (file, offset, lines done of the record, line).
//! * `incoming-N`: a large record on its way in. It becomes a segment of its own.
//! * `writer.lock`, `reader.lock`: held (flock) by the process that writes and by the one that reads.
//!
//! A record is any text; a newline within it is written as a blank. What stands in it is the owner's business: bytes
//! are kept as they come. A record stands for one *line*, or for many: a [`CountLines`] says for how many. Limits, counts
//! and numbers are in lines.
//!
//! # Rules
//!
//! * **Append** is one `write` to the newest segment, without a sync: a record survives the death of every process, and
//!   only a power cut can take the last moments' records. It neither waits for a reader nor depends on how much waits.
//!   When a segment has [`SEGMENT_BYTES`] the next record begins a new one, and the old one is never written again.
//! * **A write that the disk refuses** in its middle is cut back to the last whole record. When even that is refused, a
//!   new segment begins, and the rest of the record stays behind in the old one.
//! * **While the disk refuses**, records wait in memory, in order, up to [`MEMORY_LIMIT`] bytes. The disk is tried again
//!   once a second. Records in memory can be lent to a reader ([`Overflow`]); they are not written until they are given
//!   back. Only what exceeds the memory is dropped: the newest, since the older ones are on their way.
//! * **A large record** ([`Incoming`]) is written into a file of its own, without a lock. Renaming that is the append.
//!   When the disk refuses it, it is dropped and counted: it would not fit into memory.
//! * **The first append** opens the journal: it waits at most 3 s for a predecessor that holds the lock, deletes what is
//!   left of large records, cuts a half record off the newest segment and counts that segment's lines. When it fails,
//!   records wait in memory and it is tried again once a second.
//! * **Peek** reads the oldest whole records, under the reader's own lock alone. What stands behind the last newline
//!   of the newest segment is still being written. In an older segment nothing more can come: there it is what a failed
//!   disk or a power cut has left, and is handed out like a record, so that it is judged, set aside and counted.
//! * **Acknowledge** moves the cursor by one `pwrite`, and deletes segments that lie before it. A segment with a newer one
//!   behind it is over; the newest one stays. A cursor that can't be read, or points to no record's beginning, goes back
//!   to the beginning of its segment, or to the oldest one: lines come twice rather than not at all.
//! * **Limits**: the reader drops the oldest lines that exceed them, by moving the cursor. The writer's backstop bounds bytes
//!   and the disk's free space, coarsely, also while no worker reads: it deletes the oldest segments, and the reader finds
//!   them missing, and counts their lines as dropped. It knows no limit of lines.
//! * **A power cut** can shorten the newest files, leave garbage or NULs in them, and undo renames and deletions of the
//!   last moments. Nothing of that stops writer or reader: a half record is cut off, garbage is handed out, a cursor that
//!   points beyond the end goes back. A writer that finds the cursor beyond what is there begins a new segment, so that
//!   new records never lie before an old cursor.
//! * **Foreign things**: what has a name of ours and is no regular file, larger than any of ours, or may not be read, is
//!   moved aside (to `NAME.damaged-UNIXTIME`, of which the newest 16 are kept), and said. Nothing is followed through a
//!   symbolic link but the directory itself.
//! * **A directory that another user could change** (its mode, its owner, a directory above it) is not used: lines wait in
//!   memory as if the disk refused them.
//! * A disk that can't be read is waited for. Meanwhile what waits in memory is handed out.
//!
//! Every line that is dropped or set aside is counted and said. Lines that no server takes are kept beside the journals,
//! by [`Rejected`].

mod backstop;
mod chunk;
mod cursor;
mod incoming;
pub mod inspect;
mod limits;
mod memory;
mod reader;
mod rejected;
mod segment_reader;
mod segments;
mod store;
mod tally;
mod unsynced;
mod walk;
mod writer;

use std::error::Error;
use std::io;
use std::ops::Add;
use std::path::PathBuf;

pub use chunk::{Chunk, LargeRecord, Record, Waiting};
pub use incoming::Incoming;
pub use limits::Limits;
pub use reader::{Reader, Status};
pub use rejected::{Rejected, Which};
pub use writer::{Writer, WriterEvents};

#[cfg(test)]
mod tests;

/// A segment of this size, in bytes, gets no further record: the next one begins a new segment.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// Bytes of records that wait in memory while the disk refuses them, a journal.
pub const MEMORY_LIMIT: usize = 32 << 20;

/// Says for how many lines a record stands. It is fed with the record in any number of pieces.
pub trait CountLines: Default + Send {
    /// The next bytes of the record.
    fn feed(&mut self, bytes: &[u8]);

    /// Ends the record and begins the next: the lines that the record stands for, at least 1.
    fn finish(&mut self) -> u64;
}

/// Each record is one line.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneLine;

impl CountLines for OneLine {
    fn feed(&mut self, _: &[u8]) {}

    fn finish(&mut self) -> u64 {
        1
    }
}

/// A place in a journal: between two records, or between two lines of a record. Ordered as the lines are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The segment, by its name; [`Position::MEMORY`] is none of them.
    pub file: u64,
    /// Where the record begins in the segment, in bytes. In memory: the record's number.
    pub offset: u64,
    /// How many lines of that record are done with.
    pub lines_done: u64,
    /// The number of the line at this place, counted since ever. In memory: counted since the reader began.
    pub line: u64,
}

impl Position {
    /// The `file` of records that wait in memory.
    pub const MEMORY: u64 = u64::MAX;

    /// The beginning of the segment of this number.
    #[must_use]
    pub fn beginning_of(number: u64) -> Self {
        Self { file: number, offset: 0, lines_done: 0, line: number }
    }

    /// The place behind the first `lines` lines of the record at this place. The end of a record is [`Record::end`].
    #[must_use]
    pub fn after_lines(self, lines: u64) -> Self {
        Self { lines_done: self.lines_done.saturating_add(lines), line: self.line.saturating_add(lines), ..self }
    }

    /// Whether the record waits in memory.
    #[must_use]
    pub fn is_in_memory(self) -> bool {
        self.file == Self::MEMORY
    }
}

/// How much waits in a place: on the disk, or in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Lines.
    pub lines: u64,
    /// Bytes of their records, with the newlines.
    pub bytes: u64,
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { lines: self.lines.saturating_add(other.lines), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

/// What was counted since the process began, mostly what became of lines. The writer counts `accepted` and `dropped`, the reader
/// `delivered`, `set_aside`, `dropped` and `discarded`; the sum of both is the journal's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines taken from osqueryd.
    pub accepted: u64,
    /// Lines that the server has acknowledged.
    pub delivered: u64,
    /// Lines set aside: too long, no JSON, refused by the server.
    pub set_aside: u64,
    /// Lines given up: over a limit, or with no place to keep them.
    pub dropped: u64,
    /// Those of them that an operator has thrown away.
    pub discarded: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            accepted: self.accepted.saturating_add(other.accepted),
            delivered: self.delivered.saturating_add(other.delivered),
            set_aside: self.set_aside.saturating_add(other.set_aside),
            dropped: self.dropped.saturating_add(other.dropped),
            discarded: self.discarded.saturating_add(other.discarded),
        }
    }
}

/// Records that wait in a writer's memory, for the reader. A writer in the same process is one; one in another process is
/// reached through whatever its owner has.
///
/// Records in memory are numbered; a number is never used twice, and a process's first number is drawn at random, so
/// that what was meant for its predecessor does no harm.
pub trait Overflow: Send + Sync {
    /// Lends the oldest records: as many as have at most `max_bytes` together with their newlines, but at least one. `None`
    /// when none wait, or the disk has just taken them. What was lent before counts as given back.
    fn peek(&self, max_bytes: usize) -> io::Result<Option<Borrowed>>;

    /// Removes the records whose numbers are below `through`. What was lent and is left counts as given back.
    fn remove(&self, through: u64);

    /// Nothing is on its way to the server: records can be written once the disk accepts them.
    fn give_back(&self);

    /// How much waits there. It lends nothing.
    fn held(&self) -> io::Result<Amount>;

    /// What was said of losses on the writing side since the last time this was asked; nothing when it can't be asked.
    fn take_losses(&self) -> Vec<String>;
}

/// Records that are lent from memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borrowed {
    /// The number of the record behind the last of them.
    pub through: u64,
    /// The records, each followed by a newline.
    pub bytes: Vec<u8>,
}

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The directory can't be made or used.
    #[error("can't use the journal's directory {path}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("the journal is used by another process, which holds {path}", path = .path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A file of the journal can't be read or written.
    #[error("can't use the journal's file {path}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It could not be opened a moment ago, and the next attempt is not due yet.
    #[error("the journal {path} could not be opened a moment ago ({reason})", path = .path.display())]
    NotYet {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A record that was handed out in pieces can't be read.
    #[error("can't read a large record of the journal")]
    Record {
        /// The operating system's error.
        source: io::Error,
    },
    /// What waits in the writer's memory can't be had.
    #[error("can't get what waits in the writer's memory")]
    Overflow {
        /// The error of the way to it.
        source: io::Error,
    },
}

impl JournalError {
    /// A large record can't be read.
    #[must_use]
    pub fn unreadable(source: io::Error) -> Self {
        Self::Record { source }
    }
}

/// An error with all of its sources, for the log.
fn chain(error: &(dyn Error + 'static)) -> String {
    crate::chain::chain(error).to_string()
}
