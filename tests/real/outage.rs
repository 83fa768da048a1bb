//! The server is away for more than a minute, and back.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::rig::{Host, real, say};

/// Longer than a minute, so that what waits becomes a backlog.
const OUTAGE: Duration = Duration::from_secs(90);

/// More than the waits between attempts, of lines and of the configuration, have become by then.
const BACK_WITHIN: Duration = Duration::from_secs(240);

#[test]
fn new_lines_come_before_those_of_an_outage() {
    let Some(real) = real() else { return };
    let clock = "SELECT unix_time AS now, random() AS r FROM time";
    let host = Host::new(&real, json!({"schedule": {"clock": {"query": clock, "interval": 1}}}));
    host.start();
    host.more_results(3);
    host.server.stop();
    // Time passes: that is the fault.
    thread::sleep(OUTAGE);
    host.server.resume().unwrap();
    let back = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let began = Instant::now();
    let runs = || -> Vec<u64> {
        let results = host.server.results();
        results.iter().filter(|line| line["action"] == "added").filter_map(|line| line["counter"].as_u64()).collect()
    };
    let is_new = || host.server.results().iter().any(|line| line["unixTime"].as_u64().is_some_and(|made| made > back));
    while !is_new() {
        assert!(began.elapsed() < BACK_WITHIN, "no new line within {BACK_WITHIN:?}");
        thread::sleep(Duration::from_millis(200));
    }
    let (took, mut seen) = (began.elapsed(), runs());
    seen.sort_unstable();
    seen.dedup();
    let newest = seen.last().copied().unwrap_or_default();
    let waiting = (newest + 1).saturating_sub(seen.len() as u64);
    say(&format!("a new line came {took:.0?} after the server was back, before {waiting} older ones"));
    assert!(waiting > 20, "{waiting} older ones wait");
    host.end_schedule_within(BACK_WITHIN);
    assert_eq!(host.stop().code(), Some(0));
}
