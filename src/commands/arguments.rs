//! The commands' own arguments.

use std::path::PathBuf;

use clap::Args;

/// Which osqueryd is meant: as for the doctor, so that one line of habit is enough for all commands.
#[derive(Args, Debug, Default)]
pub struct Target {
    /// osqueryd's extension manager socket [default: as its command line and its flags say]
    #[arg(long, alias = "extensions_socket", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// osqueryd's flag file [default: the one that the running osqueryd's command line names, else
    /// /etc/osquery/osquery.flags]
    #[arg(long, value_name = "PATH")]
    pub flagfile: Option<PathBuf>,

    /// Our own flag file [default: REMOTE_TLS_FLAGFILE, or /etc/osquery/remote_tls.flags]
    #[arg(long = "own_flagfile", value_name = "PATH")]
    pub own_flagfile: Option<PathBuf>,
}

/// How the state is to be shown.
#[derive(Args, Debug)]
pub struct StatusFlags {
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,

    /// Write it as a JSON object
    #[arg(long)]
    pub json: bool,
}
