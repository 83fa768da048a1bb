//! How the socket, the registration and what belongs to them pass from one process, or program, to the next without a
//! call refused: connections wait in the listener's backlog meanwhile.
//!
//! * [`exec`]: a new binary takes the front's place in the same process, which stays osqueryd's child.
//! * `predecessor`: a front that osqueryd's watcher has started finds the worker of its dead predecessor, which stands in
//!   for it, and takes over from it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use log::Level;
use serde::{Deserialize, Serialize};

use super::events::Events;
use crate::control::{self, Receiver};
use crate::extension::lifecycle::{Lifecycle, LifecycleError};
use crate::extension::socket::{PRIVATE, connect_at_once};
use crate::logging::Streak;
use crate::platform::is_ours;

/// The socket of a worker that stands in for its front, beside osqueryd's own: `rtls.osquery.em`.
#[must_use]
pub fn door(manager: &Path) -> PathBuf {
    let mut name = OsString::from(PRIVATE);
    name.push(manager.file_name().unwrap_or_default());
    manager.with_file_name(name)
}

/// How long a stand-in may take to finish the calls that it is at, and hand over.
const HANDOVER_LIMIT: Duration = Duration::from_secs(5);

/// What passes to the successor. Both sides can be of different versions: see [`control`].
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Estate {
    /// Under which osqueryd calls.
    pub uuid: i64,
    /// The socket's private name.
    pub private: PathBuf,
    /// osqueryd's process; 0 when it isn't known.
    pub osqueryd: u32,
    /// The worker's process; 0 when it doesn't pass on.
    pub worker: u32,
    /// How many workers there were.
    pub workers_started: u64,
}

/// What a predecessor has left.
pub struct Inherited {
    /// What it knew.
    pub estate: Estate,
    /// The listening socket.
    pub listener: UnixListener,
    /// The connection to the worker, when that passes on, too.
    pub worker: Option<UnixStream>,
}

/// What is found of an earlier front.
pub(super) enum Predecessor {
    /// Its worker stood in for it, and has handed over.
    Left(Inherited),
    /// osqueryd knows no extension of our name.
    None,
    /// The end was asked for before one of these.
    EndFirst,
}

/// Takes over from a worker that stands in for an earlier front, or waits until osqueryd knows none of our name: before anything
/// is opened, since another copy may have it open. A worker may notice late that its front is gone, so it is asked again.
pub(super) fn predecessor(
    manager: &Path,
    lifecycle: &Lifecycle,
    events: &mut Events,
) -> Result<Predecessor, LifecycleError> {
    let failures = Streak::default();
    let ask = || {
        knock(manager).unwrap_or_else(|error| {
            let failed = failures.failed(Level::Warn);
            log::log!(
                failed.level,
                "a worker stands in for a front that is gone, and can't hand over: {error}{failed}"
            );
            None
        })
    };
    let mut left = ask();
    let is_free = left.is_some()
        || lifecycle.wait_for_name(|pause| {
            let ends = events.has_end_within(pause);
            left = if ends { None } else { ask() };
            ends || left.is_some()
        })?;
    Ok(match left {
        Some(left) => Predecessor::Left(left),
        None if is_free => Predecessor::None,
        None => Predecessor::EndFirst,
    })
}

/// Asks a worker that stands in for a dead front for what it has; `None` when there is none.
///
/// # Errors
/// There is one, and it can't give it.
fn knock(manager: &Path) -> io::Result<Option<Inherited>> {
    // A process of another user's would be given all that osqueryd says.
    let Some(stream) = connect_at_once(&door(manager)).ok().filter(is_ours) else { return Ok(None) };
    stream.set_read_timeout(Some(HANDOVER_LIMIT))?;
    control::send(&stream, &Knock {}, &[])?;
    inherited(&mut Receiver::new(stream.try_clone()?))
}

/// A front that has come asks for what the stand-in has.
#[derive(Debug, Deserialize, Serialize)]
pub struct Knock {}

/// Hands over to a front that has sent a [`Knock`].
///
/// # Errors
/// It is gone again.
pub fn hand_over(to: &UnixStream, estate: &Estate, listener: &UnixListener) -> io::Result<()> {
    control::send(to, estate, &[listener.as_fd()])
}

/// Takes what the program before this one in the same process has left on the standard input.
///
/// # Errors
/// There is nothing of the kind.
pub fn resume() -> io::Result<Inherited> {
    let inherited = inherited(&mut Receiver::new(control::on_standard_input()?))?;
    inherited.ok_or_else(|| io::Error::other("a predecessor has left nothing"))
}

fn inherited(receiver: &mut Receiver) -> io::Result<Option<Inherited>> {
    let Some((estate, descriptors)) = receiver.receive::<Estate>()? else { return Ok(None) };
    let mut descriptors = descriptors.into_iter();
    let Some(listener) = descriptors.next().map(UnixListener::from) else { return Ok(None) };
    listener.local_addr()?;
    Ok(Some(Inherited { estate, listener, worker: descriptors.next().map(UnixStream::from) }))
}

/// Runs another program in this process, which [resumes](resume). Returns only when that can't be done: everything is
/// as it was then, but for the standard input.
pub fn exec(program: &Path, estate: &Estate, listener: &UnixListener, worker: &UnixStream) -> io::Error {
    let left = || -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        control::send(&ours, estate, &[listener.as_fd(), worker.as_fd()])?;
        Ok(theirs)
    };
    let theirs = match left() {
        Ok(theirs) => OwnedFd::from(theirs),
        Err(error) => return error,
    };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let others = arguments.filter(|argument| argument != RESUME);
    command.arg(RESUME).args(others).stdin(theirs).exec()
}

/// The hidden switch of a program that goes on where another one was.
pub const RESUME: &str = "--resume";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stand_in_has_passes_to_the_front_that_knocks() {
        let directory = tempfile::tempdir().unwrap();
        let manager = directory.path().join("osquery.em");
        assert!(knock(&manager).unwrap().is_none());
        let stand_in = UnixListener::bind(door(&manager)).unwrap();
        let served = UnixListener::bind(directory.path().join("served")).unwrap();
        let estate = Estate { uuid: 7, private: "/p".into(), osqueryd: 9, ..Estate::default() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = stand_in.accept().unwrap();
                assert!(Receiver::new(stream.try_clone().unwrap()).receive::<Knock>().unwrap().is_some());
                hand_over(&stream, &estate, &served).unwrap();
            });
            let inherited = knock(&manager).unwrap().unwrap();
            assert_eq!(inherited.estate, estate);
            let waiting = UnixStream::connect(directory.path().join("served")).unwrap();
            inherited.listener.accept().unwrap();
            drop(waiting);
        });
    }
}
