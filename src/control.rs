//! What supervisor and worker tell each other: JSON lines over a socket pair, which is the worker's standard output.
//!
//! Either side's end is the other's end of file, so that neither outlives the other.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::settings::Options;

/// What a supervisor tells its worker.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The first of all: osqueryd's flags, so that a worker can start also while osqueryd doesn't answer.
    Start(Options),
    /// osqueryd has registered the extension under this uuid.
    Attached(i64),
    /// Another worker takes over: finish the calls in flight and end.
    HandOver,
    /// osqueryd ends: finish the calls in flight, send what can be sent in a moment, and end.
    Stop,
}

/// What a worker tells its supervisor.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It serves.
    Ready,
    /// osqueryd asks for the end.
    AskedToEnd,
}

/// Sends one message.
pub fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives messages, one at a time.
pub struct Receiver(BufReader<UnixStream>);

impl Receiver {
    /// Receives from this stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// The next message; `None` at the other side's end. A read time-out of the stream is an error of that kind.
    pub fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<T>> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_slice(&line)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one_and_the_end_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let options = Options::from([("tls_hostname".to_owned(), "a\nb".to_owned())]);
        send(&ours, &Order::Start(options)).unwrap();
        send(&ours, &Order::Attached(7)).unwrap();
        drop(ours);
        let mut receiver = Receiver::new(theirs);
        assert!(matches!(receiver.receive().unwrap(), Some(Order::Start(_))));
        assert_eq!(receiver.receive().unwrap(), Some(Order::Attached(7)));
        assert_eq!(receiver.receive::<Order>().unwrap(), None);
    }
}
