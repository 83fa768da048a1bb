//! What a test makes the stand-in do by hand, each of it with osqueryd's habits and consequences.

use std::sync::atomic::Ordering;

use super::daemon::Osqueryd;
use super::ending::AtWork;
use super::lines::StatusLine;
use super::logger::Line;
use super::{CallOutcome, Row, lock, rows};

impl Osqueryd {
    /// One call of an extension's plugin: connect, ping, close, connect, call, close. It has no consequences in
    /// osqueryd. The error is what went wrong below the status.
    pub fn call(&self, registry: &str, plugin: &str, request: &[(&str, &[u8])]) -> Result<CallOutcome, String> {
        self.at_work().extension_call(registry, plugin, request)
    }

    /// Logs a line by a `string` call, as a query that has only this one. A failure ends osqueryd with 78.
    pub fn log_string(&self, line: impl AsRef<[u8]>) -> CallOutcome {
        let worker = self.at_work();
        let outcome = worker.log_line(Line::String, line.as_ref());
        worker.give_up_when_failed("by hand", &outcome);
        outcome
    }

    /// One `status` call with these lines.
    pub fn log_status(&self, lines: &[StatusLine]) -> CallOutcome {
        self.at_work().log_status(lines)
    }

    /// Writes a line of osqueryd's own log, which goes out with the next relay.
    pub fn print(&self, line: &StatusLine) {
        self.worker().print(line.severity, &line.file, line.line, &line.message);
    }

    /// Relays osqueryd's own log now.
    pub fn relay_status(&self) {
        self.at_work().relay_status();
    }

    /// The logger's `init`, `features` and first relay, as at the start.
    pub fn init_logger(&self) {
        self.at_work().init_logger();
    }

    /// A config refresh: genConfig, and the application of its answer, which is returned.
    pub fn gen_config(&self) -> CallOutcome {
        self.at_work().refresh_config()
    }

    /// A `getQueries` call; what it answers is not run.
    pub fn get_queries(&self) -> CallOutcome {
        self.at_work().call_get_queries()
    }

    /// A `writeResults` call.
    pub fn write_results(&self, json: &str) -> CallOutcome {
        self.at_work().call_write_results(json)
    }

    /// A whole round of the distributed runner. The error is the message of the call that failed.
    pub fn poll_distributed(&self) -> Result<(), String> {
        self.at_work().poll_distributed()
    }

    /// Runs a query of the schedule now, by its full name. False when the schedule has no query of that name.
    pub fn run_scheduled(&self, name: &str) -> bool {
        let worker = self.at_work();
        let query = lock(&worker.config).schedule().find(|query| query.name == name).cloned();
        query.as_ref().map(|query| worker.launch_query(query)).is_some()
    }

    /// How many lines osqueryd has handed to its logger so far: those of scheduled queries, and those logged by hand.
    /// A whole query in one call is one line.
    pub fn lines_logged(&self) -> u64 {
        self.core.lines_logged.load(Ordering::SeqCst)
    }

    /// How many of them the logger did not take. osqueryd loses these without a word, unless one is its query's last.
    pub fn lines_lost(&self) -> u64 {
        self.core.lines_lost.load(Ordering::SeqCst)
    }

    /// The worker, which a stop waits for as long as this is kept.
    fn at_work(&self) -> AtWork {
        AtWork::begin(self.worker())
    }

    /// Runs SQL in osqueryd. The error is SQLite's text.
    pub fn query(&self, sql: &str) -> Result<Vec<Row>, String> {
        Ok(self.worker().query(sql)?.rows.iter().map(rows::plain).collect())
    }
}
