//! The floor: a server that answers osqueryd's calls and keeps nothing. It is built as ours is, several threads that
//! block in `accept` and serve a connection to its end, and does nothing else: what it costs is what the sockets cost.

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use crate::thrift;

/// The threads that accept: as many as our front starts with.
const ACCEPTORS: usize = 4;

/// Serves until it is killed, or its standard input ends: it doesn't outlive the suite.
pub(crate) fn serve(socket: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    thread::scope(|scope| {
        for _ in 0..ACCEPTORS {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                for stream in listener.incoming() {
                    // A caller that hangs up in the middle harms no other.
                    let _ = stream.and_then(|stream| converse(stream, &mut buffer));
                }
            });
        }
    });
    Ok(())
}

fn converse(mut stream: UnixStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    let (pong, done) = (thrift::pong(), thrift::done());
    while let Some(length) = thrift::read(&mut stream, buffer)? {
        let is_ping = thrift::is_ping(&buffer[..length]);
        stream.write_all(if is_ping { &pong } else { &done })?;
    }
    Ok(())
}
