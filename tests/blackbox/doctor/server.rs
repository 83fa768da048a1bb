//! Faults of the server's answers, to the doctor's own requests.

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use super::{Fault, Host, fault, find, look};
use crate::rig::SECRET;

const DEEP: &[&str] = &["--deep"];
const ENROLL: &[&str] = &["--enroll"];

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    fault("server answer", "failure", "no answer within 1 s",
        "the server is too slow", |host| {
            host.file("remote_tls.flags", "--request_timeout=1\n");
            always(host, Endpoint::Config, Answer::hang());
        }),
    fault("server answer", "failure", "the connection broke",
        "look at the server's log", |host| always(host, Endpoint::Config, Answer::drop_connection())),
    fault("server answer", "failure", "redirected to another host, or away from https (\"https://login.example/osquery",
        "set --tls_hostname=login.example if that is your server", |host| redirect(host, "https://login.example/osquery?key=x")),
    fault("server answer", "failure", "away from https (\"http://localhost/config",
        "from https to plain http", |host| redirect(host, "http://localhost/config")),
    fault("server answer", "failure", "redirected to nowhere",
        "correct the redirect", |host| always(host, Endpoint::Config, Answer::empty(302))),
    fault("clock", "warning", "s behind the server's", "NTP", |host| always(host, Endpoint::Config, dated(600))),
    fault("clock", "failure", "s ahead of the server's", "NTP", |host| always(host, Endpoint::Config, dated(-7200))),
    fault("config endpoint", "failure", "the server answered HTTP 502: 502",
        "what stands before the server", |host| always(host, Endpoint::Config, Answer::html(502))),
    fault("config endpoint", "failure", "the server answered HTTP 500: database is gone", "look at the server's log",
        |host| always(host, Endpoint::Config, Answer::status(500, json!({"message": "database is gone"}).to_string()))),
    fault("config endpoint", "failure", "/config: the server answered HTTP 404",
        "--config_tls_endpoint=/config is not this server's path for it; known servers have: Fleet /api/osquery/config",
        |host| always(host, Endpoint::Config, Answer::empty(404))).with(DEEP),
    fault("config endpoint", "warning", "/config: takes a node key that is invalid",
        "--config_tls_endpoint is the server's path",
        |host| always(host, Endpoint::Config, Answer::json(json!({"schedule": {}})))).with(DEEP),
    fault("logger endpoint", "warning", "without \"node_invalid\": the server answered HTTP 401",
        "what the server's log says", |host| always(host, Endpoint::Log, Answer::status(401, "no"))).with(DEEP),
    fault("logger endpoint", "failure", "/log: the server answered HTTP 413",
        "client_max_body_size, 1 MiB unless set", |host| always(host, Endpoint::Log, Answer::empty(413))).with(DEEP),
    fault("logger endpoint", "failure", "/log: the server answered HTTP 405",
        "--logger_tls_endpoint=/log is not this server's path", |host| always(host, Endpoint::Log, Answer::empty(405))).with(DEEP),
    fault("distributed read endpoint", "failure", "not a JSON object",
        "something else answers here", |host| always(host, Endpoint::DistributedRead, Answer::html(200))).with(DEEP),
    fault("distributed read endpoint", "failure", "the server answered HTTP 503: down for maintenance",
        "what stands before the server",
        |host| always(host, Endpoint::DistributedRead, Answer::status(503, "down for maintenance"))).with(DEEP),
    fault("distributed write endpoint", "failure", "/distributed_write: the connection broke",
        "the connection is cut", |host| always(host, Endpoint::DistributedWrite, Answer::drop_connection())).with(DEEP),
    fault("enroll endpoint", "failure", "/enroll: the server answered HTTP 504: 504",
        "what stands before the server", |host| always(host, Endpoint::Enroll, Answer::html(504))).with(DEEP),
    fault("enroll endpoint", "failure", "the server refused the enrollment (HTTP 200)",
        "the secret is the first guess: compare --enroll_secret_path=",
        |host| drop(host.file("secret", "another"))).with(ENROLL),
    // Fleet's way, osctrl's and sgt's.
    fault("enroll endpoint", "failure", "the server refused the enrollment (HTTP 401): enroll failed: no matching secret found",
        "the secret is the first guess", |host| {
            let body = json!({"error": "enroll failed: no matching secret found", "node_invalid": true});
            always(host, Endpoint::Enroll, Answer::status(401, body.to_string()));
        }).with(ENROLL),
    fault("enroll endpoint", "failure", "/enroll: the server refused the enrollment (HTTP 403)",
        "the secret is the first guess", |host| always(host, Endpoint::Enroll, Answer::empty(403))).with(ENROLL),
    fault("enroll endpoint", "failure", "/enroll: the server did not enroll this host: its answer has no node key",
        "the secret is the first guess", |host| always(host, Endpoint::Enroll, Answer::empty(200))).with(ENROLL),
    fault("enroll endpoint", "failure", "/enroll: the server answered HTTP 404",
        "--enroll_tls_endpoint=/enroll is not this server's path", |host| always(host, Endpoint::Enroll, Answer::empty(404))).with(ENROLL),
    fault("enroll endpoint", "failure", "/enroll: the server answered HTTP 413",
        "raise the limit for bodies", |host| always(host, Endpoint::Enroll, Answer::empty(413))).with(ENROLL),
    fault("enroll endpoint", "failure", "/enroll: the server answered HTTP 429",
        "enrollments by address", |host| always(host, Endpoint::Enroll, Answer::empty(429))).with(ENROLL),
    fault("enroll endpoint", "failure", "/enroll: the server answered HTTP 407",
        "USER:PASSWORD@HOST:PORT", |host| always(host, Endpoint::Enroll, Answer::empty(407))).with(ENROLL),
];

fn always(host: &Host, endpoint: Endpoint, answer: Answer) {
    host.server.always(endpoint, Some(answer));
}

fn redirect(host: &Host, location: &str) {
    always(host, Endpoint::Config, Answer::empty(302).header("Location", location));
}

/// The usual answer with a clock that is ahead by `seconds`.
fn dated(seconds: i64) -> Answer {
    let now = SystemTime::now();
    let skew = Duration::from_secs(seconds.unsigned_abs());
    let date = if seconds > 0 { now + skew } else { now - skew };
    Answer::default_behaviour().header("Date", &httpdate::fmt_http_date(date))
}

fn examined(host: &Host, arguments: &[&str]) -> super::Examined {
    look(&host.flagfile(), &host.path("remote_tls.flags"), arguments)
}

#[test]
fn what_is_wrong_with_the_server_s_answers_is_said() {
    find(FAULTS);
}

/// An unhandled assertion in a mock server ended it when the first version asked with a node key that was none.
#[test]
fn without_the_host_s_own_key_nothing_is_asked_but_whether_the_server_is_there() {
    let host = Host::new();
    let examined = examined(&host, &[]);
    let requests = host.server.requests();
    assert_eq!(requests.len(), 1, "{}", host.server.transcript());
    assert_eq!((requests[0].method.as_str(), requests[0].endpoint), ("GET", Endpoint::Config));
    assert!(requests[0].body.is_empty() && requests[0].header("authorization").is_none());
    for check in ["config endpoint", "logger endpoint", "distributed read endpoint", "distributed write endpoint"] {
        examined.must_say(check, "skipped", "--deep asks", "");
    }
    assert_eq!(host.server.node_keys().len(), 0);
}

#[test]
fn with_deep_every_endpoint_is_asked_with_a_key_that_is_none() {
    let host = Host::new();
    let examined = examined(&host, &["--deep"]);
    for check in ["config endpoint", "logger endpoint", "distributed read endpoint", "distributed write endpoint"] {
        examined.must_say(check, "ok", "rejects a node key that is invalid", "");
    }
    for request in host.server.requests().iter().filter(|request| request.method != "GET") {
        assert_eq!(request.json.as_ref().unwrap()["node_key"], "osquery-remote-tls-doctor-invalid-node-key");
    }
    let log = host.server.requests_to(Endpoint::Log).remove(0).json.unwrap();
    assert_eq!((&log["log_type"], log["data"].as_array().unwrap().len()), (&json!("status"), 1));
    // As osqueryd's are: a server refused lines of which some had numbers and others strings.
    let line = &log["data"][0];
    assert!(["severity", "line", "unixTime"].iter().all(|name| line[name].is_u64()), "{line}");
    assert_eq!(host.server.node_keys().len(), 0);
}

/// Servers whose POST routes answer a GET by 404 or 405, or by their web interface; and those whose word for a refusal is
/// another one.
#[test]
fn no_alarm_is_false() {
    for answer in [Answer::empty(404), Answer::empty(405), Answer::html(200), Answer::empty(401), Answer::empty(200)] {
        let host = Host::new();
        always(&host, Endpoint::Config, answer);
        let examined = examined(&host, &[]);
        assert_eq!(examined.problems().len(), 0, "{:#?}", examined.problems());
    }
    let host = Host::new();
    let refusal = Answer::json(json!({"status": "error", "message": "bad node key"}));
    always(&host, Endpoint::DistributedRead, refusal.clone());
    always(&host, Endpoint::Log, refusal);
    let examined = examined(&host, &["--deep"]);
    examined.must_say("distributed read endpoint", "ok", "refuses a node key that is invalid (bad node key)", "");
    assert_eq!(examined.problems().len(), 0, "{:#?}", examined.problems());
}

#[test]
fn endpoints_that_no_plugin_in_use_needs_are_not_judged() {
    let mut host = Host::new();
    host.flag("disable_distributed", "true");
    host.flag("distributed_plugin", "tls");
    host.flag("logger_plugin", "filesystem");
    host.flag("logger_tls_endpoint", "/no/such");
    let examined = examined(&host, &["--deep"]);
    for check in ["logger endpoint", "distributed read endpoint", "distributed write endpoint"] {
        examined.must_say(check, "skipped", "no plugin in use needs it", "");
    }
    assert_eq!(examined.problems().len(), 0, "{:#?}", examined.problems());
}

#[test]
fn a_server_that_never_answers_costs_twenty_seconds_at_most() {
    let host = Host::new();
    for endpoint in [Endpoint::Log, Endpoint::DistributedRead, Endpoint::DistributedWrite, Endpoint::Enroll] {
        always(&host, endpoint, Answer::hang());
    }
    let began = Instant::now();
    let examined = examined(&host, &["--deep"]);
    // The doctor's time limit, and what a loaded machine adds.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    examined.must_say("enroll endpoint", "failure", "no answer within ", "the server is too slow");
    examined.must_say("distributed write endpoint", "failure", "no time is left", "run the doctor once more");
}

#[test]
fn an_enrollment_is_tried_when_it_is_asked_for() {
    let host = Host::new();
    let examined = examined(&host, &["--enroll"]);
    examined.must_say("enroll endpoint", "ok", "enrolled; the key is not kept, and the server knows a host", "");
    assert!(host.server.node_keys().iter().all(|key| !examined.text.contains(key.as_str())));
    let body = host.server.requests_to(Endpoint::Enroll).remove(0).json.unwrap();
    assert!(body["host_identifier"].as_str().unwrap().ends_with("-doctor"), "{body}");
    assert_eq!(body["enroll_secret"], SECRET);
}
