//! What front and worker tell each other, over a socket pair that is the worker's standard input.
//!
//! **The two can be of different versions**: a new binary brings a new worker before it brings a new front, and a
//! package can be taken back. So messages and their members go by names; a message that one side doesn't know is
//! skipped, with the descriptors that came with it; members that it doesn't know are skipped, and those that are
//! missing have defaults. Nothing here may change its meaning; what has to mean something else gets another name.
//!
//! A message is a line: the number of descriptors that come with it, a blank, and JSON. Descriptors travel beside it
//! (SCM_RIGHTS). Either side's end is the other's end of file, so that neither outlives the other unnoticed.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::platform::{self, RECEIVE_FLAGS, SEND_FLAGS};

use crate::lock::Mutex;
use crate::settings::{FrontSettings, Options};

/// What a worker is called among the host's processes; its number follows. There the doctor reads how many were started, also
/// when none of them answers.
pub const WORKER_NAME: &str = "remote_tls.ext: worker ";

/// Descriptors that one message may bring.
const MOST_DESCRIPTORS: usize = 4;

/// The longest message, in bytes: osqueryd's flags are some tens of kilobytes.
const LONGEST: usize = 16 << 20;

/// What a front tells its worker.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The first of all.
    Start(Start),
    /// The listening socket comes with it, for the time when the front is dead.
    Listener(Listener),
    /// osqueryd has registered the extension.
    Attached(Attached),
    /// osqueryd's process is gone. What the next one asks can come before [`Order::Attached`] does.
    Detached {},
    /// A call of osqueryd's: one end of a connection comes with it, over which the call is asked and answered
    /// ([`ask`], [`hear`]).
    Call {},
    /// Is the worker there? It answers [`Report::Pong`].
    Ping {
        /// The number that the answer has to carry.
        #[serde(default)]
        number: u64,
    },
    /// Result lines have come since [`Report::WakeMe`].
    Lines {},
    /// Status calls that no worker could take in time wait in the journal `pending`.
    Pending {},
    /// Another worker takes over: finish the calls in flight and end.
    HandOver {},
    /// osqueryd ends: finish the calls in flight, send what can be sent in a moment, and end.
    Stop {},
}

/// What a worker begins with.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Start {
    /// osqueryd's flags, so that a worker can start also while osqueryd doesn't answer.
    pub options: Options,
    /// Whether this worker is to enroll although there is a node key, where `enroll_always` says so.
    pub first: bool,
    /// Where the results journal ended when the front began: what lies before it is a backlog.
    pub backlog_end: JournalPosition,
    /// How the results journal's writing side stood when this worker was started.
    pub taken: Taken,
    /// Whether an operator wants the configuration fetched and pushed now (SIGHUP).
    pub refresh: bool,
    /// How many workers the front has started, this one among them.
    pub number: u64,
    /// The process that has started the front: osqueryd's watcher, whose command line tells what the operator has set.
    pub parent: u32,
}

/// Where the listening socket is.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Listener {
    /// The name that only we know.
    pub private: PathBuf,
}

/// A registration with an osqueryd that runs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Attached {
    /// The number that osqueryd has given the extension: its socket's name ends in it, and each answer carries it.
    pub uuid: i64,
    /// osqueryd's process; 0 when it isn't known.
    pub osqueryd: u32,
}

/// What a worker tells its front.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It has started and takes calls.
    Ready(Ready),
    /// It answers a ping.
    Pong {
        /// The number of the ping that it answers.
        #[serde(default)]
        number: u64,
    },
    /// It has seen the results journal up to this place, and sleeps until more has come: [`Order::Lines`].
    WakeMe(JournalPosition),
    /// It wants result lines that the disk refuses: they are written into the descriptor that comes with it.
    PeekOverflow {
        /// How many bytes it takes at most.
        #[serde(default)]
        most: usize,
    },
    /// The server has these lines of those that the disk refuses.
    RemoveOverflow {
        /// As the peek has told it.
        #[serde(default)]
        through: u64,
    },
    /// What was peeked is not on its way any more.
    GiveBackOverflow {},
    /// It wants to know how the results journal's writing side stands: JSON, [`Taken`], into the descriptor that comes
    /// with it.
    Taken {},
    /// It wants what was said of lost result lines on the writing side, since the last time that a worker asked: JSON,
    /// an array of strings, into the descriptor that comes with it.
    Losses {},
    /// Flags that the front goes by have changed.
    Settings(FrontSettings),
}

/// What a worker's binary can do.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Ready {
    /// The version of its binary.
    pub version: String,
    /// A front of its binary can go on in place (`--resume`).
    pub resumes: bool,
}

/// A place in the results journal.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct JournalPosition {
    /// The number in the file's name.
    pub file: u64,
    /// The offset in it.
    pub offset: u64,
}

/// How the writing side of the results journal stands.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Taken {
    /// Lines taken from osqueryd since the front began.
    pub accepted: u64,
    /// Lines given up since then, for want of room.
    pub dropped: u64,
    /// Lines that wait in memory.
    pub held_lines: u64,
    /// Bytes of their records.
    pub held_bytes: u64,
}

/// Descriptors that came with a message.
pub type Descriptors = Vec<OwnedFd>;

/// Sends one message, with these descriptors beside it.
///
/// # Errors
/// The other side is gone.
pub fn send(stream: &UnixStream, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = format!("{} ", descriptors.len()).into_bytes();
    serde_json::to_writer(&mut line, message)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let sent = rustix::io::retry_on_intr(|| sendmsg(stream, &[IoSlice::new(&line)], &mut ancillary, SEND_FLAGS))?;
    // The descriptors went with the first byte.
    (&*stream).write_all(line.get(sent..).unwrap_or_default())
}

/// The sending side of the connection, for several threads.
pub struct ToOther(Mutex<UnixStream>);

impl ToOther {
    /// Sends over this stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Tells the other side something; one that is gone doesn't hear it, and its end is noticed elsewhere.
    pub fn tell(&self, message: &impl Serialize) {
        if let Err(error) = self.send(message, None) {
            log::debug!("the other process can't be told: {error}");
        }
    }

    /// Tells the other side something, with a descriptor beside it.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send(&self, message: &impl Serialize, descriptor: Option<&dyn AsFd>) -> io::Result<()> {
        let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
        send(&self.0.lock(), message, &descriptors)
    }

    /// The same connection once more.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn stream(&self) -> io::Result<UnixStream> {
        self.0.lock().try_clone()
    }
}

/// Receives messages, one at a time.
pub struct Receiver {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Receiver {
    /// Receives from this stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new(), descriptors: VecDeque::new() }
    }

    /// The next message that this version knows, with its descriptors; `None` at the other side's end.
    ///
    /// # Errors
    /// The stream's own; a read time-out of the stream is an error of that kind.
    pub fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<(T, Descriptors)>> {
        while let Some((count, json)) = self.line()? {
            let count = count.min(self.descriptors.len());
            let descriptors: Descriptors = self.descriptors.drain(..count).collect();
            match serde_json::from_slice(&json) {
                Ok(message) => return Ok(Some((message, descriptors))),
                Err(error) => {
                    let name = json.get(..json.len().min(40)).map(String::from_utf8_lossy).unwrap_or_default();
                    log::debug!("a message of another version is skipped ({error}): {name}");
                }
            }
        }
        Ok(None)
    }

    /// The next line: its number of descriptors, and its JSON.
    fn line(&mut self) -> io::Result<Option<(usize, Vec<u8>)>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.bytes) {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.pop();
                let blank = memchr::memchr(b' ', &line).unwrap_or(line.len());
                let json = line.split_off(blank);
                let count = std::str::from_utf8(&line).ok().and_then(|count| count.parse().ok());
                return Ok(Some((count.unwrap_or(0), json)));
            }
            if self.bytes.len() > LONGEST {
                return Err(io::Error::other("a message without an end"));
            }
            if self.read_some()? == 0 {
                return Ok(None);
            }
        }
    }

    fn read_some(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RECEIVE_FLAGS)
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    platform::keep_from_children(&descriptor)?;
                    self.descriptors.push_back(descriptor);
                }
            }
        }
        self.bytes.extend(chunk.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    }
}

/// Asks over a connection of its own: the answer, whole.
///
/// # Errors
/// The other side has ended before it had answered.
pub fn ask(mut stream: &UnixStream, frame: &[u8]) -> io::Result<Vec<u8>> {
    write_frame(&mut stream, frame)?;
    read_frame(&mut stream)
}

/// Hears what is asked over a connection of its own; [`reply`] answers it.
///
/// # Errors
/// The other side has ended before it had asked.
pub fn hear(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    read_frame(&mut stream)
}

/// Answers what was asked.
///
/// # Errors
/// The other side has ended, and doesn't wait for it.
pub fn reply(mut stream: &UnixStream, frame: &[u8]) -> io::Result<()> {
    write_frame(&mut stream, frame)
}

fn write_frame(stream: &mut impl io::Write, frame: &[u8]) -> io::Result<()> {
    stream.write_all(&(frame.len() as u64).to_be_bytes())?;
    stream.write_all(frame)
}

/// Reserves nothing ahead of what has come.
fn read_frame(stream: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    let mut frame = Vec::new();
    let read = io::Read::take(stream, length).read_to_end(&mut frame)?;
    if (read as u64) < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(frame) }
}

/// The one descriptor of a message, as a stream.
#[must_use]
pub fn as_stream(descriptors: Descriptors) -> Option<UnixStream> {
    descriptors.into_iter().next().map(UnixStream::from)
}

/// The standard input as the connection to the other side.
///
/// # Errors
/// It is something else: the program was started by hand.
pub fn on_standard_input() -> io::Result<UnixStream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.peer_addr()?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one_with_their_descriptors_and_the_end_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let options = Options::from([("tls_hostname".to_owned(), "a\nb".to_owned())]);
        send(&ours, &Order::Start(Start { options, first: true, ..Start::default() }), &[]).unwrap();
        let (end, other_end) = UnixStream::pair().unwrap();
        send(&ours, &Order::Call {}, &[other_end.as_fd()]).unwrap();
        send(&ours, &Order::Attached(Attached { uuid: 7, osqueryd: 9 }), &[]).unwrap();
        drop((ours, other_end));
        let mut receiver = Receiver::new(theirs);
        let (start, none) = receiver.receive::<Order>().unwrap().unwrap();
        assert!(matches!(start, Order::Start(Start { first: true, .. })) && none.is_empty());
        let (call, descriptors) = receiver.receive::<Order>().unwrap().unwrap();
        assert_eq!(call, Order::Call {});
        let stream = as_stream(descriptors).unwrap();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&end, b"what?").unwrap());
            assert_eq!(hear(&stream).unwrap(), b"what?");
            reply(&stream, b"that").unwrap();
            assert_eq!(asking.join().unwrap(), b"that");
        });
        let attached = receiver.receive::<Order>().unwrap().unwrap().0;
        assert_eq!(attached, Order::Attached(Attached { uuid: 7, osqueryd: 9 }));
        assert!(receiver.receive::<Order>().unwrap().is_none());
    }

    /// What a later version may send: other messages with descriptors, other members; an earlier one sends fewer.
    #[test]
    fn another_version_is_understood() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_end, other_end) = UnixStream::pair().unwrap();
        let say = |json: serde_json::Value, descriptors: &[BorrowedFd<'_>]| send(&ours, &json, descriptors).unwrap();
        say(serde_json::json!({"dance": {"how": "well"}}), &[other_end.as_fd()]);
        say(serde_json::json!("what_an_old_version_said"), &[]);
        say(serde_json::json!({"start": {"options": {"a": "b"}, "tempo": 3}}), &[]);
        say(serde_json::json!({"call": {"urgent": true}}), &[other_end.as_fd()]);
        say(serde_json::json!({"attached": {"uuid": 3, "since": 1}}), &[]);
        say(serde_json::json!({"stop": {}}), &[]);
        let mut receiver = Receiver::new(theirs);
        let mut next = || receiver.receive::<Order>().unwrap().unwrap();
        let options = Options::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(next().0, Order::Start(Start { options, ..Start::default() }));
        let (call, descriptors) = next();
        assert_eq!((call, descriptors.len()), (Order::Call {}, 1), "the skipped message's descriptor went with it");
        assert_eq!(next().0, Order::Attached(Attached { uuid: 3, osqueryd: 0 }));
        assert_eq!(next().0, Order::Stop {});
        for (json, report) in [
            (serde_json::json!({"ready": {"colour": "red"}}), Report::Ready(Ready::default())),
            (serde_json::json!({"wake_me": {"file": 4}}), Report::WakeMe(JournalPosition { file: 4, offset: 0 })),
        ] {
            assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_none() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(&9_u64.to_be_bytes()).unwrap();
        (&theirs).write_all(b"too few").unwrap();
        drop(theirs);
        assert!(ask(&ours, b"").is_err());
    }
}
