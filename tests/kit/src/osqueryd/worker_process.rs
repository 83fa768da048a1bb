//! The process that stands for osqueryd's worker.
//!
//! osqueryd's watcher starts its worker as a process, and an extension sees that process: the kernel names it to
//! a process that connects to the manager's socket (`SO_PEERCRED` is the process that called `listen`), a descriptor of it
//! becomes readable when it ends, and until the watcher waits for it, it is a zombie. Here the watcher's child does
//! nothing but listen, wait, and end when the worker ends. Its socket is served by threads of the watcher's process,
//! which a test can look into.
//!
//! The child has the socket as its standard input and a socket pair as its standard output. It writes one byte when
//! it listens and one for each signal that asks it to end, and it reads the code to exit with. When its parent is
//! gone it exits at once, since its socket isn't served any more.

use std::env;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use super::lock;

/// The argument of a program that is started as a worker's process.
const ROLE: &str = "--stand-for-the-worker-of-osqueryd";
/// What the process is called in lists of processes.
const NAME: &str = "osqueryd-standin: worker";
/// Connections that wait to be accepted, as Thrift asks for it.
const BACKLOG: i32 = 1024;
/// No process takes longer to begin, on a machine that works.
const BEGINNING: Duration = Duration::from_secs(30);

/// Set in programs that can take the role themselves.
static TAKES_ROLE: AtomicBool = AtomicBool::new(false);

/// Makes this process the worker of a stand-in when it was started as one, and does not return then.
///
/// A program that starts stand-ins calls this first in its `main`, and its stand-ins then start that program again. In
/// programs without that, such as tests, the program `osqueryd-standin` of this kit is built and started.
pub fn become_worker_if_asked() {
    TAKES_ROLE.store(true, Ordering::SeqCst);
    if env::args().nth(1).as_deref() == Some(ROLE) {
        // Without a parent that says a code, none sees one either.
        exit(stand_for_worker().unwrap_or(1));
    }
}

/// Listens, and waits for the code to exit with.
fn stand_for_worker() -> io::Result<i32> {
    let mut control = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    for signal in [SIGTERM, SIGINT, SIGUSR1] {
        signal_hook::low_level::pipe::register(signal, control.try_clone()?)?;
    }
    listen(io::stdin(), BACKLOG)?;
    // The threads that serve the socket close it: no other descriptor of it may be left.
    rustix::stdio::dup2_stdin(&control)?;
    control.write_all(b"L")?;
    let mut code = [0];
    control.read_exact(&mut code)?;
    Ok(code[0].into())
}

/// The watcher's side of the process.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    child: Mutex<Waited>,
    control: UnixStream,
    pid: u32,
}

#[derive(Debug)]
struct Waited {
    child: Child,
    /// Known once it was waited for; until then it is a zombie.
    status: Option<ExitStatus>,
}

impl WorkerProcess {
    /// Binds the socket and starts a process that listens on it. Returns when it does.
    pub(super) fn start(path: &Path) -> io::Result<(WorkerProcess, UnixListener)> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        let (control, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program()?);
        command.arg0(NAME).arg(ROLE).stdin(socket.try_clone()?).stdout(OwnedFd::from(theirs));
        let child = command.spawn()?;
        // The command has the other end, too.
        drop(command);
        let process = WorkerProcess { pid: child.id(), child: Mutex::new(Waited { child, status: None }), control };
        process.control.set_read_timeout(Some(BEGINNING))?;
        if let Err(error) = (&process.control).read_exact(&mut [0]) {
            process.kill();
            process.reap();
            return Err(io::Error::other(format!("the process for osqueryd's worker does not listen: {error}")));
        }
        process.control.set_read_timeout(None)?;
        Ok((process, UnixListener::from(socket)))
    }

    pub(super) fn id(&self) -> u32 {
        self.pid
    }

    /// Waits for a signal to the process, and answers true; or for its end, and answers false. It is a zombie then.
    pub(super) fn next_signal(&self) -> bool {
        if (&self.control).read_exact(&mut [0]).is_ok() {
            return true;
        }
        // Its descriptors are closed a moment before it has ended.
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap_or_default());
        if let Some(pid) = pid {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        }
        false
    }

    /// Tells it to exit with that code.
    pub(super) fn exit(&self, code: i32) {
        // It may have been killed.
        let _ = (&self.control).write_all(&[u8::try_from(code).unwrap_or(u8::MAX)]);
    }

    /// SIGTERM.
    pub(super) fn terminate(&self) {
        let waited = lock(&self.child);
        if waited.status.is_none() {
            let _ = kill_process(Pid::from_child(&waited.child), Signal::TERM);
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&self) {
        let mut waited = lock(&self.child);
        if waited.status.is_none() {
            let _ = waited.child.kill();
        }
    }

    /// Waits for it. Only to be called when its end has been seen.
    pub(super) fn reap(&self) -> Option<ExitStatus> {
        let mut waited = lock(&self.child);
        if waited.status.is_none() {
            waited.status = waited.child.wait().ok();
        }
        waited.status
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

/// What is started as a worker's process. Building it can take a while, the first time.
pub(super) fn program() -> io::Result<PathBuf> {
    match TAKES_ROLE.load(Ordering::SeqCst) {
        true => env::current_exe(),
        false => crate::programs::program("osqueryd-standin"),
    }
}
