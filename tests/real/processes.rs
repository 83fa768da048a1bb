//! The processes of one osqueryd: which they are, and how each is ended.
//!
//! They are known by a variable of their environment that names the test's own directory: osqueryd hands its
//! environment on, so that a worker of ours is found when the process that started it is gone, too.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The variable; it is the extension's own, for its flag file.
pub(crate) const MARK: &str = "REMOTE_TLS_FLAGFILE";

/// One process, as /proc had it.
struct Process {
    pid: Pid,
    parent: Option<Pid>,
    environment: Vec<u8>,
    program: String,
}

/// What runs of one osqueryd. A process that is just being replaced is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roles {
    /// osqueryd's worker: what runs queries.
    pub(crate) osqueryd_worker: Option<Pid>,
    /// The process of ours that osqueryd's watcher has started.
    pub(crate) front: Option<Pid>,
    /// The process of ours that the front has started.
    pub(crate) worker: Option<Pid>,
}

/// The roles of the processes that carry the mark `flagfile`; `watcher` is what the test has started.
pub(crate) fn roles(flagfile: &Path, watcher: Pid) -> Roles {
    let all = marked(flagfile);
    // A child between fork and exec still has the environment and the program of its parent.
    let is_worker = |process: &&Process| process.parent == Some(watcher) && process.has("OSQUERY_WORKER");
    let is_ours = |process: &&Process| process.program.contains("remote_tls.ext");
    let osqueryd_worker = all.iter().filter(|process| !is_ours(process)).find(is_worker);
    let front = all.iter().filter(is_ours).find(|process| process.parent == Some(watcher));
    let pid = |process: &Process| process.pid;
    let started_by_front = |process: &&Process| process.parent.is_some() && process.parent == front.map(pid);
    let worker = all.iter().filter(is_ours).find(started_by_front);
    Roles { osqueryd_worker: osqueryd_worker.map(pid), front: front.map(pid), worker: worker.map(pid) }
}

/// All processes that carry the mark, our orphaned ones among them.
pub(crate) fn pids(flagfile: &Path) -> Vec<Pid> {
    marked(flagfile).iter().map(|process| process.pid).collect()
}

/// Sends a signal. A process that has just ended is no error.
pub(crate) fn signal(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}

/// Whether it runs: neither gone nor waiting to be reaped.
pub(crate) fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X"))
}

/// The processor time that it has taken so far, its ended children not among it; nothing when it is gone.
pub(crate) fn processor_time(pid: Pid) -> Duration {
    let Some(fields) = stat(pid) else { return Duration::ZERO };
    // utime and stime, fields 14 and 15 of proc_pid_stat(5); ours begin at field 3.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap()
}

/// What stands behind the program's name in /proc/PID/stat, from the state on.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn marked(flagfile: &Path) -> Vec<Process> {
    let mark = format!("{MARK}={}", flagfile.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
    pids.filter_map(look).filter(|process| process.environment().any(|variable| variable == mark.as_bytes())).collect()
}

fn look(pid: Pid) -> Option<Process> {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let environment = fs::read(format!("{directory}/environ")).ok()?;
    let program = fs::read_link(format!("{directory}/exe")).ok()?.display().to_string();
    let parent = stat(pid)?.get(1)?.parse().ok().and_then(Pid::from_raw);
    Some(Process { pid, parent, environment, program })
}

impl Process {
    fn environment(&self) -> impl Iterator<Item = &[u8]> {
        self.environment.split(|&byte| byte == 0)
    }

    fn has(&self, variable: &str) -> bool {
        let beginning = format!("{variable}=");
        self.environment().any(|entry| entry.starts_with(beginning.as_bytes()))
    }
}
