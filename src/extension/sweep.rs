//! What is done about osqueryd's sweep of the socket's name.
//!
//! A worker of osqueryd's ends by calling `shutdown` of its extensions, hanging up on them and, within a millisecond or
//! so, removing their sockets' names. Its threads go on calling by name, and one that connects between the removal and
//! the name's return loses its lines. So:
//!
//! * Answers are [held back](super::hold) from the first sign of the end until the name is back: a thread that waits for an
//!   answer doesn't connect. The signs are SIGTERM (`front::events`), the hang-up (`front`) and the call of `shutdown`; the
//!   connections of `front::intake`, which a worker that stands in uses as well, wait before they answer.
//! * osqueryd lists the directory before it removes names: from then on a [thread](watch) tries to make the name without a
//!   pause, so that it is back some 10 µs after it went.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::socket::Socket;
use crate::platform::{NameEvent, NameWatch, go_first};

/// A sweep begins with a listing of the directory. After one, the thread tries without a pause to make the name, in spins of
/// this length.
const SPIN: Duration = Duration::from_micros(300);

/// The pause between two spins: where the sweep is to run on the same processor, it must get its turn.
const SPIN_PAUSE: Duration = Duration::from_micros(50);

/// While osqueryd ends (the hold is on), spins go on for up to this time after a listing. Otherwise a listing is followed by
/// one spin only: any process may list the directory.
const CATCH_LIMIT: Duration = Duration::from_millis(20);

/// The pause after a spin that osqueryd's end was no reason for: a process that lists all the time must not keep a processor
/// busy by it.
const CATCH_PAUSE: Duration = Duration::from_millis(100);

/// Starts a thread that puts the name back the moment it is swept away, for as long as the socket is used.
///
/// # Errors
/// The directory can't be watched, or no thread can be started: the name is put back at the next look.
pub fn watch(socket: &Arc<Socket>) -> io::Result<()> {
    let watch = NameWatch::new(socket.directory())?;
    let socket = Arc::downgrade(socket);
    thread::Builder::new().name("socket-name".to_owned()).spawn(move || {
        go_first();
        let mut catch = Catch { socket, listed: None, last: None };
        watch.run(|event| catch.see(event));
    })?;
    Ok(())
}

/// What the thread that watches the directory does.
struct Catch {
    socket: Weak<Socket>,
    /// The directory was listed then, and a sweep is waited for.
    listed: Option<Instant>,
    /// The end of the last spin.
    last: Option<Instant>,
}

impl Catch {
    /// Puts the name back when it is gone, or while it may be about to go. Breaks when the socket isn't used any more;
    /// else how long to wait for the next event at most.
    fn see(&mut self, event: NameEvent<'_>) -> ControlFlow<(), Option<Duration>> {
        let Some(socket) = self.socket.upgrade() else { return ControlFlow::Break(()) };
        let is_back = match event {
            NameEvent::Listed => {
                let now = Instant::now();
                let is_due = self.last.is_none_or(|last| now.duration_since(last) >= CATCH_PAUSE);
                self.listed = (is_due || socket.hold().is_on()).then_some(now);
                false
            }
            NameEvent::Gone(name) => {
                socket.public_name().is_some_and(|path| path.file_name() == Some(name)) && socket.put_back()
            }
            NameEvent::Unknown => socket.put_back(),
            NameEvent::None => false,
        };
        if is_back || self.spin(&socket) {
            self.listed = None;
            log::debug!("osqueryd swept the extension's socket away: it is there again");
        }
        ControlFlow::Continue(self.listed.map(|_| SPIN_PAUSE))
    }

    /// Waits for the removal, for [`SPIN`] at most, and puts the name back in that very moment: whether it came.
    fn spin(&mut self, socket: &Socket) -> bool {
        let Some(listed) = self.listed else { return false };
        let mut now = Instant::now();
        let pause = now + SPIN;
        while now < pause {
            if socket.put_back() {
                return true;
            }
            now = Instant::now();
        }
        self.last = Some(now);
        if !socket.hold().is_on() || now.duration_since(listed) >= CATCH_LIMIT {
            self.listed = None;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;

    fn socket(directory: &Path) -> Arc<Socket> {
        Arc::new(Socket::bind(&directory.join("osquery.em"), Arc::default()).unwrap())
    }

    #[test]
    fn a_swept_name_is_there_again_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(directory.path());
        socket.publish(7, None).unwrap();
        watch(&socket).unwrap();
        let path = directory.path().join("osquery.em.7");
        for _ in 0..20 {
            fs::remove_file(&path).unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while UnixStream::connect(&path).is_err() {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn a_sweep_is_caught_after_the_directory_was_listed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(directory.path());
        socket.publish(7, None).unwrap();
        let path = directory.path().join("osquery.em.7");
        let mut catch = Catch { socket: Arc::downgrade(&socket), listed: None, last: None };
        let nothing_due = ControlFlow::Continue(None);
        let pause = ControlFlow::Continue(Some(SPIN_PAUSE));
        // By any process: one spin, and none for the next listing.
        assert_eq!(catch.see(NameEvent::Listed), nothing_due);
        fs::remove_file(&path).unwrap();
        assert_eq!(catch.see(NameEvent::Listed), nothing_due);
        assert!(!path.exists());
        assert_eq!(catch.see(NameEvent::Gone(path.file_name().unwrap())), nothing_due);
        assert!(path.exists());
        // While osqueryd ends: again and again until the sweep comes.
        socket.hold().begin();
        assert_eq!(catch.see(NameEvent::Listed), pause);
        assert_eq!(catch.see(NameEvent::None), pause);
        fs::remove_file(&path).unwrap();
        assert_eq!(catch.see(NameEvent::None), nothing_due);
        assert!(path.exists());
        drop(socket);
        assert_eq!(catch.see(NameEvent::None), ControlFlow::Break(()));
    }
}
