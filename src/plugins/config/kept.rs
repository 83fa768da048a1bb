//! The last good configuration, kept on disk for a start without the server. As the server gave it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use log::Level;

use crate::logging::Streak;

/// Its name in the directory of the buffers.
pub const FILE: &str = "config.json";

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
        fs::read_to_string(&self.path).ok()
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
            // Mode 0700, as whoever else makes it has it.
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let aside = self.path.with_extension("new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(document.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, &self.path)
    }
}
