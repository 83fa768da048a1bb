//! What a test tells the server to answer: plain answers, and the faults of servers and networks in the field.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// One answer to one request. Start from a constructor, then refine it with the builder methods.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) content: Content,
    pub(super) headers: Vec<(String, String)>,
    pub(super) delay: Duration,
    pub(super) ending: Ending,
    pub(super) gzip: bool,
    pub(super) latin1: bool,
}

/// What is said.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// What the server says of itself.
    Default,
    /// The same, with all that it does to the server's state, but the client never hears of it.
    Lost,
    Fixed {
        status: u16,
        body: String,
        content_type: &'static str,
    },
    /// A status without a body, from the request's head: the rest is not read.
    FromHead {
        status: u16,
    },
    DropConnection,
    DropMidRequest,
    Hang,
    Trickle {
        body: String,
        byte_every: Duration,
    },
    Truncated {
        body: String,
        declared: usize,
    },
    Endless {
        total: u64,
    },
}

/// What happens to the connection behind the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// What [`super::Options::keep_alive`] says.
    AsConfigured,
    /// HTTP/1.0 without a length: the end of the connection is the end of the body.
    Http10,
    /// Closed without having said so.
    Silent,
}

impl Answer {
    /// 200 with this JSON.
    pub fn json(body: Value) -> Answer {
        Answer::status(200, body.to_string())
    }

    /// Any status with any body, as `application/json`.
    pub fn status(status: u16, body: impl Into<String>) -> Answer {
        Answer::new(Content::Fixed { status, body: body.into(), content_type: "application/json" })
    }

    /// A page such as a proxy in between sends.
    pub fn html(status: u16) -> Answer {
        let body = format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>\n");
        Answer::new(Content::Fixed { status, body, content_type: "text/html" })
    }

    /// A status without a body.
    pub fn empty(status: u16) -> Answer {
        Answer::status(status, "")
    }

    /// What the server would have answered anyway; a start for [`Answer::delayed`] and the like.
    pub fn default_behaviour() -> Answer {
        Answer::new(Content::Default)
    }

    /// The server does what it does by default (a log request's lines are accepted), but the connection closes
    /// before the client hears of it.
    pub fn lost() -> Answer {
        Answer::new(Content::Lost)
    }

    /// The whole request is read, then the connection closes without any answer.
    pub fn drop_connection() -> Answer {
        Answer::new(Content::DropConnection)
    }

    /// The connection closes after the request's head, before its body is read.
    pub fn drop_mid_request() -> Answer {
        Answer::new(Content::DropMidRequest)
    }

    /// This status as soon as the request's head is there; then the connection closes, and what there is of the body is
    /// not read, which resets it. So do servers with a limit to a body's size.
    pub fn from_head(status: u16) -> Answer {
        Answer { ending: Ending::Http10, ..Answer::new(Content::FromHead { status }) }
    }

    /// No answer, until the client goes or the server stops.
    pub fn hang() -> Answer {
        Answer::new(Content::Hang)
    }

    /// 200 and then one byte in each interval of `byte_every`: first the body's, then spaces without end.
    pub fn trickle(body: impl Into<String>, byte_every: Duration) -> Answer {
        Answer::new(Content::Trickle { body: body.into(), byte_every })
    }

    /// 200 with a `Content-Length` of `declared`, which must be more than the body has: the connection closes
    /// behind the body, in the middle of what was promised.
    pub fn truncated(body: impl Into<String>, declared: usize) -> Answer {
        Answer::new(Content::Truncated { body: body.into(), declared })
    }

    /// 200 with a JSON object of this many bytes, nearly all of them spaces, without a `Content-Length`. It is
    /// never held in memory. With [`Answer::gzip`] it is a decompression bomb.
    pub fn endless(total_bytes: u64) -> Answer {
        Answer::new(Content::Endless { total: total_bytes })
    }

    /// With this header, in place of one of that name that would be sent otherwise.
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sent (or the connection dropped) only after this long; the request is recorded before.
    pub fn delayed(mut self, delay: Duration) -> Answer {
        self.delay = delay;
        self
    }

    /// As HTTP/1.0, without a length: the connection's end is the body's.
    pub fn http10(mut self) -> Answer {
        self.ending = Ending::Http10;
        self
    }

    /// As HTTP/1.1 without `Connection: close`, but the socket is closed right behind the answer.
    pub fn close_silently(mut self) -> Answer {
        self.ending = Ending::Silent;
        self
    }

    /// With a body of a byte a character (up to U+00FF), which needs not be UTF-8.
    pub fn latin1(mut self) -> Answer {
        self.latin1 = true;
        self
    }

    /// With a body compressed by gzip.
    pub fn gzip(mut self) -> Answer {
        self.gzip = true;
        self
    }

    fn new(content: Content) -> Answer {
        Answer {
            content,
            headers: Vec::new(),
            delay: Duration::ZERO,
            ending: Ending::AsConfigured,
            gzip: false,
            latin1: false,
        }
    }
}

/// All of `bytes`, compressed.
pub(super) fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory takes every byte");
    encoder.finish().expect("memory takes every byte")
}
