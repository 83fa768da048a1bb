//! Requests as the server saw them, and the endpoints they were meant for.

use std::fmt::Write;
use std::time::Instant;

use serde_json::Value;

/// A transcript shows this much of a body.
const SHOWN: usize = 600;

/// Which part of the remote API a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/enroll`
    Enroll,
    /// `/config`
    Config,
    /// `/log` or `/logger`
    Log,
    /// `/distributed_read` or `/distributed/read`
    DistributedRead,
    /// `/distributed_write` or `/distributed/write`
    DistributedWrite,
    /// Anything else.
    Other,
}

impl Endpoint {
    /// Reads the endpoint from a request's target: the last segment of its path decides. The path ends at a bare
    /// `&` too: that is where `tls_node_api` puts its `&node_key=`.
    pub fn of(target: &str) -> Endpoint {
        let mut segments = path(target).rsplit('/');
        match (segments.next().unwrap_or_default(), segments.next().unwrap_or_default()) {
            ("enroll", _) => Endpoint::Enroll,
            ("config", _) => Endpoint::Config,
            ("log" | "logger", _) => Endpoint::Log,
            ("distributed_read", _) | ("read", "distributed") => Endpoint::DistributedRead,
            ("distributed_write", _) | ("write", "distributed") => Endpoint::DistributedWrite,
            _ => Endpoint::Other,
        }
    }
}

/// A request, and what it was answered.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which endpoint it was for.
    pub endpoint: Endpoint,
    /// `POST`, `GET`, ...
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// `HTTP/1.1`, ...
    pub version: String,
    /// In the order of sending; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its content encoding.
    pub body: Vec<u8>,
    /// How many bytes the body took, with its content encoding.
    pub wire_bytes: usize,
    /// The body as JSON, when it is.
    pub json: Option<Value>,
    /// Which connection it came on, counted from 1.
    pub connection: usize,
    /// The status answered; 0 for none.
    pub answer_status: u16,
    /// The body answered, before compression; for a fault, what it was.
    pub answer_body: String,
    /// When its head had arrived.
    pub at: Instant,
}

impl Recorded {
    /// The value of the first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The node key it was made with: the body's, or the `Authorization` header's, or the first path segment.
    pub fn node_key(&self) -> Option<String> {
        let in_body = self.json.as_ref().and_then(|json| json.get("node_key")).and_then(Value::as_str);
        let in_header = || self.header("authorization").and_then(|value| value.strip_prefix("NodeKey "));
        let in_path = || first_of_several_segments(&self.target).map(percent_decoded);
        in_body.or_else(in_header).map(str::to_owned).or_else(in_path)
    }

    pub(super) fn describe(&self, since: Instant) -> String {
        let mut text = String::new();
        let at = self.at.saturating_duration_since(since).as_secs_f64();
        let _ = writeln!(text, "[{at:.3} s, connection {}] {} {}", self.connection, self.method, self.target);
        for (name, value) in &self.headers {
            let _ = writeln!(text, "  {name}: {value}");
        }
        let _ = writeln!(text, "  > {}", shortened(&String::from_utf8_lossy(&self.body)));
        let _ = writeln!(text, "  < {} {}", self.answer_status, shortened(&self.answer_body));
        text
    }
}

/// The path of a target, without the query.
pub(super) fn path(target: &str) -> &str {
    target.split(['?', '&']).next().unwrap_or_default()
}

/// The text with `%XX` read as bytes.
pub(super) fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn first_of_several_segments(target: &str) -> Option<&str> {
    path(target).trim_start_matches('/').split_once('/').map(|(first, _)| first)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_path_segment_decides_the_endpoint() {
        for (target, endpoint) in [
            ("/enroll", Endpoint::Enroll),
            ("/enroll?enroll_secret=a/config", Endpoint::Enroll),
            ("/node-key-1/config&node_key=node-key-1", Endpoint::Config),
            ("/api/v1/osquery/config", Endpoint::Config),
            ("/logger", Endpoint::Log),
            ("/api/distributed/read", Endpoint::DistributedRead),
            ("/distributed_write?x=y", Endpoint::DistributedWrite),
            ("/read", Endpoint::Other),
            ("/", Endpoint::Other),
        ] {
            assert_eq!(Endpoint::of(target), endpoint, "{target}");
        }
    }

    #[test]
    fn escapes_are_decoded_and_broken_ones_left_alone() {
        assert_eq!(percent_decoded("a%2Fb%2b%zz%4"), "a/b+%zz%4");
    }
}
