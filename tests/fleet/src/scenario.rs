//! What happens to the fleet or its server.

use clap::ValueEnum;

use crate::time::{MINUTE, SECOND, Tick};

/// The time before the event, in which all goes well.
pub(crate) const BEFORE: Tick = 10 * MINUTE;

/// The fleet is watched for this time afterwards at most, and less when all is well before that.
const AFTER: Tick = 6 * 60 * MINUTE;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// No host reaches the server for an hour
    Down,
    /// The server forgets all node keys at once
    Keys,
    /// All hosts restart within five minutes
    Reboot,
    /// Half of the hosts are away for eight hours, and come back in the same second
    Away,
    /// The server works at a quarter of its speed for ten minutes
    Slow,
    /// The server answers everything with 503 and Retry-After: 120, for ten minutes
    RetryAfter,
}

impl Scenario {
    pub(crate) const ALL: [Self; 6] = [Self::Down, Self::Keys, Self::Reboot, Self::Away, Self::Slow, Self::RetryAfter];

    /// How it is called in a table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Down => "an hour down",
            Self::Keys => "keys forgotten",
            Self::Reboot => "all restarted within 5 minutes",
            Self::Away => "half away for 8 hours",
            Self::Slow => "slow for 10 minutes",
            Self::RetryAfter => "503 with Retry-After",
        }
    }

    /// When it is over.
    pub(crate) fn over_at(self) -> Tick {
        BEFORE
            + match self {
                Self::Down => 60 * MINUTE,
                // What follows from it is all there is to see.
                Self::Keys | Self::Reboot => 0,
                Self::Away => 8 * 60 * MINUTE,
                Self::Slow | Self::RetryAfter => 10 * MINUTE,
            }
    }

    /// When the watching ends.
    pub(crate) fn end(self) -> Tick {
        // A host that was away for eight hours needs as long again, and more.
        self.over_at() + if self == Self::Away { 3 * AFTER } else { AFTER }
    }
}

/// The `Retry-After` of [`Scenario::RetryAfter`].
pub(crate) const RETRY_AFTER: Tick = 120 * SECOND;

/// The speed of [`Scenario::Slow`].
pub(crate) const SLOW: f64 = 0.25;
