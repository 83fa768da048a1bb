//! The way through an HTTP proxy: CONNECT, and what the proxy says to it.
//!
//! ureq has such a connector, too. Ours keeps to the deadline however slowly a proxy answers, says who asks, and names
//! the proxy and its words.

use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::http::Uri;
use ureq::unversioned::transport::{ConnectionDetails, Connector, Either, Transport, TransportAdapter};

use super::deadline::Deadline;
use super::resolver;
use super::transport_error::{BoxedError, ProxyError, TransportError};
use crate::settings::Proxy;

/// A proxy's answer to CONNECT has no more bytes than this.
const MAX_HEAD: usize = 64 << 10;

/// The most characters of a proxy's reason that are shown.
const SHOWN_REASON: usize = 60;

/// What a proxy said in place of a connection.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Refusal {
    #[error("it answered HTTP {status}{}", shown(reason))]
    Status { status: u16, reason: String },
    #[error("its answer is no HTTP")]
    NoHttp,
    #[error("it closed the connection without an answer")]
    Closed,
}

/// Asks the proxy that is set for a connection to the server.
#[derive(Debug)]
pub(super) struct ProxyConnector {
    proxy: Option<Proxy>,
    user_agent: String,
}

impl ProxyConnector {
    pub(super) fn new(proxy: Option<Proxy>, user_agent: &str) -> Self {
        Self { proxy, user_agent: user_agent.to_owned() }
    }

    /// A connection to the proxy, and the request for one to the server.
    fn tunnel(&self, proxy: &Proxy, details: &ConnectionDetails<'_>) -> Result<Box<dyn Transport>, BoxedError> {
        let deadline = Deadline::of(details);
        let way: Uri = format!("http://{}/", proxy.address).parse()?;
        let transport = (details.run_connector)(&resolver::to(&way, details))?;
        let mut adapter = TransportAdapter::new(transport, details.current_time.clone());
        adapter.set_timeout(deadline.left()?);
        adapter.write_all(self.request(proxy, details.uri).as_bytes())?;
        adapter.flush()?;
        let mut transport = adapter.into_inner();
        loop {
            let received = transport.maybe_await_input(deadline.left()?)?;
            let input = transport.buffers().input();
            match answer(input)? {
                Some(length) => {
                    transport.buffers().input_consume(length);
                    return Ok(transport);
                }
                None if !received => return Err(Refusal::Closed.into()),
                None => {}
            }
        }
    }

    fn request(&self, proxy: &Proxy, server: &Uri) -> String {
        let (host, port) = (server.host().unwrap_or_default(), server.port_u16().unwrap_or(443));
        let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        if !self.user_agent.is_empty() {
            request.push_str(&format!("User-Agent: {}\r\n", self.user_agent));
        }
        if let Some((user, password)) = &proxy.credentials {
            let credentials = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
            request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
        }
        request.push_str("Proxy-Connection: Keep-Alive\r\n\r\n");
        request
    }
}

impl<In: Transport> Connector<In> for ProxyConnector {
    type Out = Either<In, Box<dyn Transport>>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        match &self.proxy {
            // The way to the proxy itself is plain, and goes through no proxy.
            Some(proxy) if details.needs_tls() => {
                let tunnel = self.tunnel(proxy, details).map_err(|error| refused(proxy, error))?;
                Ok(Some(Either::B(tunnel)))
            }
            _ => Ok(None),
        }
    }
}

fn refused(proxy: &Proxy, error: BoxedError) -> ureq::Error {
    let source = match error.downcast::<ureq::Error>() {
        Ok(error) => TransportError::from(*error).into(),
        Err(error) => match error.downcast::<std::io::Error>() {
            Ok(error) => TransportError::from(ureq::Error::from(*error)).into(),
            Err(error) => error,
        },
    };
    ureq::Error::Other(ProxyError::new(proxy, source).into())
}

/// The length of a proxy's answer, if it has come and is a success.
fn answer(input: &[u8]) -> Result<Option<usize>, Refusal> {
    let begin = input.get(..5.min(input.len())).unwrap_or_default();
    if !b"HTTP/".starts_with(begin) || input.len() > MAX_HEAD {
        return Err(Refusal::NoHttp);
    }
    let end = ["\r\n\r\n", "\n\n"]
        .into_iter()
        .filter_map(|end| Some(memchr::memmem::find(input, end.as_bytes())? + end.len()));
    let Some(length) = end.min() else { return Ok(None) };
    let line = input.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.trim_end().splitn(3, ' ').skip(1);
    match words.next().and_then(|status| status.parse().ok()) {
        Some(200..=299) => Ok(Some(length)),
        Some(status @ 100..=999) => {
            Err(Refusal::Status { status, reason: words.next().unwrap_or_default().to_owned() })
        }
        _ => Err(Refusal::NoHttp),
    }
}

/// The proxy's words, harmless.
fn shown(reason: &str) -> String {
    let words: String = reason.chars().take(SHOWN_REASON).map(|c| if c.is_control() { '?' } else { c }).collect();
    if words.trim().is_empty() { String::new() } else { format!(" ({})", words.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_whole_or_not_at_all() {
        assert_eq!(answer(b""), Ok(None));
        assert_eq!(answer(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n"), Ok(None));
        assert_eq!(answer(b"HTTP/1.1 200\r\n\r\nbehind"), Ok(Some(16)));
        assert_eq!(answer(b"HTTP/1.0 204 fine\nVia: x\n\n"), Ok(Some(26)));
        let refusal = |input: &[u8]| answer(input).unwrap_err().to_string();
        let message = refusal(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        assert_eq!(message, "it answered HTTP 407 (Proxy Authentication Required)");
        assert_eq!(refusal(b"HTTP/1.1 502\r\n\r\n"), "it answered HTTP 502");
        assert_eq!(refusal(b"HTTP/1.1 503 a\x1b[31mb\r\n\r\n"), "it answered HTTP 503 (a?[31mb)");
        for other in [&b"SSH-2.0"[..], b"HTTP/1.1 abc x\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 7 x\r\n\r\n"] {
            assert_eq!(answer(other), Err(Refusal::NoHttp));
        }
        assert_eq!(answer(&[b"HTTP/1.1 200 ", vec![b'x'; MAX_HEAD].as_slice()].concat()), Err(Refusal::NoHttp));
    }
}
