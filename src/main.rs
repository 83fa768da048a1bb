//! Parses the command line, hands over, prints one line when that fails.

use std::process::ExitCode;

use clap::Parser;
use osquery_remote_tls::cli::{Cli, Command, with_two_dashes};
use osquery_remote_tls::{doctor, logging, supervisor, worker};

/// sysexits.h's code for a command line that can't be used.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os().map(with_two_dashes)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too, which go to stdout and end well. Nobody to tell if printing fails.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    logging::start(cli.verbosity());
    if let Some(Command::Doctor(flags)) = cli.command {
        return doctor::run(&flags);
    }
    let ended = if cli.worker { worker::run(cli) } else { supervisor::run(cli) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("ending: {error:#}");
            ExitCode::FAILURE
        }
    }
}
