//! A server's answers: status, headers and body of every endpoint, through all that judges them.
//!
//! The input is a byte that says what was asked ([`Asked`]), two of the status, a header's value up to the end of the
//! line, and the body.
//!
//! [`Inflated`] input is a body as it comes in, compressed or not ([`PACKED`] and the like); the first three bytes of its
//! head are what was asked and the status.

use std::collections::HashSet;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use osquery_remote_tls::plugins::logger::{Decoration, StatusLine};
use osquery_remote_tls::remote::api::{self, AnswerError, ClientCertificate, Enrolled, KeyPlace, LogType, Payload};
use osquery_remote_tls::remote::configuration::ConfigLimits;
use osquery_remote_tls::remote::{
    Encoding, Endpoint, TransportError, configuration, read_body, retry_after, same_host_redirect,
};
use osquery_remote_tls::secret::{MASK, Secret, redact};
use osquery_remote_tls::settings::Server;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::inflated::{Inflated, scaled};
use crate::memory::{Bound, within};
use crate::thrift::Extension;

/// The node key, which no error may show.
pub const NODE_KEY: &str = "fuzz/n0de+\"key";

/// No error's text is longer: it goes into a log line and an answer to osqueryd.
const LONGEST_ERROR: usize = 1500;

/// The deepest answer that is taken.
const DEEPEST: usize = 100;

/// A form of inflated input: the body is compressed.
pub const PACKED: u8 = 1;

/// A form of inflated input: the body is said to be compressed, and stands there as it came in.
pub const AS_IT_CAME: u8 = 2;

/// A form of inflated input: a quarter of [`LARGEST`] is read, so that more is too large.
pub const LIMITED: u8 = 4;

/// The largest body that is read, of the 16 MiB that the product reads.
const LARGEST: usize = scaled(256 << 10);

/// The largest body that is there.
const MOST: usize = 2 * LARGEST;

/// The most bytes of input that are judged by another parser, too, which makes trees.
const SMALL: usize = 4096;

/// The body, in a buffer that doubles when it is full and is there twice meanwhile; what decompresses it.
const READING: Bound = Bound { each: 3, always: 64 << 10 };

/// The answer's text, and a string that stands in it or the configuration without its comments, in a buffer that grows;
/// where it is shown, ten times the first 130 KiB of it, to find what is to be masked. A tree was seen to take 21 to 60 times
/// its size.
const JUDGING: Bound = Bound { each: 16, always: 64 << 10 };

/// The configuration as it is read and as it is changed, and what is judged of that, in buffers that grow. Its decorators, of
/// which the shortest has four bytes: a thousand at most are kept, of about 140 bytes each, in a list that grows.
const HANDING_ON: Bound = Bound { each: 6, always: 320 << 10 };

/// A host that is without its server.
static HOST: LazyLock<Extension> = LazyLock::new(Extension::new);

const SERVERS: [&str; 4] = ["fleet.example.com", "fleet.example.com:8443", "[::1]:8443", "10.0.0.1"];

/// What the first byte says.
struct Asked {
    endpoint: Endpoint,
    place: KeyPlace,
    certificate: ClientCertificate,
    limits: ConfigLimits,
    server: Server,
}

impl Asked {
    fn new(byte: u8) -> Self {
        let endpoints = [
            Endpoint::Enroll,
            Endpoint::Config,
            Endpoint::Logger,
            Endpoint::DistributedRead,
            Endpoint::DistributedWrite,
        ];
        let bit = |mask: u8| byte & mask != 0;
        Self {
            endpoint: endpoints[usize::from(byte & 7) % endpoints.len()],
            place: if bit(8) { KeyPlace::Url } else { KeyPlace::Body },
            certificate: if bit(16) { ClientCertificate::Configured } else { ClientCertificate::Absent },
            // Limits that small inputs reach, too.
            limits: if bit(32) { ConfigLimits { bytes: 64, depth: 3 } } else { ConfigLimits::of_version(None) },
            server: Server::parse(SERVERS[usize::from(byte >> 6)]).unwrap(),
        }
    }
}

/// Tries one input.
pub fn run(input: &[u8]) {
    if let Some(inflated) = Inflated::of(input, MOST) {
        return receive(&inflated);
    }
    let Some((&[asked, high, low], rest)) = input.split_first_chunk() else { return };
    let (asked, status) = (Asked::new(asked), u16::from_be_bytes([high, low]));
    let end = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
    let (header, body) = (String::from_utf8_lossy(&rest[..end]), rest.get(end + 1..).unwrap_or_default());
    check_redirect(&asked.server, &header);
    check(&asked, status, check_retry_after(&header), body);
}

fn check(asked: &Asked, status: u16, wait: Option<Duration>, body: &[u8]) {
    let node_key = Secret::new(NODE_KEY);
    check_judgement(asked, status, wait, body);
    check_enrollment(asked, status, wait, body);
    let text = String::from_utf8_lossy(body);
    check_configuration(&text, asked.place, asked.limits);
    check_requests(&text, &node_key);
    check_status_lines(&text);
}

/// A body comes in, is read within its limit and judged, and none of that takes more memory than such a body may.
fn receive(input: &Inflated<'_>) {
    let Some((&[asked, high, low], head)) = input.head.split_first_chunk() else { return };
    let (asked, status) = (Asked::new(asked), u16::from_be_bytes([high, low]));
    let is = |form: u8| input.form & form != 0;
    let inflated = Inflated { head, ..*input };
    let whole = inflated.whole();
    let largest = if is(LIMITED) { LARGEST / 4 } else { LARGEST };
    let encoding = if is(PACKED | AS_IT_CAME) { Encoding::Gzip } else { Encoding::Plain };
    let packed = (is(PACKED) && !is(AS_IT_CAME)).then(|| inflated.packed());
    // What was compressed by a fuzzer can become anything.
    let weight = if is(AS_IT_CAME) { largest } else { whole.len().min(largest) };
    let wire = packed.as_deref().unwrap_or(&whole);
    let read = within(READING, weight, "reading", || read_body(wire, encoding, largest as u64));
    let body = match read {
        Ok(body) => {
            assert!(body.len() <= largest, "{} bytes are read of {largest}", body.len());
            assert!(is(AS_IT_CAME) || body == whole, "another body is read");
            body
        }
        Err(error) => {
            let is_too_large = matches!(error, TransportError::TooLarge(most) if most == largest as u64);
            assert!(is(AS_IT_CAME) || (is_too_large && whole.len() > largest), "{} bytes: {error}", whole.len());
            return;
        }
    };
    if body.len() <= SMALL {
        return check(&asked, status, None, &body);
    }
    let answer = judged(&asked, status, None, &body);
    match &answer {
        Ok(answer) if answer == "{}" => {}
        Ok(answer) => assert!(String::from_utf8_lossy(&body).trim() == answer, "another answer"),
        Err(error) => check_error(error, status, None),
    }
    if let Err(error) = enrolled(&asked, status, None, &body) {
        check_error(&error, status, None);
    }
    let Ok(answer) = answer else { return };
    if let Ok(document) = configured(&answer, asked.place, asked.limits) {
        check_handing_on(&document);
    }
}

fn judged(asked: &Asked, status: u16, wait: Option<Duration>, body: &[u8]) -> Result<String, AnswerError> {
    within(JUDGING, repaired(body), "judging", || api::judge(asked.endpoint, status, wait, body))
}

fn enrolled(asked: &Asked, status: u16, wait: Option<Duration>, body: &[u8]) -> Result<Enrolled, AnswerError> {
    within(JUDGING, repaired(body), "enrolling", || api::judge_enrollment(status, wait, body, asked.certificate))
}

fn configured(answer: &str, place: KeyPlace, limits: ConfigLimits) -> Result<String, AnswerError> {
    within(JUDGING, answer.len(), "configuring", || api::configuration(answer.to_owned(), place, limits))
}

/// How long the text is that these bytes are read as: each that is no UTF-8 becomes U+FFFD.
fn repaired(bytes: &[u8]) -> usize {
    bytes.utf8_chunks().map(|chunk| chunk.valid().len() + if chunk.invalid().is_empty() { 0 } else { 3 }).sum()
}

/// A configuration goes on to osqueryd, and what in it is for ourselves is read. It is kept as the last one that the server
/// gave, which goes the same way.
fn check_handing_on(document: &str) {
    HOST.keep(document);
    let reply = within(HANDING_ON, document.len(), "handing on", || HOST.gen_config());
    assert_eq!(reply.code, 0, "{}", reply.message);
    let given = reply.rows.first().and_then(|row| row.values().next()).expect("a configuration");
    assert!(configuration::judge(given, ConfigLimits::of_version(None)).is_ok(), "{given}");
}

/// A redirect that is followed leads to the same host and port, by https, as the HTTP client reads the URL.
fn check_redirect(server: &Server, location: &str) {
    let Some(url) = same_host_redirect(server, location) else { return };
    let Ok(url) = url.parse::<http::Uri>() else { return };
    assert_eq!(url.scheme_str(), Some("https"), "{location}");
    let host = url.host().unwrap_or_default();
    assert!(host.eq_ignore_ascii_case(&server.address.host), "{location} leads to {host}");
    assert_eq!(url.port_u16().unwrap_or(443), server.address.port.unwrap_or(443), "{location}");
    assert!(url.authority().is_some_and(|authority| !authority.as_str().contains('@')), "{location}");
}

fn check_retry_after(value: &str) -> Option<Duration> {
    let hour = Duration::from_secs(3600);
    let wait = retry_after(value);
    assert!(wait.is_none_or(|wait| wait <= hour), "{wait:?}");
    if let Ok(seconds) = value.parse::<u64>() {
        assert_eq!(wait, Some(Duration::from_secs(seconds).min(hour)));
    }
    wait
}

fn check_judgement(asked: &Asked, status: u16, wait: Option<Duration>, body: &[u8]) {
    let success = (200..300).contains(&status);
    let text = String::from_utf8_lossy(body);
    // What stands around an answer is not part of it.
    let text = text.trim();
    let members = Members::of(text);
    match judged(asked, status, wait, body) {
        Ok(answer) => {
            assert!(success, "HTTP {status} is no success");
            assert_eq!(answer, if text.is_empty() { "{}" } else { text });
            assert!(api::is_object(&answer), "{answer}");
            assert!(depth(&answer).is_none_or(|depth| depth <= DEEPEST));
            if let Some(members) = members {
                assert!(!members.says_no(asked.endpoint), "{answer}");
            }
            check_configuration(&answer, asked.place, asked.limits);
        }
        Err(error) => {
            check_error(&error, status, wait);
            if let Some(members) = members.filter(|_| success && depth(text).is_some_and(|depth| depth <= DEEPEST)) {
                assert!(members.says_no(asked.endpoint) || members.repeats(), "{text} is refused: {error}");
            }
        }
    }
}

fn check_error(error: &AnswerError, status: u16, wait: Option<Duration>) {
    let shown = error.to_string();
    assert!(shown.len() <= LONGEST_ERROR, "{} bytes of error", shown.len());
    let key: &str = NODE_KEY;
    let escaped = Value::from(key).to_string();
    // What is known is masked where text leaves, too; what is cut before can't be.
    for form in [key, escaped.trim_matches('"')] {
        assert!(!redact(&shown).contains(form), "{shown}");
    }
    assert!(error.status().is_none_or(|shown| shown == status));
    assert!(error.retry_after().is_none_or(|shown| Some(shown) == wait));
}

fn check_enrollment(asked: &Asked, status: u16, wait: Option<Duration>, body: &[u8]) {
    let text = String::from_utf8_lossy(body);
    match enrolled(asked, status, wait, body) {
        Ok(Enrolled::Key(key)) => {
            assert!((200..300).contains(&status));
            assert!(!key.expose().trim().is_empty());
            let members = Members::of(&text).expect("a key comes in an object");
            assert!(members.holds(&["node_key", "id"], key.expose()));
            check_masking(&text, key.expose());
        }
        Ok(Enrolled::Blank) => {
            assert!((200..300).contains(&status));
            assert_eq!(asked.certificate, ClientCertificate::Configured);
        }
        Err(error) => check_error(&error, status, wait),
    }
}

/// An enrollment's answer is shown (`tls_dump`) once its key is known: no reader of JSON finds the key in it then.
fn check_masking(text: &str, key: &str) {
    // Shorter ones are not masked, and such ones can be made by masking.
    if key.len() < 3 || key.contains(['<', '>']) || MASK.contains(key) {
        return;
    }
    let shown = redact(text);
    assert!(!shown.contains(key), "{shown}");
    if let Some(members) = Members::of(&shown) {
        assert!(!members.holds(&["node_key", "id"], key), "{shown}");
    }
}

/// What osqueryd gets as its configuration is a non-empty object within the limits, and every such one is had.
fn check_configuration(answer: &str, place: KeyPlace, limits: ConfigLimits) {
    let document = match place {
        KeyPlace::Body => Some(answer.to_owned()),
        KeyPlace::Url => wrapped(answer),
    };
    let good = document
        .as_ref()
        .is_some_and(|document| configuration::judge(document, limits).is_ok_and(|outline| outline.is_configuration));
    if let Some(document) = &document {
        check_bounds(document, good, limits);
    }
    match configured(answer, place, limits) {
        Ok(given) => {
            assert!(good, "{given} is given to osqueryd");
            assert_eq!(Some(given), document);
        }
        Err(error) => {
            assert!(!good, "{answer} is refused: {error}");
            assert!(error.to_string().len() <= LONGEST_ERROR, "{error}");
        }
    }
}

/// The same by another parser, for strict JSON, which has neither comments nor joined lines: brackets in place of values,
/// since the innermost may hold one, and a byte less, since osqueryd adds a line's end.
fn check_bounds(document: &str, good: bool, limits: ConfigLimits) {
    let (Some(members), Some(depth)) = (Members::of(document), depth(document)) else { return };
    let has_members = members.0.iter().any(|(name, _)| configuration::MEMBERS.contains(&&**name));
    if good {
        assert!((has_members || document.contains('\\')) && depth <= limits.depth, "{document} is taken");
    } else if has_members && document.len() < limits.bytes && depth < limits.depth {
        assert!(!has_ordinary_numbers(document), "{document} is refused");
    }
}

/// Whether no number is near a double's limits, where RapidJSON has rules of its own.
fn has_ordinary_numbers(text: &str) -> bool {
    let digits = text.split(|character: char| !character.is_ascii_digit());
    let exponents = text.split(['e', 'E']).skip(1).map(|rest| rest.trim_start_matches(['+', '-']));
    let is_short = |exponent: &str| exponent.chars().take_while(char::is_ascii_digit).count() < 3;
    digits.max_by_key(|run| run.len()).is_none_or(|run| run.len() <= 15) && exponents.into_iter().all(is_short)
}

/// The member `config` of an answer, when it is there once and is a string.
fn wrapped(answer: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Wrapped {
        config: String,
    }
    serde_json::from_str::<Wrapped>(answer).ok().map(|wrapped| wrapped.config)
}

/// Whatever is passed on, a request has the members that it should have, and no others.
fn check_requests(text: &str, key: &Secret) {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct LogRequest {
        node_key: String,
        log_type: String,
        data: Vec<IgnoredAny>,
    }
    let lines: Vec<String> = text.lines().filter(|line| api::is_json(line)).map(str::to_owned).collect();
    let data = lines.join(",");
    let body = api::body(Payload::Lines(LogType::Result, &data), key, KeyPlace::Body).to_string();
    let request: LogRequest = serde_json::from_str(&body).expect("a log request");
    assert_eq!((&*request.node_key, &*request.log_type, request.data.len()), (NODE_KEY, "result", lines.len()));

    if !api::is_object(text) {
        return;
    }
    let body = api::body(Payload::Object(text), key, KeyPlace::Body).to_string();
    assert!(api::is_object(&body), "{body}");
    if let (Some(before), Some(after)) = (Members::of(text), Members::of(&body)) {
        let (key, others) = after.0.split_last().expect("the node key");
        assert_eq!(others, before.0);
        assert_eq!(*key, ("node_key".to_owned(), Value::from(NODE_KEY)));
    }
}

fn check_status_lines(text: &str) {
    for line in serde_json::from_str::<Vec<StatusLine>>(text).unwrap_or_default() {
        let line: Value =
            serde_json::from_str(&line.into_log_line("5.19.0", &Decoration::default())).expect("a status line");
        assert!(["severity", "line", "unixTime"].iter().all(|name| line[name].is_i64()), "{line}");
    }
}

/// An object's members as they are written, those that are there twice included. A value that has no [`Value`], such as
/// the number 1e999, is its text in an array: readers that skip it take the object all the same.
struct Members(Vec<(String, Value)>);

impl Members {
    fn of(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn repeats(&self) -> bool {
        let mut seen = HashSet::new();
        self.0.iter().any(|(name, _)| !seen.insert(name))
    }

    fn holds(&self, names: &[&str], text: &str) -> bool {
        self.0.iter().any(|(name, value)| names.contains(&name.as_str()) && value.as_str() == Some(text))
    }

    fn says_no(&self, endpoint: Endpoint) -> bool {
        self.0.iter().any(|(name, value)| match (name.as_str(), value) {
            ("node_invalid", value) => [Value::from(true), "true".into(), 1.into()].contains(value),
            ("error", value) => !value.is_null(),
            ("status", value) => value == "error" && endpoint != Endpoint::DistributedRead,
            _ => false,
        })
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    let read = serde_json::from_str(value.get());
                    members.push((name, read.unwrap_or_else(|_| Value::from([value.get()].as_slice()))));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// How deep a JSON text is, by a parser; `None` when it is no JSON, or too deep for that parser.
fn depth(text: &str) -> Option<usize> {
    serde_json::from_str::<Depth>(text).ok().map(|depth| depth.0)
}

struct Depth(usize);

impl<'de> Deserialize<'de> for Depth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Measure)
    }
}

struct Measure;

impl<'de> Visitor<'de> for Measure {
    type Value = Depth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Depth, A::Error> {
        let mut deepest = 0;
        while let Some((_, Depth(depth))) = map.next_entry::<String, _>()? {
            deepest = deepest.max(depth);
        }
        Ok(Depth(deepest + 1))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Depth, A::Error> {
        let mut deepest = 0;
        while let Some(Depth(depth)) = seq.next_element()? {
            deepest = deepest.max(depth);
        }
        Ok(Depth(deepest + 1))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Depth, E> {
        Ok(Depth(0))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Depth, E> {
        Ok(Depth(0))
    }
}
