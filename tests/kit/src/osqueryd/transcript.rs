//! What happened, in order: calls in both directions, registrations, children, and osqueryd's own log.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::{calendar, lock};

/// Entries kept; the oldest go first.
const ENTRIES: usize = 4000;
/// Characters of one entry.
const WIDTH: usize = 300;

/// The record of a run, and the bell that rings at each change of it.
#[derive(Debug)]
pub(super) struct Transcript {
    started: Instant,
    echo: bool,
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<String>,
    dropped: usize,
    children: String,
}

impl Transcript {
    /// With `echo`, what osqueryd would print goes to standard error, too.
    pub(super) fn new(echo: bool) -> Transcript {
        Transcript { started: Instant::now(), echo, kept: Mutex::default(), changed: Condvar::new() }
    }

    /// Notes a call or another detail.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        let entry = format!("{:9.3} {}", self.started.elapsed().as_secs_f64(), cut(text.as_ref()));
        let mut kept = lock(&self.kept);
        if kept.entries.len() == ENTRIES {
            kept.entries.pop_front();
            kept.dropped += 1;
        }
        kept.entries.push_back(entry);
        drop(kept);
        self.ring();
    }

    /// Notes what osqueryd prints on its standard error; `severity` is glog's 0 to 2.
    pub(super) fn print(&self, severity: u8, file: &str, line: u32, text: &str) {
        let letter = ["I", "W", "E"][usize::from(severity.min(2))];
        if self.echo {
            let process = std::process::id();
            eprintln!("{letter}{} {process:5} {file}:{line}] {text}", calendar::glog_time());
        }
        self.note(format!("log  {letter} {file}:{line}] {text}"));
    }

    /// Notes a line that a child wrote.
    pub(super) fn child(&self, pid: u32, line: &str) {
        if self.echo {
            eprintln!("{line}");
        }
        let mut kept = lock(&self.kept);
        kept.children.push_str(line);
        kept.children.push('\n');
        drop(kept);
        self.note(format!("child {pid} wrote: {line}"));
    }

    /// Everything that children wrote so far.
    pub(super) fn children(&self) -> String {
        lock(&self.kept).children.clone()
    }

    /// Wakes the threads that wait for a change, to look again.
    pub(super) fn ring(&self) {
        self.changed.notify_all();
    }

    /// Returns at the next change, or when the time is over.
    pub(super) fn wait_for_change(&self, limit: Duration) {
        drop(self.changed.wait_timeout(lock(&self.kept), limit));
    }

    /// The record as text.
    pub(super) fn render(&self) -> String {
        let kept = lock(&self.kept);
        let mut text = String::new();
        if kept.dropped > 0 {
            let _ = writeln!(text, "({} earlier entries are gone)", kept.dropped);
        }
        for entry in &kept.entries {
            let _ = writeln!(text, "{entry}");
        }
        text
    }
}

/// The beginning of a long text, on one line.
pub(super) fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(WIDTH).map(|c| if c == '\n' { ' ' } else { c }).collect();
    if shown.len() < text.len() && text.chars().nth(WIDTH).is_some() {
        let _ = write!(shown, "… ({} bytes)", text.len());
    }
    shown
}
