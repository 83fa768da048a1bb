//! What bounds a journal while no reader does: the oldest segments are deleted when they have grown far beyond the limits.

use std::fs;
use std::path::Path;

use super::limits::{Limits, free_bytes};
use super::segments;
use crate::lock::Mutex;
use crate::words::counted;

/// By how much a journal may be beyond its limits before the backstop acts, in hundredths and in segments: exact limits are the
/// reader's.
const EXCESS_PERCENT: u64 = 25;
const EXCESS_SEGMENTS: u64 = 4;

/// What was said of deletions.
#[derive(Default)]
pub(super) struct Backstop {
    /// How many lines were deleted so far.
    deleted: Mutex<u64>,
}

impl Backstop {
    /// Deletes the oldest segments that are far beyond the limits: never the newest.
    pub(super) fn keep(&self, directory: &Path, name: &str, segment_bytes: u64, limits: &Limits) {
        let Ok(segments::Listing { segments: numbers, .. }) = segments::list(directory) else { return };
        let size = |number: &u64| fs::metadata(segments::path(directory, *number)).map_or(0, |file| file.len());
        let mut total: u64 = numbers.iter().map(size).sum();
        let excess = limits.max_bytes / 100 * EXCESS_PERCENT;
        let most = limits.max_bytes.saturating_add(excess).saturating_add(EXCESS_SEGMENTS * segment_bytes);
        let mut deleted = 0u64;
        for (number, next) in numbers.iter().zip(numbers.iter().skip(1)) {
            let is_short = || total > EXCESS_SEGMENTS * segment_bytes && is_far_too_little_free(directory, limits);
            if total <= most && !is_short() {
                break;
            }
            total = total.saturating_sub(size(number));
            segments::remove(&segments::path(directory, *number));
            deleted = deleted.saturating_add(next - number);
        }
        if deleted > 0 {
            self.say(deleted, name);
        }
    }

    /// Said at the first and then each time the number has doubled. The reader counts them.
    fn say(&self, deleted: u64, name: &str) {
        let mut before = self.deleted.lock();
        let now = before.saturating_add(deleted);
        if before.checked_ilog2() != now.checked_ilog2() {
            let lines = counted(now, "line");
            log::error!(
                "files with {lines} of the {name} journal, which no worker has read, were deleted so far: the journal is far beyond its limits"
            );
        }
        *before = now;
    }
}

fn is_far_too_little_free(directory: &Path, limits: &Limits) -> bool {
    free_bytes(directory).is_some_and(|free| free < limits.min_free_bytes / 2)
}
