//! How osqueryd hands lines to its loggers.

use std::sync::atomic::Ordering;

use super::core::CATASTROPHIC;
use super::lines::{StatusLine, status_parameter};
use super::worker::{Worker, items};
use super::{CallOutcome, lock};

/// A logger's answer to `features`: it takes osqueryd's own log.
const TAKES_STATUS: i32 = 1;

/// Which of the two calls carries a result line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    String,
    Snapshot,
}

impl Worker {
    /// Writes a line of osqueryd's own log: to standard error, and for the loggers that take status lines.
    pub(super) fn print(&self, severity: u8, file: &str, line: u32, message: &str) {
        self.core.transcript.print(severity, file, line, message);
        let lowest = lock(&self.flags).number("logger_min_status");
        if u64::from(severity) >= lowest && !lock(&self.flags).is("disable_logging") {
            lock(&self.sink).push(StatusLine::new(severity, file, line, message));
        }
    }

    /// The same, only with `--verbose`.
    pub(super) fn print_verbose(&self, file: &str, line: u32, message: &str) {
        if lock(&self.flags).is("verbose") {
            self.print(0, file, line, message);
        }
    }

    /// `init` and `features` of every logger, and the first relay of osqueryd's log.
    pub(super) fn init_logger(&self) {
        let loggers = lock(&self.flags).value("logger_plugin");
        lock(&self.sinks).clear();
        for logger in items(&loggers) {
            self.registry_call("logger", logger, &[("init", b"osqueryd")]);
            let features = self.registry_call("logger", logger, &[("action", b"features")]);
            if features.code & TAKES_STATUS != 0 {
                lock(&self.sinks).push(logger.to_owned());
            }
        }
        self.relay_status();
    }

    /// One result line to every logger; the last one's answer counts. Where it fails, nothing but the stand-in's own
    /// count tells of it.
    pub(super) fn log_line(&self, kind: Line, line: &[u8]) -> CallOutcome {
        let loggers = lock(&self.flags).value("logger_plugin");
        let mut last = CallOutcome::default();
        for logger in items(&loggers) {
            let request: &[(&str, &[u8])] = match kind {
                Line::String => &[("category", b"event"), ("string", line)],
                Line::Snapshot => &[("snapshot", line)],
            };
            last = self.registry_call("logger", logger, request);
        }
        // A worker that has been killed has not failed to log.
        if self.is_alive() {
            self.core.lines_logged.fetch_add(1, Ordering::SeqCst);
            if !last.is_ok() {
                self.core.lines_lost.fetch_add(1, Ordering::SeqCst);
            }
        }
        last
    }

    /// What osqueryd does about a failed logger call: it ends with 78, and its watcher, too. A worker that is ending
    /// already only says so.
    pub(super) fn give_up_when_failed(&self, query: &str, outcome: &CallOutcome) {
        if outcome.code == 0 || !self.is_alive() {
            return;
        }
        let message = format!("Error logging the results of query: {query}: {}", outcome.message);
        match self.is_interrupted() {
            true => self.core.transcript.print(2, "shutdown.cpp", 79, &message),
            false => self.core.request_shutdown(CATASTROPHIC, &message),
        }
    }

    /// Sends osqueryd's own log to the loggers that take it. The lines are gone, whatever the answer is.
    pub(super) fn relay_status(&self) {
        let lines = {
            let mut sink = lock(&self.sink);
            let sinks = lock(&self.sinks);
            if sinks.is_empty() {
                return;
            }
            std::mem::take(&mut *sink)
        };
        if !lines.is_empty() {
            self.log_status(&lines);
        }
    }

    /// One `status` call to every logger of the flag that takes them; the last answer.
    pub(super) fn log_status(&self, lines: &[StatusLine]) -> CallOutcome {
        let parameter = status_parameter(lines, &self.identifier());
        let loggers = lock(&self.flags).value("logger_plugin");
        let takers = lock(&self.sinks).clone();
        let mut last = CallOutcome::default();
        // By hand, before any `init`, every logger is taken to want them.
        for logger in items(&loggers).filter(|logger| takers.is_empty() || takers.iter().any(|taker| taker == logger)) {
            let request: [(&str, &[u8]); 2] = [("log", parameter.as_bytes()), ("status", b"true")];
            last = self.registry_call("logger", logger, &request);
        }
        last
    }
}
