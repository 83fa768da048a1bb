//! osqueryd itself: whether it answers, with which flags it runs, and whether it knows the extension.

use std::io;

use super::osquery_flags::{self, Kind, Set};
use super::{Check, Report, Running, Subject};
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
        Ok(running) => {
            compare(subject, running, report);
            registration(subject, running, report);
        }
        Err(_) => report.skip(Check::RunningOsqueryd, "osqueryd can't be asked"),
    }
    timeout(subject, report);
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
    match &subject.running {
        Ok(_) if report.is_clean(CHECK) => report.ok(CHECK, format!("osqueryd answers at {shown}")),
        Ok(_) => {}
        Err(ManagerError::Unreachable { source, .. }) => match source.kind() {
            io::ErrorKind::PermissionDenied => {
                report.fail(CHECK, format!("{shown} can't be opened by this user"), "run the doctor as root");
            }
            _ if subject.socket.parent().is_none_or(|directory| !directory.is_dir()) => report.fail(
                CHECK,
                format!("the directory of {shown} is not there, so that osqueryd can't listen"),
                "make it, or set --extensions_socket to another path",
            ),
            _ => report.warn(
                CHECK,
                format!("osqueryd does not run: nobody listens at {shown} ({source})"),
                "start osqueryd and run the doctor again: what only osqueryd knows is left out now",
            ),
        },
        Err(error) => report.fail(CHECK, format!("{error} within 10 s"), "osqueryd hangs: look at its log, restart it"),
    }
}

/// The flag file against the flags that osqueryd runs with. Only names are told: some values are secret.
fn compare(subject: &Subject, running: &Running, report: &mut Report<'_>) {
    let differs = |name: &str, value: &String| {
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
    if !gone.is_empty() && subject.flagfile.files > 0 {
        report.warn(
            Check::RunningOsqueryd,
            format!("osqueryd runs with flags that the flag file doesn't give: {}", gone.join(", ")),
            "unless its command line gives them (look at its service unit), they are gone at its next start: put them \
             into the flag file",
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
    let known = match running.manager.extensions() {
        Ok(known) => known,
        Err(error) => return report.fail(CHECK, error.to_string(), "look at osqueryd's log, restart it"),
    };
    let Some((_, version)) = known.values().find(|(name, _)| name == NAME) else {
        return report.fail(
            CHECK,
            "osqueryd runs without the extension",
            "see what failed above, and osqueryd's log for \"remote_tls\"; then restart osqueryd",
        );
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
    let sql = format!("SELECT registry FROM osquery_registry WHERE name = '{NAME}'");
    let plugins = running.manager.query(&sql).unwrap_or_default();
    let registered =
        |registry: &str| plugins.iter().any(|row| row.get("registry").is_some_and(|name| name == registry));
    let active = ["config", "logger", "distributed"].into_iter().filter(|registry| {
        let names = running.options.get(&format!("{registry}_plugin")).map_or("", String::as_str);
        super::plugins(names).any(|name| name == NAME)
    });
    let (active, absent): (Vec<&str>, Vec<&str>) = active.partition(|registry| registered(registry));
    if !absent.is_empty() {
        report.fail(
            CHECK,
            format!("the extension's plugin is not registered as {}", absent.join(", ")),
            "restart osqueryd",
        );
    }
    if active.is_empty() {
        report.fail(
            CHECK,
            format!("osqueryd knows the extension, and uses none of its plugins ({})", subject.socket.display()),
            format!("set --config_plugin, --logger_plugin and --distributed_plugin to {NAME}, restart osqueryd"),
        );
    } else if !report.has_failed(CHECK) {
        report.ok(CHECK, format!("the extension ({version}) is registered and active as {}", active.join(", ")));
    }
}

fn timeout(subject: &Subject, report: &mut Report<'_>) {
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
