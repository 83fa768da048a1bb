//! Answers of the remote API, judged. Pure: bytes in, a judgement out. What requests carry is in `body`.

use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

pub use super::body::{Body, KeyPlace, LOG_OVERHEAD, LogType, Payload, body, enroll_body, object_body, with_member};
use super::configuration::{self, ConfigLimits};
use super::endpoint::Endpoint;
use super::node_key;
use crate::members;
use crate::secret::Secret;
use crate::shown::beginning;
use crate::words::Span;

/// Why an answer is not a success.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnswerError {
    /// `node_invalid` is true: the node key was rejected.
    #[error("the server does not accept the node key{}", reason(.message))]
    NodeInvalid {
        /// The HTTP status.
        status: u16,
        /// The member `error` of the answer.
        message: Option<String>,
    },
    /// The answer has an `error`, or a `status` of `"error"`.
    #[error("the server answered with an error (HTTP {status}): {message}{}", wait_asked_for(*.retry_after))]
    Error {
        /// The HTTP status.
        status: u16,
        /// What the server says of the reason.
        message: String,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Any status but 2xx, without an `error`.
    #[error("the server answered HTTP {status}{}{}", quoted(.beginning), wait_asked_for(*.retry_after))]
    Status {
        /// The HTTP status.
        status: u16,
        /// What the body begins with, which may be a page's title: a proxy or a firewall answers so.
        beginning: String,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// A 2xx whose body isn't a JSON object.
    #[error("the answer is not a JSON object (it begins {beginning:?})")]
    NotAnObject {
        /// The first bytes of the answer.
        beginning: String,
    },
    /// A 2xx whose body is nested absurdly deep.
    #[error("the answer is {depth} levels deep")]
    TooDeep {
        /// The deepest nesting of arrays and objects in it.
        depth: usize,
    },
    /// An enrollment that the server refuses, in whatever way.
    #[error(
        "the server refused the enrollment (HTTP {status}){}{}; is the enroll secret the server's?",
        reason(.message), wait_asked_for(*.retry_after)
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the server says of the reason.
        message: Option<String>,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// An enrollment without a key.
    #[error("the server did not enroll this host: its answer has no node key; is the enroll secret the server's?")]
    NoNodeKey,
    /// An enrollment with a key that can't be one.
    #[error("the answer has a node key that can't be used: {0}")]
    UnusableNodeKey(&'static str),
    /// A 2xx whose body can't be a configuration.
    #[error("the answer is not a configuration: {0}")]
    NotAConfiguration(String),
}

impl AnswerError {
    /// The HTTP status, where it is known.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::NodeInvalid { status, .. }
            | Self::Error { status, .. }
            | Self::Status { status, .. }
            | Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// This error, as the answer to an enrollment has it: there is no node key of which it could speak.
    fn of_enrollment(self) -> Self {
        match self {
            Self::NodeInvalid { status, message } => Self::Refused { status, message, retry_after: None },
            Self::Error { status, message, retry_after } => {
                Self::Refused { status, message: Some(message), retry_after }
            }
            Self::Status { status, beginning, retry_after } => {
                // A node key that comes with a refusal is not known, and could not be masked.
                let beginning = if beginning.contains('{') { String::new() } else { beginning };
                match status {
                    400 | 401 | 403 | 422 => {
                        let message = Some(beginning).filter(|beginning| !beginning.is_empty());
                        Self::Refused { status, message, retry_after }
                    }
                    _ => Self::Status { status, beginning, retry_after },
                }
            }
            other => other,
        }
    }

    /// How long the server asks to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Error { retry_after, .. } | Self::Status { retry_after, .. } | Self::Refused { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

/// Characters of a refusal's body that are shown.
const SHOWN_OF_REFUSAL: usize = 120;

fn quoted(beginning: &str) -> String {
    if beginning.is_empty() { String::new() } else { format!(" (its body begins {beginning:?})") }
}

fn reason(message: &Option<String>) -> String {
    message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
}

/// An operator is to see why nothing is asked for a while.
fn wait_asked_for(retry_after: Option<Duration>) -> String {
    let asked = retry_after.filter(|asked| !asked.is_zero());
    asked.map(|asked| format!("; it asks to be left alone for {}", Span(asked))).unwrap_or_default()
}

/// The members that every answer may have, as they are written: a tree of them would take fifty times their size.
/// `"status": "error"` is how one server (sgt) says it.
#[derive(Default, Deserialize)]
struct Verdict<'a> {
    #[serde(borrow)]
    node_invalid: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

impl Verdict<'_> {
    fn node_invalid(&self) -> bool {
        self.node_invalid.is_some_and(|value| matches!(value.get(), "true" | "1") || members::is(value.get(), "true"))
    }

    fn error(&self) -> Option<String> {
        match (self.error, self.status) {
            (Some(error), _) => Some(message(error)),
            (None, Some(status)) if members::is(status.get(), "error") => {
                Some(self.message.map_or_else(|| "status is error".to_owned(), message))
            }
            (None, _) => None,
        }
    }
}

/// What a server says, cut: a string's text, or the JSON of anything else.
fn message(value: &RawValue) -> String {
    let text = members::string(value.get(), usize::MAX);
    beginning(text.as_deref().unwrap_or(value.get()), LONGEST_MESSAGE).into_owned()
}

/// No server's answer is nested deeper; osqueryd's own reader, which gets some answers, is recursive.
const DEEPEST_ANSWER: usize = 100;

/// An answer that is no UTF-8 is repaired, which can triple it: at most this many bytes of it.
const LARGEST_REPAIRED: usize = 4 << 20;

/// The most characters of a server's own words that are passed on.
const LONGEST_MESSAGE: usize = 300;

/// Judges an answer: its JSON object's text, `{}` for an empty body, or why it is no success.
///
/// Any status but 2xx is a failure, but its body is still read for `node_invalid` and `error`, since several
/// servers answer 401 with `node_invalid`.
///
/// One server's `"status": "error"` counts as an error, but for a distributed read, where it means "no queries".
pub fn judge(
    endpoint: Endpoint,
    status: u16,
    retry_after: Option<Duration>,
    body: impl Into<Vec<u8>>,
) -> Result<String, AnswerError> {
    let success = (200..300).contains(&status);
    let whole = text_of(body.into());
    let text = whole.as_str();
    let depth = depth(text);
    if depth > DEEPEST_ANSWER {
        return Err(if success { AnswerError::TooDeep { depth } } else { refused(status, text, retry_after) });
    }
    let verdict = match text {
        "" => Ok(Verdict::default()),
        _ if !text.starts_with('{') => Err(()),
        _ => serde_json::from_str::<Verdict>(text).map_err(drop),
    };
    let verdict = verdict.map(|verdict| match endpoint {
        Endpoint::DistributedRead => Verdict { status: None, ..verdict },
        _ => verdict,
    });
    match verdict {
        Ok(verdict) if verdict.node_invalid() => Err(AnswerError::NodeInvalid { status, message: verdict.error() }),
        Ok(verdict) => match verdict.error() {
            Some(message) => Err(AnswerError::Error { status, message, retry_after }),
            None if !success => Err(refused(status, text, retry_after)),
            None if text.is_empty() => Ok("{}".to_owned()),
            None => Ok(whole),
        },
        Err(()) if !success => Err(refused(status, text, retry_after)),
        Err(()) => Err(AnswerError::NotAnObject { beginning: beginning(text, 40).into_owned() }),
    }
}

fn refused(status: u16, text: &str, retry_after: Option<Duration>) -> AnswerError {
    // An empty object says nothing.
    let beginning = if text == "{}" { String::new() } else { beginning(text, SHOWN_OF_REFUSAL).into_owned() };
    AnswerError::Status { status, beginning, retry_after }
}

/// An answer's text, without blanks around it, and without a copy. Of a large answer that is no UTF-8 only the beginning is
/// repaired, which is no JSON then.
fn text_of(body: Vec<u8>) -> String {
    let mut text = String::from_utf8(body).unwrap_or_else(|error| {
        let mut body = error.into_bytes();
        body.truncate(LARGEST_REPAIRED);
        String::from_utf8_lossy(&body).into_owned()
    });
    text.truncate(text.trim_end().len());
    let blanks = text.len() - text.trim_start().len();
    drop(text.drain(..blanks));
    text
}

/// What an enrollment's answer gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// A node key, which is not blank.
    Key(Secret),
    /// A blank key: this deployment knows its nodes by their client certificates.
    Blank,
}

/// Whether a client certificate is configured, which makes a blank key a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// `tls_client_cert` and `tls_client_key` are set.
    Configured,
    /// Requests go without a client certificate.
    Absent,
}

/// Judges the answer to an enrollment.
///
/// A non-empty key wins over `node_invalid` (one server sends both and means success); `id` stands in for an
/// absent `node_key`.
pub fn judge_enrollment(
    status: u16,
    retry_after: Option<Duration>,
    body: &[u8],
    certificate: ClientCertificate,
) -> Result<Enrolled, AnswerError> {
    #[derive(Default, Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        node_key: Option<&'a RawValue>,
        #[serde(borrow)]
        id: Option<&'a RawValue>,
    }
    let answer: Answer<'_> = serde_json::from_slice(body).unwrap_or_default();
    let key = answer.node_key.or(answer.id).map(RawValue::get).unwrap_or_default();
    let is_string = key.starts_with('"');
    let key = members::string(key, usize::MAX).unwrap_or_default();
    let success = (200..300).contains(&status);
    if success && !key.trim().is_empty() {
        // Before it becomes a secret, which is masked everywhere.
        node_key::check(&key).map_err(AnswerError::UnusableNodeKey)?;
        return Ok(Enrolled::Key(Secret::new(key)));
    }
    judge(Endpoint::Enroll, status, retry_after, body).map_err(|error| error.of_enrollment())?;
    if answer.node_key.is_some() && is_string && certificate == ClientCertificate::Configured {
        return Ok(Enrolled::Blank);
    }
    Err(AnswerError::NoNodeKey)
}

/// The configuration in a judged answer, as osqueryd may have it: an object that isn't empty, and that it takes.
///
/// osqueryd empties the running schedule before it looks at a changed document, so nothing is handed on unchecked.
pub fn configuration(answer: String, place: KeyPlace, limits: ConfigLimits) -> Result<String, AnswerError> {
    let wrong = |reason: &str| Err(AnswerError::NotAConfiguration(reason.to_owned()));
    let document = match place {
        KeyPlace::Body => answer,
        KeyPlace::Url => {
            let Some(config) = wrapped(&answer) else {
                return wrong("it has no member \"config\" that is a string (tls_node_api)");
            };
            drop(answer);
            config
        }
    };
    match configuration::judge(&document, limits) {
        Err(refused) => wrong(&refused.to_string()),
        Ok(outline) if !outline.has_members => wrong("an empty object"),
        Ok(outline) if !outline.is_configuration => {
            wrong("it has none of a configuration's members (schedule, packs, options, and so on)")
        }
        Ok(_) => Ok(document),
    }
}

/// The configuration that stands in an answer as a string.
fn wrapped(answer: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Wrapped<'a> {
        #[serde(borrow)]
        config: &'a RawValue,
    }
    members::string(serde_json::from_str::<Wrapped<'_>>(answer).ok()?.config.get(), usize::MAX)
}

/// How deep the nesting of a JSON text is.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether a text is a JSON object, whatever it holds.
#[must_use]
pub fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Whether a text is a JSON value, as a log line must be to have a place in a request.
#[must_use]
pub fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_WAIT: Option<Duration> = None;

    fn config(answer: &str) -> Result<String, AnswerError> {
        configuration(answer.to_owned(), KeyPlace::Body, ConfigLimits { bytes: 1000, depth: 4 })
    }

    #[test]
    fn an_empty_body_is_an_empty_object() {
        assert_eq!(judge(Endpoint::Logger, 200, NO_WAIT, b" \n").unwrap(), "{}");
        assert_eq!(judge(Endpoint::Logger, 204, NO_WAIT, b"").unwrap(), "{}");
    }

    #[test]
    fn node_invalid_is_read_from_any_status_and_in_any_form() {
        for body in [r#"{"node_invalid":true}"#, r#"{"node_invalid":"true"}"#, r#"{"node_invalid":1,"error":"x"}"#] {
            for status in [200, 401, 500] {
                let error = judge(Endpoint::Logger, status, NO_WAIT, body.as_bytes()).unwrap_err();
                assert!(matches!(error, AnswerError::NodeInvalid { .. }), "{body} {status}");
            }
        }
        for body in [r#"{"node_invalid":false}"#, r#"{"node_invalid":"false"}"#, r#"{"node_invalid":0}"#] {
            assert_eq!(judge(Endpoint::Logger, 200, NO_WAIT, body.as_bytes()).unwrap(), body);
        }
    }

    #[test]
    fn errors_are_failures_whatever_the_status() {
        let error =
            |status, body: &str| judge(Endpoint::Logger, status, NO_WAIT, body.as_bytes()).unwrap_err().to_string();
        assert_eq!(error(200, r#"{"error":"no"}"#), "the server answered with an error (HTTP 200): no");
        assert_eq!(error(500, r#"{"error":"no"}"#), "the server answered with an error (HTTP 500): no");
        assert_eq!(error(200, r#"{"error":7}"#), "the server answered with an error (HTTP 200): 7");
        assert_eq!(
            error(200, r#"{"message":"bad key","status":"error"}"#),
            "the server answered with an error (HTTP 200): bad key"
        );
        assert_eq!(error(502, "<html>"), "the server answered HTTP 502 (its body begins \"<html>\")");
        assert_eq!(
            error(403, r#"{"message":"No"}"#),
            r#"the server answered HTTP 403 (its body begins "{\"message\":\"No\"}")"#
        );
        assert_eq!(error(503, "{}"), "the server answered HTTP 503");
        assert!(judge(Endpoint::Logger, 200, NO_WAIT, br#"{"error":null,"status":"ok"}"#).is_ok());
        assert!(judge(Endpoint::DistributedRead, 200, NO_WAIT, br#"{"message":"none","status":"error"}"#).is_ok());
    }

    #[test]
    fn a_server_s_words_are_cut() {
        for members in ["", r#","node_invalid":true"#] {
            let body = format!(r#"{{"error":"{}"{members}}}"#, "x".repeat(10_000));
            let message = judge(Endpoint::Logger, 200, NO_WAIT, body.as_bytes()).unwrap_err().to_string();
            assert!(message.len() < 400 && message.contains("xxx"), "{message}");
        }
    }

    #[test]
    fn a_success_that_is_not_an_object_is_a_failure() {
        for body in ["<html>", "[]", "\"ok\"", "{", "{\"a\":1", "null"] {
            let error = judge(Endpoint::Logger, 200, NO_WAIT, body.as_bytes()).unwrap_err();
            assert!(matches!(error, AnswerError::NotAnObject { .. }), "{body}");
        }
    }

    #[test]
    fn enrollment_takes_what_servers_send() {
        let key = |body: &str| judge_enrollment(200, NO_WAIT, body.as_bytes(), ClientCertificate::Absent);
        assert_eq!(key(r#"{"node_key":"k1"}"#).unwrap(), Enrolled::Key(Secret::new("k1")));
        assert_eq!(key(r#"{"id":"node-4411"}"#).unwrap(), Enrolled::Key(Secret::new("node-4411")));
        assert_eq!(key(r#"{"node_key":"k2","node_invalid":true}"#).unwrap(), Enrolled::Key(Secret::new("k2")));
        assert_eq!(key(r#"{"node_key":""}"#).unwrap_err(), AnswerError::NoNodeKey);
        assert_eq!(key("{}").unwrap_err(), AnswerError::NoNodeKey);
        assert_eq!(key("").unwrap_err(), AnswerError::NoNodeKey);
        let refused = |status, body: &str| {
            let answer = judge_enrollment(status, NO_WAIT, body.as_bytes(), ClientCertificate::Absent);
            answer.unwrap_err().to_string()
        };
        let hint = "; is the enroll secret the server's?";
        let said = |status, words: &str| format!("the server refused the enrollment (HTTP {status}){words}{hint}");
        assert_eq!(refused(200, r#"{"node_invalid":true}"#), said(200, ""));
        assert_eq!(refused(401, r#"{"node_key":"k3"}"#), said(401, ""));
        assert_eq!(refused(403, "no entry"), said(403, ": no entry"));
        assert_eq!(refused(200, r#"{"error":"bad secret","node_invalid":true}"#), said(200, ": bad secret"));
        assert_eq!(refused(500, r#"{"node_key":"k3"}"#), "the server answered HTTP 500");
    }

    #[test]
    fn a_blank_key_is_a_success_only_with_a_client_certificate() {
        let key = |body: &str| judge_enrollment(200, NO_WAIT, body.as_bytes(), ClientCertificate::Configured);
        assert_eq!(key(r#"{"node_key":""}"#).unwrap(), Enrolled::Blank);
        assert_eq!(key(r#"{}"#).unwrap_err(), AnswerError::NoNodeKey);
        assert!(key(r#"{"node_key":"","node_invalid":true}"#).is_err());
    }

    #[test]
    fn only_a_configuration_is_handed_on() {
        assert_eq!(config(r#"{"schedule":{}}"#).unwrap(), r#"{"schedule":{}}"#);
        for (answer, reason) in [
            ("{}", "an empty object"),
            (r#"{"node_invalid":false}"#, "an empty object"),
            (r#"{"foo":"bar"}"#, "none of a configuration's members"),
            (r#"{"message":"Not Found","schedule_":{}}"#, "none of a configuration's members"),
            (r#"{"a":[[[[1]]]]}"#, "6 levels of values"),
            (r#"{"a":1"#, "not a JSON object"),
            ("[]", "not a JSON object"),
        ] {
            let message = config(answer).unwrap_err().to_string();
            assert!(message.contains(reason), "{answer}: {message}");
        }
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1000));
        assert!(config(&large).unwrap_err().to_string().contains("1009 bytes"));
        assert!(config(r#"{"options":"[[[[[[{{{{ \" [[["}"#).is_ok());
    }

    #[test]
    fn the_node_api_s_configuration_is_a_string() {
        let limits = ConfigLimits::of_version(None);
        let unwrap = |answer: &str| configuration(answer.to_owned(), KeyPlace::Url, limits);
        assert_eq!(unwrap(r#"{"config":"{\"schedule\":{}}"}"#).unwrap(), r#"{"schedule":{}}"#);
        assert!(unwrap(r#"{"config":{"schedule":{}}}"#).is_err());
        assert!(unwrap(r#"{"schedule":{}}"#).is_err());
        assert!(unwrap(r#"{"config":"<html>"}"#).is_err());
        let commented = "{\n // a comment\n\"schedule\":{\"q\":{\"query\":\"select \\\n 1\"}}}";
        assert_eq!(unwrap(&serde_json::json!({"config": commented}).to_string()).unwrap(), commented);
    }

    #[test]
    fn limits_follow_osqueryd_s_version() {
        let bytes = |version| ConfigLimits::of_version(version).bytes >> 20;
        assert_eq!(bytes(Some("5.23.0-38-ga5b14f63d")), 1);
        assert_eq!(bytes(Some("5.24.0")), 4);
        assert_eq!(bytes(Some("6.0.1")), 4);
        assert_eq!((bytes(Some("")), bytes(None)), (1, 1));
    }
}
