//! The extension's own log: glog-like lines on stderr, as osquery writes its own, with every secret masked.
//!
//! osqueryd passes its stderr on to its extensions, so the lines land where osquery's own do (the journal, a
//! console). They never become status lines: an extension whose log fed its own logger would never be silent.
//!
//! By meaning: ERROR is a loss, or an operator is needed; WARN is unexpected, nothing lost; INFO is a change of
//! state; DEBUG (`--verbose`) doesn't grow with load.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};
use time::OffsetDateTime;

use crate::secret::redact;

struct Stderr;

/// Starts the log; `verbose` shows DEBUG lines too.
pub fn start(verbose: Verbosity) {
    // Only the first start in a process takes effect, which is what tests in one process need.
    let _ = log::set_logger(&Stderr);
    set_verbosity(verbose);
    // A panic's text goes the same way, and is masked there.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// INFO and above.
    Normal,
    /// DEBUG too.
    Verbose,
}

/// Changes how much is logged from now on.
pub fn set_verbosity(verbose: Verbosity) {
    log::set_max_level(match verbose {
        Verbosity::Normal => LevelFilter::Info,
        Verbosity::Verbose => LevelFilter::Debug,
    });
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' debug lines hold headers and bodies: they stay out.
        metadata.target().starts_with("osquery_remote_tls") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let line = format!(
            "{}{} remote_tls[{}] {}:{}] {}\n",
            letter(record.level()),
            calendar(OffsetDateTime::now_utc()),
            std::process::id(),
            record.file().and_then(|file| file.rsplit('/').next()).unwrap_or("?"),
            record.line().unwrap_or(0),
            redact(&text),
        );
        // One write a line, so that lines of several processes on one stderr don't mix. Nobody to tell if it fails.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn letter(level: Level) -> char {
    match level {
        Level::Error => 'E',
        Level::Warn => 'W',
        Level::Info => 'I',
        Level::Debug | Level::Trace => 'D',
    }
}

/// `MMDD hh:mm:ss.uuuuuu` in UTC, as glog has it.
fn calendar(at: OffsetDateTime) -> String {
    let (month, day) = (u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    format!("{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{:06}", at.microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_moment_is_shown_as_glog_shows_it() {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::new(1_795_407_122, 42_000);
        assert_eq!(calendar(at), "1123 04:12:02.000042");
    }
}
