//! When to ask for a new node key in place of one that had worked.

use std::time::Duration;

use super::{Chance, between};

/// A server that doesn't know a key that had worked has perhaps lost all of them, and an enrollment is the most expensive
/// request that there is: hosts ask for another key after U(0, `within`). A host that never had a key asks at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reenrollment {
    within: Duration,
}

impl Reenrollment {
    /// The time that a fleet takes for it, unless its operator says otherwise.
    pub const WITHIN: Duration = Duration::from_secs(600);

    /// All hosts of a fleet enroll again within this time.
    #[must_use]
    pub fn new(within: Duration) -> Self {
        Self { within }
    }

    /// A key that had worked is not accepted any more: how long to wait before another one is asked for.
    pub fn wait(self, chance: &mut Chance) -> Duration {
        between(Duration::ZERO, self.within, chance)
    }
}

impl Default for Reenrollment {
    fn default() -> Self {
        Self::new(Self::WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    #[test]
    fn hosts_enroll_again_evenly_over_the_time() {
        assert_uniform(0.0, 600.0, |chance| Reenrollment::default().wait(chance));
        assert_uniform(0.0, 60.0, |chance| Reenrollment::new(Duration::from_secs(60)).wait(chance));
        assert_eq!(Reenrollment::new(Duration::ZERO).wait(&mut Chance::with_seed(1)), Duration::ZERO);
    }
}
