//! Lines of osqueryd's own log: as they are handed over, and as the server gets them. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
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

/// The status lines of a call, as they are written: each is read when its turn comes, since one without a word takes fifty
/// times its size.
pub(super) struct StatusLines<'a> {
    written: Vec<&'a RawValue>,
    /// When the youngest was written, in Unix seconds; 0 when none says so.
    pub(super) newest: i64,
    /// What the last one has.
    pub(super) host_identifier: Option<String>,
}

impl<'a> StatusLines<'a> {
    /// Those of an array in which each item is one.
    pub(super) fn of(log: &'a str) -> serde_json::Result<Self> {
        let written: Vec<&RawValue> = serde_json::from_str(log)?;
        let (mut newest, mut host_identifier) = (None, None);
        for line in &written {
            let line: StatusLine = serde_json::from_str(line.get())?;
            newest = newest.max(Some(line.unix_time()));
            host_identifier = Some(line.h);
        }
        Ok(Self { written, newest: newest.unwrap_or_default(), host_identifier })
    }

    pub(super) fn each(self) -> impl Iterator<Item = StatusLine> {
        self.written.into_iter().filter_map(|line| serde_json::from_str(line.get()).ok())
    }
}

/// A status line as osqueryd hands it over. Numbers may come as strings, from old versions.
#[derive(Deserialize)]
pub struct StatusLine {
    #[serde(default, deserialize_with = "number")]
    s: i64,
    #[serde(default)]
    f: String,
    #[serde(default, deserialize_with = "number")]
    i: i64,
    #[serde(default)]
    m: String,
    #[serde(default)]
    h: String,
    #[serde(default)]
    c: String,
    #[serde(default, deserialize_with = "number")]
    u: i64,
}

impl StatusLine {
    /// A line of our own: an error, now.
    #[must_use]
    pub fn own_error(host_identifier: &str, message: &str) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            s: 2,
            f: "remote_tls".to_owned(),
            i: 0,
            m: message.to_owned(),
            h: host_identifier.to_owned(),
            c: calendar_time(now),
            u: now.unix_timestamp(),
        }
    }

    /// When it was written, in Unix seconds; 0 when it doesn't say.
    #[must_use]
    pub fn unix_time(&self) -> i64 {
        self.u
    }

    /// The line as the server gets it: severity, line and unixTime are numbers, always, unless a decoration at the
    /// top level has such a name and takes the place, as in osqueryd.
    #[must_use]
    pub fn into_log_line(self, version: &str, decoration: &Decoration) -> String {
        let members = [
            ("hostIdentifier", Value::from(self.h)),
            ("calendarTime", self.c.into()),
            ("unixTime", self.u.into()),
            ("severity", self.s.into()),
            ("filename", self.f.into()),
            ("line", self.i.into()),
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

/// 0 for what is none. Whatever stands there, no tree is made of it.
fn number<'a, D: Deserializer<'a>>(deserializer: D) -> Result<i64, D::Error> {
    Ok(members::number(<&RawValue>::deserialize(deserializer)?.get()).unwrap_or(0))
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
    fn what_is_no_number_is_0() {
        for (written, number) in [
            ("-7", -7),
            (r#"" 7\n""#, 7),
            (r#""\u0037""#, 7),
            ("9223372036854775807", i64::MAX),
            ("9223372036854775808", 0),
            ("7.0", 0),
            ("7e0", 0),
            ("-0", 0),
            ("null", 0),
            ("true", 0),
            (r#""seven""#, 0),
            ("[7]", 0),
            ("{}", 0),
        ] {
            let line: StatusLine = serde_json::from_str(&format!(r#"{{"u": {written} }}"#)).unwrap();
            assert_eq!(line.u, number, "{written}");
        }
    }

    #[test]
    fn the_lines_of_a_call_are_all_of_them_or_none() {
        let log = r#"[{"u":7,"h":"a","m":"1"}, {"u":9,"m":"2"},{"u":"8","h":"c","m":"3"}]"#;
        let lines = StatusLines::of(log).unwrap();
        assert_eq!((lines.newest, lines.host_identifier.as_deref()), (9, Some("c")));
        assert_eq!(lines.each().map(|line| line.m).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(StatusLines::of(r#"[{"u":-7}]"#).unwrap().newest, -7);
        let none = StatusLines::of("[]").unwrap();
        assert_eq!((none.newest, none.host_identifier, none.written.len()), (0, None, 0));
        for log in ["", "{}", "[{}", r#"[{"m":"1"},7]"#, r#"[{"m":7}]"#] {
            assert!(StatusLines::of(log).is_err(), "{log}");
        }
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
