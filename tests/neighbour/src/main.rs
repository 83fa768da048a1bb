//! A neighbour: an extension written on the published `osquery-rust-ng`, with one small table. Tests autoload it beside
//! ours, to see that a foreign extension registers and answers while ours runs.

use std::collections::BTreeMap;
use std::io;

use osquery_rust_ng::plugin::{ColumnDef, ColumnOptions, ColumnType, Plugin, ReadOnlyTable};
use osquery_rust_ng::{ExtensionPluginRequest, ExtensionResponse, ExtensionStatus, Server};

/// The name it registers under.
const NAME: &str = "neighbour";

/// The table `neighbour_numbers`: three numbers and their names.
struct Numbers;

impl ReadOnlyTable for Numbers {
    fn name(&self) -> String {
        "neighbour_numbers".to_owned()
    }

    fn columns(&self) -> Vec<ColumnDef> {
        vec![
            ColumnDef::new("number", ColumnType::Integer, ColumnOptions::DEFAULT),
            ColumnDef::new("name", ColumnType::Text, ColumnOptions::DEFAULT),
        ]
    }

    fn generate(&self, _request: ExtensionPluginRequest) -> ExtensionResponse {
        let row = |(number, name): (u32, &str)| {
            BTreeMap::from([("number".to_owned(), number.to_string()), ("name".to_owned(), name.to_owned())])
        };
        let rows = [(1, "one"), (2, "two"), (3, "three")].map(row).to_vec();
        ExtensionResponse::new(ExtensionStatus::new(0, "OK".to_owned(), 0), rows)
    }

    fn shutdown(&self) {}
}

fn main() -> io::Result<()> {
    let socket = socket().ok_or_else(|| io::Error::other("usage: neighbour --socket PATH"))?;
    let mut server = Server::new(Some(NAME), &socket)?;
    server.register_plugin(Plugin::readonly_table(Numbers));
    server.run_with_signal_handling().map_err(io::Error::other)
}

/// The value of `--socket`; `--timeout`, `--interval` and `--verbose` are passed, too, and not needed here.
fn socket() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--socket" {
            return arguments.next();
        }
        if let Some(socket) = argument.strip_prefix("--socket=") {
            return Some(socket.to_owned());
        }
    }
    None
}
