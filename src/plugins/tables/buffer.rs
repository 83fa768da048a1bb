//! `remote_tls_buffer`: the lines that wait and what became of the others, a row a stream.

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Rows, Sources, Stream, Value, bigint, text};
use crate::extension::registry::Table;
use crate::journal::inspect::Oldest;
use crate::journal::{Counts, Limits};
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
    sources.streams.iter().map(|stream| row(stream, &limits(stream, &settings.logger))).collect()
}

fn row(stream: &Stream, limits: &Limits) -> Vec<Value> {
    // What exceeds the limits now goes at the next look of whoever keeps them; here it is gone already.
    stream.journal.keep_within(limits);
    let status = stream.journal.status();
    let counts = stream.counts(status.counts, status.waiting_lines);
    vec![
        stream.journal.name().into(),
        status.waiting_lines.into(),
        status.waiting_bytes.into(),
        status.oldest.as_ref().map_or(0, oldest_time).into(),
        counts.accepted.into(),
        counts.delivered.into(),
        counts.dropped.into(),
        counts.set_aside.into(),
        status.file_bytes.into(),
        limits.lines.unwrap_or(0).into(),
        limits.bytes.into(),
        limits.free_bytes.into(),
    ]
}

impl Stream {
    /// What became of lines, on both sides. A line that was taken by another process is counted as taken when it is seen.
    fn counts(&self, read: Counts, waiting: u64) -> Counts {
        match (self.written)() {
            Some(written) => read + written,
            // While this worker stands in for its front: what was seen here.
            None => {
                let found = self.journal.found();
                let seen = read.delivered + read.set_aside + read.dropped + waiting;
                Counts { accepted: seen.saturating_sub(found), ..read }
            }
        }
    }
}

fn limits(stream: &Stream, logger: &LoggerSettings) -> Limits {
    if stream.journal.name() == distributed::STREAM { distributed::limits(logger) } else { logger.limits() }
}

/// When the oldest record was made. A batch says it at its end, behind its rows.
fn oldest_time(oldest: &Oldest) -> i64 {
    let beginning = String::from_utf8_lossy(&oldest.beginning);
    match line_time(&beginning) {
        0 => time_at_end(&String::from_utf8_lossy(&oldest.ending)),
        time => time,
    }
}

/// The last `"unixTime":NUMBER` of a text that is the end of a record.
fn time_at_end(ending: &str) -> i64 {
    let Some((_, behind)) = ending.rsplit_once("\"unixTime\":") else { return 0 };
    let digits = behind.trim_start().trim_start_matches('"');
    let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
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
    fn a_batch_s_time_is_read_from_its_end() {
        let oldest = |beginning: &str, ending: &str| {
            oldest_time(&Oldest { beginning: beginning.into(), ending: ending.into(), length: 1 << 20 })
        };
        let cut = r#"{"diffResults":{"added":[{"unixTime":"9"#;
        assert_eq!(oldest(cut, r#"{"a":"b"}]},"name":"q","unixTime":1795407125,"epoch":0}"#), 1_795_407_125);
        assert_eq!(oldest(cut, "no time"), 0);
        assert_eq!(oldest(r#"{"unixTime":7}"#, ""), 7);
    }

    #[test]
    fn a_line_s_time_is_read_from_what_it_says() {
        assert_eq!(line_time(r#"{"name":"q","unixTime":1795407125,"columns":{"unixTime":"7"}}"#), 1_795_407_125);
        assert_eq!(line_time(r#"{"unixTime":"1795407125"}"#), 1_795_407_125);
        for silent in ["{}", "no JSON", r#"{"unixTime":null}"#, r#"{"unixTime":"soon"}"#, "[1]", ""] {
            assert_eq!(line_time(silent), 0, "{silent}");
        }
    }
}
