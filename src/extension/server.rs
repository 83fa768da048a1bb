//! The accept loop: threads that take connections from one listener and serve each to its end.
//!
//! For each call osqueryd connects twice, and its threads wait meanwhile. So several threads block in `accept` on one
//! listener and each serves its connection to the end: no hand-over between threads, half the CPU time a call of the
//! thrift crate's own server. When all of them are busy (a config call waits for the network), a spare one is started,
//! so that a log line never waits behind them.
//!
//! The threads can be ended without harm to the listener: each exits after its connection, and those that still wait
//! in `accept` are woken by connections of our own. What osqueryd connects meanwhile waits in the listener's backlog
//! for the one that serves it next: this process, a new program in it, or another process.

use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::Level;

pub use super::connections::Connection;
use super::connections::{Connections, Open};
use super::socket::{Socket, connect_at_once};
use crate::lock::{Condvar, Mutex, MutexGuard};
use crate::logging::Streak;
use crate::spares::Spares;

/// Threads that wait in `accept` from the beginning.
const ACCEPTORS: usize = 4;

/// Threads that stay there when nothing happens. More than there were at first, or each moment in which all of them are
/// busy would start a thread, which costs more than a call, and end it a call later.
const MOST_IDLE: usize = 2 * ACCEPTORS;

/// Threads at most for connections that have spoken, busy ones included. osqueryd has a handful of threads that call.
const MOST_THREADS: usize = 64;

/// The most threads, those included that wait for a connection's first word: they are no burden to those that answer.
const MOST_WITH_UNSPOKEN: usize = 1024;

/// How long a connection may say nothing at first, where more than [`FEW_UNSPOKEN`] do so. osqueryd's speak at once; but
/// one that was stopped in between, or a host with a thousand things to do, is to be waited for.
const FIRST_WORD_LIMIT: Duration = Duration::from_secs(1);

/// Up to this many connections that have not spoken yet are left alone.
const FEW_UNSPOKEN: usize = 16;

/// How long a connection that has spoken may say nothing more.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection that has spoken may say nothing more while all threads are taken, and others wait.
const CROWDED_IDLE_LIMIT: Duration = Duration::from_secs(2);

/// The pause between two looks for connections to end while all threads are taken.
const CROWDED_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may say nothing while the threads are to end. On a busy host, a process that has connected may be kept
/// from speaking for a while.
const LAST_IDLE_LIMIT: Duration = Duration::from_secs(1);

/// How long a connection that waits in the backlog at the very end, when osqueryd is gone, may say nothing.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// The pause after a failed `accept` (no file descriptor left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The pause between two looks whether the threads have ended.
const STOP_PAUSE: Duration = Duration::from_millis(2);

/// Answers the messages of one connection.
pub trait Converse: Send + Sync {
    /// Reads and answers to the connection's end, or until [`Connection::is_last`] after an answer. `buffer` was used
    /// by an earlier conversation, its contents don't matter.
    ///
    /// # Errors
    /// Whatever ended the conversation early.
    fn converse(&self, connection: &Connection<'_>, buffer: &mut Vec<u8>) -> io::Result<()>;
}

/// A listening socket and the threads that serve it.
pub struct Server<C: Converse + 'static> {
    shared: Arc<Shared<C>>,
}

struct Shared<C> {
    listener: UnixListener,
    /// Where our own connections knock.
    private: PathBuf,
    conversing: C,
    began: Instant,
    threads: AtomicUsize,
    idle: AtomicUsize,
    /// Connections that have not spoken yet, a thread each.
    unspoken: AtomicUsize,
    /// Threads are to end after the connection that they serve.
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    /// For what conversations read.
    buffers: Spares,
    /// Rung when a connection ends.
    closed: Condvar,
    /// Connections that could not be taken, for want of descriptors.
    refused: Streak,
    /// Spare threads that could not be started.
    spares_missing: Streak,
}

impl<C: Converse + 'static> Server<C> {
    /// Starts the threads that accept connections to `socket`; `conversing` answers what comes over them.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(socket: &Socket, conversing: C) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            listener: socket.listener()?,
            private: socket.private().to_owned(),
            conversing,
            began: Instant::now(),
            threads: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            unspoken: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            buffers: Spares::default(),
            closed: Condvar::new(),
            refused: Streak::default(),
            spares_missing: Streak::default(),
        });
        let server = Self { shared };
        server.resume()?;
        Ok(server)
    }

    /// Takes no more connections, within `limit`: whether all threads have ended by then. Those that still serve a
    /// connection end with it. What comes later waits in the listener's backlog.
    pub fn stop(&self, limit: Duration) -> bool {
        let shared = &self.shared;
        let deadline = Instant::now() + limit;
        shared.stopping.store(true, Ordering::SeqCst);
        while shared.threads.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            for _ in 0..shared.idle.load(Ordering::SeqCst) {
                // An error says that the backlog is full: then they are awake anyway.
                let _ = connect_at_once(&shared.private);
            }
            shared.end_idle(LAST_IDLE_LIMIT);
            drop(shared.closed.wait(shared.connections(), Some(Instant::now() + STOP_PAUSE)));
        }
        shared.threads.load(Ordering::SeqCst) == 0
    }

    /// Takes connections again after [`Self::stop`].
    ///
    /// # Errors
    /// No thread can be started.
    pub fn resume(&self) -> io::Result<()> {
        self.shared.stopping.store(false, Ordering::SeqCst);
        while self.shared.threads.load(Ordering::SeqCst) < ACCEPTORS {
            Shared::spawn(&self.shared)?;
        }
        Ok(())
    }

    /// After [`Self::stop`]: answers what waits in the backlog, and nothing that comes later.
    pub fn drain(&self) {
        let shared = &self.shared;
        if shared.listener.set_nonblocking(true).is_err() {
            return;
        }
        while let Ok((stream, _)) = shared.listener.accept() {
            // A process that has connected by now speaks at once, or never.
            let patient = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(DRAIN_LIMIT)));
            if patient.is_ok() {
                shared.serve(stream);
            }
        }
        let _ = shared.listener.set_nonblocking(false);
    }

    /// Ends connections that have said nothing for long. To be called now and then.
    pub fn end_idle(&self) {
        self.shared.end_idle(IDLE_LIMIT);
        self.shared.end_unspoken();
    }

    /// What answers the connections.
    #[must_use]
    pub fn conversing(&self) -> &C {
        &self.shared.conversing
    }
}

impl<C: Converse + 'static> Shared<C> {
    fn spawn(shared: &Arc<Self>) -> io::Result<()> {
        shared.threads.fetch_add(1, Ordering::SeqCst);
        let guard = ThreadGuard(Arc::clone(shared));
        thread::Builder::new().name("extension".to_owned()).spawn(move || guard.0.accept())?;
        Ok(())
    }

    fn accept(self: &Arc<Self>) {
        // One that would be idle beside enough others was a spare one, and is no longer needed.
        let rest = |idle| (idle < MOST_IDLE).then_some(idle + 1);
        while !self.is_stopping() && self.idle.fetch_update(Ordering::SeqCst, Ordering::SeqCst, rest).is_ok() {
            // A look after the count: to stop the server, one knock is made for each thread that is counted as idle.
            let accepted = if self.is_stopping() { Err(ErrorKind::Interrupted.into()) } else { self.listener.accept() };
            let others_idle = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            match accepted {
                Ok((stream, _)) => {
                    if others_idle == 0 && !self.is_stopping() {
                        self.make_room();
                    }
                    self.serve(stream);
                }
                Err(_) if self.is_stopping() => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let failed = self.refused.failed(Level::Warn);
                    log::log!(failed.level, "can't take a connection from osqueryd: {error}{failed}");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Sees to it that a thread is there for the next connection: a spare one, or one that an idle connection holds.
    fn make_room(self: &Arc<Self>) {
        let threads = self.threads.load(Ordering::SeqCst);
        let speaking = threads.saturating_sub(self.unspoken.load(Ordering::SeqCst));
        self.end_unspoken();
        if speaking >= MOST_THREADS || threads >= MOST_WITH_UNSPOKEN {
            // This waits only until some connection ends: its thread takes the next caller and waits here in turn. To wait for
            // an idle thread would be a deadlock: each thread that became free would take a caller, and wait here for ever, too.
            let ended = self.connections().ended;
            while self.idle.load(Ordering::SeqCst) == 0 && !self.is_stopping() {
                self.end_idle(CROWDED_IDLE_LIMIT);
                let connections = self.connections();
                if connections.ended != ended {
                    return;
                }
                drop(self.closed.wait(connections, Some(Instant::now() + CROWDED_PAUSE)));
            }
            return;
        }
        match Self::spawn(self) {
            Ok(()) => {
                if let Some(failures) = self.spares_missing.succeeded() {
                    log::info!("spare threads can be started again, {failures}");
                }
            }
            Err(error) => {
                let failed = self.spares_missing.failed(Level::Warn);
                log::log!(failed.level, "can't start a spare thread, calls may wait: {error}{failed}");
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        let open = Arc::new(Open::new(stream, self.began));
        let number = self.connections().add(Arc::clone(&open));
        self.unspoken.fetch_add(1, Ordering::SeqCst);
        let connection =
            Connection { open: &open, began: self.began, stopping: &self.stopping, unspoken: &self.unspoken };
        let mut buffer = self.buffers.take();
        // A panic ends this connection and nothing else.
        match panic::catch_unwind(AssertUnwindSafe(|| self.conversing.converse(&connection, &mut buffer))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("a connection ended: {error}"),
            Err(_) => log::error!("a connection ended by a panic; please report it with the lines above"),
        }
        self.buffers.give(buffer);
        connection.note_word();
        self.connections().remove(number);
        self.closed.notify_all();
    }

    /// Ends connections that have said nothing in time, where there are many of them.
    fn end_unspoken(&self) {
        if self.unspoken.load(Ordering::SeqCst) <= FEW_UNSPOKEN {
            return;
        }
        for (_, open) in self.connections().open.iter().filter(|(_, open)| open.is_unspoken()) {
            open.end_if_idle(self.began, FIRST_WORD_LIMIT);
        }
    }

    /// Ends connections from which nothing has come for `limit`, unless they wait for an answer.
    fn end_idle(&self, limit: Duration) {
        self.connections().open.iter().for_each(|(_, open)| open.end_if_idle(self.began, limit));
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock()
    }
}

/// Counts a thread for as long as it lives.
struct ThreadGuard<C>(Arc<Shared<C>>);

impl<C> Drop for ThreadGuard<C> {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::SeqCst);
        self.0.closed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Answers each byte with the next one, and panics over 255.
    struct Echo;

    impl Converse for Echo {
        fn converse(&self, mut connection: &Connection<'_>, _: &mut Vec<u8>) -> io::Result<()> {
            let mut byte = [0];
            while connection.read(&mut byte)? > 0 {
                connection.begin_answer();
                connection.answer(&[byte[0].checked_add(1).expect("a panic, on purpose")])?;
                if connection.is_last() {
                    break;
                }
            }
            Ok(())
        }
    }

    fn start(directory: &std::path::Path) -> (Socket, Server<Echo>) {
        let socket = Socket::bind(&directory.join("s.em"), Arc::default()).unwrap();
        socket.publish(7, None).unwrap();
        let server = Server::start(&socket, Echo).unwrap();
        (socket, server)
    }

    fn ask(socket: &Socket, byte: u8) -> io::Result<u8> {
        let mut stream = UnixStream::connect(socket.public_name().unwrap())?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&[byte])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(answer[0])
    }

    #[test]
    fn a_panic_stays_in_its_connection() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, server) = start(directory.path());
        for _ in 0..3 * ACCEPTORS {
            assert!(ask(&socket, 255).is_err());
        }
        assert_eq!(ask(&socket, 1).unwrap(), 2);
        assert!(server.stop(LIMIT));
    }

    #[test]
    fn what_comes_while_it_is_stopped_waits_and_is_answered_after() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, server) = start(directory.path());
        for round in 0..20 {
            thread::scope(|scope| {
                let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&socket, round))).collect();
                assert!(server.stop(LIMIT));
                let waiting = scope.spawn(|| ask(&socket, round));
                if round % 2 == 0 {
                    server.resume().unwrap();
                } else {
                    server.drain();
                    server.resume().unwrap();
                }
                for answer in asking.into_iter().chain([waiting]) {
                    assert_eq!(answer.join().unwrap().unwrap(), round + 1);
                }
            });
        }
    }

    #[test]
    fn spare_threads_come_when_all_are_busy_and_go_again() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, server) = start(directory.path());
        let busy: Vec<UnixStream> =
            (0..2 * MOST_IDLE).map(|_| UnixStream::connect(socket.public_name().unwrap()).unwrap()).collect();
        assert_eq!(ask(&socket, 1).unwrap(), 2);
        assert!(server.shared.threads.load(Ordering::SeqCst) > 2 * MOST_IDLE);
        drop(busy);
        let deadline = Instant::now() + LIMIT;
        while server.shared.threads.load(Ordering::SeqCst) > MOST_IDLE && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(server.shared.threads.load(Ordering::SeqCst), MOST_IDLE);
        assert!(server.stop(LIMIT));
    }

    /// Answers a byte as it is; over a 1 it takes its time until the gate is open.
    #[derive(Default)]
    struct Gate {
        is_open: Mutex<bool>,
        changed: Condvar,
    }

    impl Converse for Arc<Gate> {
        fn converse(&self, mut connection: &Connection<'_>, _: &mut Vec<u8>) -> io::Result<()> {
            let mut byte = [0];
            connection.read_exact(&mut byte)?;
            connection.begin_answer();
            let mut is_open = self.is_open.lock();
            while byte == [1] && !*is_open {
                is_open = self.changed.wait(is_open, None);
            }
            drop(is_open);
            connection.answer(&byte)
        }
    }

    /// Each thread that ended a call once took the next caller and waited, with it, for a thread that waits for callers:
    /// with more callers than threads, all of them ended up so.
    #[test]
    fn callers_that_are_more_than_the_threads_are_answered_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let socket = Socket::bind(&directory.path().join("s.em"), Arc::default()).unwrap();
        socket.publish(7, None).unwrap();
        let gate = Arc::new(Gate::default());
        let server = Server::start(&socket, Arc::clone(&gate)).unwrap();
        thread::scope(|scope| {
            let slow: Vec<_> = (0..MOST_THREADS).map(|_| scope.spawn(|| ask(&socket, 1))).collect();
            let deadline = Instant::now() + LIMIT;
            while server.shared.connections().open.len() < MOST_THREADS - 1 && Instant::now() < deadline {
                thread::sleep(STOP_PAUSE);
            }
            // They wait in the listener's backlog.
            let mut others: Vec<_> = (0..2 * MOST_THREADS - 10)
                .map(|_| UnixStream::connect(socket.public_name().unwrap()).unwrap())
                .collect();
            others.iter_mut().for_each(|stream| stream.write_all(&[2]).unwrap());
            *gate.is_open.lock() = true;
            gate.changed.notify_all();
            for stream in &mut others {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut answer = [0];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [2]);
            }
            slow.into_iter().for_each(|asking| assert_eq!(asking.join().unwrap().unwrap(), 1));
        });
        assert!(server.stop(LIMIT));
    }

    #[test]
    fn silent_connections_make_room_for_those_that_speak() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, server) = start(directory.path());
        let silent: Vec<UnixStream> =
            (0..MOST_THREADS + 20).map(|_| UnixStream::connect(socket.public_name().unwrap()).unwrap()).collect();
        assert_eq!(ask(&socket, 1).unwrap(), 2);
        assert!(server.shared.threads.load(Ordering::SeqCst) > MOST_THREADS, "those that are silent are not counted");
        // They are ended all the same, but for a few.
        let deadline = Instant::now() + LIMIT;
        while server.shared.unspoken.load(Ordering::SeqCst) > FEW_UNSPOKEN && Instant::now() < deadline {
            server.end_idle();
            thread::sleep(Duration::from_millis(1));
        }
        assert!(server.shared.unspoken.load(Ordering::SeqCst) <= FEW_UNSPOKEN);
        drop(silent);
        assert!(server.stop(LIMIT));
    }
}
