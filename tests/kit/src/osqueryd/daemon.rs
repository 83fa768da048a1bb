//! The handle that a test holds: starts, inspects and ends a stand-in. What it can be told to do is in `driving.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::core::Core;
use super::flagfile;
use super::flags::{Flags, Refused};
use super::options::{Options, StartError};
use super::registry::Registration;
use super::watcher::{Exit, StopReport, WorkerStop};
use super::worker::Worker;
use super::{Row, lock};

/// A waiting test looks again at least this often, for conditions that nothing here changes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running stand-in. Dropping it stops it, and kills what is left of its children.
pub struct Osqueryd {
    pub(super) core: Arc<Core>,
    /// Workers go all the way up by themselves.
    boots: bool,
    /// The transcript was in a panic's message already.
    shown: AtomicBool,
}

impl Osqueryd {
    /// Starts the watcher and a worker. Returns when the plugins that the flags name are registered, the first
    /// genConfig is answered (whatever the answer is) and the logger is initialized; or with what osqueryd would
    /// have ended with.
    pub fn start(options: Options) -> Result<Osqueryd, StartError> {
        let daemon = Osqueryd::prepare(options, Flags::default(), true)?;
        daemon.start_worker()?;
        Ok(daemon)
    }

    /// The same, without waiting: what goes wrong is then in [`Osqueryd::exit_code`].
    pub fn launch(options: Options) -> Result<Osqueryd, StartError> {
        let daemon = Osqueryd::prepare(options, Flags::default(), true)?;
        daemon.core.launch_worker()?;
        Ok(daemon)
    }

    /// Starts the watcher and the manager's socket and nothing more: no waiting for plugins, no genConfig, `init` or
    /// schedule.
    ///
    /// # Panics
    /// When the directory or the flags are unusable.
    pub fn start_bare(options: Options) -> Osqueryd {
        let daemon = Osqueryd::prepare(options, Flags::default(), false).expect("a stand-in can be prepared");
        daemon.core.new_worker().expect("the manager's socket can be bound");
        daemon
    }

    /// As osqueryd's `main`: its arguments are command line flags, `--flagfile` among them, over which those of the
    /// options go. Does not wait.
    pub fn launch_with_arguments(options: Options, arguments: &[String]) -> Result<Osqueryd, StartError> {
        let mut flags = Flags::default();
        flagfile::arguments(arguments, &mut flags).map_err(|message| StartError {
            code: 1,
            message,
            transcript: String::new(),
        })?;
        let daemon = Osqueryd::prepare(options, flags, true)?;
        daemon.core.launch_worker()?;
        Ok(daemon)
    }

    fn prepare(options: Options, flags: Flags, boots: bool) -> Result<Osqueryd, StartError> {
        let core = Core::new(options, flags)?;
        let daemon = Osqueryd { core, boots, shown: AtomicBool::new(false) };
        daemon.core.watcher.start(&daemon.core);
        Ok(daemon)
    }

    /// A new worker after [`Osqueryd::kill_worker`], as the watcher starts one: sockets are swept away, and nothing
    /// is known but the command line and the backing store. Returns as [`Osqueryd::start`] does, or once the socket
    /// is bound when this stand-in was started bare.
    pub fn start_worker(&self) -> Result<(), StartError> {
        let worker = self.core.new_worker()?;
        if !self.boots {
            return Ok(());
        }
        worker.boot().map_err(|(code, message)| {
            self.core.request_shutdown(code, &message);
            self.core.end();
            StartError { code, message, transcript: self.transcript() }
        })
    }

    /// As `kill -9` of the worker: every connection in both directions ends at once, no extension is told, and the
    /// socket's file stays. The watcher and its extensions live on. The process is a zombie until the watcher looks.
    pub fn kill_worker(&self) {
        self.core.transcript.note("the worker is killed");
        self.worker().kill();
    }

    /// As `kill -9` of both the worker and the watcher; children are sent nothing, and run on.
    pub fn kill_all(&self) {
        self.core.watcher.abandon();
        self.kill_worker();
    }

    /// As the watchdog's stop of the worker at one of its limits: SIGTERM, SIGKILL after
    /// `watchdog_forced_shutdown_delay`, and no signal to extensions. The worker ends in order, with all the lines that
    /// it has to log; then another one is started, and this returns as [`Osqueryd::start_worker`] does.
    pub fn watchdog_stop(&self) -> Result<Option<WorkerStop>, StartError> {
        let _replacing = lock(&self.core.replacement);
        self.core.transcript.note("the watchdog stops the worker");
        let seconds = lock(&self.core.given).number("watchdog_forced_shutdown_delay");
        let stop = self.worker().stop(Duration::from_secs(seconds));
        self.start_worker()?;
        Ok(stop)
    }

    /// A clean stop, in osqueryd's way: SIGTERM to the worker and to every extension in the same moment, SIGKILL
    /// after [`Options::kill_after`] for those that are still there. The worker hangs up, sweeps the sockets away,
    /// finishes what it is at, which can be thousands of lines, and ends. Returns when all of them are gone.
    pub fn stop(&self) -> StopReport {
        self.core.end()
    }

    /// The manager forgets an extension, as after a failed ping, while both run on.
    pub fn drop_extension(&self, uuid: i64) {
        self.worker().forget(uuid);
    }

    /// While true, the manager accepts connections and answers nothing.
    pub fn hang(&self, hangs: bool) {
        self.core.hangs.store(hangs, Ordering::SeqCst);
        self.core.transcript.note(format!("the manager hangs: {hangs}"));
    }

    /// Before its first configuration osqueryd has chosen the config plugin only, and its registry shows all others as active.
    pub fn undecided(&self, undecided: bool) {
        self.core.undecided.store(undecided, Ordering::SeqCst);
    }

    /// While true, osqueryd's log has a line about each query that it runs for an extension.
    pub fn remark_on_queries(&self, remarks: bool) {
        self.core.remarks.store(remarks, Ordering::SeqCst);
    }

    /// Waits until the extension `remote_tls` is registered with the present worker, and returns its uuid.
    pub fn wait_registered(&self, limit: Duration) -> i64 {
        self.wait_extension("remote_tls", limit)
    }

    /// Waits until an extension of that name is registered with the present worker, and returns its uuid.
    pub fn wait_extension(&self, name: &str, limit: Duration) -> i64 {
        self.wait(&format!("extension {name} to be registered"), limit, || self.uuid(name))
    }

    /// The uuid under which an extension is registered now.
    pub fn uuid(&self, name: &str) -> Option<i64> {
        let worker = self.worker();
        let registry = lock(&worker.registry);
        registry.extensions().iter().find(|(_, extension)| extension.name == name).map(|(uuid, _)| *uuid)
    }

    /// The process that the watcher started for an extension: by the file's name without `.ext`, by the name it
    /// registered from that very process, or, if there is only one child, by any name that registered.
    pub fn extension_pid(&self, name: &str) -> Option<u32> {
        let children = self.core.watcher.children();
        let registered: Vec<Registration> =
            self.registrations().into_iter().filter(|registration| registration.name == name).collect();
        let stem = |path: &Path| path.file_stem().is_some_and(|stem| stem == name);
        let by_pid = |pid: u32| registered.iter().any(|registration| registration.pid == Some(pid));
        let named = children.iter().find(|(path, pid)| stem(path) || by_pid(*pid));
        match &children[..] {
            [only] if !registered.is_empty() => Some(only.1),
            _ => named.map(|(_, pid)| *pid),
        }
    }

    /// The worker's process. An extension sees it at the other end of its manager connections.
    pub fn worker_pid(&self) -> u32 {
        self.worker().process.id()
    }

    /// The extensions that run now: their paths and process ids.
    pub fn children(&self) -> Vec<(PathBuf, u32)> {
        self.core.watcher.children()
    }

    /// Every exit of an extension so far.
    pub fn exits(&self) -> Vec<Exit> {
        self.core.watcher.exits()
    }

    /// Sends a signal, by its number, to an extension that runs. Others are left alone.
    ///
    /// # Panics
    /// When there is no signal of that number.
    pub fn signal(&self, pid: u32, signal: i32) {
        let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal's number");
        self.core.transcript.note(format!("test sends {signal:?} to {pid}"));
        self.core.watcher.signal(pid, signal);
    }

    /// Every successful registration so far, with any worker.
    pub fn registrations(&self) -> Vec<Registration> {
        lock(&self.core.registrations).clone()
    }

    /// Changes a flag, for this worker and later ones.
    ///
    /// # Panics
    /// When osqueryd would refuse it.
    pub fn options_set(&self, name: &str, value: &str) {
        let worker = self.worker();
        for flags in [&self.core.given, &worker.flags] {
            let mut flags = lock(flags);
            match flags.set(name, value) {
                Ok(()) => {}
                Err(Refused::Unknown) if name.starts_with("custom_") => flags.set_custom(name, value),
                Err(refused) => panic!("flag {name}={value} is refused: {refused:?}"),
            }
        }
    }

    /// A flag's value now.
    pub fn option(&self, name: &str) -> String {
        lock(&self.worker().flags).value(name)
    }

    /// A value in the backing store.
    pub fn store_get(&self, domain: &str, key: &str) -> Option<String> {
        lock(&self.core.database).value(domain, key)
    }

    /// Puts a value into the backing store.
    pub fn store_put(&self, domain: &str, key: &str, value: &str) {
        lock(&self.core.database).put(domain, key, value);
    }

    /// Removes a value from the backing store.
    pub fn store_remove(&self, domain: &str, key: &str) {
        lock(&self.core.database).remove(domain, key);
    }

    /// Every answer to genConfig and every push that was taken, `source → text`, also when the text was the same
    /// again or no configuration at all.
    pub fn configs(&self) -> Vec<Row> {
        lock(&self.core.configs).clone()
    }

    /// The schedule now in force: full name, SQL and interval.
    pub fn schedule(&self) -> Vec<(String, String, u64)> {
        let worker = self.worker();
        let config = lock(&worker.config);
        config.schedule().map(|query| (query.name.clone(), query.sql.clone(), query.interval)).collect()
    }

    /// The decorations that go into lines now.
    pub fn decorations(&self) -> Row {
        lock(&self.worker().config).all_decorations()
    }

    /// Seconds to the next config refresh.
    pub fn config_interval(&self) -> u64 {
        lock(&self.worker().config).refresh
    }

    /// How many distributed results wait for a `writeResults` that succeeds.
    pub fn distributed_pending(&self) -> usize {
        lock(&self.worker().finished).len()
    }

    /// The exit code, from the moment at which the end was decided: 78 after a failed logger call, 0 after a clean
    /// stop.
    pub fn exit_code(&self) -> Option<i32> {
        self.core.exit().map(|(code, _)| code)
    }

    /// Whether all of osqueryd and its extensions has ended: some time after there is an exit code.
    pub fn is_over(&self) -> bool {
        self.core.is_over()
    }

    /// Whether the present worker went all the way up.
    pub fn is_up(&self) -> bool {
        self.worker().booted.load(Ordering::SeqCst)
    }

    /// The manager's socket.
    pub fn socket(&self) -> PathBuf {
        self.core.socket()
    }

    /// Waits for a condition. Panics, with what was waited for and the transcript, when the limit is over.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            if Instant::now() >= deadline {
                self.shown.store(true, Ordering::SeqCst);
                panic!("waited {limit:?} in vain for {what}\n{}", self.transcript());
            }
            self.core.transcript.wait_for_change(LOOK_AGAIN);
        }
    }

    /// Returns at the next thing that happens, or when the time is over.
    pub fn wait_briefly(&self, time: Duration) {
        self.core.transcript.wait_for_change(time);
    }

    /// What happened: calls in both directions (cut at 300 characters), registrations, children and their output,
    /// osqueryd's own log. Only the newest 4000 entries are kept.
    pub fn transcript(&self) -> String {
        self.core.transcript.render()
    }

    /// Everything that extensions wrote, to standard error or standard output.
    pub fn stderr_of_extensions(&self) -> String {
        self.core.transcript.children()
    }

    pub(super) fn worker(&self) -> Arc<Worker> {
        lock(&self.core.worker).clone().expect("there is a worker from the start on")
    }
}

impl Drop for Osqueryd {
    fn drop(&mut self) {
        if thread::panicking() && !self.shown.load(Ordering::SeqCst) {
            eprintln!("osqueryd's transcript:\n{}", self.transcript());
        }
        self.core.end();
        // The worker and the core know each other.
        lock(&self.core.worker).take();
    }
}
