//! A look at what a server speaks that has no version of TLS in common with us: a greeting as of TLS 1.1, and the version in
//! its answer. Nothing comes of it but a word for the doctor.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::settings::HostPort;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(2);

/// The suites of those days: ECDHE and RSA with AES-CBC and 3DES.
const SUITES: [u8; 14] = [0xc0, 0x09, 0xc0, 0x0a, 0xc0, 0x13, 0xc0, 0x14, 0x00, 0x2f, 0x00, 0x35, 0x00, 0x0a];

/// Groups and point formats, as extensions.
const EXTENSIONS: [u8; 20] = [
    0x00, 0x0a, 0x00, 0x08, 0x00, 0x06, 0x00, 0x17, 0x00, 0x18, 0x00, 0x19, 0x00, 0x0b, 0x00, 0x04, 0x03, 0x00, 0x01,
    0x02,
];

/// Which version older than TLS 1.2 a server answers with, when it does; it is reached directly, not through a proxy.
#[must_use]
pub fn old_version(server: &HostPort) -> Option<&'static str> {
    let host = server.host.trim_start_matches('[').trim_end_matches(']');
    let address = (host, server.port.unwrap_or(443)).to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&address, STEP).ok()?;
    stream.set_read_timeout(Some(STEP)).ok()?;
    stream.set_write_timeout(Some(STEP)).ok()?;
    stream.write_all(&greeting()).ok()?;
    // A record's head, a message's head, and the version.
    let mut answer = [0; 11];
    stream.read_exact(&mut answer).ok()?;
    version(&answer)
}

fn version(answer: &[u8; 11]) -> Option<&'static str> {
    match answer {
        [0x16, 3, _, _, _, 2, _, _, _, 3, minor] => match minor {
            0 => Some("SSL 3.0"),
            1 => Some("TLS 1.0"),
            2 => Some("TLS 1.1"),
            _ => None,
        },
        _ => None,
    }
}

/// A ClientHello of TLS 1.1.
fn greeting() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend(std::iter::repeat_with(|| fastrand::u8(..)).take(32));
    // No session.
    hello.push(0);
    hello.extend([0, SUITES.len() as u8]);
    hello.extend(SUITES);
    // No compression.
    hello.extend([1, 0]);
    hello.extend([0, EXTENSIONS.len() as u8]);
    hello.extend(EXTENSIONS);
    let length = hello.len() as u8;
    let mut record = vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_an_old_version_is_told_from_others() {
        let hello = |minor| [0x16, 3, minor, 0, 60, 2, 0, 0, 56, 3, minor];
        assert_eq!(
            [hello(2), hello(1), hello(3)].map(|answer| version(&answer)),
            [Some("TLS 1.1"), Some("TLS 1.0"), None]
        );
        assert_eq!(version(&[0x15, 3, 1, 0, 2, 2, 70, 0, 0, 0, 0]), None);
        assert_eq!(version(b"HTTP/1.1 40"), None);
    }

    #[test]
    fn the_greeting_is_one_record_of_the_length_that_it_says() {
        let greeting = greeting();
        assert_eq!(greeting.len(), 5 + usize::from(greeting[4]));
        assert_eq!(greeting.len(), 9 + usize::from(greeting[8]));
    }
}
