//! The last good configuration, kept on disk for a start without the server. As the server gave it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use log::Level;

use crate::files;
use crate::logging::Streak;

/// Its name in the directory of the buffers.
pub const FILE: &str = "config.json";

/// No configuration is larger.
const LARGEST: u64 = 4 << 20;

/// The last good configuration, as it lies in this file; whether it still is one is not known. `None` also where
/// another user could have put it there.
#[must_use]
pub fn kept(path: &Path) -> Option<String> {
    let directory = path.parent()?;
    match files::trust_in(directory).and_then(|()| files::read_ours(path, LARGEST)) {
        Ok(document) => Some(document),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            log::debug!("the kept configuration in {} counts for nothing: {error}", path.display());
            None
        }
    }
}

/// The file.
pub(super) struct Kept {
    path: PathBuf,
    failures: Streak,
}

impl Kept {
    /// In this directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(FILE), failures: Streak::default() }
    }

    /// What is kept; whether that is still a configuration is not known.
    pub(super) fn read(&self) -> Option<String> {
        kept(&self.path)
    }

    /// Keeps a configuration; a failure is said, and is none for the caller.
    pub(super) fn keep(&self, document: &str) {
        match self.write(document) {
            Ok(()) => {
                if let Some(failures) = self.failures.succeeded() {
                    log::info!("the configuration can be kept again, {failures}");
                }
            }
            Err(error) => {
                let failed = self.failures.failed(Level::Warn);
                log::log!(failed.level, "the configuration can't be kept in {}: {error}{failed}", self.path.display());
            }
        }
    }

    /// All or nothing: written aside, then renamed.
    fn write(&self, document: &str) -> io::Result<()> {
        if self.read().is_some_and(|kept| kept == document) {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            files::trust_in(directory)?;
            // Mode 0700, as the journals make it.
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            files::trust_in(directory)?;
        }
        let aside = self.path.with_extension("new");
        // A new one: what was left there, or put there, is not written into.
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = files::open_ours(&aside, OpenOptions::new().create_new(true).write(true))?;
        file.write_all(document.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, &self.path)
    }
}
