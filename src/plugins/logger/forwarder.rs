//! Sends what waits in a journal: look, send, acknowledge; back off after failures; shrink requests that are too large for
//! the server.
//!
//! One thread a stream, so that results and statuses back off apart. It sleeps without waking while nothing waits. A flush
//! sends what waits when it begins, in full requests; what comes meanwhile waits for the next period, unless it fills a
//! request. After an outage it keeps to a pace, since a whole fleet has kept lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bundle::{Batches, Bundle, Bundler, Room};
use super::{Decorations, StatusLine};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::journal::{JournalError, Position, Reader, Waiting, Writer};
use crate::line_count::LineCounter;
use crate::plugins::config::WholeQueries;
use crate::remote::api::{LOG_OVERHEAD, LogType, Payload};
use crate::remote::{Endpoint, Node, RemoteError};
use crate::secret::redact;
use crate::settings::LoggerSettings;
use crate::shutdown::{Doorbell, Shutdown};

/// At the end, what waits is still sent for so long.
const LAST_FLUSH_LIMIT: Duration = Duration::from_millis(1300);

/// A line that the server calls too large, all alone, so many times in a row may be given up.
const REFUSALS_OF_ONE_LINE: u32 = 3;

/// Tells whoever writes the journal that this thread sleeps until more has come than lies before this place.
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
    /// What lies before this place has waited since before the start.
    pub backlog_end: Position,
    /// Called before this thread sleeps.
    pub ask_to_be_woken: AskToBeWoken,
    /// Rung when lines wait: whoever keeps the journal within its limits sleeps while none do.
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
    /// At `logger_drain_bytes_per_second`: after an outage, or a start with a backlog, until nothing waits.
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

/// How a stream is sent: what was learnt of the server, and where it is.
struct Sending {
    bundler: Bundler,
    /// Lines a request, halved by each 413, 408 and time-out, doubled by each success; `None` is as the flags have it.
    lines: Option<usize>,
    /// How often the server refused one line alone.
    refusals: u32,
}

impl Forwarder {
    /// Works until the end is asked for.
    pub fn run(&self) {
        let logger = self.settings();
        let (step, max) = backoff_bounds(&logger);
        let mut backoff = Backoff::new(step, max);
        let mut sending = Sending { bundler: Bundler::default(), lines: None, refusals: 0 };
        let mut next_flush = Instant::now();
        let mut drain = Drain::Freely;
        if self.has_backlog() {
            // What a fleet has kept through an outage is not sent by all hosts at the same moment.
            next_flush += logger.period.mul_f64(fastrand::f64());
            drain = Drain::Paced;
        }
        while !self.shutdown.requested() {
            // In this order: a line that comes between the two looks lies behind the place that is told.
            let seen = self.journal.end().unwrap_or_default();
            if self.journal.is_empty() {
                self.journal.take_back();
                (self.ask_to_be_woken)(seen);
                self.bell.wait(None);
                continue;
            }
            self.keeper.ring();
            if self.shutdown.wait(next_flush.saturating_duration_since(Instant::now())) {
                break;
            }
            let outcome = self.flush(&mut sending, drain, None);
            // Until the next flush nothing is on its way: what waits in memory may be written.
            self.journal.take_back();
            drain = if outcome.is_ok() { Drain::Freely } else { Drain::Paced };
            self.report_losses();
            let logger = self.settings();
            let (step, max) = backoff_bounds(&logger);
            backoff.set_bounds(step, max);
            next_flush = Instant::now() + self.wait_after(outcome, &logger, &mut backoff);
        }
        // What can be sent within a moment is; the rest is safe.
        if backoff.failures() == 0 && self.last_flush.load(Ordering::SeqCst) {
            let _ = self.flush(&mut sending, Drain::Freely, Some(Instant::now() + LAST_FLUSH_LIMIT));
        }
    }

    /// Whether lines wait since before the start.
    fn has_backlog(&self) -> bool {
        let oldest = match self.journal.peek(1) {
            Ok(Waiting::Records(chunk)) => chunk.start(),
            Ok(Waiting::Large(record)) => record.start(),
            Ok(Waiting::Nothing) | Err(_) => return false,
        };
        (oldest.file, oldest.offset) < (self.backlog_end.file, self.backlog_end.offset)
    }

    /// Says what changed, and answers how long to wait until the next flush.
    fn wait_after(&self, outcome: Result<(), FlushError>, logger: &LoggerSettings, backoff: &mut Backoff) -> Duration {
        let name = self.log_type.as_str();
        match outcome {
            Ok(()) => {
                let failures = backoff.succeeded();
                if failures > 0 {
                    log::info!("{name} lines are delivered again, after {failures} failures");
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
                let wait = backoff.failed_in_a_fleet().max(retry_after(&error).unwrap_or_default());
                self.node.back_off(Endpoint::Logger, wait);
                if backoff.failures() == 1 {
                    log::warn!("{name} lines can't be delivered and are kept: {}", chain(&error));
                } else {
                    let error = chain(&error);
                    log::debug!("{name} lines still can't be delivered: {error}; next attempt after {wait:?}");
                }
                wait
            }
        }
    }

    /// Sends what waits now, and what fills requests behind it, until one fails or `deadline` is over.
    fn flush(&self, sending: &mut Sending, drain: Drain, deadline: Option<Instant>) -> Result<(), FlushError> {
        self.journal.keep_within(&self.settings().limits());
        // What can't be read has no end that is known: what waits in memory goes all the same.
        let goal = self.journal.end().ok();
        let mut waiting = u64::MAX;
        loop {
            let began = Instant::now();
            let logger = self.settings();
            let room = self.room(&logger, sending.lines);
            let Some(bundle) = sending.bundler.next(&self.journal, &room)? else { return Ok(()) };
            // What trickles in is not worth a request each time.
            let came_later = goal.is_some_and(|goal| bundle.start >= goal) && !bundle.start.is_in_memory();
            if (came_later && !bundle.is_full) || self.over(deadline) {
                return Ok(());
            }
            let bytes = bundle.data.len();
            self.send(bundle, &logger, sending)?;
            let before = std::mem::replace(&mut waiting, self.journal.waiting_lines());
            // Not when lines come as fast as they go: a pace that lets the backlog grow would lose them.
            if let (Drain::Paced, Some(pace)) = (drain, logger.drain_pace)
                && waiting < before
            {
                let due = began + Duration::from_secs_f64(bytes as f64 / pace as f64);
                if self.shutdown.wait(due.saturating_duration_since(Instant::now())) {
                    return Ok(());
                }
            }
        }
    }

    fn room(&self, logger: &LoggerSettings, lines: Option<usize>) -> Room {
        Room {
            lines: lines.unwrap_or(logger.max_lines).min(logger.max_lines),
            bytes: logger.max_request_bytes.saturating_sub(LOG_OVERHEAD),
            line_bytes: logger.max_line_bytes,
            batches: if self.whole_queries.expands(logger.expand_events) { Batches::Expand } else { Batches::Keep },
        }
    }

    /// Sends one request, and removes its lines when the server has them.
    fn send(&self, bundle: Bundle, logger: &LoggerSettings, sending: &mut Sending) -> Result<(), FlushError> {
        if self.log_type == LogType::Status && logger.status_disabled {
            self.journal.discard(bundle.end);
            return Ok(());
        }
        if bundle.lines > 0 {
            match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &bundle.data)) {
                Ok(_) => sending.accepted(logger.max_lines),
                Err(error) if error.status() == Some(413) => {
                    return self.too_large(&bundle, logger, sending, error);
                }
                Err(error) => {
                    if error.says_too_slow() {
                        sending.halve(bundle.lines);
                    }
                    return Err(error.into());
                }
            }
        }
        self.settle(&bundle);
        Ok(())
    }

    /// The server has a request's lines: they are removed, and those that have no place in any are set aside.
    fn settle(&self, bundle: &Bundle) {
        for rejected in &bundle.rejected {
            self.journal.set_aside(&rejected.line, rejected.lines, &rejected.reason);
        }
        self.journal.acknowledge(bundle.end);
    }

    /// The server calls a request too large: the next one has half the lines, down to one.
    ///
    /// One line alone that is refused again and again is set aside only when the server takes the one behind it and
    /// then refuses it once more: there are servers that answer 413 when their own storage fails, and then nothing is
    /// wrong with the line.
    fn too_large(
        &self,
        bundle: &Bundle,
        logger: &LoggerSettings,
        sending: &mut Sending,
        error: RemoteError,
    ) -> Result<(), FlushError> {
        if bundle.lines > 1 {
            sending.halve(bundle.lines);
            log::debug!("{}: going on with {} lines a request", chain(&error), bundle.lines / 2);
            return Ok(());
        }
        sending.lines = Some(1);
        sending.refusals = sending.refusals.saturating_add(1);
        if sending.refusals < REFUSALS_OF_ONE_LINE {
            return Err(error.into());
        }
        let room = Room { lines: 2, bytes: usize::MAX, ..self.room(logger, None) };
        let Some(two) = sending.bundler.next(&self.journal, &room)? else { return Err(error.into()) };
        // Still the same one in front, and not one that took its place when the oldest were dropped.
        let next = two.data.strip_prefix(&bundle.data).and_then(|rest| rest.strip_prefix(','));
        let Some(next) = next.filter(|_| two.start == bundle.start) else { return Err(error.into()) };
        self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, next))?;
        sending.accepted(logger.max_lines);
        // Once more: the server may have recovered between the two.
        match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &bundle.data)) {
            Ok(_) => {}
            Err(again) if again.status() == Some(413) => {
                let reason = "the server refuses it alone as too large, and takes others";
                self.journal.set_aside(bundle.data.as_bytes(), 1, reason);
            }
            Err(again) => return Err(again.into()),
        }
        for rejected in &two.rejected {
            self.journal.set_aside(&rejected.line, rejected.lines, &rejected.reason);
        }
        self.journal.acknowledge(two.end);
        Ok(())
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

impl Sending {
    fn halve(&mut self, lines: usize) {
        self.lines = Some((lines / 2).max(1));
    }

    fn accepted(&mut self, max_lines: usize) {
        self.refusals = 0;
        self.lines = self.lines.map(|lines| lines.saturating_mul(2)).filter(|&lines| lines < max_lines);
    }
}

/// The back-off's step and maximum: none (always the period) when `logger_tls_backoff_max` is 0.
fn backoff_bounds(logger: &LoggerSettings) -> (Duration, Duration) {
    let max = logger.backoff_max.unwrap_or(logger.period).max(logger.period);
    (logger.period, max)
}

fn retry_after(error: &FlushError) -> Option<Duration> {
    match error {
        FlushError::Remote(error) => error.retry_after(),
        FlushError::Journal(_) => None,
    }
}
