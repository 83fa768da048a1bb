//! Whether osqueryd uses the plugins that its flags name: a configuration's `options` can set some of them otherwise, and
//! the default ones of some servers do.

use std::collections::BTreeSet;
use std::path::Path;

use super::answering::{Running, names};
use super::subject::Subject;
use super::{Check, Report};
use crate::extension::registry::NAME;

const REGISTRIES: [&str; 3] = ["config", "logger", "distributed"];

/// What is said of registries whose plugins osqueryd has not chosen.
pub(crate) const NOT_CHOSEN: &str = "not chosen yet: osqueryd waits for its first configuration";

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::ActivePlugins;
    let running = match &subject.running {
        _ if subject.is_before() => {
            return report.skip(CHECK, "what runs until the restart doesn't matter (--before)");
        }
        Err(_) => return report.skip(CHECK, "osqueryd can't be asked"),
        Ok(running) if running.extension_version().is_none() => {
            return report.skip(CHECK, "osqueryd runs without the extension");
        }
        Ok(running) => running,
    };
    let (mut active, mut not_chosen) = (Vec::new(), Vec::new());
    for registry in REGISTRIES.into_iter().filter(|registry| subject.uses(registry)) {
        if !running.has_chosen(registry) {
            if !running.uses_none(registry) {
                not_chosen.push(registry);
            }
            continue;
        }
        let state = State {
            registry,
            given: subject.file.get(&format!("{registry}_plugin")).map(String::as_str),
            now: running.options.get(&format!("{registry}_plugin")).map_or("", String::as_str),
            local_cause: (!subject.settings.keep_plugins).then_some(subject.own_path.as_path()),
            is_registered: running.plugins(registry).contains(NAME),
            active: running.active(registry),
        };
        match state.problem() {
            None => active.push(registry),
            Some((message, remedy)) => report.fail(CHECK, message, remedy),
        }
    }
    if report.is_clean(CHECK) {
        if !not_chosen.is_empty() {
            report.skip(CHECK, format!("{} {NOT_CHOSEN}", not_chosen.join(" and ")));
        } else if active.is_empty() {
            report.skip(CHECK, "no flag names the extension's plugins");
        } else {
            report.ok_with(
                CHECK,
                format!("the extension's are active as {}", active.join(", ")),
                beside(subject, running),
            );
        }
    }
}

/// Those that are others' by the operator's choice: nothing to say against it.
fn beside(subject: &Subject, running: &Running) -> Vec<String> {
    let others = REGISTRIES.into_iter().filter(|registry| !subject.uses(registry));
    others
        .map(|registry| {
            let names: Vec<String> = running.active(registry).into_iter().collect();
            format!("{registry}: {}", names.join(", "))
        })
        .collect()
}

/// How a registry is meant to be and is.
struct State<'a> {
    registry: &'a str,
    /// The flag as the next start reads it.
    given: Option<&'a str>,
    /// The flag as osqueryd has it.
    now: &'a str,
    /// Our own flag file, where it lets a configuration's options set these flags.
    local_cause: Option<&'a Path>,
    is_registered: bool,
    active: BTreeSet<String>,
}

impl State<'_> {
    /// Where the extension is meant to be active, and isn't: what is wrong, and what to do.
    fn problem(&self) -> Option<(String, String)> {
        let Self { registry, now, .. } = self;
        let names_ours = names(now).any(|name| name == NAME);
        if self.active.contains(NAME) {
            return None;
        }
        if names_ours && !self.is_registered {
            let message = format!("the extension's plugin is not registered as {registry}");
            return Some((message, "restart osqueryd".to_owned()));
        }
        if names_ours {
            // An osqueryd whose registry doesn't say what is active.
            return None;
        }
        let given = self.given.unwrap_or(NAME);
        let message = format!("--{registry}_plugin={given} is set, and osqueryd uses {now}");
        // Only this one counts at once when a configuration sets it.
        let remedy = if let Some(own_flags) = self.local_cause.filter(|_| *registry == "distributed") {
            format!(
                "take --keep_plugins=false out of {}: with it, the \"options\" in the server's configuration (Fleet: agent \
                 options) may set {registry}_plugin; or take it out of them",
                own_flags.display()
            )
        } else if *registry == "distributed" {
            format!(
                "take {registry}_plugin out of the \"options\" in the server's configuration (Fleet: agent options), which \
                 set it to {now}; if they don't, restart osqueryd"
            )
        } else {
            "restart osqueryd: it was started with another flag".to_owned()
        };
        Some((message, remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(registry: &str, now: &str, is_registered: bool, active: &[&str]) -> Option<(String, String)> {
        let active = active.iter().map(|name| (*name).to_owned()).collect();
        State { registry, given: Some("remote_tls"), now, local_cause: None, is_registered, active }.problem()
    }

    #[test]
    fn keep_plugins_of_this_host_is_named_where_it_lets_the_server_choose() {
        let state = State {
            registry: "distributed",
            given: Some("remote_tls"),
            now: "tls",
            local_cause: Some(Path::new("/etc/osquery/remote_tls.flags")),
            is_registered: true,
            active: BTreeSet::from(["tls".to_owned()]),
        };
        let (_, remedy) = state.problem().unwrap();
        assert!(remedy.starts_with("take --keep_plugins=false out of /etc/osquery/remote_tls.flags: "), "{remedy}");
    }

    #[test]
    fn what_is_active_is_what_counts() {
        assert_eq!(problem("logger", "filesystem,remote_tls", true, &["filesystem", "remote_tls"]), None);
        assert_eq!(problem("config", "remote_tls", true, &[]), None);
        // Case plugin-options: Fleet's default agent options.
        let (message, remedy) = problem("distributed", "tls", true, &["tls"]).unwrap();
        assert_eq!(message, "--distributed_plugin=remote_tls is set, and osqueryd uses tls");
        assert!(remedy.contains("agent options"), "{remedy}");
        let (_, remedy) = problem("config", "filesystem", true, &["filesystem"]).unwrap();
        assert!(remedy.starts_with("restart osqueryd"), "{remedy}");
        let (message, _) = problem("logger", "remote_tls", false, &[]).unwrap();
        assert!(message.contains("not registered as logger"), "{message}");
    }
}
