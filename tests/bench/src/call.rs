//! What a log line costs osqueryd, which waits for it, and the host.

use std::time::Duration;

use crate::Bench;
use crate::contenders::Contender;
use crate::cores::Cores;
use crate::lines;
use crate::load::{self, Amount, Load};
use crate::report::{Bound, figure};
use crate::sink::{Sink, SinkSetup};
use crate::statistics::median;

/// Bytes of lines that one measurement may log: the buffers are not to reach their bounds.
const BYTES: usize = 40 << 20;

// The contenders that targets are about, by their places.
const FLOOR: usize = 0;
const OURS: usize = 1;
const DELIVERING: usize = 2;
const NEIGHBOUR: usize = 3;

/// How many threads call, and where.
type Callers = (usize, Cores);

/// One contender's figures of one round.
struct Figures {
    calls: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    longest: f64,
    cpu: f64,
}

/// Measures all contenders, with lines of several sizes, from one thread and from four.
pub(crate) fn run(bench: &mut Bench) {
    bench.report.title("Call: a log line with osqueryd's habit (connect, ping, close, connect, call, close)");
    bench.report.say(
        "The generator is lean and the same for all; it and the contender share this machine's cores. CPU is the \
         contender's own, both processes of ours together. Ratios are to the floor of the same round; everything is \
         the median of the rounds, which go A B C D A B C D. On one core a caller and its callee take turns; where the \
         kernel puts them on two, each waits for the other's core to wake, and all contenders look alike \
         or not, by chance: targets are judged on one core, and from 4 threads. \
         Ours keeps each line in its journal while no server is there; \"delivering\" is ours while a server takes the \
         lines on the same cores.",
    );
    if let Err(reason) = &bench.programs.python {
        bench.report.say(&format!("(d), on the PyPI bindings, is left out: {reason}."));
    }
    let sizes: &[usize] = if bench.quick { &[500, 50_000] } else { &[200, 500, 2_000, 50_000] };
    for &size in sizes {
        measure(bench, size);
    }
}

fn measure(bench: &mut Bench, size: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (nowhere, there) = (SinkSetup::new(directory.path()), SinkSetup::new(directory.path()));
    let _sink = Sink::start(&there);
    let mut contenders = vec![
        Contender::floor(),
        Contender::ours(&bench.programs, &nowhere, &[]),
        Contender::ours(&bench.programs, &there, &[]).named("(b) ours, delivering"),
        Contender::neighbour(&bench.programs),
    ];
    if let Ok(python) = &bench.programs.python {
        contenders.push(Contender::python(&bench.programs, python));
    }
    let line = lines::line(0, size);
    let amount = Amount { time: Duration::from_millis(if bench.quick { 300 } else { 400 }), calls: BYTES / size };
    // Many short rounds: what else the machine does spoils some of them, and not the median.
    let rounds = if bench.quick { 3 } else { 9 };
    for (threads, cores) in [(1, Cores::One), (1, Cores::Any), (4, Cores::Any)] {
        for contender in &contenders {
            contender.processes.put(cores);
            // Once for nothing: caches, the first page of a file.
            load::drive(&contender.socket, &contender.log(&line), threads, cores, Amount { calls: 200, ..amount });
        }
        let rounds: Vec<Vec<Figures>> = (0..rounds)
            .map(|_| contenders.iter().map(|contender| figures(contender, &line, (threads, cores), amount)).collect())
            .collect();
        report(bench, &contenders, size, (threads, cores), &rounds);
    }
}

fn figures(contender: &Contender, line: &str, (threads, cores): Callers, amount: Amount) -> Figures {
    let call = contender.log(line);
    let before = contender.processes.cpu();
    let load: Load = load::drive(&contender.socket, &call, threads, cores, amount);
    let cpu = contender.processes.cpu() - before;
    Figures {
        calls: load.calls_per_second(),
        p50: load.latencies.per_mille(500),
        p99: load.latencies.per_mille(990),
        p999: load.latencies.per_mille(999),
        longest: load.latencies.longest(),
        cpu: load.per_call(cpu),
    }
}

fn report(bench: &mut Bench, contenders: &[Contender], size: usize, callers: Callers, rounds: &[Vec<Figures>]) {
    let of = |index: usize, value: fn(&Figures) -> f64| median(rounds.iter().map(|round| value(&round[index])));
    let ratio = |index: usize, to: usize, value: fn(&Figures) -> f64| {
        median(rounds.iter().map(|round| value(&round[index]) / value(&round[to])))
    };
    let times = |value: f64| format!("{value:.2} x");
    let row = |(index, contender): (usize, &Contender)| {
        let mut row = vec![contender.name.to_owned()];
        row.extend([
            figure(of(index, |one| one.calls)),
            figure(of(index, |one| one.p50)),
            times(ratio(index, FLOOR, |one| one.p50)),
            figure(of(index, |one| one.p99)),
            times(ratio(index, FLOOR, |one| one.p99)),
            figure(of(index, |one| one.p999)),
            figure(of(index, |one| one.longest)),
            figure(of(index, |one| one.cpu)),
            times(ratio(index, FLOOR, |one| one.cpu)),
        ]);
        row
    };
    let rows: Vec<Vec<String>> = contenders.iter().enumerate().map(row).collect();
    let from = match callers {
        (1, Cores::One) => "1 thread, on one core with the contender".to_owned(),
        (1, Cores::Any) => "1 thread, on any cores".to_owned(),
        (threads, _) => format!("{threads} threads, on any cores"),
    };
    bench.report.say(&format!("**Lines of {size} B, {from}**"));
    let head =
        ["", "calls/s", "p50 µs", "to floor", "p99 µs", "to floor", "p99.9 µs", "longest µs", "CPU µs", "to floor"];
    bench.report.table(&head, &rows);
    targets(bench, size, callers, ratio);
}

/// Holds the ratios of these calls against what was aimed at.
fn targets(bench: &mut Bench, size: usize, callers: Callers, ratio: impl Fn(usize, usize, fn(&Figures) -> f64) -> f64) {
    match (size, callers) {
        (500, (1, Cores::One)) => {
            let time = ratio(OURS, FLOOR, |one| one.p50);
            bench.report.target(
                "call: time a call (p50), 500 B, 1 thread, one core",
                Bound::AtMost(1.2),
                "x the floor's",
                time,
            );
            let time = ratio(OURS, FLOOR, |one| 1.0 / one.calls);
            bench.report.target(
                "call: time a call (mean, stalls included)",
                Bound::AtMost(1.25),
                "x the floor's",
                time,
            );
            let cpu = ratio(NEIGHBOUR, OURS, |one| one.cpu);
            bench.report.target("call: CPU a call of osquery-rust-ng's", Bound::AtLeast(1.25), "x ours", cpu);
            let stall = ratio(OURS, FLOOR, |one| one.p99);
            bench.report.target("call: p99", Bound::AtMost(2.0), "x the floor's", stall);
        }
        (500, (4, _)) => {
            let cpu = ratio(NEIGHBOUR, OURS, |one| one.cpu);
            bench.report.target("call: the same, 4 threads on any cores", Bound::AtLeast(1.25), "x ours", cpu);
            let stall = ratio(OURS, FLOOR, |one| one.p99);
            bench.report.target("call: p99, 4 threads on any cores", Bound::AtMost(2.0), "x the floor's", stall);
            let stall = ratio(DELIVERING, FLOOR, |one| one.p99);
            bench.report.target(
                "call: p99 while delivering, 4 threads on any cores",
                Bound::AtMost(2.0),
                "x the floor's",
                stall,
            );
        }
        _ => {}
    }
}
