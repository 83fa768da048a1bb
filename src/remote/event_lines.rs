//! The event lines that a batch line stands for. Pure.
//!
//! With `--logger_event_type=false` osqueryd hands a query's whole difference over in one call, which costs it a
//! fraction of the calls that a line a row costs. The server gets what it would have got: the same lines, byte for
//! byte, since every member is passed on as osqueryd has written it.

use std::fmt;
use std::iter;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A batch line, `{"diffResults": {"removed": [row…], "added": [row…]}, "name": …}`, taken apart.
pub struct EventLines<'a> {
    /// What each event line begins with: `{`, and the batch line's other members, each followed by a comma.
    head: String,
    rows: Vec<(&'static str, &'a str)>,
}

impl<'a> EventLines<'a> {
    /// `None` for any line but a batch line.
    #[must_use]
    pub fn of(line: &'a str) -> Option<Self> {
        if !line.contains(DIFFERENCE) {
            return None;
        }
        let Members(members) = serde_json::from_str(line).ok()?;
        let (differences, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|(name, _)| *name == DIFFERENCE);
        let [(_, difference)] = differences.as_slice() else { return None };
        let Members(actions) = serde_json::from_str(difference).ok()?;
        if !actions.iter().all(|(name, _)| matches!(*name, REMOVED | ADDED)) {
            return None;
        }
        let mut rows = Vec::new();
        for (action, name) in [("removed", REMOVED), ("added", ADDED)] {
            for (_, array) in actions.iter().filter(|(member, _)| *member == name) {
                let array: Vec<&'a RawValue> = serde_json::from_str(array).ok()?;
                rows.extend(array.into_iter().map(|row| (action, row.get())));
            }
        }
        let mut head = String::from("{");
        for (name, value) in others {
            head.extend([name, ":", value, ","]);
        }
        rows.iter().all(|(_, row)| row.starts_with('{')).then_some(Self { head, rows })
    }

    /// The lines, in osqueryd's order: removed rows first.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.rows.iter().map(|(action, row)| {
            let mut line = String::with_capacity(self.head.len() + row.len() + 40);
            line.extend([self.head.as_str(), "\"columns\":", row, ",\"action\":\"", action, "\"}"]);
            line
        })
    }
}

// Names of members, as JSON.
const DIFFERENCE: &str = "\"diffResults\"";
const REMOVED: &str = "\"removed\"";
const ADDED: &str = "\"added\"";

/// An object's members in order, names and values as they are written.
struct Members<'a>(Vec<(&'a str, &'a str)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let next = || map.next_entry::<&'de RawValue, &'de RawValue>().transpose();
                let members = iter::from_fn(next).map(|entry| entry.map(|(name, value)| (name.get(), value.get())));
                Ok(Members(members.collect::<Result<_, _>>()?))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(line: &str) -> Option<Vec<String>> {
        EventLines::of(line).map(|events| events.lines().collect())
    }

    #[test]
    fn a_batch_line_becomes_the_lines_that_osqueryd_would_have_written() {
        let batch = include_str!("../../tests/blackbox/samples/05_log_line_batch_diffresults.json").trim_end();
        let (_, rest) = batch.split_once("},\"name\"").unwrap();
        let rest = rest.trim_end_matches('}');
        let line = |row: &str, action: &str| {
            format!("{{\"name\"{rest}}},\"columns\":{{\"pid\":\"{row}\"}},\"action\":\"{action}\"}}")
        };
        let expected = vec![line("640", "removed"), line("812", "added"), line("813", "added")];
        assert_eq!(expand(batch), Some(expected));
    }

    #[test]
    fn bytes_stay_as_they_are_and_the_order_of_the_batch_s_members_does_not_matter() {
        let batch = r#"{"name":"a\u0041\/","x":1.50,"diffResults":{"added":[{"n":1e3,"p":"\ud83d\ude00 é"}],"removed":[]},"d":{"a":"b"}}"#;
        let expected =
            r#"{"name":"a\u0041\/","x":1.50,"d":{"a":"b"},"columns":{"n":1e3,"p":"\ud83d\ude00 é"},"action":"added"}"#;
        assert_eq!(expand(batch), Some(vec![expected.to_owned()]));
    }

    #[test]
    fn any_other_line_stays_whole() {
        for line in [
            r#"{"snapshot":[{"path":"\"diffResults\""}],"action":"snapshot","name":"q"}"#,
            r#"{"name":"diffResults","columns":{"a":"b"},"action":"added"}"#,
            r#"{"diffResults":{"removed":[],"added":[1]},"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":[],"changed":[]},"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":{}},"name":"q"}"#,
            r#"{"diffResults":[],"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":[]},"name":"#,
            r#""diffResults""#,
        ] {
            assert_eq!(expand(line), None, "{line}");
        }
    }

    #[test]
    fn an_empty_difference_is_no_line() {
        assert_eq!(expand(r#"{"diffResults":{"removed":[],"added":[]},"name":"q"}"#), Some(Vec::new()));
    }
}
