//! Failures in a row of one kind. The first is said; while they last, one of them is said now and then, with how long
//! it has been so; the others only with DEBUG. Their end is said with how many they were and how long it took.

use std::fmt;
use std::time::{Duration, Instant};

use log::Level;

use crate::lock::{Mutex, MutexGuard};
use crate::words::{Span, counted};

/// A failure that lasts is said again after this; the next time after twice as much, and so on.
const FIRST_REMINDER: Duration = Duration::from_secs(5 * 60);

/// The longest time between two reminders.
const LONGEST_SILENCE: Duration = Duration::from_secs(60 * 60);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Streak(Mutex<Option<Row>>);

#[derive(Debug)]
struct Row {
    failures: u64,
    began: Instant,
    /// When it is to be said again.
    remind_at: Instant,
    /// How long it is not said then.
    silence: Duration,
}

/// One failure more: how to say it. Shown, it is what belongs behind the message: nothing for the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The level to say it with.
    pub level: Level,
    /// For a reminder: how many there were, and for how long.
    lasting: Option<Past>,
}

/// Failures in a row. Shown: `after 3 failures in 2 min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    failures: u64,
    lasted: Duration,
}

impl Streak {
    /// A failure more, to be said with `level` if it is the first in a row, or if it has not been said for long.
    pub fn failed(&self, level: Level) -> Failed {
        self.failed_at(Instant::now(), level)
    }

    /// [`Self::failed`], at this moment.
    pub(crate) fn failed_at(&self, now: Instant, level: Level) -> Failed {
        let mut row = self.row();
        let Some(row) = row.as_mut() else {
            *row = Some(Row { failures: 1, began: now, remind_at: now + FIRST_REMINDER, silence: FIRST_REMINDER });
            return Failed { level, lasting: None };
        };
        row.failures += 1;
        if now < row.remind_at {
            return Failed { level: Level::Debug, lasting: None };
        }
        row.silence = (2 * row.silence).min(LONGEST_SILENCE);
        row.remind_at = now + row.silence;
        Failed { level, lasting: Some(Past { failures: row.failures, lasted: now.duration_since(row.began) }) }
    }

    /// It works: the failures in a row before it, when there were any.
    pub fn succeeded(&self) -> Option<Past> {
        self.succeeded_at(Instant::now())
    }

    /// [`Self::succeeded`], at this moment.
    pub(crate) fn succeeded_at(&self, now: Instant) -> Option<Past> {
        let row = self.row().take()?;
        Some(Past { failures: row.failures, lasted: now.saturating_duration_since(row.began) })
    }

    fn row(&self) -> MutexGuard<'_, Option<Row>> {
        self.0.lock()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lasting {
            Some(Past { failures, lasted }) => {
                write!(f, " (so for {} now, {} in a row)", Span(lasted), counted(failures, "failure"))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} in {}", counted(self.failures, "failure"), Span(self.lasted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_in_a_row_is_loud() {
        let streak = Streak::default();
        assert_eq!(streak.succeeded(), None);
        let levels = [0; 3].map(|_| streak.failed(Level::Warn).level);
        assert_eq!(levels, [Level::Warn, Level::Debug, Level::Debug]);
        assert!(streak.succeeded().unwrap().to_string().starts_with("after 3 failures in "));
        assert_eq!(streak.succeeded(), None);
        assert_eq!(streak.failed(Level::Error).level, Level::Error);
    }

    #[test]
    fn a_failure_that_lasts_is_said_again_and_again_ever_less_often() {
        let streak = Streak::default();
        let began = Instant::now();
        let loud: Vec<(u64, String)> = (0..5 * 60)
            .map(|minute| (minute, streak.failed_at(began + Duration::from_secs(60 * minute), Level::Warn)))
            .filter(|(_, failed)| failed.level == Level::Warn)
            .map(|(minute, failed)| (minute, failed.to_string()))
            .collect();
        let minutes: Vec<u64> = loud.iter().map(|(minute, _)| *minute).collect();
        assert_eq!(minutes, [0, 5, 15, 35, 75, 135, 195, 255]);
        assert_eq!(loud[0].1, "");
        assert_eq!(loud[4].1, " (so for 1 h 15 min now, 76 failures in a row)");
    }
}
