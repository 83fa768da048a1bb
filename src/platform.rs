//! What differs between Linux and macOS, in one place: another process' life, and the names in a directory.

use std::os::unix::net::UnixStream;

use rustix::fs::Mode;
use rustix::process::{Pid, Resource, Rlimit, setrlimit, test_kill_process, umask};

pub use self::system::{NameWatch, go_first, is_ours, is_stopped, peer_of, resident_bytes};

/// Keeps what this process has in memory and makes on the disk to its own user: files and sockets have no mode for others
/// from the beginning, and a crash leaves no image of the secrets in memory.
pub fn keep_to_ourselves() {
    umask(Mode::from_raw_mode(0o077));
    // The kernel passes the limit over where images go to a program (systemd-coredump), so it takes both.
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        log::debug!("images of crashes can't be switched off: {error}");
    }
    system::leave_no_image();
}

/// Another process on this host, which may end at any time.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    life: system::Life,
}

impl Process {
    /// The process on the other side of a connection: the one that listened there. `None` when the kernel doesn't say.
    #[must_use]
    pub fn of_peer(stream: &UnixStream) -> Option<Self> {
        Self::of_pid(peer_of(stream)?)
    }

    /// The process that has this id now.
    #[must_use]
    pub fn of_id(id: u32) -> Option<Self> {
        Self::of_pid(Pid::from_raw(i32::try_from(id).ok()?)?)
    }

    fn of_pid(pid: Pid) -> Option<Self> {
        let life = system::Life::of(pid)?;
        Some(Self { pid, life })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has not ended. One that has ended and that its parent hasn't looked at yet has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        test_kill_process(self.pid).is_ok() && self.life.goes_on(self.pid)
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::OsStr;
    use std::fs;
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify;
    use rustix::net::sockopt::socket_peercred;
    use rustix::process::{
        DumpableBehavior, Pid, PidfdFlags, geteuid, pidfd_open, set_dumpable_behavior, setpriority_process,
    };
    use rustix::thread::gettid;
    use thread_priority::{
        RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
        thread_native_id,
    };

    /// As nice(2) counts.
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
        started: String,
    }

    fn stat(pid: Pid) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // Behind the name, which can hold anything. proc(5) counts from 1: the state is field 3, the start field 22.
        let mut fields = text.rsplit(") ").next()?.split(' ');
        let state = fields.next()?.chars().next()?;
        Some(Stat { state, started: fields.nth(18)?.to_owned() })
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

    /// Tells at once when a name goes from a directory.
    pub struct NameWatch(OwnedFd);

    impl NameWatch {
        /// Watches a directory.
        ///
        /// # Errors
        /// The directory isn't there, or the host has no watches left.
        pub fn new(directory: &Path) -> io::Result<Self> {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&watch, directory, inotify::WatchFlags::DELETE | inotify::WatchFlags::MOVED_FROM)?;
            Ok(Self(watch))
        }

        /// Calls `gone` with each name that goes, for as long as it answers true.
        pub fn run(self, mut gone: impl FnMut(&OsStr) -> bool) {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&self.0, &mut buffer);
            loop {
                match events.next() {
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                    Ok(event) => {
                        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
                        if !gone(name.as_deref().unwrap_or_default()) {
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::ffi::OsStr;
    use std::io;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::Pid;

    /// A process' end is noticed by its id alone.
    #[derive(Debug)]
    pub(super) struct Life;

    impl Life {
        pub(super) fn of(_: Pid) -> Option<Self> {
            Some(Self)
        }

        pub(super) fn goes_on(&self, pid: Pid) -> bool {
            state(pid.as_raw_nonzero().get().unsigned_abs()) != Some('Z')
        }
    }

    /// There is no safe interface for it here: the limit on images' size has to do.
    pub(super) fn leave_no_image() {}

    /// The kernel says whose the other side is (LOCAL_PEERCRED), and no safe interface to that is there: the modes of
    /// sockets and directories have to do.
    #[must_use]
    pub fn is_ours(_: &UnixStream) -> bool {
        true
    }

    /// Threads have no priority of their own here that a safe interface sets.
    pub fn go_first() {}

    fn state(id: u32) -> Option<char> {
        ps("state=", id)?.chars().next()
    }

    fn ps(what: &str, id: u32) -> Option<String> {
        let output = Command::new("/bin/ps").args(["-o", what, "-p", &id.to_string()]).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The bytes that a process has in memory.
    #[must_use]
    pub fn resident_bytes(id: u32) -> Option<u64> {
        ps("rss=", id)?.parse::<u64>().ok().map(|kib| kib << 10)
    }

    /// Whether a process is stopped (SIGSTOP, a debugger): it is there and doesn't run.
    #[must_use]
    pub fn is_stopped(id: u32) -> bool {
        state(id) == Some('T')
    }

    /// The kernel says it (LOCAL_PEERPID), and no safe interface to that is there: the caller goes by its parent.
    #[must_use]
    pub fn peer_of(_: &UnixStream) -> Option<Pid> {
        None
    }

    /// Without a watch, the directory is looked at again and again.
    pub struct NameWatch;

    /// Between two looks.
    const LOOK: Duration = Duration::from_millis(20);

    impl NameWatch {
        /// Watches a directory.
        ///
        /// # Errors
        /// None here.
        pub fn new(_: &Path) -> io::Result<Self> {
            Ok(Self)
        }

        /// Calls `gone` again and again, for as long as it answers true: with no name, since none is known.
        pub fn run(self, mut gone: impl FnMut(&OsStr) -> bool) {
            while gone(OsStr::new("")) {
                std::thread::sleep(LOOK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_process_behind_a_socket_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let process = Process::of_peer(&UnixStream::connect(&path).unwrap()).unwrap();
        assert_eq!(process.id(), std::process::id());
        assert!(process.is_alive() && !is_stopped(process.id()));
        assert!(resident_bytes(process.id()).unwrap() > 1 << 20);
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_although_its_parent_has_not_looked_at_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of_id(child.id()).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while process.is_alive() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn a_name_that_goes_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let watch = NameWatch::new(directory.path()).unwrap();
        std::fs::write(directory.path().join("a"), "").unwrap();
        let (sender, names) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            watch.run(|name| {
                sender.send(name.to_owned()).unwrap();
                false
            });
        });
        std::fs::remove_file(directory.path().join("a")).unwrap();
        assert_eq!(names.recv_timeout(Duration::from_secs(30)).unwrap(), "a");
        thread.join().unwrap();
    }
}
