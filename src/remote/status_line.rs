//! Lines of osqueryd's own log: as they are handed over, and as the server gets them. Pure.

use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

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

    /// The line as the server gets it: severity, line and unixTime are numbers, always.
    #[must_use]
    pub fn into_log_line(self, version: &str) -> String {
        json!({
            "hostIdentifier": self.h,
            "calendarTime": self.c,
            "unixTime": number(&self.u),
            "severity": number(&self.s),
            "filename": self.f,
            "line": number(&self.i),
            "message": self.m,
            "version": version,
        })
        .to_string()
    }
}

/// As osquery writes it: `Mon Nov 23 04:12:05 2026 UTC`.
fn calendar_time(at: OffsetDateTime) -> String {
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    let (hour, minute, second) = at.to_hms();
    format!(
        "{} {} {} {hour:02}:{minute:02}:{second:02} {} UTC",
        weekday.get(..3).unwrap_or_default(),
        month.get(..3).unwrap_or_default(),
        at.day(),
        at.year()
    )
}

fn number(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_has_the_members_and_types_that_servers_have_learnt() {
        let line = |json: &str| serde_json::from_str::<StatusLine>(json).unwrap().into_log_line("5.19.0");
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
        assert!(StatusLine::own_error("host", "lost").into_log_line("5").contains("\"severity\":2,"));
    }
}
