//! Parses the command line, hands over, prints one line when that fails.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use osquery_remote_tls::cli::{Cli, Command, INTRODUCTION};
use osquery_remote_tls::extension::registry::routes;
use osquery_remote_tls::help::wrapped;
use osquery_remote_tls::plugins::tables::tables;
use osquery_remote_tls::{commands, doctor, front, logging, platform, refresh, worker};

/// sysexits.h's code for a command line that can't be used.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 && io::stdin().is_terminal() && io::stdout().is_terminal() {
        // If that fails, no place is left to say so.
        let _ = io::stdout().write_all(INTRODUCTION.as_bytes());
        return USAGE.into();
    }
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too, which go to stdout and end well. If printing fails, no place is left
            // to say so.
            let text = wrapped(&error.render().to_string());
            if error.use_stderr() {
                let _ = io::stderr().write_all(text.as_bytes());
                return USAGE.into();
            }
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
    };
    logging::start(cli.verbosity());
    cli.name_unknown();
    match &cli.command {
        Some(Command::Doctor(flags)) => return doctor::run(flags),
        Some(Command::Refresh(flags)) => return refresh::run(flags),
        Some(Command::Logger(command)) => return commands::logger::run(command),
        Some(Command::Flare(flags)) => return commands::flare::run(flags),
        Some(Command::Status(flags)) => return commands::status::run(flags),
        Some(Command::Buffer(command)) => return commands::buffer::run(command),
        Some(Command::Rejected(command)) => return commands::rejected::run(command),
        None => {}
    }
    platform::keep_to_ourselves();
    platform::name_ourselves();
    let ended = if cli.worker { worker::run(cli) } else { front::run(cli, routes(tables())) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("ending: {error:#}");
            ExitCode::FAILURE
        }
    }
}
