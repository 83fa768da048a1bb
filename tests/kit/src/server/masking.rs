//! Showing requests without what must not be shown: secrets and node keys.

use std::collections::HashSet;
use std::sync::Mutex;

use serde_json::Value;

use super::recorded::{Endpoint, Recorded, percent_decoded};
use crate::lock;

const SECRET: &str = "<secret>";
const NODE_KEY: &str = "<node_key>";
/// The members of an enroll request that tell about the host. Any other string in it is taken for the secret,
/// whatever the client calls it.
const ENROLL_MEMBERS: [&str; 4] = ["host_identifier", "platform_type", "host_details", "node_key"];

/// Masks requests, and learns the node keys from those it sees.
pub struct Masking {
    secret_name: String,
    node_keys: Mutex<HashSet<String>>,
}

impl Masking {
    /// Masks the secret by this name of its member, besides node keys.
    pub fn new(secret_name: &str) -> Masking {
        Masking { secret_name: secret_name.to_owned(), node_keys: Mutex::new(HashSet::new()) }
    }

    /// The request's target, body and reply, fit to be shown.
    pub fn shown(&self, request: &Recorded) -> Shown {
        self.learn(request);
        let body = match &request.json {
            Some(json) => self.masked(json, request.endpoint).to_string(),
            None if request.body.is_empty() => String::new(),
            // What can't be read can't be masked.
            None => format!("({} bytes, not JSON)", request.body.len()),
        };
        let reply = match serde_json::from_str(&request.answer_body) {
            Ok(json) => self.masked(&json, Endpoint::Other).to_string(),
            Err(_) if request.answer_body.contains("node_key") => "(not JSON, and holds a node key)".to_owned(),
            Err(_) => request.answer_body.clone(),
        };
        Shown { target: self.target(&request.target), body, reply }
    }

    fn learn(&self, request: &Recorded) {
        let reply: Option<Value> = serde_json::from_str(&request.answer_body).ok();
        let given = reply.as_ref().and_then(|json| json.get("node_key")).and_then(Value::as_str);
        let in_url = variables(&request.target).find(|(name, _)| *name == "node_key").map(|(_, key)| key);
        let in_header = request.header("authorization").and_then(|value| value.strip_prefix("NodeKey "));
        let in_body = request.json.as_ref().and_then(|json| json.get("node_key")).and_then(Value::as_str);
        let keys = [given, in_header, in_body].into_iter().flatten().map(str::to_owned);
        let keys = keys.chain(in_url.map(percent_decoded)).filter(|key| !key.is_empty());
        lock(&self.node_keys).extend(keys);
    }

    fn masked(&self, json: &Value, endpoint: Endpoint) -> Value {
        let mut json = json.clone();
        if let (Endpoint::Enroll, Value::Object(members)) = (endpoint, &mut json) {
            let secrets = members.iter_mut().filter(|(name, _)| !ENROLL_MEMBERS.contains(&name.as_str()));
            secrets.filter(|(_, value)| value.is_string()).for_each(|(_, value)| *value = SECRET.into());
        }
        self.mask_members(&mut json);
        json
    }

    fn mask_members(&self, json: &mut Value) {
        match json {
            Value::Object(members) => members.iter_mut().for_each(|(name, value)| match name.as_str() {
                "node_key" => *value = NODE_KEY.into(),
                name if name == self.secret_name => *value = SECRET.into(),
                _ => self.mask_members(value),
            }),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mask_members(item)),
            _ => {}
        }
    }

    fn target(&self, target: &str) -> String {
        let path_end = target.find(['?', '&']).unwrap_or(target.len());
        let known = lock(&self.node_keys);
        let segments = target[..path_end].split('/');
        let segments = segments.map(|part| if known.contains(&percent_decoded(part)) { NODE_KEY } else { part });
        let mut shown = segments.collect::<Vec<_>>().join("/");
        for variable in target[path_end..].split_inclusive(['?', '&']) {
            let (variable, separator) = match variable.strip_suffix(['?', '&']) {
                Some(bare) => (bare, &variable[bare.len()..]),
                None => (variable, ""),
            };
            // The secret's variable has the name that the client was told to use: all values are masked.
            match variable.split_once('=') {
                Some(("node_key", _)) => shown.extend(["node_key=", NODE_KEY]),
                Some((name, _)) => shown.extend([name, "=", SECRET]),
                None => shown.push_str(variable),
            }
            shown.push_str(separator);
        }
        shown
    }
}

/// A request's parts, fit to be shown.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// Path and query.
    pub target: String,
    /// The decoded body.
    pub body: String,
    /// The body answered.
    pub reply: String,
}

fn variables(target: &str) -> impl Iterator<Item = (&str, &str)> {
    target.split(['?', '&']).skip(1).filter_map(|variable| variable.split_once('='))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    fn request(target: &str, json: Value, answer: &str) -> Recorded {
        Recorded {
            endpoint: Endpoint::of(target),
            method: "POST".to_owned(),
            target: target.to_owned(),
            version: "HTTP/1.1".to_owned(),
            headers: vec![],
            body: json.to_string().into_bytes(),
            wire_bytes: 0,
            json: Some(json),
            connection: 1,
            answer_status: 200,
            answer_body: answer.to_owned(),
            at: Instant::now(),
        }
    }

    #[test]
    fn an_enrollment_shows_neither_secret_nor_key() {
        let masking = Masking::new("enroll_secret");
        let body = json!({"deploy_key": "s3cret", "host_identifier": "h", "host_details": {"a": {"b": "c"}}});
        let shown = masking.shown(&request("/enroll?deploy_key=s3%20cret", body, r#"{"node_key": "k1"}"#));
        assert_eq!(shown.target, "/enroll?deploy_key=<secret>");
        assert!(!shown.body.contains("s3cret") && shown.body.contains(r#""b":"c""#), "{}", shown.body);
        assert_eq!(shown.reply, r#"{"node_key":"<node_key>"}"#);
    }

    #[test]
    fn a_key_in_the_path_is_masked_with_and_without_escapes() {
        let masking = Masking::new("enroll_secret");
        let shown = masking.shown(&request("/a%2Fb/log?enroll_secret=x&node_key=a%2fb", json!({"data": []}), "{}"));
        assert_eq!(shown.target, "/<node_key>/log?enroll_secret=<secret>&node_key=<node_key>");
        let shown = masking.shown(&request("/a%2Fb/log&node_key=a%2fb", json!({"node_key": "a/b"}), "{}"));
        assert_eq!(shown.target, "/<node_key>/log&node_key=<node_key>");
        assert_eq!(shown.body, r#"{"node_key":"<node_key>"}"#);
    }
}
