//! Failures in a row of one kind: the first is said, those after it only with DEBUG, and how many they were when it
//! is over.

use std::sync::atomic::{AtomicU64, Ordering};

use log::Level;

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Streak(AtomicU64);

impl Streak {
    /// A failure more: the level to say it with, which is `level` for the first in a row.
    pub fn failed(&self, level: Level) -> Level {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 { level } else { Level::Debug }
    }

    /// It works: how many failures were in a row before it, when there were any.
    pub fn succeeded(&self) -> Option<u64> {
        // Most of the time there is nothing to change.
        if self.0.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.0.swap(0, Ordering::Relaxed)).filter(|&failures| failures > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_in_a_row_is_loud() {
        let streak = Streak::default();
        assert_eq!(streak.succeeded(), None);
        assert_eq!([0; 3].map(|_| streak.failed(Level::Warn)), [Level::Warn, Level::Debug, Level::Debug]);
        assert_eq!(streak.succeeded(), Some(3));
        assert_eq!(streak.succeeded(), None);
        assert_eq!(streak.failed(Level::Error), Level::Error);
    }
}
