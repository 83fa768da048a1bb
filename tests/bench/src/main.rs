//! The benchmark suite: `cargo run --release -p bench`. It builds what it measures, measures it beside a floor and
//! beside what others would write, all in one run, and prints ratios, tables and the targets with their verdicts.

mod call;
mod contenders;
mod deliver;
mod floor;
mod lines;
mod load;
mod processes;
mod programs;
mod report;
mod sink;
mod statistics;
mod thrift;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::programs::Programs;
use crate::report::Report;

/// Measures this extension beside a floor and beside others, and prints what it found as Markdown.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    /// The parts to run, all when none is named: call, deliver
    names: Vec<String>,

    /// The short form: fewer sizes and rounds, two minutes in all
    #[arg(long)]
    quick: bool,

    /// A file that gets the same text as the standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is when it has started itself.
#[derive(Subcommand)]
enum Role {
    /// The floor.
    #[command(hide = true)]
    Floor { socket: PathBuf },
    /// The server that lines are delivered to.
    #[command(hide = true)]
    Sink { certificate: PathBuf, key: PathBuf, port: u16 },
}

/// What all parts need.
struct Bench {
    programs: Programs,
    report: Report,
    quick: bool,
}

impl Bench {
    fn rounds(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }
}

/// The parts, in their order.
const PARTS: [(&str, fn(&mut Bench)); 2] = [("call", call::run), ("deliver", deliver::run)];

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.role {
        Some(Role::Floor { socket }) => floor::serve(&socket).map_err(|error| error.to_string()),
        Some(Role::Sink { certificate, key, port }) => {
            sink::serve(&certificate, &key, port).map_err(|error| error.to_string())
        }
        None => measure(cli),
    };
    if let Err(error) = outcome {
        eprintln!("bench: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(cli: Cli) -> Result<(), String> {
    if let Some(unknown) = cli.names.iter().find(|name| PARTS.iter().all(|(known, _)| known != name)) {
        return Err(format!("there is no part {unknown}; there are {}", PARTS.map(|(name, _)| name).join(", ")));
    }
    let mut bench = Bench { programs: Programs::build()?, report: Report::new(), quick: cli.quick };
    for (name, run) in PARTS {
        if cli.names.is_empty() || cli.names.iter().any(|wanted| wanted == name) {
            run(&mut bench);
        }
    }
    bench.report.finish(cli.output).map_err(|error| format!("the output can't be written: {error}"))
}
