//! Answer bodies as hyper polls them: whole, slow, cut off, or endless.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Padding goes out in pieces of this many bytes.
const PIECE: usize = 64 * 1024;

/// A body, and who is told when hyper has taken all of it.
pub(super) struct AnswerBody {
    source: Source,
    taken: Option<Arc<Notify>>,
}

enum Source {
    Whole { bytes: Bytes, length_known: bool },
    Slow { bytes: Bytes, next: usize, ticks: Interval },
    Cut { bytes: Bytes, step: u8 },
    Padding(Padding),
}

impl AnswerBody {
    /// All at once, with a `Content-Length`.
    pub(super) fn whole(bytes: Vec<u8>) -> AnswerBody {
        Source::Whole { bytes: bytes.into(), length_known: true }.into()
    }

    /// All at once, without a length.
    pub(super) fn unmeasured(bytes: Vec<u8>) -> AnswerBody {
        Source::Whole { bytes: bytes.into(), length_known: false }.into()
    }

    /// A byte at each tick, then spaces for ever.
    pub(super) fn slow(bytes: Vec<u8>, byte_every: Duration) -> AnswerBody {
        let mut ticks = interval(byte_every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Source::Slow { bytes: bytes.into(), next: 0, ticks }.into()
    }

    /// These bytes, then the end of the connection.
    pub(super) fn cut(bytes: Vec<u8>) -> AnswerBody {
        Source::Cut { bytes: bytes.into(), step: 0 }.into()
    }

    /// A JSON object of `total` bytes (at least 2), nearly all spaces.
    pub(super) fn padding(total: u64, gzip: bool) -> AnswerBody {
        let gzip = gzip.then(|| GzEncoder::new(Vec::new(), Compression::default()));
        Source::Padding(Padding { opened: false, spaces: total.saturating_sub(2), closed: false, gzip }).into()
    }

    /// Tells `taken` once hyper has written the answer's head and has taken all of this body.
    pub(super) fn tell(mut self, taken: Arc<Notify>) -> AnswerBody {
        self.taken = Some(taken);
        self
    }
}

impl From<Source> for AnswerBody {
    fn from(source: Source) -> AnswerBody {
        AnswerBody { source, taken: None }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match &mut self.source {
            Source::Whole { bytes, .. } => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Source::Slow { bytes, next, ticks } => {
                std::task::ready!(ticks.poll_tick(cx));
                let byte = bytes.get(*next).copied().unwrap_or(b' ');
                *next += 1;
                Some(Bytes::copy_from_slice(&[byte]))
            }
            Source::Cut { bytes, step } => {
                *step += 1;
                match *step {
                    1 if !bytes.is_empty() => Some(std::mem::take(bytes)),
                    // Pending makes hyper flush what it has; an error at once would take those bytes with it.
                    1 | 2 => {
                        *step = 2;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    _ => return Poll::Ready(Some(Err(io::Error::other("the answer is cut off here")))),
                }
            }
            Source::Padding(padding) => padding.next_piece().map(Bytes::from),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole { bytes, length_known: true } => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for AnswerBody {
    /// hyper drops a body when nothing of it is left to take, and never before the head is written.
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            taken.notify_one();
        }
    }
}

struct Padding {
    opened: bool,
    spaces: u64,
    closed: bool,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Padding {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        // The compressor swallows many a piece before it gives one.
        loop {
            let Some(plain) = self.next_plain() else {
                return self.gzip.take().map(|gzip| gzip.finish().expect("memory takes every byte"));
            };
            let Some(gzip) = &mut self.gzip else { return Some(plain) };
            gzip.write_all(&plain).expect("memory takes every byte");
            let ready = std::mem::take(gzip.get_mut());
            if !ready.is_empty() {
                return Some(ready);
            }
        }
    }

    fn next_plain(&mut self) -> Option<Vec<u8>> {
        if !self.opened {
            self.opened = true;
            return Some(b"{".to_vec());
        }
        if self.spaces > 0 {
            let size = usize::try_from(self.spaces).unwrap_or(PIECE).min(PIECE);
            self.spaces -= size as u64;
            return Some(vec![b' '; size]);
        }
        let last = !self.closed;
        self.closed = true;
        last.then(|| b"}".to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn drained(mut padding: Padding) -> Vec<u8> {
        std::iter::from_fn(|| padding.next_piece()).flatten().collect()
    }

    fn padding(spaces: u64, gzip: Option<GzEncoder<Vec<u8>>>) -> Padding {
        Padding { opened: false, spaces, closed: false, gzip }
    }

    #[test]
    fn padding_is_json_of_the_size_asked_for() {
        let bytes = drained(padding(200_000, None));
        assert_eq!(bytes.len(), 200_002);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(), serde_json::json!({}));
    }

    #[test]
    fn compressed_padding_is_the_same_padding() {
        let bytes = drained(padding(5_000_000, Some(GzEncoder::new(Vec::new(), Compression::default()))));
        assert!(bytes.len() < 50_000, "{} bytes", bytes.len());
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain.len(), 5_000_002);
    }
}
