//! The stand-in osqueryd: osqueryd's side of the extension boundary.
//!
//! It is written from osquery's source and from what a running osqueryd did, and shares no code with the extension
//! but the generated Thrift bindings. The *watcher* starts real extension binaries, and a process for its worker, as
//! child processes; the *worker* has the manager's socket, takes configurations, runs the schedule and calls the
//! plugins. A test can kill the worker, start another, make the manager hang or forget, make every call by hand, and
//! read what happened.
//!
//! It ends as osqueryd does, and is no kinder: see `ending.rs`. A clean stop sends SIGTERM to worker and extensions in
//! the same moment; the worker calls `shutdown()` of each extension, hangs up on all manager connections and sweeps the
//! sockets' names away, and then the scheduler finishes the queries of its second, with a call for each line. Of a
//! query's lines only the last one's status is looked at. [`Osqueryd::lines_lost`] counts what was lost, which osqueryd
//! itself does not know.
//!
//! What differs from osqueryd:
//!
//! * The watcher is the test's process, and the worker's work is done by threads of it. The worker's own process
//!   listens on the manager's socket, so that the extension finds its id at the other end of a connection, and it ends
//!   when the worker ends; but it serves nothing itself. One that is stopped by SIGSTOP goes on: use
//!   [`Osqueryd::hang`]. When the watcher's process is killed, the worker ends at once, and not within 3 s.
//! * The watcher's looks at its children come more often ([`Options::watch_interval`]), and dead workers stay dead until a
//!   test starts another one ([`Options::restarts_worker`]), unless a test wants osqueryd's own ways.
//! * osqueryd's source gives up at the first death after four early ones. This one gives up at the fourth, as a running
//!   osqueryd was seen to do.
//! * There is no watchdog that measures; a test says when it strikes. It doesn't denylist the query that ran.
//! * Status lines are relayed by a thread of their own, and what has not been relayed at the end is lost, as there.
//! * There are no event tables; tables are those in `tables.rs`. A table's constraints are not looked at in a `generate`
//!   that comes through the manager.

mod autoload;
mod calendar;
mod client;
mod config;
mod core;
mod daemon;
mod database;
mod distributed;
mod driving;
mod ending;
mod flag_table;
mod flagfile;
mod flags;
mod lines;
mod logger;
mod manager;
mod options;
mod registry;
mod respawns;
mod rows;
mod scheduler;
mod sql;
mod tables;
#[cfg(test)]
mod tests;
mod thrift_api;
mod transcript;
mod updates;
mod watcher;
mod worker;
mod worker_process;

use std::collections::BTreeMap;

use crate::lock;

pub use self::daemon::Osqueryd;
pub use self::lines::StatusLine;
pub use self::options::{Options, StartError};
pub use self::registry::Registration;
pub use self::watcher::{Exit, StopReport, Stopped, WorkerStop};
pub use self::worker_process::become_worker_if_asked;

/// Strings by name: a row, a request, or `source → text`.
pub type Row = BTreeMap<String, String>;

/// How a plugin answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// 0 is success, 1 failure; a logger's `features` answers its bits here.
    pub code: i32,
    /// The status' text.
    pub message: String,
    /// The response. osqueryd reads it only when the code is 0.
    pub rows: Vec<Row>,
}

impl CallOutcome {
    /// Whether the code is 0.
    pub fn is_ok(&self) -> bool {
        self.code == 0
    }

    fn failed(message: &str) -> CallOutcome {
        CallOutcome { code: 1, message: message.to_owned(), rows: Vec::new() }
    }
}

impl Default for CallOutcome {
    fn default() -> CallOutcome {
        CallOutcome { code: 0, message: "OK".to_owned(), rows: Vec::new() }
    }
}
