//! Misbehaviour as a word of the command line: `log=http:500`, `config=html:502*3`, `any=hang`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::json;

use super::{Answer, Endpoint, Server};

/// Between two bytes of a trickle.
const TRICKLE: Duration = Duration::from_millis(500);

/// What an endless answer has, unless it is given.
const ENDLESS: u64 = 1 << 30;

/// How one endpoint, or any, misbehaves: for a number of requests, or always.
#[derive(Clone, Debug)]
pub struct Misbehaviour {
    endpoints: Vec<Endpoint>,
    answer: Answer,
    times: Option<usize>,
}

impl Misbehaviour {
    /// The words that [`FromStr`] takes, each with what it does.
    pub const FAULTS: [(&'static str, &'static str); 21] = [
        ("http:STATUS", "that status with an empty body"),
        ("html:STATUS", "that status with a proxy's error page"),
        ("error:STATUS", "that status with {\"error\": ...}"),
        ("invalid:STATUS", "that status with {\"node_invalid\": true}"),
        ("retry-after:SECONDS", "503 with Retry-After"),
        ("redirect:LOCATION", "302 to there"),
        ("empty", "200 with an empty body"),
        ("array", "200 with a JSON array"),
        ("cut", "200 with JSON that ends in the middle"),
        ("text", "the usual answer as text/html"),
        ("gzip", "the usual answer, compressed"),
        ("http10", "the usual answer as HTTP/1.0"),
        ("close", "the usual answer, then the connection is closed without a word"),
        ("delay:SECONDS", "the usual answer, late"),
        ("lost", "the request counts, and the connection is closed without an answer"),
        ("drop", "the connection is closed without an answer"),
        ("drop-early", "the connection is closed before the body is read"),
        ("early:STATUS", "that status from the request's head; the connection is reset with the body unread"),
        ("hang", "no answer, ever"),
        ("trickle", "an answer that never ends, a byte at a time"),
        ("endless", "a gigabyte of answer (bomb: the same, compressed)"),
    ];

    /// Has the server behave so from now on.
    pub fn apply(&self, server: &Server) {
        for &endpoint in &self.endpoints {
            match self.times {
                Some(times) => server.script(endpoint, vec![self.answer.clone(); times]),
                None => server.always(endpoint, Some(self.answer.clone())),
            }
        }
    }
}

/// Why a word is no misbehaviour.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseError(String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseError {}

impl FromStr for Misbehaviour {
    type Err = ParseError;

    /// `ENDPOINT=FAULT`, or `ENDPOINT=FAULT*TIMES`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |what: &str| Err(ParseError(format!("{text}: {what}")));
        let Some((endpoint, fault)) = text.split_once('=') else { return wrong("ENDPOINT=FAULT is needed") };
        let endpoints = match endpoint {
            "enroll" => vec![Endpoint::Enroll],
            "config" => vec![Endpoint::Config],
            "log" => vec![Endpoint::Log],
            "read" => vec![Endpoint::DistributedRead],
            "write" => vec![Endpoint::DistributedWrite],
            "any" => vec![
                Endpoint::Enroll,
                Endpoint::Config,
                Endpoint::Log,
                Endpoint::DistributedRead,
                Endpoint::DistributedWrite,
            ],
            _ => return wrong("the endpoints are enroll, config, log, read, write and any"),
        };
        let (fault, times) = match fault.rsplit_once('*') {
            Some((fault, times)) => match times.parse() {
                Ok(times) => (fault, Some(times)),
                Err(_) => return wrong("a number is needed behind *"),
            },
            None => (fault, None),
        };
        match answer(fault) {
            Some(answer) => Ok(Self { endpoints, answer, times }),
            None => {
                let names: Vec<&str> = Self::FAULTS.iter().map(|(name, _)| *name).collect();
                wrong(&format!("the faults are {}", names.join(", ")))
            }
        }
    }
}

fn answer(fault: &str) -> Option<Answer> {
    let usual = Answer::default_behaviour;
    let (name, value) = fault.split_once(':').map_or((fault, None), |(name, value)| (name, Some(value)));
    let status = || value?.parse::<u16>().ok().filter(|status| (200..600).contains(status));
    let seconds = || value?.parse().ok().map(Duration::from_secs);
    Some(match (name, value) {
        ("http", Some(_)) => Answer::empty(status()?),
        ("html", Some(_)) => Answer::html(status()?),
        ("error", Some(_)) => Answer::status(status()?, json!({"error": "told to misbehave"}).to_string()),
        ("early", Some(_)) => Answer::from_head(status()?),
        ("invalid", Some(_)) => Answer::status(status()?, json!({"node_invalid": true}).to_string()),
        ("retry-after", Some(value)) => Answer::empty(503).header("Retry-After", value),
        ("redirect", Some(location)) => Answer::empty(302).header("Location", location),
        ("delay", Some(_)) => usual().delayed(seconds()?),
        ("endless", Some(bytes)) => Answer::endless(bytes.parse().ok()?),
        ("empty", None) => Answer::empty(200),
        ("array", None) => Answer::status(200, "[]"),
        ("cut", None) => Answer::status(200, "{\"schedule\": {"),
        ("text", None) => usual().header("Content-Type", "text/html"),
        ("gzip", None) => usual().gzip(),
        ("http10", None) => usual().http10(),
        ("close", None) => usual().close_silently(),
        ("lost", None) => Answer::lost(),
        ("drop", None) => Answer::drop_connection(),
        ("drop-early", None) => Answer::drop_mid_request(),
        ("hang", None) => Answer::hang(),
        ("trickle", None) => Answer::trickle("{", TRICKLE),
        ("endless", None) => Answer::endless(ENDLESS),
        ("bomb", None) => Answer::endless(ENDLESS).gzip(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_that_is_listed_is_understood() {
        for (name, _) in Misbehaviour::FAULTS {
            let fault = name.replace("STATUS", "500").replace("SECONDS", "5").replace("LOCATION", "/x");
            for endpoint in ["enroll", "config", "log", "read", "write", "any"] {
                assert!(format!("{endpoint}={fault}").parse::<Misbehaviour>().is_ok(), "{endpoint}={fault}");
                assert!(format!("{endpoint}={fault}*3").parse::<Misbehaviour>().is_ok(), "{endpoint}={fault}*3");
            }
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (text, reason) in [
            ("log", "ENDPOINT=FAULT"),
            ("logs=drop", "the endpoints are"),
            ("log=http", "the faults are"),
            ("log=http:9", "the faults are"),
            ("log=drop*often", "a number"),
        ] {
            let error = text.parse::<Misbehaviour>().unwrap_err().to_string();
            assert!(error.starts_with(text) && error.contains(reason), "{error}");
        }
    }
}
