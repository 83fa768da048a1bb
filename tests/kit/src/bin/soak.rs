//! The soak command: hours of mixed load, faults, kills and restarts on the real extension, a table of what was seen,
//! and a verdict. Exit code 0 is "nothing lost, nothing grown", 1 the opposite or a soak that could not start, 130 an
//! interruption.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use testkit::osqueryd::become_worker_if_asked;
use testkit::programs;
use testkit::soak::{self, Plan};
use testkit::trial::{self, Outcome};

/// Hours of mixed load, faults, kills and restarts on the real extension, and a verdict.
#[derive(Parser)]
#[command(name = "soak")]
struct Args {
    /// How long, in minutes; parts of one are allowed
    #[arg(long, default_value_t = 30.0, value_parser = minutes)]
    minutes: f64,
    /// Draws the order of things; without it, any
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds from one row of the table to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    report_every: u64,
    /// The extension's binary; without it, it is built as this program was
    #[arg(long, value_name = "FILE")]
    extension: Option<PathBuf>,
    /// Add what the extension logs to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    become_worker_if_asked();
    let args = Args::parse();
    trial::main("soak", |interrupted| run(args, interrupted))
}

fn run(args: Args, interrupted: &Arc<AtomicBool>) -> io::Result<Outcome> {
    let extension = args.extension.map_or_else(programs::extension, Ok)?;
    let plan = Plan {
        extension,
        length: Duration::from_secs_f64(args.minutes * 60.0),
        seed: args.seed.unwrap_or_else(trial::any_seed),
        report_every: Duration::from_secs(args.report_every),
        log: args.log,
    };
    soak::run(&plan, interrupted, &trial::say)
}

/// At most a month.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (0.1..=44_640.0).contains(&minutes) { Ok(minutes) } else { Err("0.1 to 44640 minutes".to_owned()) }
}
