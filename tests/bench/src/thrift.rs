//! The few messages of Thrift's binary protocol that are measured, as bytes: built once, sent many times, and read by
//! their outline only. Neither the generator nor the floor is to spend its time on a protocol library.

use std::io::{self, Read};

/// The header of a message: version 1 and its kind.
const CALL: u32 = 0x8001_0001;
const REPLY: u32 = 0x8001_0002;

// Types of fields.
const STOP: u8 = 0;
const BOOL: u8 = 2;
const BYTE: u8 = 3;
const DOUBLE: u8 = 4;
const I16: u8 = 6;
const I32: u8 = 8;
const I64: u8 = 10;
const STRING: u8 = 11;
const STRUCT: u8 = 12;
const MAP: u8 = 13;
const SET: u8 = 14;
const LIST: u8 = 15;

/// What is read at a time, until a message turns out to be longer.
const CHUNK: usize = 8 << 10;

/// A `ping`, as osqueryd sends it before each call.
pub(crate) fn ping() -> Vec<u8> {
    let mut message = header(CALL, "ping");
    message.push(STOP);
    message
}

/// A `call` of a plugin.
pub(crate) fn call(registry: &str, plugin: &str, request: &[(&str, &[u8])]) -> Vec<u8> {
    let mut message = header(CALL, "call");
    for (id, text) in [(1, registry), (2, plugin)] {
        field(&mut message, STRING, id);
        string(&mut message, text.as_bytes());
    }
    field(&mut message, MAP, 3);
    message.extend([STRING, STRING]);
    message.extend(length(request.len()));
    for (name, value) in request {
        string(&mut message, name.as_bytes());
        string(&mut message, value);
    }
    message.push(STOP);
    message
}

/// The answer to a `ping`.
pub(crate) fn pong() -> Vec<u8> {
    let mut message = header(REPLY, "ping");
    field(&mut message, STRUCT, 0);
    status(&mut message, "pong");
    message.push(STOP);
    message
}

/// The answer to a `call` that succeeded, without rows.
pub(crate) fn done() -> Vec<u8> {
    let mut message = header(REPLY, "call");
    field(&mut message, STRUCT, 0);
    field(&mut message, STRUCT, 1);
    status(&mut message, "OK");
    field(&mut message, LIST, 2);
    message.push(MAP);
    message.extend(length(0));
    message.extend([STOP, STOP]);
    message
}

/// Whether a message is a `ping`, and not a `call`.
pub(crate) fn is_ping(message: &[u8]) -> bool {
    message.get(8..12) == Some(b"ping")
}

/// Reads one message to its end into `buffer`, which keeps its size from message to message: how long the message is.
/// None when the other side has hung up before it.
pub(crate) fn read(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            buffer.resize((2 * filled).max(CHUNK), 0);
        }
        match stream.read(&mut buffer[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => filled += more,
        }
        if let Some(end) = end(&buffer[..filled]) {
            return Ok(Some(end));
        }
    }
}

/// The status code in the answer to a `ping` or a `call`; none when the answer is something else, an exception say.
/// An empty status is code 0, as osqueryd takes it: `osquery-rust-ng` answers pings with one.
pub(crate) fn code(answer: &[u8]) -> Option<i32> {
    let mut at = Outline { bytes: answer, at: 0 };
    if at.number()? != REPLY {
        return None;
    }
    let is_call = at.string()? == b"call";
    at.skip(4)?;
    at.field(STRUCT, 0)?;
    if is_call {
        at.field(STRUCT, 1)?;
    }
    if at.bytes.get(at.at) == Some(&STOP) {
        return Some(0);
    }
    at.field(I32, 1)?;
    at.number().map(|code| code as i32)
}

fn header(kind: u32, name: &str) -> Vec<u8> {
    let mut message = kind.to_be_bytes().to_vec();
    string(&mut message, name.as_bytes());
    message.extend([0; 4]);
    message
}

fn field(message: &mut Vec<u8>, kind: u8, id: i16) {
    message.push(kind);
    message.extend(id.to_be_bytes());
}

fn string(message: &mut Vec<u8>, bytes: &[u8]) {
    message.extend(length(bytes.len()));
    message.extend(bytes);
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("a length that Thrift can say").to_be_bytes()
}

fn status(message: &mut Vec<u8>, text: &str) {
    field(message, I32, 1);
    message.extend([0; 4]);
    field(message, STRING, 2);
    string(message, text.as_bytes());
    field(message, I64, 3);
    message.extend([0; 8]);
    message.push(STOP);
}

/// Where the message that `bytes` begin with ends; none while it is not all there.
fn end(bytes: &[u8]) -> Option<usize> {
    let mut at = Outline { bytes, at: 0 };
    at.skip(4)?;
    at.string()?;
    at.skip(4)?;
    at.value(STRUCT)?;
    Some(at.at)
}

/// Walks over a message without looking into its strings.
struct Outline<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Outline<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at + count)?;
        self.at += count;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(drop)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        self.take(length)
    }

    fn field(&mut self, kind: u8, id: i16) -> Option<()> {
        let [a, b] = id.to_be_bytes();
        (self.take(3)? == [kind, a, b]).then_some(())
    }

    fn value(&mut self, kind: u8) -> Option<()> {
        match kind {
            BOOL | BYTE => self.skip(1),
            I16 => self.skip(2),
            I32 => self.skip(4),
            I64 | DOUBLE => self.skip(8),
            STRING => self.string().map(drop),
            STRUCT => loop {
                match self.byte()? {
                    STOP => return Some(()),
                    kind => {
                        self.skip(2)?;
                        self.value(kind)?;
                    }
                }
            },
            MAP => {
                let (keys, values) = (self.byte()?, self.byte()?);
                (0..self.number()?).try_for_each(|_| {
                    self.value(keys)?;
                    self.value(values)
                })
            }
            LIST | SET => {
                let kind = self.byte()?;
                (0..self.number()?).try_for_each(|_| self.value(kind))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    #[test]
    fn a_message_is_read_to_its_end_in_whatever_pieces_it_comes() {
        let line = vec![b'x'; 3 * CHUNK];
        let message = call("logger", "p", &[("category", b"event"), ("string", &line)]);
        for size in [1, 7, message.len(), usize::MAX] {
            let mut buffer = Vec::new();
            let read = read(&mut Pieces(&message, size), &mut buffer).unwrap();
            assert_eq!(read, Some(message.len()));
            assert_eq!(buffer[..message.len()], message);
        }
        assert!(read(&mut Pieces(&message[..message.len() - 1], 100), &mut Vec::new()).is_err());
        assert_eq!(read(&mut Pieces(&[], 1), &mut Vec::new()).unwrap(), None);
    }

    #[test]
    fn codes_are_read_and_exceptions_have_none() {
        assert_eq!((code(&pong()), code(&done())), (Some(0), Some(0)));
        let mut failed = done();
        let at = header(REPLY, "call").len() + 3 + 3 + 3;
        failed[at..at + 4].copy_from_slice(&7_i32.to_be_bytes());
        assert_eq!(code(&failed), Some(7));
        let mut empty = header(REPLY, "ping");
        field(&mut empty, STRUCT, 0);
        empty.extend([STOP, STOP]);
        assert_eq!(code(&empty), Some(0));
        let mut exception = pong();
        exception[3] = 3;
        assert_eq!(code(&exception), None);
    }
}
