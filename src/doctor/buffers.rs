//! The buffers on disk: whether they open, are whole, and what waits in them.
//!
//! They are read without a trace. One that nobody has open (no write-ahead log beside it) is opened as immutable,
//! which neither locks nor creates a file. One that the extension has open is read as one more reader, by the shared
//! memory that is there; the extension neither waits for it nor notices. One that a dead process left behind with
//! its log and without the shared memory can't be read without making that: it is left to the extension's next start.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::{Check, Report, Subject};
use crate::secret::percent_encode;

/// A large buffer's check is broken off after this.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// What the extension's own locks may take.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// The streams, by their files' names, and what waits in each.
const STREAMS: [(&str, &str); 3] =
    [("results", "result lines"), ("statuses", "status lines"), ("distributed", "results of distributed queries")];

/// What was read of a buffer.
struct Contents {
    /// SQLite's own judgement; none when there was not time enough.
    integrity: Option<String>,
    waiting: u64,
    set_aside: u64,
    /// Why the newest was set aside.
    reason: Option<String>,
}

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::Buffers;
    let directory = &subject.settings.buffer_path;
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return report.fail(CHECK, format!("{} is no directory", directory.display()), "move it away"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return report.ok(CHECK, format!("{} is not there: the first start makes it", directory.display()));
        }
        Err(error) => {
            return report.fail(CHECK, format!("{}: {error}", directory.display()), "run the doctor as root");
        }
    }
    let found: Vec<String> = STREAMS
        .into_iter()
        .filter_map(|(name, what)| stream(&directory.join(format!("{name}.sqlite")), what, subject, report))
        .collect();
    damaged(directory, report);
    free_space(directory, subject, report);
    if report.is_clean(CHECK) {
        let found = if found.is_empty() { "empty".to_owned() } else { found.join(", ") };
        report.ok(CHECK, format!("{}: {found}", directory.display()));
    }
}

/// Looks at one buffer: how much waits in it.
fn stream(path: &Path, what: &str, subject: &Subject, report: &mut Report<'_>) -> Option<String> {
    const CHECK: Check = Check::Buffers;
    let shown = path.display();
    match fs::metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            report.fail(CHECK, format!("{shown} can't be read: {error}"), "run the doctor as root");
            return None;
        }
    }
    let contents = match read(path) {
        Ok(contents) => contents,
        Err(ReadError::LeftBehind) => {
            report.warn(
                CHECK,
                format!("{shown} was left by a process that was killed, and can't be read without changing it"),
                "start osqueryd: the extension repairs it and loses nothing; then run the doctor again",
            );
            return None;
        }
        Err(ReadError::Sqlite(error)) => {
            let remedy = match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                    "restart osqueryd: the extension moves the file aside and begins a new one"
                }
                _ => "run the doctor as root, and see who has the file",
            };
            report.fail(CHECK, format!("{shown} can't be read: {error}"), remedy);
            return None;
        }
    };
    if let Some(problem) = contents.integrity.filter(|verdict| verdict != "ok") {
        report.fail(
            CHECK,
            format!("{shown} is damaged: {problem}"),
            "restart osqueryd: the extension moves the file aside and begins a new one; look at the disk's health",
        );
    }
    if contents.set_aside > 0 {
        let reason = contents.reason.unwrap_or_default();
        report.warn(
            CHECK,
            format!("{} {what} were set aside and never sent; the newest one: {reason}", contents.set_aside),
            format!("see them: sqlite3 -readonly {shown} \"SELECT time, reason, line FROM rejected\""),
        );
    }
    let limit = subject.settings.logger.max_kept.filter(|_| !path.ends_with("distributed.sqlite"));
    if limit.is_some_and(|limit| contents.waiting.saturating_mul(2) > limit) {
        report.warn(
            CHECK,
            format!(
                "{} {what} wait: more than half of --buffered_log_max, beyond which the oldest go",
                contents.waiting
            ),
            "see why the server does not take them (the checks above, osqueryd's log)",
        );
    }
    Some(format!("{} {what} wait", contents.waiting))
}

/// Why a buffer was not read.
enum ReadError {
    LeftBehind,
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn read(path: &Path) -> Result<Contents, ReadError> {
    let connection = open(path)?;
    let count = |sql: &str| -> rusqlite::Result<u64> {
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|count| u64::try_from(count).unwrap_or(0))
    };
    let has_rejected = count("SELECT count(*) FROM sqlite_schema WHERE name = 'rejected'")? > 0;
    let set_aside = if has_rejected { count("SELECT count(*) FROM rejected")? } else { 0 };
    let reason = match set_aside {
        0 => None,
        _ => connection
            .query_row("SELECT reason FROM rejected ORDER BY id DESC LIMIT 1", [], |row| {
                row.get::<_, Option<String>>(0)
            })
            .optional()?
            .flatten(),
    };
    let integrity = within(&connection, CHECK_LIMIT, || {
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
    })?;
    let waiting = within(&connection, CHECK_LIMIT, || count("SELECT count(*) FROM lines"))?.unwrap_or_default();
    Ok(Contents { integrity, waiting, set_aside, reason })
}

fn open(path: &Path) -> Result<Connection, ReadError> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let how = match (beside("-wal").exists(), beside("-shm").exists()) {
        (false, _) => "immutable=1",
        (true, true) => "mode=ro&readonly_shm=1",
        (true, false) => return Err(ReadError::LeftBehind),
    };
    // A path within a URI: slashes stay.
    let path = percent_encode(&path.to_string_lossy()).replace("%2F", "/");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{path}?{how}"), flags)?;
    connection.busy_timeout(LOCK_LIMIT)?;
    // The last one to close a database moves its log into it: not this one.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// Runs a query; `None` when it was broken off at its limit.
fn within<T>(
    connection: &Connection,
    limit: Duration,
    query: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    let handle = connection.get_interrupt_handle();
    let (done, ended) = mpsc::channel::<()>();
    let outcome = thread::scope(|scope| {
        scope.spawn(move || {
            // The sender's end is the query's end.
            if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                handle.interrupt();
            }
        });
        let outcome = query();
        drop(done);
        outcome
    });
    match outcome {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Buffers that the extension found damaged.
fn damaged(directory: &Path, report: &mut Report<'_>) {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_main = |name: &String| name.contains(".damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm");
    let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).filter(is_main).collect();
    if !names.is_empty() {
        report.warn(
            Check::Buffers,
            format!("damaged buffers were moved aside in {}: {}", directory.display(), names.join(", ")),
            "look at the disk's health; recover lines from them (sqlite3 FILE .recover), or delete them",
        );
    }
}

fn free_space(directory: &Path, subject: &Subject, report: &mut Report<'_>) {
    let least = subject.settings.logger.buffer_min_free_bytes;
    let Ok(disk) = rustix::fs::statvfs(directory) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < least {
        report.warn(
            Check::Buffers,
            format!(
                "{free} bytes are free on the disk, less than buffer_min_free_bytes ({least}): the oldest lines go"
            ),
            "make space, or set buffer_min_free_bytes among the extension's own flags",
        );
    }
}
