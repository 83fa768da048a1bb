//! The extension's listening socket: bound beside osqueryd's own, private, and shown only when it can be used.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A listening socket and its name. The name goes with the value.
pub struct Socket {
    manager: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Listens beside the manager's socket under a name of no meaning, mode 0600.
    pub fn bind(manager: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = with_suffix(manager, &format!(".new-{}-{count}", std::process::id()));
        remove_if_there(&path)?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { manager: manager.to_owned(), path, listener })
    }

    /// Takes the name by which osqueryd calls the extension that it has registered as `uuid`, from another socket
    /// if need be.
    ///
    /// osqueryd may call the moment it has registered us, and takes us for dead when it can't connect: nothing but
    /// this renaming lies between its answer and our readiness.
    pub fn publish(&mut self, uuid: i64) -> io::Result<()> {
        let path = with_suffix(&self.manager, &format!(".{uuid}"));
        fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }

    /// Gives the name up: another socket has taken it.
    pub fn forget_name(&mut self) {
        self.path = PathBuf::new();
    }

    /// Its name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a connection waits to be accepted. Costs neither a wait nor anybody's waking.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
    }

    /// The same listening socket once more, for another process.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another osqueryd may have swept it away already.
        let _ = remove_if_there(&self.path);
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
