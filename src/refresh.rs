//! The command `refresh`: the running extension fetches the configuration now, and gives it to osqueryd.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::RefreshFlags;
use crate::commands::unasked;
use crate::extension::manager::Manager;

/// Asks by osqueryd's socket, prints what came of it, and sets the exit code.
#[must_use]
pub fn run(flags: &RefreshFlags) -> ExitCode {
    let manager = Manager::new(flags.socket.clone(), Arc::new(|| {}));
    // If printing fails, there is no place to say so.
    match manager.refresh_config() {
        Ok(outcome) => {
            let _ = writeln!(io::stdout(), "{outcome}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "the configuration is not refreshed: {}", unasked(&error));
            ExitCode::FAILURE
        }
    }
}
