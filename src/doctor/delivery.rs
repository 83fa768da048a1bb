//! What becomes of the lines, by the extension's own word: whether they wait or are dropped, and whether the server takes them
//! as they are meant to be sent. Those that are set aside lie in a file, which `buffers` looks at.

use super::fault::{Fault, Flags};
use super::subject::Subject;
use super::told::Told;
use super::{Check, Report};
use crate::clock::{day_and_time, unix_time};
use crate::remote::Endpoint;
use crate::words::counted;

/// A line that waits longer, in seconds, of an endpoint that works is behind.
const LATE: i64 = 15 * 60;

/// An answer by 413 that is older, in seconds, is past.
const RECENT: i64 = 3600;

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::Delivery;
    let told = match &subject.told {
        Ok(told) => told,
        Err(reason) => return report.skip(CHECK, reason.clone()),
    };
    // A failing endpoint has been told, with what waits for it.
    let is_told = report.has_failed(Check::LoggerEndpoint) || report.has_failed(Check::EnrollEndpoint);
    for (message, remedy) in problems(told, &Flags::of(subject), is_told, unix_time()) {
        report.warn(CHECK, message, remedy);
    }
    if report.is_clean(CHECK) {
        let (lines, _) = told.waiting();
        let discarded = match told.discarded() {
            0 => String::new(),
            discarded => format!(" but {} that an operator discarded", counted(discarded, "line")),
        };
        report.ok(CHECK, format!("{}, none was dropped since the worker began{discarded}", waiting(lines, 0)));
    }
}

/// How many lines wait, and since when the oldest does, where that is known.
pub(super) fn waiting(lines: u64, oldest: i64) -> String {
    let wait = if lines == 1 { "waits" } else { "wait" };
    let since = match oldest {
        0 => String::new(),
        time => format!(", the oldest since {}", day_and_time(time)),
    };
    format!("{} {wait}{since}", counted(lines, "line"))
}

/// What is wrong, and what to do; not that lines wait, where that has been told.
fn problems(told: &Told, flags: &Flags, is_told: bool, now: i64) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for row in &told.buffers {
        let stream = &row.stream;
        // What an operator has thrown away is no fault.
        let dropped = row.dropped.saturating_sub(row.discarded);
        if dropped > 0 {
            let were = if dropped == 1 { "was" } else { "were" };
            problems.push((
                format!("{stream}: {} {were} dropped since the worker began", counted(dropped, "line")),
                "the log says why; over a limit: see why the server was behind, raise --buffered_log_max or \
                 --buffer_max_bytes, or make room on the disk"
                    .to_owned(),
            ));
        }
    }
    let (lines, oldest) = told.waiting();
    if !is_told && lines > 0 && oldest > 0 && now - oldest > LATE {
        problems.push((
            waiting(lines, oldest),
            "after an outage they are sent slowly (docs/fleet.md says how); else see the logger endpoint".to_owned(),
        ));
    }
    if let Some(logger) = told.of(Endpoint::Logger) {
        if flags.compress && logger.requests > 0 && logger.compressed == Some(false) {
            problems.push((
                "the server takes no compressed requests: --logger_tls_compress has no effect".to_owned(),
                "set --logger_tls_compress=false, or have the server (or the proxy before it) take gzip".to_owned(),
            ));
        }
        let too_large = logger.last_error.contains("HTTP 413") && logger.last_failure + RECENT > now;
        if too_large && logger.consecutive_failures == 0 {
            let fault = Fault { endpoint: Endpoint::Logger, status: 413, words: &logger.last_error, flags };
            problems.push((
                format!(
                    "the server answers large requests by HTTP 413 ({} failed): smaller ones are sent",
                    logger.failures
                ),
                fault.remedy(),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::told::{Exchange, Waiting};
    use super::*;

    const NOW: i64 = 1_900_000_000;

    fn said(change: impl FnOnce(&mut Exchange, &mut Waiting)) -> Vec<String> {
        let mut logger =
            Exchange { name: "logger".to_owned(), requests: 5, compressed: Some(true), ..Exchange::default() };
        let mut results = Waiting { stream: "results".to_owned(), ..Waiting::default() };
        change(&mut logger, &mut results);
        let told = Told { endpoints: vec![logger], buffers: vec![results], ..Told::default() };
        let problems = problems(&told, &Flags { compress: true, ..Flags::default() }, false, NOW);
        problems.into_iter().map(|(message, remedy)| format!("{message} -> {remedy}")).collect()
    }

    #[test]
    fn what_is_lost_or_late_is_said() {
        assert_eq!(said(|_, _| {}), [""; 0]);
        assert!(said(|_, row| row.dropped = 3)[0].starts_with("results: 3 lines were dropped"));
        assert_eq!(said(|_, row| (row.dropped, row.discarded) = (3, 3)), [""; 0]);
        assert!(said(|_, row| (row.dropped, row.discarded) = (4, 3))[0].starts_with("results: 1 line was dropped"));
        let late = |row: &mut Waiting, age| (row.waiting_lines, row.oldest_time) = (9, NOW - age);
        assert!(
            said(|_, row| late(row, 3600))[0].starts_with("9 lines wait, the oldest since 2030-03-17 16:46:40 UTC")
        );
        assert_eq!(said(|_, row| late(row, 60)), [""; 0]);
    }

    #[test]
    fn what_the_server_does_not_take_is_said() {
        assert!(said(|row, _| row.compressed = Some(false))[0].contains("--logger_tls_compress has no effect"));
        assert_eq!(said(|row, _| row.compressed = None), [""; 0]);
        let too_large = |row: &mut Exchange, ago| {
            (row.last_failure, row.failures) = (NOW - ago, 4);
            row.last_error = "logger (https://x/log): the server answered HTTP 413".to_owned();
        };
        let words = said(|row, _| too_large(row, 60));
        assert!(words[0].contains("(4 failed)") && words[0].contains("client_max_body_size"), "{words:?}");
        assert_eq!(said(|row, _| too_large(row, 2 * RECENT)), [""; 0]);
    }
}
