//! The plugins that this extension offers, and how a call finds one.

use std::collections::BTreeMap;
use std::fmt;

use crate::shown::quoted;

/// A request or a row: string to string, as the Thrift interface has it.
pub type StringMap = BTreeMap<String, String>;

/// A map of these names and values. Each way of collecting one would bring a sort of its own, of five kilobytes of code.
#[must_use]
pub fn string_map(pairs: &[(&str, &str)]) -> StringMap {
    let mut map = StringMap::new();
    for &(name, value) in pairs {
        map.insert(name.to_owned(), value.to_owned());
    }
    map
}

/// What a registration tells osqueryd: each registry's plugins with their route information.
pub type Routes = BTreeMap<String, BTreeMap<String, Vec<StringMap>>>;

/// The name of the extension, and of its config, logger and distributed plugins. Tables have names of their own.
pub const NAME: &str = "remote_tls";

/// osquery's registries that we have plugins in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryName {
    /// Gives osqueryd its configuration.
    Config,
    /// Takes osqueryd's log lines.
    Logger,
    /// Fetches ad-hoc queries and takes their results.
    Distributed,
    /// Answers queries with rows: the tables.
    Table,
}

impl RegistryName {
    /// osquery's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Logger => "logger",
            Self::Distributed => "distributed",
            Self::Table => "table",
        }
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A table: its name is its plugin's.
#[derive(Clone, Debug)]
pub struct Table {
    /// The name in SQL.
    pub name: &'static str,
    /// The columns, in order.
    pub columns: Vec<Column>,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The name in SQL.
    pub name: &'static str,
    /// What its values are.
    pub kind: ColumnType,
}

/// osquery's types of columns, those that we need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Text in UTF-8.
    Text,
    /// A number of 32 bits.
    Integer,
    /// A number of 64 bits.
    BigInt,
}

impl Table {
    /// The route information, which is also the answer to `action=columns`.
    #[must_use]
    pub fn route(&self) -> Vec<StringMap> {
        // "op" are the column's options: none.
        let row = |column: &Column| {
            string_map(&[("id", "column"), ("name", column.name), ("type", column.kind.as_str()), ("op", "0")])
        };
        self.columns.iter().map(row).collect()
    }
}

impl ColumnType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Integer => "INTEGER",
            Self::BigInt => "BIGINT",
        }
    }
}

/// The routes of this extension: one plugin in each of the other registries, and these tables.
#[must_use]
pub fn routes(tables: impl IntoIterator<Item = Table>) -> Routes {
    let mut routes = Routes::new();
    let mut add = |registry: RegistryName, plugin: &str, route| {
        routes.entry(registry.to_string()).or_default().insert(plugin.to_owned(), route);
    };
    for registry in [RegistryName::Config, RegistryName::Logger, RegistryName::Distributed] {
        add(registry, NAME, Vec::new());
    }
    for table in tables {
        add(RegistryName::Table, table.name, table.route());
    }
    routes
}

/// The answer to a call: a status and, when its code is 0, rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 0 is success, 1 failure; the logger's `features` answers a bit mask here.
    pub code: i32,
    /// Why, when the code isn't 0.
    pub message: String,
    /// The rows of the answer, as columns and their values.
    pub rows: Vec<StringMap>,
}

impl Reply {
    /// Success without rows.
    #[must_use]
    pub fn ok() -> Self {
        Self { code: 0, message: "OK".to_owned(), rows: Vec::new() }
    }

    /// Success with these rows.
    #[must_use]
    pub fn rows(rows: Vec<StringMap>) -> Self {
        Self { rows, ..Self::ok() }
    }

    /// Success with one row of one column.
    #[must_use]
    pub fn row(column: &str, value: impl Into<String>) -> Self {
        let mut row = StringMap::new();
        row.insert(column.to_owned(), value.into());
        Self::rows(vec![row])
    }

    /// A bit mask in place of the code.
    #[must_use]
    pub fn mask(mask: i32) -> Self {
        Self { code: mask, ..Self::ok() }
    }

    /// Failure, with its reason.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), rows: Vec::new() }
    }

    /// Failure: `plugin` was asked for an action that it doesn't have, or for none.
    #[must_use]
    pub fn no_such_action(plugin: &str, action: Option<&str>) -> Self {
        match action {
            Some(action) => Self::failed(format!("{plugin} has no action {}", quoted(action))),
            None => Self::failed(format!("a request to {plugin} has nothing that it knows")),
        }
    }
}

/// One plugin. Called by several threads at the same time.
pub trait Plugin: Send + Sync {
    /// The registry it is in.
    fn registry(&self) -> RegistryName;

    /// The name under which osqueryd calls it.
    fn name(&self) -> &'static str {
        NAME
    }

    /// Answers one call with a request of names and values.
    fn call(&self, request: StringMap) -> Reply;
}

/// All plugins of this extension.
pub struct Registry(Vec<Box<dyn Plugin>>);

impl Registry {
    /// A registry of these plugins.
    #[must_use]
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Self(plugins)
    }

    /// Answers a call for the plugin `item` of `registry`.
    pub fn call(&self, registry: &str, item: &str, request: StringMap) -> Reply {
        match self.0.iter().find(|plugin| plugin.registry().as_str() == registry && plugin.name() == item) {
            Some(plugin) => plugin.call(request),
            None => {
                let (item, registry) = (quoted(item), quoted(registry));
                Reply::failed(format!("{NAME} has no plugin {item} in the registry {registry}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_an_unknown_plugin_fails_with_a_reason() {
        let reply = Registry::new(Vec::new()).call("logger", "no_such_plugin", StringMap::new());
        assert_eq!(reply, Reply::failed("remote_tls has no plugin \"no_such_plugin\" in the registry \"logger\""));
    }

    /// The fuzzer's find: a call's text of 16 KB made an answer of 70 KB, whose masking took ten times as much.
    #[test]
    fn a_call_s_words_are_repeated_on_one_line_and_not_whole() {
        let action = "\u{1b}\u{fffd}".repeat(8192);
        let Reply { message, .. } = Reply::no_such_action("it", Some(&action));
        assert!(message.starts_with(r#"it has no action "\u{1b}"#) && message.ends_with("…\""), "{message}");
        assert!(message.len() < 1000, "{message}");
        assert_eq!(Reply::no_such_action("it", None), Reply::failed("a request to it has nothing that it knows"));
    }
}
