//! osqueryd's watcher: it owns the worker and the autoloaded extensions, and starts them again when they exit.
//!
//! It looks at its children at intervals, as osqueryd's does, and that is when it starts them again. That they have
//! exited is noted within milliseconds, for tests that measure.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::autoload::autoloaded;
use super::core::{Core, spawn};
use super::lock;

/// How soon an exit is noted.
const NOTICE: Duration = Duration::from_millis(10);
/// How long a child may take to be gone after SIGKILL.
const KILLED: Duration = Duration::from_secs(2);
/// The shell gives the process its own id as `OSQUERY_EXTENSION`, and becomes the extension: osqueryd sets it between
/// fork and exec, where safe Rust does not get.
const LAUNCH: &str = "OSQUERY_EXTENSION=$$; export OSQUERY_EXTENSION; exec \"$0\" \"$@\"";

/// The extensions and their processes.
#[derive(Default)]
pub(super) struct Watcher {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<PathBuf, Slot>,
    exits: Vec<Exit>,
    /// How often the children were looked at.
    looks: u64,
    /// Whether children are still started.
    starts: bool,
    /// Whether the watcher's thread runs.
    runs: bool,
}

#[derive(Default)]
struct Slot {
    child: Option<Child>,
}

/// An exit of a child.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The autoloaded path.
    pub path: PathBuf,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// When that was seen.
    pub at: Instant,
}

/// How one child took a clean stop.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// The autoloaded path.
    pub path: PathBuf,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub status: Option<ExitStatus>,
    /// From the SIGTERM to its end.
    pub took: Duration,
    /// It did not end in time, and was killed.
    pub killed: bool,
}

/// How osqueryd's worker took a stop.
#[derive(Clone, Copy, Debug)]
pub struct WorkerStop {
    /// Its process id.
    pub pid: u32,
    /// How its process ended.
    pub status: Option<ExitStatus>,
    /// From the SIGTERM to the end of its process.
    pub took: Duration,
    /// It did not end in time, and was killed.
    pub killed: bool,
}

/// How a clean stop went.
#[derive(Clone, Debug, Default)]
pub struct StopReport {
    /// The extensions that ran when it began.
    pub extensions: Vec<Stopped>,
    /// The worker, unless there was none when it began.
    pub worker: Option<WorkerStop>,
    /// Sockets of extensions that were there when all of these had ended.
    pub sockets_left: Vec<PathBuf>,
}

impl StopReport {
    /// The exit code of the only extension; none when it was ended by a signal, or when there is not exactly one.
    pub fn exit_code(&self) -> Option<i32> {
        match &self.extensions[..] {
            [only] => only.status.and_then(|status| status.code()),
            _ => None,
        }
    }
}

impl Watcher {
    /// Reads the autoload file and begins to watch. Whether there is anything to autoload.
    pub(super) fn start(&self, core: &Arc<Core>) -> bool {
        let (file, allow_unsafe) = {
            let given = lock(&core.given);
            (given.value("extensions_autoload"), given.is("allow_unsafe"))
        };
        let warn = |message: String| core.transcript.print(1, "extensions.cpp", 430, &message);
        let paths = autoloaded(Path::new(&file), allow_unsafe, &warn);
        let any = !paths.is_empty();
        let mut state = lock(&self.state);
        state.slots = paths.into_iter().map(|path| (path, Slot::default())).collect();
        (state.starts, state.runs) = (true, true);
        drop(state);
        let core = Arc::clone(core);
        spawn("watcher", move || core.watcher.run(&core));
        any
    }

    pub(super) fn has_extensions(&self) -> bool {
        !lock(&self.state).slots.is_empty()
    }

    /// The running extensions: path and process id.
    pub(super) fn children(&self) -> Vec<(PathBuf, u32)> {
        let state = lock(&self.state);
        let pid = |slot: &Slot| slot.child.as_ref().map(Child::id);
        state.slots.iter().filter_map(|(path, slot)| Some((path.clone(), pid(slot)?))).collect()
    }

    pub(super) fn exits(&self) -> Vec<Exit> {
        lock(&self.state).exits.clone()
    }

    /// As if the watcher were gone: children run on, and are not started again. They are still waited for.
    pub(super) fn abandon(&self) {
        lock(&self.state).starts = false;
    }

    /// SIGTERM for every extension, SIGKILL for those that are late, and the end of watching.
    pub(super) fn stop(&self, core: &Arc<Core>, limit: Duration) -> Vec<Stopped> {
        let abandoned = !std::mem::replace(&mut lock(&self.state).starts, false);
        self.bell.notify_all();
        let begun = Instant::now();
        let mut left = self.children();
        for (path, pid) in &left {
            // A child whose watcher is gone has had its time.
            let signal = if abandoned { Signal::KILL } else { Signal::TERM };
            core.transcript.note(format!("watcher sends {signal:?} to {} ({pid})", path.display()));
            self.signal(*pid, signal);
        }
        let mut stopped = Vec::new();
        let mut killed = abandoned;
        while !left.is_empty() && begun.elapsed() < limit + KILLED {
            let exits = self.exits();
            left.retain(|(path, pid)| {
                let exit = exits.iter().rev().find(|exit| exit.pid == *pid);
                let Some(exit) = exit else { return true };
                let took = exit.at.saturating_duration_since(begun);
                stopped.push(Stopped { path: path.clone(), pid: *pid, status: Some(exit.status), took, killed });
                false
            });
            if !killed && begun.elapsed() > limit {
                killed = true;
                for (path, pid) in &left {
                    core.transcript.note(format!("{} ({pid}) did not end: SIGKILL", path.display()));
                    self.signal(*pid, Signal::KILL);
                }
            }
            core.transcript.wait_for_change(NOTICE);
        }
        lock(&self.state).runs = false;
        self.bell.notify_all();
        stopped
    }

    /// A signal for an extension that has not been waited for.
    pub(super) fn signal(&self, pid: u32, signal: Signal) {
        let state = lock(&self.state);
        let is_ours = state.slots.values().any(|slot| slot.child.as_ref().is_some_and(|child| child.id() == pid));
        if let Some(pid) = Pid::from_raw(pid as i32).filter(|_| is_ours) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns at the next look at the children, or when there will be none since a stop has begun.
    pub(super) fn wait_for_look(&self) {
        let state = lock(&self.state);
        let seen = state.looks;
        let waits = |state: &mut State| state.runs && state.starts && state.looks == seen;
        drop(self.bell.wait_while(state, waits));
    }

    fn run(&self, core: &Arc<Core>) {
        let mut next_look = Instant::now();
        let mut state = lock(&self.state);
        while state.runs {
            let State { slots, exits, starts, looks, .. } = &mut *state;
            let is_look = Instant::now() >= next_look;
            for (path, slot) in slots {
                slot.note_exit(core, path, exits);
                if is_look && *starts {
                    slot.start(core, path);
                }
            }
            if is_look {
                next_look = Instant::now() + core.options.watch_interval;
                *looks += 1;
                let starts = *starts;
                self.bell.notify_all();
                drop(state);
                if starts {
                    core.look_at_worker();
                }
                state = lock(&self.state);
            }
            state = self.bell.wait_timeout(state, NOTICE).map_or_else(|error| error.into_inner().0, |(state, _)| state);
        }
    }
}

impl Slot {
    fn note_exit(&mut self, core: &Arc<Core>, path: &Path, exits: &mut Vec<Exit>) {
        let Some(child) = &mut self.child else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        let pid = child.id();
        core.transcript.print(0, "watcher.cpp", 500, &format!("{} ({pid}) ended: {status}", path.display()));
        exits.push(Exit { path: path.to_owned(), pid, status, at: Instant::now() });
        self.child = None;
        core.transcript.ring();
    }

    fn start(&mut self, core: &Arc<Core>, path: &Path) {
        if self.child.is_some() {
            return;
        }
        match launch(core, path) {
            Ok(child) => self.child = Some(child),
            Err(error) => {
                core.transcript.print(2, "watcher.cpp", 770, &format!("cannot start {}: {error}", path.display()));
            }
        }
    }
}

fn launch(core: &Arc<Core>, path: &Path) -> std::io::Result<Child> {
    let given = lock(&core.given).clone();
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(LAUNCH).arg(path);
    if given.is("verbose") {
        command.arg("--verbose");
    }
    command.arg("--socket").arg(given.value("extensions_socket"));
    command.arg("--timeout").arg(given.value("extensions_timeout"));
    command.arg("--interval").arg(given.value("extensions_interval"));
    command.envs(core.options.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null());
    if core.options.capture {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = command.spawn()?;
    let pid = child.id();
    core.transcript.print(
        0,
        "watcher.cpp",
        775,
        &format!("Created and monitoring extension child ({pid}): {}", path.display()),
    );
    if let Some(output) = child.stdout.take() {
        capture(core, pid, output);
    }
    if let Some(output) = child.stderr.take() {
        capture(core, pid, output);
    }
    Ok(child)
}

/// The thread lives as long as anyone has the pipe, and keeps nothing else alive.
fn capture(core: &Arc<Core>, pid: u32, output: impl Read + Send + 'static) {
    let core = Arc::downgrade(core);
    spawn("child-output", move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if let Some(core) = core.upgrade() {
                core.transcript.child(pid, &String::from_utf8_lossy(&line));
            }
        }
    });
}
