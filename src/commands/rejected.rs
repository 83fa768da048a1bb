//! `osquery-remote-tls rejected`: the lines that were set aside since no server takes them. The files are read as they
//! lie on the disk; only the running extension, which adds lines to them, takes lines out.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use super::status::ago;
use super::table::{self, Align};
use super::{ask, ask_for_count, fail, know_secrets, manager, note, print, subject, unmasked, unreadable};
use crate::cli::arguments::{ListFlags, RejectedCommand, TheseFlags};
use crate::doctor::subject::Subject;
use crate::extension::manager::Manager;
use crate::journal::inspect::{self, RejectedLine};
use crate::plugins::logger::RETRIED;
use crate::secret::redact;
use crate::shown::{one_line, shown};
use crate::words::counted;

/// Lines of a list, the newest; as the table has them.
const MOST: usize = 1000;

/// Characters of a reason, and of a line, in a list.
const REASON: usize = 100;
const BEGINNING: usize = 60;

/// Names in one call: osqueryd hands it on whole.
const NAMES: usize = 500;

/// Does what is asked for.
#[must_use]
pub fn run(command: &RejectedCommand) -> ExitCode {
    match command {
        RejectedCommand::List(flags) => list(flags),
        RejectedCommand::Show(flags) => show(flags),
        RejectedCommand::Retry(flags) => retry(flags),
        RejectedCommand::Discard(flags) => discard(flags),
    }
}

fn list(flags: &ListFlags) -> ExitCode {
    let subject = subject(&flags.target);
    let lines = match read(&subject, MOST, 4 * BEGINNING) {
        Ok(lines) => lines,
        Err(error) => return fail(error),
    };
    let known = know_secrets(&subject);
    let words = |text: &str, most: usize| if known.is_ok() { shown(text, most) } else { "-".to_owned() };
    let text = if flags.json { json(&lines, &words) } else { text(&lines, &words) };
    if let Err(reason) = &known {
        note(unmasked(reason));
    }
    print(&text)
}

/// Masks and cuts words of others.
type ToWords<'a> = &'a dyn Fn(&str, usize) -> String;

fn json(lines: &[RejectedLine], words: ToWords<'_>) -> String {
    let row = |line: &RejectedLine| {
        json!({
            "name": line.id, "time": line.time, "stream": one_line(&line.stream), "reason": words(&line.reason, usize::MAX),
            "size": line.size, "whole": line.is_whole, "beginning": words(&line.beginning, BEGINNING),
        })
    };
    format!("{:#}\n", lines.iter().map(row).collect::<serde_json::Value>())
}

fn text(lines: &[RejectedLine], words: ToWords<'_>) -> String {
    if lines.is_empty() {
        return "no line is set aside\n".to_owned();
    }
    let heads = [
        ("name", Align::Left),
        ("set aside", Align::Left),
        ("lines of", Align::Left),
        ("bytes", Align::Right),
        ("because", Align::Left),
        ("line", Align::Left),
    ];
    let row = |line: &RejectedLine| {
        [
            line.id.clone(),
            ago(line.time),
            one_line(&line.stream).into_owned(),
            line.size.to_string(),
            words(last_words(&line.reason), REASON),
            words(&line.beginning, BEGINNING),
        ]
    };
    table::text(heads, &lines.iter().map(row).collect::<Vec<_>>())
}

/// A reason without what comes before the server's own words, which every line that it refuses has: only they differ.
fn last_words(reason: &str) -> &str {
    let words = reason.split_once("): ").map_or(reason, |(_, words)| words);
    words.strip_prefix("the server answered ").filter(|words| words.starts_with("HTTP ")).unwrap_or(words)
}

fn show(flags: &TheseFlags) -> ExitCode {
    let subject = subject(&flags.target);
    if let Err(reason) = know_secrets(&subject) {
        return fail(unmasked(&reason));
    }
    let lines = match chosen(&subject, flags) {
        Ok(lines) => lines,
        Err(error) => return fail(error),
    };
    let mut out = io::stdout().lock();
    let mut show = |line: &RejectedLine| {
        // Beside the lines, which may be meant for another program.
        note(format!("{}, of {}, set aside {}: {}", line.id, line.stream, ago(line.time), line.reason));
        writeln!(out, "{}", one_line(&redact(&line.beginning)))
    };
    if lines.iter().try_for_each(&mut show).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn discard(flags: &TheseFlags) -> ExitCode {
    let subject = subject(&flags.target);
    let discard = || {
        let manager = manager(&subject)?;
        if flags.all {
            return forget(manager, "all", "");
        }
        let lines = chosen(&subject, flags)?;
        forget_these(manager, lines.into_iter().map(|line| line.id).collect(), "")
    };
    match discard() {
        Ok(count) => print(&format!("{} discarded\n", counted(count, "line"))),
        Err(error) => fail(error),
    }
}

fn retry(flags: &TheseFlags) -> ExitCode {
    let subject = subject(&flags.target);
    let (manager, mut lines) = match manager(&subject).and_then(|manager| Ok((manager, chosen(&subject, flags)?))) {
        Ok(found) => found,
        Err(error) => return fail(error),
    };
    // In the order in which they were made.
    lines.reverse();
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for line in lines {
        match retake(manager, &line) {
            Ok(()) => taken.push(line.id),
            Err(reason) => left.push(format!("{} stays: {reason}", line.id)),
        }
    }
    let count = taken.len() as u64;
    let forgotten = forget_these(manager, taken, RETRIED);
    let code = print(&format!("{} given to the logger again\n", counted(count, "line")));
    if let Err(error) = forgotten {
        return fail(format!("they are still set aside: {error}"));
    }
    left.into_iter().fold(code, |_, reason| fail(reason))
}

fn retake(manager: &Manager, line: &RejectedLine) -> Result<(), String> {
    if !line.is_whole {
        return Err("it is not kept whole".to_owned());
    }
    let asked = match line.stream.as_str() {
        // The front takes them, as it takes osqueryd's.
        "results" => ask(manager, &[("string", &line.beginning)]),
        stream => ask(manager, &[("action", "retake"), ("stream", stream), ("line", &line.beginning)]),
    };
    asked.map(drop)
}

/// Has these forgotten: how many it were.
fn forget_these(manager: &Manager, names: Vec<String>, since: &str) -> Result<u64, String> {
    names.chunks(NAMES).map(|names| forget(manager, &names.join(","), since)).sum()
}

/// `since` is for the log.
fn forget(manager: &Manager, names: &str, since: &str) -> Result<u64, String> {
    ask_for_count(manager, &[("action", "forget"), ("ids", names), ("since", since)])
}

/// The lines that are meant, whole; each name must be there.
fn chosen(subject: &Subject, flags: &TheseFlags) -> Result<Vec<RejectedLine>, String> {
    let mut lines = read(subject, usize::MAX, usize::MAX)?;
    if let Some(name) = flags.names.iter().find(|name| !lines.iter().any(|line| line.id == **name)) {
        return Err(format!("no line that is set aside has the name {name}: see `osquery-remote-tls rejected list`"));
    }
    lines.retain(|line| flags.all || flags.names.contains(&line.id));
    Ok(lines)
}

fn read(subject: &Subject, most: usize, characters: usize) -> Result<Vec<RejectedLine>, String> {
    let directory = &subject.settings.buffer_path;
    let what = format!("the lines that were set aside in {}", directory.display());
    inspect::rejected(directory, most, characters).map_err(|error| unreadable(what, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_refusal_the_server_s_words_are_shown() {
        let refused =
            |words: &str| format!("the server refuses it alone, and takes others: logger (https://x/log): {words}");
        assert_eq!(last_words(&refused("the server answered HTTP 400: \"bad time\"")), "HTTP 400: \"bad time\"");
        let error = "the server answered with an error (HTTP 400): bad time";
        assert_eq!(last_words(&refused(error)), error);
        assert_eq!(last_words("it is no JSON"), "it is no JSON");
    }
}
