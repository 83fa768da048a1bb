//! Parses the command line, hands over, prints one line when that fails.

use std::process::ExitCode;

use osquery_remote_tls::cli::{Cli, Command};
use osquery_remote_tls::extension::registry::routes;
use osquery_remote_tls::plugins::tables::tables;
use osquery_remote_tls::{doctor, front, logging, worker};

/// sysexits.h's code for a command line that can't be used.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too, which go to stdout and end well. Nobody to tell if printing fails.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    logging::start(cli.verbosity());
    cli.name_unknown();
    if let Some(Command::Doctor(flags)) = cli.command {
        return doctor::run(&flags);
    }
    let ended = if cli.worker { worker::run(cli) } else { front::run(cli, routes(tables())) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("ending: {error:#}");
            ExitCode::FAILURE
        }
    }
}
