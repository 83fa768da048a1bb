//! How one host behaves so that a whole fleet of them doesn't knock its server over: when to try again, how much of what
//! was kept is sent at once, when to ask for a new node key.
//!
//! Pure: no clock, no lock, no network. Each type is given the time and a source of chance, and answers with how long to
//! wait or how much to send. The worker drives them by the host's clock; the simulation in tests/fleet drives the same
//! types by virtual time for a hundred thousand hosts, and docs/fleet.md has what came of it.
//!
//! Three rules are behind all of them:
//!
//! * **No two hosts at the same moment.** Every wait is drawn from a range, and the draw comes after the cap: a cap behind
//!   it would put everybody on the same second again.
//! * **A share, never a sum.** What a host may send of its backlog is a share of what it usually sends, so that a fleet's
//!   load is bounded by a multiple of its usual load, whatever its size and however long the outage was.
//! * **Less work for a server that fails, at once; more for one that recovers, slowly.**

mod allowance;
mod backoff;
mod breaker;
mod drain;
mod failover;
mod reenrollment;
mod retry_after;
mod wake_up;

pub use self::allowance::Allowance;
pub use self::backoff::Backoff;
pub use self::breaker::Breaker;
pub use self::drain::{Drain, IntakeRate};
pub use self::failover::{Consequence, Failover, Verdict};
pub use self::reenrollment::Reenrollment;
pub use self::retry_after::RetryAfter;
pub use self::wake_up::WakeUp;

use std::time::Duration;

/// The longest wait between two attempts to send lines, unless osquery's `logger_tls_backoff_max` is less.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// The source of chance; a seeded one makes a run repeatable.
pub type Chance = fastrand::Rng;

/// A moment between `shortest` and `longest`, each as likely as any other.
fn between(shortest: Duration, longest: Duration, chance: &mut Chance) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(chance.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that what is drawn is spread evenly from `shortest` to `longest`: no value outside, and of 20,000 draws a
    /// tenth (within a hundredth of all) in each tenth of the range.
    pub(super) fn assert_uniform(shortest: f64, longest: f64, mut draw: impl FnMut(&mut Chance) -> Duration) {
        const DRAWS: usize = 20_000;
        let mut chance = Chance::with_seed(20_260_801);
        let mut tenths = [0usize; 10];
        for _ in 0..DRAWS {
            let drawn = draw(&mut chance).as_secs_f64();
            assert!((shortest..=longest).contains(&drawn), "{drawn} is outside {shortest}..={longest}");
            let part = (drawn - shortest) / (longest - shortest);
            tenths[((part * 10.0) as usize).min(9)] += 1;
        }
        let most_off = tenths.iter().map(|&tenth| tenth.abs_diff(DRAWS / 10)).max().unwrap();
        assert!(most_off < DRAWS / 100, "not even: {tenths:?}");
    }

    #[test]
    fn a_moment_between_two_is_any_of_them() {
        assert_uniform(2.0, 7.0, |chance| between(Duration::from_secs(2), Duration::from_secs(7), chance));
        let alone = Duration::from_secs(3);
        assert_eq!(between(alone, alone, &mut Chance::with_seed(1)), alone);
    }
}
