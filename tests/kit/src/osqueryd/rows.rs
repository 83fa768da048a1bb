//! Typed rows of a query, and the difference between two runs of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Row;

/// One value as SQLite typed it. NULL is an empty text to osquery.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Integer(i64),
    Double(f64),
    Text(String),
}

/// A row by its columns' names: sorted, as osquery keeps them.
pub(super) type TypedRow = BTreeMap<String, Cell>;

/// What a query returned.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// The columns in the query's order, which only distributed results keep.
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<TypedRow>,
}

/// What a run changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Difference {
    pub(super) removed: Vec<TypedRow>,
    pub(super) added: Vec<TypedRow>,
}

impl Cell {
    /// The value as everything but `logger_numerics` shows it.
    pub(super) fn text(&self) -> String {
        match self {
            Cell::Integer(number) => number.to_string(),
            Cell::Double(number) => format!("{number:?}"),
            Cell::Text(text) => text.clone(),
        }
    }

    fn json(&self, numerics: bool) -> Value {
        match self {
            Cell::Integer(number) if numerics => json!(number),
            Cell::Double(number) if numerics => json!(number),
            _ => Value::String(self.text()),
        }
    }

    /// As osquery writes the results of differential queries: control characters as `\x0A`.
    pub(super) fn escape(&mut self) {
        let Cell::Text(text) = self else { return };
        if text.bytes().any(|byte| byte < 0x20) {
            let escaped = text.chars().map(|c| match c as u32 {
                code @ 0..0x20 => format!("\\x{code:02X}"),
                _ => c.to_string(),
            });
            *text = escaped.collect();
        }
    }
}

/// The row as strings.
pub(super) fn plain(row: &TypedRow) -> Row {
    row.iter().map(|(name, cell)| (name.clone(), cell.text())).collect()
}

/// The row as an object, its members sorted.
pub(super) fn object(row: &TypedRow, numerics: bool) -> Value {
    Value::Object(row.iter().map(|(name, cell)| (name.clone(), cell.json(numerics))).collect())
}

/// The rows as an array of objects.
pub(super) fn array(rows: &[TypedRow], numerics: bool) -> Value {
    rows.iter().map(|row| object(row, numerics)).collect()
}

impl Rows {
    /// The rows as distributed results have them: strings, in the query's order.
    pub(super) fn in_order(&self) -> Value {
        let ordered = |row: &TypedRow| -> Value {
            let members = self.columns.iter().filter_map(|name| Some((name.clone(), row.get(name)?.json(false))));
            Value::Object(members.collect::<Map<String, Value>>())
        };
        self.rows.iter().map(ordered).collect()
    }
}

/// Rows as the backing store keeps them.
pub(super) fn stored(rows: &[TypedRow]) -> String {
    array(rows, true).to_string()
}

/// The inverse of [`stored`]; what cannot be read counts as no rows.
pub(super) fn restored(text: &str) -> Vec<TypedRow> {
    let rows: Vec<Map<String, Value>> = serde_json::from_str(text).unwrap_or_default();
    let cell = |value: Value| match value {
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Cell::Integer(integer),
            None => Cell::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Cell::Text(text),
        other => Cell::Text(other.to_string()),
    };
    rows.into_iter().map(|row| row.into_iter().map(|(name, value)| (name, cell(value))).collect()).collect()
}

/// Rows now and not before, in their order, and rows before and not now, sorted; equal rows are counted.
pub(super) fn difference(before: &[TypedRow], now: &[TypedRow]) -> Difference {
    let mut old: BTreeMap<String, Vec<&TypedRow>> = BTreeMap::new();
    for row in before {
        old.entry(object(row, true).to_string()).or_default().push(row);
    }
    let mut added = Vec::new();
    for row in now {
        if old.get_mut(&object(row, true).to_string()).and_then(Vec::pop).is_none() {
            added.push(row.clone());
        }
    }
    Difference { removed: old.into_values().flatten().cloned().collect(), added }
}

#[cfg(test)]
mod tests {
    use super::{Cell, TypedRow, difference, restored, stored};

    fn row(number: i64, text: &str) -> TypedRow {
        TypedRow::from([("n".to_owned(), Cell::Integer(number)), ("t".to_owned(), Cell::Text(text.to_owned()))])
    }

    #[test]
    fn the_difference_counts_equal_rows() {
        let before = [row(1, "a"), row(1, "a"), row(2, "b")];
        let now = [row(3, "c"), row(1, "a"), row(3, "c")];
        let found = difference(&before, &now);
        assert_eq!(found.added, [row(3, "c"), row(3, "c")]);
        assert_eq!(found.removed, [row(1, "a"), row(2, "b")]);
        assert_eq!(difference(&now, &now).added, []);
    }

    #[test]
    fn the_store_gives_back_what_it_was_given() {
        let mut rows = vec![row(-1, "ä\"\\"), row(2, "")];
        rows[0].insert("d".to_owned(), Cell::Double(2.5));
        assert_eq!(restored(&stored(&rows)), rows);
    }

    #[test]
    fn control_characters_are_escaped_and_others_are_not() {
        let mut cell = Cell::Text("a\nb é".to_owned());
        cell.escape();
        assert_eq!(cell, Cell::Text("a\\x0Ab é".to_owned()));
    }
}
