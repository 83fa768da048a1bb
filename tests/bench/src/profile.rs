//! Where the time goes: `perf` on the front while lines are logged, and on the worker while they are delivered.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Bench;
use crate::contenders::{Contender, Killed};
use crate::cores::Cores;
use crate::deliver::WAIT_LIMIT;
use crate::lines;
use crate::load::{self, Amount};
use crate::programs::{Programs, run as run_to_end};
use crate::sink::{Sink, SinkSetup};

/// Bytes of a line.
const SIZE: usize = 500;

/// Lines that are delivered.
const DELIVERED: u64 = 300_000;

/// How long lines are logged.
const LOGGED: Duration = Duration::from_secs(10);

/// Symbols shown.
const SHOWN: usize = 40;

/// Profiles both, and says why not when it can't.
pub(crate) fn run(bench: &mut Bench) {
    bench.report.title("Profile: where the time goes");
    match profiles(bench) {
        Ok(profiles) => {
            for (what, profile) in profiles {
                bench.report.say(&format!("{what}:"));
                bench.report.verbatim(&profile);
            }
        }
        Err(error) => bench.report.say(&format!("not measured: {error}")),
    }
}

fn profiles(bench: &Bench) -> Result<[(String, String); 2], String> {
    let programs = bench.programs.with_symbols()?;
    let logging = format!("The front: lines of {SIZE} B from 1 thread, the server away");
    let delivering = format!("The worker: delivery of {DELIVERED} lines of {SIZE} B, plain");
    Ok([(logging, while_logging(&programs)?), (delivering, while_delivering(&programs)?)])
}

fn while_logging(programs: &Programs) -> Result<String, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let contender = Contender::ours(programs, &SinkSetup::new(directory.path()), &[]);
    let call = contender.log(&lines::line(0, SIZE));
    let amount = Amount { time: LOGGED, calls: usize::MAX };
    recorded(programs, contender.taking(), || load::drive(&contender.socket, &call, 1, Cores::Any, amount))
}

fn while_delivering(programs: &Programs) -> Result<String, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let contender = Contender::ours(programs, &setup, &[]);
    contender.fill(DELIVERED, SIZE);
    recorded(programs, contender.delivering(), || Sink::start(&setup).wait(DELIVERED, WAIT_LIMIT))
}

/// What `perf` finds in a process during the work: symbols with their shares.
fn recorded<T>(programs: &Programs, process: u32, work: impl FnOnce() -> T) -> Result<String, String> {
    let data = programs.scratch.join("perf.data");
    let mut record = Command::new("perf");
    // All of the machine, and one process picked out afterwards: threads that come and go are all in it.
    record.args(["record", "--quiet", "--all-cpus", "-F", "2000", "-o"]).arg(&data);
    record.stdout(Stdio::null()).stderr(Stdio::null());
    let mut perf = Killed(record.spawn().map_err(|error| format!("perf: {error}"))?);
    work();
    let pid = rustix::process::Pid::from_child(&perf.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).map_err(|error| format!("perf: {error}"))?;
    perf.0.wait().map_err(|error| format!("perf: {error}"))?;
    let mut report = Command::new("perf");
    report.args(["report", "--stdio", "--no-children", "--fields", "overhead,dso,symbol", "--percentage", "relative"]);
    report.args(["--percent-limit", "0.5", "--pid", &process.to_string(), "-i"]).arg(&data);
    let text = run_to_end(&mut report)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    // Long names of Rust's have nothing new at their ends.
    Ok(lines.take(SHOWN).map(|line| line.trim().chars().take(110).collect::<String>()).collect::<Vec<_>>().join("\n"))
}
