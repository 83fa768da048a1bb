//! `remote_tls_buffer`: the lines that wait and what became of the others, a row a stream.

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Rows, Sources, Value, bigint, text};
use crate::buffer::{Buffer, Limits};
use crate::extension::registry::Table;
use crate::plugins::distributed;
use crate::settings::LoggerSettings;

pub(super) const TABLE: Table = Table {
    name: "remote_tls_buffer",
    columns: &[
        text("stream"),
        bigint("waiting_lines"),
        bigint("waiting_bytes"),
        bigint("oldest_time"),
        bigint("accepted"),
        bigint("delivered"),
        bigint("dropped"),
        bigint("set_aside"),
        bigint("file_bytes"),
        bigint("max_lines"),
        bigint("max_bytes"),
        bigint("min_free_bytes"),
    ],
};

pub(super) fn rows(sources: &Sources) -> Rows {
    let settings = sources.node.flags.current();
    sources.buffers.iter().map(|buffer| row(buffer, &limits(buffer, &settings.logger))).collect()
}

fn row(buffer: &Buffer, limits: &Limits) -> Vec<Value> {
    let status = buffer.status();
    vec![
        buffer.name().into(),
        status.waiting_lines.into(),
        status.waiting_bytes.into(),
        status.oldest_line.as_deref().map_or(0, line_time).into(),
        status.counts.accepted.into(),
        status.counts.delivered.into(),
        status.counts.dropped.into(),
        status.counts.set_aside.into(),
        status.file_bytes.into(),
        limits.lines.unwrap_or(0).into(),
        limits.bytes.into(),
        limits.free_bytes.into(),
    ]
}

fn limits(buffer: &Buffer, logger: &LoggerSettings) -> Limits {
    if buffer.name() == distributed::STREAM { distributed::limits(logger) } else { logger.limits() }
}

/// When a line was made, in Unix seconds, as the line itself says it in `unixTime`; 0 for a line that doesn't say.
fn line_time(line: &str) -> i64 {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Line {
        #[serde(rename = "unixTime")]
        unix_time: Json,
    }
    // serde takes an array for a struct, too.
    let is_object = line.trim_start().starts_with('{');
    let line = is_object.then(|| serde_json::from_str::<Line>(line).ok()).flatten().unwrap_or_default();
    // Old versions write numbers as strings.
    let number = |time: &Json| time.as_i64().or_else(|| time.as_str()?.trim().parse().ok());
    number(&line.unix_time).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_s_time_is_read_from_what_it_says() {
        assert_eq!(line_time(r#"{"name":"q","unixTime":1795407125,"columns":{"unixTime":"7"}}"#), 1_795_407_125);
        assert_eq!(line_time(r#"{"unixTime":"1795407125"}"#), 1_795_407_125);
        for silent in ["{}", "no JSON", r#"{"unixTime":null}"#, r#"{"unixTime":"soon"}"#, "[1]", ""] {
            assert_eq!(line_time(silent), 0, "{silent}");
        }
    }
}
