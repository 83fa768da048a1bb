//! The log's file: appended to by every process of ours, a write a line.
//!
//! Another file of that name (logrotate has renamed the old one) is taken into use with the next line. A file that
//! would grow beyond [`FILE_BYTES`] becomes `<name>.1`, in the place of the one before it, and a new one is begun.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::files::{self, identity, with_suffix};

/// The largest size of the file; with the one before it, the log takes twice as much.
pub(super) const FILE_BYTES: u64 = 10 << 20;

/// A file that lines are appended to.
pub(super) struct LogFile {
    path: PathBuf,
    most_bytes: u64,
    open: Option<Open>,
}

struct Open {
    file: File,
    identity: (u64, u64),
}

impl LogFile {
    /// Nothing is opened before the first line.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, most_bytes: FILE_BYTES, open: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, which ends in a newline.
    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::at(&self.path)?,
        };
        match fs::metadata(&self.path) {
            Ok(there) if identity(&there) != open.identity => open = Open::at(&self.path)?,
            Ok(there) if there.is_file() && there.len() + line.len() as u64 > self.most_bytes => {
                open.put_aside(&self.path)?;
                open = Open::at(&self.path)?;
            }
            Ok(_) => {}
            Err(_) => open = Open::at(&self.path)?,
        }
        let written = open.file.write_all(line.as_bytes());
        self.open = Some(open);
        written
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        // Another user may write in its directory: no link of theirs is followed, and no file of theirs is written.
        let file = files::open_ours(path, OpenOptions::new().create(true).append(true))?;
        let identity = identity(&file.metadata()?);
        Ok(Self { file, identity })
    }

    /// Renames the file. Other processes of ours come to the same conclusion at the same time: one does it.
    fn put_aside(&self, path: &Path) -> io::Result<()> {
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let outcome = match fs::metadata(path) {
            Ok(there) if identity(&there) == self.identity => fs::rename(path, before(path)),
            _ => Ok(()),
        };
        // An error leaves it locked until it is closed, which is soon.
        let _ = self.file.unlock();
        outcome
    }
}

/// The name of the file before this one.
fn before(path: &Path) -> PathBuf {
    with_suffix(path, ".1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn small(path: PathBuf) -> LogFile {
        LogFile { most_bytes: 20, ..LogFile::new(path) }
    }

    #[test]
    fn lines_are_appended_to_a_private_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "before\n").unwrap();
        LogFile::new(path.clone()).write("one\n").unwrap();
        LogFile::new(path.clone()).write("two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\none\ntwo\n");
        let made = directory.path().join("made");
        LogFile::new(made.clone()).write("one\n").unwrap();
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_was_renamed_or_removed_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, renamed) = (directory.path().join("log"), directory.path().join("renamed"));
        let mut log = LogFile::new(path.clone());
        log.write("one\n").unwrap();
        fs::rename(&path, &renamed).unwrap();
        log.write("two\n").unwrap();
        assert_eq!(fs::read_to_string(&renamed).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        fs::remove_file(&path).unwrap();
        log.write("three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // logrotate's `create`.
        fs::rename(&path, &renamed).unwrap();
        fs::write(&path, "").unwrap();
        log.write("four\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
    }

    #[test]
    fn a_full_file_is_put_aside_and_several_writers_agree_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut logs = [small(path.clone()), small(path.clone())];
        for (n, log) in [0, 1, 0, 1, 1, 0].into_iter().enumerate() {
            logs[log].write(&format!("line {n}\n")).unwrap();
        }
        assert_eq!(fs::read_to_string(before(&path)).unwrap(), "line 2\nline 3\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 4\nline 5\n");
        logs[0].write("a line longer than the whole file\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a line longer than the whole file\n");
    }

    #[test]
    fn many_writers_at_once_tear_no_line_and_fill_a_file_before_it_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = path.clone();
                scope.spawn(move || {
                    let mut log = LogFile { most_bytes: 4000, ..LogFile::new(path) };
                    for n in 0..250 {
                        log.write(&format!("{writer} {n:05}\n")).unwrap();
                    }
                });
            }
        });
        let files = [&path, &before(&path)].map(|path| fs::read_to_string(path).unwrap());
        // How much more depends on how long the one that renames is kept from it: the others don't wait.
        assert!(files[1].len() >= 3990, "{}", files[1].len());
        let is_whole = |line: &str| line.len() == 7 && line[2..].parse::<u32>().is_ok();
        assert!(files.iter().all(|text| text.ends_with('\n') && text.lines().all(is_whole)), "{files:?}");
    }

    #[test]
    fn what_can_not_be_opened_is_an_error_and_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        assert!(LogFile::new(directory.path().join("missing/log")).write("x\n").is_err());
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(LogFile::new(pipe).write("x\n").is_err());
    }
}
