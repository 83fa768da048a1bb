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

impl Sources {
    /// How every stream stands now.
    #[must_use]
    pub fn stream_statuses(&self) -> Vec<StreamStatus> {
        buffer::stream_statuses(self).into_iter().map(|(status, _)| status).collect()
    }
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

/// A table's rows now: their values, in the order of its columns.
type Rows = Vec<Vec<Value>>;

/// The function that makes the rows of a table.
type MakeRows = fn(&Sources) -> Rows;

/// The value of a cell.
enum Value {
    Text(String),
    Number(i64),
}

/// A table as a plugin.
struct TablePlugin {
    table: &'static Table,
    rows: MakeRows,
    sources: Arc<Sources>,
}

/// All tables, and what makes their rows.
const ALL: [(&Table, MakeRows); 4] = [
    (&endpoints::TABLE, endpoints::rows),
    (&buffer::TABLE, buffer::rows),
    (&enrollment::TABLE, enrollment::rows),
    (&rejected::TABLE, rejected::rows),
];

/// All tables, for the registration.
pub fn tables() -> impl Iterator<Item = &'static Table> {
    ALL.into_iter().map(|(table, _)| table)
}

/// The plugins of all tables.
#[must_use]
pub fn plugins(sources: &Arc<Sources>) -> Vec<Box<dyn Plugin>> {
    let plugin =
        |(table, rows)| -> Box<dyn Plugin> { Box::new(TablePlugin { table, rows, sources: Arc::clone(sources) }) };
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
            Some("generate") => Reply::rows((self.rows)(&self.sources).into_iter().map(|row| self.row(row)).collect()),
            Some("columns") => Reply::rows(self.table.route()),
            // osqueryd's word for a table that can't be written to.
            Some("insert" | "update" | "delete") => Reply::row("status", "readonly"),
            other => Reply::no_such_action(&format!("the table {}", self.table.name), other),
        }
    }
}

impl TablePlugin {
    fn row(&self, values: Vec<Value>) -> StringMap {
        let cell = |(column, value): (&Column, Value)| {
            let text = match value {
                Value::Text(text) => redact(&text).into_owned(),
                Value::Number(number) => number.to_string(),
            };
            (column.name.to_owned(), text)
        };
        self.table.columns.iter().zip(values).map(cell).collect()
    }
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Text }
}

const fn integer(name: &'static str) -> Column {
    Column { name, kind: ColumnType::Integer }
}

const fn bigint(name: &'static str) -> Column {
    Column { name, kind: ColumnType::BigInt }
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
