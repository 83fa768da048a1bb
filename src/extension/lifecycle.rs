//! Registers with osqueryd, watches that it is there, and registers again when it comes back.
//!
//! osqueryd's watcher starts the extension; its worker is what the extension registers with. When the worker dies,
//! the watcher starts another one and leaves the extension alone, and the new worker waits only
//! `extensions_timeout` seconds for the plugins: so the extension joins it from the same process, at once.

use std::os::unix::process::parent_id;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::manager::{Manager, ManagerError};
use super::registry::Registry;
use super::server::{Server, ThreadCount};

/// What the main thread waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The manager connection broke: osqueryd may be gone.
    HungUp,
    /// A signal asks for the end.
    Signal,
    /// osqueryd asks for the end, since it is ending itself.
    Shutdown,
}

/// Between two looks for a manager. osqueryd's worker that restarts waits 3 s for its plugins.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a "duplicate" refusal is taken for an entry that osqueryd has not pruned yet.
const DUPLICATE_LIMIT: Duration = Duration::from_secs(5);

/// Why the extension could not be, or stay, registered.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// No manager came within `--timeout`.
    #[error("no osqueryd to register with after {waited:?}; is it running, with extensions enabled?")]
    NoManager {
        /// How long it was waited for.
        waited: Duration,
        /// The last attempt's error.
        source: ManagerError,
    },
    /// osqueryd refused the registration.
    #[error("osqueryd does not accept the extension (is another copy of it running?)")]
    Refused(#[source] ManagerError),
    /// The socket could not be served.
    #[error("can't listen on the extension's socket beside {path}")]
    Socket {
        /// The manager's socket.
        path: std::path::PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

/// Holds the extension registered.
pub struct Lifecycle {
    /// osqueryd's manager.
    pub manager: Arc<Manager>,
    /// What is offered.
    pub registry: Arc<Registry>,
    /// What can happen.
    pub events: Receiver<Event>,
    /// Given to the server, for osqueryd's `shutdown` call.
    pub sender: Sender<Event>,
    /// Counts the server's threads.
    pub threads: ThreadCount,
    /// Between two checks that osqueryd still knows us.
    pub interval: Duration,
    /// How long osqueryd is waited for when it has gone away.
    pub return_timeout: Duration,
    /// Called after each registration: osqueryd may be another one, with other flags.
    pub attached: Box<dyn Fn()>,
}

/// A registration and its socket.
struct Attachment {
    uuid: i64,
    server: Server,
}

/// Waits for a manager to accept a connection, at most `limit`: whether one did before `stop`, which also makes the
/// pause between two attempts, said that the wait is over.
pub fn wait_for_manager(
    manager: &Manager,
    limit: Duration,
    mut stop: impl FnMut(Duration) -> bool,
) -> Result<bool, LifecycleError> {
    let began = Instant::now();
    loop {
        match manager.connect() {
            Ok(()) => return Ok(true),
            Err(source) if began.elapsed() >= limit => {
                return Err(LifecycleError::NoManager { waited: limit, source });
            }
            Err(_) if stop(LOOK_INTERVAL) => return Ok(false),
            Err(_) => {}
        }
    }
}

/// Waits a moment: whether the end was asked for meanwhile.
pub fn stopped_within(events: &Receiver<Event>, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::HungUp) => {}
            Ok(Event::Signal | Event::Shutdown) | Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

impl Lifecycle {
    /// Registers, and stays registered until the end is asked for or osqueryd is gone for good.
    pub fn run(self) -> Result<(), LifecycleError> {
        let parent = parent_id();
        let Some(mut attachment) = self.attach()? else { return Ok(()) };
        loop {
            match self.events.recv_timeout(self.interval) {
                Ok(Event::Signal) => {
                    self.manager.deregister(attachment.uuid);
                    attachment.server.close();
                    return Ok(());
                }
                Ok(Event::Shutdown) | Err(RecvTimeoutError::Disconnected) => {
                    attachment.server.close();
                    return Ok(());
                }
                Ok(Event::HungUp) | Err(RecvTimeoutError::Timeout) => {}
            }
            if !self.known(attachment.uuid) {
                log::info!("osqueryd is gone, or has forgotten this extension: registering again when it is there");
                attachment.server.close();
                match self.reattach(parent)? {
                    Some(next) => attachment = next,
                    None => return Ok(()),
                }
            }
        }
    }

    /// Registers and serves; `None` when the end was asked for meanwhile.
    fn attach(&self) -> Result<Option<Attachment>, LifecycleError> {
        let socket = self.manager.socket();
        let unusable = |source| LifecycleError::Socket { path: socket.to_owned(), source };
        let mut server = Server::start(socket, Arc::clone(&self.registry), self.sender.clone(), self.threads.clone())
            .map_err(unusable)?;
        let uuid = match self.register() {
            Ok(Some(uuid)) => uuid,
            other => {
                server.close();
                return other.map(|_| None);
            }
        };
        server.publish(uuid).map_err(unusable)?;
        log::info!("registered with osqueryd as {uuid}, serving {}", server.path().display());
        (self.attached)();
        Ok(Some(Attachment { uuid, server }))
    }

    fn register(&self) -> Result<Option<i64>, LifecycleError> {
        let began = Instant::now();
        loop {
            match self.manager.register(&self.registry) {
                Ok(uuid) => return Ok(Some(uuid)),
                Err(error) if is_duplicate(&error) && began.elapsed() < DUPLICATE_LIMIT => {
                    log::debug!("osqueryd still has an entry of this name; trying again");
                }
                Err(error) => return Err(LifecycleError::Refused(error)),
            }
            if stopped_within(&self.events, LOOK_INTERVAL) {
                return Ok(None);
            }
        }
    }

    /// Whether osqueryd still knows us. A ping would prove nothing: it answers extensions that it has dropped, too.
    fn known(&self, uuid: i64) -> bool {
        // The first answer may fail because the connection is an old one.
        match self.manager.knows(uuid).or_else(|_| self.manager.knows(uuid)) {
            Ok(known) => known,
            Err(ManagerError::Unreachable { .. }) => false,
            Err(error) => {
                // osqueryd is there and doesn't answer: it may only be busy. Ask again at the next interval.
                log::debug!("can't ask osqueryd for its extensions: {error}");
                true
            }
        }
    }

    /// Waits for a manager and registers with it; `None` when there will be none, or the end was asked for.
    fn reattach(&self, parent: u32) -> Result<Option<Attachment>, LifecycleError> {
        // Started by osqueryd's watcher: when that is gone too, nobody will start another worker.
        let orphaned = || parent_id() != parent;
        let began = Instant::now();
        loop {
            let left = self.return_timeout.saturating_sub(began.elapsed());
            match wait_for_manager(&self.manager, left, |pause| orphaned() || stopped_within(&self.events, pause)) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) => {
                    log::info!("osqueryd did not come back within {:?}: ending", self.return_timeout);
                    return Ok(None);
                }
            }
            match self.attach() {
                // It went away again.
                Err(LifecycleError::Refused(ManagerError::Unreachable { .. } | ManagerError::Broken { .. })) => {}
                other => return other,
            }
        }
    }
}

fn is_duplicate(error: &ManagerError) -> bool {
    matches!(error, ManagerError::Refused { message, .. } if message.contains("Duplicate extension"))
}
