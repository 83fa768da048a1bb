//! Linux's side: what the kernel tells in `/proc`, and calls of its own.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{StatVfsMountFlags, inotify, statvfs};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, geteuid, pidfd_open, set_dumpable_behavior, setpriority_process,
};
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use super::{NameEvent, ProcessInfo};

/// Groups whose users can become root anyway: root's own.
pub const ADMINISTRATORS: &[u32] = &[0];

/// The clock that a sleeping host doesn't stop.
pub const SINCE_BOOT: ClockId = ClockId::Boottime;

/// A side that is gone is an error and no signal.
pub const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;

/// Descriptors are kept from the programs that this one starts.
pub const RECEIVE_FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// What `/proc` counts time in, a second: the same on everything that Linux runs on today.
const TICKS: u64 = 100;

/// The niceness of the highest priority, as nice(2) counts.
const LOWEST_NICENESS: i32 = -20;

/// How a process' end is noticed.
#[derive(Debug)]
pub(super) enum Life {
    /// The kernel's own handle for it, which no other process of that id is mistaken for.
    Handle(OwnedFd),
    /// Before Linux 5.3: when it was started, in ticks since the boot.
    Started(String),
}

impl Life {
    pub(super) fn of(pid: Pid) -> Option<Self> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(Self::Handle(handle)),
            Err(rustix::io::Errno::SRCH) => None,
            Err(_) => Some(Self::Started(stat(pid)?.started)),
        }
    }

    pub(super) fn goes_on(&self, pid: Pid) -> bool {
        match self {
            Self::Handle(handle) => {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&now)).is_ok_and(|ended| ended == 0)
            }
            Self::Started(started) => {
                stat(pid).is_some_and(|stat| stat.started == *started && !matches!(stat.state, 'Z' | 'X'))
            }
        }
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: char,
    parent: String,
    started: String,
}

fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // Behind the name, which can hold anything. proc(5) counts from 1: the state is field 3, the parent field 4, the
    // start field 22.
    let mut fields = text.rsplit(") ").next()?.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.to_owned();
    Some(Stat { state, parent, started: fields.nth(17)?.to_owned() })
}

/// All processes that run now.
#[must_use]
pub fn processes() -> Vec<ProcessInfo> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter_map(|id| seen(Pid::from_raw(id)?)).collect()
}

fn seen(pid: Pid) -> Option<ProcessInfo> {
    let stat = stat(pid)?;
    let of = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
    let arguments = fs::read(of("cmdline")).unwrap_or_default();
    let arguments = arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let now = u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0);
    let started = stat.started.parse::<u64>().unwrap_or(0) / TICKS;
    Some(ProcessInfo {
        id: pid.as_raw_nonzero().get().unsigned_abs(),
        parent: stat.parent.parse().unwrap_or(0),
        arguments: arguments.collect(),
        directory: fs::read_link(of("cwd")).unwrap_or_default(),
        age: Duration::from_secs(now.saturating_sub(started)),
    })
}

/// The words of a process' command line, its own name first.
#[must_use]
pub fn arguments_of(id: u32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    let arguments = line.split(|&byte| byte == 0).filter(|argument| !argument.is_empty());
    Some(arguments.map(|argument| String::from_utf8_lossy(argument).into_owned()).collect())
}

/// Which boot this is; empty when the kernel doesn't say.
#[must_use]
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

/// What this process' own program is started by once more, whatever has its name by then.
#[must_use]
pub fn own_program(_: &Path) -> PathBuf {
    "/proc/self/exe".into()
}

/// A path that starts this open program, whatever has its name by then.
#[must_use]
pub fn path_of_open(file: &File) -> Option<PathBuf> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    path.exists().then_some(path)
}

/// Whether nothing on its file system can be run.
#[must_use]
pub fn is_on_noexec(path: &Path) -> bool {
    statvfs(path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// Keeps a descriptor that was received from the programs that this one starts, which [`RECEIVE_FLAGS`] has done.
///
/// # Errors
/// None here.
pub fn keep_from_children(_: &OwnedFd) -> io::Result<()> {
    Ok(())
}

/// Has this thread run before all ordinary ones the moment that it can, for work that counts in microseconds. It
/// must sleep nearly always: nothing else runs on its processor meanwhile.
///
/// Where no real-time class is allowed (a container, `RestrictRealtime=` in a unit), the thread gets the lowest
/// niceness, which counts only within its control group; where that isn't allowed either, nothing.
pub fn go_first() {
    let real_time = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, real_time) else {
        return;
    };
    log::debug!("a thread can't be given a real-time priority: {error}");
    if let Err(error) = setpriority_process(Some(gettid()), LOWEST_NICENESS) {
        log::debug!("a thread can't be given a higher priority: {error}");
    }
}

/// A crash leaves no image of this process, and only root can look into its memory.
pub(super) fn leave_no_image() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::debug!("this process stays one that can be dumped: {error}");
    }
}

/// What `ps` and `pgrep` call this process, cut to 15 bytes.
pub(super) fn name_process(name: &CStr) {
    // It is for the eyes alone.
    let _ = rustix::thread::set_name(name);
}

/// Whether a connection's other side is our user's, or root's.
#[must_use]
pub fn is_ours(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid())
}

/// Whether a process is stopped (SIGSTOP, a debugger): it is there and doesn't run.
#[must_use]
pub fn is_stopped(id: u32) -> bool {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.and_then(stat).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
}

/// The bytes that a process has in memory.
#[must_use]
pub fn resident_bytes(id: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The process that listens on the other side of a connection.
#[must_use]
pub fn peer_of(stream: &UnixStream) -> Option<Pid> {
    socket_peercred(stream).ok().map(|credentials| credentials.pid)
}

/// Tells at once when a name goes from a directory, or may be about to.
pub struct NameWatch(OwnedFd);

impl NameWatch {
    /// Watches a directory.
    ///
    /// # Errors
    /// The directory isn't there, or the host has no watches left.
    pub fn new(directory: &Path) -> io::Result<Self> {
        use inotify::WatchFlags;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, directory, WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::OPEN)?;
        Ok(Self(watch))
    }

    /// Calls `seen` with what happens, until it breaks; it says how long to wait for the next event at most.
    pub fn run(self, mut seen: impl FnMut(NameEvent<'_>) -> ControlFlow<(), Option<Duration>>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut limit = None;
        loop {
            let next = match events.next() {
                Ok(event) => seen(name_event(&event)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
                    match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], limit.as_ref()) {
                        Ok(0) => seen(NameEvent::None),
                        _ => continue,
                    }
                }
                Err(_) => return,
            };
            let ControlFlow::Continue(next) = next else { return };
            limit = next;
        }
    }
}

fn name_event<'e>(event: &'e inotify::Event<'_>) -> NameEvent<'e> {
    let is_open = event.events().contains(inotify::ReadFlags::OPEN);
    match event.file_name().map(|name| OsStr::from_bytes(name.to_bytes())) {
        None if is_open => NameEvent::Listed,
        // The directory itself, or more than the kernel could keep.
        None => NameEvent::Unknown,
        Some(_) if is_open => NameEvent::None,
        Some(name) => NameEvent::Gone(name),
    }
}
