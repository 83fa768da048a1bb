//! The last good configuration, kept on disk for a start without the server. As the server gave it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use log::Level;

use super::conditional::Received;
use crate::files;
use crate::logging::Streak;

/// Its name in the directory of the buffers.
pub const FILE: &str = "config.json";

/// Beside it: the URL that it came from. Without this its etag is worth nothing.
const ORIGIN: &str = "config.origin";

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

/// The file, and the one beside it.
pub(super) struct Kept {
    path: PathBuf,
    origin: PathBuf,
    failures: Streak,
}

impl Kept {
    /// The kept configuration in this directory. Nothing is read or made yet.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(FILE), origin: directory.join(ORIGIN), failures: Streak::default() }
    }

    /// What is kept; whether that is still a configuration is not known.
    pub(super) fn read(&self) -> Option<String> {
        kept(&self.path)
    }

    /// Where the kept configuration came from: the URL of the request.
    pub(super) fn origin(&self) -> Option<String> {
        kept(&self.origin)
    }

    /// Keeps a configuration. A failure is logged, and the caller goes on without it.
    pub(super) fn keep(&self, received: &Received) {
        match self.write(received) {
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

    fn write(&self, received: &Received) -> io::Result<()> {
        let is = |kept: Option<String>, text: &str| kept.is_some_and(|kept| kept == text);
        if is(self.read(), &received.document) && is(self.origin(), &received.from) {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            files::make_directory(directory)?;
        }
        // Whatever happens in between, none is said to come from where it doesn't.
        files::remove(&self.origin)?;
        replace(&self.path, &received.document)?;
        replace(&self.origin, &received.from)
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    files::replace(path, text.as_bytes(), File::sync_all)
}
