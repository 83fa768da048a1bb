//! The crowd command: hundreds of real extensions against one real server, an outage, and what the return is like. Exit
//! code 0 is "nothing lost or refused", 1 the opposite or a crowd that could not start, 130 an interruption.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::crowd::{self, Plan};
use testkit::osqueryd::become_worker_if_asked;
use testkit::programs;
use testkit::trial::{self, Outcome};

/// Hundreds of real extensions against one real server, an outage, and what the return is like.
#[derive(Parser)]
#[command(name = "crowd")]
struct Args {
    /// How many hosts: a stand-in osqueryd and an extension each
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=2000))]
    hosts: u16,
    /// Seconds that are to say what is usual
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=3600))]
    usual: u64,
    /// Seconds in which no host reaches the server; what waits for more than 60 is a backlog
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(0..=36_000))]
    outage: u64,
    /// Seconds that the return is watched at most; it ends sooner when the backlog is gone
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    watch: u64,
    /// Draws the rates at which hosts log; without it, any
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds from one row of the table to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    report_every: u64,
    /// The extension's binary; without it, it is built as this program was
    #[arg(long, value_name = "FILE")]
    extension: Option<PathBuf>,
}

fn main() -> ExitCode {
    become_worker_if_asked();
    let args = Args::parse();
    trial::main("crowd", |interrupted| run(args, interrupted))
}

fn run(args: Args, interrupted: &Arc<AtomicBool>) -> io::Result<Outcome> {
    let extension = args.extension.map_or_else(programs::extension, Ok)?;
    raise_limit();
    let plan = Plan {
        extension,
        hosts: args.hosts.into(),
        usual: Duration::from_secs(args.usual),
        outage: Duration::from_secs(args.outage),
        watch: Duration::from_secs(args.watch),
        seed: args.seed.unwrap_or_else(trial::any_seed),
        report_every: Duration::from_secs(args.report_every),
    };
    crowd::run(&plan, interrupted, &trial::say)
}

/// Both sides of all connections are open here: as many files as are allowed. Some dozens a host are needed.
fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
