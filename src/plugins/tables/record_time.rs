//! When a record of a journal was made, as it says itself.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::journal::inspect::Oldest;
use crate::members;

/// When the oldest record was made, in Unix seconds; 0 when it doesn't say. A batch says it at its end, behind its rows.
pub(super) fn oldest_time(oldest: &Oldest) -> i64 {
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
    struct Line<'a> {
        #[serde(borrow, rename = "unixTime")]
        unix_time: Option<&'a RawValue>,
    }
    // serde takes an array for a struct, too.
    let is_object = line.trim_start().starts_with('{');
    let line = is_object.then(|| serde_json::from_str::<Line<'_>>(line).ok()).flatten().unwrap_or_default();
    line.unix_time.and_then(|time| members::number(time.get())).unwrap_or(0)
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
