//! What differs between Linux and macOS, in one place: where things are, other processes, the names in a directory, and
//! what the kernel does when it is asked. Both systems' sides have the same names.

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "macos.rs")]
mod system;

mod places;
mod program;

// Linux needs it for its tests alone.
#[cfg(any(test, not(target_os = "linux")))]
mod ps;

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{Pid, Resource, Rlimit, setrlimit, test_kill_process, umask};

pub use self::places::Places;
pub use self::program::{Fit, HEAD, fit};
pub use self::system::{
    ADMINISTRATORS, NameWatch, RECEIVE_FLAGS, SEND_FLAGS, SINCE_BOOT, arguments_of, boot_id, go_first, is_on_noexec,
    is_ours, is_stopped, keep_from_children, own_program, path_of_open, peer_of, processes, resident_bytes,
};

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
pub struct ProcessInfo {
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

/// What a [`NameWatch`] sees in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameEvent<'n> {
    /// A process has opened the directory: to list it, which is how the removal of names by a pattern begins.
    Listed,
    /// This name is gone.
    Gone(&'n OsStr),
    /// Some name may be gone.
    Unknown,
    /// No name is gone.
    None,
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::ops::ControlFlow;
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
            watch.run(|event| {
                let name = match event {
                    NameEvent::Gone(name) => name.to_owned(),
                    NameEvent::Unknown => OsString::new(),
                    // A clean-up of temporary directories lists it.
                    NameEvent::Listed | NameEvent::None => return ControlFlow::Continue(None),
                };
                sender.send(name).unwrap();
                ControlFlow::Break(())
            });
        });
        std::fs::remove_file(directory.path().join("a")).unwrap();
        // Where the kernel doesn't say which one it was, any may have been.
        let name = if cfg!(target_os = "linux") { "a" } else { "" };
        assert_eq!(names.recv_timeout(Duration::from_secs(30)).unwrap(), name);
        thread.join().unwrap();
    }
}
