//! How costs grow: with the number of lines that wait, and with the size of a line.

use std::time::Duration;

use crate::Bench;
use crate::contenders::Contender;
use crate::cores::Cores;
use crate::deliver::WAIT_LIMIT;
use crate::lines;
use crate::load::{self, Amount};
use crate::report::{Bound, figure, mebibytes};
use crate::sink::{Sink, SinkSetup};
use crate::statistics::median;

/// Bytes of a line, where it is the backlog that grows.
const SIZE: usize = 500;

/// Calls by which the price of an append is found, and lines by which the rate of delivery is: the first ones of all
/// that wait then.
const CALLS: usize = 20_000;

/// Bytes of all lines, where it is their size that grows.
const BYTES: usize = 50_000_000;

/// A bound that no backlog of these reaches.
const ROOM: (&str, &str) = ("buffered_log_max", "2000000");

/// One measurement.
struct Figures {
    p50: f64,
    p99: f64,
    cpu: f64,
    /// PSS of both processes, in MiB.
    memory: f64,
    /// Lines a second.
    rate: f64,
}

/// Measures both kinds of growth.
pub(crate) fn run(bench: &mut Bench) {
    bench.report.title("Scale: how costs grow");
    with_backlog(bench);
    with_size(bench);
}

fn with_backlog(bench: &mut Bench) {
    let backlogs: &[u64] = if bench.quick { &[1_000, 100_000] } else { &[1_000, 10_000, 100_000, 1_000_000] };
    let rounds: Vec<Vec<Figures>> = (0..if bench.quick { 1 } else { 3 })
        .map(|_| backlogs.iter().map(|&backlog| measure(bench, backlog, SIZE, ROOM)).collect())
        .collect();
    let of = |index: usize, value: fn(&Figures) -> f64| median(rounds.iter().map(|round| value(&round[index])));
    let ratio = |index: usize, value: fn(&Figures) -> f64| {
        median(rounds.iter().map(|round| value(&round[index]) / value(&round[0])))
    };
    let row = |index: usize, name: String| {
        vec![
            name,
            figure(of(index, |one| one.p50)),
            figure(of(index, |one| one.p99)),
            figure(of(index, |one| one.cpu)),
            format!("{:.2} x", ratio(index, |one| one.cpu)),
            figure(of(index, |one| one.memory)),
            figure(of(index, |one| one.rate)),
            format!("{:.2} x", ratio(index, |one| one.rate)),
        ]
    };
    let mut rows: Vec<Vec<String>> =
        backlogs.iter().enumerate().map(|(index, &backlog)| row(index, figure(backlog as f64))).collect();
    if !bench.quick {
        let full = measure(bench, 1_000_000, SIZE, ("buffered_log_max", "1000000"));
        let name = "1,000,000, and no more are allowed: each call drops a line".to_owned();
        let cells = [full.p50, full.p99, full.cpu].map(figure).into_iter().chain([String::new(), figure(full.memory)]);
        rows.push(std::iter::once(name).chain(cells).chain([figure(full.rate), String::new()]).collect());
    }
    bench.report.say(&format!(
        "With the lines that wait ({SIZE} B each, the server away): the price of a call, by {0} calls more from 1 thread; then \
         the memory of both processes; then, when the server is there again, the rate at which the first {0} lines are \
         delivered.",
        figure(CALLS as f64)
    ));
    bench
        .report
        .table(&["lines waiting", "call p50 µs", "p99 µs", "CPU µs", "", "PSS MiB", "delivered lines/s", ""], &rows);
    let last = backlogs.len() - 1;
    let most = figure(backlogs[last] as f64);
    let cpu = ratio(last, |one| one.cpu);
    bench.report.target(format!("scale: CPU a call, {most} lines waiting"), Bound::AtMost(1.05), "x with 1,000", cpu);
    let rate = ratio(last, |one| one.rate);
    bench.report.target(format!("scale: delivery, {most} lines waiting"), Bound::AtLeast(0.95), "x with 1,000", rate);
}

fn with_size(bench: &mut Bench) {
    let row = |&size: &usize| {
        let count = (BYTES / size) as u64;
        let found = measure(bench, count, size, ROOM);
        vec![
            figure(size as f64),
            figure(found.p50),
            figure(found.cpu),
            figure(found.cpu * 1000.0 / size as f64),
            figure(found.memory),
            figure(found.rate),
            figure(mebibytes(found.rate * size as f64)),
        ]
    };
    let rows: Vec<Vec<String>> = [200, 500, 2_000, 50_000].iter().map(row).collect();
    bench.report.say(&format!(
        "With the size of a line ({} MB of lines wait each time; at 50 KB it is the limit of 1 MiB a request that counts, and \
         not the number of lines):",
        BYTES / 1_000_000
    ));
    let head = ["bytes", "call p50 µs", "CPU µs", "CPU µs a KB", "PSS MiB", "delivered lines/s", "MiB/s"];
    bench.report.table(&head, &rows);
}

fn measure(bench: &Bench, backlog: u64, size: usize, flag: (&str, &str)) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let contender = Contender::ours(&bench.programs, &setup, &[flag]);
    contender.fill(backlog, size);
    let call = contender.log(&lines::line(0, size));
    let amount = Amount { time: Duration::from_secs(60), calls: CALLS.min(BYTES / size) };
    let before = contender.processes.cpu();
    let load = load::drive(&contender.socket, &call, 1, Cores::Any, amount);
    let cpu = contender.processes.cpu() - before;
    let memory = contender.processes.memory();
    let mut sink = Sink::start(&setup);
    let counts = sink.wait(amount.calls as u64, WAIT_LIMIT);
    Figures {
        p50: load.latencies.per_mille(500),
        p99: load.latencies.per_mille(990),
        cpu: load.per_call(cpu),
        memory: mebibytes(memory.proportional as f64),
        rate: counts.lines as f64 / counts.time.as_secs_f64(),
    }
}
