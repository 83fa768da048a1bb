//! What requests of the remote API carry. Pure.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::secret::Secret;
use crate::settings::Settings;

/// The two kinds of log requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogType {
    /// Rows of queries: differential, event and snapshot lines.
    Result,
    /// Status lines: osqueryd's own log.
    Status,
}

impl LogType {
    /// The `log_type` of a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Status => "status",
        }
    }
}

/// What a request carries, apart from the node key.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// Nothing but the node key.
    None,
    /// A JSON object, passed on as it is.
    Object(&'a str),
    /// Log lines, JSON values with commas between them.
    Lines(LogType, &'a str),
    /// A JSON object, or nothing else, by the settings that the request is made with.
    Made(&'a dyn Fn(&Settings) -> Option<String>),
}

/// Where the node key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// Into the body, as the member `node_key`.
    Body,
    /// Into the URL (`tls_node_api`); log requests have it in the body all the same.
    Url,
}

/// A request's body, in the pieces that are sent one behind the other: log lines stay where they are, since a copy of
/// half a megabyte costs more than all that is done with them.
#[derive(Debug, PartialEq, Eq)]
pub struct Body<'a> {
    head: String,
    lines: &'a str,
    tail: &'static str,
}

impl Body<'_> {
    fn whole(text: String) -> Self {
        Self { head: text, lines: "", tail: "" }
    }

    /// The body of a request that has none.
    #[must_use]
    pub fn none() -> Self {
        Self::whole(String::new())
    }

    /// The pieces, some of which may be empty.
    #[must_use]
    pub fn pieces(&self) -> [&str; 3] {
        [&self.head, self.lines, self.tail]
    }

    /// What stands before the lines, the node key in it; without lines, that is all of it.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The length of all pieces together, in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.pieces().map(str::len).iter().sum()
    }
}

impl fmt::Display for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces().iter().try_for_each(|piece| f.write_str(piece))
    }
}

/// The body of a request; the payload's own bytes are passed on unchanged.
#[must_use]
pub fn body<'a>(payload: Payload<'a>, node_key: &Secret, place: KeyPlace) -> Body<'a> {
    let key = || Value::from(node_key.expose()).to_string();
    match (payload, place) {
        (Payload::None | Payload::Made(_), KeyPlace::Body) => Body::whole(format!("{{\"node_key\":{}}}", key())),
        (Payload::None | Payload::Made(_), KeyPlace::Url) => Body::whole("{}".to_owned()),
        (Payload::Object(object), _) => object_body(object, node_key, place),
        (Payload::Lines(log_type, lines), _) => {
            let head = format!("{{\"node_key\":{},\"log_type\":\"{}\",\"data\":[", key(), log_type.as_str());
            Body { head, lines, tail: "]}" }
        }
    }
}

/// The body of a request that carries this JSON object.
#[must_use]
pub fn object_body(object: &str, node_key: &Secret, place: KeyPlace) -> Body<'static> {
    Body::whole(match place {
        KeyPlace::Url => object.to_owned(),
        KeyPlace::Body => with_member(object, "node_key", &Value::from(node_key.expose()).to_string()),
    })
}

/// The body of an enrollment.
#[must_use]
pub fn enroll_body(
    secret_name: &str,
    secret: &Secret,
    host_identifier: &str,
    platform_type: &str,
    host_details: Map<String, Value>,
) -> Body<'static> {
    let body = json!({
        secret_name: secret.expose(),
        "host_identifier": host_identifier,
        "platform_type": platform_type,
        "host_details": host_details,
    });
    Body::whole(body.to_string())
}

/// How many bytes a log request has apart from its lines and the commas between them, at most: for a node key of
/// up to 512 bytes as JSON.
pub const LOG_OVERHEAD: usize = 600;

/// An object's text with one member more, at its end; `object` is the text of a JSON object.
#[must_use]
pub fn with_member(object: &str, name: &str, value: &str) -> String {
    let object = object.trim_end();
    let head = object.strip_suffix('}').unwrap_or(object);
    let comma = if head.trim_end().ends_with('{') { "" } else { "," };
    format!("{head}{comma}\"{name}\":{value}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_carry_the_key_where_it_belongs() {
        let key = Secret::new("k\"1");
        let body = |payload, place| body(payload, &key, place).to_string();
        assert_eq!(body(Payload::None, KeyPlace::Body), r#"{"node_key":"k\"1"}"#);
        assert_eq!(body(Payload::None, KeyPlace::Url), "{}");
        let lines = "{\"a\":1},2";
        let log = r#"{"node_key":"k\"1","log_type":"status","data":[{"a":1},2]}"#;
        assert_eq!(body(Payload::Lines(LogType::Status, lines), KeyPlace::Body), log);
        assert_eq!(body(Payload::Lines(LogType::Status, lines), KeyPlace::Url), log);
    }

    #[test]
    fn a_payload_s_bytes_are_passed_on_unchanged() {
        let key = Secret::new("k-1");
        let add = |object: &str| body(Payload::Object(object), &key, KeyPlace::Body).to_string();
        assert_eq!(add("{}"), r#"{"node_key":"k-1"}"#);
        assert_eq!(
            add("{ \"n\" : 1.50e1 , \"o\":{\"p\":{}}} \n"),
            "{ \"n\" : 1.50e1 , \"o\":{\"p\":{}},\"node_key\":\"k-1\"}"
        );
        assert_eq!(body(Payload::Object("{ \"a\":1 }"), &key, KeyPlace::Url).to_string(), "{ \"a\":1 }");
    }
}
