//! One request of the API and its answer. It is built here, wherever it is sent from; its answer is judged before
//! anything is noted of it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::api::{self, AnswerError, Body, KeyPlace, Payload};
use super::endpoint::Endpoint;
use super::headers::{Headers, HeadersError};
use super::host::Host;
use super::stats::{Measured, Stats};
use super::tls::traffic;
use super::transport::{Answer, Encoding, Method, Outgoing, Transport};
use super::transport_error::TransportError;
use super::url::Url;
use crate::chain::chain;
use crate::files;
use crate::logging::{DUMP, DUMPED};
use crate::members;
use crate::secret::{MASK, Secret, redact};
use crate::settings::{SecretSource, SettingError, Settings};
use crate::shutdown::Shutdown;

/// The longest enroll secret, in bytes of its file.
const LONGEST_SECRET: u64 = 8 << 10;

/// The longest that it can be as it is written: an escape of JSON has six characters for one.
const LONGEST_WRITTEN: usize = 6 * LONGEST_SECRET as usize;

/// The most bytes of a body that are looked at for a dump: characters have up to four, and what is cut from the end is not
/// shown.
const MOST_COPIED: usize = 4 * DUMPED + LONGEST_WRITTEN;

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A flag that the request needs is unusable.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The enroll secret can't be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The file of `tls_headers_file` can't be used.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// No answer was got.
    #[error("{endpoint} ({url})")]
    Transport {
        /// What was asked for.
        endpoint: Endpoint,
        /// Where, without any secret.
        url: String,
        /// How the transport failed.
        source: TransportError,
    },
    /// The answer says no, or is of no use.
    #[error("{endpoint} ({url})")]
    Answer {
        /// What was asked for.
        endpoint: Endpoint,
        /// Where, without any secret.
        url: String,
        /// What is wrong with the answer.
        source: AnswerError,
    },
}

/// Why there is no enroll secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its file can't be read.
    #[error("--enroll_secret_path={path} can't be read", path = .path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Its environment variable isn't there.
    #[error("--enroll_secret_env={0}: there is no such environment variable")]
    Variable(String),
}

/// What about a request may be the reason that it had no success. Mostly the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nothing: the server was not reached, or doesn't want this host, or not now.
    Nothing,
    /// Its size: it is too large, or took too long by the server's clock or ours. A smaller one may not.
    Size,
    /// Its content: a line in it may be what the server refuses.
    Content,
}

impl RequestError {
    /// Whether the server rejected the node key.
    #[must_use]
    pub fn is_node_invalid(&self) -> bool {
        matches!(self, Self::Answer { source: AnswerError::NodeInvalid { .. }, .. })
    }

    /// Whether all is well but for the configuration itself.
    #[must_use]
    pub fn is_unusable_configuration(&self) -> bool {
        matches!(self, Self::Answer { source: AnswerError::NotAConfiguration(_), .. })
    }

    /// Whether another attempt within seconds can help: not when a flag, a file or the configuration is at fault.
    #[must_use]
    pub fn is_worth_another_attempt(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Answer { .. }) && !self.is_unusable_configuration()
    }

    /// Whether the server is not well, or can't be reached: more requests would make it worse.
    #[must_use]
    pub fn says_unwell(&self) -> bool {
        match self {
            Self::Transport { source, .. } => source.is_of_the_connection(),
            Self::Answer { .. } => {
                self.retry_after().is_some()
                    || self.status().is_some_and(|status| status >= 500 || matches!(status, 408 | 429))
            }
            _ => false,
        }
    }

    /// What about the request may be why it had no success.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Setting(_) | Self::Secret(_) | Self::Headers(_) => Blame::Nothing,
            Self::Transport { source, .. } => match source {
                TransportError::Timeout(step) if !step.is_connecting() => Blame::Size,
                TransportError::Broken(_)
                | TransportError::NotGzip
                | TransportError::TooLarge(_)
                | TransportError::Redirect(_) => Blame::Content,
                _ => Blame::Nothing,
            },
            Self::Answer { source: AnswerError::NodeInvalid { .. }, .. } => Blame::Nothing,
            // 413 and 408 are about the request's size; 407 and 429 about who asks, and when.
            Self::Answer { source, .. } => match source.status() {
                Some(408 | 413) => Blame::Size,
                Some(407 | 429) => Blame::Nothing,
                _ => Blame::Content,
            },
        }
    }

    /// Whether a compressed body may be the reason: servers that don't take one answer 400 or 415, or hang up.
    #[must_use]
    pub fn may_be_the_compression(&self) -> bool {
        matches!(self.status(), Some(400 | 415))
            || matches!(self, Self::Transport { source: TransportError::Broken(_), .. })
    }

    /// How long the server asks to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { source, .. } => source.retry_after(),
            _ => None,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { source, .. } => source.status(),
            _ => None,
        }
    }
}

/// A request, ready to be sent.
pub struct Request<'a> {
    endpoint: Endpoint,
    method: Method,
    url: Url,
    body: Body<'a>,
    node_key: Option<Secret>,
    headers: Headers,
}

/// Who asks to be enrolled.
pub struct Applicant {
    /// The host identifier that `host_identifier` asks for.
    pub identifier: String,
    /// osquery's number for the platform.
    pub platform_type: String,
    /// Rows about the host, by their tables.
    pub details: Map<String, Value>,
}

impl<'a> Request<'a> {
    /// A request as the node with this key.
    pub fn new(
        settings: &Settings,
        endpoint: Endpoint,
        payload: Payload<'a>,
        key: &Secret,
    ) -> Result<Self, RequestError> {
        let place = key_place(settings);
        let method = match (endpoint, place) {
            (Endpoint::Config, KeyPlace::Url) => Method::Get,
            _ => Method::Post,
        };
        let key_in_url = (place == KeyPlace::Url).then_some(key);
        let url = url(settings, endpoint, key_in_url, url_secret(settings)?.as_ref())?;
        let made = if let Payload::Made(make) = payload { make(settings) } else { None };
        let body = match made {
            Some(object) => api::object_body(&object, key, place),
            None => api::body(payload, key, place),
        };
        let headers = Headers::of(settings)?;
        Ok(Self { endpoint, method, url, body, node_key: Some(key.clone()), headers })
    }

    /// A request to enroll this host, with the enroll secret.
    pub fn enrollment(settings: &Settings, applicant: Applicant) -> Result<Self, RequestError> {
        let secret = enroll_secret(&settings.enroll.secret)?;
        let in_url = settings.api.secret_always.then_some(&secret);
        let Applicant { identifier, platform_type, details } = applicant;
        Ok(Self {
            endpoint: Endpoint::Enroll,
            method: Method::Post,
            url: url(settings, Endpoint::Enroll, None, in_url)?,
            body: api::enroll_body(&settings.api.secret_name, &secret, &identifier, &platform_type, details),
            node_key: None,
            headers: Headers::of(settings)?,
        })
    }

    /// A GET of an endpoint with nothing in it, for which no server does anything: only to see whether something is
    /// there.
    pub fn presence(settings: &Settings, endpoint: Endpoint) -> Result<Self, RequestError> {
        let url = url(settings, endpoint, None, None)?;
        let headers = Headers::of(settings)?;
        Ok(Self { endpoint, method: Method::Get, url, body: Body::none(), node_key: None, headers })
    }

    /// As the transport sends it.
    #[must_use]
    pub fn outgoing<'o>(&'o self, encoding: Encoding, user_agent: &'o str) -> Outgoing<'o> {
        let Self { endpoint, method, url, body, node_key, headers } = self;
        let (node_key, largest_answer) = (node_key.as_ref(), endpoint.largest_answer());
        Outgoing { method: *method, url, body, encoding, user_agent, node_key, headers, largest_answer }
    }
}

/// Sends requests, and notes what becomes of them.
pub struct Requests {
    /// The connections, and how they are made.
    pub transport: Transport,
    /// What became of them.
    pub stats: Stats,
    host: Arc<Host>,
}

impl Requests {
    /// The end asked for by `shutdown` breaks requests off. `host` says whose `User-Agent` they have.
    #[must_use]
    pub fn new(host: Arc<Host>, shutdown: Shutdown) -> Self {
        Self { transport: Transport::new(shutdown), stats: Stats::default(), host }
    }

    /// Sends a request, has its answer judged, and notes the outcome.
    pub fn make<T>(
        &self,
        settings: &Settings,
        request: &Request<'_>,
        encoding: Encoding,
        judge: impl FnOnce(Answer) -> Result<T, AnswerError>,
    ) -> Result<T, RequestError> {
        let endpoint = request.endpoint;
        let mut measured = Measured::default();
        if let Some(dump) = Dump::of(settings, || request.body.to_string().into_bytes()) {
            dump.say("request", endpoint);
        }
        let outcome = match self.send(settings, request, encoding, &mut measured) {
            Ok(answer) => {
                let dump = Dump::of(settings, || &answer.body);
                let judged = judge(answer);
                // Judged first: from then on a new node key is known to be masked.
                if let Some(dump) = dump {
                    dump.say("answer", endpoint);
                }
                judged.map_err(|source| RequestError::Answer { endpoint, url: request.url.to_string(), source })
            }
            Err(source) => Err(RequestError::Transport { endpoint, url: request.url.to_string(), source }),
        };
        self.stats.note(endpoint, &measured, outcome.as_ref().err().map(|error| chain(error).to_string()));
        outcome
    }

    /// A request could not even be built: that is a failure, too.
    pub fn note_unsent(&self, endpoint: Endpoint, error: &(dyn std::error::Error + 'static)) {
        self.stats.note(endpoint, &Measured::default(), Some(chain(error).to_string()));
    }

    fn send(
        &self,
        settings: &Settings,
        request: &Request<'_>,
        encoding: Encoding,
        measured: &mut Measured,
    ) -> Result<Answer, TransportError> {
        let user_agent = self.host.user_agent();
        let (began, before) = (Instant::now(), traffic());
        let outcome = self.transport.send(settings, &request.outgoing(encoding, &user_agent));
        measured.latency = began.elapsed();
        measured.traffic = traffic().since(before);
        measured.status = outcome.as_ref().ok().map(|answer| answer.status);
        outcome
    }
}

fn url(
    settings: &Settings,
    endpoint: Endpoint,
    node_key: Option<&Secret>,
    secret: Option<&Secret>,
) -> Result<Url, SettingError> {
    let server = settings.server.as_ref().map_err(Clone::clone)?;
    let path = endpoint.path(&settings.endpoints)?;
    let secret = secret.map(|secret| (settings.api.secret_name.as_str(), secret));
    Ok(match node_key {
        None => Url::new(server, path, secret),
        Some(key) => Url::for_node(server, path, key, secret),
    })
}

/// An endpoint's URL as it may be shown: without the node key and the secret, whose places are named.
pub fn shown_url(settings: &Settings, endpoint: Endpoint) -> Result<String, SettingError> {
    let none = Secret::default();
    let key = (endpoint != Endpoint::Enroll && key_place(settings) == KeyPlace::Url).then_some(&none);
    let secret = settings.api.secret_always.then_some(&none);
    Ok(url(settings, endpoint, key, secret)?.to_string())
}

/// Where `tls_node_api` puts the node key.
#[must_use]
pub fn key_place(settings: &Settings) -> KeyPlace {
    if settings.api.node_api { KeyPlace::Url } else { KeyPlace::Body }
}

/// The secret for a URL, where `tls_secret_always` wants it there.
fn url_secret(settings: &Settings) -> Result<Option<Secret>, SecretError> {
    settings.api.secret_always.then(|| enroll_secret(&settings.enroll.secret)).transpose()
}

/// The enroll secret, trimmed; the empty one where none is configured.
pub fn enroll_secret(source: &SecretSource) -> Result<Secret, SecretError> {
    let text = match source {
        SecretSource::None => String::new(),
        SecretSource::File(path) => {
            let text = files::read(path, LONGEST_SECRET).and_then(|bytes| {
                String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8"))
            });
            text.map_err(|source| SecretError::File { path: path.clone(), source })?
        }
        SecretSource::Environment(name) => std::env::var(name).map_err(|_| SecretError::Variable(name.clone()))?,
    };
    Ok(Secret::new(text.trim()))
}

/// `tls_dump` with `verbose`: the beginning of the body, before compression and after decompression, goes to stderr,
/// masked like everything there. Keys and secrets are masked by their members' names too, however the server escapes
/// them; in what is no JSON, everything from such a name on.
struct Dump {
    shown: String,
    is_cut: bool,
}

impl Dump {
    /// Of this body, where the settings say so.
    fn of<B: AsRef<[u8]>>(settings: &Settings, body: impl FnOnce() -> B) -> Option<Self> {
        let names = ["node_key", "id", settings.api.secret_name.as_str()];
        (settings.api.dump && settings.verbose).then(|| Self::showing(body().as_ref(), &names))
    }

    /// Only what may be shown of a body is copied: it can be large.
    fn showing(body: &[u8], names: &[&str]) -> Self {
        let beginning = body.get(..MOST_COPIED);
        let text = String::from_utf8_lossy(beginning.unwrap_or(body));
        let shown = match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => masked_members(&text, names),
            Err(_) => masked_from(&text, names),
        };
        Self { shown, is_cut: beginning.is_some() }
    }

    fn say(self, what: &str, endpoint: Endpoint) {
        log::debug!(target: DUMP, "tls_dump: {endpoint} {what}: {}", self.text());
    }

    /// Without the end of what was cut: half a secret is not known for one.
    fn text(self) -> String {
        let mut text = redact(&self.shown).into_owned();
        if self.is_cut {
            let most = text.len().saturating_sub(LONGEST_WRITTEN);
            let end = (0..=most).rev().find(|&end| text.is_char_boundary(end));
            text.truncate(end.unwrap_or_default());
        }
        text
    }
}

/// What is no JSON, up to the first of these names.
fn masked_from(text: &str, names: &[&str]) -> String {
    let first = names.iter().filter_map(|name| text.find(&format!("\"{name}\"")));
    match first.min().and_then(|at| text.get(..at)) {
        Some(beginning) => format!("{beginning}{MASK}"),
        None => text.to_owned(),
    }
}

/// Reads JSON, or its beginning, in one go.
fn masked_members(json: &str, names: &[&str]) -> String {
    let (mut shown, mut rest, mut depth) = (String::new(), json, 0usize);
    // Of the last member's name: whether its value is to be masked.
    let mut is_key = false;
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' { string_length(rest) } else { first.len_utf8() };
        let (piece, behind) = rest.split_at_checked(length).unwrap_or((rest, ""));
        let is_name = first == '"' && behind.trim_start().starts_with(':');
        match first {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match first {
            '"' if is_name => {
                is_key = names.iter().any(|name| (*name != "id" || depth == 1) && members::is(piece, name));
                shown.push_str(piece);
            }
            '"' if is_key => shown.push_str(&Value::from(MASK).to_string()),
            _ => shown.push_str(piece),
        }
        is_key &= is_name || matches!(first, ':' | ' ' | '\t' | '\r' | '\n');
        rest = behind;
    }
    shown
}

/// The length of the string, quotes included, that this text begins with.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_shows_no_key_wherever_it_stands() {
        let shown = |body: &str| Dump::showing(body.as_bytes(), &["node_key", "id", "enroll_secret"]).text();
        assert_eq!(shown(r#"{"id":"k","a":[{"id":"row"}]}"#), r#"{"id":"<hidden>","a":[{"id":"row"}]}"#);
        assert_eq!(shown(r#"{"data":[{"node_key":"k"}]}"#), r#"{"data":[{"node_key":"<hidden>"}]}"#);
        assert_eq!(shown(r#"{"node_key":7,"node_invalid":true}"#), r#"{"node_key":7,"node_invalid":true}"#);
        assert_eq!(shown(r#"{"a":1,"enroll_secret":"s","node_key":"k""#), r#"{"a":1,<hidden>"#);
        assert_eq!(shown("<p>gone</p>"), "<p>gone</p>");
        assert_eq!(
            shown(r#"{"\u006eode_key" : "k\"","a":"node_key"}"#),
            r#"{"\u006eode_key" : "<hidden>","a":"node_key"}"#
        );
        let long = shown(&format!(r#"{{"a":[{}"x"]}}"#, "1,".repeat(1 << 20)));
        assert!((4 * DUMPED..MOST_COPIED).contains(&long.len()), "{}", long.len());
        let long = shown(&format!(r#"{{"a":1,"node_key":"{}"}}"#, "k".repeat(1 << 20)));
        assert!(r#"{"a":1,"node_key":"<hidden>"#.starts_with(&long), "{long}");
    }

    #[test]
    fn a_dump_ends_with_no_half_of_a_secret() {
        let secret = Secret::new("half-of-this-would-be-shown");
        let body = secret.expose().repeat(MOST_COPIED / secret.expose().len() + 7);
        for body in [body.clone(), format!("{{\"a\":\"{body}\"}}")] {
            let shown = Dump::showing(body.as_bytes(), &[]).text();
            assert!(!shown.is_empty() && shown.replace(MASK, "").len() < 20, "{shown}");
        }
    }
}
