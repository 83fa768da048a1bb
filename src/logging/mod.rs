//! The extension's own log: glog-like lines on stderr, as osquery writes its own, with every secret masked; in a file
//! and in the system's log too where our flags ask for that.
//!
//! osqueryd passes its stderr on to its extensions, so the lines land where osquery's own do (the journal, a
//! console). They never become status lines: an extension whose log fed its own logger would never be silent.
//!
//! By meaning: ERROR is a loss, or an operator is needed; WARN is unexpected, nothing lost; INFO is a change of
//! state; DEBUG doesn't grow with load. docs/log.md explains every WARN and ERROR line, and a test compares it.

mod file;
mod streak;
mod syslog;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::{OffsetDateTime, UtcOffset};
use tz::TimeZone;

use self::file::LogFile;
pub use self::streak::{Failed, Past, Streak};
use self::syslog::Syslog;
use crate::lock::{Mutex, MutexGuard};
use crate::shown::shown;
use crate::words::counted;

/// The target of `tls_dump`'s lines, which go to stderr and nowhere else: they hold what hosts and servers tell each
/// other.
pub const DUMP: &str = "osquery_remote_tls::tls_dump";

/// Characters of a line that are written, and of a dumped body.
const LONGEST_LINE: usize = 8 << 10;
/// Characters of a dumped body that are shown: more than of any other line, since a dump is asked for.
pub const DUMPED: usize = 64 << 10;

/// Everything that the log goes to.
struct Output {
    destinations: Mutex<Destinations>,
}

static OUTPUT: Output = Output { destinations: Mutex::new(Destinations { file: None, syslog: None }) };

/// Where lines go besides stderr.
struct Destinations {
    file: Option<Destination<LogFile>>,
    syslog: Option<Destination<Syslog>>,
}

/// A file or a socket that lines go to, with its name for messages, and how many lines it has refused in a row.
struct Destination<W> {
    writer: W,
    name: String,
    refused: u64,
}

/// A destination begins to refuse lines, or takes them again. It is logged once no lock is held.
enum StateChange {
    Refuses(String, io::Error),
    TakesAgain(String, u64),
}

/// How much is logged at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// What `log_level` says.
    Normal,
    /// What `log_level` says, and all of DEBUG.
    Verbose,
}

/// Where the log goes besides stderr, which always has it, and how much of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct LogSettings {
    /// Our `log_level`; DEBUG with osqueryd's `verbose`.
    #[serde(serialize_with = "write_level", deserialize_with = "read_level")]
    pub level: LevelFilter,
    /// Our `log_file`.
    pub file: Option<PathBuf>,
    /// Our `log_syslog`: the socket of the system's log.
    pub syslog: Option<PathBuf>,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: LevelFilter::Info, file: None, syslog: None }
    }
}

fn write_level<S: Serializer>(level: &LevelFilter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(level.as_str())
}

/// A level that only another version knows is INFO.
fn read_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LevelFilter, D::Error> {
    Ok(String::deserialize(deserializer)?.parse().unwrap_or(LevelFilter::Info))
}

/// Starts the log, on stderr.
pub fn start(verbose: Verbosity) {
    // Only the first start in a process takes effect, which is what tests in one process need.
    let _ = log::set_logger(&OUTPUT);
    set_level(LevelFilter::Info, verbose);
    // A panic's text goes the same way, and is masked there.
    std::panic::set_hook(Box::new(|panic| log::error!("a panic, please report it: {panic}")));
}

/// Has the log go where `settings` say from now on, and as much of it.
pub fn configure(settings: &LogSettings, verbose: Verbosity) {
    set_level(settings.level, verbose);
    let mut destinations = OUTPUT.destinations();
    if destinations.file.as_ref().map(|file| file.writer.path()) != settings.file.as_deref() {
        destinations.file =
            settings.file.clone().map(|path| Destination::new("log_file", &path.clone(), LogFile::new(path)));
    }
    if destinations.syslog.as_ref().map(|syslog| syslog.writer.path()) != settings.syslog.as_deref() {
        destinations.syslog =
            settings.syslog.clone().map(|path| Destination::new("log_syslog", &path.clone(), Syslog::new(path)));
    }
}

fn set_level(level: LevelFilter, verbose: Verbosity) {
    log::set_max_level(match verbose {
        Verbosity::Normal => level,
        Verbosity::Verbose => LevelFilter::Debug,
    });
}

impl Output {
    fn destinations(&self) -> MutexGuard<'_, Destinations> {
        self.destinations.lock()
    }
}

impl Log for Output {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' debug lines hold headers and bodies: they stay out.
        metadata.target().starts_with("osquery_remote_tls") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let most = if record.target() == DUMP { DUMPED } else { LONGEST_LINE };
        let text = shown(&record.args().to_string(), most);
        let line = format!(
            "{}{} remote_tls[{}] {}:{}] {text}\n",
            letter(record.level()),
            calendar(here(OffsetDateTime::now_utc())),
            std::process::id(),
            record.file().and_then(|file| file.rsplit('/').next()).unwrap_or("?"),
            record.line().unwrap_or(0),
        );
        // One write a line, so that lines of several processes on one stderr don't mix. If it fails, there is no place
        // to say so.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
        if record.target() == DUMP {
            return;
        }
        let changes = self.destinations().write(record.level(), &line, &text);
        for change in changes {
            change.log();
        }
    }

    fn flush(&self) {}
}

impl Destinations {
    fn write(&mut self, level: Level, line: &str, text: &str) -> Vec<StateChange> {
        let file = self.file.as_mut().and_then(|file| {
            let outcome = file.writer.write(line);
            file.note(outcome)
        });
        let syslog = self.syslog.as_mut().and_then(|syslog| {
            let outcome = syslog.writer.write(level, text);
            syslog.note(outcome)
        });
        file.into_iter().chain(syslog).collect()
    }
}

impl<W> Destination<W> {
    fn new(flag: &str, path: &Path, writer: W) -> Self {
        Self { writer, name: format!("{flag} {}", path.display()), refused: 0 }
    }

    /// The first refusal in a row is a change of state, and so is the first success after it.
    fn note(&mut self, outcome: io::Result<()>) -> Option<StateChange> {
        match outcome {
            Ok(()) => {
                let missing = std::mem::take(&mut self.refused);
                (missing > 0).then(|| StateChange::TakesAgain(self.name.clone(), missing))
            }
            Err(error) => {
                self.refused += 1;
                (self.refused == 1).then(|| StateChange::Refuses(self.name.clone(), error))
            }
        }
    }
}

impl StateChange {
    /// Goes through the log itself, so that the destinations which work have it too. A destination that refuses this line
    /// as well makes no further change: its refusals are in a row by now.
    fn log(self) {
        match self {
            Self::Refuses(name, error) => log::warn!("{name} can't be written, the log goes on without it: {error}"),
            Self::TakesAgain(name, missing) => {
                log::info!("{name} is written again; missing there: {}", counted(missing, "line"))
            }
        }
    }
}

fn letter(level: Level) -> char {
    match level {
        Level::Error => 'E',
        Level::Warn => 'W',
        Level::Info => 'I',
        Level::Debug | Level::Trace => 'D',
    }
}

/// A moment by the host's clock: glog has the local time, and the two logs stand in one stream. `TZ` and
/// `/etc/localtime` are looked at each time, since a time zone can change; UTC where they say nothing that can be used.
fn here(at: OffsetDateTime) -> OffsetDateTime {
    let zone = match std::env::var("TZ") {
        Ok(name) if !name.is_empty() => TimeZone::from_posix_tz(&name),
        _ => TimeZone::local(),
    };
    let offset = zone.ok().and_then(|zone| {
        let kind = zone.find_local_time_type(at.unix_timestamp()).ok()?;
        UtcOffset::from_whole_seconds(kind.ut_offset()).ok()
    });
    offset.map_or(at, |offset| at.to_offset(offset))
}

/// `MMDD hh:mm:ss.uuuuuu`, as glog has it.
fn calendar(at: OffsetDateTime) -> String {
    let (month, day) = (u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    format!("{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{:06}", at.microsecond())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_shown_as_glog_shows_it() {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::new(1_795_407_122, 42_000);
        assert_eq!(calendar(at), "1123 04:12:02.000042");
        let east = UtcOffset::from_hms(5, 30, 0).unwrap();
        assert_eq!(calendar(at.to_offset(east)), "1123 09:42:02.000042");
    }

    #[test]
    fn a_destination_that_refuses_is_said_once_and_its_return_with_the_count() {
        let mut destination = Destination::new("log_file", Path::new("/p"), ());
        let mut note = |outcome: io::Result<()>| destination.note(outcome);
        assert!(note(Ok(())).is_none());
        assert!(
            matches!(note(Err(io::ErrorKind::NotFound.into())), Some(StateChange::Refuses(name, _)) if name == "log_file /p")
        );
        assert!(note(Err(io::ErrorKind::NotFound.into())).is_none());
        assert!(matches!(note(Ok(())), Some(StateChange::TakesAgain(_, 2))));
        assert!(note(Ok(())).is_none());
    }
}
