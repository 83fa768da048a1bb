//! The system's log: datagrams in the form of RFC 3164 to its local socket.
//!
//! Without a time stamp, which that form has in local time: the receiver puts its own there (RFC 3164, 4.3.2).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use log::Level;

/// The facility "system daemons".
const DAEMON: u8 = 3;

/// RFC 3164 allows no longer packet.
const PACKET_BYTES: usize = 1024;

/// A socket that syslogd, or what stands in its place, listens on.
pub(super) struct Syslog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    /// Nothing is opened before the first line.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, socket: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a line. Never waits: a receiver that is not there, or has no room, is an error.
    pub(super) fn write(&mut self, level: Level, text: &str) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket
            }
        };
        // By path each time: a syslogd that was restarted listens on another socket of that name.
        let sent = socket.send_to(packet(level, text).as_bytes(), &self.path);
        self.socket = Some(socket);
        sent.map(drop)
    }
}

fn packet(level: Level, text: &str) -> String {
    let mut packet = format!("<{}>remote_tls[{}]: {text}", DAEMON * 8 + severity(level), std::process::id());
    if packet.len() > PACKET_BYTES {
        let end = (0..=PACKET_BYTES).rfind(|&at| packet.is_char_boundary(at));
        packet.truncate(end.unwrap_or_default());
    }
    packet
}

fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_priority_tag_and_at_most_a_kibibyte() {
        let pid = std::process::id();
        assert_eq!(packet(Level::Error, "a: b"), format!("<27>remote_tls[{pid}]: a: b"));
        assert!(packet(Level::Warn, "").starts_with("<28>"));
        assert!(packet(Level::Info, "").starts_with("<30>"));
        assert!(packet(Level::Debug, "").starts_with("<31>"));
        let long = packet(Level::Info, &"ß".repeat(2000));
        assert!((1023..=1024).contains(&long.len()) && long.ends_with('ß'), "{}", long.len());
    }

    #[test]
    fn a_receiver_that_does_not_read_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let _receiver = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::new(path);
        let refused = (0..100_000).find_map(|_| syslog.write(Level::Info, &"x".repeat(1000)).err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
