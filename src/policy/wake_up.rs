//! When lines that wait for their back-off are tried, once something else shows that the server is back.

use std::time::Duration;

use super::{Chance, between};

/// Another endpoint works again after failing: the logger tries within U(0, 60 s), or when its back-off is over, whichever
/// comes first. So the back-off can be long without new lines being late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeUp;

const WITHIN: Duration = Duration::from_secs(60);

impl WakeUp {
    /// How long to wait, when `left` of the back-off is still to come.
    pub fn wait(self, left: Duration, chance: &mut Chance) -> Duration {
        between(Duration::ZERO, WITHIN, chance).min(left)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_uniform;
    use super::*;

    #[test]
    fn a_server_that_is_back_is_tried_within_a_minute() {
        assert_uniform(0.0, 60.0, |chance| WakeUp.wait(Duration::from_secs(300), chance));
    }

    #[test]
    fn it_never_makes_a_wait_longer() {
        let left = Duration::from_secs(2);
        let mut chance = Chance::with_seed(1);
        assert!((0..100).all(|_| WakeUp.wait(left, &mut chance) <= left));
    }
}
