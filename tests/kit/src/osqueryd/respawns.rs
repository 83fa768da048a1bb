//! How the watcher answers the deaths of workers: with another one at once, with one later, or with its own end.

use std::time::Duration;

/// A worker that dies within this many seconds of its start has died early.
const EARLY: u32 = 4;
/// After this many early deaths the watcher gives up.
const MOST_EARLY_DEATHS: u32 = 4;
/// Seconds before the next worker after an early death, to which 2 to the power of their number is added.
const DELAY: u32 = 5;

/// What follows a worker's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another worker, after this.
    After(Duration),
    /// The watcher's end.
    GiveUp,
}

/// The early deaths so far. osqueryd never forgets one.
#[derive(Debug, Default)]
pub(super) struct Respawns {
    early_deaths: u32,
}

impl Respawns {
    /// The answer to the death of a worker of that age; `second` is one on the watcher's clock.
    pub(super) fn answer(&mut self, age: Duration, second: Duration) -> Next {
        if age >= second * EARLY {
            return Next::After(Duration::ZERO);
        }
        self.early_deaths += 1;
        match self.early_deaths {
            MOST_EARLY_DEATHS.. => Next::GiveUp,
            deaths => Next::After(second * (DELAY + 2_u32.pow(deaths))),
        }
    }

    /// How many early deaths there were.
    pub(super) fn early_deaths(&self) -> u32 {
        self.early_deaths
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Next, Respawns};

    #[test]
    fn early_deaths_are_answered_later_and_later_and_at_last_by_the_end() {
        let (second, early) = (Duration::from_secs(1), Duration::from_millis(3900));
        let mut respawns = Respawns::default();
        let after = |seconds| Next::After(Duration::from_secs(seconds));
        assert_eq!(respawns.answer(early, second), after(7));
        assert_eq!(respawns.answer(early, second), after(9));
        assert_eq!(respawns.answer(Duration::from_secs(4), second), after(0));
        assert_eq!(respawns.answer(early, second), after(13));
        assert_eq!(respawns.answer(early, second), Next::GiveUp);
    }
}
