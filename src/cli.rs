//! The command line and our own flag file: one clap definition for both.
//!
//! osqueryd starts an autoloaded extension with `--socket`, `--timeout`, `--interval` and maybe `--verbose`, and
//! nothing else can be passed; what osquery has no flag for is therefore also read from
//! `/etc/osquery/remote_tls.flags`, the same `--name=value` lines as osquery's own flag files.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::logging::Verbosity;

/// Where osqueryd listens for extensions unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/osquery/osquery.em";

/// Where osqueryd's own flags are unless it is told otherwise.
pub const OSQUERY_FLAGFILE: &str =
    if cfg!(target_os = "macos") { "/var/osquery/osquery.flags" } else { "/etc/osquery/osquery.flags" };

/// Where our own flags are, unless [`FLAGFILE_VARIABLE`] names another file: beside osquery's own flag file.
pub const DEFAULT_FLAGFILE: &str =
    if cfg!(target_os = "macos") { "/var/osquery/remote_tls.flags" } else { "/etc/osquery/remote_tls.flags" };

/// The environment variable that names another flag file of ours.
pub const FLAGFILE_VARIABLE: &str = "REMOTE_TLS_FLAGFILE";

/// osquery extension: config, logger and distributed plugins named `remote_tls`, which speak osquery's remote
/// TLS API. osqueryd starts it (see extensions.load) and hands it all of its own flags.
#[derive(Debug, Parser)]
#[command(name = "osquery-remote-tls", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do in place of being an extension.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// osqueryd's extension manager socket
    #[arg(long, alias = "extensions_socket", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Seconds to wait for the extension manager
    #[arg(long, alias = "extensions_timeout", value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub timeout: Duration,

    /// Seconds between two checks that osqueryd still knows this extension
    #[arg(long, alias = "extensions_interval", value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub interval: Duration,

    /// Log more (also osqueryd's own --verbose)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", action = ArgAction::Set)]
    pub verbose: bool,

    /// Be the worker of a supervisor, which hands over all that one needs
    #[arg(long, hide = true)]
    pub worker: bool,

    /// What osquery has no flag for.
    #[command(flatten)]
    pub own: OwnFlags,
}

/// What an operator runs by hand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check this host, and change nothing
    ///
    /// Checks flags, files and their permissions, osqueryd, the way to the server, the server and the buffers, and
    /// says what to do. Exit code 0: all is well, 1: something failed, 2: there are warnings. See docs/doctor.md.
    Doctor(DoctorFlags),
}

/// How the host is to be checked.
#[derive(Args, Debug)]
pub struct DoctorFlags {
    /// osqueryd's flag file
    #[arg(long, value_name = "PATH", default_value = OSQUERY_FLAGFILE)]
    pub flagfile: PathBuf,

    /// Our own flag file [default: REMOTE_TLS_FLAGFILE, or /etc/osquery/remote_tls.flags]
    #[arg(long = "own_flagfile", value_name = "PATH")]
    pub own_flagfile: Option<PathBuf>,

    /// Try an enrollment too: the server then knows a host more, whose key is not kept
    #[arg(long)]
    pub enroll: bool,

    /// Write the findings as a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Our own flags: on the command line, in our flag file, and, where it is safe to set them remotely, as
/// `custom_remote_tls_<name>` in the `options` of a configuration.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnFlags {
    /// Directory of the line buffers [default: remote_tls beside osquery's database_path]
    #[arg(long = "buffer_path", value_name = "PATH")]
    pub buffer_path: Option<PathBuf>,

    /// Bytes that each buffer (results, statuses) may take on disk; the oldest lines go first [default: 1073741824]
    #[arg(long = "buffer_max_bytes", value_name = "BYTES")]
    pub buffer_max_bytes: Option<String>,

    /// Bytes that must stay free on the buffers' disk: below this they don't grow [default: 104857600]
    #[arg(long = "buffer_min_free_bytes", value_name = "BYTES")]
    pub buffer_min_free_bytes: Option<String>,

    /// Bytes that the body of a log request may have before compression [default: 1048576]
    #[arg(long = "logger_max_request_bytes", value_name = "BYTES")]
    pub logger_max_request_bytes: Option<String>,

    /// Bytes of log lines that are sent a second after an outage, at most; 0 is no limit [default: 4194304]
    #[arg(long = "logger_drain_bytes_per_second", value_name = "BYTES")]
    pub logger_drain_bytes_per_second: Option<String>,

    /// Make each batch line (osqueryd's --logger_event_type=false) the event lines that it stands for [default: false]
    #[arg(long = "logger_expand_events", value_name = "BOOL")]
    pub logger_expand_events: Option<String>,

    /// Enrollments in any hour, at most [default: 60]
    #[arg(long = "enroll_max_per_hour", value_name = "NUMBER")]
    pub enroll_max_per_hour: Option<String>,

    /// Seconds that a request may take, from connecting to the last byte of its answer [default: 60]
    #[arg(long = "request_timeout", value_name = "SECONDS")]
    pub request_timeout: Option<String>,

    /// What is logged: error, warning, info or debug, which osqueryd's verbose means too [default: info]
    #[arg(long = "log_level", value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// A file that the log goes to besides stderr; at 10 MiB it becomes PATH.1
    #[arg(long = "log_file", value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// Whether the log goes to the system's log too; the path of its socket means yes [default: false]
    #[arg(long = "log_syslog", value_name = "BOOL|PATH")]
    pub log_syslog: Option<String>,

    /// Seconds to wait for osqueryd to come back before ending [default: 60]
    #[arg(long = "return_timeout", value_name = "SECONDS")]
    pub return_timeout: Option<String>,
}

/// A flag file is parsed line by line with the definition of the command line.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct FlagfileLine {
    #[command(flatten)]
    own: OwnFlags,
}

/// A line of the flag file that can't be used. The line is passed over, the others count.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlagfileError {
    /// The file is there and can't be read.
    #[error("can't read {path}: {reason}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// One line is no `--name=value` of ours.
    #[error("{path}:{line}: {reason}; allowed are {allowed}", path = .path.display(), allowed = allowed_flags())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Cli {
    /// How much is logged at least.
    #[must_use]
    pub fn verbosity(&self) -> Verbosity {
        if self.verbose { Verbosity::Verbose } else { Verbosity::Normal }
    }
}

impl OwnFlags {
    /// These flags, and where they are silent those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            buffer_path: self.buffer_path.or(other.buffer_path),
            buffer_max_bytes: self.buffer_max_bytes.or(other.buffer_max_bytes),
            buffer_min_free_bytes: self.buffer_min_free_bytes.or(other.buffer_min_free_bytes),
            logger_max_request_bytes: self.logger_max_request_bytes.or(other.logger_max_request_bytes),
            logger_drain_bytes_per_second: self.logger_drain_bytes_per_second.or(other.logger_drain_bytes_per_second),
            logger_expand_events: self.logger_expand_events.or(other.logger_expand_events),
            enroll_max_per_hour: self.enroll_max_per_hour.or(other.enroll_max_per_hour),
            request_timeout: self.request_timeout.or(other.request_timeout),
            log_level: self.log_level.or(other.log_level),
            log_file: self.log_file.or(other.log_file),
            log_syslog: self.log_syslog.or(other.log_syslog),
            return_timeout: self.return_timeout.or(other.return_timeout),
        }
    }

    /// The same flags as arguments of a command line.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: &OsStr| {
            let mut argument = OsString::from(format!("--{name}="));
            argument.push(value);
            arguments.push(argument);
        };
        for (name, path) in [("buffer_path", &self.buffer_path), ("log_file", &self.log_file)] {
            if let Some(path) = path {
                add(name, path.as_os_str());
            }
        }
        for (name, value) in [
            ("buffer_max_bytes", &self.buffer_max_bytes),
            ("buffer_min_free_bytes", &self.buffer_min_free_bytes),
            ("logger_max_request_bytes", &self.logger_max_request_bytes),
            ("logger_drain_bytes_per_second", &self.logger_drain_bytes_per_second),
            ("logger_expand_events", &self.logger_expand_events),
            ("enroll_max_per_hour", &self.enroll_max_per_hour),
            ("request_timeout", &self.request_timeout),
            ("log_level", &self.log_level),
            ("log_syslog", &self.log_syslog),
            ("return_timeout", &self.return_timeout),
        ] {
            if let Some(value) = value {
                add(name, OsStr::new(value));
            }
        }
        arguments
    }

    /// Reads a flag file: `--name=value` a line, `#` begins a comment, the last line of a name counts. A file that
    /// isn't there holds no flags.
    #[must_use]
    pub fn read(path: &Path) -> (Self, Vec<FlagfileError>) {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Default::default(),
            Err(error) => {
                let error = FlagfileError::Unreadable { path: path.to_owned(), reason: error.to_string() };
                (Self::default(), vec![error])
            }
        }
    }

    /// The flags of a flag file's text; `path` is for its errors.
    #[must_use]
    pub fn parse(path: &Path, text: &str) -> (Self, Vec<FlagfileError>) {
        let mut flags = Self::default();
        let mut errors = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match FlagfileLine::try_parse_from([with_two_dashes(line.into())]) {
                Ok(parsed) => flags = parsed.own.or(flags),
                Err(error) => errors.push(FlagfileError::Line {
                    path: path.to_owned(),
                    line: index + 1,
                    reason: first_line(&error.to_string()),
                }),
            }
        }
        (flags, errors)
    }
}

/// The names of our own flags.
#[must_use]
pub fn own_flag_names() -> Vec<String> {
    let ours = OwnFlags::augment_args(clap::Command::new(""));
    ours.get_arguments().map(|flag| flag.get_id().to_string()).collect()
}

/// The same, for messages.
fn allowed_flags() -> String {
    own_flag_names().iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ")
}

/// gflags takes `-name` for `--name`, and so do the people who write osquery's flag files.
pub fn with_two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => format!("-{text}").into(),
        _ => argument,
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u64 = text.parse().map_err(|_| "a whole number of seconds is needed".to_owned())?;
    Ok(Duration::from_secs(seconds))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Cli {
        let arguments = arguments.iter().map(|&argument| with_two_dashes(argument.into()));
        Cli::parse_from(std::iter::once("remote_tls.ext".into()).chain(arguments))
    }

    #[test]
    fn osqueryd_s_arguments_are_understood() {
        let cli = parse(&["--verbose", "--socket", "/tmp/s.em", "--timeout", "5", "--interval", "7"]);
        assert_eq!(cli.socket, Path::new("/tmp/s.em"));
        assert_eq!((cli.timeout.as_secs(), cli.interval.as_secs()), (5, 7));
        assert!(cli.verbose);
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let cli = parse(&["-socket=/tmp/s.em", "-verbose=false", "-buffer_path", "/b"]);
        assert_eq!(cli.socket, Path::new("/tmp/s.em"));
        assert!(!cli.verbose);
        assert_eq!(cli.own.buffer_path.as_deref(), Some(Path::new("/b")));
    }

    #[test]
    fn without_a_socket_it_is_osquery_s_own() {
        assert_eq!(parse(&[]).socket, Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn flags_become_arguments_and_flags_again() {
        let flags = OwnFlags {
            buffer_path: Some("/a b".into()),
            buffer_max_bytes: Some("1".into()),
            buffer_min_free_bytes: Some("2".into()),
            logger_max_request_bytes: Some("2000".into()),
            logger_drain_bytes_per_second: Some("3000".into()),
            logger_expand_events: Some("true".into()),
            enroll_max_per_hour: Some("4".into()),
            request_timeout: Some("9".into()),
            log_level: Some("debug".into()),
            log_file: Some("/a log".into()),
            log_syslog: Some("true".into()),
            return_timeout: Some("8".into()),
        };
        let arguments = std::iter::once("remote_tls.ext".into()).chain(flags.to_arguments());
        assert_eq!(Cli::parse_from(arguments).own, flags);
        assert_eq!(OwnFlags::default().to_arguments(), Vec::<OsString>::new());
    }

    #[test]
    fn a_flag_file_is_read_and_its_bad_lines_are_named() {
        let text = "# ours\n\n--buffer_path=/a\n-request_timeout=9\n--no_such_flag=1\n--buffer_path=/b\n";
        let (flags, errors) = OwnFlags::parse(Path::new("/etc/f"), text);
        assert_eq!(flags.buffer_path.as_deref(), Some(Path::new("/b")));
        assert_eq!(flags.request_timeout.as_deref(), Some("9"));
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        let message = error.to_string();
        assert!(message.starts_with("/etc/f:5: ") && message.contains("--no_such_flag"), "{message}");
        assert!(message.contains("--request_timeout"), "{message}");
    }
}
