//! How a flush can end, and what follows from it.

use std::ops::Range;
use std::time::Duration;

use super::window::Window;
use crate::journal::JournalError;
use crate::plugins::isolation::Then;
use crate::policy::{Backoff, Chance, LONGEST_BACKOFF, RetryAfter};
use crate::remote::{Blame, RemoteError};
use crate::settings::LoggerSettings;

/// Why a flush ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlushError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl FlushError {
    /// Whether the server is not there for any line, as far as this tells.
    pub(super) fn is_an_outage(&self) -> bool {
        match self {
            Self::Journal(_) => false,
            Self::Remote(error) => error.blame() == Blame::Nothing || error.retry_after().is_some(),
        }
    }
}

/// Where a search stands.
pub(super) enum Searched {
    GoesOn,
    /// Until other lines come, or for a while.
    Rests,
}

/// These lines had no success: what follows. An error is what is to be waited for.
pub(super) fn failed(window: &mut Window, lines: Range<usize>, error: RemoteError) -> Result<Searched, FlushError> {
    match window.failed(lines, &error) {
        Then::GoOn => Ok(Searched::GoesOn),
        Then::Wait => Err(error.into()),
        Then::Rest => Ok(Searched::Rests),
    }
}

/// The back-off's step and maximum: none (always the period) when `logger_tls_backoff_max` is 0.
pub(super) fn backoff_bounds(logger: &LoggerSettings) -> (Duration, Duration) {
    let max = logger.backoff_max.unwrap_or(logger.period).min(LONGEST_BACKOFF);
    (logger.period, max.max(logger.period))
}

/// The wait after a failed flush.
pub(super) fn wait_after_failure(error: &FlushError, backoff: &mut Backoff) -> Duration {
    let mut chance = Chance::new();
    let asked = match error {
        FlushError::Remote(error) => error.retry_after(),
        FlushError::Journal(_) => None,
    };
    let asked = RetryAfter::spread(asked, &mut chance).unwrap_or_default();
    backoff.failed(&mut chance).max(asked)
}
