//! `osquery-remote-tls status`: how the extension fares, on one screen or as one JSON object.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::table::{self, Align};
use crate::cli::arguments::StatusFlags;
use crate::clock::day_and_time;
use crate::clock::unix_time;
use crate::doctor::answering::Running;
use crate::doctor::plugins::NOT_CHOSEN;
use crate::doctor::subject::Subject;
use crate::doctor::told::{self, Enrolled, Told};
use crate::secret::redact;
use crate::shown::{one_line, shown};
use crate::words::{Span, counted};

/// The registries that have a plugin of ours.
const REGISTRIES: [&str; 3] = ["config", "logger", "distributed"];

/// Characters of an error that are shown.
const ERROR: usize = 300;

/// Shows how the extension fares.
#[must_use]
pub fn run(flags: &StatusFlags) -> ExitCode {
    let subject = super::subject(&flags.target);
    let code = if subject.told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let text = if flags.json { format!("{:#}\n", as_json(&subject)) } else { as_text(&subject) };
    if super::print(&text) == ExitCode::SUCCESS { code } else { ExitCode::FAILURE }
}

/// How the extension fares, as a text for a person.
pub(super) fn as_text(subject: &Subject) -> String {
    let mut text = head(subject);
    match &subject.told {
        Ok(told) => {
            text.push_str(&enrollment(&told.enrollment));
            text.push_str(&endpoints(told));
            text.push_str(&streams(told));
        }
        Err(reason) => {
            let reason = why(subject, reason);
            text.push_str(&format!(
                "\nthe extension does not answer: {}\n\
                 `osquery-remote-tls doctor` says what is wrong, `osquery-remote-tls buffer list` what waits on the disk\n",
                one_line(&redact(&reason))
            ));
        }
    }
    text
}

/// Why nothing is told, with osqueryd's own error where it is that.
fn why(subject: &Subject, reason: &str) -> String {
    match &subject.running {
        Err(error) => super::unasked(error),
        Ok(_) => reason.to_owned(),
    }
}

fn head(subject: &Subject) -> String {
    let running = subject.running.as_ref().ok();
    let osquery = running.and_then(|running| running.version.as_deref()).unwrap_or("that does not answer");
    let extension = running.and_then(Running::extension_version).unwrap_or("that does not answer");
    let process = subject.process.map_or_else(String::new, |process| format!(" (process {process})"));
    let mut text = format!(
        "host        {}\nversions    extension {extension}, osquery {osquery}, this command {}\nsocket      {}{process}\n",
        host(),
        env!("CARGO_PKG_VERSION"),
        subject.socket.display(),
    );
    if let Some(running) = running {
        text.push_str(&format!("plugins     {}\n", plugins(running)));
    }
    if let Some((front, workers)) = told::workers(&subject.workers) {
        let age = |age: Duration| Span(Duration::from_secs(age.as_secs()));
        let worker = workers
            .iter()
            .map(|worker| worker.age)
            .max()
            .map_or_else(|| "none runs".to_owned(), |worker| format!("runs for {}", age(worker)));
        text.push_str(&format!("worker      {worker}; the extension runs for {}\n", age(front)));
    }
    text
}

fn plugins(running: &Running) -> String {
    let (mut shown, mut not_chosen) = (Vec::new(), Vec::new());
    for registry in REGISTRIES {
        match active(running, registry) {
            Some(active) => shown.push(format!("{registry} {}", active.join("+"))),
            None if running.uses_none(registry) => shown.push(format!("{registry} none")),
            None => not_chosen.push(registry),
        }
    }
    if !not_chosen.is_empty() {
        shown.push(format!("{} {NOT_CHOSEN}", not_chosen.join(" and ")));
    }
    shown.join(", ")
}

/// The plugins that osqueryd uses, where it has chosen some.
fn active(running: &Running, registry: &str) -> Option<Vec<String>> {
    running.has_chosen(registry).then(|| running.active(registry).into_iter().collect())
}

pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn enrollment(enrolled: &Enrolled) -> String {
    let who = if enrolled.host_identifier.is_empty() { "this host" } else { &enrolled.host_identifier };
    let line = if enrolled.enrolled {
        format!(
            "since {} ({}), as {who} at {}",
            day_and_time(enrolled.since),
            ago(enrolled.since),
            enrolled.server_name
        )
    } else if enrolled.last_error.is_empty() {
        format!("no, and not tried since the worker began; the server is {}", enrolled.server_name)
    } else {
        format!("no, after {}: {}", counted(enrolled.attempts, "attempt"), shown(&enrolled.last_error, ERROR))
    };
    format!("enrolled    {}\n", one_line(&line))
}

fn endpoints(told: &Told) -> String {
    const HEADS: [(&str, Align); 6] = [
        ("endpoint", Align::Left),
        ("requests", Align::Right),
        ("failures", Align::Right),
        ("in a row", Align::Right),
        ("last success", Align::Right),
        ("last failure", Align::Right),
    ];
    let row = |row: &told::Exchange| {
        [
            row.name.clone(),
            row.requests.to_string(),
            row.failures.to_string(),
            row.consecutive_failures.to_string(),
            ago(row.last_success),
            ago(row.last_failure),
        ]
    };
    let rows: Vec<[String; 6]> = told.endpoints.iter().map(row).collect();
    let mut text = format!("\n{}", table::text(HEADS, &rows));
    for row in told.endpoints.iter().filter(|row| row.consecutive_failures > 0) {
        let wait = match row.backoff_until - unix_time() {
            wait @ 1.. => format!("; the next attempt in {}", span(wait)),
            _ => String::new(),
        };
        text.push_str(&format!("  {}: {}{wait}\n", row.name, shown(row.words(), ERROR)));
    }
    text
}

fn streams(told: &Told) -> String {
    const HEADS: [(&str, Align); 7] = [
        ("lines of", Align::Left),
        ("wait", Align::Right),
        ("the oldest of", Align::Right),
        ("accepted", Align::Right),
        ("delivered", Align::Right),
        ("dropped", Align::Right),
        ("set aside", Align::Right),
    ];
    let row = |row: &told::Waiting| {
        let oldest = match (row.waiting_lines, row.oldest_time) {
            (0, _) => "-".to_owned(),
            (_, 0) => "not known".to_owned(),
            (_, time) => ago(time),
        };
        let [waiting, accepted, delivered, dropped, set_aside] =
            [row.waiting_lines, row.accepted, row.delivered, row.dropped, row.set_aside].map(|count| count.to_string());
        [row.stream.clone(), waiting, oldest, accepted, delivered, dropped, set_aside]
    };
    let rows: Vec<[String; 7]> = told.buffers.iter().map(row).collect();
    format!("\n{}counted since the worker began\n", table::text(HEADS, &rows))
}

/// How long ago a time was.
pub(super) fn ago(time: i64) -> String {
    match time {
        0 => "never".to_owned(),
        _ => format!("{} ago", span(unix_time().saturating_sub(time))),
    }
}

fn span(seconds: i64) -> Span {
    Span(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// How the extension fares, as JSON; what the tables have is named as there.
pub(super) fn as_json(subject: &Subject) -> Value {
    let running = subject.running.as_ref().ok();
    let told = subject.told.as_ref().ok();
    let workers = told::workers(&subject.workers);
    let seconds = |age: Duration| age.as_secs();
    let active = running.map(|running| {
        REGISTRIES.into_iter().map(|registry| (registry.to_owned(), json!(active(running, registry)))).collect()
    });
    json!({
        "host": host(),
        "time": unix_time(),
        "versions": {
            "command": env!("CARGO_PKG_VERSION"),
            "extension": running.and_then(Running::extension_version),
            "osquery": running.and_then(|running| running.version.as_deref()),
        },
        "socket": subject.socket.display().to_string(),
        "process": subject.process,
        "error": subject.told.as_ref().err().map(|reason| redact(&why(subject, reason)).into_owned()),
        "active_plugins": active.map(Value::Object),
        "extension_age": workers.as_ref().map(|(front, _)| seconds(*front)),
        "worker_age": workers.as_ref().and_then(|(_, workers)| workers.iter().map(|worker| seconds(worker.age)).max()),
        "enrollment": told.map(|told| &told.enrollment),
        "endpoints": told.map(|told| &told.endpoints),
        "buffers": told.map(|told| &told.buffers),
    })
}
