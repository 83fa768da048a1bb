//! How a buffer stands: what the tables `remote_tls_buffer` and `remote_tls_rejected` show.
//!
//! Cheap however many lines wait, and in nobody's way: lines are counted by their ids, bytes by the database's pages,
//! and what must be read is read over a connection of its own, which can only read. The lock that appends need is
//! held for a moment and never over a read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{Buffer, BufferError, Counts, REJECTED_LINES};

/// How long reading waits for a lock of SQLite's. Only an operator's `sqlite3` holds one that readers wait for.
const LOCK_LIMIT: Duration = Duration::from_millis(100);

/// The bytes of the pages that hold something, without the lines that are set aside: those that wait, and what SQLite
/// needs around them.
const WAITING_BYTES: &str = "SELECT (SELECT page_count FROM pragma_page_count()) * page_size
    - (SELECT freelist_count FROM pragma_freelist_count()) * page_size
    - (SELECT coalesce(sum(size), 0) FROM rejected) FROM pragma_page_size()";

const OLDEST_LINE: &str = "SELECT line FROM lines WHERE id >= ?1 ORDER BY id LIMIT 1";

const REJECTED: &str = "SELECT time, reason, size, substr(line, 1, ?1) FROM rejected ORDER BY id DESC LIMIT ?2";

/// How a buffer stands now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What became of lines since the process began.
    pub counts: Counts,
    /// Lines that wait.
    pub waiting_lines: u64,
    /// Bytes that they take, on disk (whole pages) and in memory; 0 when none wait.
    pub waiting_bytes: u64,
    /// The oldest of them.
    pub oldest_line: Option<String>,
    /// Bytes of the database's file and of its write-ahead log.
    pub file_bytes: u64,
}

/// A line that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// When, in Unix seconds.
    pub time: i64,
    /// Why.
    pub reason: String,
    /// Its bytes.
    pub size: i64,
    /// Its first characters.
    pub beginning: String,
}

/// What can be told without looking at the disk.
#[derive(Default)]
struct Glance {
    on_disk: u64,
    /// The oldest line's id.
    first: i64,
    in_memory: u64,
    memory_bytes: u64,
    oldest_in_memory: Option<String>,
}

impl Buffer {
    /// How it stands. What can't be read from the disk is missing, and said at DEBUG.
    #[must_use]
    pub fn status(&self) -> Status {
        let glance = self.glance();
        let mut status = Status {
            counts: self.counts(),
            waiting_lines: glance.on_disk + glance.in_memory,
            waiting_bytes: glance.memory_bytes,
            oldest_line: glance.oldest_in_memory,
            file_bytes: file_bytes(&self.path),
        };
        if glance.on_disk > 0 {
            match oldest_and_bytes(&self.path, glance.first) {
                Ok((oldest, bytes)) => {
                    status.waiting_bytes += bytes;
                    status.oldest_line = oldest;
                }
                Err(error) => log::debug!("{error}"),
            }
        }
        status
    }

    /// The newest lines that were set aside, newest first: at most [`REJECTED_LINES`], with their first `characters`.
    pub fn rejected(&self, characters: usize) -> Result<Vec<SetAside>, BufferError> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let read = || -> rusqlite::Result<Vec<SetAside>> {
            let connection = open(&self.path)?;
            let mut select = connection.prepare(REJECTED)?;
            let characters = i64::try_from(characters).unwrap_or(i64::MAX);
            let rows = select.query_map([characters, REJECTED_LINES], |row| {
                Ok(SetAside {
                    time: row.get(0)?,
                    reason: row.get(1)?,
                    size: row.get(2)?,
                    beginning: String::from_utf8_lossy(row.get_ref(3)?.as_bytes()?).into_owned(),
                })
            })?;
            rows.collect()
        };
        read().map_err(|source| BufferError::Database { path: self.path.clone(), source })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn glance(&self) -> Glance {
        let writing = self.writing();
        let (on_disk, first) = writing.store.as_ref().map_or((0, 0), |store| (store.count(), store.first()));
        Glance {
            on_disk,
            first,
            in_memory: writing.waiting.len() as u64,
            memory_bytes: writing.waiting_bytes as u64,
            // What waits in memory is younger than what waits on disk.
            oldest_in_memory: if on_disk == 0 { writing.waiting.front().cloned() } else { None },
        }
    }
}

fn oldest_and_bytes(path: &Path, first: i64) -> Result<(Option<String>, u64), BufferError> {
    let read = || -> rusqlite::Result<(Option<String>, i64)> {
        let connection = open(path)?;
        let oldest =
            connection
                .query_row(OLDEST_LINE, [first], |row| {
                    Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned())
                })
                .optional()?;
        Ok((oldest, connection.query_row(WAITING_BYTES, [], |row| row.get(0))?))
    };
    let (oldest, bytes) = read().map_err(|source| BufferError::Database { path: path.to_owned(), source })?;
    Ok((oldest, u64::try_from(bytes).unwrap_or(0)))
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(LOCK_LIMIT)?;
    Ok(connection)
}

fn file_bytes(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    length(path) + length(&PathBuf::from(log))
}
