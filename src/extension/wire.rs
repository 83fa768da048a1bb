//! osqueryd's calls as they come over the socket: Thrift's binary protocol, read in place.
//!
//! The front answers thousands of calls a second and must keep what it takes byte for byte, so it doesn't build the
//! generated code's strings and maps (which refuse bytes that are not UTF-8): a message stays in one reused buffer,
//! and a call is told as ranges of it. A logger's line that is larger than [`IN_MEMORY`] doesn't even go there: it is
//! handed to a [`Sink`] as it comes, so that a call of any size costs the same memory.
//!
//! Strict messages only, as osqueryd sends them: `80 01 00 TYPE`, name, sequence number, arguments.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;

/// A value larger than this (bytes) is streamed where that is possible.
pub const IN_MEMORY: usize = 1 << 20;

/// The largest message, in bytes. osqueryd's own limit for a string is below that.
const LARGEST: usize = 1 << 30;

/// How much is read at once, and how far a buffer grows ahead of what has come: an announced length reserves nothing.
const CHUNK: usize = 64 << 10;

/// Thrift structures nest, osqueryd's do so twice.
const DEEPEST: usize = 16;

// Types of Thrift's binary protocol.
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
const UUID: u8 = 16;

// Kinds of messages.
const CALL: u8 = 1;
const REPLY: u8 = 2;
const EXCEPTION: u8 = 3;

/// `TApplicationException`'s code for a method that isn't there.
const UNKNOWN_METHOD: i32 = 1;

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// `ping()`
    Ping,
    /// `shutdown()`
    Shutdown,
    /// `call(registry, item, request)`
    Call,
    /// A method that this extension does not have.
    Unknown,
}

/// A message that was read to its end. Its bytes are in the conversation's buffer.
#[derive(Clone, Debug)]
pub struct Message {
    /// What is asked for.
    pub method: Method,
    /// The sequence number, which the answer carries.
    pub sequence: i32,
    /// A call's registry, item and request; empty for other methods.
    pub call: Call,
    /// Where the whole message lies; without the value that was streamed, when one was.
    pub frame: Range<usize>,
}

/// A call's parts, as ranges of the conversation's buffer.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `config`, `logger`, `distributed`, `table`.
    pub registry: Range<usize>,
    /// The name of the plugin.
    pub item: Range<usize>,
    /// Names and values of the request, in order.
    pub entries: Vec<(Range<usize>, Range<usize>)>,
    /// Whether a value went to a [`Sink`]; its entry is left out.
    pub streamed: bool,
}

/// Takes a value that is too large for memory.
pub trait Sink {
    /// Some more bytes of it. Never fails: what can't be kept is the sink's to count.
    fn write(&mut self, bytes: &[u8]);
    /// The value has come to its end, and so has the message. Without this call it is given up.
    fn commit(self: Box<Self>);
}

/// Says where a large value of a call goes: `(registry, item, name, length)`; `None` keeps it in memory.
pub type FindSink<'s> = dyn Fn(&[u8], &[u8], &[u8], usize) -> Option<Box<dyn Sink + 's>> + 's;

/// The messages of one connection.
pub struct Conversation<'b, R> {
    reader: R,
    /// Reused from connection to connection; `filled` of it holds bytes that have come.
    buffer: &'b mut Vec<u8>,
    filled: usize,
    /// How far the present message was read.
    at: usize,
}

impl<'b, R: Read> Conversation<'b, R> {
    /// Reads from `reader` into `buffer`, whose contents don't matter.
    pub fn new(reader: R, buffer: &'b mut Vec<u8>) -> Self {
        Self { reader, buffer, filled: 0, at: 0 }
    }

    /// The next message; `None` when the other side has ended the conversation between two messages.
    ///
    /// # Errors
    /// The connection's own, `UnexpectedEof` in the middle of a message, `InvalidData` for what is no message of
    /// Thrift's binary protocol: where the next one would begin isn't known then.
    pub fn next(&mut self, find_sink: &FindSink<'_>) -> io::Result<Option<Message>> {
        self.forget_last();
        if self.filled == 0 && self.read_some(4)? == 0 {
            return Ok(None);
        }
        let [version, one, _, kind] = self.i32()?.to_be_bytes();
        if (version, one, kind) != (0x80, 1, CALL) {
            return Err(invalid("not a call of Thrift's binary protocol"));
        }
        let name = self.string()?;
        let sequence = self.i32()?;
        let method = match self.bytes(&name) {
            b"ping" => Method::Ping,
            b"shutdown" => Method::Shutdown,
            b"call" => Method::Call,
            _ => Method::Unknown,
        };
        let mut call = Call::default();
        let mut sink = None;
        if method == Method::Call {
            self.arguments(&mut call, &mut sink, find_sink)?;
        } else {
            self.skip(STRUCT, DEEPEST)?;
        }
        if let Some(sink) = sink {
            sink.commit();
        }
        Ok(Some(Message { method, sequence, call, frame: 0..self.at }))
    }

    /// Bytes of the message that was read last.
    #[must_use]
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    /// What has come of the next message goes to the buffer's beginning.
    fn forget_last(&mut self) {
        if self.at > 0 {
            self.buffer.copy_within(self.at..self.filled, 0);
            self.filled -= self.at;
            self.at = 0;
        }
        if self.buffer.len() > IN_MEMORY {
            self.buffer.truncate(CHUNK.max(self.filled));
            self.buffer.shrink_to_fit();
        }
    }

    fn arguments<'s>(
        &mut self,
        call: &mut Call,
        sink: &mut Option<Box<dyn Sink + 's>>,
        find_sink: &FindSink<'s>,
    ) -> io::Result<()> {
        loop {
            let kind = self.byte()?;
            if kind == STOP {
                return Ok(());
            }
            match (kind, self.i16()?) {
                (STRING, 1) => call.registry = self.string()?,
                (STRING, 2) => call.item = self.string()?,
                (MAP, 3) => self.request(call, sink, find_sink)?,
                (kind, _) => self.skip(kind, DEEPEST)?,
            }
        }
    }

    fn request<'s>(
        &mut self,
        call: &mut Call,
        sink: &mut Option<Box<dyn Sink + 's>>,
        find_sink: &FindSink<'s>,
    ) -> io::Result<()> {
        let (key, value) = (self.byte()?, self.byte()?);
        let count = self.length()?;
        if count > 0 && (key, value) != (STRING, STRING) {
            return Err(invalid("a request that is no map of strings"));
        }
        for _ in 0..count {
            let name = self.string()?;
            let length = self.length()?;
            if length > IN_MEMORY && sink.is_none() {
                let (registry, item) = (self.bytes(&call.registry), self.bytes(&call.item));
                *sink = find_sink(registry, item, self.bytes(&name), length);
                if let Some(sink) = sink {
                    self.stream(length, sink.as_mut())?;
                    call.streamed = true;
                    continue;
                }
            }
            let value = self.take(length)?;
            call.entries.push((name, value));
        }
        Ok(())
    }

    /// Hands the next `length` bytes on. They leave the buffer, so that it stays small.
    fn stream(&mut self, length: usize, sink: &mut dyn Sink) -> io::Result<()> {
        let here = (self.filled - self.at).min(length);
        sink.write(self.buffer.get(self.at..self.at + here).unwrap_or_default());
        self.buffer.copy_within(self.at + here..self.filled, self.at);
        self.filled -= here;
        let mut left = length - here;
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let most = left.min(CHUNK);
            let count = read(&mut self.reader, chunk.get_mut(..most).unwrap_or_default())?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            sink.write(chunk.get(..count).unwrap_or_default());
            left -= count;
        }
        Ok(())
    }

    fn skip(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        let deeper = depth.checked_sub(1).ok_or_else(|| invalid("nested too deep"))?;
        match kind {
            BOOL | BYTE => self.take(1).map(drop),
            I16 => self.take(2).map(drop),
            I32 => self.take(4).map(drop),
            I64 | DOUBLE => self.take(8).map(drop),
            UUID => self.take(16).map(drop),
            STRING => self.string().map(drop),
            STRUCT => loop {
                match self.byte()? {
                    STOP => return Ok(()),
                    kind => {
                        self.i16()?;
                        self.skip(kind, deeper)?;
                    }
                }
            },
            MAP => {
                let (key, value) = (self.byte()?, self.byte()?);
                for _ in 0..self.length()? {
                    self.skip(key, deeper)?;
                    self.skip(value, deeper)?;
                }
                Ok(())
            }
            LIST | SET => {
                let element = self.byte()?;
                for _ in 0..self.length()? {
                    self.skip(element, deeper)?;
                }
                Ok(())
            }
            _ => Err(invalid("a type that Thrift doesn't have")),
        }
    }

    fn string(&mut self) -> io::Result<Range<usize>> {
        let length = self.length()?;
        self.take(length)
    }

    fn length(&mut self) -> io::Result<usize> {
        usize::try_from(self.i32()?).map_err(|_| invalid("a negative length"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let range = self.take(1)?;
        Ok(self.bytes(&range).first().copied().unwrap_or_default())
    }

    fn i16(&mut self) -> io::Result<i16> {
        let range = self.take(2)?;
        Ok(self.bytes(&range).iter().fold(0, |value: i16, byte| value << 8 | i16::from(*byte)))
    }

    fn i32(&mut self) -> io::Result<i32> {
        let range = self.take(4)?;
        Ok(self.bytes(&range).iter().fold(0, |value: i32, byte| value << 8 | i32::from(*byte)))
    }

    /// The next `length` bytes, once they are there.
    fn take(&mut self, length: usize) -> io::Result<Range<usize>> {
        let end = self.at.checked_add(length).filter(|end| *end <= LARGEST);
        let end = end.ok_or_else(|| invalid("a message too large to be one"))?;
        while self.filled < end {
            if self.read_some(end - self.filled)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let start = std::mem::replace(&mut self.at, end);
        Ok(start..end)
    }

    /// Reads what has come, with room for `wanted` bytes more as far as that is sensible.
    fn read_some(&mut self, wanted: usize) -> io::Result<usize> {
        let room = wanted.clamp(CHUNK / 4, CHUNK.max(self.filled));
        if self.buffer.len() < self.filled + room {
            self.buffer.resize(self.filled + room, 0);
        }
        let count = read(&mut self.reader, self.buffer.get_mut(self.filled..).unwrap_or_default())?;
        self.filled += count;
        Ok(count)
    }
}

fn read(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// The answer to `ping`.
#[must_use]
pub fn pong(sequence: i32, uuid: i64) -> Vec<u8> {
    let mut reply = head(REPLY, "ping", sequence);
    field(&mut reply, STRUCT, 0);
    status(&mut reply, 0, "pong", uuid);
    reply.push(STOP);
    reply
}

/// The answer to a call that has no rows.
#[must_use]
pub fn call_reply(sequence: i32, code: i32, message: &str, uuid: i64) -> Vec<u8> {
    let mut reply = head(REPLY, "call", sequence);
    field(&mut reply, STRUCT, 0);
    field(&mut reply, STRUCT, 1);
    status(&mut reply, code, message, uuid);
    field(&mut reply, LIST, 2);
    reply.push(MAP);
    reply.extend(0_i32.to_be_bytes());
    reply.extend([STOP, STOP]);
    reply
}

/// The answer to `shutdown`.
#[must_use]
pub fn shutdown_reply(sequence: i32) -> Vec<u8> {
    let mut reply = head(REPLY, "shutdown", sequence);
    reply.push(STOP);
    reply
}

/// The answer to a method that isn't there.
#[must_use]
pub fn unknown_method(name: &str, sequence: i32) -> Vec<u8> {
    let mut reply = head(EXCEPTION, name, sequence);
    field(&mut reply, STRING, 1);
    string(&mut reply, "no such method");
    field(&mut reply, I32, 2);
    reply.extend(UNKNOWN_METHOD.to_be_bytes());
    reply.push(STOP);
    reply
}

fn head(kind: u8, name: &str, sequence: i32) -> Vec<u8> {
    let mut message = Vec::with_capacity(96);
    message.extend([0x80, 1, 0, kind]);
    string(&mut message, name);
    message.extend(sequence.to_be_bytes());
    message
}

fn status(message: &mut Vec<u8>, code: i32, text: &str, uuid: i64) {
    field(message, I32, 1);
    message.extend(code.to_be_bytes());
    field(message, STRING, 2);
    string(message, text);
    field(message, I64, 3);
    message.extend(uuid.to_be_bytes());
    message.push(STOP);
}

fn field(message: &mut Vec<u8>, kind: u8, id: i16) {
    message.push(kind);
    message.extend(id.to_be_bytes());
}

fn string(message: &mut Vec<u8>, text: &str) {
    message.extend(i32::try_from(text.len()).unwrap_or_default().to_be_bytes());
    message.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use thrift::protocol::{TBinaryInputProtocol, TBinaryOutputProtocol};

    use super::super::osquery::{ExtensionSyncClient, TExtensionSyncClient};
    use super::*;

    const NO_SINK: &FindSink<'static> = &|_, _, _, _| None;

    /// Gives its bytes in pieces of this size.
    struct Dripping<'a>(&'a [u8], usize);

    impl Read for Dripping<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    /// The bytes of a call, as the generated client writes them.
    fn call(registry: &str, item: &str, request: &[(&str, &str)]) -> Vec<u8> {
        let mut wire = Vec::new();
        let output = TBinaryOutputProtocol::new(&mut wire, true);
        let mut client = ExtensionSyncClient::new(TBinaryInputProtocol::new(io::empty(), true), output);
        let request = request.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        // There is no answer; what was asked is written all the same.
        assert!(client.call(registry.to_owned(), item.to_owned(), request).is_err());
        wire
    }

    fn ping() -> Vec<u8> {
        b"\x80\x01\x00\x01\x00\x00\x00\x04ping\x00\x00\x00\x07\x00".to_vec()
    }

    #[test]
    fn messages_are_read_however_their_bytes_come() {
        let wire =
            [ping(), call("logger", "remote_tls", &[("category", ""), ("string", "{\"a\":1}")]), ping()].concat();
        for at_once in [1, 3, 7, 64, wire.len()] {
            let mut buffer = Vec::new();
            let mut conversation = Conversation::new(Dripping(&wire, at_once), &mut buffer);
            let first = conversation.next(NO_SINK).unwrap().unwrap();
            assert_eq!((first.method, first.sequence), (Method::Ping, 7));
            let second = conversation.next(NO_SINK).unwrap().unwrap();
            assert_eq!(conversation.bytes(&second.call.registry), b"logger");
            assert_eq!(conversation.bytes(&second.call.item), b"remote_tls");
            let entries: Vec<(&[u8], &[u8])> = second
                .call
                .entries
                .iter()
                .map(|(name, value)| (conversation.bytes(name), conversation.bytes(value)))
                .collect();
            assert_eq!(entries, [(&b"category"[..], &b""[..]), (b"string", b"{\"a\":1}")]);
            assert_eq!(conversation.bytes(&second.frame), &wire[ping().len()..wire.len() - ping().len()]);
            assert_eq!(conversation.next(NO_SINK).unwrap().unwrap().method, Method::Ping);
            assert!(conversation.next(NO_SINK).unwrap().is_none());
        }
    }

    /// Keeps what it gets, and whether that was all.
    struct Kept(Rc<RefCell<(Vec<u8>, bool)>>);

    impl Sink for Kept {
        fn write(&mut self, bytes: &[u8]) {
            self.0.borrow_mut().0.extend(bytes);
        }

        fn commit(self: Box<Self>) {
            self.0.borrow_mut().1 = true;
        }
    }

    #[test]
    fn a_large_line_is_streamed_and_costs_no_memory() {
        let line = "x".repeat(5 * IN_MEMORY);
        let wire = [call("logger", "remote_tls", &[("category", "c"), ("string", &line)]), ping()].concat();
        for at_once in [1000, 1 << 16, wire.len()] {
            let kept = Rc::new(RefCell::new((Vec::new(), false)));
            let mut buffer = Vec::new();
            let mut conversation = Conversation::new(Dripping(&wire, at_once), &mut buffer);
            let message = conversation
                .next(&|registry, item, name, length| {
                    assert_eq!((registry, item, name), (&b"logger"[..], &b"remote_tls"[..], &b"string"[..]));
                    assert_eq!(length, line.len());
                    Some(Box::new(Kept(Rc::clone(&kept))))
                })
                .unwrap()
                .unwrap();
            assert!(message.call.streamed && message.call.entries.len() == 1);
            assert_eq!(conversation.next(NO_SINK).unwrap().unwrap().method, Method::Ping);
            assert!(buffer.capacity() < 2 * IN_MEMORY, "{}", buffer.capacity());
            assert!(kept.borrow().1 && kept.borrow().0 == line.as_bytes());
        }
    }

    #[test]
    fn a_large_line_that_is_cut_off_is_not_committed() {
        let wire = call("logger", "remote_tls", &[("string", &"x".repeat(2 * IN_MEMORY))]);
        let kept = Rc::new(RefCell::new((Vec::new(), false)));
        for cut in [wire.len() - 1, wire.len() - 1000] {
            let mut buffer = Vec::new();
            let mut conversation = Conversation::new(&wire[..cut], &mut buffer);
            let error = conversation.next(&|_, _, _, _| Some(Box::new(Kept(Rc::clone(&kept))))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert!(!kept.borrow().1);
        }
    }

    #[test]
    fn what_is_no_message_is_an_error_and_reserves_nothing() {
        let huge =
            [b"\x80\x01\x00\x01\x00\x00\x00\x04call\x00\x00\x00\x00\x0b\x00\x01", &i32::MAX.to_be_bytes()[..]].concat();
        let large =
            [b"\x80\x01\x00\x01\x00\x00\x00\x04call\x00\x00\x00\x00\x0b\x00\x01", &(1_i32 << 29).to_be_bytes()[..]]
                .concat();
        let deep = [&b"\x80\x01\x00\x01\x00\x00\x00\x04what\x00\x00\x00\x00"[..], &b"\x0c\x00\x01".repeat(50)].concat();
        for wire in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x00\x00\x00\x04ping",
            b"\x80\x01\x00\x01\xff\xff\xff\xff",
            &huge,
            &large,
            &deep,
        ] {
            let mut buffer = Vec::new();
            assert!(Conversation::new(wire, &mut buffer).next(NO_SINK).is_err(), "{wire:?}");
            assert!(buffer.capacity() <= 2 * CHUNK);
        }
    }

    /// What the generated client reads of an answer.
    fn client(reply: &[u8]) -> ExtensionSyncClient<TBinaryInputProtocol<&[u8]>, TBinaryOutputProtocol<io::Sink>> {
        ExtensionSyncClient::new(TBinaryInputProtocol::new(reply, true), TBinaryOutputProtocol::new(io::sink(), true))
    }

    #[test]
    fn answers_are_read_by_the_generated_client() {
        // Its first call has the sequence number 1.
        let status = client(&pong(1, 7)).ping().unwrap();
        assert_eq!((status.code, status.message.as_deref(), status.uuid), (Some(0), Some("pong"), Some(7)));
        let response =
            client(&call_reply(1, 1, "é no", 9)).call(String::new(), String::new(), Default::default()).unwrap();
        let status = response.status.unwrap();
        assert_eq!((status.code, status.message.as_deref(), status.uuid), (Some(1), Some("é no"), Some(9)));
        assert_eq!(response.response, Some(Vec::new()));
        client(&shutdown_reply(1)).shutdown().unwrap();
        let error = client(&unknown_method("ping", 1)).ping().unwrap_err();
        assert!(matches!(error, thrift::Error::Application(_)), "{error}");
    }
}
