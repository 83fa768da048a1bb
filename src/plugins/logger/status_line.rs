//! Lines of osqueryd's own log: as they are handed over, and as the server gets them. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::clock::calendar_time;
use crate::members;
use crate::settings::Placement;

/// What decorators found, and where it stands in a line.
#[derive(Clone, Debug, Default)]
pub struct Decoration {
    /// Values by column name, strings all.
    pub values: Arc<BTreeMap<String, String>>,
    /// Where they stand.
    pub placement: Placement,
}

/// A status line as osqueryd hands it over. Numbers may come as strings, from old versions.
#[derive(Deserialize)]
pub struct StatusLine {
    #[serde(default)]
    s: Value,
    #[serde(default)]
    f: String,
    #[serde(default)]
    i: Value,
    #[serde(default)]
    m: String,
    #[serde(default)]
    h: String,
    #[serde(default)]
    c: String,
    #[serde(default)]
    u: Value,
}

impl StatusLine {
    /// A line of our own: an error, now.
    #[must_use]
    pub fn own_error(host_identifier: &str, message: &str) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            s: 2.into(),
            f: "remote_tls".to_owned(),
            i: 0.into(),
            m: message.to_owned(),
            h: host_identifier.to_owned(),
            c: calendar_time(now),
            u: now.unix_timestamp().into(),
        }
    }

    /// The host identifier that osqueryd has put into it.
    #[must_use]
    pub fn host_identifier(&self) -> &str {
        &self.h
    }

    /// When it was written, in Unix seconds; 0 when it doesn't say.
    #[must_use]
    pub fn unix_time(&self) -> i64 {
        number(&self.u)
    }

    /// The line as the server gets it: severity, line and unixTime are numbers, always, unless a decoration at the
    /// top level has such a name and takes the place, as in osqueryd.
    #[must_use]
    pub fn into_log_line(self, version: &str, decoration: &Decoration) -> String {
        let members = [
            ("hostIdentifier", Value::from(self.h)),
            ("calendarTime", self.c.into()),
            ("unixTime", number(&self.u).into()),
            ("severity", number(&self.s).into()),
            ("filename", self.f.into()),
            ("line", number(&self.i).into()),
            ("message", self.m.into()),
            ("version", version.into()),
        ];
        let mut line: Map<String, Value> = members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        let values = &decoration.values;
        match decoration.placement {
            Placement::Member if values.is_empty() => {}
            Placement::Member => drop(line.insert("decorations".to_owned(), json!(**values))),
            Placement::TopLevel => line.extend(values.iter().map(|(name, value)| (name.clone(), json!(value)))),
        }
        Value::Object(line).to_string()
    }
}

fn number(value: &Value) -> i64 {
    members::number(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_has_the_members_and_types_that_servers_have_learnt() {
        let line = |json: &str| {
            serde_json::from_str::<StatusLine>(json).unwrap().into_log_line("5.19.0", &Decoration::default())
        };
        let expected = "{\"hostIdentifier\":\"h\",\"calendarTime\":\"Mon\",\"unixTime\":1795407125,\"severity\":1,\
                        \"filename\":\"scheduler.cpp\",\"line\":117,\"message\":\"a\\nb\",\"version\":\"5.19.0\"}";
        let numbers = r#"{"s":1,"f":"scheduler.cpp","i":117,"m":"a\nb","h":"h","c":"Mon","u":1795407125}"#;
        let strings = r#"{"s":"1","f":"scheduler.cpp","i":"117","m":"a\nb","h":"h","c":"Mon","u":"1795407125"}"#;
        assert_eq!(line(numbers), expected);
        assert_eq!(line(strings), expected);
    }

    #[test]
    fn a_line_of_our_own_has_osquery_s_calendar_time() {
        let at = OffsetDateTime::from_unix_timestamp(1_795_407_125).unwrap();
        assert_eq!(calendar_time(at), "Mon Nov 23 04:12:05 2026 UTC");
        let line = StatusLine::own_error("host", "lost").into_log_line("5", &Decoration::default());
        assert!(line.contains("\"severity\":2,"), "{line}");
    }

    #[test]
    fn decorations_stand_behind_the_rest_or_among_it() {
        let line = |placement, values: &[(&str, &str)]| {
            let values = values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            let decoration = Decoration { values: Arc::new(values), placement };
            let line: StatusLine =
                serde_json::from_str(r#"{"s":1,"f":"f","i":7,"m":"m","h":"h","c":"c","u":9}"#).unwrap();
            line.into_log_line("5", &decoration)
        };
        let plain = "{\"hostIdentifier\":\"h\",\"calendarTime\":\"c\",\"unixTime\":9,\"severity\":1,\"filename\":\"f\",\
                     \"line\":7,\"message\":\"m\",\"version\":\"5\"";
        let values = [("b", "1"), ("a", "x\"y")];
        assert_eq!(line(Placement::Member, &[]), format!("{plain}}}"));
        assert_eq!(line(Placement::TopLevel, &[]), format!("{plain}}}"));
        assert_eq!(
            line(Placement::Member, &values),
            format!("{plain},\"decorations\":{{\"a\":\"x\\\"y\",\"b\":\"1\"}}}}")
        );
        assert_eq!(line(Placement::TopLevel, &values), format!("{plain},\"a\":\"x\\\"y\",\"b\":\"1\"}}"));
        assert!(line(Placement::TopLevel, &[("line", "mine")]).contains("\"line\":\"mine\",\"message\""));
    }
}
