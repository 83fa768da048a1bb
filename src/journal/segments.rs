//! The files of a journal: their names, how they are listed, opened, locked, moved aside and removed.
//!
//! Files are opened, read, written and renamed by the standard library, and not by `rustix`: its calls go past libc, where
//! the tests of faults stand.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::JournalError;
use crate::clock::unix_time;
use crate::files::{self, our_user, with_suffix};
pub(super) use crate::files::{open_unfollowed as open, trust_in};

pub(super) const CURSOR: &str = "cursor";
pub(super) const WRITER_LOCK: &str = "writer.lock";
pub(super) const READER_LOCK: &str = "reader.lock";

/// At the first opening, a predecessor that is ending is waited for: calls wait rather than have their lines in memory
/// only.
pub(super) const PREDECESSOR_LIMIT: Duration = Duration::from_secs(3);

/// Between two attempts to take a lock; std has none with a deadline.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

const SUFFIX: &[u8] = b".ndjson";
const INCOMING: &str = "incoming-";
const ASIDE: &str = ".damaged-";

/// As many things that were moved aside are kept in a directory.
const MOST_ASIDE: usize = 16;

/// Digits of a segment's name.
const DIGITS: usize = 16;

/// No line's number has more digits.
pub(super) const LAST_NUMBER: u64 = 10u64.pow(DIGITS as u32) - 1;

/// The segment that begins with this line.
pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016}.ndjson"))
}

/// A large record on its way in.
pub(super) fn incoming_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{INCOMING}{number}"))
}

fn number(name: &[u8]) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let is_ours = digits.len() == DIGITS && digits.iter().all(u8::is_ascii_digit);
    is_ours.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// No segment of ours is larger: its last record can be of a GiB. A file left for us that is one great hole would be read
/// for minutes.
pub(super) const LARGEST: u64 = 2 << 30;

/// What stands in a journal's directory.
#[derive(Default)]
pub(super) struct Listing {
    /// The segments by number, oldest first.
    pub(super) segments: Vec<u64>,
    /// What has a segment's name and is none: directories, links, files that are too large.
    pub(super) foreign: Vec<PathBuf>,
    /// Large records on their way in.
    pub(super) incoming: Vec<PathBuf>,
    /// The names of what was moved aside.
    pub(super) aside: Vec<String>,
}

/// Lists the directory; one that isn't there is empty.
pub(super) fn list(directory: &Path) -> io::Result<Listing> {
    list_beside(directory, &[])
}

/// [`list`], without another look at the segments `known`, whose numbers are in order.
pub(super) fn list_beside(directory: &Path, known: &[u64]) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = number(name.as_bytes()) {
            if known.binary_search(&number).is_ok() {
                listing.segments.push(number);
                continue;
            }
            // A file that was removed a moment ago is no file.
            match entry.metadata() {
                Ok(found) if found.is_file() && found.len() <= LARGEST => listing.segments.push(number),
                Ok(_) => listing.foreign.push(entry.path()),
                Err(_) => {}
            }
        } else if name.as_bytes().starts_with(INCOMING.as_bytes()) {
            listing.incoming.push(entry.path());
        } else if name.to_string_lossy().contains(ASIDE) {
            listing.aside.push(name.to_string_lossy().into_owned());
        }
    }
    listing.segments.sort_unstable();
    Ok(listing)
}

impl Listing {
    /// Moves aside what has a segment's name and is none.
    pub(super) fn clear_foreign(&self) {
        for path in &self.foreign {
            // What can't be moved is only in the way when its number comes up.
            let _ = move_aside(path, &"it is no regular file, or larger than any segment");
        }
    }
}

/// Makes the journal's directory if need be. What has its name and is none is moved aside.
///
/// One that another user could change is refused: its files could be that user's, and what we write could go elsewhere.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() && fs::symlink_metadata(directory).is_ok() {
        trust_in(directory.parent().unwrap_or(directory))?;
        move_aside(directory, &"it is no directory")?;
    }
    files::make_directory(directory)
}

/// Opens a file of ours. What is foreign and has its name is moved aside first.
pub(super) fn open_or_replace(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match open(path, options) {
        Err(error) if is_foreign(path) && move_aside(path, &error).is_ok() => open(path, options),
        opened => opened,
    }
}

/// Opens a file of ours for reading.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Whether something has this name that we could not have made. Asked of what can't be opened; an error alone doesn't say:
/// a disk can refuse for any reason, and lines must not be moved aside for that.
pub(super) fn is_foreign(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| !found.is_file() || found.uid() != our_user() || found.mode() & 0o600 != 0o600)
}

/// Moves what has this name to `NAME.damaged-UNIXTIME`, and says so.
pub(super) fn move_aside(path: &Path, reason: &dyn std::fmt::Display) -> io::Result<()> {
    let name = |time: i64| with_suffix(path, &format!("{ASIDE}{time}"));
    // The clock may have gone back: what was moved aside before stays.
    let is_free = |time: &i64| fs::symlink_metadata(name(*time)).is_err();
    let aside = name((unix_time()..).find(is_free).unwrap_or_default());
    forget_oldest(path);
    match fs::rename(path, &aside) {
        Ok(()) => log::error!("{} can't be used ({reason}): it is now {}", path.display(), aside.display()),
        Err(ref error) => log::debug!("{} can't be moved aside: {error}", path.display()),
    }
    // Reader and writer both may find it; the first one moves it.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other(format!("{} is in the way and can't be moved", path.display()))),
    }
}

/// Removes the oldest files that were moved aside in this directory, so that one more makes [`MOST_ASIDE`].
fn forget_oldest(path: &Path) {
    let Some(directory) = path.parent() else { return };
    let mut aside = list(directory).unwrap_or_default().aside;
    let time = |name: &String| name.rsplit(ASIDE).next().and_then(|time| time.parse::<u64>().ok()).unwrap_or_default();
    aside.sort_by_key(time);
    let surplus = (aside.len() + 1).saturating_sub(MOST_ASIDE);
    // A directory, which is not removed, is nothing that we have made.
    aside.iter().take(surplus).for_each(|name| remove(&directory.join(name)));
}

/// Removes files: what can't be removed now is removed another time.
pub(super) fn remove(path: &Path) {
    if let Err(error) = crate::files::remove(path) {
        log::debug!("{} can't be removed: {error}", path.display());
    }
}

/// Takes a lock, which is held as long as the file is open. Another process that holds it is waited for, at most
/// `timeout`.
pub(super) fn lock(path: &Path, timeout: Duration) -> Result<File, JournalError> {
    let unusable = |source| JournalError::File { path: path.to_owned(), source };
    let writable = open_or_replace(path, OpenOptions::new().create(true).truncate(false).write(true));
    // A disk that is full or read-only can be read, and a lock taken there.
    let file = writable.or_else(|error| open_for_reading(path).map_err(|_| error)).map_err(unusable)?;
    let deadline = Instant::now() + timeout;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
    }
}
