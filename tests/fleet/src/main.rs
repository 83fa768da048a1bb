//! A fleet and its server in virtual time: `cargo run --release -p fleet -- --hosts 100000 --scenario down`.
//!
//! The hosts have the policies of the extension (`osquery_remote_tls::policy`, the very types that it is made of) or those of
//! osquery's built-in plugins; the server has a bounded capacity. It prints a table, and draws the curves of
//! docs/fleet.md.

mod behaviour;
mod builtin;
mod lines;
mod measure;
mod ours;
mod plot;
mod report;
mod scenario;
mod server;
mod short;
mod simulation;
mod time;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::behaviour::Sending;
use crate::builtin::BuiltIn;
use crate::measure::Record;
use crate::ours::Ours;
use crate::scenario::Scenario;
use crate::simulation::Simulation;

/// Simulates a fleet of hosts and their server, and prints what became of them as Markdown.
#[derive(Parser)]
struct Cli {
    /// How many hosts
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    hosts: u32,

    /// What happens; everything, one after the other, when none is named
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,

    /// How busy the server usually is, in percent; 60 and 80 when not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=95))]
    load: Vec<u32>,

    /// Whose policies; all of them when none is named
    #[arg(long, value_enum)]
    policy: Vec<Policy>,

    /// A directory that gets the curves of the runs as SVG, two pictures a scenario and load
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,

    /// Where chance begins: the same seed makes the same run
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// The short form for CI: few hosts, and it fails when a fleet knocks its server over
    #[arg(long)]
    short: bool,
}

/// Whose policies hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// The extension's, new lines first
    LiveFirst,
    /// The extension's, the oldest lines first
    InOrder,
    /// Those of osquery's built-in plugins
    BuiltIn,
}

impl Policy {
    const ALL: [Self; 3] = [Self::LiveFirst, Self::InOrder, Self::BuiltIn];

    fn title(self) -> &'static str {
        match self {
            Self::LiveFirst => "new lines first",
            Self::InOrder => "in order",
            Self::BuiltIn => "built-in plugins",
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) hosts: usize,
    pub(crate) scenario: Scenario,
    /// In percent.
    pub(crate) load: u32,
    pub(crate) policy: Policy,
    pub(crate) seed: u64,
}

impl Run {
    pub(crate) fn simulate(&self) -> Record {
        match self.policy {
            Policy::LiveFirst => self.of(&Ours::new(Sending::LiveFirst)),
            Policy::InOrder => self.of(&Ours::new(Sending::InOrder)),
            Policy::BuiltIn => self.of(&BuiltIn::default()),
        }
    }

    fn of<B: behaviour::Behaviour>(&self, behaviour: &B) -> Record {
        Simulation::new(self.hosts, behaviour, self.scenario, f64::from(self.load) / 100.0, self.seed).run()
    }
}

/// What was named, or everything.
fn or_all<T: Clone>(named: &[T], all: &[T]) -> Vec<T> {
    if named.is_empty() { all.to_vec() } else { named.to_vec() }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.short {
        return short::run(cli.seed);
    }
    println!("{}", report::HEAD);
    for scenario in or_all(&cli.scenario, &Scenario::ALL) {
        for load in or_all(&cli.load, &[60, 80]) {
            let mut records = Vec::new();
            for policy in or_all(&cli.policy, &Policy::ALL) {
                let run = Run { hosts: cli.hosts as usize, scenario, load, policy, seed: cli.seed };
                let record = run.simulate();
                println!("{}", report::row(&run, &record.figures()));
                records.push((policy, record));
            }
            if let Some(directory) = &cli.plots
                && let Err(error) = plot::write(directory, scenario, load, &records)
            {
                eprintln!("{}: {error}", directory.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
