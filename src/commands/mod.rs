//! What operators run by hand, but for the doctor. Each command asks the running extension through osqueryd's socket, or
//! reads what lies on the disk; what changes anything is done by the extension itself, so that it is safe while
//! everything runs.
//!
//! `arguments` is their part of the command line, `table` shows rows on a terminal; the other files are a command each.
//! Which osqueryd is meant is found as the doctor finds it.

pub mod arguments;
pub mod buffer;
pub mod rejected;
pub mod status;
mod table;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use self::arguments::Target;
use crate::chain::chain;
use crate::cli::DoctorFlags;
use crate::doctor::subject::Subject;
use crate::extension::manager::Manager;
use crate::secret::redact;
use crate::shown::one_line;

/// osqueryd and the extension that are meant, and what is known of them.
fn subject(target: &Target) -> Subject {
    Subject::find(&DoctorFlags {
        flagfile: target.flagfile.clone(),
        socket: target.socket.clone(),
        own_flagfile: target.own_flagfile.clone(),
        ..DoctorFlags::default()
    })
}

/// Prints a text; the exit code says whether that could be done.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says on one line why it failed.
fn fail(message: impl Display) -> ExitCode {
    // Nobody to tell if printing fails.
    let _ = writeln!(io::stderr(), "{}", one_line(&redact(&message.to_string())));
    ExitCode::FAILURE
}

/// osqueryd's manager, where the extension that is to act is there.
fn manager(subject: &Subject) -> Result<&Manager, String> {
    let running = subject.running.as_ref().map_err(|error| chain(error).to_string())?;
    match &running.extension {
        Ok(Some(_)) => Ok(&running.manager),
        Ok(None) => Err("osqueryd runs without the extension, which has to do this".to_owned()),
        Err(error) => Err(chain(error).to_string()),
    }
}
