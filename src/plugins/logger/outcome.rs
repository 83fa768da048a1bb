//! How a flush can end, and what follows from it. Pure.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::window::Window;
use crate::journal::JournalError;
use crate::plugins::isolation::Then;
use crate::policy::{Backoff, Chance, LONGEST_BACKOFF, RetryAfter, WakeUp};
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

/// How long to wait until the next flush. `has_taken`: the server has taken something on the way. `is_ending`: none follows a
/// failed one.
pub(super) fn wait_after(
    outcome: &Result<(), FlushError>,
    has_taken: bool,
    is_ending: bool,
    period: Duration,
    backoff: &mut Backoff,
    chance: &mut Chance,
) -> Duration {
    if has_taken || outcome.is_ok() {
        // What fails from now on is another row of failures.
        backoff.succeeded();
    }
    match outcome {
        Err(_) if is_ending => Duration::ZERO,
        Err(FlushError::Remote(error)) => {
            let asked = RetryAfter::spread(error.retry_after(), chance).unwrap_or_default();
            backoff.failed(chance).max(asked)
        }
        // A journal that can't be read is not the server's fault.
        Ok(()) | Err(FlushError::Journal(_)) => period,
    }
}

/// When a wait until `at` ends that was broken off `now`, since another endpoint works again. The wait after a flush that
/// had failed gets shorter, once: of several endpoints that work again each would be another chance to be among the first.
pub(super) fn wait_goes_on(
    at: Instant,
    next_flush: Instant,
    has_failed: bool,
    now: Instant,
    chance: &mut Chance,
) -> Instant {
    match has_failed && at == next_flush {
        true => now + WakeUp.wait(next_flush.saturating_duration_since(now), chance),
        false => at,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::backlog::Snapshots;
    use super::super::bundle::{Batches, Bundler, Room};
    use super::*;
    use crate::journal::{Reader, Rejected, Writer};
    use crate::line_count::LineCounter;
    use crate::remote::api::AnswerError;
    use crate::remote::{Endpoint, RequestError};
    use crate::settings::{OwnFlags, Settings};

    const SECOND: Duration = Duration::from_secs(1);
    const PERIOD: Duration = Duration::from_secs(10);

    fn refusal(status: u16, retry_after: Option<Duration>) -> RemoteError {
        let source = AnswerError::Status { status, beginning: String::new(), retry_after };
        RequestError::Answer { endpoint: Endpoint::Logger, url: String::new(), source }.into()
    }

    fn outage() -> RemoteError {
        RemoteError::BackingOff { endpoint: Endpoint::Logger, left: SECOND }
    }

    fn unreadable() -> FlushError {
        FlushError::Journal(JournalError::Overflow { source: std::io::Error::other("gone") })
    }

    /// A search among three lines, where the server has just taken others or not.
    fn window(is_up: bool) -> (Window, Reader<LineCounter>, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let writer: Writer<LineCounter> = Writer::new(root.path().join("results"), "results", Arc::new(()));
        writer.append_all(["{}", "{}", "{}"]);
        let rejected = Arc::new(Rejected::new(root.path().to_owned()));
        let reader = Reader::new(root.path().join("results"), "results", rejected, None);
        let (bytes, batches, snapshots) = (1 << 20, Batches::Keep, Snapshots::Send);
        let room = Room { lines: 3, bytes, line_bytes: bytes, batches, snapshots };
        let mut window = Window::new(Bundler::default().next(&reader, &room).unwrap().unwrap(), 3);
        if is_up {
            window.taken_elsewhere();
        }
        (window, reader, root)
    }

    #[test]
    fn a_server_that_is_not_there_or_wants_to_be_left_alone_is_an_outage_for_all_lines() {
        assert!(FlushError::Remote(outage()).is_an_outage());
        assert!(FlushError::Remote(refusal(503, Some(SECOND))).is_an_outage());
        assert!(!FlushError::Remote(refusal(400, None)).is_an_outage(), "it may be these lines");
        assert!(!unreadable().is_an_outage());
    }

    #[test]
    fn a_refusal_is_searched_through_at_once_only_where_the_server_is_known_to_be_up() {
        let of_all = |is_up, error| failed(&mut window(is_up).0, 0..3, error);
        assert!(matches!(of_all(true, refusal(400, None)), Ok(Searched::GoesOn)));
        assert!(matches!(of_all(false, refusal(400, None)), Err(FlushError::Remote(_))));
        assert!(matches!(of_all(true, outage()), Err(FlushError::Remote(_))));
        // Each was refused alone while the server was up, and is again now that this is not known.
        let (mut window, reader, _root) = window(true);
        for line in 0..3 {
            assert!(matches!(failed(&mut window, line..line + 1, refusal(400, None)), Ok(Searched::GoesOn)));
        }
        window.waited(&reader);
        assert!(matches!(failed(&mut window, 0..1, refusal(400, None)), Ok(Searched::Rests)));
    }

    #[test]
    fn the_waits_grow_from_the_period_to_the_flag_s_maximum_and_never_below_the_period() {
        let logger = |backoff_max: Option<u64>| {
            let mut logger = Settings::new(&Default::default(), &OwnFlags::default()).0.logger;
            (logger.period, logger.backoff_max) = (PERIOD, backoff_max.map(Duration::from_secs));
            logger
        };
        for (backoff_max, most) in [(None, PERIOD), (Some(60), 6 * PERIOD), (Some(3), PERIOD)] {
            assert_eq!(backoff_bounds(&logger(backoff_max)), (PERIOD, most), "{backoff_max:?}");
        }
        assert_eq!(backoff_bounds(&logger(Some(3600))), (PERIOD, LONGEST_BACKOFF));
        let slow = LoggerSettings { period: 2 * LONGEST_BACKOFF, ..logger(Some(60)) };
        assert_eq!(backoff_bounds(&slow), (slow.period, slow.period));
    }

    /// The wait after a flush that two failed ones stand before, and the failures that are counted then.
    fn waited(outcome: Result<(), FlushError>, has_taken: bool, is_ending: bool) -> (Duration, u32) {
        let mut chance = Chance::with_seed(1);
        let mut backoff = Backoff::new(SECOND, 100 * SECOND);
        backoff.failed(&mut chance);
        backoff.failed(&mut chance);
        let wait = wait_after(&outcome, has_taken, is_ending, PERIOD, &mut backoff, &mut chance);
        (wait, backoff.failures())
    }

    #[test]
    fn a_flush_that_failed_waits_longer_each_time_and_one_that_had_success_before_begins_another_row() {
        let failed = || Err(FlushError::Remote(refusal(500, None)));
        let (wait, failures) = waited(failed(), false, false);
        assert!((9 * SECOND / 2..=9 * SECOND).contains(&wait) && failures == 3, "{wait:?}, {failures}");
        let (wait, failures) = waited(failed(), true, false);
        assert!((SECOND / 2..=SECOND).contains(&wait) && failures == 1, "{wait:?}, {failures}");
        let (wait, _) = waited(Err(FlushError::Remote(refusal(503, Some(90 * SECOND)))), false, false);
        assert!((90 * SECOND..=180 * SECOND).contains(&wait), "{wait:?}");
    }

    #[test]
    fn the_period_is_waited_after_a_success_and_after_what_is_not_the_server_s_fault() {
        assert_eq!(waited(Ok(()), false, false), (PERIOD, 0));
        assert_eq!(waited(Ok(()), true, true), (PERIOD, 0));
        assert_eq!(waited(Err(unreadable()), false, false), (PERIOD, 2), "the row of failures goes on");
        assert_eq!(waited(Err(unreadable()), true, false), (PERIOD, 0));
        assert_eq!(waited(Err(FlushError::Remote(outage())), false, true), (Duration::ZERO, 2));
    }

    #[test]
    fn a_recovery_elsewhere_shortens_the_wait_after_a_failure_and_only_once() {
        let (mut chance, now) = (Chance::with_seed(1), Instant::now());
        let next_flush = now + 300 * SECOND;
        assert_eq!(wait_goes_on(next_flush, next_flush, false, now, &mut chance), next_flush, "none had failed");
        let sooner = wait_goes_on(next_flush, next_flush, true, now, &mut chance);
        assert!(now <= sooner && sooner <= now + 60 * SECOND, "{:?}", sooner - now);
        assert_eq!(wait_goes_on(sooner, next_flush, true, now, &mut chance), sooner);
        // Woken when it is over: there is nothing more to wait for.
        assert_eq!(wait_goes_on(next_flush, next_flush, true, next_flush, &mut chance), next_flush);
    }
}
