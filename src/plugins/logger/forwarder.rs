//! Sends what waits in a journal: look, send, acknowledge; back off after failures. What the server refuses is searched
//! through for the lines that it doesn't take, and for the size that it does: [`isolation`](crate::plugins::isolation)
//! decides.
//!
//! One thread a stream, so that results and statuses back off apart. It sleeps without waking while nothing waits. A
//! flush sends what waits when it begins, in full requests; what comes meanwhile waits for the next period, unless it
//! fills a request. After an outage new lines go first, and what has waited for more than a minute ([`Backlog`]) goes
//! slowly behind them, since a whole fleet has kept lines. Status lines go in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use log::Level;

use super::backlog::{Backlog, Snapshots};
use super::bundle::{Batches, Bundle, Room};
use super::outcome::{FlushError, Searched, backoff_bounds, failed, wait_after, wait_goes_on};
use super::pace::RECENT;
use super::queue::{Next, Queue, Sending};
use super::{Decorations, StatusLine};
use crate::chain::chain;
use crate::journal::{Position, Reader, Writer};
use crate::line_count::LineCounter;
use crate::logging::Streak;
use crate::plugins::config::WholeQueries;
use crate::plugins::isolation::Step;
use crate::policy::{self, Backoff, Chance};
use crate::remote::api::{LOG_OVERHEAD, LogType, Payload};
use crate::remote::{Blame, Endpoint, Node};
use crate::secret::redact;
use crate::settings::LoggerSettings;
use crate::shutdown::{Doorbell, Shutdown};
use crate::words::{Span, counted};

/// For how long what waits is still sent at the end.
const LAST_FLUSH_LIMIT: Duration = Duration::from_millis(1300);

/// Tells the journal's writer that this thread sleeps until more has come than lies before this place.
pub type AskToBeWoken = Box<dyn Fn(Position) + Send + Sync>;

/// Sends one stream's lines.
pub struct Forwarder {
    /// Which stream.
    pub log_type: LogType,
    /// Where its lines wait.
    pub journal: Arc<Reader<LineCounter>>,
    /// Where they wait when new ones are to go before them; statuses have none.
    pub backlog: Option<Arc<Backlog>>,
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

impl Forwarder {
    /// Works until the end is asked for.
    pub fn run(&self) {
        let logger = self.settings();
        let (step, max) = backoff_bounds(&logger);
        let mut backoff = Backoff::new(step, max);
        let mut next_flush = Instant::now();
        let queue = |journal: &Arc<_>| Queue::new(Arc::clone(journal), step, next_flush);
        let mut sending = Sending {
            live: queue(&self.journal),
            backlog: self.backlog.as_ref().map(|backlog| queue(&backlog.reader)),
            has_taken: false,
            failures: Streak::default(),
        };
        if self.resume(&mut sending) {
            // What a fleet has kept through an outage is not sent by all hosts at the same moment.
            next_flush += logger.period.mul_f64(fastrand::f64());
        }
        while !self.shutdown.requested() {
            // In this order: a line that comes between the two looks lies behind the place that is told.
            let seen = self.journal.end().unwrap_or_default();
            if self.journal.is_empty() {
                sending.live.is_empty_now(Instant::now());
                self.journal.take_back();
            }
            match sending.next(Instant::now()) {
                Next::Flush => {}
                Next::Rest(until) => {
                    (self.ask_to_be_woken)(seen);
                    self.bell.wait(until);
                    continue;
                }
            }
            self.keeper.ring();
            self.wait_until(next_flush, backoff.failures() > 0);
            if self.shutdown.requested() {
                break;
            }
            // What worked again before has had its effect.
            self.recovery.wait(Some(Instant::now()));
            let outcome = self.flush(&mut sending);
            if outcome.is_err() {
                sending.queues().for_each(|queue| queue.failed(Instant::now()));
            }
            // Until the next flush nothing is on its way: what waits in memory may be written.
            sending.queues().for_each(|queue| queue.journal.take_back());
            self.report_losses();
            let logger = self.settings();
            let (step, max) = backoff_bounds(&logger);
            backoff.set_bounds(step, max);
            let wait = self.wait_after(outcome, &logger, &mut backoff, &mut sending);
            let varies = sending.queues().any(|queue| queue.is_draining()) && backoff.failures() == 0;
            next_flush = Instant::now() + if varies { policy::Drain::period(wait, &mut Chance::new()) } else { wait };
        }
        if backoff.failures() == 0 && self.last_flush.load(Ordering::SeqCst) {
            self.flush_last(&mut sending);
        }
    }

    /// Sends what can be sent within a moment; the rest is safe.
    fn flush_last(&self, sending: &mut Sending) {
        let Sending { live, backlog, has_taken, .. } = sending;
        live.begin_freely();
        live.snapshots = self.for_snapshots(backlog.as_ref());
        if live.snapshots == Snapshots::Send || self.settings().new_lines_first {
            let _ = self.flush_queue(live, None, has_taken, Some(Instant::now() + LAST_FLUSH_LIMIT));
        }
    }

    /// Whether lines wait since before the start, which then go slowly.
    fn resume(&self, sending: &mut Sending) -> bool {
        let age = |time: Option<SystemTime>| time.and_then(|time| time.elapsed().ok()).unwrap_or_default();
        let has_backlog = self.has_backlog();
        if has_backlog {
            sending.live.resume(age(self.journal.oldest_written()));
        }
        match sending.backlog.as_mut().filter(|backlog| !backlog.journal.is_empty()) {
            Some(backlog) => {
                // It was one when it came there.
                backlog.resume(self.backlog.as_ref().map_or(RECENT, |backlog| backlog.age().max(RECENT)));
                true
            }
            None => has_backlog,
        }
    }

    /// Waits for the next flush. While the last one had failed, it comes sooner when another endpoint works again.
    fn wait_until(&self, next_flush: Instant, has_failed: bool) {
        let mut at = next_flush;
        while !self.shutdown.requested() && Instant::now() < at {
            self.recovery.wait(Some(at));
            at = wait_goes_on(at, next_flush, has_failed, Instant::now(), &mut Chance::new());
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
        outcome: Result<(), FlushError>,
        logger: &LoggerSettings,
        backoff: &mut Backoff,
        sending: &mut Sending,
    ) -> Duration {
        let name = self.log_type.as_str();
        let (has_taken, is_ending) = (std::mem::take(&mut sending.has_taken), self.shutdown.requested());
        let wait = wait_after(&outcome, has_taken, is_ending, logger.period, backoff, &mut Chance::new());
        if has_taken && outcome.is_err() {
            sending.failures.succeeded();
        }
        match outcome {
            Ok(()) => {
                if let Some(failures) = sending.failures.succeeded() {
                    log::info!("{name} lines are delivered again, {failures}");
                }
            }
            Err(_) if is_ending => {}
            Err(FlushError::Journal(error)) => log::debug!("{error}"),
            Err(error) => {
                self.node.back_off(Endpoint::Logger, wait);
                let failed = sending.failures.failed(Level::Warn);
                let waiting = sending.queues().map(|queue| queue.journal.waiting_lines()).sum();
                let (waiting, pause) = (counted(waiting, "line"), Span(wait));
                let (error, then) = (chain(&error), format!("{waiting} waiting, next attempt after {pause}"));
                log::log!(failed.level, "{name} lines can't be delivered and are kept: {error}{failed}; {then}");
            }
        }
        wait
    }

    /// Sends what waits now, as far as it may go, until a request fails.
    fn flush(&self, sending: &mut Sending) -> Result<(), FlushError> {
        let logger = self.settings();
        let Sending { live, backlog, .. } = sending;
        match backlog.as_mut().zip(self.backlog.as_ref()) {
            None => drop(self.journal.keep_within(&logger.limits)),
            Some((backlog, lying)) => {
                lying.keep_within(&self.journal, &logger.limits);
                if logger.new_lines_first {
                    live.put_behind(backlog, lying, &self.shutdown);
                }
                backlog.begin(logger.period, Instant::now());
                live.snapshots = self.for_snapshots(Some(backlog));
            }
        }
        sending.in_order(logger.new_lines_first, logger.period, Instant::now, |queue, passengers, has_taken| {
            self.flush_queue(queue, passengers, has_taken, None)
        })
    }

    /// What becomes of new snapshots.
    fn for_snapshots(&self, backlog: Option<&Queue>) -> Snapshots {
        let waits = backlog.is_some_and(|backlog| !backlog.journal.is_empty());
        self.backlog.as_ref().filter(|_| waits).map_or(Snapshots::Send, |backlog| backlog.for_snapshots())
    }

    /// Sends what waits now in a queue, and what fills requests behind it, until one fails or `deadline` is over. Lines of
    /// `passengers` go with the last request, if they may.
    fn flush_queue(
        &self,
        queue: &mut Queue,
        mut passengers: Option<&mut Queue>,
        has_taken: &mut bool,
        deadline: Option<Instant>,
    ) -> Result<(), FlushError> {
        if queue.rests_until(Instant::now()).is_some() {
            return Ok(());
        }
        // What can't be read has no end that is known: what waits in memory goes all the same.
        let goal = queue.journal.end().ok();
        let journal = Arc::clone(&queue.journal);
        queue.resume_search();
        while queue.left != Some(0) {
            let logger = self.settings();
            if queue.window.is_some() {
                let end = journal.end().unwrap_or_default();
                match self.search(queue, &logger, has_taken)? {
                    Searched::Rests => {
                        queue.begin_rest(end, Instant::now(), &mut Chance::new());
                        return Ok(());
                    }
                    Searched::GoesOn if self.over(deadline) => break,
                    Searched::GoesOn => continue,
                }
            }
            let room = self.room(&logger, queue);
            let Some(bundle) = queue.bundler.next(&journal, &room)? else { break };
            // What trickles in is not worth a request each time.
            let came_later = goal.is_some_and(|goal| bundle.start >= goal) && !bundle.start.is_in_memory();
            if (came_later && !bundle.is_full) || self.over(deadline) {
                break;
            }
            let with = passengers.as_deref_mut().filter(|_| !bundle.is_full);
            let (began, before) = (Instant::now(), journal.counts().delivered);
            if let Some(bundle) = self.send_with(bundle, with, &logger, queue, has_taken)? {
                self.send(bundle, &logger, queue, has_taken)?;
            }
            let delivered = journal.counts().delivered.saturating_sub(before);
            queue.delivered(delivered, began.elapsed(), Instant::now());
        }
        queue.flushed(Instant::now());
        Ok(())
    }

    fn room(&self, logger: &LoggerSettings, queue: &Queue) -> Room {
        let lines = queue.lines.unwrap_or(logger.max_lines).min(logger.max_lines);
        Room {
            lines: queue.left.map_or(lines, |left| lines.min(usize::try_from(left).unwrap_or(usize::MAX))),
            bytes: logger.max_request_bytes.saturating_sub(LOG_OVERHEAD),
            line_bytes: logger.max_line_bytes,
            batches: if self.whole_queries.expands(logger.expand_events) { Batches::Expand } else { Batches::Keep },
            snapshots: queue.snapshots,
        }
    }

    /// Sends a request's lines together with some of `passengers`: gives them back where that can't be, or is refused.
    fn send_with(
        &self,
        bundle: Bundle,
        passengers: Option<&mut Queue>,
        logger: &LoggerSettings,
        queue: &mut Queue,
        has_taken: &mut bool,
    ) -> Result<Option<Bundle>, FlushError> {
        let Some(passengers) = passengers else { return Ok(Some(bundle)) };
        if !passengers.may_ride(Instant::now()) || queue.lines.is_some() {
            return Ok(Some(bundle));
        }
        let mut room = self.room(logger, passengers);
        room.lines = room.lines.min(logger.max_lines.saturating_sub(bundle.ends.len()));
        room.bytes = room.bytes.saturating_sub(bundle.data.len() + 1);
        if bundle.ends.is_empty() || room.lines == 0 {
            return Ok(Some(bundle));
        }
        let riding = match passengers.bundler.next(&passengers.journal, &room) {
            // A line alone may be larger than there is room for.
            Ok(Some(riding)) if !riding.ends.is_empty() && riding.data.len() <= room.bytes => riding,
            _ => return Ok(Some(bundle)),
        };
        let data = [&*bundle.data, &*riding.data].join(",");
        let began = Instant::now();
        match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &data)) {
            Ok(_) => *has_taken = true,
            Err(error) if error.blame() == Blame::Nothing => return Err(error.into()),
            Err(error) if error.retry_after().is_some() => return Err(error.into()),
            // Of which of the two it is, each tells alone.
            Err(_) => {
                passengers.ride_refused(Instant::now());
                return Ok(Some(bundle));
            }
        }
        self.sent(bundle, queue);
        let lines = riding.ends.iter().map(|end| end.lines).sum();
        self.sent(riding, passengers);
        passengers.delivered(lines, began.elapsed(), Instant::now());
        Ok(None)
    }

    /// Sends one request, and removes its lines when the server has them. When it refuses them, a search begins.
    fn send(
        &self,
        bundle: Bundle,
        logger: &LoggerSettings,
        queue: &mut Queue,
        has_taken: &mut bool,
    ) -> Result<(), FlushError> {
        if self.log_type == LogType::Status && logger.status_disabled {
            queue.journal.remove_uncounted(bundle.end);
            return Ok(());
        }
        if !bundle.ends.is_empty() {
            match self.node.send(Endpoint::Logger, Payload::Lines(self.log_type, &bundle.data)) {
                Ok(_) => {
                    *has_taken = true;
                    queue.accepted(logger.max_lines);
                }
                Err(error) if error.blame() == Blame::Nothing => return Err(error.into()),
                Err(error) => {
                    let all = 0..bundle.ends.len();
                    let window = queue.begin_search(bundle, logger.max_lines);
                    return failed(window, all, error).map(drop);
                }
            }
        }
        self.sent(bundle, queue);
        Ok(())
    }

    /// The server has a request's lines.
    fn sent(&self, bundle: Bundle, queue: &mut Queue) {
        let until = bundle.settle(&queue.journal, self.backlog.as_deref());
        queue.journal.acknowledge(until);
        queue.bundler.recycle(bundle);
    }

    /// The next step among lines that the server has refused.
    fn search(&self, queue: &mut Queue, logger: &LoggerSettings, has_taken: &mut bool) -> Result<Searched, FlushError> {
        let room = Room { lines: logger.max_lines, ..self.room(logger, queue) };
        let backlog = self.backlog.as_deref();
        let Queue { window: search, bundler, journal, lines: size, .. } = queue;
        let Some(window) = search.as_mut() else { return Ok(Searched::GoesOn) };
        match window.next(&room) {
            Step::Send(lines) => {
                let payload = Payload::Lines(self.log_type, window.data(&lines));
                match self.node.send(Endpoint::Logger, payload) {
                    Ok(_) => {
                        *has_taken = true;
                        window.taken(lines);
                    }
                    Err(error) => return failed(window, lines, error),
                }
            }
            Step::More => window.grow(bundler, journal, &room)?,
            Step::Rest => return Ok(Searched::Rests),
            Step::SetAside(_) => {}
            Step::Over => {
                // What was set aside was no matter of size.
                let found = Some(window.size()).filter(|&size| window.set_aside == 0 && size < logger.max_lines);
                window.settle(journal, backlog);
                (*search, *size) = (None, found);
                return Ok(Searched::GoesOn);
            }
        }
        window.settle(journal, backlog);
        Ok(Searched::GoesOn)
    }

    /// Puts what was said of lost results among the status lines, for the server's eyes. Not of lost status lines:
    /// what is lost would make more of it.
    fn report_losses(&self) {
        let mut losses = self.journal.take_losses();
        losses.extend(self.backlog.iter().flat_map(|backlog| backlog.reader.take_losses()));
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
