//! `osquery-remote-tls logger test`: a status line of its own on the whole way, by osqueryd and the running extension, until
//! the server has it.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;

use super::{ask, fail, manager, print, running, subject};
use crate::cli::arguments::{LoggerCommand, TestFlags};
use crate::clock::{calendar_time, unix_time};
use crate::doctor::subject::Subject;
use crate::doctor::told::{Told, Waiting};
use crate::extension::manager::Manager;
use crate::remote::Endpoint;
use crate::shown::shown;
use crate::words::{Span, counted};

/// The stream of status lines.
const STREAM: &str = "statuses";

/// Between two looks whether it is there.
const PAUSE: Duration = Duration::from_millis(100);

/// Without `--timeout` the line may wait for the sender's period, and then as long as this for the request itself.
const SENDING_LIMIT: Duration = Duration::from_secs(30);

/// Characters of an error that are shown.
const ERROR: usize = 500;

const DROPPED: &str = "status lines were dropped meanwhile, and it may be among them";

/// Does what is asked for.
#[must_use]
pub fn run(command: &LoggerCommand) -> ExitCode {
    let LoggerCommand::Test(flags) = command;
    let subject = subject(&flags.target);
    let began = Instant::now();
    match test(&subject, flags, began) {
        Ok(message) => {
            let took = Span(began.elapsed());
            print(&format!("the server has the status line \"{message}\", after {took}\n"))
        }
        Err(reason) => fail(reason),
    }
}

/// Sends a line and waits for it: its message.
fn test(subject: &Subject, flags: &TestFlags, began: Instant) -> Result<String, String> {
    let limit = flags.timeout.unwrap_or_else(|| subject.settings.logger.period + SENDING_LIMIT);
    let manager = manager(subject)?;
    let before = subject.told.as_ref().map_err(Clone::clone)?;
    let message = format!("osquery-remote-tls logger test {:08x}", fastrand::u32(..));
    let call = [("status", "true"), ("log", &*status_line(before, &message))];
    ask(manager, &call)?;
    let mut journey = Journey { before: statuses(before), end: None };
    loop {
        let told = told(subject)?;
        match journey.look(&statuses(&told))? {
            Stage::Done { dropped: true, .. } => return Err(format!("{DROPPED}: the extension's log says why")),
            Stage::Done { set_aside, .. } => {
                return reason_set_aside(manager, &message).filter(|_| set_aside).map_or(Ok(message), Err);
            }
            Stage::Waits if began.elapsed() >= limit => return Err(late(subject, &told, &message, limit, began)),
            Stage::Waits => thread::sleep(PAUSE),
        }
    }
}

/// As osqueryd hands its own over.
fn status_line(told: &Told, message: &str) -> String {
    let now = OffsetDateTime::now_utc();
    json!([{
        "s": 0, "f": "remote_tls", "i": 0, "m": message, "h": told.enrollment.host_identifier,
        "c": calendar_time(now), "u": now.unix_timestamp(),
    }])
    .to_string()
}

fn told(subject: &Subject) -> Result<Told, String> {
    running(subject)?.told()
}

fn statuses(told: &Told) -> Waiting {
    told.buffers.iter().find(|row| row.stream == STREAM).cloned().unwrap_or_default()
}

/// Where the line is, by the counts of its stream.
struct Journey {
    /// Before it was written.
    before: Waiting,
    /// The count of lines done with that shows that this one is; `None` until the line was taken.
    end: Option<u64>,
}

/// How far it has come.
enum Stage {
    Waits,
    /// It doesn't wait any more: delivered, unless it is one of those that were dropped or set aside meanwhile.
    Done {
        dropped: bool,
        set_aside: bool,
    },
}

impl Journey {
    fn look(&mut self, now: &Waiting) -> Result<Stage, String> {
        if now.accepted < self.before.accepted || done(now) < done(&self.before) {
            return Err("another worker has taken over meanwhile: please run the test again".to_owned());
        }
        if now.accepted == self.before.accepted {
            return Ok(Stage::Waits);
        }
        let end = *self.end.get_or_insert(done(now) + now.waiting_lines);
        // What is delivered is counted a moment before it stops waiting.
        if done(now) < end && now.waiting_lines > 0 {
            return Ok(Stage::Waits);
        }
        Ok(Stage::Done { dropped: now.dropped > self.before.dropped, set_aside: now.set_aside > self.before.set_aside })
    }
}

/// Lines that don't wait any more.
fn done(row: &Waiting) -> u64 {
    row.delivered + row.dropped + row.set_aside
}

/// Why the server doesn't take it, where it is among the lines that were set aside.
fn reason_set_aside(manager: &Manager, message: &str) -> Option<String> {
    let rows = manager.table("remote_tls_rejected").unwrap_or_default();
    let ours = rows.iter().find(|row| row.get("beginning").is_some_and(|line| line.contains(message)))?;
    Some(format!("the status line is set aside: {}", shown(ours.get("reason")?, ERROR)))
}

/// Why it is not there in time: what the endpoint said last, or else what stands before it.
fn late(subject: &Subject, told: &Told, message: &str, limit: Duration, began: Instant) -> String {
    let row = statuses(told);
    let began = unix_time() - i64::try_from(began.elapsed().as_secs()).unwrap_or(0);
    let failed = told.of(Endpoint::Logger).filter(|logger| logger.consecutive_failures > 0);
    let reason = if row.accepted == statuses(subject.told.as_ref().unwrap_or(told)).accepted {
        "the extension takes no status lines (tls_disable_status_log is one reason)".to_owned()
    } else if let Some(logger) = failed {
        let age = if logger.last_failure < began { " before the test" } else { "" };
        format!("the logger endpoint{age}: {}", shown(logger.words(), ERROR))
    } else if !told.enrollment.enrolled && !told.enrollment.last_error.is_empty() {
        format!("this host is not enrolled: {}", shown(&told.enrollment.last_error, ERROR))
    } else {
        format!("{} waiting, and no request has failed: the server is slow", counted(row.waiting_lines, "line"))
    };
    format!(
        "the status line \"{message}\" is not at the server after {}: {reason}. It is kept, and sent when it can be",
        Span(limit)
    )
}
