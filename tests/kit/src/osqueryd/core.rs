//! What outlives a worker: the command line, the backing store, the watcher, and how the daemon ends.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::database::{CONFIGURATIONS, Database};
use super::flags::{Flags, Refused};
use super::options::{Options, StartError};
use super::registry::Registration;
use super::respawns::{Next, Respawns};
use super::transcript::Transcript;
use super::watcher::{StopReport, Watcher};
use super::worker::Worker;
use super::{Row, calendar, lock, worker_process};

/// The exit code of a daemon that cannot do its work.
pub(super) const CATASTROPHIC: i32 = 78;
/// What the watcher keeps for itself of `alarm_timeout`: its children get the rest of it to end.
const WATCHER_PART: Duration = Duration::from_secs(4);

/// What the watcher knows of the deaths of workers.
#[derive(Default)]
pub(super) struct Replacement {
    respawns: Respawns,
    /// The last worker whose death was answered, and when the next one is due.
    answered: usize,
    due: Option<Instant>,
}

/// The daemon without its worker.
pub(super) struct Core {
    pub(super) options: Options,
    /// As given on the command line: a new worker begins with them.
    pub(super) given: Mutex<Flags>,
    pub(super) database: Mutex<Database>,
    pub(super) transcript: Transcript,
    pub(super) started: u64,
    pub(super) registrations: Mutex<Vec<Registration>>,
    pub(super) configs: Mutex<Vec<Row>>,
    pub(super) hangs: AtomicBool,
    /// Which plugins are used is not decided.
    pub(super) undecided: AtomicBool,
    pub(super) remarks: AtomicBool,
    pub(super) worker: Mutex<Option<Arc<Worker>>>,
    pub(super) watcher: Watcher,
    /// Calls that carried a line to a logger, and those of them that were not answered with 0.
    pub(super) lines_logged: AtomicU64,
    pub(super) lines_lost: AtomicU64,
    /// Held while a worker is stopped to be replaced: that is no death.
    pub(super) replacement: Mutex<Replacement>,
    exit: Mutex<Option<(i32, String)>>,
    report: Mutex<Option<StopReport>>,
}

impl Core {
    /// Prepares everything that is on disk; starts nothing.
    pub(super) fn new(options: Options, given: Flags) -> Result<Arc<Core>, StartError> {
        let transcript = Transcript::new(options.echo);
        let failed = |message: String| StartError { code: 1, message, transcript: String::new() };
        let mut given = given;
        for (name, value) in &options.flags {
            match given.set(name, value) {
                Ok(()) => {}
                Err(Refused::Unknown) if name.starts_with("custom_") => given.set_custom(name, value),
                Err(refused) => return Err(failed(format!("flag {name}={value} is refused: {refused:?}"))),
            }
        }
        for (name, on) in [("verbose", options.verbose), ("allow_unsafe", options.allow_unsafe)] {
            if on {
                let _ = given.set(name, "true");
            }
        }
        // Before any extension is started: it waits only seconds for the manager.
        worker_process::program().map_err(|error| failed(error.to_string()))?;
        let prepared = prepare(&options, &given).map_err(|error| failed(error.to_string()))?;
        Ok(Arc::new(Core {
            options,
            given: Mutex::new(given),
            database: Mutex::new(prepared),
            transcript,
            started: calendar::unix_time(),
            registrations: Mutex::default(),
            configs: Mutex::default(),
            hangs: AtomicBool::new(false),
            undecided: AtomicBool::new(false),
            remarks: AtomicBool::new(false),
            worker: Mutex::default(),
            watcher: Watcher::default(),
            lines_logged: AtomicU64::new(0),
            lines_lost: AtomicU64::new(0),
            replacement: Mutex::default(),
            exit: Mutex::default(),
            report: Mutex::default(),
        }))
    }

    /// A period of osqueryd's on the stand-in's clock.
    pub(super) fn scaled(&self, period: Duration) -> Duration {
        period / self.options.time_scale.max(1)
    }

    pub(super) fn exit(&self) -> Option<(i32, String)> {
        lock(&self.exit).clone()
    }

    /// Starts a worker, which serves the manager and nothing more so far.
    pub(super) fn new_worker(self: &Arc<Core>) -> Result<Arc<Worker>, StartError> {
        let mut current = lock(&self.worker);
        let failed = |code, message| StartError { code, message, transcript: self.transcript.render() };
        if let Some((code, message)) = self.exit() {
            return Err(failed(code, message));
        }
        let number = current.as_ref().map_or(1, |worker| worker.number + 1);
        if let Some(dead) = current.as_ref().filter(|worker| worker.is_gone()) {
            dead.process.reap();
        }
        let worker = Worker::start(self, number).map_err(|error| {
            failed(1, format!("cannot start the extension manager ({}): {error}", self.socket().display()))
        })?;
        *current = Some(Arc::clone(&worker));
        Ok(worker)
    }

    /// Starts a worker that goes all the way up by itself.
    pub(super) fn launch_worker(self: &Arc<Core>) -> Result<(), StartError> {
        let worker = self.new_worker()?;
        let core = Arc::clone(self);
        worker.spawn("boot", move |worker| {
            let Err((code, message)) = worker.boot() else { return };
            // A worker that was killed or stopped on its way has not failed.
            if worker.is_alive() && !worker.is_interrupted() {
                core.request_shutdown(code, &message);
            }
        });
        Ok(())
    }

    /// What the watcher does when it looks at its worker: one that has died is waited for, and followed by another.
    pub(super) fn look_at_worker(self: &Arc<Core>) {
        let Ok(mut replacement) = self.replacement.try_lock() else { return };
        let Some(worker) = lock(&self.worker).clone().filter(|worker| worker.is_gone()) else { return };
        worker.process.reap();
        if !self.options.restarts_worker || self.exit().is_some() {
            return;
        }
        if replacement.answered < worker.number {
            replacement.answered = worker.number;
            let second = self.options.watch_interval / 3;
            match replacement.respawns.answer(worker.born.elapsed(), second) {
                Next::GiveUp => return self.request_shutdown(0, "Too many worker restarts"),
                Next::After(delay) => replacement.due = Some(Instant::now() + delay),
            }
            let deaths = replacement.respawns.early_deaths();
            let message = format!("osqueryd worker {} has died; early deaths so far: {deaths}", worker.process.id());
            self.transcript.print(1, "watcher.cpp", 666, &message);
        }
        if replacement.due.is_some_and(|due| Instant::now() >= due) {
            replacement.due = None;
            if let Err(error) = self.launch_worker() {
                self.request_shutdown(error.code, &error.message);
            }
        }
    }

    /// Asks the daemon to end, as osqueryd's `requestShutdown` in its worker: the first code counts. Returns at once.
    ///
    /// The worker ends in order. The watcher sees that at its next look, and stops the extensions.
    pub(super) fn request_shutdown(self: &Arc<Core>, code: i32, message: &str) {
        let mut exit = lock(&self.exit);
        if exit.is_some() {
            return;
        }
        *exit = Some((code, message.to_owned()));
        drop(exit);
        let severity = if code == 0 { 0 } else { 2 };
        self.transcript.print(severity, "shutdown.cpp", 79, &format!("{message} (exit code {code})"));
        let core = Arc::clone(self);
        spawn("shutdown", move || {
            let worker = lock(&core.worker).clone();
            if let Some(worker) = worker.filter(|worker| worker.is_alive()) {
                worker.begin_end(code);
                // The worker's own alarm ends it when its services don't.
                if !worker.wait_gone(core.alarm()) {
                    worker.kill();
                }
                core.watcher.wait_for_look();
            }
            core.end();
        });
    }

    /// A clean stop by the watcher, once; later callers wait for the same report.
    pub(super) fn end(self: &Arc<Core>) -> StopReport {
        lock(&self.exit).get_or_insert((0, "stopped".to_owned()));
        let mut report = lock(&self.report);
        if let Some(report) = &*report {
            return report.clone();
        }
        let limit = self.options.kill_after.unwrap_or_else(|| self.alarm().saturating_sub(WATCHER_PART));
        let worker = lock(&self.worker).clone();
        // Both get their SIGTERM in the same moment.
        let stopping = worker.clone().map(|worker| thread::spawn(move || worker.stop(limit)));
        let extensions = self.watcher.stop(self, limit);
        let worker_stop = stopping.and_then(|stopping| stopping.join().ok().flatten());
        if let Some(worker) = worker {
            worker.process.reap();
        }
        lock(&self.database).save();
        let sockets_left = sockets_beside(&self.socket());
        let done = StopReport { extensions, worker: worker_stop, sockets_left };
        *report = Some(done.clone());
        self.transcript.note("osqueryd is gone");
        done
    }

    /// Whether the end has come, for whatever reason it has.
    pub(super) fn is_over(&self) -> bool {
        self.report.try_lock().is_ok_and(|report| report.is_some())
    }

    /// `alarm_timeout`.
    fn alarm(&self) -> Duration {
        Duration::from_secs(lock(&self.given).number("alarm_timeout"))
    }

    /// The manager's socket.
    pub(super) fn socket(&self) -> PathBuf {
        PathBuf::from(lock(&self.given).value("extensions_socket"))
    }

    /// The host's uuid, from the backing store.
    pub(super) fn host_uuid(&self) -> String {
        self.kept_uuid("host_uuid_v3")
    }

    /// This installation's uuid, from the backing store.
    pub(super) fn instance_uuid(&self) -> String {
        self.kept_uuid("instance_uuid_v1")
    }

    fn kept_uuid(&self, key: &str) -> String {
        let mut database = lock(&self.database);
        database.value(CONFIGURATIONS, key).unwrap_or_else(|| {
            let uuid = random_uuid();
            database.put(CONFIGURATIONS, key, &uuid);
            uuid
        })
    }

    /// Every answer to genConfig and every push, in order.
    pub(super) fn note_config(&self, answer: &BTreeMap<String, String>) {
        lock(&self.configs).push(answer.clone());
        self.transcript.ring();
    }
}

/// A thread with a name.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).expect("a thread starts")
}

/// The sockets of extensions: `S.*`.
pub(super) fn sockets_beside(socket: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).collect()
}

/// A random uuid of version 4.
pub(super) fn random_uuid() -> String {
    let random = || RandomState::new().build_hasher().finish();
    let (high, low) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}

fn prepare(options: &Options, given: &Flags) -> io::Result<Database> {
    fs::create_dir_all(&options.dir)?;
    if let Some(parent) = Path::new(&given.value("extensions_socket")).parent() {
        fs::create_dir_all(parent)?;
    }
    if !options.extensions.is_empty() {
        let mut lines = String::new();
        for binary in &options.extensions {
            lines.push_str(&format!("{}\n", placed(&options.dir, binary)?.display()));
        }
        fs::write(given.value("extensions_autoload"), lines)?;
    }
    let path = given.value("database_path");
    let on_disk = !given.is("disable_database");
    Database::open(on_disk.then_some(Path::new(&path)))
}

/// The binary under a name that osqueryd takes. A link where possible: a file that was just written cannot always
/// be executed at once, while other threads start processes.
fn placed(dir: &Path, binary: &Path) -> io::Result<PathBuf> {
    if binary.extension().is_some_and(|extension| extension == "ext") {
        return Ok(binary.to_owned());
    }
    let name = binary.file_stem().unwrap_or_default().to_string_lossy();
    let target = dir.join(format!("{name}.ext"));
    match fs::remove_file(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if fs::hard_link(binary, &target).is_err() {
        fs::copy(binary, &target)?;
    }
    Ok(target)
}
