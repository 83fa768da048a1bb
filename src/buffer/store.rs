//! One stream's SQLite database: the writing connection and the reading one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{Batch, BufferError, Limits, Place, REJECTED_BYTES, REJECTED_LINES, Rejected};

/// How long SQLite waits for a lock. Ours are held for milliseconds; when an operator's `sqlite3` holds one longer,
/// lines wait in memory rather than osqueryd for them.
const LOCK_LIMIT: Duration = Duration::from_millis(100);

/// The database's size and the disk's free space are looked at after so many bytes of lines.
const LOOK_EVERY: usize = 256 << 10;

/// Free pages that a file may keep, and how many are given back at a time: an append may have to wait for it.
const FREE_PAGES: i64 = 256;
const PAGES_AT_A_TIME: i64 = 32;

/// Between two attempts to take the lock of a predecessor; std has no lock with a deadline.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Pages that SQLite keeps in memory, in KiB.
const CACHE_KIB: i32 = 512;

/// Lines that are removed in one go: a fraction of a millisecond, for which an append may have to wait.
const REMOVED_AT_A_TIME: i64 = 64;

/// Pages of the write-ahead log after which it is copied into the database, without appends waiting for it.
const CHECKPOINT_PAGES: u64 = 1000;

/// So few pages more are copied in a moment, while appends wait.
const FEW_LOG_PAGES: u64 = 100;

/// Pages after which the copying is finished while appends wait, since they would never let it come to an end.
const MOST_LOG_PAGES: u64 = 16 * CHECKPOINT_PAGES;

/// The file of the write-ahead log is cut back to this when it begins anew, in bytes.
const LOG_BYTES_KEPT: i64 = 256 << 10;

/// How much of a file is read to see whether it can be, when SQLite calls it damaged.
const READ_THROUGH: u64 = 64 << 20;

/// The ids of the lines that wait: from `first` up to but not including `next`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    first: i64,
    next: i64,
}

impl Ids {
    fn count(self) -> u64 {
        u64::try_from(self.next - self.first).unwrap_or(0)
    }

    /// None of them waits any longer: how many did.
    pub(super) fn forget(&mut self) -> u64 {
        let count = self.count();
        self.first = self.next;
        count
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self { first: 1, next: 1 }
    }
}

/// The writing side.
pub(super) struct Store {
    path: PathBuf,
    connection: Connection,
    ids: Ids,
    /// The smallest id that can still be in the table: what no longer waits goes bit by bit.
    stored_first: i64,
    begun_anew: bool,
    removal_refused: bool,
    /// Pages in the write-ahead log, as SQLite tells after each commit.
    log_pages: Arc<AtomicU64>,
    /// How many there may be before the next checkpoint.
    checkpoint_at: u64,
    /// Bytes of lines appended since the sizes were looked at.
    unlooked: usize,
    /// Held as long as the store is open, so that a second process leaves the file alone.
    _lock: File,
}

/// What opening gives.
struct Database {
    connection: Connection,
    log_pages: Arc<AtomicU64>,
    /// The first and the last id, when there are lines.
    ends: Option<(i64, i64)>,
}

impl Store {
    /// Opens the database at `path`, and makes it and its directory when they are not there. One that is damaged
    /// or isn't ours is moved aside.
    ///
    /// Another process that holds it is waited for, at most `patience`: a predecessor that is ending. `before` are the
    /// ids of this process's last store: none is used again, and what was acknowledged doesn't come back.
    pub(super) fn open(path: &Path, patience: Duration, before: Ids) -> Result<Self, BufferError> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let unusable = |source| BufferError::Directory { path: directory.to_owned(), source };
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable)?;
        }
        let lock = lock(&path.with_extension("lock"), patience).map_err(|error| match error {
            TryLockError::WouldBlock => BufferError::InUse { path: path.to_owned() },
            TryLockError::Error(source) => unusable(source),
        })?;
        // SQLite gives its other files the mode of this one.
        private(path).map_err(unusable)?;
        let mut begun_anew = false;
        let opened = match Self::open_database(path, patience) {
            // A read that failed once looks the same.
            Err(error) if is_damage(&error) => match Self::open_database(path, patience) {
                Err(error) if is_damage(&error) => {
                    set_aside(path, &error).map_err(unusable)?;
                    private(path).map_err(unusable)?;
                    begun_anew = true;
                    Self::open_database(path, patience)
                }
                opened => opened,
            },
            opened => opened,
        };
        let Database { connection, log_pages, ends } = opened.map_err(|source| database(path, source))?;
        let (first, last) = ends.unwrap_or((before.next, before.next - 1));
        let next = last.saturating_add(1);
        Ok(Self {
            path: path.to_owned(),
            connection,
            ids: Ids { first: first.max(before.first).min(next), next },
            stored_first: first,
            begun_anew,
            removal_refused: false,
            log_pages,
            checkpoint_at: CHECKPOINT_PAGES,
            unlooked: 0,
            _lock: lock,
        })
    }

    fn open_database(path: &Path, patience: Duration) -> rusqlite::Result<Database> {
        let mut connection = connect(path)?;
        // A predecessor's connections may still be closing.
        connection.busy_timeout(patience.max(LOCK_LIMIT))?;
        // Must precede the first table; lets the file shrink after a backlog.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_KEPT, |_| Ok(()))?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS lines (id INTEGER PRIMARY KEY, line TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS rejected
                 (id INTEGER PRIMARY KEY, time INTEGER, reason TEXT, size INTEGER, line TEXT)",
        )?;
        let end = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).optional();
        let first = end("SELECT id FROM lines ORDER BY id LIMIT 1")?;
        let last = end("SELECT id FROM lines ORDER BY id DESC LIMIT 1")?;
        // Takes the place of SQLite's own checkpoints, which make an append wait for the disk.
        let log_pages = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&log_pages);
        connection.wal_hook(Some(move |_: &mut _, pages: i32| {
            seen.store(u64::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        connection.busy_timeout(LOCK_LIMIT)?;
        Ok(Database { connection, log_pages, ends: first.zip(last) })
    }

    /// Of the lines that wait.
    pub(super) fn ids(&self) -> Ids {
        self.ids
    }

    /// Whether the database is a new one, since the old one was moved aside.
    pub(super) fn begun_anew(&self) -> bool {
        self.begun_anew
    }

    /// How many lines wait.
    pub(super) fn count(&self) -> u64 {
        self.ids.count()
    }

    /// The oldest waiting line's id. What was acknowledged is below it, also when it could not be removed yet.
    pub(super) fn first(&self) -> i64 {
        self.ids.first
    }

    /// Adds lines at the end, all or none: how many.
    pub(super) fn append(&mut self, lines: impl IntoIterator<Item: AsRef<str>>) -> Result<u64, BufferError> {
        let mut next = self.ids.next;
        let mut bytes = 0;
        let append = |connection: &mut Connection| -> rusqlite::Result<()> {
            // One statement is a transaction by itself, without the two that would frame it.
            let mut insert_one = |connection: &Connection, line: &str| {
                connection
                    .prepare_cached("INSERT INTO lines (id, line) VALUES (?1, ?2)")?
                    .execute(params![next, line])?;
                bytes += line.len();
                next += 1;
                Ok(())
            };
            let mut lines = lines.into_iter();
            let (Some(first), second) = (lines.next(), lines.next()) else { return Ok(()) };
            let Some(second) = second else { return insert_one(connection, first.as_ref()) };
            let transaction = connection.transaction()?;
            insert_one(&transaction, first.as_ref())?;
            insert_one(&transaction, second.as_ref())?;
            for line in lines {
                insert_one(&transaction, line.as_ref())?;
            }
            transaction.commit()
        };
        append(&mut self.connection).map_err(|source| database(&self.path, source))?;
        let count = u64::try_from(next - self.ids.next).unwrap_or(0);
        self.ids.next = next;
        self.unlooked += bytes;
        Ok(count)
    }

    /// Puts lines of a batch among the rejected ones. Not vital: what the disk refuses here is only said.
    pub(super) fn set_aside(&mut self, batch: &Batch, rejected: &[Rejected]) {
        let mut set_aside = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            for one in rejected {
                let line = batch.lines.get(one.index).map_or("", String::as_str);
                let size = i64::try_from(line.len()).unwrap_or(i64::MAX);
                transaction
                    .prepare_cached("INSERT INTO rejected (time, reason, size, line) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![unix_time(), one.reason, size, line])?;
            }
            // The newest of them, up to the first that exceeds a bound.
            transaction
                .prepare_cached(
                    "DELETE FROM rejected WHERE id <= (SELECT id FROM (SELECT id, row_number() OVER newest AS place,
                         sum(size) OVER newest AS total FROM rejected WINDOW newest AS (ORDER BY id DESC))
                     WHERE place > ?1 OR total > ?2 ORDER BY id DESC LIMIT 1)",
                )?
                .execute(params![REJECTED_LINES, REJECTED_BYTES])?;
            transaction.commit()
        };
        if let Err(error) = set_aside() {
            log::error!("{} lines can't be set aside in {}: {error}", rejected.len(), self.path.display());
        }
    }

    /// The lines up to this id no longer wait: how many there were. [`Self::remove_some`] removes them.
    pub(super) fn give_up_through(&mut self, last: i64) -> u64 {
        let before = self.ids.first;
        self.ids.first = last.saturating_add(1).clamp(self.ids.first, self.ids.next);
        u64::try_from(self.ids.first - before).unwrap_or(0)
    }

    /// Removes some of the lines that no longer wait: whether there are more. What the disk refuses to remove is
    /// removed with the next ones.
    pub(super) fn remove_some(&mut self) -> bool {
        if self.stored_first >= self.ids.first {
            return false;
        }
        let end = self.ids.first.min(self.stored_first.saturating_add(REMOVED_AT_A_TIME));
        let removed = self
            .connection
            .prepare_cached("DELETE FROM lines WHERE id < ?1")
            .and_then(|mut delete| delete.execute([end]));
        match removed {
            Ok(_) => {
                self.removal_refused = false;
                self.stored_first = end;
                return end < self.ids.first;
            }
            Err(error) if self.removal_refused => log::debug!("lines still can't be removed: {error}"),
            Err(error) => {
                self.removal_refused = true;
                log::error!(
                    "lines can't be removed from {} and may be sent again after a restart: {error}",
                    self.path.display()
                );
            }
        }
        false
    }

    /// Gives up the oldest lines that exceed the limits: how many, for each limit. Bytes are looked at once in a while.
    pub(super) fn keep_within(&mut self, limits: &Limits) -> Vec<(u64, &'static str)> {
        let mut dropped = Vec::new();
        if let Some(most) = limits.lines.filter(|&most| self.count() > most) {
            dropped.push((self.drop_oldest(most), "more of them wait than buffered_log_max allows"));
        }
        // What was given up and is still there would be taken for more than it is.
        if self.unlooked >= LOOK_EVERY && self.stored_first == self.ids.first {
            self.unlooked = 0;
            if self.used_bytes().is_some_and(|used| used > limits.bytes) {
                dropped.push((self.drop_a_tenth(), "they take more bytes than buffer_max_bytes allows"));
            } else if self.is_disk_short(limits.free_bytes) {
                dropped.push((self.drop_a_tenth(), "less of the disk is free than buffer_min_free_bytes"));
            }
        }
        dropped
    }

    /// Gives up the oldest lines until only `most` are left: how many were given up.
    fn drop_oldest(&mut self, most: u64) -> u64 {
        let surplus = i64::try_from(self.count().saturating_sub(most)).unwrap_or(i64::MAX);
        if surplus == 0 { 0 } else { self.give_up_through(self.ids.first.saturating_add(surplus) - 1) }
    }

    fn drop_a_tenth(&mut self) -> u64 {
        self.drop_oldest(self.count() - self.count().div_ceil(10))
    }

    /// Whether there is work that appends don't wait for: [`Self::remove_some`], or a checkpoint.
    pub(super) fn needs_tidying(&self) -> bool {
        self.ids.first - self.stored_first >= REMOVED_AT_A_TIME || self.log_pages() >= self.checkpoint_at
    }

    fn log_pages(&self) -> u64 {
        self.log_pages.load(Ordering::Relaxed)
    }

    /// After a checkpoint that has copied so many pages: whether another one, while nobody writes, is to finish it.
    pub(super) fn is_to_be_finished(&mut self, copied: u64) -> bool {
        self.checkpoint_at = self.log_pages() + CHECKPOINT_PAGES;
        copied + FEW_LOG_PAGES >= self.log_pages() || self.log_pages() >= MOST_LOG_PAGES
    }

    /// After a checkpoint that has copied everything: has the log begin anew. That costs a wait for the disk, which
    /// the next append would have to pay otherwise.
    pub(super) fn restart_log(&mut self) -> Result<(), BufferError> {
        // Any change will do; this number is of no other use.
        let again = |connection: &Connection| {
            let count: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            connection.pragma_update(None, "user_version", count.wrapping_add(1))
        };
        again(&self.connection).map_err(|source| database(&self.path, source))?;
        self.checkpoint_at = self.log_pages() + CHECKPOINT_PAGES;
        Ok(())
    }

    /// Bytes of pages that hold something; `None` when SQLite doesn't say.
    fn used_bytes(&self) -> Option<u64> {
        let value = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = value("page_count").ok()? - value("freelist_count").ok()?;
        u64::try_from(pages * value("page_size").ok()?).ok()
    }

    /// Whether the disk is short of space and the file would have to grow for the next lines.
    fn is_disk_short(&self, free_bytes: u64) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.path) else { return false };
        let free: rusqlite::Result<i64> = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0));
        disk.f_bavail.saturating_mul(disk.f_frsize) < free_bytes && free.is_ok_and(|free| free < FREE_PAGES)
    }

    /// Gives some free pages of an empty database back to the file system: whether there is more to give.
    pub(super) fn shrink_a_bit(&mut self) -> bool {
        if self.count() > 0 {
            return false;
        }
        let shrink = || -> rusqlite::Result<bool> {
            let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
            if free <= FREE_PAGES {
                return Ok(false);
            }
            run(&self.connection, &format!("PRAGMA incremental_vacuum({PAGES_AT_A_TIME})"))?;
            Ok(true)
        };
        shrink().unwrap_or_else(|error| {
            log::debug!("{} can't be made smaller now: {error}", self.path.display());
            false
        })
    }
}

/// The reading side.
pub(super) struct Reader {
    path: PathBuf,
    connection: Connection,
}

impl Reader {
    /// Opens the database that a [`Store`] has made.
    pub(super) fn open(path: &Path) -> Result<Self, BufferError> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = connect(path)?;
            // Whoever closes a database last copies the log into it, which takes long and needs all of its locks. That
            // is for the writing side, which holds the lock that a successor waits for.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            Ok(connection)
        };
        let connection = open().map_err(|source| database(path, source))?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// The oldest lines from `first` on: at most `max_lines`, and `max_bytes` together unless the first alone has
    /// more. A comma between two lines counts.
    pub(super) fn peek(&self, first: i64, max_lines: usize, max_bytes: usize) -> Result<Batch, BufferError> {
        let read = || -> rusqlite::Result<Batch> {
            let mut select =
                self.connection.prepare_cached("SELECT id, line FROM lines WHERE id >= ?1 ORDER BY id LIMIT ?2")?;
            let mut rows = select.query(params![first, i64::try_from(max_lines).unwrap_or(i64::MAX)])?;
            let mut batch = Batch { lines: Vec::new(), place: Place::Disk(first, first) };
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let line = row.get_ref(1)?.as_bytes_or_null()?.map(String::from_utf8_lossy).unwrap_or_default();
                bytes += line.len() + 1;
                if bytes > max_bytes && !batch.lines.is_empty() {
                    break;
                }
                batch.place = Place::Disk(first, row.get(0)?);
                batch.lines.push(line.into_owned());
            }
            Ok(batch)
        };
        read().map_err(|source| database(&self.path, source))
    }

    /// Copies the write-ahead log into the database, as far as that is possible beside others: how many pages of it
    /// are copied. Neither waits for an append nor makes one wait.
    pub(super) fn checkpoint(&self) -> Result<u64, BufferError> {
        let copied = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(2));
        let copied = copied.map_err(|source| database(&self.path, source))?;
        Ok(u64::try_from(copied).unwrap_or(0))
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(LOCK_LIMIT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    Ok(connection)
}

fn unix_time() -> i64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Runs a statement to its end; a vacuum frees a page a step.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

fn lock(path: &Path, patience: Duration) -> Result<File, TryLockError> {
    let deadline = Instant::now() + patience;
    let file = private(path).map_err(TryLockError::Error)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(error),
        }
    }
}

/// Opens a file for writing, and makes it with mode 0600 when it isn't there.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn database(path: &Path, source: rusqlite::Error) -> BufferError {
    BufferError::Database { path: path.to_owned(), source }
}

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        // A database of somebody else's, with another table of that name.
        || matches!(error, rusqlite::Error::SqlInputError { .. })
}

/// Moves a database and its companions out of the way.
pub(super) fn set_aside(path: &Path, reason: &dyn std::fmt::Display) -> io::Result<()> {
    let name = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    // SQLite calls a failed read damage, too; a disk that can't be read is waited for.
    read_through(path)?;
    read_through(&name("-wal"))?;
    // The clock may have gone back: what was moved aside before stays.
    let free = |time: &i64| !name(&format!(".damaged-{time}")).exists();
    let time = (unix_time()..).find(free).unwrap_or_default();
    let aside = name(&format!(".damaged-{time}"));
    fs::rename(path, &aside)?;
    log::error!("{} can't be read ({reason}): it is now {}, and a new one begins", path.display(), aside.display());
    for suffix in ["-wal", "-shm"] {
        match fs::rename(name(suffix), name(&format!(".damaged-{time}{suffix}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a file can be read at all, if it is there.
fn read_through(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => io::copy(&mut file.take(READ_THROUGH), &mut io::sink()).map(|_| ()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
