//! The tables, a file a table: what this extension knows of itself, for SQL.
//!
//! A table asks neither the server nor osqueryd, which may itself be in the middle of a query of ours that
//! names the table. Every cell of text is masked here, whatever it holds. docs/tables.md is what operators read.

mod buffer;
mod endpoints;
mod enrollment;
mod record_time;
mod rejected;

use std::path::PathBuf;
use std::sync::Arc;

pub use self::buffer::StreamStatus;
use crate::extension::registry::{Column, ColumnType, Plugin, RegistryName, Reply, StringMap, Table};
use crate::journal::{Counts, Reader};
use crate::line_count::LineCounter;
use crate::plugins::logger::Backlog;
use crate::remote::Node;
use crate::secret::redact;

/// Where the rows come from.
pub struct Sources {
    /// Requests and the enrollment.
    pub node: Arc<Node>,
    /// The streams of lines, in the order of the rows.
    pub streams: Vec<Stream>,
    /// The directory of their journals.
    pub directory: PathBuf,
}

/// A stream of lines.
pub struct Stream {
    /// The journal of the lines that wait.
    pub journal: Arc<Reader<LineCounter>>,
    /// What waits behind it, of the results.
    pub backlog: Option<Arc<Backlog>>,
    /// What was written to it.
    pub written: CountWritten,
}

/// What the writing side of a journal has counted since this worker began; `None` when it can't be asked.
pub type CountWritten = Box<dyn Fn() -> Option<Counts> + Send + Sync>;

/// A table whose rows are made of an `R` each.
struct TableOf<R: 'static> {
    name: &'static str,
    /// The columns, in order.
    columns: &'static [ColumnOf<R>],
    /// What the rows are made of now, in order.
    rows: fn(&Sources) -> Vec<R>,
}

/// A column, and its value in the row that is made of an `R`.
struct ColumnOf<R>(Column, fn(&R) -> Value);

/// The value of a cell.
enum Value {
    Text(String),
    Number(i64),
}

/// A table, whatever its rows are made of.
trait AnyTable: Sync {
    fn table(&self) -> Table;

    /// Its rows now: their values, in the order of the columns.
    fn rows(&self, sources: &Sources) -> Vec<Vec<Value>>;
}

/// A table as a plugin.
struct TablePlugin {
    table: Table,
    source: &'static dyn AnyTable,
    sources: Arc<Sources>,
}

/// All tables.
static ALL: [&dyn AnyTable; 4] = [&endpoints::TABLE, &buffer::TABLE, &enrollment::TABLE, &rejected::TABLE];

/// All tables, for the registration.
pub fn tables() -> impl Iterator<Item = Table> {
    ALL.into_iter().map(AnyTable::table)
}

/// The plugins of all tables.
#[must_use]
pub fn plugins(sources: &Arc<Sources>) -> Vec<Box<dyn Plugin>> {
    let plugin = |source: &'static dyn AnyTable| -> Box<dyn Plugin> {
        Box::new(TablePlugin { table: source.table(), source, sources: Arc::clone(sources) })
    };
    ALL.into_iter().map(plugin).collect()
}

impl Plugin for TablePlugin {
    fn registry(&self) -> RegistryName {
        RegistryName::Table
    }

    fn name(&self) -> &'static str {
        self.table.name
    }

    fn call(&self, request: StringMap) -> Reply {
        match request.get("action").map(String::as_str) {
            // Constraints are osqueryd's to apply: there is nothing to be saved by applying them here, too.
            Some("generate") => {
                Reply::rows(self.source.rows(&self.sources).into_iter().map(|values| self.row(values)).collect())
            }
            Some("columns") => Reply::rows(self.table.route()),
            // osqueryd's word for a table that can't be written to.
            Some("insert" | "update" | "delete") => Reply::row("status", "readonly"),
            other => Reply::no_such_action(&format!("the table {}", self.table.name), other),
        }
    }
}

impl<R> AnyTable for TableOf<R> {
    fn table(&self) -> Table {
        Table { name: self.name, columns: self.columns.iter().map(|ColumnOf(column, _)| *column).collect() }
    }

    fn rows(&self, sources: &Sources) -> Vec<Vec<Value>> {
        let row = |of: &R| self.columns.iter().map(|ColumnOf(_, value)| value(of)).collect();
        (self.rows)(sources).iter().map(row).collect()
    }
}

impl TablePlugin {
    /// A row as it is answered.
    fn row(&self, values: Vec<Value>) -> StringMap {
        let mut row = StringMap::new();
        for (column, value) in self.table.columns.iter().zip(values) {
            let text = match value {
                Value::Text(text) => redact(&text).into_owned(),
                Value::Number(number) => number.to_string(),
            };
            row.insert(column.name.to_owned(), text);
        }
        row
    }
}

/// A column of text.
const fn text<R>(name: &'static str, value: fn(&R) -> Value) -> ColumnOf<R> {
    ColumnOf(Column { name, kind: ColumnType::Text }, value)
}

/// A column of small numbers.
const fn integer<R>(name: &'static str, value: fn(&R) -> Value) -> ColumnOf<R> {
    ColumnOf(Column { name, kind: ColumnType::Integer }, value)
}

/// A column of numbers.
const fn bigint<R>(name: &'static str, value: fn(&R) -> Value) -> ColumnOf<R> {
    ColumnOf(Column { name, kind: ColumnType::BigInt }, value)
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// SQL has no larger integers.
impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}
