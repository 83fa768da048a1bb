//! What the running extension says of itself: its tables, asked through osqueryd as osqueryd itself asks them, so that
//! `disable_tables` hides nothing.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::Occasion;
use super::answering::Running;
use crate::chain::chain;
use crate::extension::registry::StringMap;
use crate::extension::socket::public_path;
use crate::platform::{self, ProcessInfo};
use crate::remote::Endpoint;

/// The rows of the extension's tables, as osqueryd answers them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) endpoints: Vec<Exchange>,
    pub(crate) buffers: Vec<Waiting>,
    pub(crate) enrollment: Enrolled,
}

/// A row of `remote_tls_endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) consecutive_failures: u64,
    pub(crate) last_success: i64,
    pub(crate) last_failure: i64,
    pub(crate) last_status: u16,
    pub(crate) last_error: String,
    pub(crate) latency_ms: u64,
    pub(crate) backoff_until: i64,
    /// Whether bodies are compressed; unknown to an older extension.
    pub(crate) compressed: Option<bool>,
}

/// A row of `remote_tls_buffer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Waiting {
    pub(crate) stream: String,
    pub(crate) waiting_lines: u64,
    pub(crate) waiting_bytes: u64,
    pub(crate) oldest_time: i64,
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
    /// Those of them that an operator discarded; 0 of an older extension.
    pub(crate) discarded: u64,
    pub(crate) set_aside: u64,
}

/// The row of `remote_tls_enrollment`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Enrolled {
    pub(crate) enrolled: bool,
    pub(crate) since: i64,
    pub(crate) attempts: u64,
    pub(crate) last_error: String,
    pub(crate) host_identifier: String,
    pub(crate) server_name: String,
    pub(crate) server_certificate_expiry: i64,
    pub(crate) client_certificate_expiry: i64,
}

impl Told {
    /// The row of an endpoint.
    pub(crate) fn of(&self, endpoint: Endpoint) -> Option<&Exchange> {
        let name = endpoint.to_string();
        self.endpoints.iter().find(|row| row.name == name)
    }

    /// The lines that an operator discarded.
    pub(crate) fn discarded(&self) -> u64 {
        self.buffers.iter().map(|row| row.discarded).sum()
    }

    /// The lines that wait for the logger's endpoint, and when the oldest was made.
    pub(crate) fn waiting(&self) -> (u64, i64) {
        let streams = || self.buffers.iter().filter(|row| row.stream != "distributed");
        let lines = streams().map(|row| row.waiting_lines).sum();
        let oldest = streams().map(|row| row.oldest_time).filter(|time| *time > 0).min();
        (lines, oldest.unwrap_or(0))
    }
}

impl Exchange {
    /// The last error without the endpoint's name and URL, which every message has already.
    pub(crate) fn words(&self) -> &str {
        self.last_error.split_once("): ").map_or(self.last_error.as_str(), |(_, words)| words)
    }
}

/// Asks the extension, and looks at its processes: the front's and its workers'.
pub(super) fn ask(
    running: Option<&Running>,
    socket: &Path,
    occasion: Occasion,
) -> (Result<Told, String>, Vec<ProcessInfo>) {
    let untold = |reason: &str| (Err(reason.to_owned()), Vec::new());
    if occasion == Occasion::BeforeRestart {
        return untold("what runs until the restart doesn't matter (--before)");
    }
    let Some(running) = running else { return untold("osqueryd can't be asked") };
    match &running.extension {
        Err(error) => (Err(chain(error).to_string()), Vec::new()),
        Ok(None) => untold("osqueryd runs without the extension"),
        Ok(Some((uuid, _))) => (running.told(), processes(socket, *uuid)),
    }
}

impl Running {
    /// What the extension says of itself now.
    pub(crate) fn told(&self) -> Result<Told, String> {
        let table = |name: &str| self.manager.table(name).map_err(|error| chain(&error).to_string());
        Ok(Told {
            // The table that shows at once whether the extension answers.
            endpoints: table("remote_tls_endpoints")?.iter().map(exchange).collect(),
            buffers: table("remote_tls_buffer")?.iter().map(waiting).collect(),
            enrollment: table("remote_tls_enrollment")?.first().map(enrolled).unwrap_or_default(),
        })
    }
}

/// The extension's first process, and the workers below it; none where the kernel doesn't say who listens.
pub(super) fn processes(socket: &Path, uuid: i64) -> Vec<ProcessInfo> {
    let path = public_path(socket, uuid);
    let front = UnixStream::connect(path).ok().and_then(|stream| platform::Process::of_peer(&stream));
    let Some(front) = front.map(|front| front.id()) else { return Vec::new() };
    let mut all = platform::processes();
    all.retain(|process| process.id == front || process.parent == front);
    all.sort_by_key(|process| process.id != front);
    all
}

/// The workers among the extension's processes, and how long the first process runs.
pub(crate) fn workers(processes: &[ProcessInfo]) -> Option<(Duration, Vec<&ProcessInfo>)> {
    let (front, workers) = processes.split_first()?;
    Some((front.age, workers.iter().collect()))
}

fn text(row: &StringMap, name: &str) -> String {
    row.get(name).cloned().unwrap_or_default()
}

fn number<T: std::str::FromStr + Default>(row: &StringMap, name: &str) -> T {
    row.get(name).and_then(|value| value.parse().ok()).unwrap_or_default()
}

fn exchange(row: &StringMap) -> Exchange {
    Exchange {
        name: text(row, "name"),
        url: text(row, "url"),
        requests: number(row, "requests"),
        failures: number(row, "failures"),
        consecutive_failures: number(row, "consecutive_failures"),
        last_success: number(row, "last_success"),
        last_failure: number(row, "last_failure"),
        last_status: number(row, "last_status"),
        last_error: text(row, "last_error"),
        latency_ms: number(row, "latency_ms"),
        backoff_until: number(row, "backoff_until"),
        compressed: row.get("compressed").map(|value| value == "1"),
    }
}

fn waiting(row: &StringMap) -> Waiting {
    Waiting {
        stream: text(row, "stream"),
        waiting_lines: number(row, "waiting_lines"),
        waiting_bytes: number(row, "waiting_bytes"),
        oldest_time: number(row, "oldest_time"),
        accepted: number(row, "accepted"),
        delivered: number(row, "delivered"),
        dropped: number(row, "dropped"),
        discarded: number(row, "discarded"),
        set_aside: number(row, "set_aside"),
    }
}

fn enrolled(row: &StringMap) -> Enrolled {
    Enrolled {
        enrolled: text(row, "enrolled") == "1",
        since: number(row, "since"),
        attempts: number(row, "attempts"),
        last_error: text(row, "last_error"),
        host_identifier: text(row, "host_identifier"),
        server_name: text(row, "server_name"),
        server_certificate_expiry: number(row, "server_certificate_expiry"),
        client_certificate_expiry: number(row, "client_certificate_expiry"),
    }
}
