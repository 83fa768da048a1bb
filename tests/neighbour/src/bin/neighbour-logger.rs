//! A logger extension as it would be written on the published `osquery-rust-ng`: it appends each line to a file,
//! the one that `NEIGHBOUR_LOG` names. The benchmarks measure ours against it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use osquery_rust_ng::Server;
use osquery_rust_ng::plugin::{LoggerPlugin, Plugin};

/// The name it registers under, its plugin's too.
const NAME: &str = "neighbour_logger";

/// Appends to a file.
struct FileLogger(Mutex<File>);

impl LoggerPlugin for FileLogger {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn log_string(&self, message: &str) -> Result<(), String> {
        let line = format!("{message}\n");
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).map_err(|error| error.to_string())
    }
}

fn main() -> io::Result<()> {
    let socket = socket().ok_or_else(|| io::Error::other("usage: neighbour-logger --socket PATH"))?;
    let log = std::env::var_os("NEIGHBOUR_LOG").ok_or_else(|| io::Error::other("NEIGHBOUR_LOG names no file"))?;
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    let mut server = Server::new(Some(NAME), &socket)?;
    server.register_plugin(Plugin::logger(FileLogger(Mutex::new(file))));
    server.run_with_signal_handling().map_err(io::Error::other)
}

/// The value of `--socket`, as osqueryd passes it.
fn socket() -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--socket");
    arguments.nth(1)
}
