//! How fast lines are taken, beside osqueryd's own loggers in the same run. Prints figures; what it asserts is that all
//! lines arrive.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::lines::FOUND;
use crate::processes::processor_time;
use crate::rig::{Host, Real, number, real_alone, say};

const LINES: u32 = 20_000;

/// With this much in each row a line has about 590 bytes.
const FILLER: usize = 385;

/// What one run of one logger showed.
#[derive(Clone, Copy, Default)]
struct Measured {
    /// From the query's results to the next query: the time in which osqueryd's scheduler logged.
    phase: Duration,
    /// Processor time of our first process and of our worker, until the phase was over.
    front: Duration,
    worker: Duration,
    /// The same of the worker until all lines were at the server.
    delivered: Duration,
}

fn host(real: &Real) -> Host {
    let filler = "y".repeat(FILLER);
    let query = format!(
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {LINES}) SELECT x, '{filler}' AS y FROM c"
    );
    // The second one's start marks the end of the first one's logging; they run in the order of their names.
    let host = Host::new(
        real,
        json!({"schedule": {"a_big": {"query": query, "interval": 4}, "b_tick": {"query": "SELECT 1 AS one", "interval": 1}}}),
    );
    // What is slow here is to be the loggers, and what is logged the lines.
    host.flag("watchdog_level", "-1");
    host.flag("config_refresh", "300");
    host.flag("distributed_interval", "60");
    host.flag("tls_disable_status_log", "true");
    host
}

fn measure(real: &Real, logger: &str, own_flags: &str) -> Measured {
    let host = host(real);
    host.own_flags(own_flags);
    host.plugins(if logger == "remote_tls" { "remote_tls" } else { "tls" });
    host.flag("logger_plugin", logger);
    // The default, for ours; the built-in logger would take 80 s to deliver with it, and isn't waited for.
    host.flag("logger_tls_period", "4");
    host.start();
    host.wait("the query", || host.log().contains("Executing scheduled query a_big").then_some(()));
    let roles = host.roles();
    let used = |process: Option<_>| process.map_or(Duration::ZERO, processor_time);
    let (front, worker) = (used(roles.front), used(roles.worker));
    let phase = host.wait("the end of its logging", || phase(&host.log()));
    let mut measured = Measured { phase, ..Measured::default() };
    (measured.front, measured.worker) = (used(roles.front) - front, used(roles.worker) - worker);
    if logger == "remote_tls" {
        let of_query = || host.server.results().iter().filter(|line| line["name"] == "a_big").count();
        host.wait("all lines at the server", || {
            // Counting copies them all; the processor has something else to do.
            thread::sleep(Duration::from_millis(200));
            (host.server.result_count() >= LINES as usize && of_query() >= LINES as usize).then_some(())
        });
        measured.delivered = used(roles.worker) - worker;
        let mut numbers: Vec<u32> =
            host.server.results().iter().filter_map(|line| line["columns"]["x"].as_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert!(numbers.into_iter().eq(1..=LINES), "not all lines of the query are there");
    }
    host.stop();
    measured
}

/// The time between the big query's results and the next query, by osqueryd's own log.
fn phase(log: &str) -> Option<Duration> {
    let mut lines = log.lines().skip_while(|line| !line.contains(&format!("{FOUND}a_big")));
    let found = clock(lines.next()?)?;
    let next = clock(lines.find(|line| line.contains("Executing scheduled query"))?)?;
    // Midnight may lie between them.
    Some(if next >= found { next - found } else { next + Duration::from_secs(86400) - found })
}

/// The time of day of a line such as `I1126 04:12:02.000042  4711 scheduler.cpp:187] ...`.
fn clock(line: &str) -> Option<Duration> {
    let mut parts = line.split_whitespace().nth(1)?.split(':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    Some(Duration::from_secs_f64(part()? * 3600.0 + part()? * 60.0 + part()?))
}

/// Of some runs the one in the middle.
fn median(real: &Real, logger: &str, own_flags: &str) -> Measured {
    let mut runs: Vec<_> =
        (0..number("REAL_INTAKE_RUNS", 1).max(1)).map(|_| measure(real, logger, own_flags)).collect();
    runs.sort_by_key(|run| run.phase);
    runs[runs.len() / 2]
}

fn per_second(measured: Measured) -> f64 {
    f64::from(LINES) / measured.phase.as_secs_f64()
}

fn per_line(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(LINES)
}

#[test]
fn twenty_thousand_lines_beside_the_built_in_loggers() {
    let Some(real) = real_alone() else { return };
    let filesystem = median(&real, "filesystem", "");
    let tls = median(&real, "tls", "");
    let ours = median(&real, "remote_tls", "");
    let line_by_line = median(&real, "remote_tls", "--logger_expand_events=false\n");
    let figures = [
        format!("{LINES} lines of about 590 bytes in one query, lines/s:"),
        format!("filesystem {:.0}, built-in tls {:.0}", per_second(filesystem), per_second(tls)),
        format!(
            "ours by default {:.0} ({:.2} x the built-in tls)",
            per_second(ours),
            per_second(ours) / per_second(tls)
        ),
        format!(
            "its processor time a line: front {:.1} us, worker {:.1} us until all is delivered",
            per_line(ours.front),
            per_line(ours.delivered)
        ),
        format!("line by line {:.0}: {:.1} us a line", per_second(line_by_line), per_line(line_by_line.phase)),
        format!(
            "of ours in it {:.1} us (front {:.1}, worker {:.1}); the worker {:.1} until all is delivered",
            per_line(line_by_line.front + line_by_line.worker),
            per_line(line_by_line.front),
            per_line(line_by_line.worker),
            per_line(line_by_line.delivered)
        ),
    ];
    figures.iter().for_each(|line| say(line));
    if cfg!(debug_assertions) {
        say("a debug build: figures are worth something with --release only");
    }
}
