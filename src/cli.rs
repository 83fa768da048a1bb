//! The command line: the switches that osqueryd starts an extension with, our commands, and our own flags, which are
//! defined in [`settings::own`](crate::settings::own).
//!
//! osqueryd starts an autoloaded extension with `--socket`, `--timeout`, `--interval` and maybe `--verbose`. A newer
//! one may pass more, and while an upgrade runs a front of one version starts a worker of another: a switch that this
//! version doesn't know is named in the log and ends nothing.

pub mod arguments;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};
use log::Level;

use self::arguments::{BufferCommand, FlareFlags, LoggerCommand, RejectedCommand, StatusFlags};
use crate::logging::Verbosity;
use crate::platform::Places;
use crate::settings::own::{DEFAULT_FLAGFILE, FLAGFILE_VARIABLE, FLAGS, Origin, OwnFlags};

/// Where osqueryd listens for extensions unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/osquery/osquery.em";

/// Where osqueryd's own flags are unless it is told otherwise.
pub const OSQUERY_FLAGFILE: &str = Places::HERE.osquery_flagfile;

/// What a person wants to know of `--help` first of all.
const EXAMPLES: &str = "\
Examples:
  sudo osquery-remote-tls doctor       what is wrong on this host, what to do
  sudo osquery-remote-tls status       how the extension fares, on one screen
  sudo osquery-remote-tls logger test  a line on its whole way to the server
  osquery-remote-tls rejected --help   what a command does, and what it takes";

/// The answer to a run on a terminal without arguments: osqueryd is what starts an extension.
pub const INTRODUCTION: &str = concat!(
    "osquery-remote-tls ",
    env!("CARGO_PKG_VERSION"),
    ": an extension that carries osquery's results\n",
    "to a server over TLS. osqueryd starts it by itself, from its extensions.load.\n",
    "What there is to run by hand:\n\n",
    "  sudo osquery-remote-tls doctor  what is wrong on this host, what to do\n",
    "  sudo osquery-remote-tls status  how the extension fares, on one screen\n",
    "  osquery-remote-tls --help       everything else\n",
);

/// osquery extension: config, logger and distributed plugins named `remote_tls`, which speak osquery's remote
/// TLS API. osqueryd starts it (see extensions.load) and hands it all of its own flags.
#[derive(Debug, Parser)]
#[command(name = "osquery-remote-tls", version, disable_help_subcommand = true)]
// As gflags has it: the last one of a name counts.
#[command(args_override_self = true, next_help_heading = "As osqueryd starts it", after_help = EXAMPLES)]
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

    /// Be the worker of a front, which hands over all that one needs
    #[arg(long, hide = true)]
    pub worker: bool,

    /// Go on where another program was a front in this process
    #[arg(long, hide = true)]
    pub resume: bool,

    /// What osquery has no flag for.
    #[command(flatten)]
    pub own: OwnFlags,

    /// What this version doesn't know, as it was given: another version may.
    #[arg(skip)]
    pub unknown: Vec<OsString>,
}

/// What an operator runs by hand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check this host, and change nothing
    ///
    /// Checks flags, files and their permissions, osqueryd, the running extension, the way to the server, the server
    /// and the buffers, and says what to do. Exit code 0: all is well, 1: something failed, 2: there are warnings. See
    /// docs/doctor.md.
    Doctor(DoctorFlags),

    /// Fetch the configuration now, and give it to osqueryd
    ///
    /// Asks the running extension, by osqueryd's socket, and says what came of it. Exit code 0: osqueryd has the
    /// configuration that the server gives now, 1: it hasn't.
    Refresh(RefreshFlags),

    /// Show how the extension fares, on one screen
    ///
    /// Asks the running extension, by osqueryd's socket: the enrollment, each endpoint's last success and failure, what
    /// waits and what was lost. Exit code 0: it answers, 1: it doesn't.
    Status(StatusFlags),

    /// Show, export or discard lines that wait for the server
    ///
    /// All of it is safe while everything runs. Exit code 0: it is done, 1: it isn't.
    #[command(subcommand)]
    Buffer(BufferCommand),

    /// Show, retry or discard lines that were set aside, since no server takes them
    ///
    /// All of it is safe while everything runs. Exit code 0: it is done, 1: it isn't, or not for every line.
    #[command(subcommand)]
    Rejected(RejectedCommand),

    /// Test the way of log lines
    #[command(subcommand)]
    Logger(LoggerCommand),

    /// Collect what those who help want to see into one file, masked
    ///
    /// A tar.gz of what the doctor finds, the status, the tables, flags, versions, the log's end, and names and sizes of the buffers'
    /// files. No secret, node key or log line of osqueryd's is in it. Exit code 0: it is written, 1: it isn't.
    Flare(FlareFlags),
}

/// Which running extension the command `refresh` asks.
#[derive(Args, Debug)]
pub struct RefreshFlags {
    /// osqueryd's extension manager socket
    #[arg(long, alias = "extensions_socket", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// The helps of two options that several commands have; the paths are this system's.
pub(crate) fn flagfile_help() -> String {
    format!(
        "osqueryd's flag file [default: the one that the running osqueryd's command line names, else {OSQUERY_FLAGFILE}]"
    )
}

pub(crate) fn own_flagfile_help() -> String {
    format!("Our own flag file [default: {FLAGFILE_VARIABLE}, or {DEFAULT_FLAGFILE}]")
}

/// How the host is to be checked.
#[derive(Args, Debug, Default)]
pub struct DoctorFlags {
    /// osqueryd's flag file.
    #[arg(long, value_name = "PATH", help = flagfile_help())]
    pub flagfile: Option<PathBuf>,

    /// osqueryd's extension manager socket [default: as its command line and its flags say]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Our own flag file.
    #[arg(long = "own_flagfile", value_name = "PATH", help = own_flagfile_help())]
    pub own_flagfile: Option<PathBuf>,

    /// Before a restart of osqueryd: check the flags and files that its next start will read, not what runs now; warnings
    /// don't change the exit code
    #[arg(long)]
    pub before: bool,

    /// Also send requests with an invalid node key to the server's endpoints: servers may log that, and one crashed at it
    #[arg(long)]
    pub deep: bool,

    /// Try an enrollment too: the server then knows a host more, whose key is not kept
    #[arg(long)]
    pub enroll: bool,

    /// Show only what is not well
    #[arg(long)]
    pub quiet: bool,

    /// Write the findings as a JSON object
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// Reads a command line, which begins with the program's name. Switches that this version doesn't know
    /// are put aside; what else is wrong with it is an error.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        // Adds --help and --version.
        command.build();
        let (known, unknown) = part(&command, arguments.into_iter().map(with_two_dashes));
        Ok(Self { unknown, ..Self::try_parse_from(known)? })
    }

    /// How much is logged at least.
    #[must_use]
    pub fn verbosity(&self) -> Verbosity {
        if self.verbose { Verbosity::Verbose } else { Verbosity::Normal }
    }

    /// Says which switches this version doesn't know. Not their values, which may be anything.
    pub fn name_unknown(&self) {
        let names: Vec<String> = self.unknown.iter().filter_map(switch).collect();
        if !names.is_empty() {
            // The front has said it already, and has passed them on for a worker of another version.
            let level = if self.worker { Level::Debug } else { Level::Warn };
            log::log!(level, "this version has no switch --{}; going on without", names.join(", --"));
        }
    }
}

impl Args for OwnFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(FLAGS.iter().map(|flag| {
            let argument = clap::Arg::new(flag.name).long(flag.name).help(flag.plain_help());
            let argument = argument.help_heading("Settings, for our flag file");
            argument.value_name(flag.kind.placeholder()).value_parser(value_parser!(OsString))
        }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OwnFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for flag in FLAGS {
            if let Some(text) = matches.get_one::<OsString>(flag.name) {
                self.set(flag, text.to_string_lossy(), Origin::CommandLine);
            }
        }
        Ok(())
    }
}

/// Parts a command line into what clap is to judge, and the switches that `command` doesn't have, with their values.
/// What follows a subcommand was typed by a person, who wants to be told of a mistake.
fn part(command: &clap::Command, arguments: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    let mut arguments = arguments.peekable();
    known.extend(arguments.next());
    while let Some(argument) = arguments.next() {
        if argument == "--" || command.find_subcommand(&argument).is_some() {
            known.push(argument);
            known.extend(arguments);
            break;
        }
        let name = switch(&argument);
        let has_value = argument.as_encoded_bytes().contains(&b'=');
        let is_value =
            |next: &OsString| !next.as_encoded_bytes().starts_with(b"-") && command.find_subcommand(next).is_none();
        match name.as_deref().map(|name| (name, argument_of(command, name))) {
            Some((name, None)) if !name.is_empty() => {
                unknown.push(argument);
                if !has_value {
                    unknown.extend(arguments.next_if(is_value));
                }
            }
            found => {
                let takes_value = found.and_then(|(_, argument)| argument).is_some_and(needs_value);
                known.push(argument);
                if takes_value && !has_value {
                    known.extend(arguments.next_if(|next| !next.as_encoded_bytes().starts_with(b"-")));
                }
            }
        }
    }
    (known, unknown)
}

/// The name in `--name` or `--name=value`.
fn switch(argument: &OsString) -> Option<String> {
    let argument = argument.to_string_lossy();
    let name = argument.strip_prefix("--")?;
    Some(name.split('=').next().unwrap_or_default().to_owned())
}

fn argument_of<'a>(command: &'a clap::Command, name: &str) -> Option<&'a clap::Arg> {
    let has = |argument: &&clap::Arg| {
        argument.get_long() == Some(name) || argument.get_all_aliases().unwrap_or_default().contains(&name)
    };
    command.get_arguments().find(has)
}

/// Whether the next argument is its value.
fn needs_value(argument: &clap::Arg) -> bool {
    argument.get_num_args().is_some_and(|count| count.min_values() > 0)
}

/// gflags takes `-name` for `--name`, and so do the people who write osquery's flag files.
fn with_two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => format!("-{text}").into(),
        _ => argument,
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u64 = text.parse().map_err(|_| "a whole number of seconds is needed".to_owned())?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::own::{self, AnyFlag};

    fn read(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::read(std::iter::once("remote_tls.ext").chain(arguments.iter().copied()).map(OsString::from))
    }

    fn parse(arguments: &[&str]) -> Cli {
        read(arguments).unwrap()
    }

    fn text(cli: &Cli, flag: &AnyFlag) -> Option<String> {
        cli.own.get(flag).map(|given| given.text.clone())
    }

    #[test]
    fn osqueryd_s_arguments_are_understood() {
        let cli = parse(&["--verbose", "--socket", "/tmp/s.em", "--timeout", "5", "--interval", "7"]);
        assert_eq!(cli.socket, Path::new("/tmp/s.em"));
        assert_eq!((cli.timeout.as_secs(), cli.interval.as_secs()), (5, 7));
        assert!(cli.verbose);
        assert_eq!(parse(&["--extensions_timeout=9"]).timeout.as_secs(), 9);
    }

    #[test]
    fn one_dash_is_as_good_as_two_and_the_last_of_a_name_counts() {
        let cli =
            parse(&["-socket=/tmp/s.em", "-verbose=false", "-buffer_path", "/a", "--buffer_path=/b", "--socket=/c"]);
        assert_eq!(cli.socket, Path::new("/c"));
        assert!(!cli.verbose);
        assert_eq!(text(&cli, &own::BUFFER_PATH).as_deref(), Some("/b"));
    }

    #[test]
    fn without_a_socket_it_is_osquery_s_own() {
        assert_eq!(parse(&[]).socket, Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn every_flag_of_ours_is_taken_and_can_be_passed_on() {
        let own = FLAGS.iter().fold(OwnFlags::default(), |own, flag| own.with(flag, format!("a {}", flag.name)));
        let arguments = own.to_arguments();
        let cli = parse(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((cli.own, cli.unknown), (own, vec![]));
    }

    #[test]
    fn unknown_switches_are_put_aside_and_all_others_count() {
        let cli =
            parse(&["--new", "x", "--no_such=1", "--socket", "/s", "-newer", "--verbose", "--newest", "--timeout=5"]);
        assert_eq!(cli.unknown, ["--new", "x", "--no_such=1", "--newer", "--newest"]);
        assert_eq!((cli.socket.as_path(), cli.timeout.as_secs(), cli.verbose), (Path::new("/s"), 5, true));
        assert_eq!(parse(&["--worker", "--new=1", "--request_timeout=9"]).unknown, ["--new=1"]);
        let cli = parse(&["--new", "doctor", "--json"]);
        assert!(matches!(cli.command, Some(Command::Doctor(DoctorFlags { json: true, .. }))));
        assert_eq!(cli.unknown, ["--new"]);
    }

    #[test]
    fn what_can_not_be_meant_is_an_error() {
        for wrong in
            [&["--timeout", "soon"][..], &["stray"], &["--socket"], &["--socket", "--verbose"], &["doctor", "--new"]]
        {
            assert_eq!(read(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        assert!(!read(&["--help"]).unwrap_err().use_stderr());
        assert!(!read(&["-V"]).unwrap_err().use_stderr());
    }
}
