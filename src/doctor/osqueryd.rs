//! osqueryd itself: whether it answers, with which flags it runs, and whether it knows the extension.

use std::io;

use super::answering::{OSQUERYD_LIMIT, Running, names};
use super::flagfile::Source;
use super::osquery_flags::{self, Kind, Set};
use super::subject::Subject;
use super::{Check, Report};
use crate::extension::manager::ManagerError;
use crate::extension::registry::NAME;

/// The longest path that a Unix socket can have, its end included.
const LONGEST_SOCKET: usize = 107;

/// What the extension's own socket adds to osqueryd's while it comes about (`.new-4194304-0`).
const SOCKET_SUFFIX: usize = 14;

/// osquery's own default, with which the extension gets along.
const USUAL_TIMEOUT: u64 = 3;

/// Flags without which a start leads nowhere, that no configuration can set, and that are empty unless given.
const VITAL: [&str; 5] =
    ["tls_hostname", "enroll_tls_endpoint", "config_tls_endpoint", "enroll_secret_path", "enroll_secret_env"];

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    socket(subject, report);
    match &subject.running {
        _ if subject.is_before() => {
            report.skip(Check::RunningOsqueryd, "what runs until the restart doesn't matter (--before)");
        }
        Ok(running) => {
            compare(subject, running, report);
            registration(subject, running, report);
        }
        Err(_) => report.skip(Check::RunningOsqueryd, "osqueryd can't be asked"),
    }
}

/// Which osqueryd this is about.
fn which(subject: &Subject) -> String {
    let version = subject.running.as_ref().ok().and_then(|running| running.version.as_deref()).unwrap_or("?");
    let process = subject.process.map_or_else(String::new, |process| format!(", process {process}"));
    let flags = match (&subject.source, subject.flagfile.named.first()) {
        (Source::CommandLine(_), None) => "flags on its command line".to_owned(),
        (Source::CommandLine(_), Some(file)) => format!("flags on its command line and in {}", file.display()),
        (Source::File(path), _) => format!("flag file {}", path.display()),
    };
    format!("osqueryd {version}{process}, {flags}")
}

fn socket(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::Socket;
    let shown = subject.socket.display();
    if subject.socket.as_os_str().len() + SOCKET_SUFFIX > LONGEST_SOCKET {
        report.fail(
            CHECK,
            format!("{shown} is too long for a socket with the extension's beside it"),
            "set --extensions_socket to a shorter path",
        );
    }
    let others: Vec<String> =
        subject.others.iter().map(|other| format!("another osqueryd runs: {other}; --socket names it")).collect();
    match &subject.running {
        Ok(_) if report.is_clean(CHECK) => {
            report.ok_with(CHECK, format!("{} answers at {shown}", which(subject)), others);
        }
        Ok(_) => {}
        Err(ManagerError::Unreachable { source, .. }) => unreachable(subject, source, others, report),
        Err(_) if subject.is_before() => report.skip(CHECK, "osqueryd hangs, and is to be restarted (--before)"),
        Err(error) => report.fail(
            CHECK,
            format!("{error} at {shown} within {} s", OSQUERYD_LIMIT.as_secs()),
            "osqueryd hangs: look at its log, restart it",
        ),
    }
}

fn unreachable(subject: &Subject, source: &io::Error, others: Vec<String>, report: &mut Report<'_>) {
    const CHECK: Check = Check::Socket;
    let shown = subject.socket.display();
    if report.has_failed(CHECK) {
        // The path is the reason.
    } else if subject.knows_no_flag() && subject.process.is_none() {
        report.skip(CHECK, "no flag is known, and so not where osqueryd would listen");
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        report.fail(CHECK, format!("{shown} can't be opened by this user"), "run the doctor as root");
    } else if subject.socket.parent().is_none_or(|directory| !directory.is_dir()) {
        report.fail(
            CHECK,
            format!("the directory of {shown} is not there, so that osqueryd can't listen"),
            "make it, or set --extensions_socket to another path",
        );
    } else if subject.is_before() {
        report.ok(CHECK, format!("osqueryd does not run, and will listen at {shown}"));
    } else if let Some(process) = subject.process {
        report.fail(
            CHECK,
            format!("osqueryd (process {process}) runs, and no process listens at {shown} ({source})"),
            "see osqueryd's log for its extension manager, and --disable_extensions; restart it",
        );
    } else {
        report.problem(
            CHECK,
            super::Level::Warning,
            format!("osqueryd does not run: no process listens at {shown} ({source})"),
            "start osqueryd and run the doctor again: what only osqueryd and the extension know is left out now",
            others,
        );
    }
}

/// The flag file against the flags that osqueryd runs with. Only names are told: some values are secret.
fn compare(subject: &Subject, running: &Running, report: &mut Report<'_>) {
    let differs = |name: &str, value: &String| {
        // Whether a plugin of ours is in use is a check of its own.
        if name.ends_with("_plugin") && names(value).any(|plugin| plugin == NAME) {
            return false;
        }
        let kind = osquery_flags::of(name).map_or(Kind::Text, |(_, kind)| kind);
        running.options.get(name).is_some_and(|now| kind.normal(now).as_ref() != Some(value))
    };
    let names = |set: Set| {
        let of_that_kind = |name: &str| osquery_flags::of(name).is_none_or(|(known, _)| known == set);
        let names = subject.file.iter().filter(|(name, value)| of_that_kind(name) && differs(name, value));
        names.map(|(name, _)| format!("--{name}")).collect::<Vec<_>>().join(", ")
    };
    let (at_start, any_time) = (names(Set::AtStart), names(Set::AnyTime));
    if !at_start.is_empty() {
        report.warn(
            Check::RunningOsqueryd,
            format!("osqueryd runs with other values than the flag file has: {at_start}"),
            "restart osqueryd; if that doesn't help, its command line gives them (look at its service unit), or it \
             reads another flag file",
        );
    }
    let gone: Vec<String> = VITAL
        .iter()
        .filter(|name| !subject.file.contains_key(**name))
        .filter(|name| running.options.get(**name).is_some_and(|value| !value.is_empty()))
        .map(|name| format!("--{name}"))
        .collect();
    if !gone.is_empty() && subject.flagfile.files > 0 && !subject.flagfile.given.is_empty() {
        report.warn(
            Check::RunningOsqueryd,
            format!("osqueryd runs with flags that the flag file doesn't give: {}", gone.join(", ")),
            match subject.source {
                Source::CommandLine(_) => "they are gone at its next start: put them into the flag file",
                Source::File(_) => {
                    "unless its command line gives them (look at its service unit), they are gone at its next start: put \
                     them into the flag file"
                }
            },
        );
    }
    if !any_time.is_empty() {
        report.ok(
            Check::RunningOsqueryd,
            format!(
                "set otherwise by the server's configuration, or changed in the flag file since the start: {any_time}"
            ),
        );
    }
}

fn registration(subject: &Subject, running: &Running, report: &mut Report<'_>) {
    const CHECK: Check = Check::RunningOsqueryd;
    let version = match &running.extension {
        Err(error) => return report.fail(CHECK, error.to_string(), "look at osqueryd's log, restart it"),
        Ok(Some((_, version))) => version,
        Ok(None) => return unregistered(subject, report),
    };
    if version != env!("CARGO_PKG_VERSION") {
        // No fault: after an upgrade a new worker answers, and the registration is the old one's.
        report.ok(
            CHECK,
            format!(
                "osqueryd registered version {version} and this is {}: its tables are the old ones' until osqueryd is \
                 restarted",
                env!("CARGO_PKG_VERSION")
            ),
        );
    }
    report.ok(CHECK, format!("the extension ({version}) is registered"));
}

/// One fault: where the start is already known to go wrong, that is the reason.
fn unregistered(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::RunningOsqueryd;
    let before = [Check::FlagFile, Check::FlagCombinations, Check::AutoloadFile, Check::ExtensionFile];
    match before.into_iter().find(|check| report.has_failed(*check)) {
        Some(check) => report.skip(CHECK, format!("osqueryd runs without the extension: see {}", check.name())),
        None if !["config", "logger", "distributed"].iter().any(|registry| subject.uses(registry)) => {}
        None => report.fail(
            CHECK,
            "osqueryd runs without the extension",
            "restart osqueryd; if that doesn't help, see its log for \"remote_tls\" and \"extension\"",
        ),
    }
}

/// How long osqueryd waits for its extensions.
pub(super) fn timeout(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::ExtensionsTimeout;
    for flag in ["extensions_timeout", "extensions_interval"] {
        let value = subject.text(flag, "3");
        if value.parse::<u64>().is_err() {
            report.fail(
                CHECK,
                format!("--{flag}={value} is no whole number of seconds, and the extension ends when it is given it"),
                format!("set --{flag}=3, or more"),
            );
        }
    }
    if !report.is_clean(CHECK) {
        return;
    }
    match subject.text("extensions_timeout", "3").parse::<u64>().unwrap_or_default() {
        0 => report.fail(
            CHECK,
            "--extensions_timeout=0: osqueryd waits a fifth of a second for its plugins, and ends without them",
            "set --extensions_timeout=10",
        ),
        few if few < USUAL_TIMEOUT => report.warn(
            CHECK,
            format!("--extensions_timeout={few}: a busy host may start the extension later, and osqueryd then ends"),
            "set --extensions_timeout=10",
        ),
        seconds => report.ok(CHECK, format!("osqueryd waits {seconds} s for the extension")),
    }
}
