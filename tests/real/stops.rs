//! osqueryd ends while it logs: by a stop, by its worker's, by its watchdog's. Its scheduler finishes the query it is
//! at, and the lines of that are to be taken.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::lines::{Count, FOUND, Load, count_beside_filesystem};
use crate::processes::signal;
use crate::rig::{Host, LIMIT, Real, number, random_moment, real, say};

const LOAD: Load = Load::bursts(4);

/// A worker that ends within 4 s of its start counts for osqueryd's watcher as one that can't live: after four of them it
/// gives up.
const WORKERS_LIFE: Duration = Duration::from_secs(5);

fn stops() -> usize {
    number("REAL_STOPS", 3)
}

#[derive(Clone, Copy, PartialEq)]
enum Loggers {
    /// Ours alone, with our defaults: whole queries in one call.
    Ours,
    /// A second logger before ours: line by line.
    FilesystemAndOurs,
}

impl Loggers {
    fn host(self, real: &Real) -> Host {
        let host = Host::new(real, LOAD.config());
        host.flag("config_refresh", "300");
        if self == Loggers::FilesystemAndOurs {
            host.flag("logger_plugin", "filesystem,remote_tls");
        }
        host
    }

    fn count(self, host: &Host) -> Count {
        match self {
            Loggers::Ours => LOAD.count(host),
            Loggers::FilesystemAndOurs => count_beside_filesystem(host),
        }
    }

    /// How long the four queries of a second are being logged, roughly.
    fn burst(self) -> Duration {
        match self {
            Loggers::Ours => Duration::from_millis(15),
            Loggers::FilesystemAndOurs => Duration::from_millis(80),
        }
    }

    /// How many lines may be missing: line by line the one whose call comes between the sweeping of the socket's name
    /// and its return.
    fn allowed(self, stops: usize) -> usize {
        match self {
            Loggers::Ours => 0,
            Loggers::FilesystemAndOurs => stops,
        }
    }

    /// Sends what is left, without a schedule, and judges. osqueryd must not run.
    fn judge(self, host: &Host, stops: usize) {
        host.server.set_config(json!({"schedule": {}}));
        host.start();
        host.settled(|| self.count(host).missing == 0);
        host.stop();
        let count = self.count(host);
        say(&format!("{stops} stops: {count}"));
        assert!(count.logged > 0, "nothing was logged");
        assert!(count.missing <= self.allowed(stops), "lines are missing: {count}");
    }
}

/// Returns in the middle of a second's logging, as well as that can be seen from outside.
fn in_mid_logging(host: &Host, loggers: Loggers) {
    random_moment(Duration::from_millis(200), Duration::from_millis(1200));
    let length = host.log_length();
    let deadline = Instant::now() + LIMIT;
    while !host.log_since(length).contains(FOUND) {
        assert!(host.runs() && Instant::now() < deadline, "no query is being logged");
        thread::sleep(Duration::from_millis(1));
    }
    random_moment(Duration::ZERO, loggers.burst());
}

fn stop_again_and_again(loggers: Loggers) {
    let Some(real) = real() else { return };
    let host = loggers.host(&real);
    let mut ends = BTreeMap::<_, usize>::new();
    let mut slowest = Duration::ZERO;
    for _ in 0..stops() {
        host.start();
        host.more_results(1);
        in_mid_logging(&host, loggers);
        let began = Instant::now();
        *ends.entry(host.stop().code()).or_default() += 1;
        slowest = slowest.max(began.elapsed());
    }
    say(&format!("exit codes and their number: {ends:?}; the slowest stop took {slowest:.1?}"));
    assert_eq!(ends.into_keys().collect::<Vec<_>>(), [Some(0)]);
    loggers.judge(&host, stops());
}

/// Waits for another worker of osqueryd's, and for lines through it.
fn next_worker(host: &Host, before: Pid) -> Pid {
    let next = host.wait("osqueryd's next worker", || host.roles().osqueryd_worker.filter(|&pid| pid != before));
    let length = host.log_length();
    host.wait("the next worker to log", || host.log_since(length).contains(FOUND).then_some(()));
    next
}

fn stop_workers_again_and_again(loggers: Loggers) {
    let Some(real) = real() else { return };
    let host = loggers.host(&real);
    host.start();
    host.more_results(1);
    let mut worker = host.wait("osqueryd's worker", || host.roles().osqueryd_worker);
    for _ in 0..stops() {
        random_moment(WORKERS_LIFE, WORKERS_LIFE + Duration::from_secs(1));
        in_mid_logging(&host, loggers);
        signal(worker, Signal::TERM);
        worker = next_worker(&host, worker);
    }
    host.more_results(1);
    assert_eq!(host.stop().code(), Some(0));
    loggers.judge(&host, stops() + 1);
}

#[test]
fn whole_queries_stops_in_mid_logging_cost_no_line() {
    stop_again_and_again(Loggers::Ours);
}

#[test]
fn line_by_line_a_stop_in_mid_logging_costs_a_line_at_most() {
    stop_again_and_again(Loggers::FilesystemAndOurs);
}

#[test]
fn whole_queries_stops_of_osqueryd_s_worker_cost_no_line() {
    stop_workers_again_and_again(Loggers::Ours);
}

#[test]
fn line_by_line_a_stop_of_osqueryd_s_worker_costs_a_line_at_most() {
    stop_workers_again_and_again(Loggers::FilesystemAndOurs);
}

/// The watchdog stops osqueryd's worker when it has taken too much memory, and that is when a large query is being
/// logged. It tells the worker alone.
fn the_watchdog_stops_the_worker(loggers: Loggers) {
    let Some(real) = real() else { return };
    // The watchdog looks every 3 s: most of that time the worker must have much in memory.
    let load = Load { bursts: 1, rows: 30_000, filler: 385, interval: 2, singles: 0 };
    let host = loggers.host(&real);
    host.server.set_config(load.config());
    host.flag("watchdog_memory_limit", "60");
    host.flag("watchdog_delay", "0");
    host.flag("enable_watchdog_debug", "true");
    // Long enough for every line on a machine that is busy: osqueryd's own default is 4 s.
    host.flag("watchdog_forced_shutdown_delay", "60");
    host.start();
    let worker = host.wait("osqueryd's worker", || host.roles().osqueryd_worker);
    host.wait("the watchdog's stop", || host.log().contains("stopping: Memory limits exceeded").then_some(()));
    host.server.set_config(json!({"schedule": {}}));
    host.wait("the next worker", || host.roles().osqueryd_worker.filter(|&pid| pid != worker));
    host.end_schedule();
    let count = || if loggers == Loggers::Ours { load.count(&host) } else { count_beside_filesystem(&host) };
    host.settled(|| count().missing == 0);
    let end = host.stop().code();
    let count = count();
    say(&format!("exit code {end:?}, watchdog's stops: {}: {count}", host.log().matches("stopping: Memory").count()));
    assert_eq!(end, Some(0));
    assert!(count.missing <= loggers.allowed(1), "{count}");
}

#[test]
fn whole_queries_a_stop_by_the_watchdog_costs_no_line() {
    the_watchdog_stops_the_worker(Loggers::Ours);
}

#[test]
fn line_by_line_a_stop_by_the_watchdog_costs_a_line_at_most() {
    the_watchdog_stops_the_worker(Loggers::FilesystemAndOurs);
}
