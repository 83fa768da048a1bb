//! Result and status lines, member for member as osqueryd writes them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::calendar;
use super::rows::{Difference, TypedRow, array, object};

/// One run of a scheduled query, ready to be logged.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) identifier: String,
    pub(super) time: u64,
    pub(super) epoch: u64,
    pub(super) counter: u64,
    pub(super) decorations: BTreeMap<String, String>,
    pub(super) result: Outcome,
}

/// What the run found.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Snapshot(Vec<TypedRow>),
    Difference(Difference),
}

/// The flags that shape the lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// `logger_event_type`.
    pub(super) event_type: bool,
    /// `logger_snapshot_event_type`.
    pub(super) snapshot_event_type: bool,
    /// `logger_numerics`.
    pub(super) numerics: bool,
    /// `decorations_top_level`.
    pub(super) top_level: bool,
}

/// One line of osqueryd's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// 0 is information, 1 a warning, 2 an error.
    pub severity: u8,
    /// The source file's name.
    pub file: String,
    /// The line in that file.
    pub line: u32,
    /// The text.
    pub message: String,
    /// Seconds since 1970.
    pub unix_time: u64,
}

impl StatusLine {
    /// A line written now.
    pub fn new(severity: u8, file: &str, line: u32, message: &str) -> StatusLine {
        let (file, message) = (file.to_owned(), message.to_owned());
        StatusLine { severity, file, line, message, unix_time: calendar::unix_time() }
    }
}

/// The `log` parameter of a `status` call.
pub(super) fn status_parameter(lines: &[StatusLine], identifier: &str) -> String {
    let one = |line: &StatusLine| {
        json!({
            "s": line.severity, "f": line.file, "i": line.line, "m": line.message, "h": identifier,
            "c": calendar::calendar_time(line.unix_time), "u": line.unix_time,
        })
    };
    lines.iter().map(one).collect::<Value>().to_string()
}

impl Item {
    /// The lines of this run; there may be none.
    pub(super) fn lines(&self, shape: Shape) -> Vec<String> {
        match &self.result {
            Outcome::Snapshot(rows) if shape.snapshot_event_type => self.events("snapshot", rows, shape),
            Outcome::Snapshot(rows) => {
                let mut line = Map::new();
                line.insert("snapshot".to_owned(), array(rows, shape.numerics));
                line.insert("action".to_owned(), json!("snapshot"));
                vec![self.finished(line, shape)]
            }
            Outcome::Difference(found) if shape.event_type => {
                let mut lines = self.events("removed", &found.removed, shape);
                lines.extend(self.events("added", &found.added, shape));
                lines
            }
            Outcome::Difference(found) => {
                let removed = array(&found.removed, shape.numerics);
                let added = array(&found.added, shape.numerics);
                let mut line = Map::new();
                line.insert("diffResults".to_owned(), json!({"removed": removed, "added": added}));
                vec![self.finished(line, shape)]
            }
        }
    }

    fn events(&self, action: &str, rows: &[TypedRow], shape: Shape) -> Vec<String> {
        let one = |row: &TypedRow| {
            let mut line = Map::new();
            self.add_fields(&mut line, shape);
            line.insert("columns".to_owned(), object(row, shape.numerics));
            line.insert("action".to_owned(), json!(action));
            Value::Object(line).to_string()
        };
        rows.iter().map(one).collect()
    }

    fn finished(&self, mut line: Map<String, Value>, shape: Shape) -> String {
        self.add_fields(&mut line, shape);
        Value::Object(line).to_string()
    }

    fn add_fields(&self, line: &mut Map<String, Value>, shape: Shape) {
        line.insert("name".to_owned(), json!(self.name));
        line.insert("hostIdentifier".to_owned(), json!(self.identifier));
        line.insert("calendarTime".to_owned(), json!(calendar::calendar_time(self.time)));
        line.insert("unixTime".to_owned(), json!(self.time));
        line.insert("epoch".to_owned(), json!(self.epoch));
        line.insert("counter".to_owned(), json!(self.counter));
        line.insert("numerics".to_owned(), json!(shape.numerics));
        if self.decorations.is_empty() {
            return;
        }
        if shape.top_level {
            line.extend(self.decorations.iter().map(|(name, value)| (name.clone(), json!(value))));
        } else {
            line.insert("decorations".to_owned(), json!(self.decorations));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Item, Outcome, Shape, StatusLine, status_parameter};
    use crate::osqueryd::rows::{Cell, Difference, TypedRow};

    const SHAPE: Shape = Shape { event_type: true, snapshot_event_type: false, numerics: false, top_level: false };

    fn row(value: i64) -> TypedRow {
        TypedRow::from([("x".to_owned(), Cell::Integer(value)), ("e".to_owned(), Cell::Text(String::new()))])
    }

    fn item(result: Outcome) -> Item {
        let decorations = BTreeMap::from([("deco".to_owned(), "dv".to_owned())]);
        let (name, identifier) = ("q".to_owned(), "host".to_owned());
        Item { name, identifier, time: 1_795_409_106, epoch: 0, counter: 1, decorations, result }
    }

    const FIELDS: &str = concat!(
        r#""name":"q","hostIdentifier":"host","calendarTime":"Mon Nov 23 04:45:06 2026 UTC","unixTime":1795409106,"#,
        r#""epoch":0,"counter":1,"numerics":false,"decorations":{"deco":"dv"}"#
    );

    #[test]
    fn events_are_a_line_a_row_and_removed_ones_come_first() {
        let lines = item(Outcome::Difference(Difference { removed: vec![row(1)], added: vec![row(2)] })).lines(SHAPE);
        let line = |value, action| format!(r#"{{{FIELDS},"columns":{{"e":"","x":"{value}"}},"action":"{action}"}}"#);
        assert_eq!(lines, [line(1, "removed"), line(2, "added")]);
    }

    #[test]
    fn without_event_type_a_difference_is_one_line() {
        let shape = Shape { event_type: false, ..SHAPE };
        let lines = item(Outcome::Difference(Difference { removed: vec![], added: vec![row(2)] })).lines(shape);
        let results = r#"{"removed":[],"added":[{"e":"","x":"2"}]}"#;
        assert_eq!(lines, [format!(r#"{{"diffResults":{results},{FIELDS}}}"#)]);
    }

    #[test]
    fn a_snapshot_is_one_line_even_when_it_is_empty() {
        let lines = item(Outcome::Snapshot(vec![])).lines(SHAPE);
        assert_eq!(lines, [format!(r#"{{"snapshot":[],"action":"snapshot",{FIELDS}}}"#)]);
    }

    #[test]
    fn decorations_can_stand_in_the_line_itself_and_numbers_can_be_numbers() {
        let shape = Shape { top_level: true, numerics: true, ..SHAPE };
        let lines = item(Outcome::Difference(Difference { removed: vec![], added: vec![row(2)] })).lines(shape);
        let fields = FIELDS.replace(r#""decorations":{"deco":"dv"}"#, r#""deco":"dv""#).replace("false", "true");
        assert_eq!(lines, [format!(r#"{{{fields},"columns":{{"e":"","x":2}},"action":"added"}}"#)]);
    }

    #[test]
    fn status_lines_are_handed_over_with_one_letter_names() {
        let line = StatusLine { unix_time: 1_795_409_106, ..StatusLine::new(1, "scheduler.cpp", 117, "m") };
        let expected = concat!(
            r#"[{"s":1,"f":"scheduler.cpp","i":117,"m":"m","h":"host","c":"Mon Nov 23 04:45:06 2026 UTC","#,
            r#""u":1795409106}]"#
        );
        assert_eq!(status_parameter(&[line], "host"), expected);
    }
}
