//! The logger plugin, apart from the result lines that the front takes: osqueryd's status lines, decorated and kept before
//! it gets its answer, and the [`Forwarder`] that sends what waits.
//!
//! osqueryd ends itself when a logger call fails, so none does: what can't be kept is counted and said, and the answer is 0
//! all the same. No call waits for the network.

mod backlog;
mod batch;
mod bundle;
mod decorations;
mod forwarder;
mod keeping;
mod outcome;
mod pace;
mod pending;
mod queue;
mod status_line;
mod window;

use std::sync::Arc;

pub use self::backlog::Backlog;
pub(crate) use self::backlog::Snapshots;
pub(crate) use self::bundle::{Batches, Bundler, Room};
pub use self::decorations::{Decorations, LARGEST_FINDING, ROUND_LIMIT};
pub use self::forwarder::{AskToBeWoken, Forwarder, LastFlush};
pub use self::keeping::{Keeping, RETRIED};
pub use self::pending::Pending;
use self::status_line::StatusLines;
pub use self::status_line::{Decoration, StatusLine};
pub(crate) use self::window::Window;
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::journal::Writer;
use crate::line_count::LineCounter;
use crate::remote::Host;
use crate::settings::live::Flags;

/// `features` answers a bit mask: 1 is "takes status lines", 2 would be "takes events".
const TAKES_STATUS_LINES: i32 = 1;

/// Takes osqueryd's status lines.
pub struct Logger {
    statuses: Arc<Writer<LineCounter>>,
    flags: Arc<Flags>,
    host: Arc<Host>,
    decorations: Arc<Decorations>,
    keeping: Keeping,
}

impl Logger {
    /// Keeps statuses in this journal.
    #[must_use]
    pub fn new(
        statuses: Arc<Writer<LineCounter>>,
        flags: Arc<Flags>,
        host: Arc<Host>,
        decorations: Arc<Decorations>,
        keeping: Keeping,
    ) -> Arc<Self> {
        Arc::new(Self { statuses, flags, host, decorations, keeping })
    }

    /// Keeps the status lines of a call, as osqueryd hands them over.
    pub fn keep_statuses(&self, log: &str) {
        let logger = self.flags.current().logger.clone();
        let lines = StatusLines::of(log);
        if let Some(identifier) = lines.iter().find_map(|lines| lines.host_identifier.as_deref()) {
            self.host.saw_identifier(identifier);
        }
        if logger.status_disabled {
            return;
        }
        match lines {
            Ok(lines) => {
                let version = self.host.version().unwrap_or_default();
                let decoration = self.decorations.decoration(lines.newest, logger.decorations);
                let lines = lines.each().map(|line| line.into_log_line(&version, &decoration));
                self.statuses.append_all(lines);
            }
            Err(error) => {
                self.statuses.refuse(1, &format!("osqueryd's status lines are not what they should be ({error})"));
            }
        }
    }
}

impl Plugin for Arc<Logger> {
    fn registry(&self) -> RegistryName {
        RegistryName::Logger
    }

    fn call(&self, mut request: StringMap) -> Reply {
        let log = request.remove("log");
        if request.contains_key("init") {
            // osqueryd has applied its configuration by now, which can have set flags. Old versions hand the
            // status lines of the start over with it.
            self.flags.refresh();
            if let Some(log) = log {
                self.keep_statuses(&log);
            }
            return Reply::ok();
        }
        match (request.get("status").map(String::as_str), request.get("action").map(String::as_str)) {
            (Some("true"), _) => {
                self.keep_statuses(log.as_deref().unwrap_or("[]"));
                Reply::ok()
            }
            (_, Some("features")) => Reply::mask(TAKES_STATUS_LINES),
            (_, Some(action)) if keeping::ACTIONS.contains(&action) => {
                // The operator may have changed a moment ago what lines were set aside for.
                self.flags.refresh();
                self.keeping.call(&request)
            }
            (_, action) => Reply::no_such_action("the logger plugin", action),
        }
    }
}
