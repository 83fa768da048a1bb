//! osqueryd's flag file and our own: names, values, and what goes together.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

use super::answering::names;
use super::fault;
use super::flagfile::{Given, Location, Problem, Source};
use super::osquery_flags;
use super::subject::Subject;
use super::{Check, Report};
use crate::extension::registry::NAME;
use crate::remote::Endpoint;
use crate::settings::own;
use crate::settings::{ExpandEvents, REMOTE_PREFIX};
use crate::words::counted;

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    file(subject, report);
    if subject.knows_no_flag() || subject.flagfile.given.is_empty() && report.has_failed(Check::FlagFile) {
        for check in [Check::FlagNames, Check::FlagValues, Check::FlagCombinations] {
            report.skip(check, "no flag is known");
        }
    } else {
        unknown(subject, report);
        check_values(subject, report);
        combinations(subject, report);
    }
    own(subject, report);
}

fn unreadable(path: &std::path::Path, reason: &str, named_by: Option<&Location>, report: &mut Report<'_>) {
    let shown = path.display();
    let is_missing =
        !path.try_exists().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) && !path.exists();
    let (message, remedy) = match named_by {
        Some(location) => (
            format!("{location}: --flagfile={shown} can't be read, which ends osqueryd: {reason}"),
            "correct this --flagfile, or make the file that it names".to_owned(),
        ),
        None => (format!("{shown} can't be read: {reason}"), "name osqueryd's flag file by --flagfile".to_owned()),
    };
    report.fail(Check::FlagFile, message, if is_missing { remedy } else { "run the doctor as root".to_owned() });
}

fn empty(subject: &Subject, path: &std::path::Path, report: &mut Report<'_>) {
    // Beside other files, or a command line with flags, an empty file is no fault.
    if subject.flagfile.given.is_empty() {
        report.fail(
            Check::FlagFile,
            format!("{} is empty: osqueryd's next start has no flags", path.display()),
            "put the flags back: what the running osqueryd has, `SELECT name, value FROM osquery_flags` shows",
        );
    }
}

fn file(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagFile;
    for problem in &subject.flagfile.problems {
        match problem {
            Problem::Unreadable { path, reason, named_by } => unreadable(path, reason, named_by.as_ref(), report),
            Problem::Encoded(path, encoding) => report.fail(
                CHECK,
                format!("{} is {}: osqueryd finds no flag in it", path.display(), encoding.name()),
                encoding.remedy(path),
            ),
            Problem::Empty(path) => empty(subject, path, report),
            Problem::TooDeep(path) => report.fail(
                CHECK,
                format!("{}: flag files name each other without end", path.display()),
                "remove the --flagfile lines that lead back",
            ),
            Problem::Section { location, lost } => report.fail(
                CHECK,
                format!(
                    "{location}: the line does not begin with --, so osqueryd takes it for another program's name and \
                     leaves out all that is behind it ({})",
                    counted(*lost as u64, "flag")
                ),
                "put -- before a flag and # before a comment",
            ),
            Problem::Space { location, name } => report.fail(
                CHECK,
                format!("{location}: --{name} has its value behind a space: osqueryd drops the line"),
                format!("write --{name}=VALUE"),
            ),
            Problem::NoValue { location, name } => report.fail(
                CHECK,
                format!("{location}: --{name} has no value: osqueryd drops the line"),
                format!("write --{name}=VALUE"),
            ),
            Problem::Untidy { location, name } => report.warn(
                CHECK,
                format!("{location}: quotes around the value of --{name}, or blanks behind it, become part of it"),
                "remove them",
            ),
            Problem::MixedLineEnds(path) => report.fail(
                CHECK,
                format!("{} has line ends of both kinds: osqueryd runs lines together", path.display()),
                format!("convert it: sed -i 's/\\r$//' {}", path.display()),
            ),
        }
    }
    if report.is_clean(CHECK) {
        let (flags, files) = (subject.flagfile.given.len(), subject.flagfile.files);
        let line = if matches!(subject.source, Source::CommandLine(_)) { "osqueryd's command line and " } else { "" };
        report.ok(CHECK, format!("{} in {line}{}", counted(flags as u64, "flag"), counted(files as u64, "file")));
    }
}

fn unknown(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagNames;
    let listed = subject.running.iter().flat_map(|running| running.options.keys().cloned()).collect();
    for Given { location, name, .. } in &subject.flagfile.unknown {
        let own_name = name.strip_prefix(REMOTE_PREFIX).unwrap_or(name);
        let remedy = if own::named(own_name).is_some() {
            format!("it is the extension's: put --{own_name}=VALUE into {}", subject.own_path.display())
        } else if name.starts_with("custom_") {
            "only a configuration's \"options\" can set custom_ flags: remove the line".to_owned()
        } else {
            match osquery_flags::closest(name, &listed) {
                Some(known) => format!("is --{known} meant?"),
                None => "remove the line, or look at osqueryd --help for the name".to_owned(),
            }
        };
        report.warn(
            CHECK,
            format!("{location}: osqueryd has no flag --{name} and drops the line without a word"),
            remedy,
        );
    }
    if report.is_clean(CHECK) {
        report.ok(CHECK, "osquery knows them all");
    }
}

fn check_values(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagValues;
    let mut ends_osqueryd = Vec::new();
    for Given { location, name, value } in &subject.flagfile.given {
        let Some((_, kind)) = osquery_flags::of(name) else { continue };
        if kind.normal(value).is_none() {
            let is_blank = kind.normal(value.trim_end()).is_some();
            let (why, remedy) = match is_blank {
                true => ("blanks stand behind the value", "remove the blanks at the line's end"),
                false => (kind.needed(), "correct the value, or remove the line"),
            };
            report.fail(CHECK, format!("{location}: --{name}={value} ends osqueryd: {why}"), remedy);
            ends_osqueryd.push(osquery_flags::real_name(name));
        }
    }
    let settings = &subject.settings;
    // The pair of client certificate and key has a check of its own.
    let without_a_stand_in = [settings.server.as_ref().err(), settings.proxy.as_ref().err()];
    let unusable = subject.setting_errors.iter().chain(without_a_stand_in.into_iter().flatten());
    for error in unusable.filter(|error| own::named(&error.flag).is_none() && !ends_osqueryd.contains(&&*error.flag)) {
        report.fail(CHECK, error.to_string(), format!("correct --{} where it is set", error.flag));
    }
    let identifiers = ["hostname", "uuid", "instance", "ephemeral", "specified"];
    let identifier = subject.text("host_identifier", "hostname");
    if identifier.starts_with(['"', '\'']) {
        // Its quotes have been told of.
    } else if !identifiers.contains(&identifier) {
        report.warn(
            CHECK,
            format!("--host_identifier={identifier} means hostname, like every value that osquery doesn't know"),
            format!("choose one of {}", identifiers.join(", ")),
        );
    } else if identifier == "specified" && subject.text("specified_identifier", "").is_empty() {
        report.warn(
            CHECK,
            "--host_identifier=specified without --specified_identifier means hostname",
            "set --specified_identifier",
        );
    }
    if report.is_clean(CHECK) {
        report.ok(CHECK, "all can be used");
    }
}

fn combinations(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagCombinations;
    check_plugins(subject, report);
    check_endpoints(subject, report);
    if subject.is_set("disable_extensions") {
        report.fail(
            CHECK,
            "--disable_extensions=true: osqueryd starts no extension, and then ends for want of its plugins",
            "remove --disable_extensions",
        );
    }
    let required = subject.text("extensions_require", "");
    if names(required).any(|name| name != NAME && name.replace('-', "_").contains(NAME)) {
        report.fail(
            CHECK,
            format!("--extensions_require={required} waits for a name that no extension registers"),
            format!("the extension's name is {NAME}"),
        );
    }
    if subject.uses("distributed") && subject.is_set_or("disable_distributed", true) {
        report.warn(
            CHECK,
            "--disable_distributed is true (osquery's default): osqueryd asks for no distributed queries",
            "set --disable_distributed=false",
        );
    }
    if subject.uses("config") && subject.text("config_refresh", "0") == "0" {
        report.warn(
            CHECK,
            "--config_refresh is 0 (osquery's default): a new configuration comes only when osqueryd starts",
            "set --config_refresh=300, or how many seconds it may take",
        );
    }
    let doubtful = [
        ("allow_unsafe", "osqueryd starts extensions whose files other users can write to"),
        ("disable_logging", "osqueryd logs no results"),
        ("disable_database", "osqueryd keeps no node key, so that each start enrolls again"),
        ("ephemeral", "osqueryd keeps no node key, so that each start enrolls again"),
    ];
    for (flag, effect) in doubtful.into_iter().filter(|(flag, _)| subject.is_set(flag)) {
        report.warn(CHECK, format!("--{flag}=true: {effect}"), format!("remove --{flag} unless it is meant"));
    }
    if report.is_clean(CHECK) {
        report.ok_with(CHECK, "they go together", recommendations(subject));
    }
}

fn check_plugins(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagCombinations;
    let registries = ["config", "logger", "distributed"];
    let is_misspelt =
        |registry: &&str| names(subject.plugin_flag(registry)).any(|name| name != NAME && is_nearly_ours(name));
    if !registries.iter().any(|registry| subject.uses(registry)) && !registries.iter().any(is_misspelt) {
        let flags = registries.map(|registry| format!("--{registry}_plugin={NAME}")).join(", ");
        report.fail(CHECK, "no plugin of osqueryd is this extension's", format!("set {flags}"));
        return;
    }
    for registry in registries {
        let others = subject.running.as_ref().map(|running| running.plugins(registry)).unwrap_or_default();
        let value = subject.plugin_flag(registry);
        for name in names(value).filter(|name| !is_built_in(registry, name) && !others.contains(*name)) {
            no_such_plugin(registry, value, name, subject, report);
        }
        if subject.uses(registry) && names(value).any(|name| name == "tls") {
            report.warn(
                CHECK,
                format!("--{registry}_plugin={value}: the server gets everything twice, from osqueryd itself too"),
                format!("set --{registry}_plugin without tls"),
            );
        }
    }
}

/// osqueryd ends without a plugin that its flags name. Another extension may bring it, when it isn't nearly ours.
fn no_such_plugin(registry: &str, value: &str, name: &str, subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagCombinations;
    let message =
        format!("--{registry}_plugin={value}: osquery has no {registry} plugin {name}, and does not start without it");
    if is_nearly_ours(name) {
        report.fail(CHECK, message, format!("{NAME} is meant: set --{registry}_plugin={}", value.replace(name, NAME)));
    } else if subject.running.is_ok() {
        report.fail(CHECK, message, format!("correct the name, or load the extension that brings {name}"));
    } else {
        report.warn(
            CHECK,
            message,
            format!("see that the extension that brings {name} is loaded, or correct the name"),
        );
    }
}

fn is_nearly_ours(name: &str) -> bool {
    let letters = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    letters(name).contains(&letters(NAME)) || osquery_flags::is_close(name, NAME)
}

fn check_endpoints(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::FlagCombinations;
    for endpoint in Endpoint::ALL.into_iter().filter(|endpoint| is_needed(subject, *endpoint)) {
        if let Err(error) = endpoint.path(&subject.settings.endpoints) {
            report.fail(
                CHECK,
                error.to_string(),
                format!("set --{} to your server's path for it ({})", error.flag, fault::known_paths(endpoint)),
            );
        }
    }
}

/// Whether a plugin in use asks this endpoint.
pub(super) fn is_needed(subject: &Subject, endpoint: Endpoint) -> bool {
    match endpoint {
        Endpoint::Enroll => !subject.settings.enroll.disabled,
        Endpoint::Config => subject.uses("config"),
        Endpoint::Logger => subject.uses("logger"),
        Endpoint::DistributedRead | Endpoint::DistributedWrite => {
            subject.uses("distributed") && !subject.is_set_or("disable_distributed", true)
        }
    }
}

/// Whether osquery itself has this plugin, or we have.
fn is_built_in(registry: &str, name: &str) -> bool {
    let own: &[&str] = match registry {
        "config" => &["filesystem", "tls", "update"],
        "logger" => &[
            "filesystem",
            "tls",
            "syslog",
            "stdout",
            "buffered",
            "aws_firehose",
            "aws_kinesis",
            "kafka_producer",
            "windows_event_log",
        ],
        _ => &["tls"],
    };
    name == NAME || own.contains(&name)
}

/// What is no mistake, and would be better otherwise.
fn recommendations(subject: &Subject) -> Vec<String> {
    let mut recommendations = Vec::new();
    if subject.uses("logger") && !subject.settings.logger.compress {
        recommendations.push(
            "recommended: --logger_tls_compress=true makes log requests several times smaller, if the server takes gzip"
                .to_owned(),
        );
    }
    let automatic = subject.settings.logger.expand_events == ExpandEvents::Auto;
    let said = subject.file.contains_key("logger_event_type") && subject.settings.logger.event_type;
    if automatic && said && subject.settings.is_only_logger() {
        recommendations.push(
            "recommended: no --logger_event_type in osqueryd's flags: the extension then has it hand over whole queries, \
             in one call each in place of one a row, and the server gets the same lines"
                .to_owned(),
        );
    }
    recommendations
}

fn own(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::OwnFlags;
    for error in &subject.own_errors {
        report.fail(CHECK, error.to_string(), "correct the line: until then its flag has its default");
    }
    for error in &subject.setting_errors {
        let name = error.flag.strip_prefix(REMOTE_PREFIX).unwrap_or(&error.flag);
        let Some(flag) = own::named(name) else { continue };
        let is_pins = flag.name == own::TLS_PINS.name;
        let place = match subject.own.get(flag) {
            Some(given) if name == error.flag => format!("in {}", given.origin),
            _ => "in the server's configuration".to_owned(),
        };
        report.fail(
            CHECK,
            error.to_string(),
            format!(
                "correct the value {place}: until then {}",
                if is_pins { "no request is made" } else { "the flag has its default" }
            ),
        );
    }
    let settings = &subject.settings;
    for (flag, path) in [(&own::METRICS_FILE, &settings.metrics_file), (&own::LOG_FILE, &settings.log.file)] {
        if let Some(reason) = path.as_deref().and_then(unwritable) {
            let (name, own_flags) = (flag.name, subject.own_path.display());
            report.warn(
                CHECK,
                format!("--{name} can't be written: {reason}"),
                format!("make the directory, or correct --{name} in {own_flags}: its directory must be there, and osqueryd's user's to write in"),
            );
        }
    }
    if report.is_clean(CHECK) {
        let path = subject.own_path.display();
        let there = if subject.own_path.exists() { "all can be used" } else { "not there, so all have their defaults" };
        report.ok(CHECK, format!("{path}: {there}"));
    }
}

/// Why no file of this name can be made or written, as far as can be seen without trying.
fn unwritable(path: &Path) -> Option<String> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = directory.display();
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("the directory {shown} is not there")),
        Err(error) => Some(format!("the directory {shown} can't be used: {error}")),
        Ok(found) if !found.is_dir() => Some(format!("{shown} is no directory")),
        Ok(_) if path.is_dir() => Some(format!("{} is a directory", path.display())),
        Ok(_) => {
            let denied = access(directory, Access::WRITE_OK | Access::EXEC_OK).err()?;
            Some(format!("this user can't write in the directory {shown}: {}", io::Error::from(denied)))
        }
    }
}
