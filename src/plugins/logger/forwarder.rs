//! Sends what waits in a journal: look, send, acknowledge; back off after failures. What the server refuses is searched
//! through for the lines that it doesn't take, and for the size that it does: [`isolation`](crate::plugins::isolation)
//! decides.
//!
//! One thread a stream, so that results and statuses back off apart. It sleeps without waking while nothing waits. A
//! flush sends what waits when it begins, in full requests; what comes meanwhile waits for the next period, unless it
//! fills a request. After an outage it sends its backlog slowly ([`Backlog`]), since a whole fleet has kept lines.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::Level;

use super::backlog::Backlog;
use super::bundle::{Batches, Bundle, Bundler, Room};
use super::window::Window;
use super::{Decorations, StatusLine};
use crate::chain::chain;
use crate::journal::{JournalError, Position, Reader, Writer};
use crate::line_count::LineCounter;
use crate::logging::Streak;
use crate::plugins::config::WholeQueries;
use crate::plugins::isolation::{Step, Then};
use crate::policy::{self, Backoff, Chance, LONGEST_BACKOFF, RetryAfter, WakeUp};
use crate::remote::api::{LOG_OVERHEAD, LogType, Payload};
use crate::remote::{Blame, Endpoint, Node, RemoteError};
use crate::secret::redact;
use crate::settings::LoggerSettings;
use crate::shutdown::{Doorbell, Shutdown};
use crate::words::{Span, counted};

/// For how long what waits is still sent at the end.
const LAST_FLUSH_LIMIT: Duration = Duration::from_millis(1300);

/// Lines that are refused alone, with nothing to compare them with, are sent again after waits that grow up to this.
const REST_MAX: Duration = Duration::from_secs(3600);

/// Tells the journal's writer that this thread sleeps until more has come than lies before this place.
pub type AskToBeWoken = Box<dyn Fn(Position) + Send + Sync>;

/// Sends one stream's lines.
pub struct Forwarder {
    /// Which stream.
    pub log_type: LogType,
    /// Where its lines wait.
    pub journal: Arc<Reader<LineCounter>>,
    /// As whom they are sent.
    pub node: Arc<Node>,
    /// Rung when a line comes, and at the end.
    pub bell: Arc<Doorbell>,
    /// Rung when another endpoint works again, and at the end.
    pub recovery: Arc<Doorbell>,
    /// What lies before this place has waited since before the start.
    pub backlog_end: Position,
    /// Called before this thread sleeps.
    pub ask_to_be_woken: AskToBeWoken,
    /// Rung when lines wait: the thread that keeps the journal within its limits sleeps while none do.
    pub keeper: Arc<Doorbell>,
    /// Asks for the end.
    pub shutdown: Shutdown,
    /// Where the server is told of losses, as a status line of osqueryd's would tell it.
    pub statuses: Arc<Writer<LineCounter>>,
    /// What such a line is decorated with.
    pub decorations: Arc<Decorations>,
    /// Knows whether batches are to become event lines.
    pub whole_queries: Arc<WholeQueries>,
    /// Whether what waits at the end is to be sent, as far as a moment allows.
    pub last_flush: Arc<AtomicBool>,
}

/// What happens at the end to lines that wait. They are safe either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastFlush {
    /// osqueryd ends: they are sent, as far as a moment allows.
    Try,
    /// Another worker sends them.
    Skip,
}

/// How fast a flush goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// As fast as the server takes lines.
    Freely,
    /// As [`Backlog`] allows: after an outage, or a start with lines that wait, until none are old.
    Paced,
}

/// Why a flush ended early.
#[derive(Debug, thiserror::Error)]
enum FlushError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushed {
    /// What waited is delivered.
    All,
    /// But for lines that are refused alone, and nothing is left to compare them with.
    AllButSuspects,
}

/// How a stream is sent: what was learnt of the server, and where it is.
struct Sending {
    bundler: Bundler,
    /// Lines a request, where the server doesn't take as many as the flags allow; doubled by each success.
    lines: Option<usize>,
    /// The search among lines that the server has refused.
    window: Option<Window>,
    /// Whether the server has taken anything since the last wait.
    has_taken: bool,
    /// Until when refused lines rest, unless others come.
    rest_until: Option<Instant>,
    failures: Streak,
    rests: Backoff,
    backlog: Backlog,
    /// When all that waited was sent last.
    caught_up: CaughtUp,
}

/// A moment that can lie before the start of this process. By our own clock: what lines say of their time can be
/// anything.
#[derive(Clone, Copy)]
struct CaughtUp {
    seen: Instant,
    before: Duration,
}

impl CaughtUp {
    fn now() -> Self {
        Self { seen: Instant::now(), before: Duration::ZERO }
    }

    fn age(self) -> Duration {
        self.seen.elapsed().saturating_add(self.before)
    }
}

impl Forwarder {
    /// Works until the end is asked for.
    pub fn run(&self) {
        let logger = self.settings();
        let (step, max) = backoff_bounds(&logger);
        let mut backoff = Backoff::new(step, max);
        let mut sending = Sending::new(step);
        let mut next_flush = Instant::now();
        let mut drain = Drain::Freely;
        if self.has_backlog() {
            // What a fleet has kept through an outage is not sent by all hosts at the same moment.
            next_flush += logger.period.mul_f64(fastrand::f64());
            drain = Drain::Paced;
            let written = self.journal.oldest_written().and_then(|time| time.elapsed().ok());
            sending.caught_up.before = written.unwrap_or_default();
        }
        while !self.shutdown.requested() {
            // In this order: a line that comes between the two looks lies behind the place that is told.
            let seen = self.journal.end().unwrap_or_default();
            if self.journal.is_empty() {
                sending.caught_up = CaughtUp::now();
                self.journal.take_back();
                (self.ask_to_be_woken)(seen);
                self.bell.wait(None);
                continue;
            }
            if let Some(until) = sending.rest_until.take() {
                (self.ask_to_be_woken)(seen);
                self.bell.wait(Some(until));
                continue;
            }
            self.keeper.ring();
            self.wait_until(next_flush, backoff.failures() > 0);
            if self.shutdown.requested() {
                break;
            }
            // What worked again before has had its effect.
            self.recovery.wait(Some(Instant::now()));
            let outcome = self.flush(&mut sending, drain, None);
            if outcome.is_err() {
                sending.backlog.failed(Instant::now());
            }
            // Until the next flush nothing is on its way: what waits in memory may be written.
            self.journal.take_back();
            let is_done = outcome.is_ok() && !sending.backlog.is_draining();
            if is_done {
                sending.caught_up = CaughtUp::now();
            }
            drain = if is_done { Drain::Freely } else { Drain::Paced };
            self.report_losses();
            let logger = self.settings();
            let (step, max) = backoff_bounds(&logger);
            backoff.set_bounds(step, max);
            let wait = self.wait_after(outcome, &logger, &mut backoff, &mut sending);
            let varies = sending.backlog.is_draining() && backoff.failures() == 0;
            next_flush = Instant::now() + if varies { policy::Drain::period(wait, &mut Chance::new()) } else { wait };
        }
        // What can be sent within a moment is; the rest is safe.
        if backoff.failures() == 0 && self.last_flush.load(Ordering::SeqCst) {
            let _ = self.flush(&mut sending, Drain::Freely, Some(Instant::now() + LAST_FLUSH_LIMIT));
        }
    }

    /// Waits for the next flush. While the last one had failed, it comes sooner when another endpoint works again.
    fn wait_until(&self, next_flush: Instant, has_failed: bool) {
        let mut at = next_flush;
        while !self.shutdown.requested() && Instant::now() < at {
            self.recovery.wait(Some(at));
            let left = next_flush.saturating_duration_since(Instant::now());
            // Once: of several endpoints that work again each would be another chance to be among the first.
            if has_failed && at == next_flush {
                at = Instant::now() + WakeUp.wait(left, &mut Chance::new());
            }
        }
    }

    /// Whether lines wait since before the start.
    fn has_backlog(&self) -> bool {
        let oldest = self.journal.peek(1).ok().and_then(|waiting| waiting.start());
        let Some(oldest) = oldest else { return false };
        (oldest.file, oldest.offset) < (self.backlog_end.file, self.backlog_end.offset)
    }

    /// Says what changed, and answers how long to wait until the next flush.
    fn wait_after(
        &self,
        outcome: Result<Flushed, FlushError>,
        logger: &LoggerSettings,
        backoff: &mut Backoff,
        sending: &mut Sending,
    ) -> Duration {
        let name = self.log_type.as_str();
        if std::mem::take(&mut sending.has_taken) && outcome.is_err() {
            // Another row of failures.
            backoff.succeeded();
            sending.failures.succeeded();
        }
        match outcome {
            Ok(flushed) => {
                match flushed {
                    Flushed::All => drop(sending.rests.succeeded()),
                    Flushed::AllButSuspects => {
                        sending.rest_until = Some(Instant::now() + sending.rests.failed(&mut Chance::new()));
                    }
                }
                backoff.succeeded();
                if let Some(failures) = sending.failures.succeeded() {
                    log::info!("{name} lines are delivered again, {failures}");
                }
                logger.period
            }
            Err(_) if self.shutdown.requested() => Duration::ZERO,
            // Not the server's fault.
            Err(FlushError::Journal(error)) => {
                log::debug!("{error}");
                logger.period
            }
            Err(error) => {
                let wait = wait_after_failure(&error, backoff);
                self.node.back_off(Endpoint::Logger, wait);
                let failed = sending.failures.failed(Level::Warn);
                let (waiting, pause) = (counted(self.journal.waiting_lines(), "line"), Span(wait));
                let (error, then) = (chain(&error), format!("{waiting} waiting, next attempt after {pause}"));
                log::log!(failed.level, "{name} lines can't be delivered and are kept: {error}{failed}; {then}");
                wait
            }
        }
    }

    /// Sends what waits now, and what fills requests behind it, until one fails or `deadline` is over.
    fn flush(&self, sending: &mut Sending, drain: Drain, deadline: Option<Instant>) -> Result<Flushed, FlushError> {
        self.journal.keep_within(&self.settings().limits());
        // What can't be read has no end that is known: what waits in memory goes all the same.
        let goal = self.journal.end().ok();
        let mut left = match drain {
            Drain::Freely => None,
            Drain::Paced => self.allowed(sending),
        };
        sending.window = sending.window.take().and_then(|mut window| window.waited(&self.journal).then_some(window));
        while left != Some(0) {
            let logger = self.settings();
            if sending.window.is_some() {
                match self.search(sending, &logger)? {
                    Searched::Rests => return Ok(Flushed::AllButSuspects),
                    Searched::GoesOn if self.over(deadline) => return Ok(Flushed::All),
                    Searched::GoesOn => continue,
                }
            }
            let mut room = self.room(&logger, sending.lines);
            room.lines = left.map_or(room.lines, |left| room.lines.min(usize::try_from(left).unwrap_or(usize::MAX)));
            let Some(bundle) = sending.bundler.next(&self.journal, &room)? else { return Ok(Flushed::All) };
            // What trickles in is not worth a request each time.
            let came_later = goal.is_some_and(|goal| bundle.start >= goal) && !bundle.start.is_in_memory();
            if (came_later && !bundle.is_full) || self.over(deadline) {
                return Ok(Flushed::All);
            }
            let (began, before) = (Instant::now(), self.journal.counts().delivered);
            self.send(bundle, &logger, sending)?;
            let delivered = self.journal.counts().delivered.saturating_sub(before);
            if delivered > 0 {
                sending.backlog.answered(delivered, began.elapsed(), Instant::now());
                left = left.map(|left| left.saturating_sub(delivered));
            }
        }
        Ok(Flushed::All)
    }

    /// How many lines may go with this flush; `None` is all.
    fn allowed(&self, sending: &mut Sending) -> Option<u64> {
        let (waiting, period) = (self.journal.waiting_lines(), self.settings().period);
        sending.backlog.allows(waiting, sending.caught_up.age(), period, Instant::now())
    }

    fn room(&self, logger: &LoggerSettings, lines: Option<usize>) -> Room {
        Room {
            lines: lines.unwrap_or(logger.max_lines).min(logger.max_lines),
            bytes: logger.max_request_bytes.saturating_sub(LOG_OVERHEAD),
            line_bytes: logger.max_line_bytes,
            batches: if self.whole_queries.expands(logger.expand_events) { Batches::Expand } else { Batches::Keep },
        }
    }

    /// Sends one request, and removes its lines when the server has them. When it refuses them, a search begins.
    fn send(&self, bundle: Bundle, logger: &LoggerSettings, sending: &mut Sending) -> Result<(), FlushError> {
        if self.log_type == LogType::Status && logger.status_disabled {
            self.journal.discard(bundle.end);
            return Ok(());
        }
        if !bundle.ends.is_empty() {
            match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &bundle.data)) {
                Ok(_) => sending.accepted(logger.max_lines),
                Err(error) if error.blame() == Blame::Nothing => return Err(error.into()),
                Err(error) => {
                    let all = 0..bundle.ends.len();
                    let window = sending.window.insert(Window::new(bundle, logger.max_lines));
                    return failed(window, all, error).map(drop);
                }
            }
        }
        for rejected in &bundle.rejected {
            self.journal.set_aside(&rejected.line, rejected.lines, &rejected.reason);
        }
        self.journal.acknowledge(bundle.end);
        sending.bundler.recycle(bundle);
        Ok(())
    }

    /// The next step among lines that the server has refused.
    fn search(&self, sending: &mut Sending, logger: &LoggerSettings) -> Result<Searched, FlushError> {
        let Some(window) = sending.window.as_mut() else { return Ok(Searched::GoesOn) };
        let room = self.room(logger, None);
        match window.next(&room) {
            Step::Send(lines) => {
                let payload = Payload::Lines(self.log_type, window.data(&lines));
                match self.node.send(Endpoint::Logger, payload) {
                    Ok(_) => {
                        sending.has_taken = true;
                        window.taken(lines);
                    }
                    Err(error) => return failed(window, lines, error),
                }
            }
            Step::More => window.grow(&mut sending.bundler, &self.journal, &room)?,
            Step::Rest => return Ok(Searched::Rests),
            Step::SetAside(_) => {}
            Step::Over => {
                // What was set aside was no matter of size.
                let size = Some(window.size()).filter(|&size| window.set_aside == 0 && size < logger.max_lines);
                window.settle(&self.journal);
                (sending.window, sending.lines) = (None, size);
                return Ok(Searched::GoesOn);
            }
        }
        window.settle(&self.journal);
        Ok(Searched::GoesOn)
    }

    /// Puts what was said of lost results among the status lines, for the server's eyes. Not of lost status lines:
    /// what is lost would make more of it.
    fn report_losses(&self) {
        let losses = self.journal.take_losses();
        let settings = self.node.flags.current();
        if losses.is_empty() || settings.logger.status_disabled || self.log_type == LogType::Status {
            return;
        }
        let identifier = self.node.host.identifier(&settings.identity).unwrap_or_default();
        let version = self.node.host.version().unwrap_or_default();
        let line = |message: String| {
            let line = StatusLine::own_error(&identifier, &redact(&message));
            let decoration = self.decorations.decoration(line.unix_time(), settings.logger.decorations);
            line.into_log_line(&version, &decoration)
        };
        self.statuses.append_all(losses.into_iter().map(line));
    }

    fn over(&self, deadline: Option<Instant>) -> bool {
        match deadline {
            Some(deadline) => Instant::now() >= deadline,
            None => self.shutdown.requested(),
        }
    }

    fn settings(&self) -> LoggerSettings {
        self.node.flags.fresh().logger.clone()
    }
}

/// Where a search stands.
enum Searched {
    GoesOn,
    /// Until other lines come, or for a while.
    Rests,
}

/// These lines had no success: what follows. An error is what is to be waited for.
fn failed(window: &mut Window, lines: Range<usize>, error: RemoteError) -> Result<Searched, FlushError> {
    match window.failed(lines, &error) {
        Then::GoOn => Ok(Searched::GoesOn),
        Then::Wait => Err(error.into()),
        Then::Rest => Ok(Searched::Rests),
    }
}

impl Sending {
    fn new(period: Duration) -> Self {
        Self {
            bundler: Bundler::default(),
            lines: None,
            window: None,
            has_taken: false,
            rest_until: None,
            failures: Streak::default(),
            rests: Backoff::new(period, REST_MAX),
            backlog: Backlog::default(),
            caught_up: CaughtUp::now(),
        }
    }

    fn accepted(&mut self, max_lines: usize) {
        self.has_taken = true;
        self.lines = self.lines.map(|lines| lines.saturating_mul(2)).filter(|&lines| lines < max_lines);
    }
}

/// The back-off's step and maximum: none (always the period) when `logger_tls_backoff_max` is 0.
fn backoff_bounds(logger: &LoggerSettings) -> (Duration, Duration) {
    let max = logger.backoff_max.unwrap_or(logger.period).min(LONGEST_BACKOFF);
    (logger.period, max.max(logger.period))
}

/// The wait after a failed flush.
fn wait_after_failure(error: &FlushError, backoff: &mut Backoff) -> Duration {
    let mut chance = Chance::new();
    let asked = match error {
        FlushError::Remote(error) => error.retry_after(),
        FlushError::Journal(_) => None,
    };
    let asked = RetryAfter::spread(asked, &mut chance).unwrap_or_default();
    backoff.failed(&mut chance).max(asked)
}
