//! The settings file that packages install: every flag of ours, commented out.

use std::fmt::Write;

use clap::{Args, Command};
use osquery_remote_tls::cli::OwnFlags;

const HEAD: &str = "\
# Settings of osquery-remote-tls that osquery has no flag for, a --name=value a line. osquery's own flags
# (--tls_hostname and so on) stay where they are, in osquery.flags. Read at the start, and again at a SIGHUP to
# remote_tls.ext. Numbers without a unit are bytes or seconds.
";

pub(crate) fn text() -> String {
    let mut text = HEAD.to_owned();
    for flag in OwnFlags::augment_args(Command::new("")).get_arguments() {
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let kind = flag.get_value_names().and_then(<[_]>::first).map(|name| name.as_str()).unwrap_or_default();
        // A String takes what is written to it.
        let _ = write!(text, "\n# {help}\n#--{}={}\n", flag.get_id(), default(&help).unwrap_or(kind));
    }
    text
}

/// The default that a flag's help ends with, when it is a value and no description of one.
fn default(help: &str) -> Option<&str> {
    let (_, value) = help.trim_end_matches(']').rsplit_once("[default: ")?;
    (!value.contains(' ')).then_some(value)
}
