//! `osquery-remote-tls doctor`: checks, by hand and on the host itself, all that must be right for the extension to
//! work, in the order in which it goes wrong, and says what to do. docs/doctor.md is its manual.
//!
//! It changes nothing: no file is written, created or kept locked, nothing is put into osqueryd's store, and no
//! request to the server has an effect there. The exception is an enrollment, when `--enroll` asks for it.
//!
//! The values that are checked are those of osqueryd's next start: what its command line and its flag file give, and for
//! the rest what the running osqueryd has (its configuration), or osquery's default. How the extension fares is its own
//! word, by its tables.
//!
//! One fault is one failure: what can't be judged for another check's sake is skipped. `report` collects and shows,
//! `subject` reads what is examined, `running` and `flagfile` say from where, `told` asks the extension; `fault` knows
//! the remedies of answers, `handshake` those of TLS; the other files are the checks.

pub(crate) mod answering;
mod autoload;
mod buffers;
mod certificates;
mod check;
mod connection;
mod delivery;
mod encoding;
pub(crate) mod endpoints;
mod extension_file;
mod fault;
mod files;
mod flagfile;
mod flags;
mod handshake;
mod osquery_flags;
mod osqueryd;
pub(crate) mod plugins;
mod report;
mod running;
mod secret_file;
mod server;
pub(crate) mod subject;
pub(crate) mod told;
mod worker;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

pub use check::{Check, Occasion};
pub use report::{About, Amount, Finding, Form, Level, Report, Verdict};

use crate::cli::DoctorFlags;
use subject::Subject;

/// Checks this host and reports on the standard output.
#[must_use]
pub fn run(flags: &DoctorFlags) -> ExitCode {
    let stdout = io::stdout();
    let colours = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let form = match (flags.json, colours) {
        (true, _) => Form::Json,
        (false, true) => Form::Coloured,
        (false, false) => Form::Plain,
    };
    match examine(flags, form, &mut stdout.lock()) {
        Ok(verdict) => ExitCode::from(verdict as u8),
        Err(error) => {
            log::error!("the report can't be written: {error}");
            ExitCode::from(Verdict::Failed as u8)
        }
    }
}

/// All checks, in order.
pub fn examine(flags: &DoctorFlags, form: Form, out: &mut dyn Write) -> io::Result<Verdict> {
    let subject = Subject::find(flags);
    let mut report = Report::new(out, form, if flags.quiet { Amount::Problems } else { Amount::All });
    flags::check(&subject, &mut report);
    autoload::check(&subject, &mut report);
    osqueryd::check(&subject, &mut report);
    plugins::check(&subject, &mut report);
    osqueryd::timeout(&subject, &mut report);
    worker::check(&subject, &mut report);
    files::check(&subject, &mut report);
    let look = connection::check(&subject, &mut report);
    connection::others(&subject, &mut report);
    endpoints::check(&subject, look.as_ref(), &mut report);
    delivery::check(&subject, &mut report);
    buffers::check(&subject, &mut report);
    let findings = report.finish(&subject.about())?;
    Ok(Verdict::of(&findings, subject.occasion))
}
