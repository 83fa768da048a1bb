//! Answers osqueryd's calls on the extension's socket.
//!
//! For each call osqueryd connects twice, and its threads wait meanwhile. So several threads block in `accept` on
//! one listener and each serves its connection to the end: no hand-over between threads, half the CPU time a call
//! of the thrift crate's own server. When all of them are busy (a config call waits for the network), a spare
//! one is started, so that a log line never waits behind them.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::Shutdown as Direction;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use log::Level;
// A notification that nobody waits for costs no system call, as std's does: there are several a call.
use parking_lot::{Condvar, Mutex, MutexGuard};
use thrift::protocol::TBinaryOutputProtocol;
use thrift::server::TProcessor;

use super::osquery::{ExtensionResponse, ExtensionStatus, ExtensionSyncHandler, ExtensionSyncProcessor};
use super::protocol::LossyInput;
use super::registry::{Registry, RegistryName, Reply, StringMap};
use crate::logging::Streak;
use crate::secret::redact;

/// Threads that wait in `accept` from the beginning.
const ACCEPTORS: usize = 4;

/// Threads that stay there when nothing happens. More than there were at first, or each moment in which all of them are
/// busy would start a thread, which costs more than a call, and end it a call later.
const MOST_IDLE: usize = 2 * ACCEPTORS;

/// Threads at most, busy ones included. osqueryd has a handful of threads that call.
const MOST_THREADS: usize = 64;

/// How long a connection may say nothing. osqueryd's say something at once, unless it was stopped in between.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// The same while the end is near.
const LAST_IDLE_LIMIT: Duration = Duration::from_millis(200);

/// A wait after a failed `accept` (no file descriptor left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A listening socket and the threads that serve it.
pub struct Server {
    shared: Arc<Shared>,
}

/// The answers to osqueryd's calls, whatever the calls come over.
pub struct Service {
    uuid: Arc<AtomicI64>,
    processor: ExtensionSyncProcessor<Handler>,
}

/// Counts the serving threads of all servers of this process, so that the end can wait for them.
#[derive(Clone, Default)]
pub struct ThreadCount(Arc<(Mutex<usize>, Condvar)>);

struct Shared {
    listener: UnixListener,
    service: Service,
    threads: ThreadCount,
    idle: AtomicUsize,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    /// Rung when a connection ends.
    closed: Condvar,
    /// Connections that could not be taken, for want of descriptors.
    refused: Streak,
    /// Spare threads that could not be started.
    spares_missing: Streak,
}

/// The open connections, by number, so that idle ones can be ended.
#[derive(Default)]
struct Connections {
    last: u64,
    open: Vec<(u64, Arc<UnixStream>)>,
}

impl Server {
    /// Serves `listener` from `registry`; osqueryd's `shutdown` call is told to `asked_to_end`.
    pub fn start(
        listener: UnixListener,
        registry: Arc<Registry>,
        asked_to_end: impl Fn() + Send + Sync + 'static,
        threads: ThreadCount,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            listener,
            service: Service::new(registry, asked_to_end),
            threads,
            idle: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            closed: Condvar::new(),
            refused: Streak::default(),
            spares_missing: Streak::default(),
        });
        for _ in 0..ACCEPTORS {
            Shared::spawn(&shared)?;
        }
        Ok(Self { shared })
    }

    /// The uuid under which osqueryd has registered the extension, which each answer carries.
    pub fn set_uuid(&self, uuid: i64) {
        self.shared.service.uuid.store(uuid, Ordering::SeqCst);
    }

    /// Takes no more calls than those that wait to be accepted. Calls in flight go on and are answered;
    /// [`ThreadCount::wait`] waits for them. The listener is of no use to anybody after this.
    pub fn close(self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // shutdown(2) on the listener ends every `accept`, once nothing waits to be accepted. std offers it for
        // streams only, and a file descriptor doesn't mind which type holds it.
        match self.shared.listener.try_clone() {
            Ok(listener) => {
                if let Err(error) = UnixStream::from(OwnedFd::from(listener)).shutdown(Direction::Both) {
                    log::warn!("can't end the accepting threads: {error}");
                }
            }
            Err(error) => log::warn!("can't end the accepting threads: {error}"),
        }
        // Whoever has just connected is about to speak. Those that say nothing are ended, by their reading side
        // only: an answer in the making still gets out.
        let mut connections = self.shared.connections();
        let is_open = |connections: &mut Connections| !connections.open.is_empty();
        self.shared.closed.wait_while_for(&mut connections, is_open, LAST_IDLE_LIMIT);
        for (_, stream) in &connections.open {
            let _ = stream.shutdown(Direction::Read);
        }
    }
}

impl Service {
    /// Answers from `registry`; osqueryd's `shutdown` call is told to `asked_to_end`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, asked_to_end: impl Fn() + Send + Sync + 'static) -> Self {
        let uuid = Arc::new(AtomicI64::new(0));
        let handler = Handler { uuid: Arc::clone(&uuid), registry, asked_to_end: Box::new(asked_to_end) };
        Self { uuid, processor: ExtensionSyncProcessor::new(handler) }
    }

    /// Answers one connection's calls: to its end, or until one can't be read, or `stopping` says that the one just
    /// answered was the last.
    pub fn converse(
        &self,
        reader: impl BufRead,
        writer: impl Write,
        stopping: impl Fn() -> bool,
    ) -> thrift::Result<()> {
        let mut input = LossyInput::new(reader)?;
        let mut output = TBinaryOutputProtocol::new(BufWriter::new(writer), true);
        loop {
            match self.processor.process(&mut input, &mut output) {
                // The processor answers a message that can't be read, too, and leaves the rest of it unread.
                Ok(()) if stopping() || input.is_broken() => return Ok(()),
                Ok(()) => {}
                Err(thrift::Error::Transport(error)) if error.kind == thrift::TransportErrorKind::EndOfFile => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Shared {
    fn spawn(shared: &Arc<Self>) -> io::Result<()> {
        let guard = shared.threads.enter();
        let shared = Arc::clone(shared);
        thread::Builder::new().name("extension".to_owned()).spawn(move || {
            shared.accept();
            drop(guard);
        })?;
        Ok(())
    }

    fn accept(self: &Arc<Self>) {
        // One that would be idle beside enough others was a spare one, and is no longer needed.
        let rest = |idle| (idle < MOST_IDLE).then_some(idle + 1);
        while self.idle.fetch_update(Ordering::SeqCst, Ordering::SeqCst, rest).is_ok() {
            let accepted = self.listener.accept();
            let others_idle = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            match accepted {
                Ok((stream, _)) => {
                    if others_idle == 0 && self.threads.now() < MOST_THREADS {
                        self.spawn_spare();
                    }
                    self.serve(stream);
                }
                // All that waited in the backlog is served.
                Err(_) if self.stopping() => return,
                Err(error) => {
                    log::log!(self.refused.failed(Level::Warn), "can't take a connection from osqueryd: {error}");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn spawn_spare(self: &Arc<Self>) {
        match Self::spawn(self) {
            Ok(()) => {
                if let Some(failures) = self.spares_missing.succeeded() {
                    log::info!("spare threads can be started again, after {failures} failures");
                }
            }
            Err(error) => {
                log::log!(
                    self.spares_missing.failed(Level::Warn),
                    "can't start a spare thread, calls may wait: {error}"
                );
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        let stream = Arc::new(stream);
        let number = self.connections().add(Arc::clone(&stream));
        // A panic outside of a plugin's call ends this connection and nothing else.
        match panic::catch_unwind(AssertUnwindSafe(|| self.converse(&stream))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("a connection ended: {error}"),
            Err(_) => log::error!("a connection ended by a panic; please report it with the lines above"),
        }
        self.connections().remove(number);
        self.closed.notify_all();
    }

    fn converse(&self, stream: &UnixStream) -> thrift::Result<()> {
        stream.set_read_timeout(Some(if self.stopping() { LAST_IDLE_LIMIT } else { IDLE_LIMIT }))?;
        self.service.converse(BufReader::new(stream), Patient(stream), || self.stopping())
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock()
    }
}

/// Writes to a client that must read in time. What fits into the socket's own buffer waits for nobody, so nothing is
/// set for the many short answers.
struct Patient<'a>(&'a UnixStream);

/// No socket's buffer is smaller.
const FITS_ANYWAY: usize = 4096;

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > FITS_ANYWAY {
            self.0.set_write_timeout(Some(IDLE_LIMIT))?;
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Connections {
    fn add(&mut self, stream: Arc<UnixStream>) -> u64 {
        self.last += 1;
        self.open.push((self.last, stream));
        self.last
    }

    fn remove(&mut self, number: u64) {
        self.open.retain(|(other, _)| *other != number);
    }
}

impl ThreadCount {
    /// How many there are.
    #[must_use]
    pub fn now(&self) -> usize {
        *self.count()
    }

    /// Waits until all have ended, at most `limit`: whether they have.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let mut count = self.count();
        self.0.1.wait_while_for(&mut count, |count| *count > 0, limit);
        *count == 0
    }

    fn enter(&self) -> ThreadGuard {
        *self.count() += 1;
        ThreadGuard(self.clone())
    }

    fn count(&self) -> MutexGuard<'_, usize> {
        self.0.0.lock()
    }
}

struct ThreadGuard(ThreadCount);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.0.1.notify_all();
    }
}

const INTERNAL_ERROR: &str = "internal error of the extension";

/// Answers the methods of the `Extension` service.
struct Handler {
    uuid: Arc<AtomicI64>,
    registry: Arc<Registry>,
    asked_to_end: Box<dyn Fn() + Send + Sync>,
}

impl Handler {
    fn uuid(&self) -> i64 {
        self.uuid.load(Ordering::SeqCst)
    }
}

impl ExtensionSyncHandler for Handler {
    fn handle_ping(&self) -> thrift::Result<ExtensionStatus> {
        Ok(ExtensionStatus::new(0, "pong".to_owned(), self.uuid()))
    }

    fn handle_call(&self, registry: String, item: String, request: StringMap) -> thrift::Result<ExtensionResponse> {
        let call = AssertUnwindSafe(|| self.registry.call(&registry, &item, request));
        let reply = panic::catch_unwind(call).unwrap_or_else(|_| {
            log::error!("a call of the {registry} plugin panicked; please report it with the lines above");
            // A line is lost by this one panic; a failure would end osqueryd.
            if registry == RegistryName::Logger.as_str() { Reply::ok() } else { Reply::failed(INTERNAL_ERROR) }
        });
        let status = ExtensionStatus::new(reply.code, redact(&reply.message).into_owned(), self.uuid());
        Ok(ExtensionResponse::new(status, reply.rows))
    }

    fn handle_shutdown(&self) -> thrift::Result<()> {
        log::info!("osqueryd asks for the end");
        (self.asked_to_end)();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::extension::osquery::{ExtensionSyncClient, TExtensionSyncClient};
    use crate::extension::registry::{NAME, Plugin};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Panics where it is told to.
    struct Panicking;

    impl Plugin for Panicking {
        fn registry(&self) -> RegistryName {
            RegistryName::Config
        }

        fn call(&self, request: StringMap) -> Reply {
            assert!(!request.contains_key("panic"), "told to");
            Reply::ok()
        }
    }

    fn call(path: &Path, request: &str) -> thrift::Result<ExtensionResponse> {
        let stream = UnixStream::connect(path)?;
        let input = LossyInput::new(BufReader::new(stream.try_clone()?))?;
        let output = TBinaryOutputProtocol::new(BufWriter::new(stream), true);
        let request = StringMap::from([(request.to_owned(), String::new())]);
        ExtensionSyncClient::new(input, output).call("config".to_owned(), NAME.to_owned(), request)
    }

    #[test]
    fn a_panic_stays_in_its_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.em.7");
        let listener = UnixListener::bind(&path).unwrap();
        let threads = ThreadCount::default();
        let registry = Arc::new(Registry::new(vec![Box::new(Panicking)]));
        let server = Server::start(listener, registry, || {}, threads.clone()).unwrap();
        for _ in 0..3 * ACCEPTORS {
            let status = call(&path, "panic").unwrap().status.unwrap();
            assert_eq!((status.code, status.message.as_deref()), (Some(1), Some(INTERNAL_ERROR)));
        }
        assert_eq!(call(&path, "calm").unwrap().status.unwrap().code, Some(0));
        assert!(threads.now() >= ACCEPTORS);
        server.close();
        assert!(threads.wait(LIMIT), "{} threads are left", threads.now());
    }

    #[test]
    fn spare_threads_come_when_all_are_busy_and_go_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.em.7");
        let listener = UnixListener::bind(&path).unwrap();
        let threads = ThreadCount::default();
        let registry = Arc::new(Registry::new(vec![Box::new(Panicking)]));
        let server = Server::start(listener, registry, || {}, threads.clone()).unwrap();
        let busy: Vec<UnixStream> = (0..2 * MOST_IDLE).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(call(&path, "calm").unwrap().status.unwrap().code, Some(0));
        assert!(threads.now() > 2 * MOST_IDLE);
        drop(busy);
        let deadline = std::time::Instant::now() + LIMIT;
        while threads.now() > MOST_IDLE && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(threads.now(), MOST_IDLE);
        server.close();
        assert!(threads.wait(LIMIT));
    }
}
