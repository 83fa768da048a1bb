//! What the checks found, as lines for a reader or as one JSON object.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Check, Occasion};
use crate::clock::unix_time;
use crate::secret::redact;
use crate::shown::one_line;
use crate::words::counted;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The check was made, and found nothing wrong.
    Ok,
    /// It could not be made, since something before it is wrong or absent.
    Skipped,
    /// It works, and an operator should look at it.
    Warning,
    /// What was checked doesn't work, or osqueryd won't start with it.
    Failure,
}

impl Level {
    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check that found it.
    pub check: Check,
    /// How grave it is.
    pub level: Level,
    /// What was found, in plain words.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// What else a reader may want to see, a line each.
    pub details: Vec<String>,
}

/// What the doctor's exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// 0: all is well.
    Well = 0,
    /// 1: something failed.
    Failed = 1,
    /// 2: nothing failed, and an operator should look at the warnings.
    Warned = 2,
}

impl Finding {
    /// Whether an operator should act on it.
    #[must_use]
    pub fn is_problem(&self) -> bool {
        matches!(self.level, Level::Warning | Level::Failure)
    }
}

impl Verdict {
    /// Before a restart a warning is no reason against it.
    pub(super) fn of(findings: &[Finding], occasion: Occasion) -> Self {
        let has = |level| findings.iter().any(|finding| finding.level == level);
        match (has(Level::Failure), has(Level::Warning), occasion) {
            (true, ..) => Self::Failed,
            (false, true, Occasion::Now) => Self::Warned,
            _ => Self::Well,
        }
    }
}

/// How the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines of plain text.
    Plain,
    /// Lines with colours and symbols.
    Coloured,
    /// One JSON object at the end.
    Json,
}

/// How much of what was found is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// All findings, and at the end what is not well once more.
    All,
    /// Only what is not well.
    Problems,
}

/// What a report is about: the host's osqueryd, and what was read of it.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The flag file that was read.
    pub flagfile: String,
    /// Where osqueryd's manager is, or should be.
    pub socket: String,
    /// osqueryd's process, where it was found.
    pub process: Option<u32>,
    /// osqueryd's version, where it said it.
    pub osquery: Option<String>,
    /// The registered extension's version; `None` where none is registered.
    pub extension: Option<String>,
}

/// Collects findings, and writes each line as it comes: some checks take a while.
pub struct Report<'a> {
    out: &'a mut dyn Write,
    form: Form,
    amount: Amount,
    findings: Vec<Finding>,
    written: io::Result<()>,
}

impl<'a> Report<'a> {
    /// An empty report.
    pub fn new(out: &'a mut dyn Write, form: Form, amount: Amount) -> Self {
        Self { out, form, amount, findings: Vec::new(), written: Ok(()) }
    }

    /// Adds that a check found nothing wrong.
    pub fn ok(&mut self, check: Check, message: impl Into<String>) {
        self.ok_with(check, message, Vec::new());
    }

    /// Adds that a check found nothing wrong, with lines of details below it.
    pub fn ok_with(&mut self, check: Check, message: impl Into<String>, details: Vec<String>) {
        self.add(Finding { check, level: Level::Ok, message: message.into(), remedy: None, details });
    }

    /// Adds that a check could not be made, and why.
    pub fn skip(&mut self, check: Check, why: impl Into<String>) {
        self.add(Finding { check, level: Level::Skipped, message: why.into(), remedy: None, details: Vec::new() });
    }

    /// Adds something that works and that an operator should look at, and what to do about it.
    pub fn warn(&mut self, check: Check, message: impl Into<String>, remedy: impl Into<String>) {
        self.problem(check, Level::Warning, message, remedy, Vec::new());
    }

    /// Adds something that doesn't work, and what to do about it.
    pub fn fail(&mut self, check: Check, message: impl Into<String>, remedy: impl Into<String>) {
        self.problem(check, Level::Failure, message, remedy, Vec::new());
    }

    /// A warning or a failure, with more to see.
    pub fn problem(
        &mut self,
        check: Check,
        level: Level,
        message: impl Into<String>,
        remedy: impl Into<String>,
        details: Vec<String>,
    ) {
        self.add(Finding { check, level, message: message.into(), remedy: Some(remedy.into()), details });
    }

    /// Whether a check has found nothing yet.
    #[must_use]
    pub fn is_clean(&self, check: Check) -> bool {
        self.findings.iter().all(|finding| finding.check != check)
    }

    /// Whether a check was made and has not failed.
    #[must_use]
    pub fn is_well(&self, check: Check) -> bool {
        let of_check = self.findings.iter().filter(|finding| finding.check == check);
        let (mut made, mut well) = (false, true);
        for finding in of_check {
            made = true;
            well &= matches!(finding.level, Level::Ok | Level::Warning);
        }
        made && well
    }

    /// Whether a check has failed.
    #[must_use]
    pub fn has_failed(&self, check: Check) -> bool {
        self.findings.iter().any(|finding| finding.check == check && finding.level == Level::Failure)
    }

    /// How many findings there are of a level.
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// Writes what is left to write: what is not well and the counts, or all of it as JSON. The error is the first one in
    /// writing.
    pub fn finish(mut self, about: &About) -> io::Result<Vec<Finding>> {
        let text = match (self.form, self.amount) {
            (Form::Json, _) => format!("{}\n", self.as_json(about)),
            (_, Amount::Problems) => String::new(),
            (_, Amount::All) => self.ending(),
        };
        self.write(&text);
        self.written.map(|()| self.findings)
    }

    fn counts(&self) -> [usize; 4] {
        [Level::Ok, Level::Skipped, Level::Warning, Level::Failure].map(|level| self.count(level))
    }

    fn as_json(&self, about: &About) -> Value {
        let [ok, skipped, warnings, failures] = self.counts();
        let shown = |finding: &&Finding| self.amount == Amount::All || finding.is_problem();
        let findings: Vec<Value> = self.findings.iter().filter(shown).map(as_json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "host": rustix::system::uname().nodename().to_string_lossy(),
            "time": unix_time(),
            "versions": {
                "doctor": env!("CARGO_PKG_VERSION"), "extension": about.extension, "osquery": about.osquery,
            },
            "flagfile": about.flagfile,
            "socket": about.socket,
            "process": about.process,
            "counts": {"ok": ok, "skipped": skipped, "warnings": warnings, "failures": failures},
            "findings": findings,
        })
    }

    /// What is not well once more, where a reader's eye rests, and the counts.
    fn ending(&self) -> String {
        let [ok, skipped, warnings, failures] = self.counts();
        let problems: String = self
            .findings
            .iter()
            .filter(|finding| finding.is_problem())
            .map(|finding| lines(finding, self.form))
            .collect();
        let again = if problems.is_empty() { String::new() } else { format!("\nWhat is not well:\n{problems}\n") };
        format!("{again}{ok} ok, {skipped} skipped, {}, {failures} failed\n", counted(warnings as u64, "warning"))
    }

    fn add(&mut self, finding: Finding) {
        // Servers repeat secrets in their errors: masked here, wherever the message was made.
        let masked = |text: String| redact(&text).into_owned();
        let finding = Finding {
            check: finding.check,
            level: finding.level,
            message: masked(finding.message),
            remedy: finding.remedy.map(masked),
            details: finding.details.into_iter().map(masked).collect(),
        };
        if self.form != Form::Json && (self.amount == Amount::All || finding.is_problem()) {
            let text = lines(&finding, self.form);
            self.write(&text);
        }
        self.findings.push(finding);
    }

    fn write(&mut self, text: &str) {
        if self.written.is_ok() {
            self.written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "check": finding.check.name(),
        "level": finding.level.as_str(),
        "message": finding.message,
        "remedy": finding.remedy,
        "details": finding.details,
    })
}

/// A finding's line, and indented below it the remedy and the details.
fn lines(finding: &Finding, form: Form) -> String {
    let (word, symbol, colour) = match finding.level {
        Level::Ok => ("ok  ", '✓', 32),
        Level::Skipped => ("skip", '-', 2),
        Level::Warning => ("warn", '!', 33),
        Level::Failure => ("FAIL", '✗', 31),
    };
    let (head, arrow) = match form {
        Form::Coloured => (format!("\x1b[{colour}m{symbol} {word}\x1b[0m"), "→"),
        _ => (word.to_owned(), "->"),
    };
    let mut text = format!("{head} {}: {}\n", finding.check.name(), one_line(&finding.message));
    for detail in &finding.details {
        text.push_str(&format!("       {}\n", one_line(detail)));
    }
    if let Some(remedy) = &finding.remedy {
        text.push_str(&format!("     {arrow} {}\n", one_line(remedy)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn report(form: Form, amount: Amount) -> String {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, form, amount);
        let _secret = Secret::new("hush-of-the-report");
        report.ok_with(Check::TlsHandshake, "good", vec!["subject".to_owned()]);
        report.fail(Check::Clock, "wrong: hush-of-the-report\nok   forged: \x1b[2J", "set it now");
        let _findings = report.finish(&About { flagfile: "/f".to_owned(), ..About::default() }).unwrap();
        String::from_utf8(out).unwrap()
    }

    const PROBLEM: &str = "FAIL clock: wrong: <hidden>\\nok   forged: \\u{1b}[2J\n     -> set it now\n";

    #[test]
    fn plain_lines_are_plain_and_what_others_say_stays_on_its_line() {
        let expected = format!(
            "ok   tls handshake: good\n       subject\n{PROBLEM}\nWhat is not well:\n{PROBLEM}\n\
             1 ok, 0 skipped, 0 warnings, 1 failed\n"
        );
        assert_eq!(report(Form::Plain, Amount::All), expected);
    }

    #[test]
    fn a_quiet_report_is_what_is_not_well_and_nothing_where_all_is() {
        assert_eq!(report(Form::Plain, Amount::Problems), PROBLEM);
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, Form::Plain, Amount::Problems);
        report.ok(Check::Clock, "good");
        report.skip(Check::Buffers, "why not");
        let _findings = report.finish(&About::default()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "");
    }

    #[test]
    fn a_terminal_gets_colours_and_symbols() {
        let text = report(Form::Coloured, Amount::All);
        assert!(text.starts_with("\x1b[32m✓ ok  \x1b[0m tls handshake: good\n"), "{text:?}");
        assert!(text.contains("\x1b[31m✗ FAIL\x1b[0m clock: "), "{text:?}");
    }

    #[test]
    fn json_holds_the_same() {
        let json: Value = serde_json::from_str(&report(Form::Json, Amount::All)).unwrap();
        assert_eq!(json["counts"], json!({"ok": 1, "skipped": 0, "warnings": 0, "failures": 1}));
        assert_eq!(json["findings"][1]["check"], "clock");
        assert_eq!(json["findings"][1]["level"], "failure");
        assert!(json["findings"][1]["message"].as_str().unwrap().starts_with("wrong: <hidden>\n"));
        assert!(!json["host"].as_str().unwrap().is_empty() && json["time"].as_i64().unwrap() > 1_700_000_000);
        assert_eq!(json["versions"], json!({"doctor": env!("CARGO_PKG_VERSION"), "extension": null, "osquery": null}));
        let json: Value = serde_json::from_str(&report(Form::Json, Amount::Problems)).unwrap();
        assert_eq!(json["findings"].as_array().unwrap().len(), 1);
    }
}
