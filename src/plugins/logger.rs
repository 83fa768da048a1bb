//! The logger plugin: each line is in the buffer before osqueryd gets its answer.
//!
//! osqueryd ends itself when a logger call fails, so none does: what can't be kept is counted and said, and the
//! answer is 0 all the same. No call waits for the network.

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::flags::Flags;
use crate::remote::host::Host;
use crate::remote::status_line::StatusLine;

/// `features` answers a bit mask: 1 is "takes status lines", 2 would be "takes events".
const TAKES_STATUS_LINES: i32 = 1;

/// Takes osqueryd's lines.
pub struct Logger {
    results: Arc<Buffer>,
    statuses: Arc<Buffer>,
    flags: Arc<Flags>,
    host: Arc<Host>,
}

impl Logger {
    /// Keeps results and statuses in these buffers.
    #[must_use]
    pub fn new(results: Arc<Buffer>, statuses: Arc<Buffer>, flags: Arc<Flags>, host: Arc<Host>) -> Self {
        Self { results, statuses, flags, host }
    }

    fn keep_results(&self, lines: Vec<String>) -> Reply {
        self.results.append(lines, &self.flags.current().logger.limits());
        Reply::ok()
    }

    fn keep_batch(&self, batch: &str) -> Reply {
        match serde_json::from_str(batch) {
            Ok(lines) => self.keep_results(lines),
            // Not the array that it should be: kept as one line, so that nothing of it is lost here.
            Err(_) => self.keep_results(vec![batch.to_owned()]),
        }
    }

    fn keep_statuses(&self, log: &str) -> Reply {
        let logger = self.flags.current().logger.clone();
        if logger.status_disabled {
            return Reply::ok();
        }
        match serde_json::from_str::<Vec<StatusLine>>(log) {
            Ok(lines) => {
                let version = self.host.version().unwrap_or_default();
                let lines = lines.into_iter().map(|line| line.into_log_line(&version)).collect();
                self.statuses.append(lines, &logger.limits());
            }
            Err(error) => {
                self.statuses.refuse(&format!("osqueryd's status lines are not what they should be ({error})"))
            }
        }
        Reply::ok()
    }
}

impl Plugin for Logger {
    fn registry(&self) -> RegistryName {
        RegistryName::Logger
    }

    fn call(&self, mut request: StringMap) -> Reply {
        for kind in ["string", "snapshot", "event"] {
            if let Some(line) = request.remove(kind) {
                return self.keep_results(vec![line]);
            }
        }
        if let Some(batch) = request.remove("string_batch") {
            return self.keep_batch(&batch);
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
