//! What a server's `Retry-After` means to one host of many.

use std::time::Duration;

use super::{Chance, between};

/// A server that tells everybody the same time would be asked by everybody in the same second: each host waits for
/// U(1, 2) times that time, never less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryAfter(Duration);

impl RetryAfter {
    /// The server asked to be left alone for this time.
    #[must_use]
    pub fn new(asked: Duration) -> Self {
        Self(asked)
    }

    /// How long this host leaves a server alone that may have asked for it.
    pub fn spread(asked: Option<Duration>, chance: &mut Chance) -> Option<Duration> {
        asked.map(|asked| Self(asked).wait(chance))
    }

    /// How long this host leaves it alone.
    pub fn wait(self, chance: &mut Chance) -> Duration {
        between(self.0, self.0.saturating_mul(2), chance)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    #[test]
    fn the_server_is_left_alone_for_the_time_that_it_asked_for_and_up_to_as_long_again() {
        assert_uniform(120.0, 240.0, |chance| RetryAfter::new(Duration::from_secs(120)).wait(chance));
        assert_eq!(RetryAfter::new(Duration::ZERO).wait(&mut Chance::with_seed(1)), Duration::ZERO);
    }
}
