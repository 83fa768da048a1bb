//! The short form: few hosts, the scenarios that have knocked servers over, and a verdict.

use std::process::ExitCode;

use crate::report;
use crate::scenario::Scenario;
use crate::{Policy, Run};

const HOSTS: usize = 2_000;

/// A run, and what must be true of it.
const RUNS: [(Scenario, u32, Policy); 9] = [
    (Scenario::Down, 60, Policy::LiveFirst),
    (Scenario::Down, 60, Policy::InOrder),
    (Scenario::Down, 80, Policy::LiveFirst),
    (Scenario::Keys, 80, Policy::LiveFirst),
    (Scenario::Reboot, 80, Policy::LiveFirst),
    (Scenario::Slow, 80, Policy::LiveFirst),
    (Scenario::RetryAfter, 80, Policy::LiveFirst),
    (Scenario::RetryAfter, 80, Policy::InOrder),
    // It must be possible to fail: a server model that nothing can knock over proves nothing.
    (Scenario::Down, 60, Policy::BuiltIn),
];

pub(crate) fn run(seed: u64) -> ExitCode {
    println!("{}", report::HEAD);
    let mut faults = Vec::new();
    for (scenario, load, policy) in RUNS {
        let run = Run { hosts: HOSTS, scenario, load, policy, seed };
        let figures = run.simulate().figures();
        println!("{}", report::row(&run, &figures));
        let what = format!("{}, {load} %, {}", scenario.title(), policy.title());
        match (policy, figures.is_collapse()) {
            (Policy::BuiltIn, false) => faults.push(format!("{what}: there is no collapse any more to be avoided")),
            (Policy::LiveFirst | Policy::InOrder, true) => {
                faults.push(format!("{what}: the server collapses, or the backlog is never gone"));
            }
            _ => {}
        }
        if policy != Policy::BuiltIn && figures.dropped > 0 {
            faults.push(format!("{what}: {} lines are lost", figures.dropped));
        }
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
