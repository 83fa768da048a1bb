//! Sends what waits in a buffer: peek, send, acknowledge; back off after failures; shrink batches that are too
//! large for the server.
//!
//! One thread a stream, so that results and statuses back off apart. It sleeps without waking while nothing waits;
//! when a line comes it waits until the period since the last flush is over, and then doesn't stop before the
//! buffer is empty. After an outage it keeps to a pace, since a whole fleet has kept lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::buffer::{Batch, Buffer, BufferError, Rejected};
use crate::decorations::Decorations;
use crate::remote::api::{self, AnswerError, LOG_OVERHEAD, LogType, Payload};
use crate::remote::node::Node;
use crate::remote::status_line::StatusLine;
use crate::remote::{Endpoint, RemoteError};
use crate::secret::redact;
use crate::settings::LoggerSettings;
use crate::shutdown::{Doorbell, Shutdown};

/// At the end, what waits is still sent for so long.
const LAST_FLUSH_LIMIT: Duration = Duration::from_millis(1500);

/// A line that the server calls too large, all alone, so many times in a row may be given up.
const REFUSALS_OF_ONE_LINE: u32 = 3;

/// Sends one stream's lines.
pub struct Forwarder {
    /// Which stream.
    pub log_type: LogType,
    /// Where its lines wait.
    pub buffer: Arc<Buffer>,
    /// As whom they are sent.
    pub node: Arc<Node>,
    /// Rung by the buffer when a line comes, and at the end.
    pub bell: Arc<Doorbell>,
    /// Asks for the end.
    pub shutdown: Shutdown,
    /// Where the server is told of losses, as a status line of osqueryd's would tell it.
    pub statuses: Arc<Buffer>,
    /// What such a line is decorated with.
    pub decorations: Arc<Decorations>,
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
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// What a flush may put into one request, after the server has called some too large.
struct Batching {
    /// Halved by each 413, 408 and time-out, doubled by each success; `None` is as the flags have it.
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
        let mut batching = Batching { lines: None, refusals: 0 };
        let mut next_flush = Instant::now();
        let mut drain = Drain::Freely;
        if !self.buffer.is_empty() && self.buffer.found() > 0 {
            // What a fleet has kept through an outage is not sent by all hosts at the same moment.
            next_flush += logger.period.mul_f64(fastrand::f64());
            drain = Drain::Paced;
        }
        while !self.shutdown.requested() {
            if self.buffer.is_empty() {
                self.bell.wait(None);
                continue;
            }
            self.buffer.take_back();
            if self.shutdown.wait(next_flush.saturating_duration_since(Instant::now())) {
                break;
            }
            let outcome = self.flush(&mut batching, drain, None);
            drain = if outcome.is_ok() { Drain::Freely } else { Drain::Paced };
            self.report_losses();
            let logger = self.settings();
            let (step, max) = backoff_bounds(&logger);
            backoff.set_bounds(step, max);
            next_flush = Instant::now() + self.wait_after(outcome, &logger, &mut backoff);
        }
        // What can be sent within a moment is; the rest is safe.
        if backoff.failures() == 0 && self.last_flush.load(Ordering::SeqCst) {
            let _ = self.flush(&mut batching, Drain::Freely, Some(Instant::now() + LAST_FLUSH_LIMIT));
        }
        self.buffer.close();
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
                self.buffer.shrink();
                logger.period
            }
            Err(_) if self.shutdown.requested() => Duration::ZERO,
            // Not the server's fault, and said where it happened.
            Err(FlushError::Buffer(error)) => {
                log::debug!("{error}");
                logger.period
            }
            Err(error) => {
                let wait = backoff.failed_in_a_fleet().max(retry_after(&error).unwrap_or_default());
                self.node.transport.stats.back_off(Endpoint::Logger, wait);
                if backoff.failures() == 1 {
                    log::warn!("{name} lines can't be delivered and are kept: {error}");
                } else {
                    log::debug!("{name} lines still can't be delivered: {error}; next attempt after {wait:?}");
                }
                wait
            }
        }
    }

    /// Sends batches until nothing waits, one fails, or `deadline` is over.
    fn flush(&self, batching: &mut Batching, drain: Drain, deadline: Option<Instant>) -> Result<(), FlushError> {
        let mut waiting = u64::MAX;
        loop {
            let began = Instant::now();
            let logger = self.settings();
            let batch = self.buffer.peek(
                batching.lines.unwrap_or(logger.max_lines).min(logger.max_lines),
                logger.max_request_bytes.saturating_sub(LOG_OVERHEAD),
            )?;
            if batch.lines.is_empty() || self.over(deadline) {
                return Ok(());
            }
            let bytes: usize = batch.lines.iter().map(String::len).sum();
            self.send(batch, &logger, batching)?;
            let before = std::mem::replace(&mut waiting, self.buffer.waiting());
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

    /// Sends one batch, and removes it when the server has it.
    fn send(&self, batch: Batch, logger: &LoggerSettings, batching: &mut Batching) -> Result<(), FlushError> {
        if self.log_type == LogType::Status && logger.status_disabled {
            self.buffer.discard(&batch);
            return Ok(());
        }
        let rejected = rejected(&batch, logger);
        let lines: Vec<&String> = batch
            .lines
            .iter()
            .enumerate()
            .filter(|(index, _)| rejected.binary_search_by_key(index, |one| one.index).is_err())
            .map(|(_, line)| line)
            .collect();
        if !lines.is_empty() {
            match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &lines)) {
                Ok(_) => batching.accepted(logger.max_lines),
                Err(error) if error.status() == Some(413) => {
                    return self.too_large(&batch, lines.len(), logger, batching, error);
                }
                Err(error) => {
                    if error.says_too_slow() {
                        batching.halve(lines.len());
                    }
                    return Err(error.into());
                }
            }
        }
        self.buffer.acknowledge(&batch, &rejected);
        Ok(())
    }

    /// The server calls a request too large: the next one has half the lines, down to one.
    ///
    /// One line alone that is refused again and again is set aside only when the server takes the one behind it and
    /// then refuses it once more: there are servers that answer 413 when their own storage fails, and then nothing is
    /// wrong with the line.
    fn too_large(
        &self,
        batch: &Batch,
        lines: usize,
        logger: &LoggerSettings,
        batching: &mut Batching,
        error: RemoteError,
    ) -> Result<(), FlushError> {
        if lines > 1 {
            batching.halve(lines);
            log::debug!("{error}: going on with {} lines a request", lines / 2);
            return Ok(());
        }
        batching.lines = Some(1);
        batching.refusals = batching.refusals.saturating_add(1);
        if batching.refusals < REFUSALS_OF_ONE_LINE {
            return Err(error.into());
        }
        let two = self.buffer.peek(2, usize::MAX)?;
        match two.lines.as_slice() {
            // Still the same one in front, and not one that took its place when the oldest were dropped.
            [first, next] if batch.lines.first() == Some(first) && fault(next, logger).is_none() => {
                self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &[next]))?;
                batching.accepted(logger.max_lines);
                // Once more: the server may have recovered between the two.
                let rejected = match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &[first])) {
                    Ok(_) => Vec::new(),
                    Err(again) if again.status() == Some(413) => {
                        let reason = "the server refuses it alone as too large, and takes others".to_owned();
                        vec![Rejected { index: 0, reason }]
                    }
                    Err(again) => return Err(again.into()),
                };
                self.buffer.acknowledge(&two, &rejected);
                Ok(())
            }
            _ => Err(error.into()),
        }
    }

    /// Puts what was said of lost results among the status lines, for the server's eyes. Not of lost status lines:
    /// what is lost would make more of it.
    fn report_losses(&self) {
        let losses = self.buffer.take_losses();
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
        let lines: Vec<String> = losses.into_iter().map(line).collect();
        self.statuses.append(lines.as_slice(), &settings.logger.limits());
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

impl Batching {
    fn halve(&mut self, lines: usize) {
        self.lines = Some((lines / 2).max(1));
    }

    fn accepted(&mut self, max_lines: usize) {
        self.refusals = 0;
        self.lines = self.lines.map(|lines| lines.saturating_mul(2)).filter(|&lines| lines < max_lines);
    }
}

/// Why a line has no place in any request.
fn fault(line: &str, logger: &LoggerSettings) -> Option<String> {
    if line.len() > logger.max_line_bytes {
        return Some(format!("it has more than {} bytes (logger_tls_max_linesize)", logger.max_line_bytes));
    }
    (!api::is_json(line)).then(|| "it is no JSON".to_owned())
}

/// The lines of a batch that have no place in any request, in order.
fn rejected(batch: &Batch, logger: &LoggerSettings) -> Vec<Rejected> {
    let faulty = |(index, line): (usize, &String)| fault(line, logger).map(|reason| Rejected { index, reason });
    batch.lines.iter().enumerate().filter_map(faulty).collect()
}

/// The back-off's step and maximum: none (always the period) when `logger_tls_backoff_max` is 0.
fn backoff_bounds(logger: &LoggerSettings) -> (Duration, Duration) {
    let max = logger.backoff_max.unwrap_or(logger.period).max(logger.period);
    (logger.period, max)
}

fn retry_after(error: &FlushError) -> Option<Duration> {
    match error {
        FlushError::Remote(RemoteError::Answer { source, .. }) => AnswerError::retry_after(source),
        _ => None,
    }
}
