//! What operators run by hand, but for the doctor. Each command asks the running extension through osqueryd's socket, or
//! reads what lies on the disk; what changes anything is done by the extension itself, so that it is safe while
//! everything runs.
//!
//! Their part of the command line is `cli::arguments`. `table` shows rows on a terminal; the other files are a command each.
//! Which osqueryd is meant is found as the doctor finds it.

pub mod buffer;
pub mod flare;
pub mod logger;
pub mod rejected;
pub mod status;
mod table;

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use crate::chain::chain;
use crate::cli::DoctorFlags;
use crate::cli::arguments::Target;
use crate::doctor::answering::Running;
use crate::doctor::subject::Subject;
use crate::extension::manager::{Manager, ManagerError};
use crate::remote::{enroll_secret, mask_stored_keys};
use crate::secret::redact;
use crate::settings::SecretSource;
use crate::shown::one_line;

/// osqueryd and the extension that are meant, and what is known of them.
fn subject(target: &Target) -> Subject {
    Subject::find(&doctor_flags(target))
}

/// The doctor's flags that mean them.
fn doctor_flags(target: &Target) -> DoctorFlags {
    DoctorFlags {
        flagfile: target.flagfile.clone(),
        socket: target.socket.clone(),
        own_flagfile: target.own_flagfile.clone(),
        ..DoctorFlags::default()
    }
}

/// Has this process know the host's secrets: of what stands in lines, only what it knows is masked.
///
/// # Errors
/// One of them can't be known, so that words of lines are not to be shown.
fn know_secrets(subject: &Subject) -> Result<(), String> {
    let source = &subject.settings.enroll.secret;
    // A file that can't be read has no secret for the extension either; the environment is osqueryd's.
    if let (SecretSource::Environment(name), Err(_)) = (source, enroll_secret(source)) {
        return Err(format!(
            "the enroll secret is in osqueryd's environment variable {name}, which this command needs too"
        ));
    }
    let unknown = |error: String| format!("osqueryd does not give the node key: {error}");
    let running = running(subject).map_err(unknown)?;
    mask_stored_keys(&running.manager, &subject.settings).map_err(|error| unknown(chain(&error).to_string()))
}

/// What is said where the words of lines are not shown.
fn unmasked(reason: &str) -> String {
    format!("words of lines are not shown, since secrets in them could not be masked: {reason}")
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
    note(message);
    ExitCode::FAILURE
}

/// Says something on a line of the standard error.
fn note(message: impl Display) {
    // If printing fails, there is no other way to say so.
    let _ = writeln!(io::stderr(), "{}", one_line(&redact(&message.to_string())));
}

/// The osqueryd that runs.
fn running(subject: &Subject) -> Result<&Running, String> {
    subject.running.as_ref().map_err(unasked)
}

/// Why osqueryd was not asked, and what to do where this user may not.
pub(crate) fn unasked(error: &ManagerError) -> String {
    let is_denied =
        matches!(error, ManagerError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
    format!("{}{}", chain(error), if is_denied { "; run it as root (sudo)" } else { "" })
}

/// Has the extension's logger do something: what it answers.
fn ask(manager: &Manager, request: &[(&str, &str)]) -> Result<String, String> {
    manager.ask_logger(request).map_err(|error| chain(&error).to_string())
}

/// Has the extension's logger do something to lines: how many they were.
fn ask_for_count(manager: &Manager, request: &[(&str, &str)]) -> Result<u64, String> {
    Ok(ask(manager, request)?.parse().unwrap_or(0))
}

/// Says that something of the buffers can't be read, and what to do.
fn unreadable(what: impl Display, error: &io::Error) -> String {
    let remedy = if error.kind() == io::ErrorKind::PermissionDenied { "; run it as root (sudo)" } else { "" };
    format!("{what} can't be read: {error}{remedy}")
}

/// A new file that its owner alone can read. No file is overwritten.
fn new_file(path: &Path) -> Result<File, String> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| format!("{} can't be made: {error}", path.display()))
}

/// osqueryd's manager, where the extension that is to act is there.
fn manager(subject: &Subject) -> Result<&Manager, String> {
    let running = running(subject)?;
    match &running.extension {
        Ok(Some(_)) => Ok(&running.manager),
        Ok(None) => Err("osqueryd runs without the extension, which has to do this".to_owned()),
        Err(error) => Err(unasked(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_ask_is_told_what_to_do() {
        let said =
            |kind: io::ErrorKind| unasked(&ManagerError::Unreachable { path: "/s.em".into(), source: kind.into() });
        let denied = "can't connect to osqueryd's extension manager at /s.em: permission denied; run it as root (sudo)";
        assert_eq!(said(io::ErrorKind::PermissionDenied), denied);
        assert!(said(io::ErrorKind::NotFound).ends_with("entity not found"));
    }
}
