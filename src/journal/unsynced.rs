//! Syncs at intervals, beside the appends.

use std::fs::File;
use std::io;
use std::path::Path;

use super::segments;
use super::store::{Changes, Store};
use crate::lock::Mutex;

/// What is to be synced next.
#[derive(Default)]
pub(super) struct Unsynced(Mutex<State>);

#[derive(Default)]
struct State {
    changes: Changes,
    is_refused: bool,
}

impl Unsynced {
    /// Takes over what a store has written since the last time.
    pub(super) fn take(&self, store: &mut Store) {
        let taken = store.take_unsynced();
        let changes = &mut self.0.lock().changes;
        changes.segments.extend(taken.segments);
        changes.has_new_names |= taken.has_new_names;
    }

    /// Waits until all of it is safe. What the disk refuses is not tried again: the system has said that it is lost or
    /// will come to be written, and doesn't know more the next time.
    pub(super) fn sync(&self, directory: &Path) {
        let changes = std::mem::take(&mut self.0.lock().changes);
        if changes.segments.is_empty() && !changes.has_new_names {
            return;
        }
        let outcome = sync(&changes, directory);
        let is_refused = &mut self.0.lock().is_refused;
        match outcome {
            Ok(()) => {
                if std::mem::take(is_refused) {
                    log::info!("{} can be synced again", directory.display());
                }
            }
            Err(error) if !std::mem::replace(is_refused, true) => {
                log::error!("{} can't be synced, and a power cut may take lines: {error}", directory.display());
            }
            Err(error) => log::debug!("{} still can't be synced: {error}", directory.display()),
        }
    }
}

fn sync(changes: &Changes, directory: &Path) -> io::Result<()> {
    for &number in &changes.segments {
        match segments::open_for_reading(&segments::path(directory, number)) {
            Ok(file) => file.sync_data()?,
            // Done with by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if changes.has_new_names {
        // The directory's own name is new at first, too.
        for directory in [Some(directory), directory.parent()].into_iter().flatten() {
            File::open(directory)?.sync_all()?;
        }
    }
    Ok(())
}
