//! The benchmark suite: `cargo run --release -p bench`. It builds what it measures, measures it beside a floor and
//! beside what others would write, all in one run, and prints ratios, tables and the targets with their verdicts.

mod call;
mod contenders;
mod cores;
mod deliver;
mod expand;
mod floor;
mod footprint;
mod lines;
mod load;
mod machine;
mod processes;
mod profile;
mod programs;
mod report;
mod scale;
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
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Cli {
    /// The parts to run: call, deliver, footprint, scale, expand (all of these when none is named), profile
    names: Vec<String>,

    /// The short form: fewer sizes and rounds, two minutes in all
    #[arg(long)]
    quick: bool,

    /// The extension that is measured; the release build of these sources when it is not given
    #[arg(long, value_name = "FILE")]
    extension: Option<PathBuf>,

    /// A file that gets the same text as the standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is when it has started itself.
#[derive(Subcommand)]
enum Role {
    /// The extension that does the least that one can do (src/floor.rs).
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

/// A part, by its name.
type Part = (&'static str, fn(&mut Bench));

/// The parts, in their order.
const PARTS: [Part; 5] = [
    ("call", call::run),
    ("deliver", deliver::run),
    ("footprint", footprint::run),
    ("scale", scale::run),
    ("expand", expand::run),
];

/// Runs only when it is named: it needs `perf`, and another build.
const PROFILE: Part = ("profile", profile::run);

fn main() -> ExitCode {
    testkit::osqueryd::become_worker_if_asked();
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
    let known: Vec<Part> = PARTS.into_iter().chain([PROFILE]).collect();
    if let Some(unknown) = cli.names.iter().find(|name| known.iter().all(|(known, _)| known != name)) {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no part {unknown}; there are {}", names.join(", ")));
    }
    let is_wanted = |(name, _): &Part| match cli.names.is_empty() {
        true => *name != PROFILE.0,
        false => cli.names.iter().any(|wanted| wanted == name),
    };
    if let Some(path) = &cli.output {
        // Better now than at the end.
        std::fs::write(path, "").map_err(|error| format!("{} can't be written: {error}", path.display()))?;
    }
    let mut bench =
        Bench { programs: Programs::build(cli.extension.as_deref())?, report: Report::new(), quick: cli.quick };
    bench.report.say(&machine::description(&bench.programs.scratch));
    for (_, run) in known.into_iter().filter(is_wanted) {
        run(&mut bench);
    }
    bench.report.finish(cli.output).map_err(|error| format!("the output can't be written: {error}"))
}
