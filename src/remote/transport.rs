//! HTTP requests over kept-alive TLS connections, by ureq: what goes out, what comes back, and what can happen
//! between.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use flate2::bufread::MultiGzDecoder;
use ureq::http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, LOCATION,
    RETRY_AFTER, USER_AGENT,
};
use ureq::http::{HeaderMap, HeaderValue, Request, Response};
use ureq::unversioned::transport::{ConnectionDetails, Connector};
use ureq::{Agent, SendBody};

use super::api::Body;
use super::gzip::gzip;
use super::headers::Headers;
use super::proxy::ProxyConnector;
use super::resolver::{NoLookup, ResolvingConnector};
use super::tls::{Expiries, TlsConnector, answered_early};
use super::transport_error::{ProxyError, TransportError};
use super::url::{Url, same_host_redirect};
use crate::lock::{Mutex, MutexGuard};
use crate::secret::Secret;
use crate::settings::{Proxy, Server, Settings, TlsSettings};
use crate::shown::beginning;
use crate::shutdown::Shutdown;

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// Characters of a redirect's target that are shown.
const SHOWN_OF_TARGET: usize = 200;

/// The longest that one step of a request may take (connecting with the handshake, sending, the first byte of the
/// answer), as in the built-in client.
const STEP_LIMIT: Duration = Duration::from_secs(16);

/// The longest wait that a `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Connections kept open: each of our threads has at most one request at a time.
const KEPT_CONNECTIONS: usize = 4;

/// The methods of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The config request of `tls_node_api`.
    Get,
    /// All other requests.
    Post,
}

/// Whether a request's body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The body is sent as it is.
    Plain,
    /// The body is compressed with gzip.
    Gzip,
}

/// A request to be made.
pub struct Outgoing<'a> {
    /// The method; a GET has no body.
    pub method: Method,
    /// The URL that it goes to.
    pub url: &'a Url,
    /// The body, JSON. What stands before its lines is never compressed: a secret is among it.
    pub body: &'a Body<'a>,
    /// How the body is sent.
    pub encoding: Encoding,
    /// The value of the header `User-Agent`.
    pub user_agent: &'a str,
    /// For the `Authorization` header.
    pub node_key: Option<&'a Secret>,
    /// An operator's, which take the place of ours.
    pub headers: &'a Headers,
    /// The largest answer that is read, in bytes after decompression.
    pub largest_answer: u64,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `Retry-After`, in whichever form, capped at an hour.
    pub retry_after: Option<Duration>,
    /// The server's clock (`Date`).
    pub date: Option<SystemTime>,
    /// The body, decompressed.
    pub body: Vec<u8>,
}

/// Makes requests; used by several threads, which share the kept connections.
pub struct Transport {
    /// When the certificates in use expire.
    pub expiries: Arc<Expiries>,
    agent: Mutex<Option<(ConnectionSettings, Agent)>>,
    shutdown: Shutdown,
}

/// The settings that a set of connections was made with.
#[derive(PartialEq)]
pub(super) struct ConnectionSettings {
    tls: TlsSettings,
    pub(super) proxy: Option<Proxy>,
    user_agent: String,
    request_timeout: Duration,
}

impl ConnectionSettings {
    pub(super) fn new(settings: &Settings, user_agent: &str) -> Result<Self, TransportError> {
        Ok(Self {
            tls: settings.tls.clone(),
            proxy: settings.proxy.clone()?,
            user_agent: user_agent.to_owned(),
            request_timeout: settings.request_timeout,
        })
    }
}

thread_local! {
    /// Connections that this thread has opened: tells whether a request went out on a kept one.
    static OPENED: Cell<u64> = const { Cell::new(0) };
}

impl Transport {
    /// No connection is made before the first request. The end asked for by `shutdown` breaks requests off.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        Self { expiries: Arc::default(), agent: Mutex::new(None), shutdown }
    }

    /// Breaks off the requests in flight, and makes no more.
    pub fn abort(&self) {
        if let Some((_, agent)) = self.lock().take() {
            agent.shutdown();
        }
    }

    /// Sends a request to the configured server and reads its answer, whatever its status; redirects are followed
    /// within the same host. All of that has `request_timeout`, together.
    pub fn send(&self, settings: &Settings, request: &Outgoing<'_>) -> Result<Answer, TransportError> {
        let until = Instant::now() + settings.request_timeout;
        let server = settings.server.as_ref().map_err(Clone::clone)?;
        let agent = self.agent(settings, request.user_agent)?;
        let packed = match request.encoding {
            Encoding::Gzip => Some(gzip(request.body).map_err(TransportError::Connect)?),
            Encoding::Plain => None,
        };
        let mut exchange = Exchange {
            agent: &agent,
            settings,
            request,
            url: request.url.expose().to_owned(),
            packed: packed.as_deref(),
            until,
        };
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&exchange)?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => exchange.url = redirect(server, &response)?,
                _ => return read(response, settings.tls.accept_gzip, request.largest_answer),
            }
        }
        Err(TransportError::Redirect(format!("more than {MAX_REDIRECTS} times")))
    }

    /// Sends once; a kept connection that turns out to be closed costs one more sending, on a new one.
    fn once(&self, exchange: &Exchange<'_>) -> Result<Response<ureq::Body>, TransportError> {
        let opened = OPENED.get();
        let error = match exchange.run(KeptConnections::Use) {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        if self.shutdown.requested() {
            return Err(TransportError::Ending);
        }
        if OPENED.get() != opened || !is_broken(&error) {
            return Err(error.into());
        }
        log::debug!("a kept connection was closed by the server ({error}): sending once more on a new one");
        exchange.run(KeptConnections::Pass).map_err(TransportError::from)
    }

    fn agent(&self, settings: &Settings, user_agent: &str) -> Result<Agent, TransportError> {
        let client = settings.tls.client.clone()?;
        let current = ConnectionSettings::new(settings, user_agent)?;
        let mut agent = self.lock();
        if self.shutdown.requested() && agent.is_none() {
            return Err(TransportError::Ending);
        }
        match agent.as_ref() {
            Some((made_with, agent)) if *made_with == current => Ok(agent.clone()),
            _ => {
                let connector =
                    ().chain(ProxyConnector::new(current.proxy.clone(), user_agent))
                        .chain(ResolvingConnector::new())
                        .chain(TlsConnector::with(&settings.tls, client, Arc::clone(&self.expiries), None)?)
                        .chain(CountOpened);
                let new = Agent::with_parts(config(&current)?, connector, NoLookup);
                *agent = Some((current, new.clone()));
                Ok(new)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(ConnectionSettings, Agent)>> {
        self.agent.lock()
    }
}

pub(super) fn config(settings: &ConnectionSettings) -> Result<ureq::config::Config, TransportError> {
    let proxy = match &settings.proxy {
        None => None,
        Some(proxy) => {
            // Connections are kept by proxy, and it resolves the server's name; the rest is our connector's.
            let builder = ureq::Proxy::builder(ureq::ProxyProtocol::Http)
                .host(&proxy.address.host)
                .port(proxy.address.port.unwrap_or_default());
            Some(builder.build().map_err(|error| ProxyError::new(proxy, error))?)
        }
    };
    let kept = if settings.tls.session_reuse { KEPT_CONNECTIONS } else { 0 };
    Ok(Agent::config_builder()
        // Environment variables don't count: the flag alone decides.
        .proxy(proxy)
        .https_only(true)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .accept_encoding("")
        .max_idle_connections(kept)
        .max_idle_connections_per_host(kept)
        .max_idle_age(settings.tls.session_timeout)
        .timeout_global(Some(settings.request_timeout))
        .timeout_connect(Some(STEP_LIMIT))
        .timeout_send_request(Some(STEP_LIMIT))
        .timeout_recv_response(Some(STEP_LIMIT))
        .build())
}

/// Whether a request may go out on a kept connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeptConnections {
    Use,
    Pass,
}

/// A request on its way to one URL.
struct Exchange<'a> {
    agent: &'a Agent,
    settings: &'a Settings,
    request: &'a Outgoing<'a>,
    url: String,
    /// The body, compressed, where it is sent so.
    packed: Option<&'a [u8]>,
    /// When all must be over.
    until: Instant,
}

impl Exchange<'_> {
    fn run(&self, kept: KeptConnections) -> Result<Response<ureq::Body>, ureq::Error> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ureq::Error::Timeout(ureq::Timeout::Global));
        }
        let mut builder = Request::builder().uri(&self.url);
        if let Some(headers) = builder.headers_mut() {
            add_headers(headers, self.request, self.settings.tls.accept_gzip);
        }
        let idle_limit = match kept {
            KeptConnections::Use => self.settings.tls.session_timeout,
            KeptConnections::Pass => Duration::ZERO,
        };
        answered_early();
        let response = match self.request.method {
            Method::Get => {
                let request = self.agent.configure_request(builder.method("GET").body(())?);
                self.agent.run(request.max_idle_age(idle_limit).timeout_global(Some(left)).build())
            }
            Method::Post => {
                let [head, lines, tail] = self.request.body.pieces().map(str::as_bytes);
                let mut pieces = head.chain(lines).chain(tail);
                let mut packed = self.packed;
                let (length, reader): (usize, &mut dyn Read) = match packed.as_mut() {
                    Some(packed) => (packed.len(), packed),
                    None => (self.request.body.length(), &mut pieces),
                };
                let builder = builder.header(CONTENT_LENGTH, length).method("POST");
                let request = self.agent.configure_request(builder.body(SendBody::from_reader(reader))?);
                self.agent.run(request.max_idle_age(idle_limit).timeout_global(Some(left)).build())
            }
        }?;
        // A refusal is one; but what wasn't sent can't have been accepted.
        if answered_early() && response.status().is_success() {
            let reason = "the server hung up while the request was sent";
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, reason).into());
        }
        Ok(response)
    }
}

fn add_headers(headers: &mut HeaderMap, request: &Outgoing<'_>, accept_gzip: bool) {
    let json = HeaderValue::from_static("application/json");
    headers.insert(CONTENT_TYPE, json.clone());
    headers.insert(ACCEPT, json);
    if accept_gzip {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(agent) = HeaderValue::from_str(request.user_agent) {
        headers.insert(USER_AGENT, agent);
    }
    // A key of other characters than printable ASCII has no place in a header; it still is in the body or the URL.
    let key = request.node_key.map(Secret::expose).filter(|key| !key.is_empty() && key.is_ascii());
    if let Some(Ok(mut key)) = key.map(|key| HeaderValue::from_str(&format!("NodeKey {key}"))) {
        key.set_sensitive(true);
        headers.insert(AUTHORIZATION, key);
    }
    if request.encoding == Encoding::Gzip && request.method == Method::Post {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    for (name, value) in request.headers.each() {
        headers.insert(name, value.clone());
    }
}

fn redirect(server: &Server, response: &Response<ureq::Body>) -> Result<String, TransportError> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| TransportError::Redirect("to nowhere".to_owned()))?;
    same_host_redirect(server, location).ok_or_else(|| {
        let target = beginning(location, SHOWN_OF_TARGET);
        TransportError::Redirect(format!("to another host, or away from https ({target:?})"))
    })
}

fn read(mut response: Response<ureq::Body>, accept_gzip: bool, largest: u64) -> Result<Answer, TransportError> {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    let date = response.headers().get(DATE).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    let encoding = content_encoding(response.headers(), accept_gzip)?;
    let body = read_body(response.body_mut().as_reader(), encoding, largest)?;
    Ok(Answer { status, retry_after, date, body })
}

/// An answer's body as it comes in, read to its end and decompressed, where that makes no more than `largest` bytes.
///
/// # Errors
/// It is larger, is not compressed as `encoding` says, or can't be read.
pub fn read_body(wire: impl Read, encoding: Encoding, largest: u64) -> Result<Vec<u8>, TransportError> {
    let mut wire = BufReader::new(wire);
    let broken = |error| TransportError::from(ureq::Error::Io(error));
    let mut body = Vec::new();
    // An answer without a body has none that is compressed.
    if !wire.fill_buf().map_err(broken)?.is_empty() {
        let most = largest + 1;
        match encoding {
            Encoding::Plain => wire.take(most).read_to_end(&mut body),
            Encoding::Gzip => MultiGzDecoder::new(wire).take(most).read_to_end(&mut body),
        }
        .map_err(|error| match (encoding, error.kind()) {
            (Encoding::Gzip, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => TransportError::NotGzip,
            _ => broken(error),
        })?;
    }
    if body.len() as u64 > largest {
        return Err(TransportError::TooLarge(largest));
    }
    Ok(body)
}

/// How a body is encoded, where that is as it was asked for.
fn content_encoding(headers: &HeaderMap, accept_gzip: bool) -> Result<Encoding, TransportError> {
    let said = headers.get_all(CONTENT_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let said = said.map(|said| said.trim().to_ascii_lowercase()).filter(|said| !matches!(&**said, "" | "identity"));
    match said.collect::<Vec<_>>().as_slice() {
        [] => Ok(Encoding::Plain),
        [gzip] if accept_gzip && matches!(&**gzip, "gzip" | "x-gzip") => Ok(Encoding::Gzip),
        others => Err(TransportError::Encoded(beginning(&others.join(", "), 40).into_owned())),
    }
}

/// Both forms of `Retry-After`: seconds, or a date. `None` for anything else, at most an hour.
#[must_use]
pub fn retry_after(value: &str) -> Option<Duration> {
    let wait = match value.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Whether the other side is gone, as it is when it closed a connection while it was idle.
fn is_broken(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}

/// Counts the connections that a thread opens.
struct CountOpened;

impl<In: ureq::unversioned::transport::Transport> Connector<In> for CountOpened {
    type Out = In;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<In>, ureq::Error> {
        OPENED.set(OPENED.get() + 1);
        Ok(chained)
    }
}

impl fmt::Debug for CountOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountOpened")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_has_two_forms_and_a_cap() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("99999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = retry_after(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60))).unwrap();
        assert!((55..=60).contains(&soon.as_secs()), "{soon:?}");
        assert_eq!(retry_after("later"), None);
    }
}
