//! The front is gone (killed), and osqueryd has not noticed: until osqueryd's watcher has started the next front, this
//! worker answers in its place, with the same code. The next front knocks on a socket beside osqueryd's own,
//! and takes socket and registration over.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Inheritance;
use super::assembly::Assembly;
use crate::control::{Attached, Receiver};
use crate::extension::server::Server;
use crate::extension::service::Service;
use crate::extension::socket::Socket;
use crate::extension::sweep;
use crate::files;
use crate::front::intake::Intake;
use crate::front::relay::{Elsewhere, Unanswered};
use crate::front::succession::{Estate, Knock, door, hand_over};
use crate::journal::{Writer, WriterEvents};
use crate::platform::{Process, is_ours};
use crate::plugins::logger::LastFlush;
use crate::shutdown::Doorbell;

/// Between two looks whether osqueryd is still there, while no next front knocks.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Calls that this worker is at when the next front knocks get this long.
const HANDOVER_LIMIT: Duration = Duration::from_secs(2);

/// Calls that are broken off then get this long for their answers.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(1);

/// Who has connected and says nothing is not waited for longer.
const KNOCK_LIMIT: Duration = Duration::from_secs(1);

/// Stands in until a front has taken over, or osqueryd is gone: what happens to the lines that wait then.
pub(super) fn run(assembly: &Assembly, service: &Arc<Service>, inheritance: Inheritance) -> LastFlush {
    let (Some((listener, socket)), Some(attached)) = (inheritance.listener, inheritance.attached) else {
        log::warn!("the front is gone, and has left nothing to answer osqueryd with: ending");
        return LastFlush::Skip;
    };
    let uuid = attached.uuid;
    let socket = Socket::adopt(assembly.manager.socket(), socket.private, listener, Arc::default());
    match StandIn::start(assembly, service, socket, attached) {
        Ok(stand_in) => stand_in.run(assembly),
        Err(error) => {
            log::error!("the front is gone, and this worker can't stand in for it: {error:#}");
            // The next front can't be registered as long as osqueryd knows us.
            assembly.manager.deregister(uuid);
            LastFlush::Skip
        }
    }
}

struct StandIn {
    socket: Arc<Socket>,
    server: Server<Intake>,
    attached: Attached,
    osqueryd: Option<Arc<Process>>,
    door: Door,
}

/// Where the next front knocks. Its name goes with the value.
struct Door {
    path: PathBuf,
    listener: UnixListener,
}

impl Door {
    fn open(manager: &Path) -> io::Result<Self> {
        let path = door(manager);
        files::remove(&path)?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { path, listener })
    }

    /// The next one to knock, within a moment.
    fn knock(&self) -> Option<UnixStream> {
        let mut waiting = [PollFd::new(&self.listener, PollFlags::IN)];
        if !poll(&mut waiting, Some(&LOOK)).is_ok_and(|count| count > 0) {
            return None;
        }
        let (stream, _) = self.listener.accept().ok().filter(|(stream, _)| is_ours(stream))?;
        stream.set_read_timeout(Some(KNOCK_LIMIT)).ok()?;
        let mut receiver = Receiver::new(stream.try_clone().ok()?);
        receiver.receive::<Knock>().ok().flatten().map(|_| stream)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Calls that the front would relay are answered here.
struct Here(Arc<Service>);

impl Elsewhere for Here {
    fn answer(&self, frame: &[u8], _: Duration) -> Result<Vec<u8>, Unanswered> {
        self.0.answer(frame).map_err(|_| Unanswered::NoWorker)
    }
}

/// Lines that are taken here wake the thread that sends them.
struct Wakes(Arc<Doorbell>);

impl WriterEvents for Wakes {
    fn appended(&self) {
        self.0.ring();
    }
}

impl StandIn {
    fn start(assembly: &Assembly, service: &Arc<Service>, socket: Socket, attached: Attached) -> anyhow::Result<Self> {
        let directory = &assembly.directory;
        let events = Arc::new(Wakes(Arc::clone(&assembly.results_bell)));
        let pending = Arc::clone(&assembly.pending_bell);
        let intake = Intake {
            uuid: attached.uuid.into(),
            hold: Arc::clone(socket.hold()),
            results: Arc::new(Writer::new(directory.join("results"), "results", events.clone())),
            pending: Arc::new(Writer::new(directory.join("pending"), "pending", events)),
            elsewhere: Arc::new(Here(Arc::clone(service))),
            on_pending: Box::new(move || pending.ring()),
            on_shutdown: Box::new(|| {}),
        };
        let osqueryd = Process::of_id(attached.osqueryd).map(Arc::new);
        let socket = Arc::new(socket);
        socket.publish(attached.uuid, osqueryd.clone()).context("can't keep the extension's socket")?;
        let server = Server::start(&socket, intake).context("can't take osqueryd's calls")?;
        log::warn!("the front is gone: this worker answers osqueryd until there is another one");
        if let Err(error) = sweep::watch(&socket) {
            log::debug!("the socket's name can't be watched: {error}");
        }
        let door = Door::open(assembly.manager.socket()).context("can't listen for the next front")?;
        Ok(Self { socket, server, attached, osqueryd, door })
    }

    fn run(self, assembly: &Assembly) -> LastFlush {
        let began = Instant::now();
        let limit = assembly.flags.current().return_timeout;
        loop {
            if let Some(front) = self.door.knock() {
                return self.hand_over(assembly, &front);
            }
            self.socket.put_back_missing();
            if self.osqueryd.as_ref().is_some_and(|osqueryd| !osqueryd.is_alive()) {
                log::info!("osqueryd's process is gone: ending");
                return self.end(LastFlush::Try);
            }
            if began.elapsed() >= limit {
                log::error!("no other front has come within {} s: ending", limit.as_secs());
                assembly.manager.deregister(self.attached.uuid);
                return self.end(LastFlush::Try);
            }
        }
    }

    fn hand_over(self, assembly: &Assembly, front: &UnixStream) -> LastFlush {
        if !self.server.stop(HANDOVER_LIMIT) {
            // An answer that says so is better than none: what waits for the server is not waited for any longer.
            assembly.request_end(LastFlush::Skip);
            assembly.break_off();
            if !self.server.stop(LAST_ANSWERS_LIMIT) {
                log::warn!("a call could not be finished before the next front took over");
            }
        }
        let intake = self.server.conversing();
        let overflow = intake.results.waits_for_disk();
        intake.results.close();
        intake.pending.close();
        if overflow {
            log::debug!("lines waited in memory at the end");
        }
        let estate = Estate {
            uuid: intake.uuid.load(Ordering::Relaxed),
            private: self.socket.private().to_owned(),
            osqueryd: self.attached.osqueryd,
            ..Estate::default()
        };
        let handed = self.socket.listener().and_then(|listener| hand_over(front, &estate, &listener));
        self.socket.keep_names();
        match handed {
            Ok(()) => log::info!("another front has taken over"),
            Err(error) => {
                log::error!("the next front could not be given the socket: {error}");
                assembly.manager.deregister(self.attached.uuid);
            }
        }
        LastFlush::Skip
    }

    fn end(self, last_flush: LastFlush) -> LastFlush {
        self.server.stop(KNOCK_LIMIT);
        self.server.drain();
        self.socket.remove();
        self.server.conversing().results.close();
        self.server.conversing().pending.close();
        last_flush
    }
}
