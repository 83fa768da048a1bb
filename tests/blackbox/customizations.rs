//! Our requests beside those recorded from osquery's built-in plugins (golden/): the same method, target, headers,
//! members and types, with each customization.
//!
//! Meant differences: the rows of `host_details` hold the tables' visible columns; `tls_node_api`'s URLs begin their
//! query with `?`; header names are in lower case and in another order; members are in another order, but for those of
//! status lines; config requests have an `etag`, which osquery has after the recorded version; status lines have always decorators' values from the first one on, osqueryd's once it has run the
//! first query of its schedule.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::server::{Endpoint, Recorded};

use crate::rig::{LIMIT, Rig, Setup};

const SECRET: &str = "s3cret";
const NODE_KEY: &str = "node-key-1";

/// A request as the recordings have it.
struct Golden {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Golden {
    fn read(recording: &str) -> Vec<Self> {
        let requests: Vec<Value> = serde_json::from_str(recording).unwrap();
        requests.into_iter().map(Self::from_json).collect()
    }

    fn from_json(request: Value) -> Self {
        let header = |pair: &Value| {
            let text = |index: usize| pair[index].as_str().unwrap().to_owned();
            (text(0).to_lowercase(), text(1))
        };
        Self {
            method: request["method"].as_str().unwrap().to_owned(),
            target: request["target"].as_str().unwrap().replacen("&node_key=", "?node_key=", 1),
            headers: request["headers"].as_array().unwrap().iter().map(header).collect(),
            body: with_etag(&request, with_always_decorations(request["body"].clone())),
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::of(&self.target)
    }

    /// Has the extension make this request, and answers what it made.
    fn provoke(&self, rig: &Rig) -> Recorded {
        let endpoint = self.endpoint();
        let before = rig.server.requests_to(endpoint).len();
        match endpoint {
            // Whatever is asked first enrolls.
            Endpoint::Enroll => {
                rig.config();
                return rig.server.requests_to(endpoint).remove(0);
            }
            Endpoint::Config => {
                rig.config();
            }
            Endpoint::DistributedRead => {
                assert_eq!(rig.call("distributed", &[("action", "getQueries")]).code, 0);
            }
            Endpoint::DistributedWrite => {
                let mut results = self.body.clone();
                results.as_object_mut().unwrap().shift_remove("node_key");
                let call = [("action", "writeResults"), ("results", &*results.to_string())];
                assert_eq!(rig.call("distributed", &call).code, 0);
            }
            Endpoint::Log => self.log(rig),
            Endpoint::Other => panic!("no such endpoint: {}", self.target),
        }
        rig.server.wait("the request", LIMIT, |server| server.requests_to(endpoint).into_iter().nth(before))
    }

    /// Logs this request's lines as osqueryd does: all together, so that one request carries them.
    fn log(&self, rig: &Rig) {
        let lines = self.body["data"].as_array().unwrap();
        let outcome = if self.body["log_type"] == "status" {
            let lines: Vec<Value> = lines
                .iter()
                .map(|line| {
                    json!({"s": line["severity"], "f": line["filename"], "i": line["line"], "m": line["message"],
                           "h": line["hostIdentifier"], "c": line["calendarTime"], "u": line["unixTime"]})
                })
                .collect();
            rig.call("logger", &[("status", "true"), ("log", &json!(lines).to_string())])
        } else {
            let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
            rig.call("logger", &[("string_batch", &json!(lines).to_string())])
        };
        assert_eq!(outcome.code, 0);
    }

    fn compare(&self, ours: &Recorded, rig: &Rig) {
        let name = &self.target;
        assert_eq!(ours.method, self.method, "{name}");
        assert_eq!(&ours.target, name);
        let mut expected = self.headers.clone();
        expected.insert("host".to_owned(), rig.server.hostname());
        if let Some(length) = expected.get_mut("content-length") {
            *length = ours.wire_bytes.to_string();
        }
        let headers: BTreeMap<String, String> = ours.headers.iter().cloned().collect();
        assert_eq!(headers, expected, "{name}");
        match self.endpoint() {
            Endpoint::Enroll => compare_enrollments(&self.body, ours.json.as_ref().unwrap()),
            _ if self.body.is_null() => assert!(ours.body.is_empty(), "{name}"),
            _ => assert_eq!(ours.json.as_ref(), Some(&self.body), "{name}"),
        }
        if self.body["log_type"] == "status" {
            let lines =
                |body: &Value| body["data"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
            assert_eq!(lines(ours.json.as_ref().unwrap()), lines(&self.body), "the members' order");
        }
    }
}

/// A configuration's request that says that there is none yet.
fn with_etag(request: &Value, mut body: Value) -> Value {
    if let Some(members) = body.as_object_mut().filter(|_| request["target"].as_str().unwrap().contains("config")) {
        members.insert("etag".to_owned(), json!(""));
    }
    body
}

/// Decorated status lines with the always decorator's value, where it stands alphabetically.
fn with_always_decorations(mut body: Value) -> Value {
    if body["log_type"] != "status" {
        return body;
    }
    for line in body["data"].as_array_mut().unwrap() {
        let holder = if line.get("decorations").is_some() { &mut line["decorations"] } else { line };
        let members = holder.as_object_mut().unwrap();
        let load = members.keys().position(|name| name == "deco_load");
        if let Some(before) = load.filter(|_| !members.contains_key("deco_always")) {
            members.shift_insert(before, "deco_always".to_owned(), json!("av"));
        }
    }
    body
}

/// The same members with the same types; the tables' rows are this host's and this osqueryd's.
fn compare_enrollments(golden: &Value, ours: &Value) {
    let members = |body: &Value| body.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(golden), members(ours));
    for (name, value) in golden.as_object().unwrap() {
        match value {
            Value::String(_) if name == "host_identifier" => assert!(ours[name].is_string()),
            Value::String(_) => assert_eq!(&ours[name], value, "{name}"),
            _ => {
                for table in members(value) {
                    let row = ours[name][&table].as_object().unwrap_or_else(|| panic!("no {table} in {ours}"));
                    assert!(row.values().all(Value::is_string), "{table}: {row:?}");
                }
            }
        }
    }
}

/// Makes each request of a recording with these flags, and compares.
fn compare(recording: &str, flags: &[(&str, &str)]) {
    compare_with(recording, Setup::new(), flags);
}

/// The same with the decorators of the recordings.
fn compare_decorated(recording: &str, flags: &[(&str, &str)]) {
    assert!(recording.contains("\"deco_always\""), "a recording without decorations proves nothing");
    let decorators =
        json!({"load": ["select 'dv' as deco_load, 7 as deco_num"], "always": ["select 'av' as deco_always"]});
    let config = json!({"schedule": {}, "decorators": decorators});
    compare_with(recording, Setup::new().server(|server| server.config = config), flags);
}

fn compare_with(recording: &str, setup: Setup, flags: &[(&str, &str)]) {
    let secret = setup.file("golden-secret", SECRET);
    let setup = setup
        .flag("enroll_secret_path", secret.to_str().unwrap())
        .server(|server| server.enroll_secret = None)
        .osqueryd(|options| options.version = "5.23.0-38-ga5b14f63d".to_owned());
    let rig = flags.iter().fold(setup, |setup, (name, value)| setup.flag(name, value)).start();
    let golden = Golden::read(recording);
    assert!(golden.len() >= 6, "an empty recording proves nothing");
    for request in &golden {
        request.compare(&request.provoke(&rig), &rig);
    }
    assert_eq!(rig.server.node_keys(), [NODE_KEY]);
}

#[test]
fn plain() {
    compare(include_str!("golden/plain.json"), &[]);
}

#[test]
fn tls_secret_always() {
    compare(include_str!("golden/tls_secret_always.json"), &[("tls_secret_always", "true")]);
}

#[test]
fn tls_enroll_override() {
    compare(include_str!("golden/tls_enroll_override.json"), &[("tls_enroll_override", "deploy_key")]);
}

#[test]
fn tls_node_api() {
    compare(include_str!("golden/tls_node_api.json"), &[("tls_node_api", "true")]);
}

#[test]
fn logger_tls_compress() {
    compare(include_str!("golden/logger_tls_compress.json"), &[("logger_tls_compress", "true")]);
}

#[test]
fn logger_event_type_false() {
    compare(include_str!("golden/logger_event_type_false.json"), &[("logger_event_type", "false")]);
}

#[test]
fn decorators() {
    compare_decorated(include_str!("golden/decorators.json"), &[]);
}

#[test]
fn decorations_top_level() {
    compare_decorated(include_str!("golden/decorations_top_level.json"), &[("decorations_top_level", "true")]);
}

#[test]
fn the_overridden_name_is_the_secret_s_in_urls_too_and_secrets_are_encoded_there() {
    let setup = Setup::new();
    let secret = setup.file("odd-secret", "a/b+c=d&e f");
    let rig = setup
        .flag("enroll_secret_path", secret.to_str().unwrap())
        .flag("tls_secret_always", "true")
        .flag("tls_enroll_override", "deploy_key")
        .flag("enroll_tls_endpoint", "/enroll?tenant=7")
        .server(|server| server.enroll_secret = None)
        .start();
    rig.config();
    let enroll = rig.server.requests_to(Endpoint::Enroll).remove(0);
    assert_eq!(enroll.target, "/enroll?tenant=7&deploy_key=a%2Fb%2Bc%3Dd%26e%20f");
    assert_eq!(enroll.json.unwrap()["deploy_key"], "a/b+c=d&e f");
    let config = rig.server.requests_to(Endpoint::Config).remove(0);
    assert_eq!(config.target, "/config?deploy_key=a%2Fb%2Bc%3Dd%26e%20f");
}

#[test]
fn odd_node_keys_keep_urls_and_headers_valid() {
    for key in ["q/8Zt+V1n0a==", "with \"quotes\" and spaces", "ключ-é-1", "?&#%"] {
        let rig = Setup::new().flag("tls_node_api", "true").start();
        rig.server.set_next_node_key(key);
        rig.config();
        let request = rig.server.requests_to(Endpoint::Config).remove(0);
        assert_eq!(request.node_key().as_deref(), Some(key), "{}", request.target);
        assert!(request.target.is_ascii() && !request.target.contains(' '), "{}", request.target);
        rig.log("{\"n\":1}");
        rig.delivered(1);
        assert_eq!(rig.server.requests_to(Endpoint::Log)[0].json.as_ref().unwrap()["node_key"], key);
    }
}

#[test]
fn answers_may_be_compressed_where_the_flag_says_so() {
    let rig = Setup::new().flag("tls_accept_gzip", "true").own_flag("--logger_expand_events=false").start();
    let config = json!({"schedule": {}, "padding": "x".repeat(10_000)});
    rig.server.script(Endpoint::Config, [testkit::server::Answer::json(config.clone()).gzip()]);
    assert_eq!(serde_json::from_str::<Value>(&rig.config().1).unwrap(), config);
    let request = rig.server.requests_to(Endpoint::Config).remove(0);
    assert_eq!(request.header("accept-encoding"), Some("gzip"));
}

/// The case doctor-flags/path-in-tls_hostname (osquery#6162): what osqueryd takes as `tls_hostname`.
#[test]
fn a_path_of_the_server_s_stands_before_each_endpoint() {
    for (path, target) in [("/osquery", "/osquery/config"), ("/", "//config")] {
        let rig = Setup::new().server_path(path).start();
        rig.config();
        assert_eq!(rig.server.requests_to(Endpoint::Config)[0].target, target);
    }
}
