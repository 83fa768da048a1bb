//! A ping of an extension's socket that nobody waits for: sent at one moment, looked after at a later one.
//!
//! Whoever supervises a worker asks it every few seconds whether it still answers. Neither connecting nor waiting may
//! hold that thread up, and nothing should wake for the answer.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thrift::protocol::{TBinaryOutputProtocol, TMessageIdentifier, TMessageType, TOutputProtocol, TStructIdentifier};

/// A ping on its way.
pub struct Ping {
    stream: UnixStream,
    sent: Instant,
}

impl Ping {
    /// Sends one. An error says that nobody listens, or that too many wait already.
    pub fn send(socket: &Path) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let descriptor: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&descriptor, &SocketAddrUnix::new(socket)?)?;
        let mut stream = UnixStream::from(descriptor);
        stream.write_all(&message().map_err(io::Error::other)?)?;
        // Nothing more will come: the answer is the end of it on the other side, too.
        stream.shutdown(Shutdown::Write)?;
        Ok(Self { stream, sent: Instant::now() })
    }

    /// Since when it is on its way.
    #[must_use]
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// Whether no answer has come so far. A connection that has ended is none to wait for.
    #[must_use]
    pub fn is_unanswered(&mut self) -> bool {
        self.stream.read(&mut [0; 64]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn message() -> thrift::Result<Vec<u8>> {
    let mut message = Vec::new();
    let mut output = TBinaryOutputProtocol::new(&mut message, true);
    output.write_message_begin(&TMessageIdentifier::new("ping", TMessageType::Call, 0))?;
    output.write_struct_begin(&TStructIdentifier::new("ExtensionPingArgs"))?;
    output.write_field_stop()?;
    output.write_struct_end()?;
    output.write_message_end()?;
    output.flush()?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_answer_is_seen_when_it_is_there_and_never_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.em.7");
        assert!(Ping::send(&path).is_err(), "nobody listens");
        let listener = UnixListener::bind(&path).unwrap();
        let mut ping = Ping::send(&path).unwrap();
        assert!(ping.is_unanswered());
        let (mut theirs, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        theirs.read_to_end(&mut asked).unwrap();
        assert_eq!(asked, b"\x80\x01\x00\x01\x00\x00\x00\x04ping\x00\x00\x00\x00\x00");
        assert!(ping.is_unanswered());
        theirs.write_all(b"pong").unwrap();
        assert!(!ping.is_unanswered());
        let mut ended = Ping::send(&path).unwrap();
        drop(listener);
        assert!(!ended.is_unanswered(), "nobody is left to answer");
    }
}
