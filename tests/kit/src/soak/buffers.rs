//! The extension's buffers, seen from outside, as an operator with `sqlite3` sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::lines;

/// A look that takes longer is given up; there will be another one.
const PATIENCE: Duration = Duration::from_millis(500);

/// Of a line set aside, so much is enough to know it by.
const BEGINNING: u32 = 40;

/// The buffers of one extension.
pub(super) struct Buffers {
    directory: PathBuf,
    /// The newest of the lines set aside that was seen.
    seen: i64,
    /// Lines that had made room for newer ones before they were seen.
    pub(super) unseen: i64,
}

impl Buffers {
    pub(super) fn new(directory: &Path) -> Buffers {
        Buffers { directory: directory.to_owned(), seen: 0, unseen: 0 }
    }

    /// How many lines wait in a stream's buffer; `None` when it could not be asked now.
    pub(super) fn waiting(&self, stream: &str) -> Option<u64> {
        if !self.file(stream).exists() {
            return Some(0);
        }
        let count = self.open(stream).ok()?.query_row("SELECT count(*) FROM lines", [], |row| row.get::<_, i64>(0));
        u64::try_from(count.ok()?).ok()
    }

    /// The numbers of the result lines that were set aside since this was asked last.
    pub(super) fn newly_set_aside(&mut self) -> Vec<u64> {
        let read = || -> rusqlite::Result<Vec<(i64, String)>> {
            let buffer = self.open("results")?;
            let mut rows = buffer.prepare("SELECT id, substr(line, 1, ?1) FROM rejected WHERE id > ?2 ORDER BY id")?;
            let rows = rows.query_map((BEGINNING, self.seen), |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        let rows = read().unwrap_or_default();
        if let Some((first, _)) = rows.first() {
            self.unseen += first - self.seen - 1;
        }
        self.seen = rows.last().map_or(self.seen, |(last, _)| *last);
        // A line without a number is counted as one that was never sent.
        rows.iter().map(|(_, line)| lines::number_of_line(line).unwrap_or(u64::MAX)).collect()
    }

    /// Bytes of the lines that are kept aside; they are in the file for good.
    pub(super) fn bytes_set_aside(&self) -> Option<u64> {
        let sum = "SELECT coalesce(sum(length(CAST(line AS BLOB))), 0) FROM rejected";
        let bytes = self.open("results").ok()?.query_row(sum, [], |row| row.get::<_, i64>(0));
        u64::try_from(bytes.ok()?).ok()
    }

    /// Bytes of a stream's database and of its write-ahead log.
    pub(super) fn sizes(&self, stream: &str) -> (u64, u64) {
        let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        let file = self.file(stream);
        (size(&file), size(&file.with_extension("sqlite-wal")))
    }

    fn file(&self, stream: &str) -> PathBuf {
        self.directory.join(format!("{stream}.sqlite"))
    }

    /// For reading only: it neither writes a checkpoint nor removes the log when it is closed.
    fn open(&self, stream: &str) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(self.file(stream), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(PATIENCE)?;
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_set_aside_are_seen_once_and_those_that_went_before_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut buffers = Buffers::new(directory.path());
        assert_eq!((buffers.waiting("results"), buffers.newly_set_aside()), (Some(0), Vec::new()));
        let writer = Connection::open(directory.path().join("results.sqlite")).unwrap();
        writer
            .execute_batch(
                "CREATE TABLE lines (id INTEGER PRIMARY KEY, line TEXT NOT NULL);
                 CREATE TABLE rejected (id INTEGER PRIMARY KEY, time INTEGER, reason TEXT, size INTEGER, line TEXT);
                 INSERT INTO lines (line) VALUES ('{}'), ('{}');
                 INSERT INTO rejected (line) VALUES ('{\"n\":4,x'), ('{\"n\":6,\u{e9}')",
            )
            .unwrap();
        assert_eq!((buffers.waiting("results"), buffers.newly_set_aside()), (Some(2), vec![4, 6]));
        assert_eq!((buffers.newly_set_aside(), buffers.bytes_set_aside()), (Vec::new(), Some(8 + 9)));
        writer
            .execute_batch("INSERT INTO rejected (line) VALUES ('a'), ('b'); DELETE FROM rejected WHERE id < 4")
            .unwrap();
        assert_eq!((buffers.newly_set_aside(), buffers.unseen), (vec![u64::MAX], 1));
        assert!(buffers.sizes("results").0 > 0);
    }
}
