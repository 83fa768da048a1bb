//! The extension's listening socket and its names.
//!
//! It is bound under a private name that osqueryd doesn't know. The public name, by which osqueryd calls, is a hard link to
//! it: so the public name can be changed with a registration and, above all, put back. An osqueryd that ends sweeps
//! `SOCKET.*` away within milliseconds, and its scheduler goes on logging by that name. Answers are [held back](Hold)
//! meanwhile.

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::process::umask;

use super::hold::Hold;
use crate::files::{identity, remove, with_suffix};
use crate::lock::Mutex;
use crate::platform::Process;

/// Private names begin with this; a process id follows, or the manager's name for a [stand-in's
/// door](crate::front::succession::door). osqueryd sweeps `osquery.em.*` away, and not these.
pub const PRIVATE: &str = "rtls.";

/// A listening socket. Its names go with the value.
pub struct Socket {
    manager: PathBuf,
    private: PathBuf,
    listener: UnixListener,
    public_name: Mutex<Option<PublicName>>,
    hold: Arc<Hold>,
}

/// The name by which osqueryd calls.
struct PublicName {
    path: PathBuf,
    /// osqueryd's process: the name is put back while it lives. `None` where it isn't known: the name is always put back.
    osqueryd: Option<Arc<Process>>,
}

impl Socket {
    /// Listens beside the manager's socket under a private name, mode 0600. `hold` ends when a swept name is back.
    ///
    /// # Errors
    /// The directory can't be written, or the path is too long for a socket's name.
    pub fn bind(manager: &Path, hold: Arc<Hold>) -> io::Result<Self> {
        let directory = directory_of(manager);
        remove_abandoned(directory);
        let private = directory.join(format!("{PRIVATE}{}", std::process::id()));
        remove(&private)?;
        Ok(Self::adopt(manager, private.clone(), bind_private(&private)?, hold))
    }

    /// A socket that another process has bound as `private` and handed over.
    #[must_use]
    pub fn adopt(manager: &Path, private: PathBuf, listener: UnixListener, hold: Arc<Hold>) -> Self {
        Self { manager: manager.to_owned(), private, listener, public_name: Mutex::default(), hold }
    }

    /// Takes the name by which osqueryd calls the extension that it has registered as `uuid`, and gives up the one
    /// that it had before.
    ///
    /// osqueryd may call the moment it has registered us, and takes us for dead when it can't connect: nothing but
    /// this lies between its answer and our readiness.
    ///
    /// # Errors
    /// The name can't be made.
    pub fn publish(&self, uuid: i64, osqueryd: Option<Arc<Process>>) -> io::Result<()> {
        let path = public_path(&self.manager, uuid);
        let mut name = self.public_name.lock();
        if let Some(before) = name.take().filter(|before| before.path != path) {
            let _ = remove(&before.path);
        }
        if !self.is_named(&path) {
            let aside = with_suffix(&self.private, ".link");
            remove(&aside)?;
            fs::hard_link(&self.private, &aside)?;
            fs::rename(&aside, &path)?;
            // rename(2) does nothing where both names are the same file.
            remove(&aside)?;
        }
        *name = Some(PublicName { path, osqueryd });
        Ok(())
    }

    /// Puts the public name back when it is gone while osqueryd's process is there: whether that was needed.
    pub fn put_back(&self) -> bool {
        let mut name = self.public_name.lock();
        let Some(PublicName { path, osqueryd }) = name.as_ref() else { return false };
        // First the name, then the look: each microsecond without it can cost a line.
        if fs::hard_link(&self.private, path).is_err() {
            return false;
        }
        let is_needed = osqueryd.as_ref().is_none_or(|process| process.is_alive());
        if !is_needed {
            let _ = remove(path);
            // The watch sees this removal, too: without this, putting back and removing would go on for ever.
            *name = None;
        }
        self.hold.end();
        is_needed
    }

    /// [Puts the name back](Self::put_back) if it is missing, for threads of a usual priority: the lock is not held while
    /// files are looked at. On a busy host the thread that [watches](super::sweep::watch) would wait until the holder has its
    /// turn again, and osqueryd's lines find no socket meanwhile.
    pub fn put_back_missing(&self) -> bool {
        self.public_name().is_some_and(|path| fs::symlink_metadata(path).is_err()) && self.put_back()
    }

    /// Gives up the name by which osqueryd calls.
    pub fn hide(&self) {
        if let Some(name) = self.public_name.lock().take() {
            let _ = remove(&name.path);
        }
    }

    /// The name by which osqueryd calls, while there is one.
    #[must_use]
    pub fn public_name(&self) -> Option<PathBuf> {
        self.public_name.lock().as_ref().map(|name| name.path.clone())
    }

    /// What holds answers back while the name may be swept away.
    #[must_use]
    pub fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// The directory of the names.
    #[must_use]
    pub fn directory(&self) -> &Path {
        directory_of(&self.manager)
    }

    /// The name that only we know.
    #[must_use]
    pub fn private(&self) -> &Path {
        &self.private
    }

    /// The same listening socket once more, for a thread or another process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// The names stay: another process goes on with the socket.
    pub fn keep_names(&self) {
        *self.public_name.lock() = None;
    }

    fn is_named(&self, path: &Path) -> bool {
        let file = |path: &Path| fs::symlink_metadata(path).ok().map(|file| identity(&file));
        file(path).is_some() && file(path) == file(&self.private)
    }

    /// Removes all names: no process can connect any more.
    pub fn remove(&self) {
        self.hide();
        let _ = remove(&self.private);
    }
}

/// The name by which osqueryd calls the extension of this uuid.
#[must_use]
pub fn public_path(manager: &Path, uuid: i64) -> PathBuf {
    with_suffix(manager, &format!(".{uuid}"))
}

fn directory_of(manager: &Path) -> &Path {
    manager.parent().unwrap_or(Path::new("/"))
}

/// Listens under a name that has mode 0600 from the beginning: to change the mode of a name later is to change whatever
/// has that name by then.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // The mask is the whole process's: what other threads make meanwhile is the more private.
    static MASK: Mutex<()> = Mutex::new(());
    let _guard = MASK.lock();
    let before = umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// Connects to a socket, or fails at once: a process that doesn't take its connections makes no other one wait.
///
/// # Errors
/// Those of `connect`; `WouldBlock` when as many connections wait there as the kernel lets.
pub fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    let stream = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&stream, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&stream, true)?;
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    rustix::io::ioctl_fionbio(&stream, false)?;
    Ok(stream.into())
}

/// Private names whose process was killed, and that nothing listens to.
fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_private = entry.file_name().to_string_lossy().starts_with(PRIVATE);
        let refused =
            || connect_at_once(&entry.path()).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_private && refused() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn socket(directory: &Path) -> Arc<Socket> {
        Arc::new(Socket::bind(&directory.join("osquery.em"), Arc::default()).unwrap())
    }

    #[test]
    fn a_name_is_shown_changed_and_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(directory.path());
        let mode = fs::metadata(socket.private()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        socket.publish(7, None).unwrap();
        socket.publish(7, None).unwrap();
        socket.publish(8, None).unwrap();
        let path = directory.path().join("osquery.em.8");
        assert_eq!(socket.public_name().as_deref(), Some(path.as_path()));
        assert!(!directory.path().join("osquery.em.7").exists());
        UnixStream::connect(&path).unwrap();
        assert!(!socket.put_back(), "it is there");
        assert!(!socket.put_back_missing());
        fs::remove_file(&path).unwrap();
        assert!(socket.put_back_missing());
        UnixStream::connect(&path).unwrap();
        socket.remove();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_that_another_socket_had_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("osquery.em.7");
        let old = UnixListener::bind(&path).unwrap();
        let socket = socket(directory.path());
        socket.publish(7, None).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn answers_wait_until_the_name_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(directory.path());
        socket.publish(7, None).unwrap();
        let path = directory.path().join("osquery.em.7");
        fs::remove_file(&path).unwrap();
        let hold = socket.hold();
        hold.begin();
        assert!(socket.put_back());
        assert!(!hold.is_on());
    }

    #[test]
    fn a_name_that_a_dead_osqueryd_has_swept_away_stays_away() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(directory.path());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let osqueryd = Arc::new(Process::of_id(child.id()).unwrap());
        socket.publish(7, Some(osqueryd)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_file(directory.path().join("osquery.em.7")).unwrap();
        assert!(!socket.put_back());
        assert_eq!(socket.public_name(), None, "once: its own removal would have the watch do it again and again");
        assert!(!directory.path().join("osquery.em.7").exists());
    }

    #[test]
    fn names_of_killed_processes_go_and_those_in_use_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (dead, alive) = (directory.path().join("rtls.1"), directory.path().join("rtls.2"));
        drop(UnixListener::bind(&dead).unwrap());
        let _used = UnixListener::bind(&alive).unwrap();
        let _socket = socket(directory.path());
        assert!(!dead.exists() && alive.exists());
    }
}
