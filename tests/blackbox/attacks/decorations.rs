//! Decorators whose values are large: each of a call's status lines has all of them.

use serde_json::{Value, json};

use super::forget_peak;
use crate::rig::{LIMIT, Rig, Setup, memory_of};

/// What a call may cost the worker at its peak, in KiB.
const PEAK: u64 = 64 << 10;

/// The number of status lines that failing queries have brought into one call.
const LINES: usize = 100;

fn host(always: &[&str]) -> Rig {
    let config = json!({"schedule": {}, "decorators": {"always": always}});
    let rig = Setup::new().server(|server| server.config = config).own_flag("--buffer_max_bytes=20000000").start();
    rig.config();
    rig
}

/// A status call with lines of that message, younger than whatever was found before.
fn write_statuses(rig: &Rig, message: &str, lines: usize) {
    let line = json!({"s": 2, "f": "f.cpp", "i": 1, "m": message, "h": "h", "c": "c", "u": 4_000_000_000_u32});
    let lines = Value::from(vec![line; lines]).to_string();
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", &lines)]).code, 0);
}

fn with_message(rig: &Rig, message: &str) -> Vec<Value> {
    rig.server.statuses().into_iter().filter(|line| line["message"] == message).collect()
}

/// Decorates many lines at once: the worker stays small, the server gets all of them, and some have these decorations.
fn is_cheap(rig: &Rig, decorations: &Value, said: &str) {
    let worker = rig.worker_pid();
    let idle = memory_of(worker, "VmRSS:");
    forget_peak(worker);
    write_statuses(rig, "many", LINES);
    rig.said(said);
    write_statuses(rig, "many", LINES);
    rig.server.wait("all lines", LIMIT, |_| (with_message(rig, "many").len() == 2 * LINES).then_some(()));
    let mut round = 0;
    rig.osqueryd.wait("the decorations that are not too large", LIMIT, || {
        round += 1;
        let message = format!("round {round}");
        write_statuses(rig, &message, 1);
        rig.server
            .wait(&message, LIMIT, |_| with_message(rig, &message).pop())
            .get("decorations")
            .filter(|found| *found == decorations)
            .map(drop)
    });
    let peak = memory_of(worker, "VmHWM:").saturating_sub(idle);
    assert_eq!(worker, rig.worker_pid(), "the worker died of it");
    assert!(peak <= PEAK, "{peak} KiB over idle at its peak");
    assert_eq!(rig.stderr().matches(said).count(), 1, "{}", rig.stderr());
}

/// Issue 15: with a decorator's value of 16 MB and a hundred lines the worker took 2 GiB.
#[test]
fn an_answer_of_megabytes_is_a_decorator_that_fails() {
    let rig = host(&["select 1 as one", "select hex(zeroblob(8000000)) as large", "select 2 as two"]);
    let said = "a decorator fails and is tried again later: osqueryd's answer to query is larger than 1048576 bytes: \
                select hex(zeroblob(8000000)) as large";
    is_cheap(&rig, &json!({"one": "1", "two": "2"}), said);
}

/// Issue 15, the same decorators, many small ones.
#[test]
fn values_that_are_too_large_together_are_left_out() {
    let large = |name: &str| format!("select hex(zeroblob(20000)) as {name}");
    let (first, second) = (large("first"), large("second"));
    let rig = host(&["select 1 as one", &first, &second, "select 2 as two"]);
    let said = format!(
        "a decorator fails and is tried again later: all decorations would be larger than 65536 bytes together: {second}"
    );
    is_cheap(&rig, &json!({"one": "1", "first": "0".repeat(40000), "two": "2"}), &said);
}
