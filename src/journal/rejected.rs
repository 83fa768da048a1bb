//! Lines that no server takes, beside the journals: with time and reason, in two files of a bounded size.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::segments;
use crate::clock::unix_time;
use crate::files;
use crate::lock::Mutex;

/// The file that is written, in the directory of the buffers.
pub(super) const FILE: &str = "rejected.ndjson";

/// What it becomes when it is full; what had that name before is gone.
pub(super) const OLDER_FILE: &str = "rejected.1.ndjson";

/// Held (flock) while a line is added or lines are forgotten: while one worker follows another, there are two.
const LOCK: &str = "rejected.lock";

/// How long a process waits for that lock. Only a process that was stopped holds it for longer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// How large a file becomes.
const FILE_BYTES: u64 = 8 << 20;

/// The most bytes of a line that are kept.
pub(super) const LINE_BYTES: usize = 64 << 10;

/// Bytes of a line's name.
const ID_BYTES: usize = 6;

/// The most characters of a reason that are kept.
const REASON_CHARACTERS: usize = 1000;

/// Takes lines of every journal of the process; one is enough.
///
/// Each is a line `{"time":1795407125,"stream":"results","reason":"it is no JSON","size":7,"line":"no JSON"}`: `time` in
/// Unix seconds, `size` in bytes, and of a line longer than 64 KiB its beginning. Never fails: what the disk refuses here
/// is said, and counted by the journal all the same.
pub struct Rejected {
    directory: PathBuf,
    file_bytes: u64,
    /// Held while a line is added.
    adding: Mutex<()>,
    is_refused: AtomicBool,
}

/// Which lines are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Whatever is there.
    All,
    /// Those of these names. Lines that are the same in all have one name; each time that it is given is for one of them,
    /// the oldest first.
    These(Vec<String>),
}

#[derive(Serialize)]
struct Entry<'a> {
    time: i64,
    stream: &'a str,
    reason: &'a str,
    size: u64,
    line: &'a str,
}

impl Rejected {
    /// Keeps lines in this directory. The disk isn't touched before the first one.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self::with_files_of(FILE_BYTES, directory)
    }

    /// With files of another size.
    pub(super) fn with_files_of(file_bytes: u64, directory: PathBuf) -> Self {
        Self { directory, file_bytes, adding: Mutex::default(), is_refused: AtomicBool::new(false) }
    }

    /// Adds a line of which this is the beginning, or all.
    pub(super) fn add(&self, stream: &str, reason: &str, beginning: &[u8], size: u64) {
        let line = String::from_utf8_lossy(beginning_of(beginning));
        let reason_end = reason.char_indices().nth(REASON_CHARACTERS).map_or(reason.len(), |(end, _)| end);
        let reason = reason.get(..reason_end).unwrap_or_default();
        let entry = Entry { time: unix_time(), stream, reason, size, line: &line };
        let _adding = self.adding.lock();
        match serde_json::to_vec(&entry).map_err(io::Error::from).and_then(|entry| self.write(entry)) {
            Ok(()) => self.is_refused.store(false, Ordering::Relaxed),
            Err(error) if !self.is_refused.swap(true, Ordering::Relaxed) => {
                log::error!("lines can't be set aside in {}: {error}", self.directory.join(FILE).display());
            }
            Err(error) => log::debug!("lines still can't be set aside: {error}"),
        }
    }

    /// Forgets the lines of these names, or all that are kept: how many it were. What is added meanwhile stays.
    ///
    /// # Errors
    /// A file can't be read or written; it is as it was then.
    pub fn forget(&self, which: &Which) -> io::Result<u64> {
        let _adding = self.adding.lock();
        segments::trust_in(&self.directory)?;
        let _lock = segments::lock(&self.directory.join(LOCK), LOCK_TIMEOUT).map_err(io::Error::other)?;
        let mut wanted = match which {
            Which::All => None,
            Which::These(ids) => Some(ids.iter().fold(HashMap::new(), |mut wanted, id| {
                *wanted.entry(id.as_str()).or_insert(0) += 1;
                wanted
            })),
        };
        files(&self.directory).iter().map(|path| self.forget_in(path, &mut wanted)).sum()
    }

    /// Forgets those that are wanted gone, and takes them from what is wanted; `None` is all.
    fn forget_in(&self, path: &Path, wanted: &mut Option<HashMap<&str, u64>>) -> io::Result<u64> {
        let mut text = Vec::new();
        let mut file = match segments::open_for_reading(path) {
            // Ours don't become larger.
            Ok(file) if file.metadata()?.len() > self.file_bytes.saturating_add(1 << 20) && wanted.is_some() => {
                return Err(io::Error::other(format!("{} is none of ours: it is too large", path.display())));
            }
            Ok(file) => file.take(self.file_bytes.saturating_add(1 << 20)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        file.read_to_end(&mut text)?;
        let mut is_kept = |line: &&[u8]| match wanted {
            None => false,
            Some(wanted) => match wanted.get_mut(id(line).as_str()).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => true,
            },
        };
        let lines = text.split_inclusive(|&byte| byte == b'\n');
        let count = lines.clone().count();
        let kept: Vec<&[u8]> = lines.filter(|line| is_kept(line)).collect();
        let forgotten = count - kept.len();
        // What another worker, which had to wait for the lock for too long, has added without it.
        let mut late = Vec::new();
        if kept.is_empty() && file.read_to_end(&mut late)? == 0 {
            fs::remove_file(path)?;
        } else if forgotten > 0 {
            let aside = path.with_extension("new");
            let mut new =
                segments::open_or_replace(&aside, OpenOptions::new().write(true).truncate(true).create(true))?;
            new.write_all(&kept.concat())?;
            // Or a power cut could leave the name to an empty file.
            new.sync_all()?;
            file.read_to_end(&mut late)?;
            new.write_all(&late)?;
            fs::rename(&aside, path)?;
        }
        Ok(forgotten as u64)
    }

    fn write(&self, mut entry: Vec<u8>) -> io::Result<()> {
        entry.push(b'\n');
        segments::trust_in(&self.directory)?;
        // The line matters more than the order that a stopped process may hold up.
        let lock = segments::lock(&self.directory.join(LOCK), LOCK_TIMEOUT).ok();
        let path = self.directory.join(FILE);
        if fs::metadata(&path).is_ok_and(|file| file.len() + entry.len() as u64 > self.file_bytes) {
            fs::rename(&path, self.directory.join(OLDER_FILE))?;
        }
        loop {
            let mut file = segments::open_or_replace(&path, OpenOptions::new().read(true).append(true).create(true))?;
            if !ends_in_newline(&file)? {
                // A kill or a full disk has left half a line.
                entry.insert(0, b'\n');
            }
            file.write_all(&entry)?;
            // Without the lock another file may have taken its place, which has this line or not.
            if lock.is_some() || is_at(&file, &path)? {
                return Ok(());
            }
        }
    }
}

fn is_at(file: &fs::File, path: &Path) -> io::Result<bool> {
    let (one, other) = (file.metadata()?, fs::metadata(path));
    Ok(other.is_ok_and(|other| files::identity(&one) == files::identity(&other)))
}

fn ends_in_newline(file: &fs::File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

/// As much of a line as is kept, not cut within a character.
fn beginning_of(line: &[u8]) -> &[u8] {
    let Some(cut) = line.get(..LINE_BYTES) else { return line };
    let is_middle = |byte: Option<&u8>| byte.is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    let back = (0..4).find(|back| !is_middle(line.get(LINE_BYTES - back))).unwrap_or(0);
    cut.get(..LINE_BYTES - back).unwrap_or(cut)
}

/// What a line is called: the beginning of a hash of its entry, so that each process finds the same one.
pub(super) fn id(entry: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, entry.trim_ascii_end());
    hash.as_ref().iter().take(ID_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// The files' paths, the older one first.
pub(super) fn files(directory: &Path) -> [PathBuf; 2] {
    [directory.join(OLDER_FILE), directory.join(FILE)]
}
