//! osqueryd's watcher: it owns the autoloaded extensions, and starts each of them again when it exits.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::core::{Core, spawn};
use super::lock;

/// How often children are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// The longest delay before an extension is started again; osqueryd looks at its children this often.
const LONGEST_DELAY: Duration = Duration::from_secs(3);
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
    /// Children are still started.
    starts: bool,
    /// The thread runs.
    runs: bool,
}

struct Slot {
    child: Option<Child>,
    started: Instant,
    due: Instant,
    delay: Duration,
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

/// How a clean stop went.
#[derive(Clone, Debug, Default)]
pub struct StopReport {
    /// The children that ran when it began.
    pub extensions: Vec<Stopped>,
    /// Sockets of extensions that were there when the last child had ended.
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
        let now = Instant::now();
        let delay = core.options.respawn_delay;
        let slot = |path| (path, Slot { child: None, started: now, due: now, delay });
        let mut state = lock(&self.state);
        state.slots = autoloaded(Path::new(&file), allow_unsafe, &warn).into_iter().map(slot).collect();
        (state.starts, state.runs) = (true, true);
        let any = !state.slots.is_empty();
        drop(state);
        let core = Arc::clone(core);
        spawn("watcher", move || core.watcher.run(&core));
        any
    }

    pub(super) fn has_extensions(&self) -> bool {
        !lock(&self.state).slots.is_empty()
    }

    /// The running children: path and process id.
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

    /// SIGTERM for every child, SIGKILL for those that are late, and the end of watching.
    pub(super) fn stop(&self, core: &Arc<Core>) -> Vec<Stopped> {
        let abandoned = !std::mem::replace(&mut lock(&self.state).starts, false);
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
        while !left.is_empty() {
            let exits = self.exits();
            left.retain(|(path, pid)| {
                let exit = exits.iter().rev().find(|exit| exit.pid == *pid);
                let Some(exit) = exit else { return true };
                let took = exit.at.saturating_duration_since(begun);
                stopped.push(Stopped { path: path.clone(), pid: *pid, status: Some(exit.status), took, killed });
                false
            });
            if !killed && begun.elapsed() > core.options.kill_after {
                killed = true;
                for (path, pid) in &left {
                    core.transcript.note(format!("{} ({pid}) did not end: SIGKILL", path.display()));
                    self.signal(*pid, Signal::KILL);
                }
            }
            if begun.elapsed() > core.options.kill_after * 2 + LONGEST_DELAY {
                break;
            }
            core.transcript.wait_for_change(LOOK);
        }
        lock(&self.state).runs = false;
        self.bell.notify_all();
        stopped
    }

    /// A signal for a child of ours that has not been waited for.
    pub(super) fn signal(&self, pid: u32, signal: Signal) {
        let state = lock(&self.state);
        let is_ours = state.slots.values().any(|slot| slot.child.as_ref().is_some_and(|child| child.id() == pid));
        if let Some(pid) = Pid::from_raw(pid as i32).filter(|_| is_ours) {
            let _ = kill_process(pid, signal);
        }
    }

    fn run(&self, core: &Arc<Core>) {
        let mut state = lock(&self.state);
        while state.runs {
            let State { slots, exits, starts, .. } = &mut *state;
            for (path, slot) in slots {
                slot.look(core, path, exits, *starts);
            }
            state = self.bell.wait_timeout(state, LOOK).map_or_else(|error| error.into_inner().0, |(state, _)| state);
        }
    }
}

impl Slot {
    fn look(&mut self, core: &Arc<Core>, path: &Path, exits: &mut Vec<Exit>, starts: bool) {
        if let Some(child) = &mut self.child {
            let Ok(Some(status)) = child.try_wait() else { return };
            let pid = child.id();
            core.transcript.print(0, "watcher.cpp", 500, &format!("{} ({pid}) ended: {status}", path.display()));
            exits.push(Exit { path: path.to_owned(), pid, status, at: Instant::now() });
            self.child = None;
            if self.started.elapsed() > LONGEST_DELAY * 2 {
                self.delay = core.options.respawn_delay;
            }
            self.due = Instant::now() + self.delay;
            self.delay = (self.delay * 2).min(LONGEST_DELAY.max(core.options.respawn_delay));
            core.transcript.ring();
        } else if starts && Instant::now() >= self.due {
            self.started = Instant::now();
            match launch(core, path) {
                Ok(child) => self.child = Some(child),
                Err(error) => {
                    core.transcript.print(2, "watcher.cpp", 770, &format!("cannot start {}: {error}", path.display()));
                    self.due = Instant::now() + LONGEST_DELAY;
                }
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

/// The paths in an autoload file that osqueryd would start.
fn autoloaded(file: &Path, allow_unsafe: bool, warn: &dyn Fn(String)) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        let path = PathBuf::from(line);
        let listed = match path.is_dir() {
            true => fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect(),
            false => vec![path],
        };
        for path in listed {
            match refusal(&path, allow_unsafe) {
                None => paths.push(path),
                Some(refusal) => warn(refusal),
            }
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

/// osqueryd's warning about a path that it does not start.
fn refusal(path: &Path, allow_unsafe: bool) -> Option<String> {
    let shown = path.display();
    let Ok(found) = fs::metadata(path) else {
        return Some(format!("extension doesn't exist at: {shown}"));
    };
    let parent = path.parent().and_then(|parent| fs::metadata(parent).ok());
    let sticky = parent.is_none_or(|parent| parent.mode() & 0o1000 != 0);
    let owned = found.uid() == 0 || found.uid() == geteuid().as_raw();
    let safe = !sticky && owned && found.mode() & 0o002 == 0 && found.mode() & 0o111 != 0;
    if !safe && !allow_unsafe {
        return Some(format!("Will not autoload extension with unsafe directory permissions: {shown}"));
    }
    let ends = path.extension().is_some_and(|extension| extension == "ext");
    (!ends).then(|| format!("Will not autoload extension not ending in one of '.ext': {shown}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::{autoloaded, refusal};

    #[test]
    fn the_autoload_file_has_comments_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for name in ["a.ext", "inner/b.ext", "inner/c.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let file = dir.path().join("extensions.load");
        let at = dir.path().display();
        fs::write(&file, format!("# x\n; y\n\n {at}/a.ext \n{at}/inner\n{at}/missing.ext\n")).unwrap();
        let warned = std::cell::RefCell::new(Vec::new());
        let paths = autoloaded(&file, true, &|warning| warned.borrow_mut().push(warning));
        assert_eq!(paths, [dir.path().join("a.ext"), inner.join("b.ext")]);
        assert_eq!(warned.borrow().len(), 2, "{warned:?}");
    }

    #[test]
    fn permissions_matter_unless_unsafe_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ext");
        fs::write(&path, "").unwrap();
        let refused = |mode: u32| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            refusal(&path, false).is_some()
        };
        assert!(!refused(0o755) && refused(0o757) && refused(0o644));
        assert_eq!(refusal(&path, true), None);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(refused(0o755));
    }
}
