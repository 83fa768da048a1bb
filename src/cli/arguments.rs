//! The commands' own arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};

use super::{flagfile_help, own_flagfile_help, seconds};

/// Which osqueryd is meant: as for the doctor, so that one line of habit is enough for all commands.
#[derive(Args, Debug, Default)]
pub struct Target {
    /// osqueryd's extension manager socket [default: as its command line and its flags say]
    #[arg(long, alias = "extensions_socket", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// osqueryd's flag file.
    #[arg(long, value_name = "PATH", help = flagfile_help())]
    pub flagfile: Option<PathBuf>,

    /// Our own flag file.
    #[arg(long = "own_flagfile", value_name = "PATH", help = own_flagfile_help())]
    pub own_flagfile: Option<PathBuf>,
}

/// How the state is to be shown.
#[derive(Args, Debug)]
pub struct StatusFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// Write it as a JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is collected, and where.
#[derive(Args, Debug)]
pub struct FlareFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// A file that is not there yet [default: osquery-remote-tls-flare-HOST-TIME.tar.gz in this directory]
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

/// What is to be done with the logger.
#[derive(Debug, Subcommand)]
pub enum LoggerCommand {
    /// Send a marked status line, and wait until the server has it
    ///
    /// It goes by osqueryd and the running extension, as osqueryd's own do, and stands at the server as `osquery-remote-tls logger
    /// test` with a number. Exit code 0: the server has it, 1: it hasn't, and why.
    Test(TestFlags),
}

/// How the logger is tested.
#[derive(Args, Debug)]
pub struct TestFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// Seconds to wait for it [default: 30 more than logger_tls_period]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

/// What is to be done with lines that were set aside.
#[derive(Debug, Subcommand)]
pub enum RejectedCommand {
    /// Show which there are, newest first, each with its name, reason and beginning
    List(ListFlags),

    /// Show whole lines, as they would have been sent
    ///
    /// Why each was set aside stands before it, on the standard error.
    Show(TheseFlags),

    /// Give them to the logger again, and forget them
    ///
    /// Those that are refused once more are set aside anew. A line that is not kept whole stays as it is.
    Retry(TheseFlags),

    /// Forget them
    Discard(TheseFlags),
}

/// How a list is to be shown.
#[derive(Args, Debug)]
pub struct ListFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// Write it as a JSON array
    #[arg(long)]
    pub json: bool,
}

/// Lines that were set aside.
#[derive(Args, Debug)]
pub struct TheseFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// The lines' names, as `rejected list` shows them
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub names: Vec<String>,

    /// All of them
    #[arg(long)]
    pub all: bool,
}

/// What is to be done with lines that wait.
#[derive(Debug, Subcommand)]
pub enum BufferCommand {
    /// Show how much waits, in each journal
    List(ListFlags),

    /// Show the oldest records that wait, masked and cut
    Show(ShowFlags),

    /// Write all records that wait to a new file, or to the standard output, as they are
    ///
    /// They are neither masked nor taken out of the journal. The file is for its owner alone.
    Export(ExportFlags),

    /// Throw away what waits on the disk
    ///
    /// The lines are gone, and counted as dropped. What is on its way to the server may still arrive.
    Discard(DiscardFlags),
}

/// The journals, one for each kind of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stream {
    /// Result lines
    Results,
    /// Result lines that could not be sent for a minute
    Backlog,
    /// Status lines
    Statuses,
    /// Results of distributed queries
    Distributed,
    /// Status calls that no worker has taken
    Pending,
}

/// What the worker reads as long as it runs. The backlog goes with the results; `pending` is empty then.
fn discardable() -> impl TypedValueParser<Value = Stream> {
    let streams = Stream::value_variants().iter();
    let streams = streams.filter(|stream| !matches!(stream, Stream::Backlog | Stream::Pending));
    PossibleValuesParser::new(streams.filter_map(Stream::to_possible_value))
        .try_map(|name| Stream::from_str(&name, false))
}

/// Which records are shown.
#[derive(Args, Debug)]
pub struct ShowFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// The journal
    pub stream: Stream,

    /// How many records
    #[arg(long, value_name = "COUNT", default_value = "10")]
    pub lines: usize,
}

/// Which records are copied, and into which file.
#[derive(Args, Debug)]
pub struct ExportFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// The journal
    pub stream: Stream,

    /// A file that is not there yet [default: the standard output]
    pub file: Option<PathBuf>,
}

/// What is thrown away.
#[derive(Args, Debug)]
pub struct DiscardFlags {
    /// The osqueryd whose extension is asked.
    #[command(flatten)]
    pub target: Target,

    /// The journal
    #[arg(value_parser = discardable())]
    pub stream: Stream,
}
