//! The stand-in osqueryd: osqueryd's side of the extension boundary, as threads of a test's own process.
//!
//! It is written from osquery's source and from what a running osqueryd did, and shares no code with the extension
//! but the generated Thrift bindings. The *watcher* starts real extension binaries as child processes; the *worker*
//! has the manager's socket, takes configurations, runs the schedule and calls the plugins. A test can kill the
//! worker, start another, make the manager hang or forget, make every call by hand, and read what happened.
//!
//! What differs from osqueryd: the watcher and the worker are one process, so its death cannot be seen by the
//! extension as that of its parent; there is no watchdog, and no event tables; tables are those in `tables.rs`.

mod calendar;
mod client;
mod config;
mod core;
mod daemon;
mod database;
mod distributed;
mod driving;
mod flag_table;
mod flagfile;
mod flags;
mod lines;
mod logger;
mod manager;
mod options;
mod registry;
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

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::daemon::Osqueryd;
pub use self::lines::StatusLine;
pub use self::options::{Options, StartError};
pub use self::registry::Registration;
pub use self::watcher::{Exit, StopReport, Stopped};

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

/// The contents, also when a thread panicked while it had them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
