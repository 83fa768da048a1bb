//! The connections of a [server](super::server), and which of them have said nothing for how long.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A message that comes more slowly counts as silence, in bytes a millisecond. Any osqueryd is a thousand times as fast.
const SLOWEST: u64 = 64;

/// No socket's buffer is smaller: what fits into it is written without waiting for the other side.
const FITS_ANYWAY: usize = 4096;

/// How long a client may take to read a larger answer.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// The value of [`Open::heard`] while an answer is made.
const ANSWERING: u64 = u64::MAX;

/// The open connections, by number, so that idle ones can be ended.
#[derive(Default)]
pub(super) struct Connections {
    last: u64,
    /// How many have ended.
    pub(super) ended: u64,
    pub(super) open: Vec<(u64, Arc<Open>)>,
}

/// An open connection, as the threads that may end it see it.
pub(super) struct Open {
    stream: UnixStream,
    /// Milliseconds after the server's beginning up to which it has said something; [`ANSWERING`] while an answer is made.
    /// The first bytes of a message count as heard when they come, further ones as [`SLOWEST`] has it.
    heard: AtomicU64,
    /// The first bytes of a message have come, and no answer is made yet.
    is_speaking: AtomicBool,
    /// Whether anything has come.
    has_spoken: AtomicBool,
}

/// One connection, as its conversation sees it.
pub struct Connection<'s> {
    pub(super) open: &'s Open,
    /// When the server began.
    pub(super) began: Instant,
    pub(super) stopping: &'s AtomicBool,
    /// How many connections have not spoken yet.
    pub(super) unspoken: &'s AtomicUsize,
}

impl Connections {
    pub(super) fn add(&mut self, open: Arc<Open>) -> u64 {
        self.last += 1;
        self.open.push((self.last, open));
        self.last
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.open.retain(|(other, _)| *other != number);
        self.ended += 1;
    }
}

impl Open {
    /// A connection that has said nothing yet, to a server that began then.
    pub(super) fn new(stream: UnixStream, began: Instant) -> Self {
        let heard = AtomicU64::new(milliseconds(began));
        Self { stream, heard, is_speaking: AtomicBool::default(), has_spoken: AtomicBool::default() }
    }

    /// Whether nothing has come.
    pub(super) fn is_unspoken(&self) -> bool {
        !self.has_spoken.load(Ordering::Relaxed)
    }

    /// Ends it when nothing has come from it for `limit`, unless it waits for an answer. Only its reading side: an answer
    /// still gets out.
    pub(super) fn end_if_idle(&self, began: Instant, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let heard = self.heard.load(Ordering::Relaxed);
        if heard != ANSWERING && milliseconds(began).saturating_sub(heard) >= limit {
            // An error says that it is over already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }
}

impl Connection<'_> {
    /// Whether no further message is to be read after an answer.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// It has said something, or is over.
    pub(super) fn note_word(&self) {
        if !self.open.has_spoken.swap(true, Ordering::Relaxed) {
            self.unspoken.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// A message has come: until [`Self::answer`] the connection may be silent as long as it takes.
    pub fn begin_answer(&self) {
        self.open.is_speaking.store(false, Ordering::Relaxed);
        self.open.heard.store(ANSWERING, Ordering::Relaxed);
    }

    /// Writes an answer to a client that must read it in time.
    ///
    /// # Errors
    /// The client is gone, or doesn't read.
    pub fn answer(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > FITS_ANYWAY {
            self.open.stream.set_write_timeout(Some(WRITE_LIMIT))?;
        }
        (&self.open.stream).write_all(bytes)?;
        self.open.heard.store(milliseconds(self.began), Ordering::Relaxed);
        Ok(())
    }
}

impl Read for &Connection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.open.stream).read(buffer)?;
        let mut heard = milliseconds(self.began);
        if self.open.is_speaking.swap(true, Ordering::Relaxed) {
            let bytes = u64::try_from(count).unwrap_or(u64::MAX);
            heard = heard.min(self.open.heard.load(Ordering::Relaxed).saturating_add(bytes / SLOWEST));
        }
        self.open.heard.store(heard, Ordering::Relaxed);
        self.note_word();
        Ok(count)
    }
}

fn milliseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(ANSWERING - 1)
}
