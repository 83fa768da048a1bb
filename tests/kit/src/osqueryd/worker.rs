//! osqueryd's worker: the process that has the manager's socket, the configuration and the schedule. A new one
//! begins with nothing but the command line and the backing store.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{self, Connections};
use super::config::Config;
use super::core::{CATASTROPHIC, Core, random_uuid, sockets_beside, spawn};
use super::distributed::Finished;
use super::ending::Life;
use super::flags::Flags;
use super::lines::StatusLine;
use super::registry::{self, Registry};
use super::transcript::cut;
use super::worker_process::WorkerProcess;
use super::{CallOutcome, Row, lock, manager, tables};

/// How often osqueryd looks whether a plugin it waits for is there.
const STEP: Duration = Duration::from_millis(20);
/// It waits that long at least.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
/// How long a ping may take.
const PING: Duration = Duration::from_secs(10);

/// One worker. How it ends is in `ending.rs`.
pub(super) struct Worker {
    pub(super) core: Arc<Core>,
    /// The first one is 1.
    pub(super) number: usize,
    pub(super) socket: PathBuf,
    pub(super) flags: Mutex<Flags>,
    pub(super) registry: Mutex<Registry>,
    pub(super) config: Mutex<Config>,
    /// Scheduled queries: how often they ran, and when last.
    pub(super) runs: Mutex<BTreeMap<String, (u64, u64)>>,
    /// osqueryd's own log, until it is relayed, and the loggers that take it.
    pub(super) sink: Mutex<Vec<StatusLine>>,
    pub(super) sinks: Mutex<Vec<String>>,
    /// Distributed results that the plugin has not taken yet.
    pub(super) finished: Mutex<Vec<Finished>>,
    /// The plugins that were activated on the way up, by registry.
    pub(super) active: Mutex<BTreeMap<String, String>>,
    /// The process that an extension takes it for.
    pub(super) process: WorkerProcess,
    pub(super) born: Instant,
    /// The manager's connections.
    pub(super) served: Connections,
    /// Connections to extensions.
    pub(super) connections: Connections,
    pub(super) booted: AtomicBool,
    pub(super) life: Life,
    interrupted: Mutex<bool>,
    bell: Condvar,
    pub(super) listener: Mutex<Option<UnixListener>>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    ephemeral: String,
}

impl Worker {
    /// Sweeps old sockets away, binds the manager's, and serves it.
    pub(super) fn start(core: &Arc<Core>, number: usize) -> io::Result<Arc<Worker>> {
        let socket = core.socket();
        let _ = fs::remove_file(&socket);
        for stale in sockets_beside(&socket) {
            let _ = fs::remove_file(stale);
        }
        let (process, listener) = WorkerProcess::start(&socket)?;
        let worker = Arc::new(Worker {
            core: Arc::clone(core),
            number,
            socket,
            flags: Mutex::new(lock(&core.given).clone()),
            registry: Mutex::default(),
            config: Mutex::default(),
            runs: Mutex::default(),
            sink: Mutex::default(),
            sinks: Mutex::default(),
            finished: Mutex::default(),
            active: Mutex::default(),
            process,
            born: Instant::now(),
            served: Connections::default(),
            connections: Connections::default(),
            booted: AtomicBool::new(false),
            life: Life::default(),
            interrupted: Mutex::new(false),
            bell: Condvar::new(),
            listener: Mutex::new(Some(listener.try_clone()?)),
            threads: Mutex::default(),
            ephemeral: random_uuid(),
        });
        let (pid, shown) = (worker.process.id(), worker.socket.display());
        core.transcript.note(format!("worker {number} is process {pid} and serves {shown}"));
        let heard = Arc::clone(&worker);
        spawn("worker-process", move || heard.hear_process());
        worker.spawn("manager", move |worker| manager::serve(worker, &listener));
        worker.spawn("extension-pings", |worker| worker.watch_extensions());
        Ok(worker)
    }

    /// osqueryd's way up: config, logger, distributed, then the services. The error is the exit code and its reason.
    pub(super) fn boot(self: &Arc<Worker>) -> Result<(), (i32, String)> {
        self.activate("config")?;
        self.load_config();
        if !lock(&self.flags).is("disable_logging") {
            self.activate("logger")?;
            self.init_logger();
        }
        if !lock(&self.flags).is("disable_distributed") {
            self.activate("distributed")?;
        }
        if self.is_interrupted() {
            return Err((0, "interrupted".to_owned()));
        }
        let options = &self.core.options;
        if options.scheduler {
            self.spawn("scheduler", |worker| worker.run_schedule());
        }
        if options.status_relay {
            self.spawn("relay", |worker| {
                while !worker.pause(worker.core.options.relay_interval) {
                    worker.relay_status();
                }
            });
        }
        if options.distributed && !lock(&self.flags).is("disable_distributed") {
            self.spawn("distributed", |worker| worker.run_distributed());
        }
        self.booted.store(true, Ordering::SeqCst);
        self.core.transcript.note(format!("worker {} is up", self.number));
        Ok(())
    }

    /// Waits for the plugins that the registry's flag names.
    fn activate(&self, registry: &str) -> Result<(), (i32, String)> {
        let (name, seconds) = {
            let flags = lock(&self.flags);
            (flags.value(&format!("{registry}_plugin")), flags.number("extensions_timeout"))
        };
        let deadline = Instant::now() + Duration::from_secs(seconds).max(SHORTEST_WAIT);
        loop {
            let Err(reason) = self.is_active(registry, &name) else {
                lock(&self.active).insert(registry.to_owned(), name);
                return Ok(());
            };
            let waits = self.core.watcher.has_extensions() && Instant::now() < deadline;
            if !waits || self.pause(STEP) {
                return Err((CATASTROPHIC, format!("Cannot activate {name} {registry} plugin: {reason}")));
            }
        }
    }

    /// The plugins that osqueryd calls in a registry: those that were activated on the way up, whatever has become of
    /// the flag since. In a worker that does not go up, the flag's.
    pub(super) fn plugin_of(&self, registry: &str) -> String {
        let active = lock(&self.active).get(registry).cloned();
        active.unwrap_or_else(|| lock(&self.flags).value(&format!("{registry}_plugin")))
    }

    /// Whether every plugin of the list is there and answers.
    fn is_active(&self, registry: &str, list: &str) -> Result<(), String> {
        let mut owners = Vec::new();
        for item in items(list) {
            if registry::is_built_in(registry, item) {
                continue;
            }
            let owner = lock(&self.registry).owner(registry, item);
            owners.push(owner.ok_or_else(|| format!("Unknown registry plugin: {item}"))?);
        }
        for uuid in owners {
            let path = self.socket_of(uuid);
            client::ping(&self.connections, &path, PING)
                .map_err(|error| format!("Extension socket not available: {} ({error})", path.display()))?;
        }
        Ok(())
    }

    /// osqueryd's `Registry::call`, wherever the plugin is. What goes wrong on the way is status code 1.
    pub(super) fn registry_call(&self, registry: &str, item: &str, request: &[(&str, &[u8])]) -> CallOutcome {
        if registry::is_built_in(registry, item) || (registry == "table" && tables::names().contains(&item)) {
            let fields =
                |(name, value): &(&str, &[u8])| ((*name).to_owned(), String::from_utf8_lossy(value).into_owned());
            return self.built_in_call(registry, item, &request.iter().map(fields).collect());
        }
        self.extension_call(registry, item, request).unwrap_or_else(|message| CallOutcome::failed(&message))
    }

    /// A call to the extension that has the plugin. The error is what went wrong below the status.
    pub(super) fn extension_call(
        &self,
        registry: &str,
        item: &str,
        request: &[(&str, &[u8])],
    ) -> Result<CallOutcome, String> {
        let Some(uuid) = lock(&self.registry).owner(registry, item) else {
            return Err(format!("Cannot call registry item: {item}"));
        };
        let timeout = Duration::from_secs(lock(&self.flags).number("thrift_timeout").max(1));
        let begun = Instant::now();
        let called = client::call(&self.connections, &self.socket_of(uuid), registry, item, request, timeout);
        let shown = request.iter().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)));
        let (shown, took) = (shown.collect::<Vec<_>>().join(", "), begun.elapsed().as_secs_f64() * 1000.0);
        let answer = match &called {
            Ok(outcome) => format!("{} {:?} {:?}", outcome.code, outcome.message, outcome.rows),
            Err(error) => error.clone(),
        };
        let (shown, answer) = (cut(&shown), cut(&answer));
        self.core.transcript.note(format!("call {registry}/{item} {shown}"));
        self.core.transcript.note(format!("  -> ({took:.1} ms) {answer}"));
        called
    }

    /// A call of a plugin that osqueryd has itself.
    pub(super) fn built_in_call(&self, registry: &str, item: &str, request: &Row) -> CallOutcome {
        match registry {
            "database" => match lock(&self.core.database).call(request) {
                Ok(rows) => CallOutcome { rows, ..CallOutcome::default() },
                Err(message) => CallOutcome::failed(&message),
            },
            "config" => self.config_call(item, request),
            "table" => tables::call(self, item, request),
            "logger" => CallOutcome::default(),
            _ => CallOutcome::failed("not in the stand-in"),
        }
    }

    /// The socket of a registered extension.
    pub(super) fn socket_of(&self, uuid: i64) -> PathBuf {
        PathBuf::from(format!("{}.{uuid}", self.socket.display()))
    }

    /// The `hostIdentifier` of lines.
    pub(super) fn identifier(&self) -> String {
        let (kind, specified) = {
            let flags = lock(&self.flags);
            (flags.value("host_identifier"), flags.value("specified_identifier"))
        };
        match kind.as_str() {
            "uuid" => self.core.host_uuid(),
            "instance" => self.core.instance_uuid(),
            "ephemeral" => self.ephemeral.clone(),
            "specified" if !specified.is_empty() => specified,
            _ => tables::hostname(),
        }
    }

    /// Drops an extension and its plugins.
    pub(super) fn forget(&self, uuid: i64) -> bool {
        let known = lock(&self.registry).remove(uuid);
        self.core.transcript.note(format!("extension {uuid} is forgotten (known: {known})"));
        known
    }

    /// A single failed ping makes the manager drop the extension. One whose socket is not there yet has the autoload
    /// timeout to bind it, the first time. When the worker ends, every extension is asked to.
    fn watch_extensions(&self) {
        let mut seen = Vec::new();
        loop {
            let interval = lock(&self.flags).number("extensions_interval");
            for uuid in self.extensions() {
                let path = self.socket_of(uuid);
                let timeout = Duration::from_secs(lock(&self.flags).number("extensions_timeout"));
                let deadline = Instant::now() + if seen.contains(&uuid) { Duration::ZERO } else { timeout };
                while !path.exists() && Instant::now() < deadline && !self.pause(STEP) {}
                seen.push(uuid);
                let pinged = client::ping(&self.connections, &path, PING);
                if !matches!(pinged, Ok(code) if code != 1) && !self.is_interrupted() {
                    self.print(0, "extensions.cpp", 324, &format!("Extension UUID {uuid} has gone away"));
                    self.forget(uuid);
                }
            }
            if self.pause(Duration::from_secs(interval).max(SHORTEST_WAIT)) {
                return self.call_shutdown();
            }
        }
    }

    /// Asks every extension to end, one after the other, and waits for the answers.
    fn call_shutdown(&self) {
        let timeout = Duration::from_secs(lock(&self.flags).number("thrift_timeout").max(1));
        for uuid in self.extensions().into_iter().filter(|_| self.is_alive()) {
            let called = client::shutdown(&self.connections, &self.socket_of(uuid), timeout);
            self.core.transcript.note(format!("shutdown() of {uuid}: {called:?}"));
        }
        self.life.has_asked.store(true, Ordering::SeqCst);
        self.core.transcript.ring();
    }

    fn extensions(&self) -> Vec<i64> {
        lock(&self.registry).extensions().keys().copied().collect()
    }

    /// Starts a thread that is joined when the worker ends. A worker that is ending starts none.
    pub(super) fn spawn(self: &Arc<Worker>, name: &str, run: impl FnOnce(&Arc<Worker>) + Send + 'static) {
        if self.is_interrupted() {
            return;
        }
        let worker = Arc::clone(self);
        let handle = spawn(name, move || run(&worker));
        lock(&self.threads).push(handle);
    }

    /// Waits. True, and at once, when the worker is to end.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut interrupted = lock(&self.interrupted);
        while !*interrupted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            interrupted =
                self.bell.wait_timeout(interrupted, left).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
        true
    }

    pub(super) fn is_interrupted(&self) -> bool {
        *lock(&self.interrupted)
    }

    /// Asks its threads to end.
    pub(super) fn interrupt(&self) {
        *lock(&self.interrupted) = true;
        self.bell.notify_all();
        self.core.transcript.ring();
    }
}

/// The names in a comma-separated list.
pub(super) fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}
