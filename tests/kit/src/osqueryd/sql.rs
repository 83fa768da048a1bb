//! SQL: a fresh SQLite for each query, holding the tables that the query names.

use std::collections::BTreeSet;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params_from_iter};
use serde_json::{Value, json};

use super::rows::{Cell, Rows, TypedRow};
use super::worker::Worker;
use super::{Row, lock, tables};

/// The bit of a column's options that hides it.
const HIDDEN: u32 = 16;

/// A column's name and type.
type Column = (String, String);

impl Worker {
    /// Runs a query. The error is SQLite's text alone, as osqueryd shows it.
    pub(super) fn query(&self, sql: &str) -> Result<Rows, String> {
        let connection = self.prepared(sql).map_err(message)?;
        select(&connection, sql).map_err(message)
    }

    /// The names and types of a query's columns.
    pub(super) fn query_columns(&self, sql: &str) -> Result<Vec<Row>, String> {
        let connection = self.prepared(sql).map_err(message)?;
        columns_of(&connection, sql).map_err(message)
    }

    /// No lock is held while a table of an extension is asked for its rows.
    fn prepared(&self, sql: &str) -> rusqlite::Result<Connection> {
        let connection = Connection::open_in_memory()?;
        let named = words(sql);
        let attached = |table: &str| named.contains(&table.to_ascii_lowercase()) && !tables::is_disabled(self, table);
        for table in tables::TABLES.iter().filter(|table| attached(table.name)) {
            let columns: Vec<Column> = table.columns.split_whitespace().map(built_in_column).collect();
            fill(&connection, table.name, &columns, tables::rows(self, table.name))?;
        }
        for (name, routes) in self.extension_tables() {
            if attached(&name) {
                let columns: Vec<Column> = routes.iter().filter_map(extension_column).collect();
                fill(&connection, &name, &columns, self.generate(&name, &columns))?;
            }
        }
        Ok(connection)
    }

    fn extension_tables(&self) -> Vec<(String, Vec<Row>)> {
        let registry = lock(&self.registry);
        let routes = registry.extensions().values().filter_map(|extension| extension.routes.get("table"));
        routes.flatten().map(|(name, routes)| (name.clone(), routes.clone())).collect()
    }

    fn generate(&self, table: &str, columns: &[Column]) -> Vec<Vec<String>> {
        let constraint = |(name, kind): &Column| json!({"name": name, "list": [], "affinity": kind});
        let constraints: Value = columns.iter().map(constraint).collect();
        let used: Value = columns.iter().map(|(name, _)| json!(name)).collect();
        let context = json!({"constraints": constraints, "colsUsed": used}).to_string();
        let request = [("action", "generate".as_bytes()), ("context", context.as_bytes())];
        let outcome = self.registry_call("table", table, &request);
        if outcome.code != 0 {
            return Vec::new();
        }
        let value = |row: &Row, name: &String| row.get(name).cloned().unwrap_or_default();
        outcome.rows.iter().map(|row| columns.iter().map(|(name, _)| value(row, name)).collect()).collect()
    }
}

fn select(connection: &Connection, sql: &str) -> rusqlite::Result<Rows> {
    let mut statement = connection.prepare(sql)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut found = Rows { columns, rows: Vec::new() };
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut typed = TypedRow::new();
        for (at, name) in found.columns.iter().enumerate() {
            typed.insert(name.clone(), cell(row.get_ref(at)?));
        }
        found.rows.push(typed);
    }
    Ok(found)
}

/// A view knows the types of its columns.
fn columns_of(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Row>> {
    connection.execute(&format!("CREATE TEMP VIEW described AS {}", sql.trim().trim_end_matches(';')), [])?;
    let mut statement = connection.prepare("SELECT name, type FROM pragma_table_info('described')")?;
    let column = |row: &rusqlite::Row<'_>| {
        let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
        let kind = if kind.is_empty() { "TEXT".to_owned() } else { kind };
        Ok(Row::from([(name, kind)]))
    };
    statement.query_map([], column)?.collect()
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Text(String::new()),
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Real(number) => Cell::Double(number),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Cell::Text(String::from_utf8_lossy(bytes).into_owned()),
    }
}

/// Everything in the query that could be a table's name.
fn words(sql: &str) -> BTreeSet<String> {
    let words = sql.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect()
}

fn built_in_column(column: &str) -> Column {
    match column.strip_suffix('#') {
        Some(name) => (name.to_owned(), "BIGINT".to_owned()),
        None => (column.to_owned(), "TEXT".to_owned()),
    }
}

fn extension_column(route: &Row) -> Option<Column> {
    let is_column = route.get("id").is_some_and(|id| id == "column");
    let options: u32 = route.get("op").and_then(|op| op.parse().ok()).unwrap_or(0);
    let kind = route.get("type").cloned().unwrap_or_else(|| "TEXT".to_owned());
    (is_column && options & HIDDEN == 0).then_some((route.get("name")?.clone(), kind))
}

fn fill(connection: &Connection, name: &str, columns: &[Column], rows: Vec<Vec<String>>) -> rusqlite::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let list: Vec<String> = columns.iter().map(|(name, kind)| format!("{} {}", quoted(name), quoted(kind))).collect();
    connection.execute(&format!("CREATE TABLE {} ({})", quoted(name), list.join(", ")), [])?;
    let marks = vec!["?"; columns.len()].join(", ");
    let mut insert = connection.prepare(&format!("INSERT INTO {} VALUES ({marks})", quoted(name)))?;
    for row in rows {
        // SQLite turns the text into a number where the column is one; an empty one is NULL.
        let value = |(value, (_, kind)): (String, &Column)| (kind == "TEXT" || !value.is_empty()).then_some(value);
        insert.execute(params_from_iter(row.into_iter().zip(columns).map(value)))?;
    }
    Ok(())
}

fn message(error: rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg,
        rusqlite::Error::SqliteFailure(_, Some(message)) => message,
        other => other.to_string(),
    }
}
