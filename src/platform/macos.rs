//! macOS's side. What only unsafe code or a kernel's own call could tell, ps(1) and sysctl(8) are asked for.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{LocalPeerCred, LocalPeerPid};
use rustix::fs::statfs;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, geteuid};
use rustix::time::ClockId;

use super::{NameEvent, ProcessInfo, ps};
use crate::lock::Mutex;

/// Groups whose users can become root anyway: `wheel` and `admin`.
pub const ADMINISTRATORS: &[u32] = &[0, 80];

/// The clock that a sleeping host doesn't stop; here it is this one.
pub const SINCE_BOOT: ClockId = ClockId::Monotonic;

/// A side that is gone is an error and no signal: Rust's runtime ignores the signal, and there is no flag for it.
pub const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Descriptors come without close-on-exec, whatever is asked for.
pub const RECEIVE_FLAGS: RecvFlags = RecvFlags::empty();

/// Of a file system whose files can't be run (`MNT_NOEXEC`), which statvfs(3) doesn't tell.
const MNT_NOEXEC: u32 = 4;

/// A process that has its id is looked at this often, to see whether it is the same and goes on.
const LOOK_AT_PROCESS: Duration = Duration::from_secs(1);

/// A process that has an id, by when it was started.
#[derive(Debug)]
pub(super) struct Life {
    started: String,
    looked: Mutex<Instant>,
}

impl Life {
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Some(Self { started: ps::started(number(pid))?, looked: Mutex::new(Instant::now()) })
    }

    pub(super) fn goes_on(&self, pid: Pid) -> bool {
        let mut looked = self.looked.lock();
        if looked.elapsed() < LOOK_AT_PROCESS {
            return true;
        }
        let goes_on = ps::started(number(pid)).is_some_and(|started| started == self.started)
            && ps::state(number(pid)).is_some_and(|state| state != 'Z');
        if goes_on {
            *looked = Instant::now();
        }
        goes_on
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// All processes that run now. Arguments with blanks in them can't be told from two.
#[must_use]
pub fn processes() -> Vec<ProcessInfo> {
    ps::processes()
}

/// The words of a process' command line, its own name first.
#[must_use]
pub fn arguments_of(id: u32) -> Option<Vec<String>> {
    ps::arguments_of(id)
}

/// The bytes that a process has in memory.
#[must_use]
pub fn resident_bytes(id: u32) -> Option<u64> {
    ps::resident_bytes(id)
}

/// Which boot this is; empty when the kernel doesn't say.
#[must_use]
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let output = Command::new("/usr/sbin/sysctl").args(["-n", "kern.bootsessionuuid"]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    })
}

/// There is no safe interface for it here: the limit on images' size has to do.
pub(super) fn leave_no_image() {}

/// Programs are started by their paths here, so it has its name.
pub(super) fn name_process(_: &CStr) {}

/// What this process' own program is started by once more.
#[must_use]
pub fn own_program(path: &Path) -> PathBuf {
    path.to_owned()
}

/// A path that starts this open program, whatever has its name by then; there is none here.
#[must_use]
pub fn path_of_open(_: &File) -> Option<PathBuf> {
    None
}

/// Whether nothing on its file system can be run.
#[must_use]
pub fn is_on_noexec(path: &Path) -> bool {
    statfs(path).is_ok_and(|system| system.f_flags & MNT_NOEXEC != 0)
}

/// Keeps a descriptor that was received from the programs that this one starts.
///
/// # Errors
/// It is no descriptor.
pub fn keep_from_children(descriptor: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfd(descriptor, FdFlags::CLOEXEC)?)
}

/// Whether a connection's other side is our user's, or root's.
#[must_use]
pub fn is_ours(stream: &UnixStream) -> bool {
    getsockopt(stream, LocalPeerCred).is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// Threads have no priority of their own here that a safe interface sets.
pub fn go_first() {}

/// Whether a process is stopped (SIGSTOP, a debugger): it is there and doesn't run.
#[must_use]
pub fn is_stopped(id: u32) -> bool {
    ps::state(id) == Some('T')
}

/// The process that listens on the other side of a connection.
#[must_use]
pub fn peer_of(stream: &UnixStream) -> Option<Pid> {
    getsockopt(stream, LocalPeerPid).ok().and_then(Pid::from_raw)
}

/// Without a watch, the directory is looked at again and again.
pub struct NameWatch;

/// The time between two looks.
const LOOK: Duration = Duration::from_millis(20);

impl NameWatch {
    /// Watches a directory.
    ///
    /// # Errors
    /// None here.
    pub fn new(_: &Path) -> io::Result<Self> {
        Ok(Self)
    }

    /// Calls `seen` again and again, until it breaks.
    pub fn run(self, mut seen: impl FnMut(NameEvent<'_>) -> ControlFlow<(), Option<Duration>>) {
        while seen(NameEvent::Unknown).is_continue() {
            std::thread::sleep(LOOK);
        }
    }
}
