//! What the server knows, and what it answers when no test has told it otherwise.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use super::answer::Answer;
use super::options::{Drain, Taken};
use super::recorded::{Endpoint, Recorded};

/// The rules that don't change while the server lives.
pub(super) struct Rules {
    pub(super) enroll_secret: Option<String>,
    pub(super) secret_name: String,
    pub(super) require_gzip: bool,
    pub(super) invalid_every: Option<u32>,
    pub(super) etags: bool,
    /// If this is set, accepted lines go here and are not kept in memory.
    pub(super) drain: Option<Drain>,
}

/// All that does.
#[derive(Default)]
pub(super) struct State {
    pub(super) config: Value,
    pub(super) queries: Vec<(String, String)>,
    pub(super) scripts: HashMap<Endpoint, VecDeque<Answer>>,
    pub(super) always: HashMap<Endpoint, Answer>,
    /// What no request with lines or results may contain, and what it is answered then.
    pub(super) refused: Option<(String, Answer)>,
    /// What is read of a body before [`Answer::from_head`].
    pub(super) body_limit: u64,
    pub(super) known: HashSet<String>,
    pub(super) given: Vec<String>,
    pub(super) next_node_key: Option<String>,
    pub(super) requests: Vec<Recorded>,
    pub(super) results: Vec<Value>,
    pub(super) statuses: Vec<Value>,
    pub(super) written: Vec<Value>,
    pub(super) connections: usize,
    pub(super) handshake_errors: Vec<String>,
    /// Goes up with everything that a waiting test may wait for.
    pub(super) changes: u64,
    pub(super) enrollments: usize,
    pub(super) configs_asked: u32,
}

/// A status and a body: all that a default answer is.
pub(super) type Reply = (u16, String);

impl State {
    /// The answer that a test has laid out for this request, if any.
    pub(super) fn planned(&mut self, endpoint: Endpoint) -> Option<Answer> {
        let scripted = self.scripts.get_mut(&endpoint).and_then(VecDeque::pop_front);
        scripted.or_else(|| self.always.get(&endpoint).cloned())
    }

    /// The answer to a request with something in it that is refused.
    pub(super) fn refusal(&self, request: &Recorded) -> Option<Answer> {
        let (text, answer) = self.refused.as_ref()?;
        let has_lines = matches!(request.endpoint, Endpoint::Log | Endpoint::DistributedWrite);
        let is_meant = has_lines && String::from_utf8_lossy(&request.body).contains(text.as_str());
        is_meant.then(|| answer.clone())
    }

    /// Does what the request asks for, and says what came of it.
    pub(super) fn reply(&mut self, rules: &Rules, request: &Recorded) -> Reply {
        if request.endpoint == Endpoint::Other {
            return ok(&json!({"foo": "bar"}));
        }
        let get = match request.method.as_str() {
            "POST" => false,
            "GET" if request.endpoint == Endpoint::Config => true,
            _ => return (405, json!({"error": "method not allowed"}).to_string()),
        };
        if request.endpoint == Endpoint::Log && rules.require_gzip && !is_gzip(request) {
            return refused("log requests must be compressed by gzip");
        }
        if !request.body.is_empty() && !request.json.as_ref().is_some_and(Value::is_object) {
            return refused("the body is not a JSON object");
        }
        if request.endpoint == Endpoint::Enroll {
            return self.enroll(rules, request);
        }
        let Some(node_key) = request.node_key().filter(|key| self.known.contains(key)) else { return invalid() };
        match request.endpoint {
            Endpoint::Config => self.config(rules, &node_key, request, get),
            Endpoint::Log => self.log(rules, request),
            Endpoint::DistributedRead => self.distributed_read(),
            _ => self.distributed_write(rules, request),
        }
    }

    fn enroll(&mut self, rules: &Rules, request: &Recorded) -> Reply {
        let secret = member(request, &rules.secret_name).and_then(Value::as_str);
        if rules.enroll_secret.is_some() && rules.enroll_secret.as_deref() != secret {
            return invalid();
        }
        let key = self.next_node_key.take().unwrap_or_else(|| {
            self.enrollments += 1;
            format!("node-key-{}", self.enrollments)
        });
        self.known.insert(key.clone());
        self.given.push(key.clone());
        ok(&json!({"node_key": key}))
    }

    fn config(&mut self, rules: &Rules, node_key: &str, request: &Recorded, as_text: bool) -> Reply {
        self.configs_asked += 1;
        if rules.invalid_every.is_some_and(|every| self.configs_asked.is_multiple_of(every.max(1))) {
            self.known.remove(node_key);
            return invalid();
        }
        match member(request, "etag").filter(|_| rules.etags) {
            _ if as_text => ok(&json!({"config": self.config.to_string()})),
            None => ok(&self.config),
            Some(known) => {
                let etag = etag(&self.config);
                if *known == etag {
                    return ok(&json!({"etag": "ok"}));
                }
                let mut config = self.config.clone();
                config["etag"] = etag.into();
                ok(&config)
            }
        }
    }

    fn log(&mut self, rules: &Rules, request: &Recorded) -> Reply {
        let Some(Value::Array(lines)) = member(request, "data") else { return refused("data is not a list") };
        match member(request, "log_type").and_then(Value::as_str) {
            Some("result") => self.take(rules, Taken::Results(lines)),
            Some("status") => self.take(rules, Taken::Statuses(lines)),
            _ => return refused("log_type is neither result nor status"),
        }
        ok(&json!({}))
    }

    fn distributed_read(&mut self) -> Reply {
        let queries = self.queries.drain(..).map(|(id, sql)| (id, Value::String(sql))).collect();
        ok(&json!({"queries": Value::Object(queries)}))
    }

    fn distributed_write(&mut self, rules: &Rules, request: &Recorded) -> Reply {
        if let Some(body) = &request.json {
            self.take(rules, Taken::Written(body));
        }
        ok(&json!({}))
    }

    fn take(&mut self, rules: &Rules, taken: Taken<'_>) {
        match (&rules.drain, taken) {
            (Some(drain), taken) => drain(taken),
            (None, Taken::Results(lines)) => self.results.extend_from_slice(lines),
            (None, Taken::Statuses(lines)) => self.statuses.extend_from_slice(lines),
            (None, Taken::Written(body)) => self.written.push(body.clone()),
        }
    }
}

/// What a configuration is known by: the same for the same text.
pub(super) fn etag(config: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    config.to_string().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Whether the body came compressed by gzip.
pub(super) fn is_gzip(request: &Recorded) -> bool {
    request.header("content-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip"))
}

fn member<'a>(request: &'a Recorded, name: &str) -> Option<&'a Value> {
    request.json.as_ref().and_then(|json| json.get(name))
}

fn ok(body: &Value) -> Reply {
    (200, body.to_string())
}

fn invalid() -> Reply {
    ok(&json!({"node_invalid": true}))
}

fn refused(why: &str) -> Reply {
    (400, json!({"error": why}).to_string())
}
