//! What differs between Linux and macOS, in one place: other processes, and the names in a directory.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{Pid, Resource, Rlimit, setrlimit, test_kill_process, umask};

pub use self::system::{NameWatch, go_first, is_ours, is_stopped, peer_of, processes, resident_bytes};

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

/// Gives this process its file's name: one that was started by a descriptor has the descriptor's number. Called before
/// there are other threads.
pub fn name_ourselves() {
    let own = std::env::current_exe().ok();
    let name = own.as_deref().and_then(Path::file_name).and_then(|name| CString::new(name.as_bytes()).ok());
    if let Some(name) = name {
        system::name_process(&name);
    }
}

/// A process of this host as a look at all of them shows it; what may not be looked at is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The process id.
    pub id: u32,
    /// The process id of its parent.
    pub parent: u32,
    /// Its command line, its own name first.
    pub arguments: Vec<String>,
    /// Where it is: what relative paths of its command line begin at.
    pub directory: PathBuf,
    /// Since when it runs.
    pub age: Duration,
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

    /// The process id.
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
    use std::ffi::{CStr, OsStr};
    use std::fs;
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify;
    use rustix::net::sockopt::socket_peercred;
    use rustix::process::{
        DumpableBehavior, Pid, PidfdFlags, geteuid, pidfd_open, set_dumpable_behavior, setpriority_process,
    };
    use rustix::thread::gettid;
    use rustix::time::{ClockId, clock_gettime};
    use thread_priority::{
        RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
        thread_native_id,
    };

    use super::Seen;

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
    pub fn processes() -> Vec<Seen> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        ids.filter_map(|id| seen(Pid::from_raw(id)?)).collect()
    }

    fn seen(pid: Pid) -> Option<Seen> {
        let stat = stat(pid)?;
        let of = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
        let arguments = fs::read(of("cmdline")).unwrap_or_default();
        let arguments = arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let now = u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0);
        let started = stat.started.parse::<u64>().unwrap_or(0) / TICKS;
        Some(Seen {
            id: pid.as_raw_nonzero().get().unsigned_abs(),
            parent: stat.parent.parse().unwrap_or(0),
            arguments: arguments.collect(),
            directory: fs::read_link(of("cwd")).unwrap_or_default(),
            age: Duration::from_secs(now.saturating_sub(started)),
        })
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
    use std::ffi::{CStr, OsStr};
    use std::io;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::Pid;

    use super::Seen;

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

    /// Programs are started by their paths here, so it has its name.
    pub(super) fn name_process(_: &CStr) {}

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

    /// All processes that run now. Arguments with blanks in them can't be told from two.
    #[must_use]
    pub fn processes() -> Vec<Seen> {
        let output = Command::new("/bin/ps").args(["-axww", "-o", "pid=,ppid=,etime=,args="]).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(seen).collect()
    }

    fn seen(line: &str) -> Option<Seen> {
        let mut words = line.split_whitespace();
        let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        // [[days-]hours:]minutes:seconds
        let elapsed = words.next()?;
        let (days, clock) = elapsed.split_once('-').unwrap_or(("0", elapsed));
        let days: u64 = days.parse().unwrap_or(0);
        let seconds = clock.split(':').fold(0u64, |sum, part| sum * 60 + part.parse::<u64>().unwrap_or(0));
        let arguments = words.map(str::to_owned).collect();
        Some(Seen { id, parent, arguments, directory: "/".into(), age: Duration::from_secs(days * 86_400 + seconds) })
    }

    /// The kernel says it (LOCAL_PEERPID), and no safe interface to that is there: the caller watches its own parent instead.
    #[must_use]
    pub fn peer_of(_: &UnixStream) -> Option<Pid> {
        None
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
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn this_process_is_seen_among_all() {
        let all = processes();
        let own = all.iter().find(|seen| seen.id == std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert_eq!(own.arguments.first(), std::env::args().next().as_ref());
        assert!(own.age < Duration::from_secs(3600), "{own:?}");
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
