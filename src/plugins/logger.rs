//! The logger plugin: each line is in the buffer before osqueryd gets its answer.
//!
//! osqueryd ends itself when a logger call fails, so none does: what can't be kept is counted and said, and the
//! answer is 0 all the same. No call waits for the network.

use std::borrow::Cow;
use std::sync::Arc;

use crate::buffer::{Buffer, Lines};
use crate::decorations::Decorations;
use crate::extension::protocol::was_repaired;
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::flags::Flags;
use crate::remote::api;
use crate::remote::event_lines::EventLines;
use crate::remote::host::Host;
use crate::remote::status_line::StatusLine;
use crate::settings::LoggerSettings;

/// `features` answers a bit mask: 1 is "takes status lines", 2 would be "takes events".
const TAKES_STATUS_LINES: i32 = 1;

/// The member that a result line gets when it held invalid UTF-8, whose bytes are U+FFFD now.
const REPAIRED_MARK: &str = "invalid_utf8";

/// Takes osqueryd's lines.
pub struct Logger {
    results: Arc<Buffer>,
    statuses: Arc<Buffer>,
    flags: Arc<Flags>,
    host: Arc<Host>,
    decorations: Arc<Decorations>,
}

impl Logger {
    /// Keeps results and statuses in these buffers.
    #[must_use]
    pub fn new(
        results: Arc<Buffer>,
        statuses: Arc<Buffer>,
        flags: Arc<Flags>,
        host: Arc<Host>,
        decorations: Arc<Decorations>,
    ) -> Self {
        Self { results, statuses, flags, host, decorations }
    }

    /// Keeps a result line, or the event lines that it stands for.
    fn keep_result(&self, line: String) -> Reply {
        let logger = &self.flags.current().logger;
        match logger.expand_events.then(|| EventLines::of(&line)).flatten() {
            Some(events) => self.keep_results(&events, logger),
            None => self.keep_results([&line].as_slice(), logger),
        }
    }

    fn keep_batch(&self, batch: String) -> Reply {
        let logger = &self.flags.current().logger;
        match serde_json::from_str::<Vec<String>>(&batch) {
            Ok(lines) if logger.expand_events => {
                for line in lines {
                    self.keep_result(line);
                }
                Reply::ok()
            }
            Ok(lines) => self.keep_results(lines.as_slice(), logger),
            // Not the array that it should be: kept as one line, so that nothing of it is lost here.
            Err(_) => self.keep_results([batch].as_slice(), logger),
        }
    }

    fn keep_results(&self, lines: &(impl Lines + ?Sized), logger: &LoggerSettings) -> Reply {
        if was_repaired() {
            self.results.append(&Marked(lines), &logger.limits());
        } else {
            self.results.append(lines, &logger.limits());
        }
        Reply::ok()
    }

    fn keep_statuses(&self, log: &str) -> Reply {
        let logger = self.flags.current().logger.clone();
        if logger.status_disabled {
            return Reply::ok();
        }
        match serde_json::from_str::<Vec<StatusLine>>(log) {
            Ok(lines) => {
                let version = self.host.version().unwrap_or_default();
                let newest = lines.iter().map(StatusLine::unix_time).max().unwrap_or_default();
                let decoration = self.decorations.decoration(newest, logger.decorations);
                let line = |line: StatusLine| line.into_log_line(&version, &decoration);
                let lines: Vec<String> = lines.into_iter().map(line).collect();
                self.statuses.append(lines.as_slice(), &logger.limits());
            }
            Err(error) => {
                self.statuses.refuse(&format!("osqueryd's status lines are not what they should be ({error})"))
            }
        }
        Reply::ok()
    }
}

impl Lines for EventLines<'_> {
    fn lines(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.lines().map(Cow::Owned)
    }
}

/// Lines of a call that held invalid UTF-8: those that were repaired say so.
struct Marked<'a, L: ?Sized>(&'a L);

impl<L: Lines + ?Sized> Lines for Marked<'_, L> {
    fn lines(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.0.lines().map(|line| {
            if line.contains(char::REPLACEMENT_CHARACTER) && api::is_object(&line) {
                Cow::Owned(api::with_member(&line, REPAIRED_MARK, "true"))
            } else {
                line
            }
        })
    }
}

impl Plugin for Logger {
    fn registry(&self) -> RegistryName {
        RegistryName::Logger
    }

    fn call(&self, mut request: StringMap) -> Reply {
        for kind in ["string", "snapshot", "event"] {
            if let Some(line) = request.remove(kind) {
                return self.keep_result(line);
            }
        }
        if let Some(batch) = request.remove("string_batch") {
            return self.keep_batch(batch);
        }
        let log = request.remove("log");
        if request.contains_key("init") {
            // osqueryd has applied its configuration by now, which can have set flags. Old versions hand the
            // status lines of the start over with it.
            self.flags.refresh();
            return log.map_or_else(Reply::ok, |log| self.keep_statuses(&log));
        }
        match (request.get("status").map(String::as_str), request.get("action").map(String::as_str)) {
            (Some("true"), _) => self.keep_statuses(log.as_deref().unwrap_or("[]")),
            (_, Some("features")) => Reply::mask(TAKES_STATUS_LINES),
            (_, action) => Reply::failed(format!("the logger plugin has no action {action:?}")),
        }
    }
}
