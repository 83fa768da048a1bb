//! Supervisor and worker: what happens when the worker dies, hangs or is replaced, and that osqueryd doesn't notice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::rig::{BINARY, LIMIT, Rig, Setup, child_of, line};

/// Kills of the worker in the quick form of the crash test; `CRASH_KILLS` sets another number.
const KILLS: u32 = 25;

fn signal(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(process).unwrap()).unwrap(), signal).unwrap();
}

fn is_alive(process: u32) -> bool {
    test_kill_process(Pid::from_raw(i32::try_from(process).unwrap()).unwrap()).is_ok()
}

/// Waits until another worker than this one is there.
fn successor(rig: &Rig, predecessor: u32) -> u32 {
    rig.osqueryd.wait("another worker", LIMIT, || child_of(rig.pid()).filter(|&worker| worker != predecessor))
}

/// What became of the calls of a load.
#[derive(Default)]
pub(crate) struct Calls {
    /// The numbers of the lines that were taken.
    pub(crate) taken: Vec<u64>,
    /// Calls that failed since nobody listened.
    refused: Vec<String>,
    /// Calls that failed in the middle: their worker was killed.
    broken: usize,
}

/// Logs lines from several threads while `disturb` does what it does.
pub(crate) fn load(rig: &Rig, disturb: impl FnOnce()) -> Calls {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let log = || {
        let mut calls = Calls::default();
        while !over.load(Ordering::SeqCst) {
            let n = next.fetch_add(1, Ordering::SeqCst);
            match rig.osqueryd.call("logger", "remote_tls", &[("string", line(n).as_bytes())]) {
                Ok(outcome) if outcome.code == 0 => calls.taken.push(n),
                Ok(outcome) => calls.refused.push(outcome.message),
                Err(error) if error.contains("cannot connect") => calls.refused.push(error),
                Err(_) => calls.broken += 1,
            }
        }
        calls
    };
    std::thread::scope(|scope| {
        let loggers: Vec<_> = (0..3).map(|_| scope.spawn(log)).collect();
        disturb();
        over.store(true, Ordering::SeqCst);
        let mut all = Calls::default();
        for logger in loggers {
            let calls = logger.join().unwrap();
            all.taken.extend(calls.taken);
            all.refused.extend(calls.refused);
            all.broken += calls.broken;
        }
        all
    })
}

/// Every line that was taken is delivered, at least once.
pub(crate) fn all_delivered(rig: &Rig, taken: &[u64]) {
    rig.server.wait("every line that was taken", LIMIT, |server| (server.result_count() >= taken.len()).then_some(()));
    rig.settled();
    let delivered: std::collections::BTreeSet<u64> = crate::rig::numbers(&rig.server.results()).into_iter().collect();
    let lost: Vec<&u64> = taken.iter().filter(|n| !delivered.contains(n)).collect();
    assert!(lost.is_empty(), "{} of {} lines are lost: {lost:?}", lost.len(), taken.len());
}

#[test]
fn a_worker_killed_again_and_again_costs_no_line_and_no_refused_call() {
    let kills = std::env::var("CRASH_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let rig = Rig::start();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let calls = load(&rig, || {
        let mut worker = rig.worker_pid();
        for _ in 0..kills {
            // At a random moment of up to 40 ms; xorshift is random enough for that.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let until = Instant::now() + Duration::from_micros(random % 40_000);
            while Instant::now() < until {
                std::thread::yield_now();
            }
            signal(worker, Signal::KILL);
            worker = successor(&rig, worker);
        }
    });
    assert_eq!(calls.refused, Vec::<String>::new(), "osqueryd would have ended");
    assert!(calls.taken.len() > kills as usize, "{} lines", calls.taken.len());
    // A kill in the middle of osqueryd's own ping has osqueryd drop the extension, which then registers again.
    println!(
        "{kills} kills, {} lines taken, {} calls broken in the middle, {} registrations",
        calls.taken.len(),
        calls.broken,
        rig.osqueryd.registrations().len()
    );
    all_delivered(&rig, &calls.taken);
}

#[test]
fn sighup_brings_in_a_new_worker_without_a_lost_call() {
    let rig = Rig::start();
    let supervisor = rig.pid();
    let calls = load(&rig, || {
        for _ in 0..3 {
            let worker = rig.worker_pid();
            let renewals = rig.stderr().matches("has taken over").count();
            signal(supervisor, Signal::HUP);
            rig.osqueryd.wait("the new worker", LIMIT, || {
                (rig.stderr().matches("has taken over").count() > renewals && !is_alive(worker)).then_some(())
            });
        }
    });
    assert_eq!((calls.refused, calls.broken), (Vec::new(), 0));
    all_delivered(&rig, &calls.taken);
    assert_eq!(rig.pid(), supervisor);
    assert_eq!(rig.osqueryd.registrations().len(), 1);
}

#[test]
fn another_binary_on_disk_is_taken_into_use_and_a_broken_one_is_not() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let installed = rig.directory.path().join("osquery-remote-tls.ext");
    let replace = |content: &[u8]| {
        let new = rig.directory.path().join("upgrade");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &installed).unwrap();
    };
    let first = rig.worker_pid();
    replace(&fs::read(BINARY).unwrap());
    rig.said("another binary is there: starting a new worker");
    rig.said("has taken over");
    rig.osqueryd.wait("the old worker's end", LIMIT, || (!is_alive(first)).then_some(()));
    rig.log(&line(1));
    replace(b"#!/bin/sh\nexit 1\n");
    rig.said("the new worker is of no use");
    rig.log(&line(2));
    assert_eq!(rig.delivered(3), [0, 1, 2]);
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let worker = rig.worker_pid();
    signal(worker, Signal::STOP);
    // As many calls of this time as it had threads waiting in accept are lost with it; the others wait for its
    // successor and are answered.
    let answered = std::thread::scope(|scope| {
        let log = |n: u64| rig.osqueryd.call("logger", "remote_tls", &[("string", line(n).as_bytes())]);
        let calls: Vec<_> = (1..=8).map(|n| scope.spawn(move || log(n))).collect();
        calls.into_iter().filter_map(|call| call.join().unwrap().ok()).count()
    });
    assert!(answered >= 4, "{answered} of 8 calls were answered");
    rig.said("has not answered for 5s: killing it");
    assert_ne!(rig.worker_pid(), worker);
    rig.log(&line(9));
    assert_eq!(rig.delivered(answered + 2).len(), answered + 2);
}

#[test]
fn a_worker_does_not_outlive_its_supervisor() {
    let rig = Rig::start();
    rig.log(&line(0));
    let worker = rig.worker_pid();
    signal(rig.pid(), Signal::KILL);
    rig.osqueryd.wait("the worker's end", LIMIT, || (!is_alive(worker)).then_some(()));
    // osqueryd's watcher starts another pair, which registers.
    rig.osqueryd.wait("another registration", LIMIT, || (rig.osqueryd.registrations().len() == 2).then_some(()));
    rig.wait_attached();
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
}

#[test]
fn both_processes_are_known_by_name() {
    let rig = Rig::start();
    let command = |process: u32| fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
    assert!(command(rig.pid()).contains("osquery-remote-tls.ext"), "{}", command(rig.pid()));
    assert!(command(rig.worker_pid()).starts_with("remote_tls.ext: worker"), "{}", command(rig.worker_pid()));
}

#[test]
fn a_worker_is_not_to_be_started_by_hand() {
    let output =
        std::process::Command::new(BINARY).arg("--worker").stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("started by a supervisor, not by hand"), "{message}");
}

#[test]
fn an_osqueryd_that_hangs_does_not_delay_the_end() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let process = rig.pid();
    rig.osqueryd.hang(true);
    // Long enough for a check of the registration to be under way.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        std::thread::yield_now();
    }
    let asked = Instant::now();
    signal(process, Signal::TERM);
    let exit =
        rig.osqueryd.wait("the end", LIMIT, || rig.osqueryd.exits().into_iter().find(|exit| exit.pid == process));
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
    assert!(exit.at.duration_since(asked) < Duration::from_secs(3), "{exit:?}");
    rig.osqueryd.hang(false);
}
